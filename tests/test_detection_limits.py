"""Limits of blank, detection and quantitation: order statistics and the binomial law."""

from __future__ import annotations

import json
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, norm
from typer.testing import CliRunner

from fcm_estimators.cli._commands import app
from fcm_estimators.cohort import limits_of_tables, read_results
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.metrics import Protocol, blank_of_counts, detection_limits

N = 500_000


def counts_of(numerators, n=N, **columns) -> pd.DataFrame:
    return pd.DataFrame({"numerator": list(numerators), "denominator": n, **columns})


def design(n_patients: int, seed: int = 0, mean: float = 5.0) -> pd.DataFrame:
    """Blanks of different patients, in two lots and three days."""
    rng = np.random.default_rng(seed)
    rates = rng.gamma(2.0, mean / 2, n_patients)
    lots, days = np.arange(n_patients) % 2, np.arange(n_patients) % 3
    return counts_of(rng.poisson(rates), lot=lots, day=days)


# CLSI EP17-A2 (2012), appendix A: 60 blank results in pg/ml of each of two lots, 12 of each of five
# samples; data and results as in github.com/laurenmock/sherloq, tests/testthat/test-LoB.R.
EP17_LOT_1 = """
    2.6 -.8 5.5 6.0 4.5 .6 -2.3 3.4 5.9 7.6 4.1 -1.4 1.0 2.9 4.9 8.0 6.9 5.0 3.4 1.2 6.5 5.6 -2.2
    2.3 -4.4 -3.4 7.0 6.9 4.3 3.2 -1.4 4.2 5.9 7.6 3.8 5.8 1.5 -1.9 5.1 5.7 4.1 4.5 -.6 .5 5.4 7.6
    4.4 6.6 1.2 -.7 6.1 5.1 4.8 3.3 -2.8 -1.4 8.7 3.6 5.1 3.5"""
EP17_LOT_2 = """
    4.6 4.1 1.6 3.7 2.2 .7 4.6 2.6 1.1 -4.4 .9 .7 9.2 8.3 4.8 5.4 4.8 6.3 5.4 9.6 7.7 3.1 6.1 10.0
    6.1 3.2 3.9 1.4 3.1 4.1 1.0 3.4 .1 .4 2.9 -1.6 4.0 11.5 4.5 3.6 4.4 6.8 7.1 4.2 3.7 3.7 5.3 4.5
    4.0 6.2 -.2 2.3 1.6 2.6 6.4 5.7 4.2 3.7 1.4 1.5"""


def ep17_counts(lots: tuple[int, ...]) -> pd.DataFrame:
    """The results as counts of tenths of pg/ml above -10; limits follow shifts and scales."""
    values = [np.array(text.split(), dtype=float) for text in (EP17_LOT_1, EP17_LOT_2)]
    chosen = np.concatenate([values[lot - 1] for lot in lots])
    return counts_of(np.round(10 * (chosen + 10)), 1000, lot=np.repeat(lots, 60))


def pg_per_ml(fraction: float) -> float:
    return 100 * fraction - 10


# --- blank


def test_limits_of_blank_are_those_of_the_example_of_ep17():
    limits = {1: 7.6, 2: 9.4}
    for lot, expected in limits.items():
        blank = blank_of_counts(ep17_counts((lot,)), warn=False)
        assert pg_per_ml(blank.value) == pytest.approx(expected)
    both = blank_of_counts(ep17_counts((1, 2)), warn=False)
    assert {k: pg_per_ml(v) for k, v in both.by_lot.items()} == pytest.approx(limits)
    assert both.value == both.by_lot[2]  # the largest is taken
    # Put together: 8.15.
    together = blank_of_counts(ep17_counts((1, 2)).drop(columns="lot"), warn=False)
    assert pg_per_ml(together.value) == pytest.approx(8.15)
    assert together.by_lot == {}


def test_parametric_limits_of_blank_are_those_of_the_example_of_ep17():
    # 8.718 and 8.599 with c of 60 results - 5 samples; with c of 60 patients - 1 smaller by 0.002.
    both = blank_of_counts(ep17_counts((1, 2)), method="parametric", warn=False)
    found = [pg_per_ml(v) for v in both.by_lot.values()]
    assert found == pytest.approx([8.718, 8.599], abs=0.003)
    assert pg_per_ml(both.value) == found[0]


def test_lots_that_are_too_small_or_unknown_are_put_together_and_told():
    for lots, text in (
        ([1] * 56 + [2] * 4, "Lot 2 has 4 patient(s)"),
        ([1] * 30 + [2] * 29 + [None], "1 results have no lot"),
    ):
        blank = blank_of_counts(design(60).assign(lot=lots), warn=False)
        assert blank.by_lot == {}
        assert blank.value == blank_of_counts(design(60).assign(lot=range(60)), warn=False).value
        assert [text in told for told in blank.shortfalls] == [True]


@pytest.mark.parametrize(("n", "confidence"), [(20, 0.64), (58, 0.949), (59, 0.95)])
def test_confidence_of_the_largest_is_that_of_the_order_statistic(n: int, confidence: float):
    blank = blank_of_counts(design(n), warn=False)
    assert blank.confidence == pytest.approx(confidence, abs=0.002)
    # 59 patients are the fewest whose largest bounds the 95th percentile with 95 % confidence.
    assert np.isnan(blank.upper) == (n < 59)
    if n >= 59:
        assert blank.upper == blank.frame()["fraction"].max()


@pytest.mark.slow
def test_upper_bound_covers_the_percentile_in_19_of_20_studies():
    rng = np.random.default_rng(0)
    true = np.exp(norm.ppf(0.95))
    covered = 0
    for _ in range(1000):
        rates = 1e-4 * np.exp(rng.normal(size=100))
        blank = blank_of_counts(counts_of(np.round(rates * 1e9), 10**9), warn=False)
        covered += blank.upper >= 1e-4 * true
    assert 0.94 < covered / 1000 < 0.99


def test_parametric_limit_is_that_of_the_formula_and_tells_when_it_does_not_hold():
    rng = np.random.default_rng(1)
    normal = counts_of(np.round(rng.normal(1000, 100, 60)), lot=[1, 2] * 30, day=[1, 2, 3] * 20)
    together = blank_of_counts(normal.assign(lot=1), method="parametric", warn=False)
    x = normal["numerator"] / N
    c = 1.645 / (1 - 1 / (4 * 59))
    assert together.value == pytest.approx(x.mean() + c * x.std(), rel=1e-4)
    assert blank_of_counts(normal, method="parametric").shortfalls == ()
    skewed = counts_of([0] * 55 + [500, 800, 40, 90, 9], lot=[1, 2] * 30, day=[1, 2, 3] * 20)
    told = blank_of_counts(skewed, method="parametric", warn=False).shortfalls
    assert len(told) == 1
    assert "not normally distributed" in told[0]


def test_a_complete_design_is_silent_and_each_gap_is_told():
    assert blank_of_counts(design(60)).shortfalls == ()  # a warning would be an error
    gaps = {
        "No column 'lot'": design(60).drop(columns="lot"),
        "1 day(s)": design(60).assign(day=1),
        "CLSI EP17 asks for 60": design(59),
        "does not exclude a fraction of 6e-06": design(60).assign(numerator=0),
    }
    for text, table in gaps.items():
        with pytest.warns(UserWarning, match=re.escape(text)):
            blank_of_counts(table)


def test_repeats_do_not_make_patients():
    repeats = pd.concat([design(10)] * 6, ignore_index=True)
    repeats["patient"] = np.tile(np.arange(10), 6)
    once, often = blank_of_counts(design(10), warn=False), blank_of_counts(repeats, warn=False)
    assert often.n_results == 60
    assert often.n_patients == 10
    assert often.value == once.value
    assert often.confidence == once.confidence < 0.5
    few = repeats[repeats["patient"] < 4]
    with pytest.raises(InvalidInputError, match="are of 4 patient"):
        blank_of_counts(few)


# --- detection and quantitation


@given(st.integers(0, 200), st.sampled_from([20_000, 500_000, 5_000_000]))
def test_limit_of_detection_is_the_smallest_fraction_that_is_called_in_19_of_20(
    largest: int, n: int
):
    blank = blank_of_counts(counts_of([largest] * 60, N), warn=False)
    limits = detection_limits(blank, n_cells=n, warn=False)
    assert limits.events >= 20
    assert limits.events / n > blank.value
    assert limits.events == 20 or (limits.events - 1) / n <= blank.value
    called = binom.sf(limits.events - 1, n, limits.limit_of_detection)
    assert called == pytest.approx(0.95, abs=1e-6)
    assert limits.limit_of_quantitation >= limits.limit_of_detection


@pytest.mark.parametrize(("events", "probability"), [(4, 0.96), (5, 0.90)])
def test_probability_of_detection_is_the_published_one(events: int, probability: float):
    # Of 800 cells, of which 1 % are cancer cells, more than 0.4 % (3.2 cells) are found with a
    # probability of 96 %, more than 0.6 % (4.8 cells) with 90 %:
    # pmc.ncbi.nlm.nih.gov/articles/PMC7657187, figure 5.
    blank = blank_of_counts(counts_of([0] * 60), warn=False)
    protocol = Protocol("figure", events, events, sensitivity=0.01)
    for p, sign in ((probability - 0.005, 1), (probability + 0.005, -1)):
        limits = detection_limits(blank, n_cells=800, protocol=protocol, probability=p, warn=False)
        assert sign * (0.01 - limits.limit_of_detection) > 0


def test_twenty_events_are_reached_with_certainty_only_from_about_28():
    blank = blank_of_counts(counts_of([0] * 60), warn=False)
    limits = detection_limits(blank, n_cells=N, warn=False)
    assert limits.limit_of_detection * N == pytest.approx(27.9, abs=0.1)
    # Half of the samples with a true fraction of 20 / n are missed.
    assert 0.4 < binom.sf(19, N, 20 / N) < 0.6


def test_cells_that_are_missed_raise_the_limits():
    blank = blank_of_counts(counts_of([0] * 60), warn=False)
    low = counts_of([50] * 60, expected=1e-4)
    half = detection_limits(blank, low, warn=False)
    whole = detection_limits(blank, low.assign(numerator=70, expected=70 / N), warn=False)
    assert half.table["recovery"].eq(1).all()  # 50 of 500,000 are the expected 1e-4
    assert whole.limit_of_detection == half.limit_of_detection
    found = detection_limits(blank, low.assign(numerator=25), warn=False)
    assert found.limit_of_detection == pytest.approx(2 * half.limit_of_detection)
    # One in ten patients whose cells are not found: no fraction is detected in 19 of 20.
    none = detection_limits(blank, low.assign(numerator=[0] * 6 + [50] * 54), warn=False)
    assert np.isnan(none.limit_of_detection)
    assert np.isnan(none.limit_of_quantitation)
    assert any("No fraction is detected" in text for text in none.shortfalls)


def test_limit_of_quantitation_has_the_coefficient_of_variation_that_was_asked():
    blank = blank_of_counts(counts_of([0] * 60), warn=False)
    exact = detection_limits(blank, n_cells=N, cv_goal=0.1, warn=False)
    f = exact.limit_of_quantitation
    assert np.sqrt(f * (1 - f) / N) / f == pytest.approx(0.1, rel=1e-3)
    spread = counts_of([20, 30, 40, 50, 45, 35] * 10, expected=1e-4)
    counting = detection_limits(blank, n_cells=N, warn=False)
    assert (
        detection_limits(blank, spread, warn=False).limit_of_quantitation
        > 2 * counting.limit_of_quantitation
    )
    with pytest.warns(UserWarning, match="by more than the goal of 20%"):
        wide = detection_limits(blank, spread, cv_goal=0.2)
    assert np.isnan(wide.limit_of_quantitation)


@pytest.mark.parametrize(
    ("low", "options", "message"),
    [
        (counts_of([5] * 60), {}, "no column 'expected'"),
        (counts_of([5] * 4, expected=1e-4), {}, "are of 4 patient"),
        (counts_of([5] * 60, expected=0.0), {}, "between 0 and 1"),
        (counts_of([5] * 60, 0, expected=0.1), {}, "no cell in the denominator"),
        (counts_of([-5] * 60, expected=0.1), {}, "not counts"),
        (counts_of([5] * 60, 4, expected=0.1), {}, "exceed their denominators"),
        (pd.DataFrame({"x": [1]}), {}, "expected a table with numerator"),
        (None, {"n_cells": 0}, "n_cells is 0"),
        (None, {"probability": 1}, "probability"),
        (None, {"cv_goal": 30}, "cv_goal"),
        (None, {"protocol": "x"}, "protocol='x'"),
    ],
)
def test_bad_studies_are_clear_errors(low, options: dict, message: str):
    blank = blank_of_counts(design(60))
    with pytest.raises(InvalidInputError, match=message):
        detection_limits(blank, low, **options)


# --- tables and the command


def write_tables(folder):
    def table(name, numerators, **columns):
        rows = counts_of(numerators, denominator_name="intact", model_sha256="m", **columns)
        rows.insert(0, "sample", [f"{name}{i}" for i in range(len(rows))])
        (folder / name).mkdir(exist_ok=True)
        rows.to_csv(folder / name / "table.csv", index=False)
        return rows

    blanks = table("blank", design(60)["numerator"])
    low = table("low", [40, 55, 60, 48, 52, 44] * 10)
    sheet = pd.DataFrame({"sample": [*blanks["sample"], *low["sample"]]})
    sheet["patient"] = [f"p{i}" for i in range(120)]
    sheet["lot"], sheet["day"] = np.arange(120) % 2, np.arange(120) % 3
    sheet["expected"] = 1e-4
    sheet.to_csv(folder / "sheet.csv", index=False)
    return table


def test_the_command_prints_what_the_functions_return(tmp_path):
    write_tables(tmp_path)
    found = limits_of_tables(tmp_path / "blank", tmp_path / "low", sheet=tmp_path / "sheet.csv")
    assert found.blank.value == blank_of_counts(design(60)).value
    assert found.shortfalls == found.blank.shortfalls == ()
    arguments = [str(tmp_path / "blank"), "--low", str(tmp_path / "low" / "table.csv")]
    done = CliRunner().invoke(
        app, ["blank", *arguments, "--sheet", str(tmp_path / "sheet.csv"), "--json"]
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == found.entries()
    alone = CliRunner().invoke(app, ["blank", str(tmp_path / "blank")])
    assert alone.exit_code == 0
    assert "There are no low samples" in alone.stderr
    assert "limit of detection" in alone.stdout


def test_tables_that_do_not_belong_together_are_refused(tmp_path):
    table = write_tables(tmp_path)
    table("one", [3])
    few = CliRunner().invoke(app, ["blank", str(tmp_path / "one")])
    assert few.exit_code == 2
    assert "a limit of blank needs 5 or more" in few.stderr
    for column, what in (("model_sha256", "models"), ("denominator_name", "denominators")):
        other = pd.read_csv(tmp_path / "low" / "table.csv")
        other[column] = "another"
        other.to_csv(tmp_path / "other.csv", index=False)
        with pytest.raises(InvalidInputError, match=f"of several {what}"):
            read_results([tmp_path / "blank", tmp_path / "other.csv"])
        with pytest.raises(InvalidInputError, match=f"of different {what}"):
            limits_of_tables(
                tmp_path / "blank", tmp_path / "other.csv", sheet=tmp_path / "sheet.csv"
            )
    with pytest.raises(InvalidInputError, match="occur twice"):
        read_results([tmp_path / "blank", tmp_path / "blank"])
    sheet = pd.read_csv(tmp_path / "sheet.csv").iloc[:100]
    with pytest.raises(InvalidInputError, match=r"'low40'.* are not in it"):
        read_results(tmp_path / "low", sheet)
    with pytest.raises(InvalidInputError, match=r"no columns .*model_sha256"):
        read_results(tmp_path / "sheet.csv")
