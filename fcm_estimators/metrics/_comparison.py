"""A manual method against an automatic one, and dilution series."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from fcm_estimators._checks import listed
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.metrics._agreement import (
    BlandAltman,
    PassingBablok,
    agreement_at,
    bland_altman,
    passing_bablok,
)
from fcm_estimators.metrics._inputs import fraction_number

# Pairs below which Passing and Bablok's line and limits of agreement are not computed.
_PAIRS_FOR_A_LINE = 40
_PAIRS_FOR_LIMITS = 3


@dataclass(frozen=True, eq=False)
class MethodComparison:
    """Result of :func:`method_comparison`.

    Attributes
    ----------
    pairs : DataFrame
        Index ``sample``: ``manual``, ``automatic``, ``manual_lloq``, ``automatic_lloq``,
        ``quantified`` (both at or above their LLOQ), ``log10_ratio`` (automatic / manual, NaN
        unless quantified), ``discordant`` (on different sides of the cut-off).
    cut_off : float
    bland_altman : BlandAltman or None
        Of log10 fractions of the quantified pairs; a bias of 0.3 is a factor of 2.
    passing_bablok : PassingBablok or None
        Of log10 fractions; None below 40 quantified pairs.
    agreement : DataFrame
        Index ``positive``, ``negative``, ``overall``: ``n``, ``agree``, ``share``, ``ci_low``,
        ``ci_high``.
    notes : tuple of str
        What was left out, and why.
    """

    pairs: pd.DataFrame
    cut_off: float
    bland_altman: BlandAltman | None
    passing_bablok: PassingBablok | None
    agreement: pd.DataFrame
    notes: tuple[str, ...]

    @property
    def discordant(self) -> pd.DataFrame:
        """Pairs on different sides of the cut-off."""
        return self.pairs[self.pairs["discordant"]].copy()

    def frame(self) -> pd.DataFrame:
        """Return all figures: index ``figure``; ``value``, ``ci_low``, ``ci_high``, ``n``."""
        rows = {
            f"{name} agreement": (r["share"], r["ci_low"], r["ci_high"], r["n"])
            for name, r in self.agreement.iterrows()
        }
        ba, pb = self.bland_altman, self.passing_bablok
        if ba is not None:
            rows["bias (log10)"] = (ba.bias, ba.bias_low, ba.bias_high, ba.n)
            rows["lower limit of agreement (log10)"] = (ba.lower, ba.lower_low, ba.lower_high, ba.n)
            rows["upper limit of agreement (log10)"] = (ba.upper, ba.upper_low, ba.upper_high, ba.n)
        if pb is not None:
            rows["slope (Passing-Bablok)"] = (pb.slope, pb.slope_low, pb.slope_high, pb.n)
            rows["intercept (Passing-Bablok)"] = (
                *(pb.intercept, pb.intercept_low, pb.intercept_high),
                pb.n,
            )
        columns = ["value", "ci_low", "ci_high", "n"]
        table = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
        return table.rename_axis("figure").astype({"n": int})


def method_comparison(
    manual: pd.DataFrame,
    automatic: pd.DataFrame,
    *,
    cut_off: float,
    patients: Mapping[str, str] | pd.Series | None = None,
    confidence: float = 0.95,
) -> MethodComparison:
    """Compare the fractions of an automatic method with those of a manual one.

    The samples must be of patients that were not in training, one sample of each; only the caller
    can know the first. Numbers are compared where both methods can state one: the limits of
    agreement and the line are of pairs with both fractions at or above their LLOQ, on a log10
    scale, because fractions extend over decades. The other pairs count in the agreement.

    Parameters
    ----------
    manual, automatic : DataFrame of shape (S, 2 or more)
        Index the sample; ``fraction`` and ``lloq``, as :func:`mrd_table` returns them. Both have
        the same samples, in any order.
    cut_off : float
        Fraction from which a sample is positive.
    patients : mapping of str to str, optional
        Patient of each sample, to make sure that none occurs twice.
    confidence : float, default 0.95
        Level of all intervals.

    Returns
    -------
    MethodComparison

    Raises
    ------
    InvalidInputError
        The samples differ or repeat, a patient has several samples or is not named, a column is
        missing, a fraction is not between 0 and 1, an LLOQ is not above 0, or ``cut_off`` or
        ``confidence`` is not strictly between 0 and 1.

    References
    ----------
    Bland, Altman, Lancet 327, 307-310 (1986). Passing, Bablok, J. Clin. Chem. Clin. Biochem. 21,
    709-720 (1983). Wilson, J. Am. Stat. Assoc. 22, 209-212 (1927): intervals of agreement.

    Examples
    --------
    >>> import pandas as pd
    >>> from fcm_estimators.metrics import method_comparison
    >>> manual = pd.DataFrame({"fraction": [0, 1e-3, 2e-2, 3e-4, 0.1], "lloq": 1e-4})
    >>> automatic = manual.assign(fraction=[3e-4, 2e-3, 4e-2, 3e-4, 0.1])
    >>> found = method_comparison(manual, automatic, cut_off=2e-4)
    >>> found.bland_altman.n, round(found.bland_altman.bias, 3), found.discordant.index.tolist()
    (4, 0.151, [0])
    """
    cut_off = fraction_number(cut_off, "cut_off", open_ends=True)
    confidence = fraction_number(confidence, "confidence", open_ends=True)
    pairs = _pairs(manual, automatic)
    if patients is not None:
        _one_sample_each(pairs.index, patients)
    quantified = (pairs["manual"] >= pairs["manual_lloq"]) & (
        pairs["automatic"] >= pairs["automatic_lloq"]
    )
    used = pairs[quantified]
    x, y = (np.log10(used[name].to_numpy()) for name in ("manual", "automatic"))
    by_hand, by_net = (pairs[name] >= cut_off for name in ("manual", "automatic"))
    pairs["quantified"] = quantified
    pairs["log10_ratio"] = pd.Series(y - x, used.index).reindex(pairs.index)
    pairs["discordant"] = by_hand != by_net
    n = len(used)
    notes = []
    if n < len(pairs):
        notes.append(
            f"{len(pairs) - n} of {len(pairs)} pairs have a fraction below its LLOQ: they count in "
            "the agreement only."
        )
    if n < _PAIRS_FOR_LIMITS:
        notes.append(f"{n} pairs are too few for limits of agreement ({_PAIRS_FOR_LIMITS}).")
    line = None
    if n < _PAIRS_FOR_A_LINE:
        notes.append(f"{n} pairs are too few for Passing and Bablok's line ({_PAIRS_FOR_A_LINE}).")
    elif stats.kendalltau(x, y, alternative="greater").pvalue > 0.05:
        notes.append("The methods are not correlated; no line was fitted.")
    else:
        line = passing_bablok(x, y, confidence)
        if line.linearity_p < 0.05:
            notes.append("The pairs do not lie along a line (cusum test, p < 0.05).")
    return MethodComparison(
        pairs=pairs,
        cut_off=cut_off,
        bland_altman=bland_altman(x, y, confidence) if n >= _PAIRS_FOR_LIMITS else None,
        passing_bablok=line,
        agreement=agreement_at(by_hand.to_numpy(), by_net.to_numpy(), confidence),
        notes=tuple(notes),
    )


@dataclass(frozen=True, eq=False)
class DilutionSeries:
    """Result of :func:`dilution_series`.

    Attributes
    ----------
    table : DataFrame
        A row per expected fraction, ascending: ``n``, ``observed`` (mean), ``cv``, ``recovery``
        (observed / expected) and ``quantified`` (used in the fit).
    slope, slope_low, slope_high : float
        Of log10 observed against log10 expected, with interval; 1 is proportional.
    curvature_p : float
        P-value of a quadratic term; a small one speaks against linearity. NaN for fewer than 4
        results or 3 levels.
    """

    table: pd.DataFrame
    slope: float
    slope_low: float
    slope_high: float
    curvature_p: float


def dilution_series(
    expected: ArrayLike, observed: ArrayLike, *, lloq: float, confidence: float = 0.95
) -> DilutionSeries:
    """Compute recovery and linearity of a dilution series.

    Parameters
    ----------
    expected : array-like of shape (R,)
        True fraction of each result, above 0; repeats have the same.
    observed : array-like of shape (R,)
        Measured fraction.
    lloq : float
        Levels of which a result is below it are not fitted; leaving out single low results would
        bend the line upwards.
    confidence : float, default 0.95
        Level of the interval of the slope.

    Returns
    -------
    DilutionSeries

    Raises
    ------
    InvalidInputError
        The lengths differ, a fraction is out of range, or fewer than 2 levels and 3 results can be
        fitted.

    References
    ----------
    CLSI EP06: linearity as the insignificance of a polynomial of second order.

    Examples
    --------
    >>> from fcm_estimators.metrics import dilution_series
    >>> found = dilution_series([1e-2, 1e-3, 1e-4], [8e-3, 8e-4, 8e-5], lloq=5e-5)
    >>> round(found.slope, 3), found.table["recovery"].round(3).tolist()
    (1.0, [0.8, 0.8, 0.8])
    """
    lloq = fraction_number(lloq, "lloq", open_ends=True)
    confidence = fraction_number(confidence, "confidence", open_ends=True)
    true, found = np.asarray(expected, dtype=float), np.asarray(observed, dtype=float)
    if true.shape != found.shape or true.ndim != 1:
        raise InvalidInputError(f"{found.shape} observed for {true.shape} expected fractions.")
    if not ((true > 0) & (true <= 1)).all() or not ((found >= 0) & (found <= 1)).all():
        raise InvalidInputError("Fractions must lie between 0 and 1, and expected ones above 0.")
    results = pd.DataFrame({"expected": true, "observed": found})
    by_level = results.groupby("expected")["observed"]
    table = pd.DataFrame({"n": by_level.size(), "observed": by_level.mean()})
    table["cv"] = by_level.std() / table["observed"].where(table["observed"] > 0)
    table["recovery"] = table["observed"] / table.index.to_numpy()
    table["quantified"] = by_level.min() >= lloq
    fitted = table["quantified"].reindex(results["expected"]).to_numpy()
    x, y = np.log10(true[fitted]), np.log10(found[fitted])
    if len(x) < 3 or len(np.unique(x)) < 2:
        raise InvalidInputError(
            f"{len(x)} results at {len(np.unique(x))} levels are above the LLOQ of {lloq:g}; a "
            "line needs 3 results at 2 levels."
        )
    line = stats.linregress(x, y)
    half = float(stats.t.ppf((1 + confidence) / 2, len(x) - 2) * line.stderr)
    slope = float(line.slope)
    return DilutionSeries(table, slope, slope - half, slope + half, _curvature_p(x, y))


def _curvature_p(x: np.ndarray, y: np.ndarray) -> float:
    """P-value of the quadratic term in a polynomial of second order, by its F test."""
    left = len(x) - 3
    if left < 1 or len(np.unique(x)) < 3:
        return float("nan")
    straight, bent = (
        float(((y - np.polyval(np.polyfit(x - x.mean(), y, order), x - x.mean())) ** 2).sum())
        for order in (1, 2)
    )
    if bent <= 1e-24:
        return 1.0 if straight <= 1e-24 else 0.0
    return float(stats.f.sf((straight - bent) / (bent / left), 1, left))


def _pairs(manual: pd.DataFrame, automatic: pd.DataFrame) -> pd.DataFrame:
    for name, table in (("manual", manual), ("automatic", automatic)):
        if not isinstance(table, pd.DataFrame) or not {"fraction", "lloq"} <= set(table):
            raise InvalidInputError(
                f"{name}: expected a DataFrame with fraction and lloq, such as that of mrd_table."
            )
        if not table.index.is_unique:
            raise InvalidInputError(f"{name}: samples repeat; compare one result of each.")
        fraction, lloq = table["fraction"].astype(float), table["lloq"].astype(float)
        if not ((fraction >= 0) & (fraction <= 1)).all():
            raise InvalidInputError(
                f"{name}: fractions are missing or not between 0 and 1; leave these samples out."
            )
        if not ((lloq > 0) & (lloq <= 1)).all():
            raise InvalidInputError(f"{name}: an LLOQ is missing or not between 0 and 1.")
    only = [*manual.index.difference(automatic.index), *automatic.index.difference(manual.index)]
    if only:
        raise InvalidInputError(f"Only one of the methods has the samples {listed(only)}.")
    if manual.empty:
        raise InvalidInputError("There are no samples to compare.")
    other = automatic.loc[manual.index]
    return pd.DataFrame(
        {
            "manual": manual["fraction"].astype(float),
            "automatic": other["fraction"].astype(float),
            "manual_lloq": manual["lloq"].astype(float),
            "automatic_lloq": other["lloq"].astype(float),
        }
    ).rename_axis("sample")


def _one_sample_each(samples: pd.Index, patients: Mapping[str, str] | pd.Series) -> None:
    named = dict(patients)
    unknown = [s for s in samples if s not in named]
    if unknown:
        raise InvalidInputError(f"patients: the samples {listed(unknown)} have no patient.")
    who = pd.Series([named[s] for s in samples])
    several = who[who.duplicated()].unique()
    if len(several):
        raise InvalidInputError(
            f"patients: {listed(several)} have several samples. Compare one of each patient: "
            "the intervals take all pairs as independent."
        )
