"""Write h5ad files on disks that may be full."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
from anndata import AnnData

from fcm_estimators._files import reserve

# For the groups and attributes of a file, and of each element.
MARGIN, _PER_ELEMENT = 4 << 20, 4096
# A text in HDF5: its reference, the head of its heap object, and padding.
_PER_TEXT = 48


def write_h5ad(adata: AnnData, path: Path) -> None:
    """Write a new h5ad file, without compression.

    Raises
    ------
    OSError
        There is no space for it, or it cannot be written.
    """
    adata.strings_to_categoricals()
    parts = [getattr(adata, n) for n in ("layers", "obsm", "varm", "obsp", "varp", "uns")]
    needed = sum(map(_n_bytes, [adata.X, adata.obs, adata.var, *map(dict, parts)]))
    with h5py.File(path, "w") as file:
        reserve(file.id.get_vfd_handle(), needed + needed // 10 + MARGIN)
        anndata.io.write_elem(file, "/", adata)
    trim(path)


def trim(path: Path) -> None:
    """Give back the space that was reserved for a file and not used; HDF5 does it on opening."""
    with h5py.File(path, "r+"):
        pass


def _n_bytes(value: Any) -> int:
    """Space that an element needs in a file, or more."""
    if isinstance(value, pd.DataFrame):
        return sum(_n_bytes(value[name]) for name in value) + _n_bytes(value.index)
    if isinstance(value, Mapping):
        return sum(map(_n_bytes, value.values())) + _PER_ELEMENT
    if isinstance(value, pd.Series | pd.Index):
        value = value.array
    if isinstance(value, pd.Categorical):
        return int(value.codes.nbytes) + _n_bytes(value.categories)
    if hasattr(value, "indptr"):
        return sum(map(_n_bytes, (value.data, value.indices, value.indptr)))
    if getattr(value, "dtype", None) is not None and value.dtype.kind in "OUST":
        texts = np.asarray(value, dtype=object).ravel()
        longest = max((len(str(text)) for text in texts[:: max(len(texts) // 1000, 1)]), default=0)
        return len(texts) * (4 * longest + _PER_TEXT) + _PER_ELEMENT
    return int(getattr(value, "nbytes", len(str(value)))) + _PER_ELEMENT
