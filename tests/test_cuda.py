"""A GPU gives what the CPU gives; without one these tests are skipped."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from explainers import AttentionExplainer, GateSize, GradientExplainer, InfluenceExplainer
from fcm_estimators import PolygonRegressor, ReluFormerClassifier
from tests.helpers import toy_cohort
from tests.test_polygons import FAST, gated_cohort

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A classifier that was trained on the GPU, there and on the CPU."""
    clf = ReluFormerClassifier(
        sample_key="sample", label_key="cell_type", patient_key="patient", pos_label="blast",
        max_epochs=8, steps_per_epoch=20, n_members=2, device="cuda", random_state=0,
    ).fit(toy_cohort(6, 1000, patients=list("aabbcc")))  # fmt: skip
    path = tmp_path_factory.mktemp("model")
    clf.save(path)
    return ReluFormerClassifier.load(path, device="cuda"), ReluFormerClassifier.load(
        path, device="cpu"
    )


@pytest.fixture(scope="module")
def unseen():
    return toy_cohort(2, 3000, seed=7)


def test_training_on_the_gpu_learns(pair, unseen):
    assert next(pair[0].net_.module_.parameters()).is_cuda
    assert (pair[0].predict(unseen) == unseen.obs["cell_type"].to_numpy()).mean() > 0.97


def test_probabilities_are_those_of_the_cpu(pair, unseen):
    there, here = (clf.predict_proba(unseen) for clf in pair)
    np.testing.assert_allclose(there, here, atol=2e-4)


def test_annotation_is_that_of_the_cpu(pair, unseen, tmp_path):
    there, here = (clf.annotate(unseen, copy=True) for clf in pair)
    assert (there.obs["reluformer"] == here.obs["reluformer"]).mean() > 0.999
    np.testing.assert_allclose(
        there.obs["reluformer_novelty"], here.obs["reluformer_novelty"], rtol=1e-3, atol=1e-3
    )
    one, other = (data.uns["reluformer"]["members"] for data in (there, here))
    for name in ("share", "lowest", "highest", "possible"):
        np.testing.assert_allclose(one[name], other[name], atol=2e-3)
    unseen.write_h5ad(tmp_path / "unseen.h5ad")
    pair[0].annotate(tmp_path / "unseen.h5ad")


@pytest.mark.parametrize("mode", ["own", "set", "context"])
def test_gradients_are_those_of_the_cpu(pair, unseen, mode):
    there, here = (GradientExplainer(clf, "blast", mode=mode).attribute(unseen) for clf in pair)
    assert np.corrcoef(there.ravel(), here.ravel())[0, 1] > 0.9999
    np.testing.assert_allclose(there, here, atol=1e-3 * np.abs(here).max())


def test_influence_and_attention_are_those_of_the_cpu(pair, unseen):
    there, here = (InfluenceExplainer(clf, "blast").attribute(unseen) for clf in pair)
    np.testing.assert_allclose(there, here, atol=1e-3 * np.abs(here).max())
    one, other = (AttentionExplainer(clf, net_layer=0).attribute(unseen) for clf in pair)
    np.testing.assert_allclose(one.relative, other.relative, rtol=1e-3, atol=1e-3)


def test_gates_are_those_of_the_cpu(tmp_path):
    data = gated_cohort()
    PolygonRegressor(**FAST, device="cuda").fit(data).save(tmp_path)
    there, here = (PolygonRegressor.load(tmp_path, device=d) for d in ("cuda", "cpu"))
    np.testing.assert_allclose(there.predict(data), here.predict(data), atol=1e-2)
    equal = there.predict_membership(data) == here.predict_membership(data)
    assert equal.to_numpy().mean() > 0.999
    there.annotate(data)
    GradientExplainer(there, GateSize("left")).attribute(data)
