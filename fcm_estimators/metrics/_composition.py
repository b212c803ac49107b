"""Shares of populations, against those of other samples."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from fcm_estimators._checks import listed
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.metrics._counting import clopper_pearson
from fcm_estimators.metrics._inputs import per_cell, samples_of


def population_shares(
    labels: ArrayLike,
    *,
    groups: ArrayLike | None = None,
    leave_out: Sequence[Hashable] = (),
) -> pd.DataFrame:
    """Compute the share of each population in every sample.

    Parameters
    ----------
    labels : array-like of shape (N,)
        Population of each cell; cells with NaN or None are left out.
    groups : array-like of shape (N,), optional
        Sample of each cell. Default: one sample, ``all``.
    leave_out : sequence of label, default ()
        Populations whose cells are not counted, such as "not analysed". Leave out the diseased
        one too: much disease makes all other shares small.

    Returns
    -------
    DataFrame of shape (S, P)
        Index ``sample``, a column per population, sorted by name; rows add to 1, and are NaN in a
        sample without such cells. ``attrs["n_cells"]`` is a dict of the cells counted per sample.

    Raises
    ------
    InvalidInputError
        The lengths differ, or no cell is left.

    Examples
    --------
    >>> from fcm_estimators.metrics import population_shares
    >>> shares = population_shares(["T", "T", "B", "blast"], leave_out=["blast"])
    >>> shares.round(2).to_dict("records")
    [{'B': 0.33, 'T': 0.67}]
    """
    values = per_cell(labels, "labels")
    sample, names = samples_of(groups, len(values))
    kept = ~pd.isna(values) & ~np.isin(values.astype(str), [str(name) for name in leave_out])
    if not kept.any():
        raise InvalidInputError("No cell has a population that is not left out.")
    counted = pd.crosstab(
        pd.Categorical(names[sample[kept]], categories=names.unique()),
        values[kept].astype(str),
        dropna=False,
    ).reindex(names, fill_value=0)
    n_cells = counted.sum(axis=1)
    shares = counted.div(n_cells.where(n_cells > 0), axis=0)
    shares = shares.rename_axis(index="sample", columns=None)
    shares.attrs["n_cells"] = {name: int(n) for name, n in n_cells.items()}
    return shares


def composition_table(shares: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """Compare the shares of populations with the range of reference samples.

    A share outside of the range is a reason to look, no finding: sampling, haemodilution, therapy
    and another panel move it too. Whether marrow was diluted by blood cannot be concluded from
    training samples; it takes reference ranges of marrow.

    Parameters
    ----------
    shares : DataFrame of shape (S, P)
        Of :func:`population_shares`.
    reference : DataFrame
        Shares of reference samples, such as those of training, with the same cells left out; their
        least and largest are the range. Or a range that the laboratory gives: index the
        populations, columns ``low`` and ``high``.

    Returns
    -------
    DataFrame
        A row per sample and population: ``sample``, ``population``, ``share``, ``low``, ``high``,
        ``n_reference`` (samples; 0 for a range that is given) and ``state``: "within", "below",
        "above"; "no reference" for populations that the reference lacks. Where the 95 % counting
        interval of the share reaches the range, it is within.

    Raises
    ------
    InvalidInputError
        The reference is empty, is of fewer than 5 samples, or a limit is not between 0 and 1.

    Examples
    --------
    >>> import pandas as pd
    >>> from fcm_estimators.metrics import composition_table, population_shares
    >>> shares = population_shares(["T"] * 900 + ["B"] * 100)
    >>> lab = pd.DataFrame({"low": [0.2, 0.3], "high": [0.4, 0.95]}, index=["B", "T"])
    >>> composition_table(shares, lab)["state"].tolist()
    ['below', 'within']
    """
    given = {"low", "high"} <= set(reference)
    limits = reference if given else _range_of(reference)
    low, high = limits["low"].astype(float), limits["high"].astype(float)
    if not ((low >= 0) & (low <= high) & (high <= 1)).all():
        raise InvalidInputError("Limits of a share must lie between 0 and 1, low below high.")
    ranges = {name: (low.loc[name], high.loc[name]) for name in limits.index}
    n_cells = shares.attrs.get("n_cells", {})
    rows = []
    for sample, row in shares.iterrows():
        n = int(n_cells.get(sample, 0))
        for population, share in row.items():
            least, most = ranges.get(population, (np.nan, np.nan))
            rows.append(
                {
                    "sample": sample,
                    "population": population,
                    "share": share,
                    "low": least,
                    "high": most,
                    "n_reference": 0 if given else len(reference),
                    "state": _state(share, n, least, most),
                }
            )
    return pd.DataFrame(rows)


def _range_of(reference: pd.DataFrame) -> pd.DataFrame:
    if len(reference) < 5:
        raise InvalidInputError(
            f"The reference is of {len(reference)} samples; a range needs 5 or more. Give a range "
            "with columns low and high if you have one."
        )
    values = reference.apply(pd.to_numeric, errors="coerce")
    if values.isna().all().any():
        empty = list(values.columns[values.isna().all()])
        raise InvalidInputError(f"The reference has no shares of {listed(empty)}.")
    return pd.DataFrame({"low": values.min(), "high": values.max()})


def _state(share: float, n: int, low: float, high: float) -> str:
    if np.isnan(share):
        return "no cells"
    if np.isnan(low):
        return "no reference"
    least, most = (share, share)
    if n:
        least, most = (float(end) for end in clopper_pearson(round(share * n), n))
    return "below" if most < low else "above" if least > high else "within"
