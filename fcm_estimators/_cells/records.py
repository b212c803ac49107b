"""What a run record in ``uns`` says of how sure a classifier is."""

from __future__ import annotations

import numpy as np
import pandas as pd

from fcm_estimators._types import Entries
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.metrics import composition_table

# A share of unknown cells is unusual above both of these: twice the false alarms for which the
# threshold is chosen, and so many times the largest share in a training sample.
MANY_UNKNOWN, BEYOND_USUAL_UNKNOWN = 0.02, 1.5
_COLUMNS = {
    "sample": str,
    "class": str,
    "share": float,
    "lowest": float,
    "highest": float,
    "possible": float,
    "uncertain": bool,
}
_SHARES = ("low", "high", "n_samples")


def members_table(record: Entries) -> pd.DataFrame:
    """Shares by the members, a row per sample and class; no rows without members.

    Raises
    ------
    InvalidInputError
        The record is damaged.
    """
    found = record.get("members")
    if found is None:
        return pd.DataFrame(columns=list(_COLUMNS))
    try:
        return pd.DataFrame({name: np.asarray(found[name]) for name in _COLUMNS}).astype(_COLUMNS)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InvalidInputError(
            f"The run record's 'members' is damaged ({error}). Annotate the file again."
        ) from error


def columns_of_shares(table: pd.DataFrame) -> Entries:
    """Ranges of the shares of classes, as a store can hold them."""
    return {"class": table.index.to_numpy(str), **{k: table[k].to_numpy() for k in _SHARES}}


def shares_table(record: Entries) -> pd.DataFrame | None:
    """Ranges of the shares of classes in the training; None if the model has none.

    Raises
    ------
    InvalidInputError
        The record is damaged.
    """
    found = record.get("class_shares")
    if found is None:
        return None
    try:
        columns = {name: np.asarray(found[name], dtype=float) for name in _SHARES}
        return pd.DataFrame(columns, index=np.asarray(found["class"]).astype(str))
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InvalidInputError(
            f"The run record's 'class_shares' is damaged ({error}). Annotate the file again."
        ) from error


def shares_against(counts: pd.DataFrame, limits: pd.DataFrame) -> pd.DataFrame:
    """Compare the shares of classes with those of the training samples.

    Parameters
    ----------
    counts : DataFrame
        Cells of each class, a row per sample, the columns those of the index of ``limits``.
    limits : DataFrame
        Of :func:`shares_table`.

    Returns
    -------
    DataFrame
        As of :func:`~fcm_estimators.metrics.composition_table`.
    """
    n_cells = counts.sum(axis=1)
    shares = counts.div(n_cells.where(n_cells > 0), axis=0)
    shares.attrs["n_cells"] = n_cells.to_dict()
    return composition_table(shares, limits)


def unusual_share(usual: float) -> float:
    """Share of unknown cells above which a sample is warned of.

    Parameters
    ----------
    usual : float
        Largest share in a training sample.
    """
    return max(MANY_UNKNOWN, BEYOND_USUAL_UNKNOWN * usual)


def was_tested(record: Entries) -> bool:
    """Whether the model was tested with the markers that the data have."""
    return bool(record.get("tested", True))


def uncertain_samples(record: Entries) -> dict[str, bool]:
    """Whether the members disagree on a class, by sample."""
    table = members_table(record)
    found = table.groupby("sample")["uncertain"].any()
    return {str(sample): bool(value) for sample, value in found.items()}
