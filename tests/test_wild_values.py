"""One event must not decide: values far beyond the training data are clipped, and this is said."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fcm_estimators import ReluFormerClassifier
from fcm_estimators._fitting.scale import marker_scale
from fcm_estimators.exceptions import InvalidInputError, ModelFormatError
from tests.helpers import MARKERS, packed, toy_cohort

N_CELLS = 1000
wild = st.sampled_from([-3e38, -1e12, -1e5, 40.0, 1e4, 1e8, 1e30, 3e38])


@pytest.fixture(scope="module")
def clf():
    train = toy_cohort(6, N_CELLS)
    return ReluFormerClassifier(
        sample_key="sample", label_key="cell_type", pos_label="blast", n_members=0,
        max_epochs=3, steps_per_epoch=20, validation_fraction=None, device="cpu", random_state=0,
    ).fit(train)  # fmt: skip


def quiet(call, *args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return call(*args, **kwargs)


def share(labels):
    return float(np.mean(np.asarray(labels) == "blast"))


@pytest.fixture(scope="module")
def unseen(clf):
    sample = toy_cohort(1, N_CELLS, seed=5)
    return sample, share(clf.predict(sample))


@settings(max_examples=40)
@given(wild, st.integers(0, N_CELLS - 1), st.integers(0, len(MARKERS) - 1))
def test_one_event_of_any_value_moves_no_share(clf, unseen, value, cell, marker):
    sample, before = unseen
    changed = sample.copy()
    changed.X[cell, marker] = value
    assert abs(share(quiet(clf.predict, changed)) - before) <= 1 / N_CELLS + 1e-3


def test_clipped_values_are_told_and_recorded_in_memory_and_in_stores(clf, unseen, tmp_path):
    changed = unseen[0].copy()
    changed.X[[3, 8], 1] = 1e8
    changed.X[5, 2] = -1e12
    changed.write_h5ad(tmp_path / "sample.h5ad")
    told = r"3 value\(s\) in 1 of 1 sample.*CD19 of 2 cell.*CD34 of 1 cell.*gradients are 0"
    with pytest.warns(UserWarning, match=told):
        clf.annotate(changed)
    with pytest.warns(UserWarning, match=told):
        clf.annotate(tmp_path / "sample.h5ad")
    stored = ad.read_h5ad(tmp_path / "sample.h5ad")
    for result in (changed, stored):
        found = result.uns["reluformer"]["clipped"]
        assert list(found["marker"]) == ["CD19", "CD34"]
        assert list(found["cells"]) == [2, 1]
    assert (changed.obs["reluformer"] == stored.obs["reluformer"]).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(clf.annotate(unseen[0], copy=True).uns["reluformer"]["clipped"]["cells"]) == 0


def test_a_clipped_value_has_no_gradient(clf):
    net = clf.net_.module_
    x = torch.randn(30, len(MARKERS))
    x[4, 2] = 1e6
    x.requires_grad_()
    net(x).sum().backward()
    assert x.grad[4, 2] == 0
    assert (x.grad != 0).sum() == x.numel() - 1


@given(st.integers(0, 2**31 - 1), wild.filter(lambda v: abs(v) > 1e3))
def test_a_wild_event_in_training_changes_the_scale_little(seed, value):
    rng = np.random.default_rng(seed)
    blocks = [rng.normal(3, 2, size=(2000, 2)).astype(np.float32) for _ in range(2)]
    before = marker_scale(packed(*blocks))
    blocks[1][rng.integers(2000), 0] = value
    after = marker_scale(packed(*blocks))
    np.testing.assert_allclose(after.mean, before.mean, atol=0.02)
    np.testing.assert_allclose(after.sd, before.sd, rtol=0.02)
    # The largest of the other events may become the quantile.
    np.testing.assert_allclose(after.highest, before.highest, atol=6)
    assert (after.lowest < blocks[0].min(0)).all()


def test_a_fit_tells_what_it_clipped_and_is_not_spoilt_by_it(clf, unseen):
    sample, before = unseen
    train = toy_cohort(6, N_CELLS)
    train.X[17, 0] = 3e38
    other = ReluFormerClassifier(**clf.get_params())
    with pytest.warns(UserWarning, match=r"1 value\(s\) in 1 of 6 .*the other cells of training"):
        other.fit(train)
    assert share(other.predict(sample)) == pytest.approx(before, abs=0.02)


def test_weights_and_outputs_that_are_not_finite_are_errors(clf, unseen, tmp_path):
    broken = clf.untrained_twin()
    with torch.no_grad():
        broken.net_.module_.output.weight[0, 0] = torch.nan
    with pytest.raises(InvalidInputError, match="values that are not finite"):
        broken.predict(unseen[0])
    broken.save(tmp_path)
    with pytest.raises(ModelFormatError, match=r"output\.weight holds NaN"):
        ReluFormerClassifier.load(tmp_path)
