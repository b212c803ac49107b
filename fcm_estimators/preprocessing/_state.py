"""Read what preprocessing needs from an AnnData, and write a processed copy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.sparse import issparse

from fcm_estimators._checks import require_finite
from fcm_estimators.exceptions import InvalidInputError, MarkerMismatchError
from fcm_estimators.io.cells import copied
from fcm_estimators.io.kinds import is_compensated

Rows: TypeAlias = slice | np.ndarray
Function: TypeAlias = Callable[[np.ndarray], np.ndarray]

# Their values, in float64, stay in the cache.
_ROWS_AT_ONCE = 1 << 14
RAW_LAYER = "raw"
UNTRANSFORMED = "none"


def check_adata(adata: object) -> None:
    """Raise InvalidInputError unless ``adata`` is an in-memory AnnData of dense real numbers."""
    if not isinstance(adata, AnnData):
        raise InvalidInputError(
            f"Expected an AnnData (cells x markers), got {type(adata).__name__}. "
            "Wrap an array: anndata.AnnData(X, var=pandas.DataFrame(index=markers))."
        )
    if adata.isbacked:
        raise InvalidInputError("The AnnData is backed by a file. Load it with adata.to_memory().")
    X = adata.X
    if issparse(X):
        raise InvalidInputError(
            "adata.X is sparse; expected a dense array. Set adata.X = adata.X.toarray()."
        )
    if not isinstance(X, np.ndarray) or X.dtype.kind not in "fiub":
        found = f"{type(X).__name__} of {getattr(X, 'dtype', 'no dtype')}"
        raise InvalidInputError(f"adata.X is {found}; expected a numpy array of real numbers.")
    if not adata.var_names.is_unique:
        names = sorted(set(adata.var_names[adata.var_names.duplicated()]))
        raise InvalidInputError(
            f"Marker names occur more than once: {names}. Rename them in adata.var_names."
        )


def channels(adata: AnnData) -> pd.Series:
    """Channel name ($PnN) of every marker; the marker's name where no channel is recorded."""
    names = adata.var.get("channel", adata.var_names)
    return pd.Series(np.asarray(names, dtype=object), index=adata.var_names).astype(str)


def recorded_transforms(adata: AnnData) -> pd.Series:
    """Recorded transform of every marker, ``"none"`` where nothing is recorded."""
    if "transform" not in adata.var:
        return pd.Series(UNTRANSFORMED, index=adata.var_names, dtype=object)
    # A saved h5ad file has a categorical column, which takes no new values.
    recorded: pd.Series = adata.var["transform"].astype(str).astype(object)
    return recorded


def recorded_compensation(adata: AnnData) -> pd.Series:
    """Whether each marker is compensated, by the record or by the name of its channel."""
    exported = channels(adata).map(is_compensated).astype(bool)
    if "compensated" not in adata.var:
        return exported
    recorded: pd.Series = adata.var["compensated"].astype(bool)
    return recorded | exported


def require_markers(adata: AnnData, markers: Sequence[str]) -> None:
    """Raise MarkerMismatchError unless all ``markers`` are in ``adata.var_names``."""
    missing = [m for m in markers if m not in adata.var_names]
    if missing:
        raise MarkerMismatchError(
            f"Markers {missing} are not in the data; available: {list(adata.var_names)}. "
            "Rename adata.var_names or choose other markers."
        )


def finite_column(adata: AnnData, marker: str) -> np.ndarray:
    """Values of a marker, float64; InvalidInputError if not finite."""
    values = np.asarray(adata.X[:, adata.var_names.get_loc(marker)], dtype=np.float64)
    require_finite(values[:, None], [marker])
    return values


def processed_copy(
    adata: AnnData,
    markers: Sequence[str],
    parts: Sequence[tuple[Rows, Function]],
    *,
    transforms: dict[str, str] | None = None,
    compensated: bool | None = None,
) -> AnnData:
    """Copy ``adata`` with new float32 values of ``markers``, and record their state.

    Sets the fields that :func:`process` sets, in the copy.

    Raises
    ------
    InvalidInputError
        A value is not finite, before or after.
    """
    out = copied(adata)
    process(out, markers, parts, transforms=transforms, compensated=compensated)
    return out


def process(
    adata: AnnData,
    markers: Sequence[str],
    parts: Sequence[tuple[Rows, Function]],
    *,
    transforms: dict[str, str] | None = None,
    compensated: bool | None = None,
) -> None:
    """Replace values of ``markers`` by float32 values, and record their state.

    Sets the following fields: ``X`` (float32), ``layers["raw"]`` (float32, unless it exists),
    ``var["transform"]`` and ``var["compensated"]``.

    Parameters
    ----------
    adata : AnnData
        Changed in place, also if an error occurs.
    markers : sequence of K str
    parts : sequence of (slice or ndarray of int, callable)
        Rows, and a function from their values, (n, K) in float64 and Fortran order, to the new
        ones. It is called with some of the rows at a time.
    transforms, compensated
        State to record for the markers.
    """
    columns = adata.var_names.get_indexer(list(markers))
    _require_finite_values(adata, markers)
    if adata.X.dtype != np.float32:
        adata.X = as_float32(adata.X)
    if RAW_LAYER not in adata.layers:
        adata.layers[RAW_LAYER] = adata.X.copy()
    x = adata.X
    for rows, function in parts:
        for block in _blocks(rows, adata.n_obs):
            values = np.ascontiguousarray(x[block][:, columns].T, dtype=np.float64)
            x[_cells(block, columns)] = as_float32(function(values.T))
    state, flags = recorded_transforms(adata), recorded_compensation(adata)
    if transforms is not None:
        state.update(pd.Series(transforms, dtype=object))
    if compensated is not None:
        flags[list(markers)] = compensated
    adata.var["compensated"] = flags.to_numpy(dtype=bool)
    adata.var["transform"] = state


def _blocks(rows: Rows, n_rows: int) -> Iterator[Rows]:
    """Some of the rows at a time; a slice if they follow each other."""
    if isinstance(rows, slice):
        first, last, _ = rows.indices(n_rows)
    else:
        first, last = (int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, 0)
        if last - first != len(rows):
            yield from (rows[i : i + _ROWS_AT_ONCE] for i in range(0, len(rows), _ROWS_AT_ONCE))
            return
    for start in range(first, last, _ROWS_AT_ONCE):
        yield slice(start, min(start + _ROWS_AT_ONCE, last))


def _cells(rows: Rows, columns: np.ndarray) -> Any:
    return (rows, columns) if isinstance(rows, slice) else np.ix_(rows, columns)


def _require_finite_values(adata: AnnData, markers: Sequence[str]) -> None:
    columns = adata.var_names.get_indexer(list(markers))
    if not all(np.isfinite(adata.X[block]).all() for block in _blocks(slice(None), adata.n_obs)):
        require_finite(adata.X[:, columns], markers)


def as_float32(values: np.ndarray) -> np.ndarray:
    """Copy as float32; InvalidInputError if a finite value would become infinite."""
    with np.errstate(over="ignore"):
        result = np.array(values, dtype=np.float32)
    lost = np.isinf(result) & np.isfinite(values)
    if lost.any():
        raise InvalidInputError(
            f"{np.count_nonzero(lost)} values (such as {values[lost][0]:g}) exceed the range of "
            "float32, the type of processed data. Check the units of the data."
        )
    return result
