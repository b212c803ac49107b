"""Explainers take a Pipeline that ends in a model, and say what they need of others."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from explainers import AttentionExplainer, GradientExplainer, InfluenceExplainer
from fcm_estimators import ReluFormerClassifier
from fcm_estimators.datasets import simulate_cohort
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.preprocessing import Compensation, LogicleTransform

EXPLAINERS = [
    lambda model: GradientExplainer(model, "blast"),
    lambda model: AttentionExplainer(model, net_layer=0),
    lambda model: InfluenceExplainer(model, "blast"),
]


@pytest.fixture(scope="module")
def pipeline():
    clf = ReluFormerClassifier(
        sample_key="sample", label_key="cell_type", pos_label="blast", max_epochs=1,
        steps_per_epoch=3, n_members=0, n_layers=1, hidden_dim=8,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return make_pipeline(Compensation(), LogicleTransform(), clf).fit(
            simulate_cohort(2, 300, random_state=0)
        )


@pytest.mark.parametrize("make", EXPLAINERS)
def test_a_pipeline_explains_raw_data_as_its_last_step_explains_prepared_ones(pipeline, make):
    raw = simulate_cohort(1, 300, random_state=1)
    ready = pipeline[:-1].transform(raw)
    before, state = raw.X.copy(), raw.var.copy()
    make(pipeline).explain(raw)
    make(pipeline[-1]).explain(ready)
    np.testing.assert_array_equal(raw.X, before)
    assert raw.var.equals(state)
    for kind in ("obs", "obsm", "layers"):
        new = set(getattr(ready, kind)) - {"raw", None}  # AnnData 0.13: X is the layer None
        for key in new & set(getattr(raw, kind)):
            one, other = (np.asarray(getattr(data, kind)[key]) for data in (raw, ready))
            assert (one == other).all() or np.allclose(one, other, equal_nan=True), key
        assert new <= set(getattr(raw, kind))


@pytest.mark.parametrize("make", EXPLAINERS)
def test_the_arrays_are_those_of_the_last_step(pipeline, make):
    raw = simulate_cohort(1, 300, random_state=1)
    here, there = (
        make(model).attribute(data)
        for model, data in ((pipeline, raw), (pipeline[-1], pipeline[:-1].transform(raw)))
    )
    first, second = (getattr(found, "relative", found) for found in (here, there))
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("make", EXPLAINERS)
@pytest.mark.parametrize("model", [LogisticRegression(), make_pipeline(LogisticRegression()), None])
def test_other_models_are_refused_by_name(make, model):
    with pytest.raises(InvalidInputError, match=r"or a Pipeline that ends in one of them; got \w+"):
        make(model)


def test_a_pipeline_does_not_transform_a_store(pipeline, tmp_path):
    simulate_cohort(1, 300, random_state=1).write_h5ad(tmp_path / "raw.h5ad")
    with pytest.raises(InvalidInputError, match="cannot transform a store"):
        GradientExplainer(pipeline, "blast").explain(tmp_path / "raw.h5ad")
