"""Cells and populations by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from fcm_estimators._checks import listed
from fcm_estimators.exceptions import InvalidInputError, MissingKeyError


def target_cells(X: Any, cells: Any, n_rows: int) -> np.ndarray:
    """Mask of the chosen cells: all, a mask, an obs column of booleans, or one cell."""
    if cells is None:
        return np.ones(n_rows, dtype=bool)
    mask = np.zeros(n_rows, dtype=bool)
    if isinstance(cells, str):
        if not isinstance(X, AnnData):
            raise InvalidInputError(f"cells={cells!r} names an obs column, but X is no AnnData.")
        if cells in X.obs:
            values = X.obs[cells]
            if values.isna().any() or not values.isin([True, False]).all():
                raise InvalidInputError(
                    f"obs column {cells!r} must be True or False for every cell."
                )
            return values.to_numpy().astype(bool)
        if cells in X.obs_names:
            mask[X.obs_names.get_loc(cells)] = True
            return mask
        raise MissingKeyError(
            f"cells={cells!r} is neither an obs column ({listed(X.obs.columns)}) nor a cell's name."
        )
    if isinstance(cells, (int, np.integer)) and not isinstance(cells, bool):
        if not -n_rows <= cells < n_rows:
            raise InvalidInputError(f"cells={cells}: there are {n_rows} cells.")
        mask[cells] = True
        return mask
    values = np.asarray(cells)
    if values.dtype != bool or values.shape != (n_rows,):
        raise InvalidInputError(
            f"cells must be a bool per cell ({n_rows}), an obs column, a cell's name or number; "
            f"got {values.dtype} of shape {values.shape}."
        )
    return values


def population_labels(adata: AnnData, population: str) -> np.ndarray:
    """Population of each cell from an obs column or a gate; missing where unknown."""
    if population in adata.obs:
        return adata.obs[population].astype(object).to_numpy()
    gates = adata.obsm.get("gates")
    if isinstance(gates, pd.DataFrame) and population in gates:
        inside = gates[population].to_numpy(dtype=bool)
        return np.where(inside, population, f"not {population}").astype(object)
    present: Sequence[str] = [
        *adata.obs.columns,
        *(gates if isinstance(gates, pd.DataFrame) else []),
    ]
    raise MissingKeyError(f"population {population!r} was not found; there is {listed(present)}.")
