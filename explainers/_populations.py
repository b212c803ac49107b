"""Cells, populations and embeddings by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from fcm_estimators.exceptions import InvalidInputError, MissingKeyError, listed, require_key
from fcm_estimators.inference import CellData, CellStore, as_flags
from fcm_estimators.keys import EXPERT_GATES


def target_cells(X: CellData, cells: Any, n_rows: int) -> np.ndarray:
    """Mask of the chosen cells, given as None (all), a mask, an obs column, or one cell."""
    if cells is None:
        return np.ones(n_rows, dtype=bool)
    mask = np.zeros(n_rows, dtype=bool)
    if isinstance(cells, str):
        if not isinstance(X, AnnData):
            raise InvalidInputError(f"cells={cells!r} names an obs column, but X is no AnnData.")
        if cells in X.obs:
            return as_flags(X.obs[cells], f"The obs column {cells!r}")
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


def chosen_cells(source: AnnData | CellStore, cells: Any) -> np.ndarray:
    """Mask of the chosen cells of an AnnData or a store; in a store, by an obs column only."""
    if isinstance(source, CellStore):
        return source.flags(cells)
    return target_cells(source, cells, source.n_obs)


def embedding_of(adata: AnnData, basis: str) -> np.ndarray:
    """The embedding ``X_{basis}``. A MissingKeyError lists those that exist."""
    present = [name[2:] for name in adata.obsm.keys() if name.startswith("X_")]  # noqa: SIM118
    require_key(basis, present, "the embedding")
    return np.asarray(adata.obsm[f"X_{basis}"])


def population_labels(adata: AnnData, population: str) -> np.ndarray:
    """Population of each cell from an obs column or a gate; None if unknown."""
    if population in adata.obs:
        column = adata.obs[population]
        # None, because pandas' NA cannot be compared with a name.
        labels: np.ndarray = column.astype(object).where(column.notna(), None).to_numpy()
        return labels
    gates = adata.obsm.get(EXPERT_GATES)
    if isinstance(gates, pd.DataFrame) and population in gates:
        inside = gates[population].astype("boolean")
        labels = np.where(inside.fillna(False), population, f"not {population}").astype(object)
        labels[inside.isna().to_numpy()] = None
        return labels
    present: Sequence[str] = [
        *adata.obs.columns,
        *(gates if isinstance(gates, pd.DataFrame) else []),
    ]
    raise MissingKeyError(f"population {population!r} was not found; there is {listed(present)}.")
