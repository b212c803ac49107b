"""Interval of a fraction that knows how a classifier errs in other patients."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from scipy.special import betainc, betaincinv, expit, logit, stdtr, stdtrit

from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.metrics._counting import clopper_pearson, counts
from fcm_estimators.metrics._inputs import fraction_number

# With fewer patients of either kind the interval is not estimable.
_LEAST_PATIENTS = 10
# Nodes of the quadrature, and halvings of the search for the ends.
_NODES, _HALVINGS = 48, 50
_SMALLEST = 1e-12


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of a transformed rate over patients."""

    mean: float
    sd: float
    n_patients: int

    @property
    def scale(self) -> float:
        """Scale of the t distribution of the next patient: sd sqrt(1 + 1 / n)."""
        return max(self.sd * float(np.sqrt(1 + 1 / self.n_patients)), 1e-9)


@dataclass(frozen=True)
class ClassificationErrors:
    """How often a classifier errs in patients that it does not know.

    Make one with :meth:`from_table`. The false-positive rate, on a log scale, is that of patients
    without positive cells; the sensitivity, on a logit scale, that of patients with positive cells.
    Both vary between patients, and the next patient is drawn from the t-predictive distribution.

    Attributes
    ----------
    false_positives : Spread or None
        log((false positives + 0.5) / (negative cells + 1)).
    sensitivity : Spread or None
        log((found + 0.5) / (missed + 0.5)).
    why : str
        Why no interval can be computed; empty if one can.
    model : str
        Checksum of the model; empty if it is not known.

    Notes
    -----
    The patients have to be unseen: they were neither in training nor chose the threshold or the
    calibration. Patients with positive cells have to be as the measured ones, after therapy: at
    diagnosis cells are easier to find. Only the caller can know both.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from fcm_estimators.metrics import ClassificationErrors
    >>> rng = np.random.default_rng(0)
    >>> n_positive = np.repeat([0, 1000], 20)
    >>> found = rng.binomial(n_positive, rng.beta(20, 5, 40))
    >>> false = rng.poisson(rng.gamma(2, 5, 40))
    >>> table = pd.DataFrame({"n_cells": 500_000, "n_positive": n_positive})
    >>> table = table.assign(n_true_positives=found, n_false_positives=false)
    >>> errors = ClassificationErrors.from_table(table)
    >>> [float(f"{end:.2g}") for end in errors.interval(600, 500_000)]
    [0.0013, 0.002]
    """

    false_positives: Spread | None
    sensitivity: Spread | None
    why: str = ""
    model: str = ""

    @classmethod
    def from_table(cls, table: pd.DataFrame, *, model: str = "") -> Self:
        """Estimate both from unseen patients.

        Parameters
        ----------
        table : DataFrame of shape (samples, 4 or more)
            Of :func:`classification_table` with ``pos_label``; or ``n_cells``, ``n_positive``,
            ``n_true_positives``, ``n_false_positives``. A column ``patient`` if patients have
            several samples: their counts are added. The cells have to be those of the
            denominator.
        model : str, default ""
            Checksum of the model, so that the errors are not taken for those of another.

        Returns
        -------
        ClassificationErrors
            Not estimable, with the reason in ``why``, below 10 patients with or 10 without
            positive cells.

        Raises
        ------
        InvalidInputError
            Columns are missing or counts are impossible.
        """
        added = _patients(table)
        negative = added[(added["n_positive"] == 0) & (added["n_negative"] > 0)]
        positive = added[added["n_positive"] > 0]
        rates = np.log((negative["false"] + 0.5) / (negative["n_negative"] + 1))
        missed = positive["n_positive"] - positive["true"]
        found = np.log((positive["true"] + 0.5) / (missed + 0.5))
        few = [
            f"{len(values)} patients {kind} positive cells"
            for values, kind in ((rates, "without"), (found, "with"))
            if len(values) < _LEAST_PATIENTS
        ]
        why = f"{' and '.join(few)}; {_LEAST_PATIENTS} of either are needed" if few else ""
        return cls(_spread(rates), _spread(found), why, model)

    def interval(self, k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
        """Compute the interval of the true fraction, by inversion of a test.

        For a true fraction f, the count is binomial of n cells with the rate
        f s + (1 - f) p, and the sensitivity s and the false-positive rate p of this patient are
        drawn from their predictive distributions. The interval holds every f for which a count of
        at least k and one of at most k both have more than half of 1 - ``confidence``.

        Parameters
        ----------
        k, n : int
            Positive cells, and cells of the denominator.
        confidence : float, default 0.95

        Returns
        -------
        low, high : float
            (NaN, NaN) if it is not estimable or n is 0. ``high`` is not below the upper end of the
            counting interval: fewer positive cells than false ones were expected prove nothing. If
            there are more positive cells than the sensitivity allows at any fraction, ``low`` is
            the lower end of the counting interval and ``high`` is 1.

        Raises
        ------
        InvalidInputError
            Counts are impossible, or ``confidence`` is not between 0 and 1.

        References
        ----------
        Rogan, Gladen, Am. J. Epidemiol. 107, 71-76 (1978): rate and errors. Geisser, Predictive
        Inference (1993): the next patient.
        """
        tail = (1 - fraction_number(confidence, "confidence", open_ends=True)) / 2
        k, n = int(counts(k, "k")), int(counts(n, "n"))
        if k > n:
            raise InvalidInputError(f"k is {k}, more than the {n} cells of the denominator.")
        if self.why or n == 0:
            return float("nan"), float("nan")
        at_least = _Tail(self, k, n)
        at_most = _Tail(self, k + 1, n)  # of which the complement is taken
        low = _first(lambda f: at_least(f) > tail)
        # The complement falls with the fraction, so its first failure is the upper end.
        high = _first(lambda f: 1 - at_most(f) <= tail)
        counted = [float(end) for end in clopper_pearson(k, n, confidence)]
        if low is None:
            return counted[0], 1.0
        return low, 1.0 if high is None else max(high, counted[1])

    def tails(self, fraction: float, k: int, n: int) -> tuple[float, float]:
        """Probabilities of at least k and of at most k positive cells if the fraction is true."""
        return _Tail(self, k, n)(fraction), 1 - _Tail(self, k + 1, n)(fraction)

    def to_dict(self) -> dict[str, Any]:
        """Return values that JSON has; no counts of patients are in it."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Undo :meth:`to_dict`.

        Raises
        ------
        InvalidInputError
            A value is missing.
        """
        try:
            false, found = (
                None if values[name] is None else Spread(**values[name])
                for name in ("false_positives", "sensitivity")
            )
            return cls(false, found, str(values["why"]), str(values["model"]))
        except (KeyError, TypeError) as error:
            raise InvalidInputError(f"These are no classification errors: {error}.") from error

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Self:
        """Read a JSON file that :meth:`write` or ``fcm evaluate --errors`` wrote.

        Raises
        ------
        InvalidInputError
            The file cannot be read or holds something else.
        """
        try:
            values = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InvalidInputError(f"errors={str(path)!r} cannot be read: {error}") from error
        if not isinstance(values, dict):
            raise InvalidInputError(f"errors={str(path)!r} holds no JSON object.")
        return cls.from_dict(values)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write a JSON file."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1), encoding="utf-8")


class _Tail:
    """Probability of at least k of n positive cells, as a function of the true fraction.

    P(Binomial(n, r) >= k) is P(B <= r) for B of Beta(k, n - k + 1), so with r = f s + (1 - f) p it
    is the probability that B - f s - (1 - f) p <= 0. The distribution of the term that varies most
    is used as it is, which leaves a smooth function of the two others for the quadrature.
    """

    def __init__(self, errors: ClassificationErrors, k: int, n: int) -> None:
        self.k, self.n = k, n
        self.certain = 1.0 if k == 0 else 0.0 if k > n else None
        if self.certain is not None:
            return
        if errors.false_positives is None or errors.sensitivity is None:
            raise InvalidInputError(f"The errors are not known: {errors.why}.")
        self.false, self.found = errors.false_positives, errors.sensitivity
        nodes, weights = np.polynomial.legendre.leggauss(_NODES)
        u = (nodes + 1) / 2
        self.weights = np.outer(weights, weights) / 4
        self.bound = betaincinv(k, n - k + 1, u)
        self.p, self.s = (
            of.mean + of.scale * stdtrit(of.n_patients - 1, u) for of in (self.false, self.found)
        )
        self.p, self.s = np.minimum(np.exp(self.p), 1.0), expit(self.s)

    def __call__(self, fraction: float) -> float:
        if self.certain is not None:
            return self.certain
        f, middle = fraction, _NODES // 2
        spread = {
            "count": np.sqrt(self.k) / self.n,
            "found": f * self.s[middle] * (1 - self.s[middle]) * self.found.scale,
            "false": (1 - f) * self.p[middle] * self.false.scale,
        }
        exact = max(spread, key=lambda name: spread[name])
        if exact == "count":
            rate = f * self.s[:, None] + (1 - f) * self.p[None, :]
            chance = betainc(self.k, self.n - self.k + 1, np.minimum(rate, 1.0))
        elif exact == "found":
            least = (self.bound[:, None] - (1 - f) * self.p[None, :]) / f
            inside = np.clip(least, 1e-300, 1 - 1e-16)
            chance = self._above(logit(inside), self.found)
            chance = np.where(least <= 0, 1.0, np.where(least >= 1, 0.0, chance))
        else:
            least = (self.bound[:, None] - f * self.s[None, :]) / (1 - f)
            chance = self._above(np.log(np.maximum(least, 1e-300)), self.false)
            chance = np.where(least <= 0, 1.0, chance)
        return float((chance * self.weights).sum())

    @staticmethod
    def _above(value: np.ndarray, of: Spread) -> np.ndarray:
        """Probability that the next patient's transformed rate is above a value."""
        found: np.ndarray = stdtr(of.n_patients - 1, (of.mean - value) / of.scale)
        return found


def _first(holds: Any) -> float | None:
    """Smallest fraction at which a rising condition holds; None if it does not hold at 1."""
    if holds(0.0):
        return 0.0
    if not holds(1.0):
        return None
    low, high = np.log(_SMALLEST), 0.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if holds(float(np.exp(middle))) else (middle, high)
    return float(np.exp(high))


def _spread(values: Any) -> Spread | None:
    if len(values) < 2:
        return None
    return Spread(float(values.mean()), float(values.std(ddof=1)), len(values))


def _patients(table: pd.DataFrame) -> pd.DataFrame:
    """Counts of each patient: n_positive, n_negative, true, false."""
    if {"n_true_positives", "n_false_positives"} <= set(table):
        needed = {"n_cells", "n_positive"}
        true, false = (table.get(f"n_{name}_positives") for name in ("true", "false"))
    else:
        needed = {"n_cells", "n_unlabelled", "n_positive", "n_predicted", "recall"}
        if needed <= set(table):
            true = (table["recall"].fillna(0) * table["n_positive"]).round()
            false = table["n_predicted"] - true
    missing = sorted(needed - set(table))
    if missing:
        raise InvalidInputError(
            f"The table has no {missing}; expected that of classification_table with pos_label."
        )
    unlabelled = table.get("n_unlabelled", 0)
    cells = pd.DataFrame(
        {
            "n_positive": table["n_positive"],
            "n_negative": table["n_cells"] - unlabelled - table["n_positive"],
            "true": true,
            "false": false,
        }
    )
    for name in cells:
        counts(cells[name], str(name))
    if (cells["true"] > cells["n_positive"]).any() or (cells["false"] > cells["n_negative"]).any():
        raise InvalidInputError("More cells are called than there are.")
    patient = table["patient"] if "patient" in table else pd.Series(table.index, table.index)
    added: pd.DataFrame = cells.astype(float).groupby(patient.to_numpy(), sort=False).sum()
    return added
