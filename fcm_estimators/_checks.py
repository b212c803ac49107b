"""Checks shared by all code that reads a user's data."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from fcm_estimators.exceptions import InvalidInputError, MarkerMismatchError
from fcm_estimators.exceptions import listed as listed
from fcm_estimators.exceptions import require_key as require_key


def marker_positions(
    wanted: Sequence[str], present: Sequence[str], owner: str = "this model"
) -> np.ndarray:
    """Position of each wanted marker among those present, matched by exact name.

    Raises
    ------
    InvalidInputError
        If a name is present more than once.
    MarkerMismatchError
        If a wanted marker is absent. The message suggests similar names; they are not used.
    """
    repeated = (
        sorted({name for name in present if present.count(name) > 1})
        if len(set(present)) < len(present)
        else []
    )
    if repeated:
        raise InvalidInputError(
            f"Marker names must be unique, but {listed(repeated)} occur(s) more than once. "
            "Rename them (adata.var_names_make_unique()) so that each name is one channel."
        )
    position = {name: i for i, name in enumerate(present)}
    missing = [name for name in wanted if name not in position]
    if missing:
        hints = []
        for name in missing:
            close = [p for p in present if _bare(p) == _bare(name)]
            close = close or difflib.get_close_matches(name, present, n=1)
            if close:
                hints.append(f"marker_aliases={{{close[0]!r}: {name!r}}}")
        advice = f" If they are the same marker, pass {' or '.join(hints)}." if hints else ""
        raise MarkerMismatchError(
            f"The data lack {len(missing)} of the {len(wanted)} markers that {owner} needs: "
            f"{listed(missing)}. The data have {listed(present)}.{advice}"
        )
    return np.array([position[name] for name in wanted], dtype=np.intp)


def _bare(name: str) -> str:
    return "".join(c for c in name.lower() if c.isalnum())


def require_finite(x: np.ndarray, markers: Sequence[str]) -> None:
    """Raise InvalidInputError that names each marker with NaN or infinite values."""
    # The sum is finite if all entries are, unless it overflows. It takes one pass and no mask.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.isfinite(x.sum(dtype=np.float64)):
            return
    bad = []
    for j, marker in enumerate(markers):
        n_nan, n_inf = int(np.isnan(x[:, j]).sum()), int(np.isinf(x[:, j]).sum())
        if n_nan or n_inf:
            bad.append(f"{marker!r} ({n_nan} NaN, {n_inf} inf)")
    if bad:
        raise InvalidInputError(
            f"X holds values that are not finite (NaN or infinity) in {len(bad)} marker(s): "
            f"{', '.join(bad[:20])}. Remove those cells or repair the values first."
        )


def nullable_flags(values: Any, what: str, hint: str = "") -> pd.arrays.BooleanArray:
    """Values that are True, False or missing (or 1, 0, NaN).

    ``what`` names them in the message, ``hint`` says what to do.

    Raises
    ------
    InvalidInputError
        Another value.
    """
    column = pd.Series(values)
    unknown = column.isna().to_numpy()
    known = column[~unknown]
    odd = known[~known.isin([0, 1])].unique()
    if len(odd):
        raise InvalidInputError(
            f"{what} holds {listed(odd, 5)}; expected True or False (or 1 and 0). {hint}".rstrip()
        )
    flags = np.zeros(len(column), dtype=bool)
    flags[~unknown] = known.astype(bool)
    return pd.arrays.BooleanArray(flags, unknown)


def as_flags(values: Any, what: str, hint: str = "") -> np.ndarray:
    """Values that are True or False (or 1 and 0) as bool, as :func:`nullable_flags`.

    Raises
    ------
    InvalidInputError
        A missing value, or another one.
    """
    flags = nullable_flags(values, what, hint)
    n_missing = int(flags.isna().sum())
    if n_missing:
        raise InvalidInputError(
            f"{what} must be True or False for every cell; it is missing (NaN) for {n_missing} of "
            f"{len(flags)}. Decide whether these cells count and fill in the values."
        )
    return np.asarray(flags.to_numpy(dtype=bool))


def sample_codes(ids: Any, where: object) -> tuple[np.ndarray, pd.Index]:
    """Number of the sample of each cell, and the samples by first appearance.

    Raises
    ------
    InvalidInputError
        A cell without sample; ``where`` says where the ids come from.
    """
    codes, names = pd.factorize(ids)
    n_missing = int((codes < 0).sum())
    if n_missing:
        raise InvalidInputError(
            f"{n_missing} of {len(codes)} cells have no sample id (NaN) in {where!r}. Every cell "
            "belongs to one; remove those cells or fill the column."
        )
    return codes, pd.Index(names, name="sample")


def rows_by_sample(adata: AnnData, sample_key: str | None) -> dict[str, np.ndarray]:
    """Rows of each sample, by first appearance; "all" is one sample where there is no key.

    Raises
    ------
    MissingKeyError, InvalidInputError
        No such column of ``obs``; a cell without sample.
    """
    if sample_key is None:
        return {"all": np.arange(adata.n_obs)}
    require_key(sample_key, adata.obs.columns, "sample_key: the obs column")
    codes, names = sample_codes(adata.obs[sample_key], sample_key)
    return {str(name): np.flatnonzero(codes == i) for i, name in enumerate(names)}
