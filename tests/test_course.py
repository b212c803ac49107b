"""Pooled tubes and courses: counts are added, and nothing undetected looks like a value."""

from __future__ import annotations

import json
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from fcm_estimators.cli._commands import app
from fcm_estimators.exceptions import FcmError
from fcm_estimators.metrics import (
    ClassificationErrors,
    CourseDisplay,
    course_table,
    mrd_of_counts,
    pool_tubes,
)


def tubes_of(counts: list[tuple[int, int]], **columns) -> pd.DataFrame:
    names = [f"t{i}" for i in range(len(counts))]
    table = pd.DataFrame(counts, index=names, columns=["numerator", "denominator"])
    return mrd_of_counts(table, denominator_name="intact").assign(**columns)


def errors_of(
    n_patients: int = 20, model: str = "", found: tuple[float, float] = (40, 10)
) -> ClassificationErrors:
    """About 1e-5 of the negative cells are called; of the positive, shares by a beta law."""
    rng = np.random.default_rng(0)
    n_positive = np.repeat([0, 1000], n_patients)
    table = pd.DataFrame({"n_cells": 500_000, "n_positive": n_positive})
    table["n_true_positives"] = rng.binomial(n_positive, rng.beta(*found, len(table)))
    table["n_false_positives"] = rng.poisson(rng.gamma(5, 1, len(table)))
    return ClassificationErrors.from_table(table, model=model)


# --- pools


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(51, 10**6)), min_size=1, max_size=8))
def test_pools_are_the_table_of_added_counts(counts: list):
    pools = ["a" if i % 2 else "b" for i in range(len(counts))]
    pooled = pool_tubes(tubes_of(counts, visit=pools), "visit")
    assert list(pooled.index) == list(dict.fromkeys(pools))
    for name, row in pooled.iterrows():
        own = [c for c, p in zip(counts, pools, strict=True) if p == name]
        k, n = (sum(values) for values in zip(*own, strict=True))
        alone = tubes_of([(k, n)]).iloc[0]
        pd.testing.assert_series_equal(row[alone.index], alone, check_names=False)
        assert row["n_tubes"] == len(own)


def test_counts_are_added_and_fractions_not_averaged():
    pooled = pool_tubes(tubes_of([(10, 1_000), (0, 999_000)], visit="v"), "visit").iloc[0]
    assert pooled["fraction"] == 1e-5
    assert pooled["tubes"] == "t0, t1"
    # Tubes so different are hardly of one sample; equal ones are not remarked.
    assert pooled["tubes_p"] < 1e-6
    same = pool_tubes(tubes_of([(10, 500_000), (11, 500_000)], visit="v"), "visit").iloc[0]
    assert same["tubes_p"] > 0.5
    # Two tubes below the LOD can be above it together.
    assert same["detection"] == "detected, not quantifiable"
    assert np.isnan(pool_tubes(tubes_of([(10, 100)], visit="v"), "visit")["tubes_p"].item())


@given(st.lists(st.integers(0, 300), min_size=2, max_size=4))
@settings(max_examples=10)
def test_the_interval_with_wrongly_classified_cells_is_that_of_the_added_counts(counts: list):
    errors = errors_of()
    n = 250_000 * len(counts)
    tubes = tubes_of([(k, 250_000) for k in counts], visit="v")
    pooled = pool_tubes(tubes, "visit", errors=errors).iloc[0]
    ends = (pooled["ci_total_low"], pooled["ci_total_high"])
    assert ends == errors.interval(sum(counts), n)
    # Not that of means: the rates of a patient are the same in all tubes.
    assert ends[1] >= pooled["ci_high"]
    assert f"{sum(counts):,} of {n:,}" in pooled["words"]


def test_errors_of_another_model_are_refused_and_lost_intervals_are_told(tmp_path):
    tubes = tubes_of([(300, 250_000)] * 2, visit="v", model_sha256="m")
    errors_of(model="m").write(tmp_path / "errors.json")
    assert pool_tubes(tubes, "visit", errors=tmp_path / "errors.json")["ci_total_low"].notna().all()
    with pytest.raises(FcmError, match="those of another model"):
        pool_tubes(tubes, "visit", errors=errors_of(model="other"))
    known = mrd_of_counts(tubes, denominator_name="intact", errors=errors_of()).assign(visit="v")
    with pytest.warns(UserWarning, match=r"cannot be added. Pass errors="):
        pooled = pool_tubes(known, "visit")
    assert "ci_total_low" not in pooled


@pytest.mark.parametrize("state", ["not tested", "members disagree"])
def test_a_doubtful_tube_makes_a_doubtful_pool(state: str):
    tubes = tubes_of([(100, 10_000)] * 4, visit=["a", "a", "b", "b"])
    tubes.loc["t1", "detection"] = state
    pooled = pool_tubes(tubes, "visit")
    assert pooled["detection"].tolist() == [state, "quantifiable"]
    assert pooled["fraction"].isna().tolist() == [state == "not tested", False]


@pytest.mark.parametrize(
    "column", ["missing_markers", "model_sha256", "panel", "denominator_name", "day", "patient"]
)
def test_only_tubes_that_belong_together_are_pooled(column: str):
    tubes = tubes_of([(5, 100_000)] * 4, visit=["a", "a", "b", "b"])
    tubes[column] = ["x", "x", "y", "y"]
    if column == "denominator_name":
        with pytest.raises(FcmError, match="several denominators"):
            pool_tubes(tubes, "visit")
    else:
        assert len(pool_tubes(tubes, "visit")) == 2  # other pools may differ
    tubes[column] = ["x", "x", "y", "x"]
    with pytest.raises(FcmError, match=f"tubes of 'b' .*several values of {column}"):
        pool_tubes(tubes, "visit")


def test_tubes_without_a_pool_are_refused():
    tubes = tubes_of([(5, 100_000)] * 2, visit=["a", None])
    with pytest.raises(FcmError, match=r"visit: the tubes 't1' have no pool"):
        pool_tubes(tubes, "visit")
    with pytest.raises(FcmError, match="no column 'tube'"):
        pool_tubes(tubes, "tube")


# --- courses

STATES = [(250_000, 500_000), (30, 500_000), (7, 500_000), (0, 30_000), (15, 1_000), (0, 0)]


def test_what_is_shown_says_no_more_than_the_words():
    results = tubes_of(STATES, patient="p", day=[0, 15, 33, 78, 106, 134])
    table = course_table(results)
    assert table["shown"].tolist() == [
        "50 %",
        "0.006 %",
        "< 0.004 %",
        "< 0.067 %, too few cells",
        "1.5 %, too few cells",
        "no cells",
    ]
    blank = mrd_of_counts(results, denominator_name="intact", limit_of_blank=0.001)
    shown = course_table(blank.assign(patient="p", day=range(6)))["shown"]
    assert shown.iloc[1] == "within blank"
    assert shown.iloc[2] == "< 0.1 %, limit of blank too high"  # by counting less than 0.004 %
    for text, words in zip(table["shown"], table["words"], strict=True):
        assert text.startswith("<") == words.startswith("No MRD detected above")


def test_course_is_in_the_order_of_days_for_each_patient():
    results = tubes_of([(1, 100)] * 4, patient=["b", "a", "b", "a"], day=[33, 15, 0, 100])
    table = course_table(results)
    assert list(table.index) == [("b", 0), ("b", 33), ("a", 15), ("a", 100)]
    with pytest.raises(FcmError, match=r"Several results of one patient and day.*Pool tubes"):
        course_table(results.assign(patient="a", day=1))
    with pytest.raises(FcmError, match="'d15' are no numbers"):
        course_table(results.assign(day="d15"))
    with pytest.raises(FcmError, match="no column 'patient'"):
        course_table(results.drop(columns="patient"))


def test_picture_joins_only_what_was_detected():
    table = course_table(tubes_of(STATES, patient="p", day=[0, 15, 33, 78, 106, 134]))
    display = CourseDisplay.from_table(table, "p", cut_offs=(1e-4,)).plot()
    lines = {line.get_label(): line for line in display.ax_.lines}
    assert lines["detected, 95 % by counting"].get_xdata().tolist() == [0, 15]
    assert lines["seen, too few cells"].get_xdata().tolist() == [106]
    assert lines["less than"].get_xdata().tolist() == [33, 78]
    assert lines["no result"].get_xdata().tolist() == [134]
    # The open triangle is at the upper end of what may be there, never at the value.
    np.testing.assert_allclose(lines["less than"].get_ydata(), [4e-5, 20 / 30_000])
    joined = [ln for ln in display.ax_.lines if ln.get_linestyle() == ":"]
    assert [ln.get_xdata().tolist() for ln in joined] == [[0, 15]]
    texts = [t.get_text().replace("\n", " ") for t in display.ax_.texts]
    assert texts == table["shown"].tolist()
    plt.close(display.figure_)
    with pytest.raises(FcmError, match="'q' is none of"):
        CourseDisplay.from_table(table, "q")


def test_courses_show_the_interval_with_wrongly_classified_cells_or_why_there_is_none():
    results = tubes_of(STATES, patient="p", day=[0, 15, 33, 78, 106, 134], tube=range(6))
    pooled = pool_tubes(results, "tube", errors=errors_of(found=(10, 40)))
    table = course_table(pooled)
    assert table["shown_total"].iloc[-1] == "no result"
    assert table["shown_total"].str.fullmatch(r"[\d.]+-[\d.]+ %").sum() == 5
    # "Less than" is never less than what may be there with missed cells.
    bound = float(table["shown"].iloc[2].removeprefix("< ").removesuffix(" %")) / 100
    assert bound == pytest.approx(table["ci_total_high"].iloc[2], rel=0.06)
    assert bound > table["ci_high"].iloc[2]
    display = CourseDisplay.from_table(table, "p").plot()
    thin, thick = display.ax_.collections[:2]
    assert thin.get_label() == "95 % with wrongly\nclassified cells"
    for bars, end in ((thin, "ci_total_high"), (thick, "ci_high")):
        assert [bar[1][1] for bar in bars.get_segments()] == table[end].iloc[:5].tolist()
    lines = {line.get_label(): line for line in display.ax_.lines}
    assert lines["less than"].get_ydata()[0] == pytest.approx(table["ci_total_high"].iloc[2])
    plt.close(display.figure_)
    few = course_table(pool_tubes(results, "tube", errors=errors_of(9)))
    assert (few["shown_total"] == "not estimable").all()
    assert few["shown"].equals(course_table(pool_tubes(results, "tube"))["shown"])
    none = CourseDisplay.from_table(few, "p").plot()
    assert len(none.ax_.collections) == len(display.ax_.collections) - 1
    plt.close(none.figure_)


def test_the_command_writes_a_table_and_a_picture_per_patient(tmp_path):
    counts = [(300, 500_000), (320, 500_000), (2, 500_000), (3, 500_000), (90, 400_000)]
    results = tubes_of(counts, model_sha256="m").rename_axis("sample").reset_index()
    results.to_csv(tmp_path / "table.csv", index=False)
    sheet = pd.DataFrame(
        {
            "sample": results["sample"],
            "patient": ["Miller"] * 4 + ["Smith"],
            "day": [15, 15, 33, 33, 15],
            "visit": ["m15", "m15", "m33", "m33", "s15"],
        }
    )
    sheet.to_csv(tmp_path / "sheet.csv", index=False)
    arguments = ["course", str(tmp_path), "--sheet", str(tmp_path / "sheet.csv")]
    arguments += ["-o", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*arguments, "--pool", "visit", "--json"])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)["course"]
    assert [(r["patient"], r["day"], r["numerator"]) for r in rows] == [
        ("Miller", 15, 620),
        ("Miller", 33, 5),
        ("Smith", 15, 90),
    ]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "course-1.png",
        "course-2.png",
        "course.csv",
    ]
    for n_patients, told, text in (
        (20, "", r"\d-0\.\d+ %"),
        (9, "knows wrongly classified cells: 9 patients without", "not estimable"),
    ):
        errors_of(n_patients, "m").write(tmp_path / "errors.json")
        options = ["--pool", "visit", "--errors", str(tmp_path / "errors.json")]
        shown = CliRunner().invoke(app, [*arguments, *options])
        assert shown.exit_code == 0, shown.output
        assert ("knows wrongly classified cells" in " ".join(shown.stderr.split())) == bool(told)
        assert not told or told in " ".join(shown.stderr.split())
        assert len(re.findall(text, shown.stdout)) >= 3
    apart = CliRunner().invoke(app, arguments)
    assert apart.exit_code == 2
    assert "Pool tubes first" in apart.stderr
    sheet.assign(visit="one").to_csv(tmp_path / "sheet.csv", index=False)
    mixed = CliRunner().invoke(app, [*arguments, "--pool", "visit"])
    assert "several values of patient" in mixed.stderr
