"""Where results are written in an AnnData, and in which form.

Everything written survives ``write_h5ad`` and ``write_zarr``: no None, no nested lists, names of
markers and classes as columns and never as keys.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from fcm_estimators.exceptions import InvalidInputError

NOT_ANALYSED = "not analysed"


def require_writable(adata: Any, key: str) -> None:
    """Raise InvalidInputError unless results can be written into ``adata`` under ``key``."""
    if not isinstance(adata, AnnData):
        raise InvalidInputError(
            f"Results are written into an AnnData, got {type(adata).__name__}. Use predict or "
            "predict_proba for other kinds of X."
        )
    if adata.is_view:
        raise InvalidInputError(
            "This AnnData is a view of another one; writing would not reach it. Make it a copy "
            "first: adata = adata.copy()."
        )
    require_key_name(key)


def require_key_name(key: str) -> None:
    """Raise InvalidInputError unless files can hold ``key``."""
    if not key or "/" in key:
        raise InvalidInputError(
            f"key_added={key!r}: a key needs at least one character and no '/', which h5ad "
            "files cannot hold."
        )


def record(params: Mapping[str, Any], **entries: Any) -> dict[str, Any]:
    """Run record for ``uns``: parameters as one JSON text, the rest as arrays, text or numbers.

    Entries that are None are left out.
    """
    out: dict[str, Any] = {"params": json.dumps(params, default=str, sort_keys=True)}
    for name, value in entries.items():
        if value is None:
            continue
        if isinstance(value, Sequence) and not isinstance(value, str):
            value = np.array([str(v) for v in value], dtype=object)
        out[name] = value
    return out


def column_names(classes: Sequence[Any] | np.ndarray) -> list[str]:
    """Classes as columns of a table; InvalidInputError for those that files cannot hold."""
    names = [str(c) for c in classes]
    with_slash = [name for name in names if "/" in name]
    if with_slash:
        raise InvalidInputError(
            f"Class name(s) {with_slash} hold '/', which h5ad files cannot have in column names. "
            "Rename those labels before fit."
        )
    return names


def write_classes(
    adata: AnnData,
    key: str,
    *,
    classes: np.ndarray,
    predicted: np.ndarray,
    probabilities: np.ndarray,
    run: dict[str, Any],
) -> None:
    """Write class, probabilities and run record.

    Raises InvalidInputError for class names with "/". Sets the following fields:

    ``adata.obs[key]`` : Categorical
        Class; categories in the order of ``classes``, then "not analysed" where cells are.
    ``adata.obsm[f"{key}_proba"]`` : DataFrame, float32, columns = classes
        NaN for cells not analysed.
    ``adata.uns[key]`` : dict
        The run record.
    """
    categories = column_names(classes)
    codes = np.where(predicted < 0, len(categories), predicted)
    if (predicted < 0).any():
        categories.append(NOT_ANALYSED)
    labels = pd.Categorical(np.array(categories, dtype=object)[codes], categories=categories)
    frame = pd.DataFrame(
        probabilities.astype(np.float32),
        index=adata.obs_names,
        columns=[str(c) for c in classes],
    )
    adata.obs[key] = labels
    adata.obsm[f"{key}_proba"] = frame
    adata.uns[key] = run
    # Colours of an earlier run may have another length than the categories.
    adata.uns.pop(f"{key}_colors", None)


def write_gradient(
    adata: AnnData, key: str, *, gradient: np.ndarray, columns: Sequence[int], run: dict[str, Any]
) -> None:
    """Write gradients, their length and strongest marker, and the run record.

    Parameters
    ----------
    adata : AnnData
    key : str
    gradient : ndarray of shape (n_cells, n_markers)
        NaN rows for cells not analysed.
    columns : sequence of int
        Column of ``adata`` of each marker.
    run : dict
        The run record.
    """
    whole, norm, strongest = described_gradient(gradient, columns, adata.n_vars)
    names = adata.var_names[list(columns)]
    adata.layers[key] = whole
    adata.obs[f"{key}_norm"] = norm
    adata.obs[f"{key}_marker"] = pd.Categorical.from_codes(strongest, categories=names)
    adata.uns[key] = run
    adata.uns.pop(f"{key}_marker_colors", None)


def described_gradient(
    gradient: np.ndarray, columns: Sequence[int] | np.ndarray, n_vars: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What is written of gradients.

    Parameters
    ----------
    gradient : ndarray of shape (n_cells, n_markers)
    columns : sequence of int
        Column of each marker.
    n_vars : int

    Returns
    -------
    whole : float32 ndarray of shape (n_cells, n_vars)
        NaN for other columns.
    norm : float32 ndarray of shape (n_cells,)
    strongest : int ndarray of shape (n_cells,)
        Marker with the largest absolute entry, -1 where the gradient is zero or NaN.
    """
    whole = np.full((len(gradient), n_vars), np.nan, dtype=np.float32)
    whole[:, columns] = gradient
    norm = np.sqrt(np.square(gradient.astype(np.float64)).sum(1))
    strongest = np.abs(np.nan_to_num(gradient)).argmax(1)
    return whole, norm.astype(np.float32), np.where(norm > 0, strongest, -1)


def write_attention(
    adata: AnnData,
    key: str,
    *,
    layer: int,
    heads: Sequence[str],
    received: np.ndarray,
    assigned: np.ndarray,
    none: str,
    run: dict[str, Any],
) -> None:
    """Write received attention, assigned heads and the run record.

    Parameters
    ----------
    adata : AnnData
    key : str
    layer : int
    heads : sequence of str
        Names of the columns.
    received : ndarray of shape (n_cells, n_heads)
    assigned : ndarray of int of shape (n_cells,)
        Head number, -1 for none, -2 for cells not analysed.
    none : str
        Category of cells that no head looks at more than at others.
    run : dict
        The run record.
    """
    categories = [*heads, none]
    codes = np.where(assigned == -1, len(heads), assigned)
    labels = [None if code < 0 else categories[code] for code in codes]
    adata.obsm[f"{key}_layer{layer}"] = pd.DataFrame(
        received.astype(np.float32), index=adata.obs_names, columns=list(heads)
    )
    adata.obs[f"{key}_head"] = pd.Categorical(labels, categories=categories)
    adata.uns[key] = run
    adata.uns.pop(f"{key}_head_colors", None)


def write_gates(
    adata: AnnData,
    key: str,
    *,
    membership: pd.DataFrame,
    gates: dict[str, np.ndarray],
    run: dict[str, Any],
) -> None:
    """Write membership, polygons and the run record.

    Parameters
    ----------
    adata : AnnData
    key : str
    membership : DataFrame of shape (n_cells, n_gates)
    gates : dict of ndarray
        As GatingTree.to_uns makes them.
    run : dict
        The run record.
    """
    adata.obsm[f"{key}_membership"] = membership
    adata.uns[key] = {**run, "gates": gates}
