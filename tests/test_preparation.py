"""A model brings raw data to the preprocessing of its training data and refuses any other."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.pipeline import make_pipeline

from fcm_estimators import ReluFormerClassifier
from fcm_estimators.datasets import simulate_cohort
from fcm_estimators.exceptions import MarkerMismatchError, NotFittedError, ProcessingStateError
from fcm_estimators.preprocessing import (
    ArcsinhTransform,
    Compensation,
    LinearTransform,
    LogicleTransform,
)
from tests.helpers import toy_cohort

QUICK = {"n_layers": 1, "hidden_dim": 8, "max_epochs": 1, "steps_per_epoch": 2, "n_members": 0}


@pytest.fixture(scope="module")
def raw():
    return simulate_cohort(2, 400, random_state=3)


@pytest.fixture(scope="module")
def processed(raw):
    return make_pipeline(Compensation(), LogicleTransform(), LinearTransform()).fit_transform(raw)


@pytest.fixture(scope="module")
def model(processed):
    clf = ReluFormerClassifier(sample_key="sample", label_key="cell_type", **QUICK)
    return clf.fit(processed)


def test_raw_data_are_brought_to_the_state_of_training(raw, processed, model, tmp_path):
    model.save(tmp_path / "model")
    loaded = ReluFormerClassifier.load(tmp_path / "model")
    before = raw.X.copy()
    for clf in (model, loaded):
        ready = clf.prepare(raw)
        np.testing.assert_array_equal(ready[:, clf.markers_].X, processed[:, clf.markers_].X)
        np.testing.assert_array_equal(ready.layers["raw"], raw.X)
        clf.annotate(ready)
    assert "reluformer" in ready.obs
    np.testing.assert_array_equal(raw.X, before)
    assert "reluformer" not in raw.obs


def test_without_a_copy_the_data_themselves_are_prepared(raw, model):
    mine = raw.copy()
    expected = model.prepare(raw)
    assert model.prepare(mine, copy=False) is mine
    np.testing.assert_array_equal(mine.X, expected.X)
    np.testing.assert_array_equal(mine.layers["raw"], raw.X)
    pd.testing.assert_frame_equal(mine.var, expected.var)
    assert mine.uns.keys() == expected.uns.keys()
    assert model.prepare(mine, copy=False) is mine
    np.testing.assert_array_equal(mine.X, expected.X)


def test_data_in_that_state_stay_as_they_are(processed, model):
    same = model.prepare(processed)
    assert same is not processed
    np.testing.assert_array_equal(same.X, processed.X)


def test_half_processed_data_are_finished(raw, processed, model):
    np.testing.assert_array_equal(model.prepare(Compensation().fit_transform(raw)).X, processed.X)


def test_channels_are_found_under_their_other_names(raw, processed, model):
    renamed = raw.copy()
    renamed.var_names = [{"CD10": "cd10 PE"}.get(name, name) for name in raw.var_names]
    with pytest.raises(MarkerMismatchError, match="CD10"):
        model.prepare(renamed)
    clf = ReluFormerClassifier(**{**model.get_params(), "marker_aliases": {"cd10 PE": "CD10"}})
    clf.fit(processed)
    ready = clf.prepare(renamed)
    np.testing.assert_array_equal(ready[:, "cd10 PE"].X, processed[:, "CD10"].X)


def test_data_in_another_state_are_refused(raw, processed, model):
    other = ArcsinhTransform(cofactor=150).fit_transform(Compensation().fit_transform(raw))
    for use in (model.predict, model.annotate, model.prepare):
        with pytest.raises(ProcessingStateError, match=r"linear|logicle"):
            use(other)
    with pytest.raises(ProcessingStateError, match="'none'"):
        model.predict(raw)
    model.warm_start = True
    try:
        with pytest.raises(ProcessingStateError):
            model.fit(other)
    finally:
        model.warm_start = False


def test_files_without_matrix_cannot_be_prepared(raw, model):
    lost = raw.copy()
    lost.uns["fcs"]["spillover_size"] = np.zeros(2, dtype=int)
    with pytest.raises(ProcessingStateError, match="spillover"):
        model.prepare(lost)


def test_models_and_data_without_record_say_so(raw, model):
    with pytest.raises(NotFittedError):
        ReluFormerClassifier().prepare(raw)
    toy = ReluFormerClassifier(label_key="cell_type", **QUICK).fit(toy_cohort(1))
    with pytest.raises(ProcessingStateError, match="did not record"):
        toy.prepare(raw)
    unknown = raw.copy()
    del unknown.var["transform"]
    with pytest.raises(ProcessingStateError, match="unknown"):
        model.prepare(unknown)
