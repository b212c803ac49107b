"""Notes of a release."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).parents[1] / ".ci" / "release.py"
NEW = "- New.\n\n### Part\n\n- More.\n"
CHANGES = f"# Changelog\n\n## 1.1.0 (2026-01-01)\n\n{NEW}\n## 1.0.0\n\n- Old.\n"


@pytest.fixture(scope="module")
def notes():
    spec = importlib.util.spec_from_file_location("release", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.release_notes


def test_notes_are_the_section_of_the_version_alone(notes):
    assert notes(CHANGES, "1.1.0", "v1.1.0") == NEW
    assert notes(CHANGES, "1.0.0", "v1.0.0") == "- Old.\n"


def test_a_rehearsal_takes_the_section_that_is_being_written(notes):
    assert notes(CHANGES.replace("2026-01-01", "unreleased"), "1.1.0.dev0") == NEW


@pytest.mark.parametrize(
    ("changes", "version", "tag", "message"),
    [
        (CHANGES, "1.1.0", "v1.0.0", "tag is v1.0.0, but the package has version 1.1.0"),
        (CHANGES, "1.2.0", "v1.2.0", "no section 1.2.0"),
        (CHANGES, "1.1.0.dev0", "v1.1.0.dev0", "no section 1.1.0.dev0"),
        (CHANGES.replace("2026-01-01", "unreleased"), "1.1.0", "v1.1.0", "unreleased"),
    ],
)
def test_what_is_not_ready_is_refused(notes, changes, version, tag, message):
    with pytest.raises(ValueError, match=message):
        notes(changes, version, tag)
