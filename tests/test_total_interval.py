"""The interval that knows classification errors: exact tails, coverage, and what is not known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from scipy.stats import binom

from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.metrics import (
    ClassificationErrors,
    classification_table,
    mrd_of_counts,
    pool_tubes,
)
from fcm_estimators.metrics._counting import clopper_pearson
from fcm_estimators.metrics._total_interval import Spread

N = 500_000


def errors_of(false=-11.0, false_sd=0.7, found=1.4, found_sd=0.5, n=20) -> ClassificationErrors:
    return ClassificationErrors(Spread(false, false_sd, n), Spread(found, found_sd, n))


def patients(rng, n: int, false=-11.0, false_sd=0.7, found=1.4, found_sd=0.5) -> pd.DataFrame:
    """Unseen patients, half of them with 1 % of positive cells."""
    rate = np.exp(rng.normal(false, false_sd, 2 * n))
    share = expit(rng.normal(found, found_sd, 2 * n))
    n_positive = np.repeat([0, N // 100], n)
    return pd.DataFrame(
        {
            "n_cells": N,
            "n_positive": n_positive,
            "n_true_positives": rng.binomial(n_positive, share),
            "n_false_positives": rng.binomial(N - n_positive, rate),
        }
    )


@pytest.mark.parametrize("fraction", [0.0, 1e-5, 1e-3, 0.3, 1.0])
def test_tails_are_those_of_drawn_patients(fraction: float):
    errors = errors_of()
    rng = np.random.default_rng(0)
    m = 300_000
    s = expit(1.4 + errors.sensitivity.scale * rng.standard_t(19, m))
    p = np.exp(-11 + errors.false_positives.scale * rng.standard_t(19, m))
    rate = np.minimum(fraction * s + (1 - fraction) * p, 1)
    for k in np.quantile(rng.binomial(N, rate), [0.02, 0.3, 0.97]).astype(int):
        above, below = errors.tails(fraction, k, N)
        assert above == pytest.approx(binom.sf(k - 1, N, rate).mean(), abs=2e-3)
        assert below == pytest.approx(binom.cdf(k, N, rate).mean(), abs=2e-3)


@settings(max_examples=25)
@given(st.integers(0, 5000), st.floats(-13, -7), st.floats(-1, 4))
def test_the_ends_are_where_a_tail_is_a_fortieth(k: int, false: float, found: float):
    errors = errors_of(false, found=found)
    low, high = errors.interval(k, N)
    counted_high = float(clopper_pearson(k, N)[1])
    assert 0 <= low < high <= 1
    assert high >= counted_high
    if low > 0:
        assert errors.tails(low, k, N)[0] == pytest.approx(0.025, abs=1e-6)
    else:
        assert errors.tails(0.0, k, N)[0] > 0.025
    if counted_high < high < 1:
        assert errors.tails(high, k, N)[1] == pytest.approx(0.025, abs=1e-6)


def test_without_errors_it_is_the_counting_interval():
    exact = errors_of(false=-30, false_sd=1e-9, found=30, found_sd=1e-9)
    for k in (0, 3, 600):
        assert exact.interval(k, N) == pytest.approx(
            [float(v) for v in clopper_pearson(k, N)], rel=1e-3, abs=1e-12
        )


def test_more_error_and_fewer_patients_widen_it():
    def width(**options) -> float:
        low, high = errors_of(**options).interval(600, N)
        return high - low

    assert width() < width(found_sd=1.0)
    assert width(n=40) < width(n=10)
    assert width(false=-11) < width(false=-8)
    # Cells that are missed move it up.
    assert errors_of(found=0.0).interval(600, N)[0] > 600 / N


def test_counts_below_what_is_expected_prove_nothing():
    noisy = errors_of(false=-8.0, false_sd=0.2)  # 170 false cells are expected
    for k in (0, 5, 100):
        low, high = noisy.interval(k, N)
        assert low == 0
        assert high >= float(clopper_pearson(k, N)[1])
    assert errors_of(found=-3.0, found_sd=0.1).interval(N // 2, N)[1] == 1.0
    assert np.isnan(noisy.interval(0, 0)).all()


@pytest.mark.slow
def test_coverage_is_near_95_percent_where_that_of_counting_is_not():
    rng = np.random.default_rng(0)
    for fraction in (0.0, 1e-5, 1e-4, 1e-2):
        covered, counting = 0, 0
        for _ in range(300):
            errors = ClassificationErrors.from_table(patients(rng, 15))
            rate = fraction * expit(rng.normal(1.4, 0.5)) + (1 - fraction) * np.exp(
                rng.normal(-11, 0.7)
            )
            k = int(rng.binomial(N, rate))
            low, high = errors.interval(k, N)
            covered += low <= fraction <= high
            low, high = (float(v) for v in clopper_pearson(k, N))
            counting += low <= fraction <= high
        assert covered / 300 > 0.92
        assert counting / 300 < 0.85


def test_estimates_are_of_patients_and_of_the_right_ones():
    rng = np.random.default_rng(1)
    table = patients(rng, 200)
    errors = ClassificationErrors.from_table(table)
    assert errors.false_positives.mean == pytest.approx(-11, abs=0.2)
    assert errors.false_positives.sd == pytest.approx(0.7, abs=0.15)
    assert errors.sensitivity.mean == pytest.approx(1.4, abs=0.15)
    assert errors.sensitivity.sd == pytest.approx(0.5, abs=0.1)
    # Repeats of patients are no patients.
    twice = pd.concat([table, table], ignore_index=True)
    twice["patient"] = np.tile(np.arange(400), 2)
    assert ClassificationErrors.from_table(twice).sensitivity.n_patients == 200
    # Positive cells of patients with disease say nothing of the false positives.
    other = table.copy()
    other.loc[200:, "n_false_positives"] = 400_000
    assert ClassificationErrors.from_table(other).false_positives == errors.false_positives


def test_the_table_of_evaluation_gives_the_counts():
    rng = np.random.default_rng(2)
    truth = rng.random(24_000) < 0.2
    groups = np.repeat(np.arange(24), 1000)
    truth[groups < 12] = False
    called = truth ^ (rng.random(24_000) < 0.1)
    known = truth.astype(object)
    known[::50] = None
    found = ClassificationErrors.from_table(
        classification_table(known, called, groups=groups, pos_label=True)
    )
    used = np.arange(24_000) % 50 != 0
    rows = [
        {
            "n_cells": (used & (groups == g)).sum(),
            "n_positive": (used & (groups == g) & truth).sum(),
            "n_true_positives": (used & (groups == g) & truth & called).sum(),
            "n_false_positives": (used & (groups == g) & ~truth & called).sum(),
        }
        for g in range(24)
    ]
    assert found == ClassificationErrors.from_table(pd.DataFrame(rows))
    assert found.why == ""


def test_too_few_patients_are_said_and_give_no_interval():
    table = patients(np.random.default_rng(0), 10)
    assert ClassificationErrors.from_table(table).why == ""
    few = ClassificationErrors.from_table(table[1:])
    assert few.why == "9 patients without positive cells; 10 of either are needed"
    assert np.isnan(few.interval(60, N)).all()
    counts = pd.DataFrame({"numerator": [60], "denominator": [N]})
    row = mrd_of_counts(counts, denominator_name="intact", errors=few).iloc[0]
    assert np.isnan(row[["ci_total_low", "ci_total_high"]].astype(float)).all()
    assert row["ci_total_why"] == few.why
    assert "wrongly classified" not in row["words"]
    with pytest.raises(InvalidInputError, match="not known"):
        ClassificationErrors(None, None).tails(0.1, 3, 10)


def test_words_and_tables_hold_both_intervals(tmp_path):
    errors = errors_of()
    errors.write(tmp_path / "errors.json")
    assert ClassificationErrors.read(tmp_path / "errors.json") == errors
    counts = pd.DataFrame({"numerator": [60, 3], "denominator": [N, N]})
    table = mrd_of_counts(counts, denominator_name="intact", errors=tmp_path / "errors.json")
    assert table["ci_total_low"][0] < table["ci_low"][0]
    assert table["ci_total_high"][0] > table["ci_high"][0]
    assert "counting only; 0.005-0.02 % with wrongly classified cells" in table["words"][0]
    missed = errors_of(found=-2.0)
    words = mrd_of_counts(counts, denominator_name="intact", errors=missed)["words"][1]
    said = float(words.split("above ")[1].split(" %")[0]) / 100
    # Where cells are missed, more may be there than the limit of detection says.
    assert said > 20 / N
    assert said == pytest.approx(missed.interval(3, N)[1], rel=0.06)
    assert "ci_total_low" not in mrd_of_counts(counts, denominator_name="intact")
    tubes = table.assign(visit="v")
    pooled = pool_tubes(tubes, "visit", errors=errors).iloc[0]
    assert pooled["numerator"] == 63
    assert (pooled["ci_total_low"], pooled["ci_total_high"]) == errors.interval(63, 2 * N)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_true_positives": 10**6}, "More cells are called"),
        ({"n_false_positives": -1}, "false holds values that are not counts"),
        ({"n_positive": N + 1}, "n_negative holds values that are not counts"),
    ],
)
def test_impossible_counts_are_errors(change: dict, message: str):
    table = patients(np.random.default_rng(0), 10).assign(**change)
    with pytest.raises(InvalidInputError, match=message):
        ClassificationErrors.from_table(table)


def test_bad_input_is_a_clear_error(tmp_path):
    with pytest.raises(InvalidInputError, match=r"no .*'recall'"):
        ClassificationErrors.from_table(pd.DataFrame({"n_cells": [1]}))
    with pytest.raises(InvalidInputError, match="more than the 10 cells"):
        errors_of().interval(11, 10)
    with pytest.raises(InvalidInputError, match="confidence"):
        errors_of().interval(1, 10, 95)
    with pytest.raises(InvalidInputError, match="cannot be read"):
        ClassificationErrors.read(tmp_path / "none.json")
    (tmp_path / "x.json").write_text("[]", encoding="utf-8")
    with pytest.raises(InvalidInputError, match="no JSON object"):
        ClassificationErrors.read(tmp_path / "x.json")
    (tmp_path / "x.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InvalidInputError, match="no classification errors"):
        ClassificationErrors.read(tmp_path / "x.json")
