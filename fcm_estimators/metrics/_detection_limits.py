"""Limits of detection and of quantitation, from counts of low samples."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.special import betainc

from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.metrics._blank import LimitOfBlank
from fcm_estimators.metrics._inputs import fraction_number
from fcm_estimators.metrics._protocol import DEFAULT_PROTOCOL, Protocol
from fcm_estimators.metrics._studies import LEAST_PATIENTS, counts_per_patient, shortfalls


@dataclass(frozen=True, eq=False)
class DetectionLimits:
    """Result of :func:`detection_limits`.

    Attributes
    ----------
    blank : LimitOfBlank
    n_cells : int
        Denominator for which the limits hold.
    events : int
        Least number of positive cells that is called detected: the protocol's, or more where the
        limit of blank asks for more.
    limit_of_detection : float
        Smallest true fraction that is called detected with the asked probability. NaN if no
        fraction is: the classifier misses too many cells of some patients.
    limit_of_quantitation : float
        Smallest fraction, not below the limit of detection, whose coefficient of variation reaches
        the goal. NaN if none does: patients differ by more than the goal.
    probability, cv_goal : float
    table : DataFrame or None
        A row per patient of the low samples: ``numerator``, ``denominator``, ``fraction``,
        ``expected``, ``recovery`` (fraction / expected) and ``above_blank`` (whether the fraction
        exceeds the limit of blank).
    shortfalls : tuple of str
        What the design of EP17 asks for and the low samples lack.
    """

    blank: LimitOfBlank
    n_cells: int
    events: int
    limit_of_detection: float
    limit_of_quantitation: float
    probability: float
    cv_goal: float
    table: pd.DataFrame | None
    shortfalls: tuple[str, ...] = ()

    def entries(self) -> dict[str, object]:
        """The limits and what they rest on, for a table or JSON."""
        low, by_lot = self.table, self.blank.by_lot
        return {
            "limit_of_blank": self.blank.value,
            **{f"limit_of_blank_lot_{lot}": limit for lot, limit in by_lot.items()},
            "limit_of_blank_upper": self.blank.upper,
            "blank_patients": self.blank.n_patients,
            "blank_results": self.blank.n_results,
            "method": self.blank.method,
            "limit_of_detection": self.limit_of_detection,
            "limit_of_quantitation": self.limit_of_quantitation,
            "n_cells": self.n_cells,
            "events_to_detect": self.events,
            "probability": self.probability,
            "cv_goal": self.cv_goal,
            "low_patients": 0 if low is None else len(low),
            "low_above_blank": 0 if low is None else int(low["above_blank"].sum()),
            "shortfalls": [*self.blank.shortfalls, *self.shortfalls],
        }


def detection_limits(
    blank: LimitOfBlank,
    low: pd.DataFrame | None = None,
    *,
    n_cells: int | None = None,
    protocol: Protocol | str | os.PathLike[str] = DEFAULT_PROTOCOL,
    probability: float = 0.95,
    cv_goal: float = 0.3,
    warn: bool = True,
) -> DetectionLimits:
    """Compute the limits of detection and of quantitation of a classifier.

    A count is called detected if it reaches the protocol's events and its fraction exceeds the
    limit of blank. The limit of detection is the smallest true fraction f that is called detected
    with the asked probability; of n cells, the count is binomial with the rate f s, where s is the
    share of the true cells that the classifier finds, one for each patient of the low samples, and
    the probability is the mean over these. The standard's formula, limit of blank plus 1.645 SD,
    takes the same SD for all fractions, which counts do not have.

    Parameters
    ----------
    blank : LimitOfBlank
        Of :func:`limit_of_blank` or :func:`blank_of_counts`.
    low : DataFrame of shape (results, 3 or more), optional
        Samples with little disease, such as dilutions: ``numerator``, ``denominator`` and
        ``expected``, the true fraction, above 0; ``patient``, ``lot``, ``day`` as in
        :func:`blank_of_counts`. Without it every true cell counts as found (s = 1), so the limits
        are those of counting.
    n_cells : int, optional
        Denominator for which the limits are computed. Default: the median over the patients of
        ``low``, or of the blanks.
    protocol : Protocol, str or path, default "20/50 events"
        Its ``events_to_detect`` are used.
    probability : float, default 0.95
        Between 0 and 1.
    cv_goal : float, default 0.3
        Coefficient of variation that is good enough to state a quantity; the laboratory's choice.
        Its square is 1 / (n f mean(s)), that of the count, plus the square of the coefficient of
        variation of s between patients.
    warn : bool, default True
        Warn of what is missing.

    Returns
    -------
    DetectionLimits

    Raises
    ------
    InvalidInputError
        ``low`` is of fewer than 5 patients, an expected fraction is not between 0 and 1, counts
        are missing or impossible, or an argument is out of range.

    Warns
    -----
    UserWarning
        There are no low samples, fewer than 60 results, or lots or days are too few or not given.

    References
    ----------
    CLSI EP17-A2 (2012): definitions of the limits, design.

    Examples
    --------
    >>> import pandas as pd
    >>> from fcm_estimators.metrics import blank_of_counts, detection_limits
    >>> blanks = pd.DataFrame({"numerator": range(60), "denominator": 1_000_000})
    >>> blank = blank_of_counts(blanks, warn=False)
    >>> found = detection_limits(blank, warn=False)
    >>> found.events, float(f"{found.limit_of_detection:.3g}")
    (57, 7e-05)
    """
    if not isinstance(protocol, Protocol):
        protocol = Protocol.read(protocol)
    probability = fraction_number(probability, "probability", open_ends=True)
    cv_goal = fraction_number(cv_goal, "cv_goal", open_ends=True)
    missing: list[str] = []
    if low is None:
        table, found = None, np.ones(1)
        missing.append(
            "There are no low samples; the limits of detection and quantitation hold only if "
            "every true cell is found."
        )
    else:
        table = _low_table(low, blank)
        found = np.minimum(table["recovery"].to_numpy(dtype=float), 1.0)
        missing += shortfalls(low, table, "patients with little disease")
    if n_cells is None:
        n_cells = int((blank.table if table is None else table)["denominator"].median())
    if isinstance(n_cells, bool) or not isinstance(n_cells, int | np.integer) or n_cells < 1:
        raise InvalidInputError(f"n_cells is {n_cells!r}; expected a number of cells.")
    n = int(n_cells)
    # The smallest count whose fraction exceeds the limit of blank.
    above = int(np.floor(blank.value * n))
    while above / n <= blank.value:
        above += 1
    events = max(protocol.events_to_detect, above)
    detected = _smallest_detected(n, events, found, probability)
    if np.isnan(detected):
        missing.append(
            f"No fraction is detected with a probability of {probability:g}: too few true cells "
            "are found in some patients."
        )
    quantified = _smallest_quantified(n, found, cv_goal)
    if np.isnan(quantified):
        missing.append(
            f"The share of true cells that is found differs between patients by more than the "
            f"goal of {cv_goal:.0%}."
        )
    if missing and warn:
        warnings.warn("Limit of detection: " + " ".join(missing), UserWarning, stacklevel=2)
    return DetectionLimits(
        blank=blank,
        n_cells=n,
        events=events,
        limit_of_detection=detected,
        limit_of_quantitation=float(np.maximum(quantified, detected)),
        probability=probability,
        cv_goal=cv_goal,
        table=table,
        shortfalls=tuple(missing),
    )


def _low_table(low: pd.DataFrame, blank: LimitOfBlank) -> pd.DataFrame:
    table = counts_per_patient(low, "low samples")
    if len(table) < LEAST_PATIENTS:
        raise InvalidInputError(
            f"The low samples are of {len(table)} patient(s); a limit of detection needs "
            f"{LEAST_PATIENTS} or more, and CLSI EP17 asks for 60 results."
        )
    if "expected" not in low:
        raise InvalidInputError(
            "low samples: there is no column 'expected', the true fraction of each sample."
        )
    expected = low["expected"].astype(float)
    if not ((expected > 0) & (expected < 1)).all():
        raise InvalidInputError("low samples: expected fractions must lie between 0 and 1.")
    # Expected cells are added, as the counts are.
    cells = expected * low["denominator"]
    patient = low["patient"].to_numpy() if "patient" in low else low.index.to_numpy()
    added = cells.groupby(patient, sort=False).sum()
    table["expected"] = added.to_numpy() / table["denominator"].to_numpy()
    table["recovery"] = table["fraction"] / table["expected"]
    table["above_blank"] = table["fraction"] > blank.value
    return table


def _smallest_detected(n: int, events: int, found: np.ndarray, probability: float) -> float:
    """Smallest fraction f with mean over s of P(Binomial(n, f s) >= events) >= probability."""
    if events > n:
        return float("nan")

    def excess(log_fraction: float) -> float:
        rate = np.exp(log_fraction) * found
        return float(betainc(events, n - events + 1, rate).mean()) - probability

    if excess(0.0) < 0:
        return float("nan")
    return float(np.exp(brentq(excess, np.log(1e-12), 0.0, xtol=1e-10)))


def _smallest_quantified(n: int, found: np.ndarray, goal: float) -> float:
    """Smallest fraction whose coefficient of variation reaches the goal."""
    mean = found.mean()
    if mean == 0:
        return float("nan")
    between = found.std(ddof=1) / mean if len(found) > 1 else 0.0
    left = goal**2 - between**2
    fraction = 1 / (left * n * mean) if left > 0 else float("nan")
    return fraction if fraction <= 1 else float("nan")
