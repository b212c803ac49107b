"""Laws of the metrics: agreement with references, named denominators, nothing dropped silently."""

from __future__ import annotations

import doctest
import importlib
import json

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import binom, binomtest
from sklearn.metrics import f1_score, precision_score, recall_score

from fcm_estimators.exceptions import FcmError, InvalidInputError, MissingKeyError
from fcm_estimators.metrics import (
    PROTOCOLS,
    Protocol,
    classification_table,
    gate_agreement,
    limit_of_blank,
    mrd_error,
    mrd_of_counts,
    mrd_table,
    reliability_table,
    summarize,
)
from fcm_estimators.metrics._counting import clopper_pearson

CLASSES = ["B", "T", "mono"]


def draw_cells(seed: int, n: int = 300) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth, a prediction that is right for 70 % of the cells, and the sample."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(CLASSES, n, p=[0.1, 0.6, 0.3])
    predicted = np.where(rng.random(n) < 0.7, truth, rng.choice(CLASSES, n))
    return truth, predicted, rng.choice(["s2", "s1", "s3"], n)


# --- classification


@given(st.integers(0, 10**6))
def test_binary_scores_agree_with_scikit_learn_in_every_sample(seed: int) -> None:
    truth, predicted, sample = draw_cells(seed)
    table = classification_table(truth, predicted, groups=sample, pos_label="B")
    for name in table.index:
        t, p = truth[sample == name] == "B", predicted[sample == name] == "B"
        assume(t.any() and p.any())
        row = table.loc[name]
        assert row["f1"] == pytest.approx(f1_score(t, p))
        assert row["precision"] == pytest.approx(precision_score(t, p))
        assert row["recall"] == pytest.approx(recall_score(t, p))
        false = (p & ~t).sum() / (~t).sum()
        assert row["false_positives_per_million"] == pytest.approx(1e6 * false)
        assert row[["n_cells", "n_positive", "n_predicted"]].tolist() == [len(t), t.sum(), p.sum()]


@given(st.integers(0, 10**6))
def test_macro_f1_agrees_with_scikit_learn_in_every_sample(seed: int) -> None:
    truth, predicted, sample = draw_cells(seed, n=30)
    table = classification_table(truth, predicted, groups=sample)
    present = sorted({*truth, *predicted})
    assert list(table.columns) == ["n_cells", "n_unlabelled", "macro_f1"] + [
        f"f1_{c}" for c in present
    ]
    for name in table.index:
        t, p = truth[sample == name], predicted[sample == name]
        here = sorted({*t, *p})
        expected = dict(zip(here, f1_score(t, p, labels=here, average=None), strict=True))
        for label in present:
            np.testing.assert_allclose(table.loc[name, f"f1_{label}"], expected.get(label, np.nan))
        assert table.loc[name, "macro_f1"] == pytest.approx(np.mean(list(expected.values())))


@given(st.integers(0, 10**6), st.booleans())
def test_rows_do_not_depend_on_the_order_of_cells_or_on_other_samples(
    seed: int, binary: bool
) -> None:
    truth, predicted, sample = draw_cells(seed)
    pos_label = "B" if binary else None

    def table_of(cells: np.ndarray) -> pd.DataFrame:
        return classification_table(
            truth[cells],
            predicted[cells],
            groups=sample[cells],
            pos_label=pos_label,
            labels=CLASSES,
        )

    table = table_of(np.arange(len(truth)))
    assert list(table.index) == list(pd.unique(sample))
    shuffled = table_of(np.random.default_rng(seed).permutation(len(truth)))
    pd.testing.assert_frame_equal(shuffled.loc[table.index], table)
    alone = table_of(np.flatnonzero(sample == "s1"))
    pd.testing.assert_frame_equal(alone, table.loc[["s1"]])


def test_perfect_prediction_scores_one_and_a_shuffled_one_does_not() -> None:
    truth, _, sample = draw_cells(0, n=3000)
    shuffled = np.random.default_rng(1).permutation(truth)
    for options in ({"pos_label": "B"}, {}):
        score = "f1" if options else "macro_f1"
        perfect = classification_table(truth, truth, groups=sample, **options)
        assert (perfect[score] == 1).all()
        control = classification_table(truth, shuffled, groups=sample, **options)
        assert (control[score] < 0.5).all()


def test_sample_without_positives_has_no_f1_but_a_false_positive_rate() -> None:
    truth = ["blast", "x", "x", "x", "x", "x", "x"]
    predicted = ["blast", "x", "blast", "x", "x", "x", "x"]
    table = classification_table(truth, predicted, groups=[1, 1, 2, 2, 2, 2, 3], pos_label="blast")
    assert table.loc[1, ["f1", "recall", "precision"]].tolist() == [1, 1, 1]
    assert np.isnan(table.loc[2, "f1"])
    assert np.isnan(table.loc[2, "recall"])
    assert table.loc[2, "precision"] == 0
    assert table.loc[2, "false_positives_per_million"] == 250_000
    assert table.loc[3, ["f1", "recall", "precision"]].isna().all()
    assert table.loc[3, "false_positives_per_million"] == 0


def test_missed_positives_score_zero_and_are_not_undefined() -> None:
    table = classification_table(["b", "b", "x"], ["x", "x", "x"], pos_label="b")
    assert list(table.index) == ["all"]
    assert table.loc["all", ["f1", "recall"]].tolist() == [0, 0]
    assert np.isnan(table.loc["all", "precision"])
    only = classification_table(["b", "b"], ["b", "x"], pos_label="b")
    assert np.isnan(only.loc["all", "false_positives_per_million"])


def test_absent_class_is_undefined_but_a_false_one_is_zero() -> None:
    table = classification_table(
        ["T", "T", "T", "T"], ["T", "T", "T", "mono"], groups=["a", "a", "b", "b"], labels=CLASSES
    )
    assert table.loc["a", "macro_f1"] == 1
    assert table.loc["a", ["f1_B", "f1_mono"]].isna().all()
    assert table.loc["b", "f1_mono"] == 0
    assert np.isnan(table.loc["b", "f1_B"])
    assert table.loc["b", "macro_f1"] == pytest.approx((2 / 3 + 0) / 2)


def test_averaging_named_classes_keeps_cells_of_others_as_errors() -> None:
    truth, predicted = ["T", "other", "B"], ["T", "T", "B"]
    table = classification_table(truth, predicted, labels=["B", "T"])
    assert list(table.columns[3:]) == ["f1_B", "f1_T"]
    assert table.loc["all", "f1_T"] == pytest.approx(2 / 3)
    assert table.loc["all", "macro_f1"] == pytest.approx(
        f1_score(truth, predicted, labels=["B", "T"], average="macro")
    )


@pytest.mark.parametrize("missing", [None, np.nan])
@pytest.mark.parametrize("pos_label", ["B", None])
def test_cells_without_label_are_counted_and_change_no_score(
    missing: object, pos_label: str | None
) -> None:
    truth, predicted, sample = draw_cells(3)
    full = classification_table(truth, predicted, groups=sample, pos_label=pos_label)
    more_truth = [*truth, missing, missing]
    for form in (list, pd.Series, pd.Categorical, lambda v: np.array(v, dtype=object)):
        table = classification_table(
            form(more_truth),
            [*predicted, "B", "T"],
            groups=[*sample, "s1", "s1"],
            pos_label=pos_label,
        )
        assert table.loc["s1", "n_unlabelled"] == 2
        assert table["n_cells"].sum() == len(truth) + 2
        same = [c for c in table if c not in ("n_cells", "n_unlabelled")]
        pd.testing.assert_frame_equal(table[same], full[same])


def test_sample_without_any_label_stays_in_the_table_and_the_summary() -> None:
    for pos_label, score in ((1.0, "f1"), (None, "macro_f1")):
        table = classification_table(
            [1, 0, np.nan], [1, 0, 1], groups=["a", "a", "b"], pos_label=pos_label
        )
        assert table.loc["b", ["n_cells", "n_unlabelled"]].tolist() == [1, 1]
        assert np.isnan(table.loc["b", score])
        assert summarize(table)[["n_samples", f"{score}_undefined"]].tolist() == [2, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"y_pred": ["B"]}, "1 values for 2 cells"),
        ({"groups": ["a"]}, "groups has 1 values for 2 cells"),
        ({"groups": ["a", None]}, r"1 of 2 cells have no sample id \(NaN\) in .groups"),
        ({"y_pred": ["B", None]}, "y_pred is missing .* 1 cells"),
        ({"y_true": [], "y_pred": []}, "empty"),
        ({"y_true": np.zeros((2, 2))}, "one value per cell"),
        ({"labels": []}, "labels"),
        ({"labels": ["B", "B"]}, "labels"),
        ({"pos_label": "blast"}, r"present are \['B', 'T'\]"),
        ({"y_pred": [1, 2]}, "mix types"),
    ],
)
def test_bad_labels_are_clear_errors(arguments: dict, message: str) -> None:
    good = {"y_true": ["B", "T"], "y_pred": ["B", "T"]}
    with pytest.raises(InvalidInputError, match=message):
        classification_table(**{**good, **arguments})


def test_class_that_never_occurs_is_allowed_where_it_is_declared() -> None:
    table = classification_table(["x"], ["x"], pos_label="blast", labels=["x", "blast"])
    assert table.loc["all", "false_positives_per_million"] == 0


def test_summary_counts_what_it_cannot_average() -> None:
    truth = [1, 0, 1, 1, 0, 0, 0]
    predicted = [1, 0, 1, 0, 1, 0, 0]
    table = classification_table(truth, predicted, groups=list("aabbccd"), pos_label=1)
    summary = summarize(table)
    assert summary["n_samples"] == 4
    assert summary["f1_undefined"] == summary["n_negative_samples"] == 2
    assert summary["f1_mean"] == pytest.approx((1 + 2 / 3) / 2)
    assert summary["f1_median"] == summary["f1_mean"]
    assert summary["false_positives_per_million_negative_samples"] == 250_000
    multi = summarize(classification_table(truth, predicted, groups=list("aabbccd")))
    assert multi["f1_1_undefined"] == 1
    assert multi["macro_f1_undefined"] == 0
    with pytest.raises(MissingKeyError, match="classification_table"):
        summarize(table[["n_cells"]])


def test_summary_has_mean_and_median_of_the_samples() -> None:
    truth = np.tile(["b", "b", "x", "x"], 3)
    predicted = ["b", "b", "x", "x"] * 2 + ["x", "x", "x", "b"]
    table = classification_table(truth, predicted, groups=np.repeat([1, 2, 3], 4), pos_label="b")
    summary = summarize(table)
    for score in ("precision", "recall", "f1"):
        assert summary[f"{score}_mean"] == pytest.approx(2 / 3)
        assert summary[f"{score}_median"] == 1


def test_sample_that_nobody_labelled_is_no_negative_one() -> None:
    table = classification_table(
        ["b", "x", "x", None], ["b", "x", "b", "x"], groups=list("aacd"), pos_label="b"
    )
    assert summarize(table)["n_negative_samples"] == 1
    assert summarize(table)["false_positives_per_million_negative_samples"] == 1e6


# --- gates


@given(st.integers(0, 10**6))
def test_gate_scores_agree_with_scikit_learn_in_every_sample_and_gate(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sample = rng.choice(["s2", "s1"], 40)
    truth, predicted = (
        pd.DataFrame(rng.random((40, 2)) < rng.random(), columns=["g", "h"]) for _ in range(2)
    )
    unknown = rng.random((40, 2)) < 0.2
    table = gate_agreement(truth.astype("boolean").mask(unknown), predicted, groups=sample)
    assert len(table) == 2 * len(set(sample))
    for row in table.itertuples():
        known = (sample == row.sample) & ~unknown[:, list(truth).index(row.gate)]
        t, p = truth[row.gate][known].to_numpy(), predicted[row.gate][known].to_numpy()
        assert (row.n_cells, row.n_true, row.n_predicted) == (known.sum(), t.sum(), p.sum())
        for score in (precision_score, recall_score, f1_score):
            found = getattr(row, score.__name__.removesuffix("_score"))
            if known.any():
                expected = score(t, p, zero_division=np.nan)
                assert found == pytest.approx(expected, nan_ok=True)
            else:
                assert np.isnan(found)


# --- reliability


def reliable(seed: int, n: int = 60) -> tuple[np.ndarray, pd.DataFrame, np.ndarray]:
    """Truth, probabilities that are now and then exactly 0 or 1, and the sample."""
    rng = np.random.default_rng(seed)
    p = np.clip(rng.uniform(-0.2, 1.2, n), 0, 1)
    truth = np.where(rng.random(n) < p**2, "b", "x")
    return truth, pd.DataFrame({"b": p, "x": 1 - p}), rng.choice(["s2", "s1", "s3"], n)


@given(st.integers(0, 10**6), st.integers(1, 12))
def test_reliability_is_the_share_beside_the_mean_probability_of_a_bin(
    seed: int, n_bins: int
) -> None:
    truth, shares, sample = reliable(seed)
    table = reliability_table(truth, shares, groups=sample, pos_label="b", n_bins=n_bins)
    p, is_b = shares["b"].to_numpy(), truth == "b"
    assert table["n_cells"].sum() == len(p)
    weight = 1 / np.array([(sample == name).sum() for name in sample])
    edges = np.linspace(0, 1, n_bins + 1)
    # The upper end belongs to a bin, and 0 to the first.
    bins = np.maximum(np.searchsorted(edges, p), 1)
    total = 0.0
    for row in table.itertuples():
        here = bins == round(row.Index.right * n_bins)
        assert row.n_cells == here.sum() > 0
        assert row.n_samples == len(set(sample[here]))
        assert row.predicted == pytest.approx(np.average(p[here], weights=weight[here]))
        assert row.observed == pytest.approx(np.average(is_b[here], weights=weight[here]))
        assert row.gap == pytest.approx(row.observed - row.predicted)
        total += abs(row.gap) * weight[here].sum()
    error = table.attrs["expected_calibration_error"]
    assert error == pytest.approx(total / weight.sum())


@given(st.integers(0, 10**6), st.integers(2, 5))
def test_a_sample_with_more_cells_does_not_count_more_in_reliability(seed: int, times: int) -> None:
    truth, shares, sample = reliable(seed)
    rows = np.repeat(np.arange(len(truth)), np.where(sample == "s1", times, 1))
    once = reliability_table(truth, shares, groups=sample)
    more = reliability_table(truth[rows], shares.iloc[rows], groups=sample[rows])
    columns = ["n_samples", "predicted", "observed", "gap"]
    pd.testing.assert_frame_equal(more[columns], once[columns])
    # Control: as one sample they do.
    pooled = reliability_table(truth[rows], shares.iloc[rows])
    assert not np.allclose(pooled["predicted"], once["predicted"])


# --- intervals

counts = st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(counts, st.sampled_from([0.5, 0.9, 0.95, 0.99]))
def test_interval_agrees_with_scipys_exact_one(count: tuple[int, int], confidence: float) -> None:
    low, high = clopper_pearson(*count, confidence)
    reference = binomtest(*count).proportion_ci(confidence, method="exact")
    np.testing.assert_allclose([low, high], [reference.low, reference.high], rtol=1e-6, atol=1e-12)


@given(counts)
def test_interval_contains_the_fraction_and_grows_with_confidence(count: tuple[int, int]) -> None:
    k, n = count
    lows, highs = zip(*(clopper_pearson(k, n, c) for c in (0.5, 0.9, 0.99)), strict=True)
    assert 0 <= lows[2] <= lows[1] <= lows[0] <= k / n <= highs[0] <= highs[1] <= highs[2] <= 1
    assert highs[0] < highs[2] or k == n


@given(st.integers(1, 60), st.floats(0.001, 0.999))
def test_interval_covers_the_truth_at_least_as_often_as_it_says(n: int, p: float) -> None:
    k = np.arange(n + 1)
    low, high = clopper_pearson(k, n, 0.9)
    probability = binom.pmf(k, n, p)
    assert probability[(low <= p) & (p <= high)].sum() >= 0.9 - 1e-9
    # Control: an interval of a smaller confidence does not.
    half_low, half_high = clopper_pearson(np.arange(1001), 1000, 0.5)
    inside = (half_low <= 0.3) & (half_high >= 0.3)
    assert binom.pmf(np.arange(1001), 1000, 0.3)[inside].sum() < 0.9


def test_interval_ends_and_shapes() -> None:
    low, high = clopper_pearson([[0, 5], [10, 0]], [[10, 10], [10, 0]])
    assert low.shape == high.shape == (2, 2)
    assert low[0, 0] == 0
    assert high[0, 0] == pytest.approx(1 - 0.025 ** (1 / 10))
    assert low[1, 0] == pytest.approx(0.025 ** (1 / 10))
    assert high[1, 0] == 1
    assert (low[1, 1], high[1, 1]) == (0, 1)


@pytest.mark.parametrize(
    ("k", "n", "confidence"),
    [(-1, 5, 0.95), (6, 5, 0.95), (0.5, 5, 0.95), (np.nan, 5, 0.95), (1, 5, 0), (1, 5, 1),
     (1, 5, 95), (1, 5, "x"), (1, np.inf, 0.9)],
)  # fmt: skip
def test_impossible_counts_are_errors(k: float, n: float, confidence: float) -> None:
    with pytest.raises(InvalidInputError):
        clopper_pearson(k, n, confidence)


# --- residual disease


def mrd_of(k: int, n: int, **options: object) -> pd.Series:
    positive = np.arange(n + 10) < k
    inside = np.arange(n + 10) < n
    table = mrd_table(positive, denominator=inside, denominator_name="intact", **options)
    return table.loc["all"]


@given(st.integers(0, 10**6))
def test_counts_refer_to_the_named_denominator(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 500))
    positive, inside = rng.random(n) < 0.3, rng.random(n) < 0.6
    sample = rng.choice(["b", "a"], n)
    table = mrd_table(positive, denominator=inside, denominator_name="intact", groups=sample)
    assert list(table.index) == list(pd.unique(sample))
    assert table["numerator"].sum() + table["n_outside"].sum() == positive.sum()
    for name, row in table.iterrows():
        here = sample == name
        assert row["numerator"] == (positive & inside & here).sum()
        assert row["denominator"] == (inside & here).sum()
        assert row["denominator_name"] == "intact"
        if row["denominator"]:
            assert row["ci_low"] <= row["fraction"] <= row["ci_high"]
            assert row["lod"] * row["denominator"] == pytest.approx(20)
            assert row["lloq"] * row["denominator"] == pytest.approx(50)


@given(st.integers(0, 10**6))
def test_flags_are_counted_among_the_cells_of_either_count(seed: int) -> None:
    rng = np.random.default_rng(seed)
    positive, inside, margin = (rng.random(200) < share for share in (0.3, 0.6, 0.4))
    sample = rng.choice(["b", "a"], 200)
    table = mrd_table(
        positive,
        denominator=inside,
        denominator_name="intact",
        groups=sample,
        flags=pd.DataFrame({"qc_n_margin": margin}),
    )
    for name, row in table.iterrows():
        here = sample == name
        assert row["n_qc_n_margin"] == (margin & inside & here).sum()
        assert row["n_positive_qc_n_margin"] == (margin & positive & inside & here).sum()
        # Flagged cells are counted, never left out.
        assert row["denominator"] == (inside & here).sum()


def test_another_denominator_gives_another_fraction() -> None:
    positive = np.arange(1000) < 100
    whole, half = np.ones(1000, dtype=bool), np.arange(1000) < 500
    fractions = [
        mrd_table(positive, denominator=d, denominator_name="g")["fraction"].item()
        for d in (whole, half)
    ]
    assert fractions == [0.1, 0.2]


STRICT = Protocol("strict", 10, 40, sensitivity=1e-5)


@pytest.mark.parametrize(
    ("n", "options", "why"),
    [
        (300_000, {"limit_of_blank": 1e-4}, ""),
        (300_000, {"limit_of_blank": 2e-4}, "limit of blank too high"),
        (1000, {}, "too few cells"),
        (1000, {"limit_of_blank": 0.1}, "too few cells, limit of blank too high"),
        # This protocol asks for cells and for no sensitivity.
        (400_000, {"protocol": "eln-aml", "limit_of_blank": 1e-4}, "too few cells"),
    ],
)
def test_why_a_sensitivity_was_not_reached_is_said(n: int, options: dict, why: str) -> None:
    row = mrd_of(0, n, **options)
    assert (row["adequacy_why"], row["adequacy"] == "reached") == (why, why == "")


@pytest.mark.parametrize(
    ("k", "n", "options", "detection", "adequacy"),
    [
        (50, 300_000, {}, "quantifiable", "reached"),
        (49, 300_000, {}, "detected, not quantifiable", "reached"),
        (20, 300_000, {}, "detected, not quantifiable", "reached"),
        (19, 300_000, {}, "below LOD", "reached"),
        (0, 300_000, {}, "below LOD", "reached"),
        (0, 0, {}, "no cells", "not reached"),
        # 200,000 events show 10^-4 with 20 of them, one fewer do not.
        (0, 200_000, {}, "below LOD", "reached"),
        (0, 199_999, {}, "below LOD", "not reached"),
        (50, 1000, {}, "quantifiable", "not reached"),
        # Another protocol, other limits.
        (10, 1_000_000, {"protocol": STRICT}, "detected, not quantifiable", "reached"),
        (9, 999_999, {"protocol": STRICT}, "below LOD", "not reached"),
        (40, 999_999, {"protocol": STRICT}, "quantifiable", "not reached"),
        (0, 500_000, {"protocol": "eln-aml"}, "below LOD", "not reached"),
        (0, 500_001, {"protocol": "eln-aml"}, "below LOD", "reached"),
        # The blank: equal is within. Above 10^-4 the sensitivity asked for cannot be reached.
        (60, 300_000, {"limit_of_blank": 60 / 300_000}, "within blank", "not reached"),
        (61, 300_000, {"limit_of_blank": 60 / 300_000}, "quantifiable", "not reached"),
        (30, 300_000, {"limit_of_blank": 1e-4}, "within blank", "reached"),
        (31, 300_000, {"limit_of_blank": 1e-4}, "detected, not quantifiable", "reached"),
        (30, 300_000, {"limit_of_blank": 0.0}, "detected, not quantifiable", "reached"),
        (19, 300_000, {"limit_of_blank": 1.0}, "below LOD", "not reached"),
        (19, 300_000, {"limit_of_blank": 1e-4}, "below LOD", "reached"),
        (0, 0, {"limit_of_blank": 1.0}, "no cells", "not reached"),
        # What is not known comes before what was counted.
        (60, 300_000, {"uncertain": {"all": True}}, "members disagree", "reached"),
        (0, 300_000, {"uncertain": {"all": True}}, "members disagree", "reached"),
        (60, 300_000, {"tested": False}, "not tested", "reached"),
    ],
)
def test_detection_and_adequacy_follow_the_protocol(
    k: int, n: int, options: dict, detection: str, adequacy: str
) -> None:
    row = mrd_of(k, n, **options)
    assert (row["detection"], row["adequacy"]) == (detection, adequacy)


@pytest.mark.parametrize(
    ("k", "n", "options", "words"),
    [
        (3, 500_000, {}, "No MRD detected above 0.004 % of cells in intact (3 of 500,000)."),
        (60, 500_000, {}, "MRD 0.012 % of cells in intact (60 of 500,000; 95 % interval "
         "0.0092-0.015 %, counting only). Quantifiable."),
        (15, 1000, {}, "1.5 % of cells in intact (15 of 1,000; 95 % interval 0.84-2.5 %, counting "
         "only): too few cells to quantify; lower bound above the cut-off 0.01 %. The sensitivity "
         "asked for was not reached."),
        (30, 1000, {}, "MRD detected, 3 % of cells in intact (30 of 1,000; 95 % interval 2-4.3 %, "
         "counting only): too few cells to quantify; lower bound above the cut-off 0.01 %."),
        (0, 1000, {}, "No MRD detected above 2 % of cells in intact (0 of 1,000). The sensitivity "
         "asked for was not reached."),
        # One cell of a thousand, with no cut-off: still no comfort.
        (1, 1000, {"protocol": STRICT}, "0.1 % of cells in intact (1 of 1,000; 95 % interval "
         "0.0025-0.56 %, counting only): too few cells to quantify. The sensitivity asked for was "
         "not reached."),
        # The interval goes beyond the LOD, so the sentence does too.
        (19, 500_000, {}, "No MRD detected above 0.0059 % of cells in intact (19 of 500,000)."),
        (0, 600_000, {"protocol": "eln-aml"}, "No MRD detected above 0.0033 % of CD45+ cells "
         "(intact) (0 of 600,000)."),
        (60, 300_000, {"limit_of_blank": 0.001}, "0.02 % of cells in intact (60 of 300,000; 95 % "
         "interval 0.015-0.026 %, counting only): within the limit of blank, 0.1 %. The "
         "sensitivity asked for was not reached."),
        (3, 500_000, {"limit_of_blank": 1e-3}, "No MRD detected above the limit of blank, 0.1 % of "
         "cells in intact (3 of 500,000). The sensitivity asked for was not reached."),
        (3, 500_000, {"limit_of_blank": 1e-6}, "No MRD detected above 0.004 % of cells in "
         "intact (3 of 500,000)."),
        (60, 300_000, {"tested": False}, "No result: the model was not tested with these markers "
         "(60 of 300,000 called)."),
        (0, 0, {}, "No cell in the denominator intact; nothing can be said."),
    ],
)  # fmt: skip
def test_words_name_the_value_the_denominator_and_what_is_not_known(
    k: int, n: int, options: dict, words: str
) -> None:
    protocol = options.get("protocol", "20/50 events")
    name = protocol if isinstance(protocol, str) else protocol.name
    assert mrd_of(k, n, **options)["words"] == f"{words} Protocol: {name}."


@given(st.integers(0, 60), st.integers(0, 10**6), st.floats(1e-6, 0.1))
def test_no_result_is_called_negative_and_nothing_seen_is_hidden(
    k: int, n: int, cut_off: float
) -> None:
    k = min(k, n)
    counts = pd.DataFrame({"numerator": [k], "denominator": [n]})
    protocol = Protocol("p", sensitivity=1e-4, cut_offs=(cut_off,))
    row = mrd_of_counts(counts, denominator_name="intact", protocol=protocol).iloc[0]
    assert "negative" not in row["words"].lower()
    if n and row["words"].startswith("No MRD detected above"):
        # What may be there is not above what the sentence says, and no cut-off is exceeded.
        said = float(row["words"].split("above ")[1].split(" %")[0]) / 100
        assert row["ci_high"] <= said * 1.06
        assert row["ci_low"] <= cut_off
        assert k == 0 or row["adequacy"] == "reached"


def test_counts_give_the_table_that_cells_give() -> None:
    whole = mrd_of(30, 5000).drop("n_outside")
    counts = pd.DataFrame({"numerator": [30], "denominator": [5000]}, index=["all"])
    pd.testing.assert_series_equal(
        mrd_of_counts(counts, denominator_name="intact").loc["all"], whole
    )


@given(st.integers(1, 300), st.integers(1, 3 * 10**5))
def test_fraction_equal_to_the_blank_is_within_it(k: int, n: int) -> None:
    assume(20 <= k <= n)
    positive = np.arange(n) < k
    table = mrd_table(
        positive, denominator=np.ones(n, bool), denominator_name="g", limit_of_blank=k / n
    )
    assert table["detection"].item() == "within blank"


# --- protocols


@given(st.integers(1, 100), st.floats(1e-7, 0.5))
def test_least_denominator_is_the_smallest_whose_lod_reaches_the_sensitivity(
    events: int, sensitivity: float
) -> None:
    protocol = Protocol("p", events, 100, sensitivity=sensitivity)
    least = protocol.least_denominator
    assert events / least <= sensitivity
    assert least == 1 or events / (least - 1) > sensitivity


def test_protocols_come_back_from_json_and_files(tmp_path) -> None:
    own = Protocol("our lab", 10, 40, sensitivity=1e-5, cut_offs=(0.1, 0.001), source="SOP 7")
    assert own.cut_offs == (0.001, 0.1)
    text = json.dumps(own.to_dict())
    (tmp_path / "lab.json").write_text(text, encoding="utf-8")
    for given_as in (text, tmp_path / "lab.json", str(tmp_path / "lab.json")):
        assert Protocol.read(given_as) == own
    for name, protocol in PROTOCOLS.items():
        assert Protocol.read(name) == protocol
        assert protocol.source


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "asks for no sensitivity"),
        ({"sensitivity": 0}, "sensitivity is 0"),
        ({"sensitivity": 1e-4, "events_to_detect": 0}, "events_to_detect is 0"),
        ({"sensitivity": 1e-4, "events_to_detect": 2.5}, r"events_to_detect is 2\.5"),
        ({"sensitivity": 1e-4, "events_to_detect": 60}, "fewer than the 60"),
        ({"least_events": True}, "least_events is True"),
        ({"sensitivity": 1e-4, "cut_offs": [10]}, "cut_offs is 10"),
        ({"sensitivity": 1e-4, "cut_offs": 0.1}, "expected a list of fractions"),
        ({"sensitivity": 1e-4, "cutoffs": [0.1]}, r"has no \['cutoffs'\]; it has"),
        ({"sensitivity": 1e-4, "name": " "}, "no name"),
        ({"sensitivity": 1e-4, "source": None}, "source is None"),
    ],
)
def test_bad_protocols_are_clear_errors(values: dict, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        Protocol.from_dict({"name": "p", **values})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("euroflow", r"protocol='euroflow' is none of \['20/50 events'"),
        ("nowhere.json", "cannot be read"),
        ("{nothing", "is not JSON"),
        ('{"sensitivity": 0.1}', "has no name"),
    ],
)
def test_protocols_that_are_not_there_are_clear_errors(text: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        mrd_of(3, 100, protocol=text)


def test_empty_denominator_claims_nothing() -> None:
    row = mrd_of(5, 0)
    assert row[["numerator", "denominator", "n_outside"]].tolist() == [0, 0, 5]
    assert row[["fraction", "lod", "lloq"]].isna().all()
    assert row[["ci_low", "ci_high"]].tolist() == [0, 1]


def test_wider_confidence_widens_the_interval_only() -> None:
    narrow, wide = mrd_of(60, 1000, confidence=0.5), mrd_of(60, 1000, confidence=0.99)
    assert wide["ci_low"] < narrow["ci_low"] < narrow["ci_high"] < wide["ci_high"]
    assert wide["fraction"] == narrow["fraction"]


def test_denominator_must_be_given_and_named() -> None:
    with pytest.raises(TypeError):
        mrd_table([True])  # type: ignore[call-arg]
    for name in ("", "  ", None, 3):
        with pytest.raises(InvalidInputError, match="denominator_name"):
            mrd_table([True], denominator=[True], denominator_name=name)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"positive": ["blast", "x"]}, "y == 'blast'"),
        ({"positive": [True, None]}, r"positive must be .* missing \(NaN\) for 1 of 2"),
        ({"denominator": [1.0, np.nan]}, r"denominator must be .* missing \(NaN\) for 1 of 2"),
        ({"denominator": [1, 2]}, "denominator holds"),
        ({"denominator": [True]}, "1 values for 2 cells"),
        ({"positive": [], "denominator": []}, "empty"),
        ({"groups": ["a", np.nan]}, r"1 of 2 cells have no sample id \(NaN\) in .groups"),
        ({"limit_of_blank": -0.1}, "limit_of_blank"),
        ({"limit_of_blank": np.nan}, "limit_of_blank"),
        ({"confidence": 95}, "confidence"),
    ],
)
def test_bad_mrd_input_is_a_clear_error(arguments: dict, message: str) -> None:
    good = {"positive": [True, False], "denominator": [True, True], "denominator_name": "intact"}
    with pytest.raises(InvalidInputError, match=message):
        mrd_table(**{**good, **arguments})


def test_zero_one_gates_are_taken_as_booleans() -> None:
    table = mrd_table([1, 0, 1], denominator=[1.0, 1.0, 0.0], denominator_name="g")
    assert table[["numerator", "denominator", "n_outside"]].to_numpy().tolist() == [[1, 2, 1]]


# --- limit of blank


class ThresholdClassifier:
    """Calls a cell a blast if its only marker exceeds the threshold."""

    sample_key = "sample"
    classes_ = np.array(["blast", "other"])

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold

    def predict(self, X: AnnData) -> np.ndarray:
        return np.where(X.X[:, 0] > self.threshold, "blast", "other")


def negative_cohort(n_samples: int, n_cells: int = 200, seed: int = 0) -> AnnData:
    rng = np.random.default_rng(seed)
    n = n_samples * n_cells
    obs = pd.DataFrame(
        {
            "sample": np.repeat([f"s{i}" for i in range(n_samples)], n_cells),
            "intact": rng.random(n) < 0.7,
        },
        index=[str(i) for i in range(n)],
    )
    shift = np.repeat(rng.normal(0, 0.3, n_samples), n_cells)
    return AnnData((rng.normal(size=n) + shift)[:, None].astype(np.float32), obs=obs)


few_blanks = pytest.mark.filterwarnings("ignore:Limit of blank")


@few_blanks
@given(st.integers(5, 40), st.floats(1, 99))
def test_limit_is_the_percentile_of_the_samples_false_positive_fractions(
    n_samples: int, percentile: float
) -> None:
    cohort = negative_cohort(n_samples, 20)
    clf = ThresholdClassifier(1.0)
    blank = limit_of_blank(clf, cohort, population="blast", percentile=percentile)
    fractions = np.sort(blank.frame()["fraction"])
    # EP17: rank 0.5 + p B, interpolated, within the samples.
    rank = np.clip(0.5 + percentile / 100 * n_samples, 1, n_samples)
    assert blank.value == pytest.approx(np.interp(rank, np.arange(1, n_samples + 1), fractions))
    assert blank.n_patients == blank.n_results == n_samples
    assert list(blank.frame().index) == list(pd.unique(cohort.obs["sample"]))


@few_blanks
def test_limit_follows_the_classifiers_own_threshold() -> None:
    cohort = negative_cohort(30)
    values = [
        limit_of_blank(ThresholdClassifier(t), cohort, population="blast").value
        for t in (0.0, 1.0, 2.0, np.inf)
    ]
    assert values == sorted(values, reverse=True)
    assert values[0] > values[2] > values[3] == 0


@few_blanks
def test_disease_free_samples_are_mostly_within_their_blank_and_diseased_ones_are_not() -> None:
    clf = ThresholdClassifier(1.5)
    blank = limit_of_blank(
        clf, negative_cohort(60, 1000), population="blast", denominator="intact"
    ).value

    def share_within(cohort: AnnData) -> float:
        table = mrd_table(
            clf.predict(cohort) == "blast",
            denominator=cohort.obs["intact"],
            denominator_name="intact",
            groups=cohort.obs["sample"],
            limit_of_blank=blank,
        )
        return table["detection"].isin(["within blank", "below LOD"]).mean()

    unseen = negative_cohort(60, 1000, seed=1)
    assert share_within(unseen) > 0.8
    diseased = unseen.copy()
    diseased.X[::3] += 3
    assert share_within(diseased) == 0


def test_a_limit_from_too_few_patients_is_refused_or_told() -> None:
    clf = ThresholdClassifier(1.0)
    for n_samples in (1, 4):
        with pytest.raises(InvalidInputError, match=f"are of {n_samples} patient"):
            limit_of_blank(clf, negative_cohort(n_samples), population="blast")
    with pytest.warns(UserWarning, match="10 results of 10 .* 60 to establish a limit, and 20 to"):
        blank = limit_of_blank(clf, negative_cohort(10), population="blast")
    assert blank.value == blank.frame()["fraction"].max()
    with pytest.warns(UserWarning, match=r"does not exclude a fraction of 0\.01"):
        limit_of_blank(ThresholdClassifier(np.inf), negative_cohort(10), population="blast")


@few_blanks
def test_repeats_of_a_patient_count_once() -> None:
    cohort = negative_cohort(12, 50)
    clf = ThresholdClassifier(1.0)
    cohort.obs["patient"] = cohort.obs["sample"].str[1:].astype(int) // 2
    blank = limit_of_blank(clf, cohort, population="blast", patients="patient")
    assert (blank.n_patients, blank.n_results) == (6, 12)
    single = limit_of_blank(clf, cohort, population="blast", groups="patient")
    assert blank.value == single.value
    cohort.obs["patient"] = np.arange(cohort.n_obs) % 5
    with pytest.raises(InvalidInputError, match="cells of several patients"):
        limit_of_blank(clf, cohort, population="blast", patients="patient")


@few_blanks
def test_limit_counts_inside_the_denominator_and_by_the_given_groups() -> None:
    cohort = negative_cohort(6)
    clf = ThresholdClassifier(0.5)
    found = clf.predict(cohort) == "blast"
    by_name = limit_of_blank(clf, cohort, population="blast", denominator="intact")
    inside = cohort.obs["intact"].to_numpy()
    by_value = limit_of_blank(
        clf, cohort, population="blast", denominator=inside, groups=cohort.obs["sample"].to_numpy()
    )
    pd.testing.assert_frame_equal(by_name.frame(), by_value.frame())
    first = (cohort.obs["sample"] == "s0").to_numpy()
    row = by_name.frame().loc["s0"]
    assert row["numerator"] == (found & inside & first).sum()
    assert row["denominator"] == (inside & first).sum()
    frame = by_name.frame()
    frame["fraction"] = 9
    assert by_name.frame()["fraction"].max() < 1


@few_blanks
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"population": "blasts"}, r"'blasts' is none of .*'blast'"),
        ({"groups": "patient"}, "obs has no column 'patient'"),
        ({"denominator": "syto"}, "obs has no column 'syto'"),
        ({"denominator": [True]}, "1 values for 1200 cells"),
        ({"groups": ["a"]}, "1 values for 1200 cells"),
        ({"percentile": 100}, "percentile"),
        ({"percentile": 0}, "percentile"),
        ({"negatives": negative_cohort(3)[:0]}, "no cells"),
        ({"denominator": np.arange(1200) < 800}, r"\['s4', 's5'\] have no cell"),
        ({"method": "normal"}, "method is 'normal'"),
    ],
)
def test_bad_blank_input_is_a_clear_error(arguments: dict, message: str) -> None:
    good = {"negatives": negative_cohort(6), "population": "blast"}
    options = {**good, **arguments}
    with pytest.raises(FcmError, match=message):
        limit_of_blank(ThresholdClassifier(1.0), options.pop("negatives"), **options)


def test_classifier_without_sample_key_needs_groups() -> None:
    class Bare:
        def predict(self, X: AnnData) -> np.ndarray:
            return np.repeat("other", X.n_obs)

    with pytest.raises(InvalidInputError, match="pass groups"):
        limit_of_blank(Bare(), negative_cohort(2), population="blast")
    with pytest.warns(UserWarning, match="The largest of 6 patients"):
        blank = limit_of_blank(Bare(), negative_cohort(6), population="blast", groups="sample")
    assert blank.value == 0


# --- error of residual disease


@given(
    st.lists(
        st.tuples(st.sampled_from([0, 1e-5, 3e-4, 0.001, 0.02, 0.1, 0.7, 1]), st.floats(0, 1)),
        min_size=1,
        max_size=30,
    )
)
def test_every_sample_is_in_exactly_one_order_of_magnitude(pairs: list[tuple]) -> None:
    true, predicted = map(np.array, zip(*pairs, strict=True))
    table = mrd_error(true, predicted)
    assert table["n_samples"].sum() == len(true)
    assert ("0" in table.index) == (true == 0).any()
    for name, row in table.iterrows():
        if name == "0":
            here = true == 0
            assert np.isnan(row["bias_log10"])
        else:
            low, high = map(float, name.split(" to "))
            here = (true >= low) & ((true < high) | ((high == 1) & (true == 1)))
        assert row["n_samples"] == here.sum()
        assert row["share_detected"] == pytest.approx((predicted[here] > 0).mean())


def test_error_is_the_ratio_on_a_log_scale() -> None:
    table = mrd_error([1e-4, 2e-4, 4e-4, 0.5, 0.0], [1e-3, 2e-5, 0.0, 0.5, 1e-6])
    assert list(table.index) == ["0", "1e-04 to 1e-03", "1e-01 to 1e+00"]
    row = table.loc["1e-04 to 1e-03"]
    assert row["median_abs_log10_ratio"] == pytest.approx(1)
    assert row["bias_log10"] == pytest.approx(0, abs=1e-12)
    assert row["share_detected"] == pytest.approx(2 / 3)
    assert table.loc["1e-01 to 1e+00", "median_abs_log10_ratio"] == 0
    assert table.loc["0", ["share_detected", "median_predicted"]].tolist() == [1, 1e-6]
    # Control: predictions that belong to other samples err.
    turned = mrd_error([1e-4, 1e-2], [1e-2, 1e-4])
    assert turned["median_abs_log10_ratio"].tolist() == pytest.approx([2, 2])
    assert turned["bias_log10"].tolist() == pytest.approx([2, -2])


def test_one_sample_that_is_far_off_moves_the_mean_error_and_no_median() -> None:
    true = np.full(5, 0.001)
    row = mrd_error(true, [0.002, 0.002, 0.002, 0.002, 1.0]).loc["1e-03 to 1e-02"]
    assert row["median_abs_log10_ratio"] == pytest.approx(np.log10(2))
    assert row["median_predicted"] == 0.002
    assert row["bias_log10"] == pytest.approx((4 * np.log10(2) + 3) / 5)


def test_powers_of_ten_open_their_own_row() -> None:
    def rows(exponents: range) -> list[str]:
        return [f"1e-{-e:02d} to 1e{e + 1:+03d}" for e in exponents]

    powers = np.array([float(f"1e{e}") for e in range(-12, 0)])
    for values, expected in (
        (powers, rows(range(-12, 0))),
        (np.nextafter(powers, 0), rows(range(-13, -1))),
    ):
        table = mrd_error(values, np.full(12, 0.5))
        assert (table["n_samples"] == 1).all()
        assert list(table.index) == expected


@pytest.mark.parametrize(
    ("true", "predicted"),
    [([0.1], [0.1, 0.2]), ([], []), ([1.1], [0.1]), ([np.nan], [0.1]), ([0.1], [-0.1])],
)
def test_impossible_fractions_are_errors(true: list, predicted: list) -> None:
    with pytest.raises(InvalidInputError):
        mrd_error(true, predicted)


@pytest.mark.parametrize(
    "name",
    ["_classification", "_mrd", "_mrd_error", "_mrd_words", "_counting", "_protocol", "_blank"],
)
def test_examples_in_the_documentation_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"fcm_estimators.metrics.{name}"))
    assert result.attempted > 0
    assert result.failed == 0
