"""Members, novelty and performance: what shows that an answer may be wrong."""

from __future__ import annotations

import warnings
from dataclasses import replace

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fcm_estimators import ReluFormerClassifier
from fcm_estimators._base.members import against_rest, usual_excess
from fcm_estimators._fitting.augmentation import Augmentation
from fcm_estimators._fitting.calibration import (
    calibrated,
    counts_are_right,
    false_positive_threshold,
    mean_keeping_shift,
)
from fcm_estimators._fitting.class_targets import share_ranges
from fcm_estimators._fitting.novelty import LabelledCells, Novelty, fit_novelty
from fcm_estimators._fitting.performance import Performance
from fcm_estimators._fitting.split import patient_folds
from fcm_estimators.cohort import annotate_files
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.metrics import classification_table
from fcm_estimators.report import write_report
from tests.helpers import packed, toy_cohort

QUICK = {
    "sample_key": "sample",
    "label_key": "cell_type",
    "patient_key": "patient",
    "pos_label": "blast",
    "max_epochs": 6,
    "steps_per_epoch": 20,
    "hidden_dim": 16,
    "n_layers": 2,
    "n_members": 3,
}


@pytest.fixture(scope="module")
def cohort():
    return toy_cohort(8, patients=list("aabbccdd"))


@pytest.fixture(scope="module")
def fitted(cohort):
    return ReluFormerClassifier(**QUICK).fit(cohort)


# -- members ------------------------------------------------------------------------------------


@given(st.integers(2, 7), st.integers(1, 6), st.integers(0, 2**31 - 1))
def test_each_patient_is_left_out_once_and_as_a_whole(n_folds, n_patients, seed):
    rng = np.random.default_rng(seed)
    patient = np.sort(np.r_[np.arange(n_patients), rng.integers(n_patients, size=4)])
    samples = replace(packed(*np.zeros((len(patient), 3, 1))), patients=patient)
    folds = patient_folds(samples, n_folds, seed, np.ones((len(patient), 2), dtype=bool))
    if n_patients == 1:
        assert folds == []
        return
    assert len(folds) == min(n_folds, n_patients)
    assert sorted(s for fold in folds for s in fold) == list(range(len(patient)))
    for one in folds:
        for other in folds:
            assert one is other or not set(patient[one]) & set(patient[other])


def test_a_member_has_not_seen_its_patients(cohort):
    """Another content of the left-out patients changes the other members only."""
    one = ReluFormerClassifier(**{**QUICK, "max_epochs": 1}).fit(cohort)
    changed = cohort.copy()
    inside = (changed.obs["patient"] == "a").to_numpy()
    changed.X[inside] = changed.X[inside] * 1.5 + 1
    other = ReluFormerClassifier(**{**QUICK, "max_epochs": 1}).fit(changed)
    equal = [
        all(torch.equal(a[k], b[k]) for k in a)
        for a, b in (
            (m.state_dict(), n.state_dict())
            for m, n in zip(one.members_, other.members_, strict=True)
        )
    ]
    assert sorted(equal) == [False, False, True]


def test_members_of_a_patient_like_the_others_agree(fitted):
    new = toy_cohort(3, 2000, seed=5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted.annotate(new)
    members = pd.DataFrame(new.uns["reluformer"]["members"])
    assert not members["uncertain"].any()
    assert (members["lowest"] <= members["highest"]).all()
    assert (members["share"] <= members["possible"]).all()
    share = (new.obs["reluformer"] == "blast").groupby(new.obs["sample"], observed=True).mean()
    np.testing.assert_allclose(members["share"], share.loc[members["sample"]], rtol=1e-6)


def test_disagreement_is_told_and_nothing_is_quantifiable(fitted, tmp_path):
    """A member that calls everything else makes each sample uncertain."""
    torn = ReluFormerClassifier.load(saved(fitted, tmp_path))
    with torch.no_grad():
        torn.members_[0].output.bias += torch.tensor([50.0, -50.0])
    new = toy_cohort(2, 1000, seed=5)
    with pytest.warns(UserWarning, match=r"do not agree on 2 of 2 sample"):
        torn.annotate(new, disputed=True)
    members = pd.DataFrame(new.uns["reluformer"]["members"])
    assert members["uncertain"].all()
    assert (members["highest"] == 1).all()
    blast, disputed = new.obs["reluformer"] == "blast", new.obs["reluformer_disputed"]
    assert disputed[~blast].mean() > 0.99
    assert disputed[blast].mean() < 0.1
    new.write_h5ad(tmp_path / "new.h5ad")  # the record can be written


def saved(clf, folder):
    clf.save(folder / "model")
    return folder / "model"


def test_equal_members_dispute_nothing(fitted, tmp_path):
    same = ReluFormerClassifier.load(saved(fitted, tmp_path))
    same.members_ = [same.net_.module_] * 3
    new = toy_cohort(2, 1000, seed=5)
    same.annotate(new, disputed=True)
    assert not new.obs["reluformer_disputed"].any()
    members = new.uns["reluformer"]["members"]
    np.testing.assert_array_equal(members["lowest"], members["highest"])


def test_without_members_there_is_no_dispute_to_find(cohort):
    clf = ReluFormerClassifier(**{**QUICK, "n_members": 0, "max_epochs": 1}).fit(cohort)
    with pytest.raises(InvalidInputError, match="disputed=True needs members"):
        clf.annotate(cohort.copy(), disputed=True)
    annotated = clf.annotate(cohort, copy=True)
    assert "members" not in annotated.uns["reluformer"]


def test_saved_members_and_novelty_are_those_of_the_model(fitted, tmp_path):
    loaded = ReluFormerClassifier.load(saved(fitted, tmp_path))
    for one, other in zip(fitted.members_, loaded.members_, strict=True):
        a, b = one.state_dict(), other.state_dict()
        assert all(torch.equal(a[k], b[k]) for k in a)
    new = toy_cohort(2, seed=5)
    ours, theirs = (m.annotate(new, copy=True) for m in (fitted, loaded))
    pd.testing.assert_frame_equal(ours.obs, theirs.obs)
    assert str(loaded.performance_) == str(fitted.performance_)


@pytest.mark.filterwarnings("ignore:Writing zarr v2 data")
@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_a_store_gets_the_same_columns(fitted, tmp_path, suffix):
    import anndata as ad

    new = toy_cohort(2, 1000, seed=5)
    path = tmp_path / f"new{suffix}"
    (new.write_zarr if suffix == ".zarr" else new.write_h5ad)(path)
    fitted.annotate(path, disputed=True)
    fitted.annotate(new, disputed=True)
    back = (ad.read_zarr if suffix == ".zarr" else ad.read_h5ad)(path)
    for column in ("unknown", "disputed"):
        np.testing.assert_array_equal(
            back.obs[f"reluformer_{column}"], new.obs[f"reluformer_{column}"]
        )
        assert back.obs[f"reluformer_{column}"].dtype == bool
    np.testing.assert_allclose(
        back.obs["reluformer_novelty"], new.obs["reluformer_novelty"], rtol=1e-4, atol=1e-4
    )


@given(st.integers(0, 2**31 - 1))
def test_usual_excess_counts_cells_that_may_belong_to_a_class(seed):
    rng = np.random.default_rng(seed)
    logits = np.stack([rng.normal(size=4000) * 5, np.zeros(4000)], 1)
    codes = (logits[:, 0] < 0).astype(int)  # always right
    found = usual_excess(logits, codes, codes, np.zeros(4000, dtype=int))
    expected = (logits[:, 0] > -3).sum() / (codes == 0).sum()
    assert found[0] == pytest.approx(expected)
    # Samples with a wrong share say nothing.
    assert (usual_excess(logits, np.zeros(4000, int), codes, np.zeros(4000, int)) == 1).all()


@given(st.integers(2, 5), st.integers(0, 2**31 - 1))
def test_log_odds_against_the_rest_give_back_the_probabilities(n_classes, seed):
    logits = np.random.default_rng(seed).normal(size=(20, n_classes)) * 3
    p = torch.softmax(torch.from_numpy(logits), 1).numpy()
    np.testing.assert_allclose(1 / (1 + np.exp(-against_rest(logits))), p, rtol=1e-9)


# -- novelty ------------------------------------------------------------------------------------


def three_clouds(seed, n=3000, n_samples=6):
    rng = np.random.default_rng(seed)
    code = rng.integers(3, size=n)
    centres = np.eye(3, 5) * 6
    z = (centres[code] + rng.normal(size=(n, 5))).astype(np.float32)
    return LabelledCells(z, code, rng.integers(n_samples, size=n))


@pytest.mark.parametrize("left_out", [0, 1, 2])
def test_cells_of_a_class_that_was_left_out_are_strange(left_out):
    cells, new = three_clouds(0), three_clouds(1)
    folds = [[0, 1], [2, 3], [4, 5]]
    novelty, _ = fit_novelty(cells.take(cells.code != left_out), folds, Augmentation(), 0)
    score = novelty.score(torch.from_numpy(new.z)).numpy()
    strange = score > novelty.threshold
    assert strange[new.code == left_out].mean() > 0.95
    assert strange[new.code != left_out].mean() < 0.03
    # Control: with the class in training, its cells are not strange.
    whole, _ = fit_novelty(cells, folds, Augmentation(), 0)
    assert (whole.score(torch.from_numpy(new.z)).numpy() > whole.threshold).mean() < 0.03


@given(st.integers(0, 2**31 - 1))
def test_novelty_is_the_mixture_that_it_says(seed):
    rng = np.random.default_rng(seed)
    centroids, z = rng.normal(size=(4, 3)), rng.normal(size=(50, 3)) * 3
    weight, h2 = np.array([0.1, 0.2, 0.3, 0.4]), 0.7
    novelty = Novelty(torch.from_numpy(centroids), torch.from_numpy(np.log(weight)), h2)
    distance = np.square(z[:, None] - centroids).sum(-1)
    expected = -np.log((weight * np.exp(-distance / (2 * h2))).sum(1))
    np.testing.assert_allclose(novelty.score(torch.from_numpy(z)), expected, rtol=1e-9, atol=1e-9)


def test_no_centroid_is_the_measurement_of_a_cell():
    cells = three_clouds(0, n=1000)
    novelty, _ = fit_novelty(cells, [[0, 1, 2], [3, 4, 5]], None, 0)
    assert len(novelty.centroids) <= 50
    nearest = torch.cdist(novelty.centroids, torch.from_numpy(cells.z)).min(1).values
    assert (nearest > 1e-3).all()


@pytest.mark.filterwarnings("ignore:.* far beyond all training data")
@pytest.mark.filterwarnings("ignore:1 of 2 sample.s. are more than 1.5 times as far")
@pytest.mark.filterwarnings("ignore:The members of the model")
def test_unknown_cells_are_flagged_or_rejected_and_told(fitted, tmp_path):
    clf = ReluFormerClassifier.load(saved(fitted, tmp_path))
    new = toy_cohort(2, seed=5)
    new.X[:40] = 30.0
    with pytest.warns(UserWarning, match=r"unlike any in training.*s0 \(20%\)"):
        clf.annotate(new)
    assert new.obs["reluformer_unknown"][:40].all()
    assert new.obs["reluformer_unknown"][40:].mean() < 0.05
    assert set(new.obs["reluformer"].cat.categories) == {"blast", "other"}
    clf.unknown = "reject"
    predicted = clf.predict(new)
    np.testing.assert_array_equal(predicted == "unknown", new.obs["reluformer_unknown"])
    with pytest.warns(UserWarning, match="unlike any in training"):
        clf.annotate(new)
    np.testing.assert_array_equal(new.obs["reluformer"].astype(str), predicted)


@pytest.mark.filterwarnings("ignore:.* far beyond all training data")
@pytest.mark.filterwarnings("ignore:1 of 2 sample.s. are more than 1.5 times as far")
@pytest.mark.filterwarnings("ignore:The members of the model")
def test_annotate_and_report_warn_of_the_same_share(fitted, tmp_path):
    clf = ReluFormerClassifier.load(saved(fitted, tmp_path))
    new = toy_cohort(2, seed=5)
    new.X[:8] = 30.0  # 4 % of a sample
    clf.novelty_ = replace(clf.novelty_, usual=0.0)
    with pytest.warns(UserWarning, match=r"unlike any in training.*s0 \("):
        clf.annotate(new)
    write_report(new, tmp_path / "r.html", sample="s0")
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "% of cells resemble no training population" in text


# -- performance ----------------------------------------------------------------------------------


def test_performance_is_that_of_nets_that_did_not_see_the_patient(cohort, fitted):
    found = fitted.performance_
    assert found.n_patients == 4
    assert found.classes.loc["blast", "n_cells"] == (cohort.obs["cell_type"] == "blast").sum()
    assert 0.8 < found.classes["f1"].min() <= 1
    assert found.negatives["n_patients"] == 4
    assert "F1 of blast: 0." in str(found)


def test_labels_without_meaning_have_a_bad_performance(cohort):
    """Control: the figures fail where there is nothing to learn."""
    shuffled = np.random.default_rng(0).permutation(cohort.obs["cell_type"].astype(str))
    clf = ReluFormerClassifier(**{**QUICK, "max_epochs": 2}).fit(cohort, shuffled)
    share = (shuffled == "blast").mean()
    assert clf.performance_.classes["f1"].min() < 2 * share / (1 + share) + 0.1


def test_performance_is_the_mean_over_patients():
    rng = np.random.default_rng(0)
    truth = np.where(rng.random(3000) < 0.3, "b", "o")
    predicted = np.where(rng.random(3000) < 0.1, "b", truth)
    patient = np.repeat(["x", "y", "z"], 1000)
    found = Performance.of(truth, predicted, patient, patient, ["b", "o"], "b")
    table = classification_table(truth, predicted, groups=patient, labels=["b", "o"], pos_label="b")
    assert found.classes.loc["b", "f1"] == pytest.approx(table["f1"].mean())
    assert found.classes.loc["b", "f1_lowest"] == pytest.approx(table["f1"].min())
    rate = found.negatives["false_positives_per_million"]
    assert rate == pytest.approx(table["false_positives_per_million"].mean())
    again = Performance.from_dict(found.to_dict())
    assert str(again) == str(found)


@pytest.mark.filterwarnings("default:The training data are of")
@pytest.mark.parametrize("n_patients", [1, 2, 4, 5])
def test_few_patients_are_told(n_patients):
    data = toy_cohort(n_patients, 50)
    clf = ReluFormerClassifier(
        label_key="cell_type", sample_key="sample", max_epochs=1, steps_per_epoch=1
    )
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        clf.fit(data)
    text = f"of {n_patients} patient"
    assert any(text in str(w.message) for w in found) == (n_patients < 5)
    card = clf.cards()["Model card"]["Performance on held-out patients"]
    assert ("few patients" in card) == (n_patients < 5)
    assert (clf.performance_ is None) == (n_patients == 1)


# -- probabilities and thresholds ---------------------------------------------------------------


@given(st.integers(2, 4), st.floats(1, 5), st.integers(0, 2**31 - 1))
def test_calibration_keeps_the_mean_probability_of_every_class(n_classes, temperature, seed):
    rng = np.random.default_rng(seed)
    z = torch.from_numpy(rng.normal(size=(400, n_classes)) * 3 + 3 * rng.normal(size=n_classes))
    shift = mean_keeping_shift(lambda: iter([z[:100], z[100:]]), temperature)
    np.testing.assert_allclose(
        calibrated(z, temperature, shift).mean(0), torch.softmax(z, 1).mean(0), rtol=1e-3
    )


def test_a_rare_class_stays_rare():
    """The example of the issue: one temperature triples the expected number of rare cells."""
    rng = np.random.default_rng(0)
    z = torch.zeros(1_000_000, 2, dtype=torch.float64)
    z[:, 0] = torch.from_numpy(rng.normal(-11, 2, 1_000_000))
    expected = float(torch.softmax(z, 1)[:, 0].sum())
    tempered = float(torch.softmax(z / 1.198, 1)[:, 0].sum())
    assert tempered > 2.5 * expected
    shift = mean_keeping_shift(lambda: [z], 1.198)
    assert float(calibrated(z, 1.198, shift)[:, 0].sum()) == pytest.approx(expected, rel=1e-3)


def test_a_temperature_has_to_keep_its_promise_in_every_decade():
    rng = np.random.default_rng(0)
    z = rng.normal(-4, 3, (200_000, 1)) * np.array([[1.0, 0.0]])
    codes = (rng.random(len(z)) > 1 / (1 + np.exp(-z[:, 0]))).astype(int)
    sample = np.repeat(np.arange(4), 50_000)
    assert counts_are_right(z, codes, sample, 1.0)
    assert not counts_are_right(2 * z, codes, sample, 1.0)
    assert not counts_are_right(z, codes, sample, 4.0)


@given(st.integers(0, 2**31 - 1), st.floats(1e-3, 0.2))
def test_a_false_positive_rate_is_never_exceeded(seed, rate):
    """Also with negatives so confident that their probability is 0 in double precision."""
    rng = np.random.default_rng(seed)
    log_odds = rng.normal(rng.choice([-900.0, -45, 0, 45, 900]), 5, 2000)
    positive = rng.random(2000) < 0.1
    threshold = false_positive_threshold(log_odds, positive, rate)
    assert np.isfinite(threshold)
    share = (log_odds[~positive] >= threshold).mean()
    assert rate - 1 / (~positive).sum() < share <= rate


# -- composition ---------------------------------------------------------------------------------

TINY = {"n_layers": 1, "hidden_dim": 8, "max_epochs": 6, "steps_per_epoch": 20, "random_state": 0}


@pytest.mark.filterwarnings("ignore:The members of the model")
@pytest.mark.filterwarnings("ignore:1 of 2 sample.s. are more than 1.5 times as far")
def test_shares_outside_those_of_the_training_samples_are_told(tmp_path):
    classes = ("B", "NK", "T")
    train = toy_cohort(6, classes=classes)
    keys = {"sample_key": "sample", "label_key": "cell_type"}
    fitted = ReluFormerClassifier(**keys, n_members=2, **TINY).fit(train)
    clf = ReluFormerClassifier.load(saved(fitted, tmp_path))
    shares = pd.crosstab(train.obs["sample"], train.obs["cell_type"], normalize="index")
    expected = pd.DataFrame({"low": shares.min(), "high": shares.max(), "n_samples": 6})
    for model in (fitted, clf):
        expected.index = expected.index.astype(model.class_shares_.index.dtype)
        pd.testing.assert_frame_equal(
            model.class_shares_, expected, check_names=False, check_dtype=False
        )
    new = toy_cohort(2, 400, seed=3, classes=classes)
    few = (new.obs["sample"] == "s1") & (new.obs["cell_type"] == "B")
    new = new[~few | (np.arange(new.n_obs) % 10 == 0)].copy()
    new.write_h5ad(tmp_path / "new.h5ad")
    table = annotate_files(
        tmp_path / "model", tmp_path / "new.h5ad", tmp_path / "out", n_workers=0
    ).set_index("sample")
    assert table.loc["s0", "outside_training"] == ""
    assert "B below" in table.loc["s1", "outside_training"]
    assert "T below" not in table.loc["s1", "outside_training"]
    done = ad.read_h5ad(tmp_path / "out" / "new.h5ad")
    low, high = expected.loc["B", ["low", "high"]]
    for sample, odd in (("s0", False), ("s1", True)):
        write_report(done, tmp_path / "r.html", sample=sample)
        text = (tmp_path / "r.html").read_text(encoding="utf-8")
        assert f"{100 * low:.3g} % to {100 * high:.3g} %" in text
        assert ("%, below" in text) == odd
    gone = done[(done.obs["sample"] == "s1") & (done.obs["reluformer"] != "B")].copy()
    write_report(gone, tmp_path / "r.html", sample="s1")
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert f"{100 * high:.3g} %; here 0 %, below" in text  # a class that is gone
    damaged = done.copy()
    damaged.uns["reluformer"]["class_shares"] = {"class": ["B"], "low": ["?"]}
    with pytest.raises(InvalidInputError, match="'class_shares' is damaged"):
        write_report(damaged, tmp_path / "r.html", sample="s0")


def test_there_is_no_range_of_shares_where_it_would_say_nothing():
    keys = {"sample_key": "sample", "label_key": "cell_type", "n_members": 0}
    tiny = {**TINY, "max_epochs": 1}
    few = toy_cohort(4, classes=("B", "NK", "T"))
    assert ReluFormerClassifier(**keys, **tiny).fit(few).class_shares_ is None
    two = toy_cohort(6)
    binary = ReluFormerClassifier(**keys, pos_label="blast", **tiny).fit(two)
    assert binary.class_shares_ is None
    assert ReluFormerClassifier(**keys, **tiny).fit(two).class_shares_ is not None
    partly = two.obs["cell_type"].astype(object)
    partly.iloc[:5] = None
    two.obs["cell_type"] = partly  # one sample of six is not labelled in full
    assert (ReluFormerClassifier(**keys, **tiny).fit(two).class_shares_["n_samples"] == 5).all()


@pytest.mark.parametrize(
    ("labels", "n_samples"),
    [
        # Samples of blasts alone do not count.
        (["blast"] * 2 + ["B T"] * 5, 5),
        (["blast"] * 3 + ["B T"] * 4, None),
        # A class that is in no sample with a label for every cell.
        (["blast T"] * 6 + ["B T ?"], None),
        (["blast"] * 6 + ["B T ?"], None),
    ],
)
def test_ranges_of_shares_are_of_samples_that_can_have_them(labels, n_samples):
    classes, sizes = np.array(["B", "T", "blast"]), [2 * len(text.split()) for text in labels]
    kinds = [kind for text in labels for kind in 2 * text.split()]
    codes = np.array([-1 if k == "?" else classes.tolist().index(k) for k in kinds])
    samples = packed(*(np.zeros((size, 2), np.float32) for size in sizes))
    found = share_ranges(classes, codes, samples, "blast")
    assert (None if found is None else found["n_samples"].unique().item()) == n_samples
