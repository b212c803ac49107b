"""ReluFormerClassifier as scikit-learn and scanpy users meet it."""

from __future__ import annotations

import copy
import json

import anndata as ad
import joblib
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    cross_val_predict,
    cross_validate,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks

from explainers import AttentionExplainer
from fcm_estimators import FcmError, ReluFormerClassifier
from fcm_estimators._base.plans import draw_plan
from fcm_estimators._fitting.class_targets import class_presence, codes_of, encode_labels, recode
from fcm_estimators._fitting.scale import marker_scale
from fcm_estimators._fitting.split import split_patients
from fcm_estimators._fitting.trainer import WarmUpCosine
from fcm_estimators.exceptions import (
    InvalidInputError,
    MarkerMismatchError,
    MissingKeyError,
    ModelFormatError,
    NotFittedError,
)
from fcm_estimators.inference import read_samples
from fcm_estimators.nn.relu_attention import head_overlap, head_unevenness
from tests.helpers import MARKERS, packed, toy_cohort, weights_file

# Members are tested in test_trust.py.
QUICK = {
    "max_epochs": 4, "steps_per_epoch": 10, "hidden_dim": 16, "n_layers": 2, "random_state": 0,
    "n_members": 0,
}  # fmt: skip


def quick(**kwargs):
    return ReluFormerClassifier(
        **{"sample_key": "sample", "label_key": "cell_type", **QUICK, **kwargs}
    )


@pytest.fixture(scope="module")
def cohort():
    return toy_cohort()


@pytest.fixture(scope="module")
def fitted(cohort):
    return quick(pos_label="blast").fit(cohort)


def same_anndata(a, b):
    return (
        np.array_equal(a.X, b.X)
        and a.obs.equals(b.obs)
        and set(a.obsm) == set(b.obsm)
        and set(a.uns) == set(b.uns)
        and set(a.layers) == set(b.layers)
    )


@parametrize_with_checks(
    [ReluFormerClassifier(**{**QUICK, "steps_per_epoch": 25})],
    expected_failed_checks=lambda _: {
        "check_methods_subset_invariance": "a prediction depends on the other cells of the sample"
    },
)
def test_scikit_learn_check(estimator, check, monkeypatch):
    if check.func.__name__ == "check_array_api_input":
        # It would skip: arrays of other libraries are no input of this estimator.
        assert not estimator.__sklearn_tags__().array_api_support
        return
    check(estimator)


# -- learning -----------------------------------------------------------------------------------


def test_learns_classes_of_unseen_shifted_samples(fitted):
    new = toy_cohort(3, seed=7)
    assert fitted.score(new) > 0.97


def test_three_classes_are_learnt(cohort):
    data = toy_cohort(classes=("B", "T", "blast"))
    clf = quick().fit(data)
    assert clf.classes_.tolist() == ["B", "T", "blast"]
    assert clf.threshold_ is None
    assert clf.score(toy_cohort(2, seed=3, classes=("B", "T", "blast"))) > 0.95
    np.testing.assert_allclose(clf.predict_proba(data).sum(1), 1, rtol=1e-5)


def test_equal_random_state_gives_equal_predictions(cohort, fitted):
    again = quick(pos_label="blast").fit(cohort)
    np.testing.assert_array_equal(again.predict_proba(cohort), fitted.predict_proba(cohort))


def test_global_random_state_is_left_alone(cohort):
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002 - the global state is what is tested
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    quick(max_epochs=1).fit(cohort)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


def test_every_kind_of_x_gives_the_same_model(cohort, fitted):
    want = fitted.predict_proba(cohort)
    table = cohort.to_df().assign(sample=cohort.obs["sample"], cell_type=cohort.obs["cell_type"])
    from_table = quick(pos_label="blast").fit(table)
    np.testing.assert_array_equal(from_table.predict_proba(table), want)
    codes = cohort.obs["sample"].cat.codes.to_numpy()
    array = np.column_stack([cohort.X, codes]).astype(np.float32)
    y = cohort.obs["cell_type"]
    from_array = quick(sample_key=4, label_key=None, pos_label="blast").fit(array, y)
    np.testing.assert_array_equal(from_array.predict_proba(array), want)
    by_groups = quick(sample_key=None, label_key=None, pos_label="blast")
    by_groups.fit(cohort.X, y, groups=codes)
    np.testing.assert_array_equal(by_groups.predict_proba(cohort.X, groups=codes), want)


def test_sparse_backed_layer_and_view_are_read(cohort, fitted, tmp_path):
    want = fitted.predict_proba(cohort)
    sparse = cohort.copy()
    sparse.X = ad.AnnData(cohort.X).X.copy()
    import scipy.sparse as sp

    sparse.X = sp.csr_matrix(cohort.X)
    np.testing.assert_array_equal(fitted.predict_proba(sparse), want)
    cohort.write_h5ad(tmp_path / "c.h5ad")
    backed = ad.read_h5ad(tmp_path / "c.h5ad", backed="r")
    np.testing.assert_array_equal(fitted.predict_proba(backed), want)
    backed.file.close()
    layered = cohort.copy()
    layered.layers["scaled"] = layered.X.copy()
    layered.X = np.zeros_like(layered.X)
    with_layer = clone(fitted).set_params(layer="scaled").fit(layered)
    np.testing.assert_array_equal(with_layer.predict_proba(layered), want)
    view = cohort[cohort.obs["sample"] == "s0"]
    np.testing.assert_allclose(fitted.predict_proba(view), want[:200], atol=1e-6)


def test_double_precision_goes_through(cohort, fitted):
    double = cohort.copy()
    double.X = double.X.astype(np.float64)
    proba = fitted.predict_proba(double)
    assert proba.dtype == np.float64
    np.testing.assert_allclose(proba, fitted.predict_proba(cohort), atol=1e-5)
    assert next(fitted.net_.module_.parameters()).dtype == torch.float32


def test_rows_of_samples_may_be_interleaved(cohort, fitted):
    order = np.random.default_rng(0).permutation(cohort.n_obs)
    shuffled = cohort[order].copy()
    np.testing.assert_allclose(
        fitted.predict_proba(shuffled), fitted.predict_proba(cohort)[order], atol=1e-6
    )


def test_markers_are_matched_by_name(cohort, fitted):
    want = fitted.predict_proba(cohort)
    reordered = cohort[:, ["CD45", "CD10", "CD34", "CD19"]].copy()
    np.testing.assert_allclose(fitted.predict_proba(reordered), want, atol=1e-6)
    extra = ad.concat(
        [
            cohort,
            ad.AnnData(
                np.ones((cohort.n_obs, 1), "f4"),
                obs=cohort.obs[[]],
                var=pd.DataFrame(index=["CD3"]),
            ),
        ],
        axis=1,
        merge="same",
    )
    extra.obs = cohort.obs.copy()
    np.testing.assert_array_equal(fitted.predict_proba(extra), want)
    renamed = cohort.copy()
    renamed.var_names = ["cd-10", "CD19", "CD34", "CD45"]
    with pytest.raises(
        MarkerMismatchError, match=r"lack 1 of the 4.*'CD10'.*cd-10.*marker_aliases"
    ):
        fitted.predict(renamed)
    with_alias = ReluFormerClassifier.load(save(fitted, cohort)).set_params(
        marker_aliases={"cd-10": "CD10"}
    )
    np.testing.assert_array_equal(with_alias.predict_proba(renamed), want)


def save(clf, cohort, path=None):
    import tempfile

    path = path or tempfile.mkdtemp()
    clf.save(path)
    return path


def test_time_and_unstained_channels_are_no_markers():
    data = toy_cohort(2)
    data.var["kind"] = ["scatter", "fluorescence", "fluorescence", "time"]
    data.var["marker"] = ["", "CD19", "", ""]
    told = "Channels that are not read: 'CD34': without a marker"
    with pytest.warns(UserWarning, match=told) as seen:
        assert quick(max_epochs=1).fit(data).markers_ == ["CD10", "CD19"]
    assert sum("not read" in str(w.message) for w in seen) == 1
    data.var = data.var.astype("category")  # as it comes back from a store
    with pytest.warns(UserWarning, match=told):
        assert quick(max_epochs=1).fit(data).markers_ == ["CD10", "CD19"]
    assert quick(max_epochs=1, markers=["CD45", "CD34"]).fit(data).markers_ == ["CD45", "CD34"]
    table = (
        data.to_df()
        .rename(columns={"CD45": "Time"})
        .assign(sample="a", cell_type=data.obs["cell_type"])
    )
    assert quick(max_epochs=1).fit(table).markers_ == ["CD10", "CD19", "CD34"]


# -- labels -------------------------------------------------------------------------------------


def test_unlabelled_cells_carry_no_loss_but_are_context(cohort):
    hidden = np.arange(cohort.n_obs) % 2 == 0
    y = cohort.obs["cell_type"].astype(object).where(~hidden)
    clf = quick(label_key=None, pos_label="blast").fit(cohort, y)
    assert clf.classes_.tolist() == ["blast", "other"]
    assert clf.score(cohort, y) > 0.95
    moved = cohort.copy()
    moved.X[hidden] += 3
    other = quick(label_key=None, pos_label="blast").fit(moved, y)
    assert not np.allclose(other.predict_proba(moved)[~hidden], clf.predict_proba(cohort)[~hidden])


@pytest.mark.parametrize("kind", ["int", "bool", "float with NaN", "text"])
def test_label_types_are_kept(cohort, kind):
    is_blast = (cohort.obs["cell_type"] == "blast").to_numpy()
    y = {
        "int": np.where(is_blast, 7, 3),
        "bool": is_blast,
        "float with NaN": np.where(np.arange(len(is_blast)) < 5, np.nan, is_blast.astype(float)),
        "text": np.where(is_blast, "b", "a"),
    }[kind]
    clf = quick(label_key=None).fit(cohort, y)
    known = ~pd.isna(y)
    assert (clf.predict(cohort) == y)[known].mean() > 0.95
    assert clf.predict(cohort).dtype == clf.classes_.dtype


def test_rare_class_is_found_and_its_probability_fits_its_share():
    """0.3 % positives: a draw of 300 cells holds one; the prior is that of the samples."""
    rng = np.random.default_rng(0)
    n, data = 4000, toy_cohort(6, 4000)
    rare = rng.random(6 * n) < 0.003
    data.X[:] = rng.normal(size=data.X.shape)
    data.X[rare, 0] += 2.5
    y = np.where(rare, "blast", "other")
    clf = quick(
        label_key=None, pos_label="blast", cells_per_sample=300, augmentation=0, max_epochs=15
    )
    clf.fit(data, y)
    proba = clf.predict_proba(data)[:, 0]
    assert 0.5 < proba.sum() / rare.sum() < 2
    assert np.mean(proba[rare]) > 20 * rare.mean()


def test_class_weight_moves_the_balance(cohort):
    heavy = quick(class_weight={"blast": 50.0, "other": 1.0}, threshold=0.5, max_epochs=2).fit(
        cohort
    )
    light = quick(class_weight={"blast": 0.02, "other": 1.0}, threshold=0.5, max_epochs=2).fit(
        cohort
    )
    assert (heavy.predict(cohort) == "blast").sum() > (light.predict(cohort) == "blast").sum()


# -- threshold, validation, history ---------------------------------------------------------------


def test_patients_are_never_on_both_sides(cohort):
    data = toy_cohort(8, 100, patients=["a", "a", "b", "b", "c", "c", "d", "d"])
    clf = quick(patient_key="patient", validation_fraction=0.25).fit(data)
    held_out = set(clf.validation_samples_)
    pairs = [{"s0", "s1"}, {"s2", "s3"}, {"s4", "s5"}, {"s6", "s7"}]
    assert held_out in pairs


def test_a_class_of_one_patient_stays_in_training():
    data = toy_cohort(6, 100)
    data.obs["cell_type"] = np.where(
        (data.obs["sample"] == "s3") & (data.X[:, 0] > 2), "blast", "other"
    )
    for seed in range(5):
        clf = quick(random_state=seed, max_epochs=1).fit(data)
        assert clf.validation_samples_
        assert "s3" not in clf.validation_samples_


@given(st.lists(st.sampled_from(["B", "NK", "T", "mono", None]), min_size=1, max_size=20))
def test_labels_of_some_classes_are_the_same_in_the_order_of_the_fitted_ones(labels):
    fitted = np.array(["B", "NK", "T", "mono"])
    classes, codes = encode_labels(np.array(labels, dtype=object))
    assume(len(classes))
    assert [classes[c] if c >= 0 else None for c in codes] == labels
    again = recode(classes, codes, fitted)
    assert [fitted[c] if c >= 0 else None for c in again] == labels
    with pytest.raises(InvalidInputError, match="Fit a new model"):
        recode(classes, codes, np.setdiff1d(fitted, classes[:1]))


@given(st.integers(0, 2**31 - 1), st.permutations(range(4)))
def test_codes_of_chosen_samples_go_with_their_cells(seed, order):
    sizes = np.random.default_rng(seed).integers(1, 9, 4)
    codes = np.arange(sizes.sum())
    samples = packed(*np.split(codes[:, None].astype("f4"), np.cumsum(sizes)[:-1]))
    chosen = order[:3]
    assert codes_of(samples, codes, chosen).tolist() == samples.take(chosen).x[:, 0].tolist()


@given(st.integers(20, 3000))
def test_learning_rate_rises_over_a_tenth_of_the_steps_and_falls_to_zero(n_steps):
    rate = np.array([WarmUpCosine(n_steps)(step) for step in range(n_steps + 1)])
    top = round(0.1 * n_steps)
    assert (np.diff(rate[:top]) > 0).all()
    assert rate[0] <= 1 / top
    assert rate[top - 1] == rate[top] == rate.max() == 1
    assert (np.diff(rate[top:]) < 0).all()
    assert rate[-1] == pytest.approx(0, abs=1e-12)
    # Half of it is left half-way.
    middle = np.interp((top + n_steps) / 2, np.arange(n_steps + 1), rate)
    assert middle == pytest.approx(0.5, abs=0.01)


@given(st.integers(0, 2**31 - 1), st.integers(0, 2), st.integers(0, 5))
def test_whichever_class_it_is_that_one_sample_has_stays_in_training(seed, rare, owner):
    samples = packed(*np.zeros((6, 10, 2)))
    common = [c for c in range(3) if c != rare]
    codes = np.tile([-1, -1, *common * 4], (6, 1))
    codes[owner, 5] = rare
    present = class_presence(codes.ravel(), samples.offsets, 3)
    assert present[:, rare].tolist() == [s == owner for s in range(6)]
    assert present[:, common].all()
    train, valid = split_patients(samples, 0.5, seed, present)
    assert owner in train
    assert sorted(train + valid) == list(range(6))
    assert len(valid) == 3


@given(st.integers(0, 2**31 - 1), st.lists(st.integers(1, 30), min_size=1, max_size=4))
def test_scale_is_the_spread_within_samples_each_of_which_counts_once(seed, sizes):
    rng = np.random.default_rng(seed)
    blocks = [rng.uniform(0.5, 2) * rng.normal(size=(n + 1, 4)) for n in sizes]
    mean, scale, _, _ = marker_scale(packed(*blocks))
    np.testing.assert_allclose(mean, np.mean([b.mean(0) for b in blocks], 0), rtol=1e-5, atol=1e-6)
    alone = [marker_scale(packed(block))[1] for block in blocks]
    np.testing.assert_allclose(alone[0], blocks[0].std(0), rtol=1e-5)
    np.testing.assert_allclose(np.square(scale), np.square(alone).mean(0), rtol=1e-5)
    # A shift between samples moves the mean and is no spread.
    shifts = 10 * rng.normal(size=(len(blocks), 4))
    moved = [block + shift for block, shift in zip(blocks, shifts, strict=True)]
    moved_mean, moved_scale, _, _ = marker_scale(packed(*moved))
    np.testing.assert_allclose(moved_scale, scale, rtol=1e-5)
    np.testing.assert_allclose(moved_mean, mean + shifts.mean(0), rtol=1e-5, atol=1e-5)
    # It does not matter how many cells of a sample were measured.
    more_mean, more_scale, _, _ = marker_scale(packed(np.tile(blocks[0], (7, 1)), *blocks[1:]))
    np.testing.assert_allclose(more_scale, scale, rtol=1e-5)
    np.testing.assert_allclose(more_mean, mean, rtol=1e-5, atol=1e-6)
    # Each marker has its own; one without spread has 1.
    factor = np.array([1.0, 2.0, 30.0, 0.0])
    stretched = marker_scale(packed(*(block * factor for block in blocks)))[1]
    np.testing.assert_allclose(stretched[:3], (scale * factor)[:3], rtol=1e-5)
    assert stretched[3] == 1


def test_few_samples_are_all_trained_on(caplog):
    with caplog.at_level("INFO", logger="fcm_estimators"):
        clf = quick(max_epochs=1).fit(toy_cohort(4))
    assert clf.validation_samples_ == []
    assert "no validation split" in caplog.text
    assert "valid_loss" not in clf.history_


def test_best_epoch_is_kept_and_training_stops_early(cohort, monkeypatch):
    monkeypatch.setattr("fcm_estimators._fitting.trainer._PATIENCE", 2)
    clf = quick(max_epochs=40, learning_rate=0.05).fit(cohort)
    losses = clf.history_["valid_loss"].to_numpy()
    assert len(losses) < 40
    assert len(losses) - 1 - losses.argmin() == 2
    assert clf.history_.columns.tolist() == [
        "epoch", "train_loss", "valid_loss", "learning_rate", "seconds",
    ]  # fmt: skip
    draws = fixed_validation_loss(clf, cohort)
    assert draws == pytest.approx(losses.min(), rel=1e-4)


def fixed_validation_loss(clf, cohort):
    """Loss of the final weights on the validation draws, recomputed."""
    from fcm_estimators._fitting.class_targets import encode_labels

    samples = read_samples(clf, cohort)
    _, codes = encode_labels(cohort.obs["cell_type"].astype(object).to_numpy())
    valid = [list(samples.names).index(name) for name in clf.validation_samples_]
    clf = copy.deepcopy(clf)
    module = clf.net_.module_
    draws = clf._draws(samples, codes, valid, module, clf._seed(), fixed=True)
    losses, sizes = [], []
    with torch.no_grad():
        for inputs, y in (draws[i] for i in range(len(draws))):
            losses.append(clf.net_.get_loss(clf.net_.infer(inputs), y, inputs).item())
            sizes.append(len(y))
    return np.average(losses, weights=sizes)


def logits_of(clf, data):
    """Outputs of the net, by another way."""
    samples = read_samples(clf, data)
    with torch.no_grad():
        net = clf.net_.module_.double()
        return net(torch.from_numpy(samples.x).double(), samples.offsets).numpy()


def test_threshold_decides_everywhere(cohort, fitted):
    clf = ReluFormerClassifier.load(save(fitted, cohort))
    clf.temperature_ = 3.0  # decisions do not depend on it
    for threshold in (-4.0, 0.0, 4.0):
        clf.threshold_ = threshold
        logits = logits_of(clf, cohort)
        called = logits[:, 0] - logits[:, 1] >= threshold
        np.testing.assert_array_equal(clf.predict(cohort) == "blast", called)
        np.testing.assert_array_equal(clf.decision_function(cohort) < 0, called)
        annotated = clf.annotate(cohort, copy=True)
        np.testing.assert_array_equal(annotated.obs["reluformer"] == "blast", called)
        assert clf.score(cohort) == np.mean(called == (cohort.obs["cell_type"] == "blast"))


def test_stated_false_positive_rate_holds_on_held_out_patients():
    data = toy_cohort(8, 1000)
    noise = np.random.default_rng(0).random(data.n_obs) < 0.2
    y = np.where(noise, "blast", data.obs["cell_type"].astype(str))
    rate = 0.01
    clf = quick(label_key=None, pos_label="blast", false_positive_rate=rate).fit(data, y)
    inside = data.obs["sample"].isin(clf.validation_samples_).to_numpy()
    called = clf.predict(data)[inside & (y == "other")] == "blast"
    assert called.mean() <= rate
    clf.threshold_ -= 0.01
    lower = clf.predict(data)[inside & (y == "other")] == "blast"
    assert lower.mean() > rate / 2


# -- warm start, saving --------------------------------------------------------------------------


def test_warm_start_goes_on_from_a_saved_model(cohort, fitted, tmp_path):
    fitted.save(tmp_path / "m")
    clf = ReluFormerClassifier.load(tmp_path / "m")
    new_lab = toy_cohort(5, seed=11)
    new_lab.X += 1.5
    before = clf.net_.module_.state_dict()
    clf.set_params(warm_start=True, max_epochs=1, learning_rate=1e-5).fit(new_lab)
    after = clf.net_.module_.state_dict()
    moved = max((after[k] - before[k]).abs().max().item() for k in before)
    assert 0 < moved < 1e-3
    assert len(clf.history_) == len(fitted.history_) + 1
    assert clf.history_["epoch"].is_monotonic_increasing
    unknown = new_lab.obs["cell_type"].astype(str).replace("other", "T")
    with pytest.raises(InvalidInputError, match=r"warm_start.*'blast', 'other'.*'T'"):
        clf.fit(new_lab, unknown)


def test_cards_say_what_was_trained_on_and_name_nobody(tmp_path):
    data = toy_cohort(8, patients=[f"Quittenbaum {i}" for i in range(8)])
    data.obs["sample"] = data.obs["sample"].cat.rename_categories(lambda name: f"tube {name} H.Q.")
    keys = {"sample_key": "sample", "label_key": "cell_type", "patient_key": "patient"}
    clf = ReluFormerClassifier(**keys, pos_label="blast", **QUICK).fit(data)
    card = clf.cards()["Data card"]
    blast = (data.obs["cell_type"] == "blast").sum()
    assert card["Training data"]["samples"] == card["Training data"]["patients"] == "8"
    assert card["Training data"]["class blast"] == f"{blast:,} cells in 8 samples"
    assert list(card["Markers"]) == clf.markers_
    assert "split by patients" in clf.cards()["Model card"]["Training"]["validation"]
    clf.save(tmp_path)
    text = (tmp_path / "MODEL_CARD.md").read_text() + (tmp_path / "DATA_CARD.md").read_text()
    assert f"{blast:,} cells in 8 samples" in text
    assert "not a medical device" in text
    assert "Quittenbaum" not in text
    assert "H.Q." not in text
    loaded = ReluFormerClassifier.load(tmp_path)
    assert loaded.cards() == clf.cards()
    loaded.set_params(warm_start=True, max_epochs=1).fit(data[:600].copy())
    assert loaded.cards()["Data card"]["Earlier training 1"]["samples"] == "8"
    assert loaded.cards()["Data card"]["Training data"]["samples"] == "3"
    assert "in 2 trainings" in loaded.cards()["Model card"]["Training"]["epochs"]


def test_saved_model_predicts_the_same(cohort, fitted, tmp_path):
    fitted.save(tmp_path / "m")
    weights = weights_file(tmp_path / "m").name
    files = ["DATA_CARD.md", "MODEL_CARD.md", weights, "model.json"]
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == files
    loaded = ReluFormerClassifier.load(tmp_path / "m")
    np.testing.assert_array_equal(loaded.predict_proba(cohort), fitted.predict_proba(cohort))
    np.testing.assert_array_equal(loaded.predict(cohort), fitted.predict(cohort))
    pd.testing.assert_frame_equal(loaded.history_, fitted.history_)
    params, again = fitted.get_params(), loaded.get_params()
    assert params == again
    joblib.dump(fitted, tmp_path / "m.joblib")
    unpickled = joblib.load(tmp_path / "m.joblib")
    np.testing.assert_array_equal(unpickled.predict_proba(cohort), fitted.predict_proba(cohort))


def test_fitted_model_holds_no_training_cells(fitted, tmp_path):
    joblib.dump(fitted, tmp_path / "small")
    joblib.dump(quick(pos_label="blast").fit(toy_cohort(6, 2000)), tmp_path / "large")
    sizes = [(tmp_path / name).stat().st_size for name in ("small", "large")]
    assert abs(sizes[1] - sizes[0]) < 0.05 * sizes[0]


def test_model_trained_on_cuda_loads_on_cpu(cohort, fitted, tmp_path):
    fitted.save(tmp_path / "m")
    text = json.loads((tmp_path / "m" / "model.json").read_text())
    pairs = dict(map(tuple, text["params"]["pairs"])) | {"device": "cuda"}
    text["params"]["pairs"] = [[k, v] for k, v in pairs.items()]
    (tmp_path / "m" / "model.json").write_text(json.dumps(text))
    loaded = ReluFormerClassifier.load(tmp_path / "m", device="cpu")
    np.testing.assert_array_equal(loaded.predict(cohort), fitted.predict(cohort))


def damage(folder, how):
    weights, text = weights_file(folder), folder / "model.json"
    if how == "truncated weights":
        weights.write_bytes(weights.read_bytes()[:-10])
    elif how == "altered weights":
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(bytes(content))
    elif how == "no weights":
        weights.unlink()
    elif how == "no description":
        text.unlink()
    elif how == "truncated description":
        text.write_text(text.read_text()[:100])
    elif how in ("newer format", "older format"):
        other = '"format_version": 99' if how == "newer format" else '"format_version": 1'
        text.write_text(text.read_text().replace('"format_version": 5', other))
    elif how == "other class":
        text.write_text(text.read_text().replace('"ReluFormerClassifier"', '"PolygonRegressor"'))
    elif how == "other shape":
        text.write_text(text.read_text().replace('"n_layers",\n    2', '"n_layers",\n    3'))
    elif how == "other json":
        text.write_text("[1]")


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("truncated weights", "checksum"),
        ("altered weights", "checksum"),
        ("no weights", r"safetensors cannot be read"),
        ("no description", r"No model at.*model\.json"),
        ("truncated description", "not valid JSON"),
        ("newer format", r"format version 99.*Update the package"),
        ("older format", r"format version 1.*Train the model again"),
        ("other class", r"PolygonRegressor\.load"),
        ("other shape", "does not fit its weights"),
        ("other json", "does not describe a model"),
    ],
)
def test_damaged_model_directory_is_refused(fitted, tmp_path, how, says):
    fitted.save(tmp_path / "m")
    damage(tmp_path / "m", how)
    with pytest.raises(ModelFormatError, match=says):
        ReluFormerClassifier.load(tmp_path / "m")


# -- scikit-learn's tools ------------------------------------------------------------------------


def test_works_in_pipeline_grid_search_and_cross_validation_by_group(cohort):
    groups = cohort.obs["sample"]
    y = cohort.obs["cell_type"].astype(str).to_numpy()
    pipeline = make_pipeline(FunctionTransformer(), quick(max_epochs=2))
    scores = cross_validate(pipeline, cohort, y, groups=groups, cv=GroupKFold(3))["test_score"]
    assert scores.min() > 0.9
    assert (
        cross_validate(quick(max_epochs=2), cohort, groups=groups, cv=GroupKFold(3))[
            "test_score"
        ].min()
        > 0.9
    )
    predicted = cross_val_predict(quick(max_epochs=2), cohort, y, groups=groups, cv=GroupKFold(3))
    assert (predicted == y).mean() > 0.9
    search = GridSearchCV(quick(max_epochs=2), {"learning_rate": [1e-6, 3e-3]}, cv=GroupKFold(3))
    search.fit(cohort, y, groups=groups)
    assert search.best_params_ == {"learning_rate": 3e-3}
    assert search.predict(cohort).shape == y.shape


def test_calibration_works_on_a_table(cohort):
    table = cohort.to_df().assign(sample=cohort.obs["sample"].cat.codes.to_numpy())
    y = cohort.obs["cell_type"].astype(str).to_numpy()
    folds = list(GroupKFold(3).split(table, y, groups=table["sample"]))
    calibrated = CalibratedClassifierCV(quick(label_key=None, max_epochs=2), cv=folds).fit(table, y)
    assert (calibrated.predict(table) == y).mean() > 0.9


# -- subset --------------------------------------------------------------------------------------


def test_cells_outside_the_parent_gate_are_neither_context_nor_classified(cohort):
    data = cohort.copy()
    inside = np.arange(data.n_obs) % 3 > 0
    data.obsm["gates"] = pd.DataFrame({"intact": inside}, index=data.obs_names)
    clf = quick(subset_key="intact", pos_label="blast").fit(data)
    predicted = clf.predict(data)
    assert set(predicted[~inside]) == {"not analysed"}
    assert set(predicted[inside]) == {"blast", "other"}
    assert np.isnan(clf.predict_proba(data)[~inside]).all()
    assert np.isnan(clf.decision_function(data)[~inside]).all()
    changed = data.copy()
    changed.X[~inside] = 1e6
    np.testing.assert_array_equal(
        clf.predict_proba(changed)[inside], clf.predict_proba(data)[inside]
    )
    clf.annotate(data)
    assert data.obs["reluformer"].cat.categories.tolist() == ["blast", "other", "not analysed"]


# -- annotate ------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["h5ad", "zarr"])
@pytest.mark.filterwarnings("ignore:Writing zarr v2")
def test_annotation_survives_stores(cohort, fitted, tmp_path, store):
    data = cohort.copy()
    assert fitted.annotate(data) is None
    path = tmp_path / f"a.{store}"
    getattr(data, f"write_{store}")(path)
    back = getattr(ad, f"read_{store}")(path)
    one, other = back.obs["reluformer"], data.obs["reluformer"]
    # pandas 3 reads text as a type of its own.
    pd.testing.assert_series_equal(one, other, check_categorical=False)
    assert one.cat.categories.tolist() == other.cat.categories.tolist()
    assert one.cat.ordered == other.cat.ordered
    pd.testing.assert_frame_equal(back.obsm["reluformer_proba"], data.obsm["reluformer_proba"])
    assert back.obsm["reluformer_proba"].dtypes.tolist() == [np.float32] * 2
    assert back.uns["reluformer"]["markers"].tolist() == MARKERS
    assert json.loads(back.uns["reluformer"]["params"])["n_layers"] == 2
    assert back.uns["reluformer"]["threshold"] == fitted.threshold_


def test_annotation_touches_its_own_keys_only(cohort, fitted):
    data = cohort.copy()
    data.uns["mine"] = 1
    fitted.annotate(data, key_added="net")
    assert set(data.obs) - set(cohort.obs) == {"net", "net_novelty", "net_unknown"}
    assert set(data.obsm) == {"net_proba"}
    assert set(data.uns) == {"net", "net_colors", "mine"}
    np.testing.assert_array_equal(data.X, cohort.X)
    copied = fitted.annotate(cohort, copy=True)
    assert "reluformer" in copied.obs
    assert "reluformer" not in cohort.obs


@pytest.mark.filterwarnings("ignore:The set_bad function")  # scanpy on newer matplotlib
def test_scanpy_plots_the_annotation(cohort, fitted, tmp_path):
    import matplotlib.pyplot as plt

    data = fitted.annotate(cohort, copy=True)
    data.obsm["X_umap"] = data.X[:, :2]
    ax = sc.pl.umap(data, color="reluformer", show=False)
    assert {t.get_text() for t in ax.get_legend().get_texts()} == {"blast", "other"}
    plt.close("all")


# -- bad input -----------------------------------------------------------------------------------


def broken(data, how):
    if how == "nan":
        data.X[3:5, 1] = np.nan
        data.X[7, 2] = np.inf
    elif how == "empty":
        return data[:0].copy()
    elif how == "nan sample":
        data.obs["sample"] = data.obs["sample"].astype(object)
        data.obs.loc[data.obs_names[:3], "sample"] = np.nan
    elif how == "duplicate markers":
        data.var_names = ["CD10", "CD10", "CD34", "CD45"]
    elif how == "no sample column":
        del data.obs["sample"]
    elif how == "complex":
        data.X = data.X.astype(np.complex64)
    elif how == "missing marker":
        return data[:, ["CD19", "CD34", "CD45"]].copy()
    return data


BAD = [
    ("nan", InvalidInputError, r"'CD19' \(2 NaN, 0 inf\), 'CD34' \(0 NaN, 1 inf\)"),
    ("empty", InvalidInputError, "0 cells"),
    ("nan sample", InvalidInputError, "3 of 1200 cells have no sample id"),
    ("duplicate markers", InvalidInputError, "'CD10' occur"),
    ("no sample column", MissingKeyError, r"'sample' was not found; available: 'event'"),
    ("complex", InvalidInputError, "complex64"),
]


@pytest.mark.parametrize(("how", "error", "says"), BAD)
@pytest.mark.parametrize("method", ["fit", "predict", "annotate"])
@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_bad_cells_are_named_and_nothing_changes(cohort, fitted, how, error, says, method):
    data = broken(cohort.copy(), how)
    before = data.copy()
    probabilities = fitted.predict_proba(cohort)
    with pytest.raises(error, match=says) as caught:
        getattr(fitted, method)(data)
    assert isinstance(caught.value, FcmError)
    if how != "nan":
        assert same_anndata(data, before)
    assert "reluformer" not in data.obs
    np.testing.assert_array_equal(fitted.predict_proba(cohort), probabilities)


def test_missing_marker_lists_those_present(cohort, fitted):
    with pytest.raises(MarkerMismatchError, match=r"lack 1 of the 4.*'CD10'.*The data have 'CD19'"):
        fitted.predict(broken(cohort, "missing marker"))
    with pytest.raises(MarkerMismatchError, match="'CD3'"):
        quick(markers=["CD3", "CD10"]).fit(cohort)


@pytest.mark.parametrize(
    ("params", "y", "error", "says"),
    [
        ({}, ["a"] * 1200, InvalidInputError, r"one class only \('a'\)"),
        ({}, ["a", "b"] * 100, InvalidInputError, "200 labels for 1200 cells"),
        ({}, np.array([np.nan] * 1200), InvalidInputError, "one class only"),
        ({"label_key": None}, None, InvalidInputError, "label_key"),
        ({"label_key": "type"}, None, MissingKeyError, "'type' was not found"),
        ({"layer": "raw"}, None, MissingKeyError, "'raw' was not found; available: none"),
        ({"subset_key": "intact"}, None, MissingKeyError, "'intact' was not found"),
        ({"subset_key": "event"}, None, InvalidInputError, "True or False"),
        ({"patient_key": "event"}, None, InvalidInputError, "more than one patient"),
        ({"pos_label": "T"}, None, InvalidInputError, "'T' is not among the labels"),
        ({"hidden_dim": 10, "n_heads": 4}, None, InvalidInputError, "not a multiple"),
        ({"device": "abacus"}, None, InvalidInputError, "'abacus' is not a device"),
        ({"max_epochs": 0}, None, ValueError, "max_epochs"),
        ({"false_positive_rate": 0.1}, None, InvalidInputError, "needs the positive class"),
        ({"validation_fraction": None, "false_positive_rate": 0.1, "pos_label": "blast"}, None,
         InvalidInputError, "needs held-out patients"),
        ({}, ["T/NK", "B"] * 600, InvalidInputError, "T/NK"),
    ],
)  # fmt: skip
def test_bad_parameters_and_labels_are_named(cohort, params, y, error, says):
    clf = quick(**params)
    with pytest.raises(error, match=says):
        clf.fit(cohort, y)
    assert not hasattr(clf, "net_")


def test_one_cell_is_too_little_to_fit_but_enough_to_predict(cohort, fitted):
    one = cohort[:1].copy()
    with pytest.raises(InvalidInputError, match="single cell"):
        quick().fit(one)
    assert fitted.predict(one).shape == (1,)


def test_predicting_before_fit_says_so(cohort):
    for method in ("predict", "predict_proba", "decision_function", "annotate", "save"):
        with pytest.raises(NotFittedError, match="not fitted yet"):
            getattr(quick(), method)(cohort if method != "save" else "x")


def test_model_fitted_with_groups_needs_groups(cohort):
    clf = quick(sample_key=None, label_key=None)
    clf.fit(cohort.X, cohort.obs["cell_type"], groups=cohort.obs["sample"])
    with pytest.raises(InvalidInputError, match="fitted with groups"):
        clf.predict(cohort.X)
    with pytest.raises(InvalidInputError, match="given twice"):
        quick().fit(cohort, groups=cohort.obs["sample"])


def test_unread_sample_column_is_warned_of(cohort):
    with pytest.warns(UserWarning, match="names 6 samples"):
        quick(sample_key=None, max_epochs=1).fit(cohort)


def test_views_and_bad_keys_are_refused_by_annotate(cohort, fitted):
    view = cohort[:200]
    with pytest.raises(InvalidInputError, match="view"):
        fitted.annotate(view)
    with pytest.raises(InvalidInputError, match="'/'"):
        fitted.annotate(cohort, key_added="a/b")
    with pytest.raises(InvalidInputError, match="DataFrame"):
        fitted.annotate(cohort.to_df())
    assert "reluformer" not in cohort.obs


def test_documented_defaults_are_the_real_ones():
    import inspect
    import re

    signature = dict(inspect.signature(ReluFormerClassifier).parameters)
    del signature["module__parameters"]
    documented = dict(
        re.findall(r"^(\w+) : .*?default (\S+)$", inspect.getdoc(ReluFormerClassifier), flags=re.M)
    )
    assert set(documented) == set(signature)
    for name, parameter in signature.items():
        assert eval(documented[name]) == parameter.default, name


def test_parameters_for_two_classes_are_refused_for_three():
    data = toy_cohort(classes=("B", "T", "blast"))
    with pytest.raises(InvalidInputError, match=r"pos_label='B' is for two classes.*hold 3"):
        quick(pos_label="B").fit(data)
    with pytest.raises(InvalidInputError, match=r"false_positive_rate=0.1 is for two classes"):
        quick(false_positive_rate=0.1).fit(data)


def test_head_diversity_makes_heads_look_at_different_cells(cohort):
    def overlap(weight):
        clf = quick(head_diversity=weight, max_epochs=10).fit(cohort)
        assert copy.deepcopy(clf).score(cohort) > 0.9
        received = [
            AttentionExplainer(clf, net_layer=layer).attribute(cohort).relative for layer in (0, 1)
        ]
        return np.mean([head_overlap(torch.from_numpy(r), [0, len(r)]) for r in received])

    assert overlap(0.2) < 0.8 * overlap(0.0)


def test_head_evenness_makes_heads_share_out_all_cells(cohort):
    def unevenness(weight):
        clf = quick(head_diversity=1.0, head_evenness=weight, max_epochs=10).fit(cohort)
        received = [
            AttentionExplainer(clf, net_layer=layer).attribute(cohort).relative for layer in (0, 1)
        ]
        given = [torch.from_numpy(r) for r in received]
        return np.mean([head_unevenness(g, [0, len(g)], torch.ones(len(g))) for g in given])

    assert unevenness(1.0) < 0.8 * unevenness(0.0)


def weights_of(clf):
    return {k: v.clone() for k, v in clf.net_.module_.named_parameters()}


def calibrate_with(monkeypatch, temperature):
    monkeypatch.setattr("fcm_estimators._base.deciding.best_temperature", lambda *_: temperature)
    monkeypatch.setattr("fcm_estimators._base.deciding.counts_are_right", lambda *_: True)


def test_calibration_leaves_the_trained_weights_alone(cohort, monkeypatch):
    fits = []
    for temperature in (1.0, 3.0):
        calibrate_with(monkeypatch, temperature)
        fits.append(quick().fit(cohort))
    one, three = fits
    assert (one.temperature_, three.temperature_) == (1.0, 3.0)
    ours, theirs = weights_of(one), weights_of(three)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    np.testing.assert_array_equal(one.predict(cohort), three.predict(cohort))
    plain, tempered = (m.predict_proba(cohort) for m in fits)
    for sample in cohort.obs["sample"].unique():
        inside = (cohort.obs["sample"] == sample).to_numpy()
        # Divided log-odds, moved by one number in each sample, which keeps the mean.
        before, after = (np.diff(np.log(p[inside]), axis=1) for p in (plain, tempered))
        moved = after - before / 3
        np.testing.assert_allclose(moved, moved.mean(), atol=1e-3)
        np.testing.assert_allclose(tempered[inside].mean(0), plain[inside].mean(0), rtol=1e-3)


def test_training_goes_on_from_the_net_as_it_was_trained(cohort, monkeypatch):
    from fcm_estimators._base import estimator

    calibrate_with(monkeypatch, 2.0)
    clf = quick(warm_start=True).fit(cohort)
    before, seen = weights_of(clf), {}
    train = estimator.train_net

    def spy(module, *args):
        seen["weights"] = {k: v.clone() for k, v in module.named_parameters()}
        return train(module, *args)

    monkeypatch.setattr(estimator, "train_net", spy)
    clf.fit(cohort)
    assert all(torch.equal(before[name], seen["weights"][name]) for name in before)
    assert clf.temperature_ == 2


def test_an_untrained_twin_has_the_scale_and_nothing_that_was_learnt(cohort, monkeypatch):
    calibrate_with(monkeypatch, 2.0)
    clf = quick().fit(cohort)
    before = weights_of(clf)
    twin, again, other = (clf.untrained_twin(seed) for seed in (1, 1, 2))
    assert twin.temperature_ == 1
    assert clf.temperature_ == 2
    assert all(torch.equal(before[k], v) for k, v in weights_of(clf).items())
    net, fresh = clf.net_.module_, twin.net_.module_
    assert torch.equal(net.input_mean, fresh.input_mean)
    assert torch.equal(net.input_scale, fresh.input_scale)
    ours, same, theirs = (weights_of(m) for m in (twin, again, other))
    assert all(torch.equal(ours[k], same[k]) for k in ours)
    assert not torch.equal(ours["output.weight"], theirs["output.weight"])
    assert not torch.equal(ours["output.weight"], before["output.weight"])


def test_a_copy_of_a_store_is_refused(cohort, fitted, tmp_path):
    path = tmp_path / "cohort.h5ad"
    cohort.write_h5ad(path)
    before = path.read_bytes()
    with pytest.raises(InvalidInputError, match="changed in place"):
        fitted.annotate(path, copy=True)
    assert path.read_bytes() == before


def test_many_cells_per_sample_make_steps_of_fewer_samples():
    cells = (1_500, 16_384, 32_768, 1_000_000)
    plans = [draw_plan(quick(cells_per_sample=n), 0, 0.1) for n in cells]
    assert [plan.samples_per_step for plan in plans] == [4, 4, 2, 1]
    # Validation sees every sample as often, whatever the size of a step.
    for n in cells:
        plan = draw_plan(quick(cells_per_sample=n), 3, 0.1)
        assert plan.n_steps * plan.samples_per_step == 12
