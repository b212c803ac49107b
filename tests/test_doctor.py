"""What ``fcm doctor`` says of an installation that works, and of one that does not."""

from __future__ import annotations

import importlib.metadata
import json

import pytest
from typer.testing import CliRunner

from fcm_estimators import ReluFormerClassifier, doctor
from fcm_estimators.cli import app


def test_every_needed_package_is_listed_with_its_version():
    found = doctor.installation().set_index("what")["found"]
    assert found["torch"] == importlib.metadata.version("torch")
    assert "lightgbm" not in found  # of an extra
    assert not found.str.contains("is needed").any()


def test_a_package_of_another_version_and_a_missing_one_are_marked(monkeypatch):
    needed = ["numpy>=99", "no-such-package>=1", "pandas; extra == 'other'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: needed)
    found = doctor.installation().set_index("what")["found"]
    assert found["numpy"].endswith("; >=99 is needed")
    assert found["no-such-package"] == "missing; >=1 is needed"
    assert "pandas" not in found


def test_the_trial_stops_at_the_first_step_that_does_not_work(monkeypatch):
    def fails(self, *args, **kwargs):
        raise OSError("no")

    monkeypatch.setattr(ReluFormerClassifier, "fit", fails)
    found = doctor.self_test()
    assert found["step"].tolist()[-1] == "train"
    assert found["works"].tolist() == [True, True, False]
    assert found["found"].iloc[-1] == "OSError: no"
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 1
    assert "NO" in done.stdout


@pytest.mark.parametrize("quick", [True, False])
def test_the_command_tries_the_package_unless_it_is_to_be_quick(quick):
    done = CliRunner().invoke(app, ["doctor", "--json", *(["--quick"] if quick else [])])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert ("self_test" in found) != quick
    if not quick:
        assert all(step["works"] for step in found["self_test"])
        assert len(found["self_test"]) == 6
