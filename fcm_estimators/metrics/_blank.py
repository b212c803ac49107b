"""Limit of blank: the fraction that a classifier finds in samples without disease."""

from __future__ import annotations

import warnings
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import ArrayLike

from fcm_estimators.exceptions import InvalidInputError, MissingKeyError
from fcm_estimators.metrics._inputs import (
    boolean_per_cell,
    fraction_number,
    per_cell,
    samples_of,
)

# A rate of 3 / n is compatible, at 95 %, with no event in n.
_RULE_OF_THREE = 3.0


@dataclass(frozen=True, eq=False)
class LimitOfBlank:
    """Result of :func:`limit_of_blank`.

    Attributes
    ----------
    value : float
        Limit, as a fraction of the denominator.
    population : object
        Class whose false positives were counted.
    percentile : float
        Percentile of the samples' false-positive fractions.
    table : DataFrame
        A row per sample, with ``numerator``, ``denominator`` and ``fraction``.

    Examples
    --------
    >>> import pandas as pd
    >>> from fcm_estimators.metrics import LimitOfBlank
    >>> table = pd.DataFrame({"fraction": [1e-5, 3e-5]}, index=["a", "b"])
    >>> LimitOfBlank(value=3e-5, population="blast", percentile=95.0, table=table).n_samples
    2
    """

    value: float
    population: Hashable
    percentile: float
    table: pd.DataFrame

    @property
    def n_samples(self) -> int:
        """Number of samples from which the limit was computed."""
        return len(self.table)

    def frame(self) -> pd.DataFrame:
        """Return a copy of the table with a row per sample."""
        return self.table.copy()


def limit_of_blank(
    clf: Any,
    negatives: AnnData,
    *,
    population: Hashable,
    denominator: str | ArrayLike | None = None,
    percentile: float = 95.0,
    groups: str | ArrayLike | None = None,
) -> LimitOfBlank:
    """Compute the limit of blank of a classifier from samples without disease.

    The limit uses ``clf.predict``, so it has the same decision threshold as every other
    prediction. All cells found are counted as false positives, so the samples must be free of
    disease and must not be in the training data; only the caller can know both. With 10 samples
    or fewer, the 95th percentile is their maximum, and a warning says so; the standard asks for
    60 samples.

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
        Between 0 and 100. Its rank among B samples is 0.5 + B percentile / 100, as in EP17.
    groups : str or array-like of shape (N,), optional
        Sample of each cell: a column of ``obs``, or a value per cell. Default: the column
        ``clf.sample_key``.

    Returns
    -------
    LimitOfBlank
        With ``value``, ``n_samples`` and ``frame()``, which has a row per sample.

    Raises
    ------
    MissingKeyError
        A named column is not in ``obs``.
    InvalidInputError
        ``groups`` is None and ``clf`` has no ``sample_key``, there is no cell, a sample has no cell
        in the denominator, ``population`` is not in ``clf.classes_``, ``percentile`` is not
        between 0 and 100, or values per cell are missing or of the wrong length.

    References
    ----------
    CLSI EP17-A2, Evaluation of Detection Capability for Clinical Laboratory Measurement
    Procedures (2012), non-parametric limit of blank.

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from anndata import AnnData
    >>> from sklearn.dummy import DummyClassifier
    >>> from fcm_estimators.metrics import limit_of_blank
    >>> obs = pd.DataFrame({"sample": np.arange(24) // 2}, [str(i) for i in range(24)])
    >>> adata = AnnData(np.zeros((24, 1)), obs=obs)  # 12 samples
    >>> clf = DummyClassifier(strategy="constant", constant="other")
    >>> clf = clf.fit(np.zeros((2, 1)), ["blast", "other"])
    >>> limit_of_blank(clf, adata, population="blast", groups="sample").value
    0.0
    """
    share = fraction_number(np.divide(percentile, 100), "percentile / 100", open_ends=True)
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
    table = pd.DataFrame({"numerator": k, "denominator": n, "fraction": k / n}, index=names)
    value = float(np.quantile(table["fraction"], share, method="hazen"))
    if 0.5 + share * len(names) >= len(names):  # the rank is that of the largest
        _warn_of_few(len(names), value, int(n.min()))
    return LimitOfBlank(
        value=value,
        population=population,
        percentile=float(percentile),
        table=table,
    )


def _warn_of_few(n_samples: int, value: float, smallest: int) -> None:
    """Warn of a limit that is the largest value that was seen."""
    zero = (
        f" No false positive was found in denominators from {smallest:,} cells, which does not "
        f"exclude a fraction of {min(1.0, _RULE_OF_THREE / smallest):.1g}."
        if value == 0
        else ""
    )
    warnings.warn(
        f"The limit of blank is the largest fraction in {n_samples} sample(s): there are too few "
        f"for the percentile. CLSI EP17 asks for 60.{zero}",
        UserWarning,
        stacklevel=3,
    )


def _from_obs(adata: AnnData, values: Any, name: str) -> Any:
    """Return the column of ``obs`` if ``values`` is a name, else the values."""
    if not isinstance(values, str):
        return values
    if values not in adata.obs:
        raise MissingKeyError(
            f"{name}: obs has no column {values!r}; it has {list(adata.obs.columns)}."
        )
    return adata.obs[values]
