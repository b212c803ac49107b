"""What a prediction loads, and how many threads it uses."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings

import pytest
import torch

from fcm_estimators import ReluFormerClassifier
from fcm_estimators._fitting.threads import allowed_threads, own_threads
from fcm_estimators.datasets import simulate_cohort
from fcm_estimators.io import write_fcs
from fcm_estimators.preprocessing import Compensation, LogicleTransform
from tests.helpers import toy_cohort

# Each takes longer to load than a small file takes to annotate.
NEEDLESS = [
    "accelerate", "distributed", "explainers", "fcm_estimators.datasets", "fcm_estimators.gating",
    "fcm_estimators.polygon_regressor", "fcm_estimators.report", "fcm_estimators.workflow",
    "flowkit", "lightgbm", "lxml", "matplotlib", "numba", "plotly", "rich.markdown", "scanpy",
    "shapely", "sklearn.cluster", "sklearn.decomposition", "sklearn.ensemble",
    "sklearn.linear_model", "sklearn.mixture", "sklearn.neighbors", "sklearn.svm", "sympy",
    "torch._dynamo", "torch._inductor", "torch.onnx", "umap", "xml.etree.ElementTree",
]  # fmt: skip

QUICK = {
    "sample_key": "sample", "label_key": "cell_type", "pos_label": "blast", "max_epochs": 1,
    "steps_per_epoch": 2, "n_members": 0, "hidden_dim": 8, "n_layers": 1,
}  # fmt: skip


def test_annotating_a_file_loads_nothing_that_it_does_not_need(tmp_path):
    raw = simulate_cohort(2, 300, random_state=0)
    ready = LogicleTransform().fit_transform(Compensation().fit_transform(raw))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ReluFormerClassifier(**QUICK).fit(ready).save(tmp_path / "model")
    write_fcs(raw[raw.obs["sample"] == raw.obs["sample"].iloc[0]].copy(), tmp_path / "tube.fcs")
    code = (
        "import sys; from fcm_estimators.cli import app\n"
        "try: app(sys.argv[1:])\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        f"print('LOADED', [name for name in {NEEDLESS} if name in sys.modules])"
    )
    command = ["annotate", "model", "tube.fcs", "-o", "out", "--workers", "0"]
    done = subprocess.run(
        [sys.executable, "-c", code, *command], cwd=tmp_path, capture_output=True, text=True,
        check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert (tmp_path / "out" / "tube.h5ad").exists()
    assert "LOADED []" in done.stdout


@pytest.mark.parametrize(("text", "number"), [("3", 3), ("2,1", 2), ("", None), ("many", None)])
def test_the_environment_says_how_many_threads(monkeypatch, text, number):
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert allowed_threads() == (number or len(os.sched_getaffinity(0)))


def test_threads_that_another_library_added_are_not_used(monkeypatch):
    """numba sets the number of threads of torch to that of the cores."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before, seen = torch.get_num_threads(), []
    forward = torch.nn.Linear.forward

    def watched(self, x):
        seen.append(torch.get_num_threads())
        return forward(self, x)

    monkeypatch.setattr(torch.nn.Linear, "forward", watched)
    data = toy_cohort(3, 100)
    try:
        torch.set_num_threads(2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            clf = ReluFormerClassifier(**QUICK).fit(data)
            for use in (clf.predict, clf.predict_proba, clf.decision_function, clf.annotate):
                use(data)
        assert set(seen) == {1}
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        monkeypatch.setenv("OMP_NUM_THREADS", "4")
        with own_threads():
            assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
