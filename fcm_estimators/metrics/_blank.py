"""Limit of blank: the fraction that a classifier finds in samples without disease."""

from __future__ import annotations

import warnings
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike
from scipy import stats

from fcm_estimators.exceptions import InvalidInputError, MissingKeyError
from fcm_estimators.metrics._inputs import (
    boolean_per_cell,
    fraction_number,
    per_cell,
    samples_of,
)
from fcm_estimators.metrics._studies import LEAST_PATIENTS, counts_per_patient, shortfalls

Method = Literal["nonparametric", "parametric"]
# A rate of 3 / n is compatible, at 95 %, with no event in n.
_RULE_OF_THREE = 3.0
# Confidence of the upper bound.
_CONFIDENCE = 0.95
# Up to so many lots have limits of their own.
_LOTS_APART = 3


@dataclass(frozen=True, eq=False)
class LimitOfBlank:
    """Result of :func:`limit_of_blank` and :func:`blank_of_counts`.

    Attributes
    ----------
    value : float
        Limit, as a fraction of the denominator.
    upper : float
        Upper bound of the percentile with 95 % confidence; NaN where there are too few patients
        for one (59 are needed for the 95th percentile), and for the parametric limit.
    confidence : float
        Probability that the largest of so many patients lies above the percentile of all patients,
        1 - (percentile / 100) ^ patients: 0.64 for 20, 0.95 for 59.
    population : object
        Class whose false positives were counted.
    percentile : float
        Percentile of the patients' false-positive fractions.
    method : str
        "nonparametric" or "parametric".
    table : DataFrame
        A row per patient, with ``n_results``, ``numerator``, ``denominator`` and ``fraction``.
    shortfalls : tuple of str
        What the design of EP17 asks for and the samples lack.
    by_lot : dict of object to float
        Limit of each lot, of which ``value`` is the largest; empty where the lots were put
        together.

    Examples
    --------
    >>> import pandas as pd
    >>> from fcm_estimators.metrics import blank_of_counts
    >>> blanks = pd.DataFrame({"numerator": range(60), "denominator": 100_000})
    >>> blank = blank_of_counts(blanks, warn=False)
    >>> blank.value, blank.n_patients, round(blank.confidence, 2), blank.upper
    (0.000565, 60, 0.95, 0.00059)
    """

    value: float
    upper: float
    confidence: float
    population: Hashable
    percentile: float
    method: str
    table: pd.DataFrame
    shortfalls: tuple[str, ...] = ()
    by_lot: dict[Hashable, float] = field(default_factory=dict)

    @property
    def n_patients(self) -> int:
        """Number of patients from which the limit was computed."""
        return len(self.table)

    @property
    def n_results(self) -> int:
        """Number of results, repeats included."""
        return int(self.table["n_results"].sum())

    def frame(self) -> pd.DataFrame:
        """Return a copy of the table with a row per patient."""
        return self.table.copy()


def blank_of_counts(
    counts: pd.DataFrame,
    *,
    percentile: float = 95.0,
    method: Method = "nonparametric",
    population: Hashable = None,
    warn: bool = True,
) -> LimitOfBlank:
    """Compute the limit of blank from counts in samples without disease.

    The unit is the patient: the counts of a patient's repeats are added. Repeats of few patients
    say how the count varies within these, not how the next patient differs. Blanks should be like
    the samples that will be measured, so regenerating marrows for residual disease.

    Of 2 or 3 lots of reagents, the largest of the limits of the lots is taken, as EP17-A2 has it;
    more are put together.

    Parameters
    ----------
    counts : DataFrame of shape (results, 2 or more)
        ``numerator`` (false positives) and ``denominator``; ``patient`` if there are repeats;
        ``lot`` and ``day``, by which the design is judged.
    percentile : float, default 95
        Between 0 and 100.
    method : {"nonparametric", "parametric"}, default "nonparametric"
        Non-parametric: the value at rank 0.5 + patients x percentile / 100, interpolated.
        Parametric: mean + c SD with c = z / (1 - 1 / (4 (patients - 1))), z the standard normal
        quantile; it holds only for normally distributed fractions, which counts near 0 are not.
        EP17-A2 has results - samples for patients - 1; the patients here have one result each.
    population : label, optional
        Class whose false positives were counted.
    warn : bool, default True
        Warn of what is missing.

    Returns
    -------
    LimitOfBlank

    Raises
    ------
    InvalidInputError
        There are fewer than 5 patients (the largest of 4 is above the 95th percentile with a
        probability of 0.19), a denominator is 0, counts are missing or impossible, or an argument
        is out of range.

    Warns
    -----
    UserWarning
        There are fewer than 60 results or than 59 patients, lots or days are fewer than 2 and 3 or
        not given, 2 or 3 lots are put together because one has fewer than 5 patients or results
        have no lot, or the fractions are not normal although the method is parametric.

    References
    ----------
    CLSI EP17-A2, Evaluation of Detection Capability for Clinical Laboratory Measurement
    Procedures (2012). Hahn, Meeker, Statistical Intervals (1991): bounds of percentiles.

    Examples
    --------
    >>> import pandas as pd
    >>> from fcm_estimators.metrics import blank_of_counts
    >>> blanks = pd.DataFrame({"numerator": [0, 2, 1, 0, 7, 3], "denominator": 200_000})
    >>> blank_of_counts(blanks, warn=False).value
    3.5e-05
    """
    share = fraction_number(np.divide(percentile, 100), "percentile / 100", open_ends=True)
    if method not in get_args(Method):
        raise InvalidInputError(f"method is {method!r}; expected one of {list(get_args(Method))}.")
    table = counts_per_patient(counts, "blanks")
    values = table["fraction"].to_numpy()
    n = len(values)
    if n < LEAST_PATIENTS:
        raise InvalidInputError(
            f"The blanks are of {n} patient(s); a limit of blank needs {LEAST_PATIENTS} or more, "
            "and CLSI EP17 asks for 60 results. Repeats of a patient count as one."
        )
    missing = shortfalls(counts, table, "patients without disease")
    by_lot = _by_lot(counts, share, method, missing)
    value = max(by_lot.values()) if by_lot else _percentile(values, share, method)
    upper = float("nan")
    if method == "parametric":
        if np.ptp(values) == 0 or stats.shapiro(values).pvalue < 0.05:
            missing.append(
                "The fractions are not normally distributed (Shapiro and Wilk, p < 0.05), so the "
                "parametric limit does not hold; use the non-parametric one."
            )
    else:
        bound = stats.quantile_test(values, p=share, alternative="less")
        # NaN, where there are too few patients, stays.
        upper = float(np.maximum(bound.confidence_interval(_CONFIDENCE).high, value))
    confidence = float(1 - share**n)
    if confidence < _CONFIDENCE:
        missing.append(
            f"The largest of {n} patients is above the {100 * share:g}th percentile with a "
            f"probability of {confidence:.0%}; for 95 % it takes "
            f"{int(np.ceil(np.log(1 - _CONFIDENCE) / np.log(share)))}."
        )
    if not values.any():
        least = int(table["denominator"].min())
        missing.append(
            f"No false positive was found in denominators from {least:,} cells, which does not "
            f"exclude a fraction of {min(1.0, _RULE_OF_THREE / least):.1g}."
        )
    if missing and warn:
        warnings.warn("Limit of blank: " + " ".join(missing), UserWarning, stacklevel=2)
    return LimitOfBlank(
        value=value,
        upper=upper,
        confidence=confidence,
        population=population,
        percentile=float(percentile),
        method=method,
        table=table,
        shortfalls=tuple(missing),
        by_lot=by_lot,
    )


def _percentile(values: np.ndarray, share: float, method: Method) -> float:
    """Percentile of fractions of patients, by ranks or as of a normal distribution."""
    if method == "parametric":
        c = stats.norm.ppf(share) / (1 - 1 / (4 * (len(values) - 1)))
        return float(values.mean() + c * values.std(ddof=1))
    return float(np.quantile(values, share, method="hazen"))


def _by_lot(
    counts: pd.DataFrame, share: float, method: Method, missing: list[str]
) -> dict[Hashable, float]:
    """Limits of 2 or 3 lots; empty, with a reason in ``missing``, if a lot is too small for one."""
    if "lot" not in counts or not 2 <= counts["lot"].nunique() <= _LOTS_APART:
        return {}
    rule = f"EP17-A2 takes the largest of the limits of {counts['lot'].nunique()} lots"
    unknown = int(counts["lot"].isna().sum())
    if unknown:
        missing.append(f"{unknown} results have no lot; {rule}, but here they are put together.")
        return {}
    fractions = {
        lot: counts_per_patient(part, "blanks")["fraction"].to_numpy()
        for lot, part in counts.groupby("lot")
    }
    for lot, values in fractions.items():
        if len(values) < LEAST_PATIENTS:
            missing.append(
                f"Lot {lot!s} has {len(values)} patient(s), fewer than {LEAST_PATIENTS}; {rule}, "
                "but here they are put together."
            )
            return {}
    return {lot: _percentile(values, share, method) for lot, values in fractions.items()}


def limit_of_blank(
    clf: Any,
    negatives: AnnData,
    *,
    population: Hashable,
    denominator: str | ArrayLike | None = None,
    percentile: float = 95.0,
    groups: str | ArrayLike | None = None,
    patients: str | ArrayLike | None = None,
    method: Method = "nonparametric",
) -> LimitOfBlank:
    """Compute the limit of blank of a classifier from samples without disease.

    The limit uses ``clf.predict``, so it has the same decision threshold as every other
    prediction. All cells found are counted as false positives, so the samples must be free of
    disease and must not be in the training data; only the caller can know both.
    :func:`blank_of_counts` computes the limit and says what the samples lack.

    Parameters
    ----------
    clf : estimator
        Fitted; ``predict(negatives)`` returns a class per cell.
    negatives : AnnData
        Cells of the samples without disease; not changed.
    population : label
        Class of the cells that are residual disease.
    denominator : str or array-like of bool of shape (N,), optional
        Gate to which the fraction refers, as in :func:`mrd_table`: a boolean column of ``obs``, or
        a value per cell. Default: all cells.
    percentile : float, default 95
        Between 0 and 100.
    groups : str or array-like of shape (N,), optional
        Sample of each cell: a column of ``obs``, or a value per cell. Default: the column
        ``clf.sample_key``.
    patients : str or array-like of shape (N,), optional
        Patient of each cell. Default: every sample is another patient.
    method : {"nonparametric", "parametric"}, default "nonparametric"
        As in :func:`blank_of_counts`.

    Returns
    -------
    LimitOfBlank

    Raises
    ------
    MissingKeyError
        A named column is not in ``obs``.
    InvalidInputError
        ``groups`` is None and ``clf`` has no ``sample_key``, there is no cell, a sample has no cell
        in the denominator or is of several patients, ``population`` is not in ``clf.classes_``,
        there are fewer than 5 patients, an argument is out of range, or values per cell are missing
        or of the wrong length.

    Warns
    -----
    UserWarning
        As :func:`blank_of_counts`.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from anndata import AnnData
    >>> from sklearn.dummy import DummyClassifier
    >>> from fcm_estimators.metrics import limit_of_blank
    >>> obs = pd.DataFrame({"sample": np.arange(120) // 2}, [str(i) for i in range(120)])
    >>> adata = AnnData(np.zeros((120, 1)), obs=obs)  # 60 samples
    >>> clf = DummyClassifier(strategy="constant", constant="other")
    >>> clf = clf.fit(np.zeros((2, 1)), ["blast", "other"])
    >>> import warnings
    >>> with warnings.catch_warnings(record=True) as told:
    ...     warnings.simplefilter("always")
    ...     blank = limit_of_blank(clf, adata, population="blast", groups="sample")
    >>> blank.value, "does not exclude a fraction" in str(told[0].message)
    (0.0, True)
    """
    classes = getattr(clf, "classes_", None)
    if classes is not None and population not in list(classes):
        raise InvalidInputError(
            f"population={population!r} is none of the classifier's classes {list(classes)}."
        )
    if negatives.n_obs == 0:
        raise InvalidInputError("negatives has no cells; expected samples without disease.")
    if groups is None:
        groups = getattr(clf, "sample_key", None)
        if groups is None:
            raise InvalidInputError(
                "The classifier has no sample_key; pass groups, the sample of each cell or the "
                "name of a column in obs."
            )
    sample, names = samples_of(_from_obs(negatives, groups, "groups"), negatives.n_obs)
    if denominator is None:
        inside = np.ones(negatives.n_obs, dtype=bool)
    else:
        values = _from_obs(negatives, denominator, "denominator")
        inside = boolean_per_cell(values, "denominator", negatives.n_obs)
    n = np.bincount(sample[inside], minlength=len(names))
    if (n == 0).any():
        raise InvalidInputError(
            f"Samples {list(names[n == 0])} have no cell in the denominator; leave them out."
        )
    found = per_cell(clf.predict(negatives), "The prediction", negatives.n_obs) == population
    k = np.bincount(sample[found & inside], minlength=len(names))
    counts = pd.DataFrame({"numerator": k, "denominator": n}, index=names)
    if patients is not None:
        values = _from_obs(negatives, patients, "patients")
        patient, who = samples_of(values, negatives.n_obs)
        pairs = np.unique(np.stack([sample, patient], axis=1), axis=0)
        if len(pairs) > len(names):
            raise InvalidInputError("patients: some samples have cells of several patients.")
        counts["patient"] = who[pairs[:, 1]]
    return blank_of_counts(counts, percentile=percentile, method=method, population=population)


def _from_obs(adata: AnnData, values: Any, name: str) -> Any:
    """Return the column of ``obs`` if ``values`` is a name, else the values."""
    if not isinstance(values, str):
        return values
    if values not in adata.obs:
        raise MissingKeyError(
            f"{name}: obs has no column {values!r}; it has {list(adata.obs.columns)}."
        )
    return adata.obs[values]
