"""Training through Accelerate: as without in one process, and alike in all of several."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from fcm_estimators import ReluFormerClassifier
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.nn import ReluFormer
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


def test_mixed_precision_is_of_training_only(monkeypatch):
    seen = set()

    class Watched(ReluFormer):
        def read_out(self, x, encoded, offsets, **given):
            logits = super().read_out(x, encoded, offsets, **given)
            seen.add((self.training, logits.dtype))
            return logits

    params = {**QUICK, "n_members": 0, "module": Watched}
    params |= {"module__n_layers": params.pop("n_layers"), "module__n_heads": 2}
    params["module__hidden_dim"] = params.pop("hidden_dim")
    cohort = toy_cohort()
    plain = ReluFormerClassifier(**params).fit(cohort)
    assert (True, torch.bfloat16) not in seen
    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    try:
        mixed = ReluFormerClassifier(**{**params, "device": "accelerate"}).fit(cohort)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert {dtype for training, dtype in seen if training} == {torch.float32, torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in mixed.net_.module_.parameters())
    seen.clear()
    found = mixed.predict_proba(cohort)
    assert seen == {(False, torch.float32)}
    np.testing.assert_allclose(found, plain.predict_proba(cohort), atol=0.02)
    assert not np.array_equal(found, plain.predict_proba(cohort))


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
