"""Methods compared: published figures, laws of regression and agreement, what is left out."""

from __future__ import annotations

import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from typer.testing import CliRunner

from fcm_estimators.cli._commands import app
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.metrics import (
    MethodComparisonDisplay,
    dilution_series,
    method_comparison,
    mrd_of_counts,
)
from fcm_estimators.metrics._agreement import agreement_at, bland_altman, passing_bablok
from fcm_estimators.metrics._counting import clopper_pearson

# Bland and Altman, Lancet 327, 307-310 (1986), table 1: peak expiratory flow rate in l/min of 17
# subjects, first measurement of each meter.
WRIGHT = np.array(
    [494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427.0]
)
MINI = np.array(
    [512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451.0]
)
# Sen, J. Am. Stat. Assoc. 63, 1379-1389 (1968): slope 4, interval of 93 % 26/7 to 35/8. All slopes
# are positive, so Passing and Bablok's line is Sen's; so the tests of the R package deming (CRAN)
# have them, with intercept 6.
SEN_X = np.array([1, 2, 3, 4, 10, 12, 18.0])
SEN_Y = np.array([9, 15, 19, 20, 45, 55, 78.0])
# Data TD41 of the tests of the R package mcr (CRAN, inst/unitTests/runit.mcPaBa.R), with the
# results of the program CALANAS: intercept -1.74861851923587, slope 0.996354386947289, interval of
# the slope 0.92273624446357 to 1.12979173135459.
TD41_X = np.array(
    [51.2645749891018, 25.057888623163, 87.7627598051843, 62.7082431751683, 80.1505333459012]
    + [4.62656604009068, 33.8310555651344, 32.0639233133885, 55.2077551040875, 88.0356768073631]
    + [26.4910934056359, 46.2676105006161, 67.5309426729014, 69.4845641448515, 99.6168230345125]
    + [29.8740565635394, 76.4074905899151, 40.4037427291051, 102.582022432525, 77.2420615775276]
    + [54.4091160177792, 31.6670196474807, 35.3688444029188, 48.4596331809692, 27.2766177138551]
    + [16.8936814075242, 21.978946351695, 31.8737570958866, 65.2811331882764, 11.4235216747994]
    + [26.5759954950747, 89.7483619905396, 70.8540190812346, 81.722195686426, 88.8717635815042]
    + [69.8842397333777, 41.3339139273995, 46.7715712147959, 7.2758706475883, 107.885815963472]
    + [72.476537675172, 5.47829692782881, 54.7122861461908, 100.774725860614, 58.9921395982599]
    + [26.0127119387814, 52.4842022010358, 20.4930187951634, 19.2251154457486, 15.6062233212609]
)
TD41_Y = np.array(
    [57.5184652931192, 20.8590706998877, 108.803321969406, 61.9186963049216, 66.3660888378279]
    + [4.45211496523264, 32.5230480583973, 35.6080901524917, 53.8918711450082, 60.4588280634825]
    + [26.36826855427, 41.3684710045443, 64.2210938093771, 56.4507675239752, 104.375984642575]
    + [27.1349756417984, 94.57022726837, 29.4173054011996, 65.8469193441376, 72.8808353078608]
    + [52.3451209927057, 29.9746067384427, 41.473958110454, 42.6744860392878, 36.4560529958421]
    + [16.3614420035519, 25.0786009186081, 23.9554024584609, 71.1179574648198, 10.0486986665957]
    + [19.0607414061787, 71.7842138052182, 126.559037624235, 94.0881361451604, 87.2145942516959]
    + [89.5887499202462, 48.5784251203412, 35.6846235173564, 7.12184193955352, 100.323182519431]
    + [69.23017359012, 3.82672858010298, 49.4382345176691, 77.5738341281733, 52.4666442933717]
    + [14.6409084616032, 49.8976536701488, 21.1546025964904, 12.5229666712546, 13.2198613541858]
)


def cohort(n: int = 80, seed: int = 0, factor: float = 1.0, noise: float = 0.05) -> tuple:
    """Fractions from 1e-5 to 0.3 by both methods, in 500,000 cells."""
    rng = np.random.default_rng(seed)
    true = 10 ** rng.uniform(-5, -0.5, n)
    names = [f"s{i}" for i in range(n)]
    tables = []
    for scale in (1.0, factor):
        rate = np.minimum(true * scale * 10 ** rng.normal(0, noise, n), 1)
        counts = pd.DataFrame(
            {"numerator": rng.binomial(500_000, rate), "denominator": 500_000}, index=names
        )
        tables.append(mrd_of_counts(counts, denominator_name="intact"))
    return tuple(tables)


# --- statistics


def test_bland_altman_gives_the_published_figures():
    found = bland_altman(MINI, WRIGHT)
    assert found.n == 17
    assert found.bias == pytest.approx(-2.1, abs=0.05)
    assert found.sd == pytest.approx(38.8, abs=0.05)
    # The paper takes 2 SD for 1.96.
    assert found.bias - 2 * found.sd == pytest.approx(-79.7, abs=0.1)
    assert found.bias + 2 * found.sd == pytest.approx(75.5, abs=0.1)
    assert (found.bias_low, found.bias_high) == pytest.approx((-22.0, 17.8), abs=0.1)
    # Its intervals of the limits: -114.3 to -45.1 and 40.9 to 110.1, about these limits.
    half = (found.lower_high - found.lower_low) / 2
    assert half == pytest.approx((114.3 - 45.1) / 2, abs=0.6)
    assert found.upper_high - found.upper == pytest.approx(half)


def test_the_line_of_sens_data_has_the_published_interval():
    line = passing_bablok(SEN_X, SEN_Y, confidence=0.93)
    assert (line.slope, line.intercept) == pytest.approx((4, 6))
    assert (line.slope_low, line.slope_high) == pytest.approx((26 / 7, 35 / 8))


def test_the_line_through_scattered_pairs_is_that_of_another_program():
    line = passing_bablok(TD41_X, TD41_Y)
    assert line.slope == pytest.approx(0.996354386947289, abs=1e-13)
    assert line.intercept == pytest.approx(-1.74861851923587, abs=1e-12)
    # Of the 1225 slopes, 51 are below -1 and shifted. The paper rounds the rank of the lower end,
    # (1225 - 234.3) / 2 = 495.3, to 495; that program takes the middle of ranks as for a median,
    # which is rank 496. Its interval ends one slope inside.
    i, j = np.triu_indices(50, 1)
    slopes = np.sort((TD41_Y[j] - TD41_Y[i]) / (TD41_X[j] - TD41_X[i]))
    theirs = np.searchsorted(slopes, [0.92273624446357 - 1e-12, 1.12979173135459 - 1e-12])
    ours = np.searchsorted(slopes, [line.slope_low, line.slope_high])
    assert (ours - theirs).tolist() == [-1, 1]


@given(st.permutations(range(12)))
def test_the_order_of_the_pairs_does_not_matter_with_ties_either(order: list[int]):
    x = np.array([1, 1, 2, 2, 3, 3, 4, 5, 5, 6, 7, 8.0])
    y = np.array([1, 2, 2, 1, 3, 4, 4, 6, 5, 6, 8, 8.0])
    line, turned = passing_bablok(x, y), passing_bablok(x[order], y[order])
    assert turned.slope == line.slope
    assert (turned.slope_low, turned.slope_high) == (line.slope_low, line.slope_high)


@given(st.integers(0, 10**6))
def test_the_line_is_the_one_of_theil_and_sen_where_no_slope_is_below_minus_one(seed: int):
    rng = np.random.default_rng(seed)
    x = np.arange(40.0)
    y = x + rng.uniform(0, 0.4, 40)
    line = passing_bablok(x, y)
    found = stats.theilslopes(y, x, alpha=0.95)
    assert line.slope == pytest.approx(found.slope)
    assert line.slope_low == pytest.approx(found.low_slope)
    assert line.slope_high == pytest.approx(found.high_slope)


@given(st.integers(0, 10**6))
def test_exchanging_the_methods_gives_the_inverse_line(seed: int):
    rng = np.random.default_rng(seed)
    true = rng.normal(0, 1, 43)  # an odd number of slopes
    x, y = true + rng.normal(0, 0.3, 43), 1.5 * true + rng.normal(0, 0.3, 43)
    line, turned = passing_bablok(x, y), passing_bablok(y, x)
    assert turned.slope == pytest.approx(1 / line.slope)
    assert turned.slope_low == pytest.approx(1 / line.slope_high, rel=0.02)
    # Theil and Sen's slope does not have this property: it is pulled to 0 both ways.
    forth, back = stats.theilslopes(y, x).slope, stats.theilslopes(x, y).slope
    assert forth * back < 1


@given(st.floats(0.3, 3), st.floats(-2, 2), st.integers(0, 1000))
def test_line_follows_shifts_and_scales_and_few_outliers(scale: float, shift: float, seed: int):
    rng = np.random.default_rng(seed)
    x = rng.uniform(0, 10, 41)
    exact = passing_bablok(x, scale * x + shift)
    assert (exact.slope, exact.intercept) == pytest.approx((scale, shift), abs=1e-9)
    y = x + rng.normal(0, 0.2, 41)
    line = passing_bablok(x, y)
    both = passing_bablok(scale * x, scale * y + shift)
    assert both.slope == pytest.approx(line.slope)
    assert both.intercept == pytest.approx(scale * line.intercept + shift, abs=1e-9)
    y[:4] = 100.0
    assert abs(passing_bablok(x, y).slope - 1) < 0.15


@pytest.mark.slow
def test_interval_of_the_slope_covers_it_in_19_of_20_cohorts():
    covered, bent, curved = 0, 0, 0
    for seed in range(400):
        rng = np.random.default_rng(seed)
        true = rng.uniform(-5, 0, 60)
        x, y = true + rng.normal(0, 0.2, 60), true + rng.normal(0, 0.2, 60)
        line = passing_bablok(x, y)
        covered += line.slope_low <= 1 <= line.slope_high
        bent += line.linearity_p < 0.05
        curved += passing_bablok(x, y + 0.15 * (true + 2.5) ** 2).linearity_p < 0.05
    assert 0.92 < covered / 400 < 0.985
    assert bent / 400 < 0.08
    assert curved / 400 > 0.9


def test_agreement_is_of_the_manual_samples_with_wilsons_interval():
    manual = np.array([True] * 50 + [False] * 50)
    automatic = np.array([True] * 48 + [False] * 2 + [True] * 5 + [False] * 45)
    table = agreement_at(manual, automatic)
    assert table["agree"].tolist() == [48, 45, 93]
    assert table["share"].tolist() == [0.96, 0.9, 0.93]
    # Wilson's interval of 48 of 50: p = (k + z^2 / 2) / (n + z^2) and its half width.
    z = stats.norm.ppf(0.975)
    centre = (48 + z**2 / 2) / (50 + z**2)
    half = z / (50 + z**2) * np.sqrt(48 * 2 / 50 + z**2 / 4)
    found = table.loc["positive", ["ci_low", "ci_high"]].tolist()
    assert found == pytest.approx([centre - half, centre + half])
    none = agreement_at(np.zeros(3, bool), np.zeros(3, bool)).loc["positive"]
    assert none["n"] == 0
    assert np.isnan(none["share"])


def test_intervals_of_agreement_are_the_published_ones():
    # Newcombe, Statistics in Medicine 17, 857-872 (1998), table I, score method: 81 of 263.
    manual = np.ones(263, dtype=bool)
    table = agreement_at(manual, np.arange(263) < 81)
    found = table.loc["positive", ["ci_low", "ci_high"]].tolist()
    assert found == pytest.approx([0.2553, 0.3662], abs=5e-5)


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [(87, 88, 93.83, 99.97), (85, 85, 95.75, 100), (88, 88, 95.89, 100), (76, 85, 80.85, 95.04)],
)
def test_exact_intervals_are_the_published_ones(k: int, n: int, low: float, high: float):
    # Agreement of three PCR tests, in percent: pmc.ncbi.nlm.nih.gov/articles/PMC7825913, table 1.
    found = clopper_pearson(k, n)
    assert (100 * found[0], 100 * found[1]) == pytest.approx((low, high), abs=0.005)


# --- comparison


def test_only_pairs_that_both_can_state_are_compared_and_all_others_are_counted():
    manual, automatic = cohort()
    found = method_comparison(manual, automatic, cut_off=1e-4)
    both = (manual["numerator"] >= 50) & (automatic["numerator"] >= 50)
    assert found.pairs["quantified"].tolist() == both.tolist()
    assert found.bland_altman.n == found.passing_bablok.n == both.sum() < len(manual)
    assert found.pairs["log10_ratio"].isna().sum() == (~both).sum()
    assert found.agreement.loc["overall", "n"] == len(manual)
    assert f"{(~both).sum()} of {len(manual)} pairs" in found.notes[0]
    wrong = (manual["fraction"] >= 1e-4) != (automatic["fraction"] >= 1e-4)
    assert found.discordant.index.tolist() == manual.index[wrong].tolist()


def test_a_factor_between_methods_is_found_and_none_is_not():
    doubled = method_comparison(*cohort(factor=2.0), cut_off=1e-4)
    assert doubled.bland_altman.bias == pytest.approx(np.log10(2), abs=0.03)
    assert doubled.passing_bablok.slope_low < 1 < doubled.passing_bablok.slope_high
    figures = doubled.frame()
    assert figures.loc["bias (log10)", "ci_low"] > 0.2
    assert (figures["ci_low"] <= figures["value"]).all()
    assert (figures["value"] <= figures["ci_high"]).all()
    same = method_comparison(*cohort(), cut_off=1e-4)
    assert abs(same.bland_altman.bias) < 0.03


def test_order_of_the_samples_does_not_matter():
    manual, automatic = cohort()
    turned = method_comparison(manual, automatic.iloc[::-1], cut_off=1e-4)
    pd.testing.assert_frame_equal(
        turned.pairs, method_comparison(manual, automatic, cut_off=1e-4).pairs
    )


def test_too_few_pairs_give_no_line_and_say_so():
    manual, automatic = cohort(30)
    found = method_comparison(manual, automatic, cut_off=1e-4)
    assert found.passing_bablok is None
    assert any("too few for Passing and Bablok" in note for note in found.notes)
    tiny = method_comparison(manual[:2], automatic[:2], cut_off=1e-4)
    assert tiny.bland_altman is None
    assert list(tiny.frame().index) == [
        "positive agreement",
        "negative agreement",
        "overall agreement",
    ]
    unrelated = automatic.set_axis(np.random.default_rng(0).permutation(automatic.index))
    manual, automatic = cohort(150)
    unrelated = automatic.set_axis(np.random.default_rng(1).permutation(automatic.index))
    found = method_comparison(manual, unrelated, cut_off=1e-4)
    assert found.passing_bablok is None
    assert any("not correlated" in note for note in found.notes)


GOOD = pd.DataFrame({"fraction": [0.1, 0.2], "lloq": 1e-4}, index=["a", "b"])


@pytest.mark.parametrize(
    ("manual", "automatic", "options", "message"),
    [
        (GOOD, GOOD[:1], {}, "Only one of the methods has the samples"),
        (GOOD, GOOD.set_axis(["a", "a"]), {}, "automatic: samples repeat"),
        (GOOD.drop(columns="lloq"), GOOD, {}, "manual: expected a DataFrame"),
        (GOOD.assign(fraction=np.nan), GOOD, {}, "fractions are missing"),
        (GOOD, GOOD.assign(lloq=0.0), {}, "LLOQ is missing"),
        (GOOD, GOOD, {"cut_off": 0}, "cut_off"),
        (GOOD, GOOD, {"confidence": 95}, "confidence"),
        (GOOD, GOOD, {"patients": {"a": "p", "b": "p"}}, "several samples"),
        (GOOD, GOOD, {"patients": {"a": "p"}}, "have no patient"),
        (GOOD[:0], GOOD[:0], {}, "no samples"),
    ],
)
def test_bad_comparisons_are_clear_errors(manual, automatic, options: dict, message: str):
    with pytest.raises(InvalidInputError, match=message):
        method_comparison(manual, automatic, **{"cut_off": 1e-4, **options})


def test_picture_holds_every_pair_and_rings_the_discordant():
    found = method_comparison(*cohort(noise=0.3), cut_off=1e-3)
    display = MethodComparisonDisplay(found).plot()
    points, rings = display.axes_[0].collections[:2]
    assert len(points.get_offsets()) == len(found.pairs)
    assert len(rings.get_offsets()) == len(found.discordant) > 0
    assert (np.asarray(points.get_offsets()) > 0).all()
    assert len(display.axes_[1].collections[0].get_offsets()) == found.pairs["quantified"].sum()
    plt.close(display.figure_)


# --- dilution series


@given(st.floats(0.3, 1.5), st.floats(0.7, 1.3))
def test_series_gives_recovery_and_slope(recovery: float, power: float):
    expected = np.repeat([1e-1, 1e-2, 1e-3], 3)
    observed = np.clip(recovery * expected**power, 0, 1)
    found = dilution_series(expected, observed, lloq=1e-6)
    if observed.max() < 1:
        assert found.slope == pytest.approx(power)
    np.testing.assert_allclose(
        found.table["recovery"], np.clip(recovery * found.table.index**power, 0, 1)
        / found.table.index
    )  # fmt: skip


def test_slope_of_a_series_and_its_interval_are_certified():
    # Norris, calibration of ozone monitors, with the certified slope and its standard error:
    # itl.nist.gov/div898/strd/lls/data/Norris.shtml. Taken as log10 fractions of a thousandth.
    x = [0.2, 337.4, 118.2, 884.6, 10.1, 226.5, 666.3, 996.3, 448.6, 777.0, 558.2, 0.4]
    x += [0.6, 775.5, 666.9, 338.0, 447.5, 11.6, 556.0, 228.1, 995.8, 887.6, 120.2, 0.3]
    x += [0.3, 556.8, 339.1, 887.2, 999.0, 779.0, 11.1, 118.3, 229.2, 669.1, 448.9, 0.5]
    y = [0.1, 338.8, 118.1, 888.0, 9.2, 228.1, 668.5, 998.5, 449.1, 778.9, 559.2, 0.3]
    y += [0.1, 778.1, 668.8, 339.3, 448.9, 10.8, 557.7, 228.3, 998.0, 888.8, 119.6, 0.3]
    y += [0.6, 557.6, 339.3, 888.0, 998.5, 778.9, 10.2, 117.6, 228.9, 668.4, 449.2, 0.2]
    expected, observed = (10 ** (np.array(v) / 1000 - 1) for v in (x, y))
    found = dilution_series(expected, observed, lloq=0.01)
    assert found.slope == pytest.approx(1.00211681802045, abs=1e-12)
    t = stats.t.ppf(0.975, 34)
    assert (found.slope_high - found.slope) / t == pytest.approx(4.29796848199937e-4, rel=1e-9)
    assert found.slope - found.slope_low == pytest.approx(found.slope_high - found.slope)


def test_levels_below_the_lloq_are_not_fitted():
    expected = np.repeat([1e-1, 1e-2, 1e-3, 1e-4, 1e-5], 2)
    observed = expected.copy()
    observed[-4:] = [3e-4, 4e-5, 2e-4, 5e-5]  # one result above, one below
    found = dilution_series(expected, observed, lloq=1e-4)
    assert found.table["quantified"].tolist() == [False, False, True, True, True]
    assert found.slope == pytest.approx(1)
    with pytest.raises(InvalidInputError, match="a line needs 3 results"):
        dilution_series([1e-2, 1e-3], [1e-2, 1e-3], lloq=1e-4)
    with pytest.raises(InvalidInputError, match="must lie between"):
        dilution_series([0.0, 0.1], [0.1, 0.1], lloq=1e-4)


def test_a_bent_series_is_told_from_a_straight_one():
    x = np.repeat(np.linspace(-4, -1, 6), 4)
    p_values = {"straight": [], "bent": []}
    covered = 0
    for seed in range(300):
        y = x + np.random.default_rng(seed).normal(0, 0.03, len(x))
        straight = dilution_series(10**x, 10**y, lloq=1e-6)
        bent = dilution_series(10**x, 10 ** (y + 0.05 * (x + 2.5) ** 2 - 0.2), lloq=1e-6)
        covered += straight.slope_low <= 1 <= straight.slope_high
        p_values["straight"].append(straight.curvature_p)
        p_values["bent"].append(bent.curvature_p)
    assert stats.kstest(p_values["straight"], "uniform").pvalue > 1e-3
    assert np.mean(np.array(p_values["bent"]) < 0.05) > 0.95
    assert 0.91 < covered / 300 < 0.99


# --- command


def test_the_command_prints_the_figures_and_writes_the_picture(tmp_path):
    manual, automatic = cohort(noise=0.2)
    names = manual.index
    automatic.assign(sample=names, model_sha256="m").to_csv(tmp_path / "table.csv", index=False)
    by_hand = pd.DataFrame(
        {
            "sample": names[::-1],
            "manual_numerator": manual["numerator"].to_numpy()[::-1],
            "manual_denominator": 500_000,
            "patient": [f"p{i}" for i in range(len(names))],
        }
    )
    by_hand.to_csv(tmp_path / "manual.csv", index=False)
    arguments = ["compare", str(tmp_path), "--manual", str(tmp_path / "manual.csv")]
    arguments += ["--cut-off", "0.001"]
    done = CliRunner().invoke(app, [*arguments, "--json", "-o", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    found = method_comparison(manual, automatic, cut_off=1e-3)
    printed = json.loads(done.stdout)
    assert [r["value"] for r in printed["figures"]] == pytest.approx(
        found.frame()["value"].tolist()
    )
    assert {r["sample"] for r in printed["discordant"]} == set(found.discordant.index)
    assert (tmp_path / "out" / "pairs.png").stat().st_size > 10_000
    assert len(pd.read_csv(tmp_path / "out" / "pairs.csv")) == len(names)
    shown = CliRunner().invoke(app, arguments)
    assert "slope (Passing-Bablok)" in shown.stdout
    by_hand.assign(patient="one").to_csv(tmp_path / "manual.csv", index=False)
    refused = CliRunner().invoke(app, arguments)
    assert refused.exit_code == 2
    assert "several samples" in refused.stderr
