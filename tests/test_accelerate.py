"""Training through Accelerate: as without in one process, and alike in all of several."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import joblib
import pytest
import torch

from fcm_estimators import ReluFormerClassifier
from fcm_estimators.exceptions import InvalidInputError
from tests.helpers import toy_cohort

QUICK = {
    "sample_key": "sample",
    "label_key": "cell_type",
    "n_layers": 1,
    "hidden_dim": 8,
    "max_epochs": 3,
    "steps_per_epoch": 5,
    "random_state": 0,
    "device": "cpu",
}


def test_one_process_trains_as_without(tmp_path):
    one = ReluFormerClassifier(**QUICK).fit(toy_cohort())
    other = ReluFormerClassifier(**{**QUICK, "device": "accelerate"}).fit(toy_cohort())
    a, b = one.net_.module_.state_dict(), other.net_.module_.state_dict()
    assert all(torch.equal(a[k], b[k]) for k in a)
    joblib.dump(other, tmp_path / "model.joblib")
    other.save(tmp_path / "model")


SCRIPT = """
import sys
from pathlib import Path
from tests.helpers import toy_cohort
from tests.test_accelerate import QUICK
from fcm_estimators import ReluFormerClassifier
import os
clf = ReluFormerClassifier(**{**QUICK, "device": "accelerate"}).fit(toy_cohort())
clf.save(os.path.join(sys.argv[1], os.environ["RANK"]))
"""


def test_several_processes_end_with_one_model(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    run = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [sys.executable, *run, str(script), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    models = [ReluFormerClassifier.load(tmp_path / rank) for rank in "01"]
    a, b = (m.net_.module_.state_dict() for m in models)
    assert all(torch.equal(a[k], b[k]) for k in a)
    alone = ReluFormerClassifier(**QUICK).fit(toy_cohort()).net_.module_.state_dict()
    # Twice as many samples a step: another training, not one of the two repeated.
    assert not all(torch.equal(a[k], alone[k]) for k in a)
    a, b = (m.members_[0].state_dict() for m in models)
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_what_does_not_go_together_is_refused(tmp_path):
    with pytest.raises(InvalidInputError, match=r"checkpoint and device=.accelerate"):
        ReluFormerClassifier(**{**QUICK, "device": "accelerate"}).fit(
            toy_cohort(), checkpoint=tmp_path
        )
