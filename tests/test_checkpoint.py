"""Training that was killed goes on and ends with the weights of an uninterrupted one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch

from fcm_estimators import PolygonRegressor, ReluFormerClassifier
from fcm_estimators.exceptions import InvalidInputError, ModelFormatError
from tests.helpers import toy_cohort

QUICK = {
    "sample_key": "sample",
    "n_layers": 1,
    "hidden_dim": 8,
    "max_epochs": 6,
    "steps_per_epoch": 4,
    "random_state": 0,
}
GATES = {"all": ("", "CD10", "CD19"), "blast": ("all", "CD10", "CD34")}


def cohort():
    adata = toy_cohort()
    blast = (adata.obs["cell_type"] == "blast").to_numpy()
    adata.obsm["gates"] = pd.DataFrame(
        {"all": np.ones(adata.n_obs, dtype=bool), "blast": blast}, index=adata.obs_names
    )
    return adata


def make(kind, **kwargs):
    if kind == "classifier":
        return ReluFormerClassifier(
            **{**QUICK, "n_members": 0, "label_key": "cell_type", "pos_label": "blast", **kwargs}
        )
    return PolygonRegressor(GATES, **{**QUICK, "validation_fraction": 0.15, **kwargs})


SCRIPT = """
import sys
from tests.test_checkpoint import cohort, make
make(sys.argv[1], max_epochs=int(sys.argv[3])).fit(cohort(), checkpoint=sys.argv[2])
"""


def killed_training(kind, folder, epoch, max_epochs=6):
    """Train in another process and kill it once an epoch is done."""
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, kind, str(folder), str(max_epochs)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 120
    try:
        while time.monotonic() < deadline:
            try:
                state = json.loads((folder / "training.json").read_bytes())
            except OSError:
                state = {"history": []}
            if len(state["history"]) >= epoch or process.poll() is not None:
                break
            time.sleep(0.001)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL, "training ended before it was killed"
    return len(state["history"])


def same_weights(one, other):
    a, b = one.net_.module_.state_dict(), other.net_.module_.state_dict()
    return all(torch.equal(a[k], b[k]) for k in a)


def without_time(history):
    return history.drop(columns="seconds")


@pytest.mark.parametrize("kind", ["classifier", "regressor"])
def test_killed_training_ends_with_the_same_weights(kind, tmp_path):
    # Long enough not to be over when it is killed.
    done = killed_training(kind, tmp_path / "c", 2, max_epochs=40)
    resumed = make(kind, max_epochs=40).fit(cohort(), checkpoint=tmp_path / "c")
    whole = make(kind, max_epochs=40).fit(cohort())
    assert same_weights(resumed, whole)
    pd.testing.assert_frame_equal(without_time(resumed.history_), without_time(whole.history_))
    assert len(resumed.history_) > done
    np.testing.assert_array_equal(resumed.predict(cohort()), whole.predict(cohort()))


@pytest.mark.parametrize("held_out", [0.15, None])
def test_training_goes_on_at_every_epoch(tmp_path, held_out, monkeypatch):
    from fcm_estimators._fitting.checkpoint import Checkpoint

    monkeypatch.setattr("fcm_estimators._fitting.trainer._PATIENCE", 2)
    options = {"validation_fraction": held_out, "learning_rate": 0.03}
    whole = make("classifier", **options).fit(cohort())
    write = Checkpoint.on_epoch_end

    def write_and_stop(self, net, **kwargs):
        write(self, net, **kwargs)
        raise RuntimeError("power cut")

    for _ in range(len(whole.history_) - 1):
        with monkeypatch.context() as patch:
            patch.setattr(Checkpoint, "on_epoch_end", write_and_stop)
            with pytest.raises(RuntimeError, match="power cut"):
                make("classifier", **options).fit(cohort(), checkpoint=tmp_path)
        assert len(list(tmp_path.iterdir())) == 2
    resumed = make("classifier", **options).fit(cohort(), checkpoint=tmp_path)
    assert same_weights(resumed, whole)
    pd.testing.assert_frame_equal(without_time(resumed.history_), without_time(whole.history_))
    again = make("classifier", **options).fit(cohort(), checkpoint=tmp_path)
    assert same_weights(again, whole)


def test_an_interrupt_is_no_trained_model(monkeypatch):
    from fcm_estimators._fitting.trainer import LearningRate

    def interrupt(self, net, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(LearningRate, "on_epoch_end", interrupt)
    clf = make("classifier")
    with pytest.raises(KeyboardInterrupt):
        clf.fit(cohort())
    assert not hasattr(clf, "net_")


def test_another_training_is_refused(tmp_path):
    data = cohort()
    make("classifier", max_epochs=2).fit(data, checkpoint=tmp_path)
    with pytest.raises(InvalidInputError, match=r"another one: learning_rate differ"):
        make("classifier", max_epochs=2, learning_rate=0.1).fit(data, checkpoint=tmp_path)
    other = data.copy()
    other.obs["cell_type"] = other.obs["cell_type"].to_numpy()[::-1]
    with pytest.raises(InvalidInputError, match="data"):
        make("classifier", max_epochs=2).fit(other, checkpoint=tmp_path)
    with pytest.raises(InvalidInputError, match="integer as random_state"):
        make("classifier", random_state=None).fit(data, checkpoint=tmp_path)
    # Where and how loudly it is trained makes no difference.
    make("classifier", max_epochs=2, device="cpu").fit(data, checkpoint=tmp_path)


def test_damaged_states_are_refused(tmp_path):
    data = cohort()
    make("classifier", max_epochs=2).fit(data, checkpoint=tmp_path)
    path = tmp_path / "training.json"
    state = json.loads(path.read_text())
    for broken in (
        "{",
        "[]",
        json.dumps({**state, "format": "x"}),
        json.dumps({**state, "tensors": "../secret.safetensors"}),
        json.dumps({**state, "sha256": "0"}),
    ):
        path.write_text(broken)
        with pytest.raises(ModelFormatError, match="cannot be continued"):
            make("classifier", max_epochs=2).fit(data, checkpoint=tmp_path)


def test_saved_models_do_not_hold_the_directory(tmp_path):
    clf = make("classifier", max_epochs=1).fit(cohort(), checkpoint=tmp_path / "secret")
    clf.save(tmp_path / "model")
    assert "secret" not in (tmp_path / "model" / "model.json").read_text()
    data = cohort()
    clf.annotate(data)
    assert "secret" not in data.uns["reluformer"]["params"]
