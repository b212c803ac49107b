"""Write h5ad files on disks that may be full."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
from anndata import AnnData
from anndata.experimental import write_dispatched

from fcm_estimators._files import reserve
from fcm_estimators._types import Entries

# For the groups and attributes of a file, and of each element.
MARGIN, _PER_ELEMENT = 4 << 20, 4096
# A text in HDF5: its reference, the head of its heap object, and padding.
_PER_TEXT = 48


def write_h5ad(adata: AnnData, path: Path) -> None:
    """Write a new h5ad file, without compression, the names of cells once for all tables.

    Raises
    ------
    OSError
        There is no space for it, or it cannot be written.
    """
    adata.strings_to_categoricals()
    parts = [getattr(adata, n) for n in ("obsm", "varm", "obsp", "varp", "uns")]
    raw = [] if adata.raw is None else [adata.raw.X]
    needed = sum(
        map(_n_bytes, [adata.X, *raw, adata.obs, adata.var, _own_layers(adata), *map(dict, parts)])
    )
    names, place = adata.obs_names.to_numpy(), f"/obs/{adata.obs_names.name or '_index'}"

    def linked(write: Any, group: h5py.Group, key: str, element: Any, **options: Any) -> None:
        # From pandas 3 on, each table gives a view of its own, and text may be a group.
        shared = isinstance(element, np.ndarray) and element.shape == names.shape
        written = group.file.get(place)
        if shared and isinstance(written, h5py.Dataset) and np.may_share_memory(element, names):
            group[key] = written  # a hard link to the same values
        else:
            write(group, key, element, dataset_kwargs=options["dataset_kwargs"])

    with h5py.File(path, "w") as file:
        reserve(file.id.get_vfd_handle(), needed + needed // 10 + MARGIN)
        write_dispatched(file, "/", adata, linked)
    trim(path)


def write_h5ad_by_block(blocks: Iterable[AnnData], n_obs: int, path: Path) -> None:
    """Write a new h5ad file of cells that come block by block, as :func:`write_h5ad` does.

    Parameters
    ----------
    blocks : iterable of AnnData
        They have the same dense X and layers, ``var`` and ``uns``, the same columns of ``obs``
        with the same categories, and nothing else.
    n_obs : int
        Number of cells in all.
    path : Path

    Raises
    ------
    OSError
        There is no space for it, or it cannot be written.
    """
    blocks = iter(blocks)
    first = next(blocks)
    # AnnData writes one cell, and with it all that is not of cells.
    one = first[:1].copy()
    one.obs = first.obs.iloc[:1]  # with all categories
    write_h5ad(one, path)
    with h5py.File(path, "r+") as file:
        needed = sum(map(_n_bytes, [first.X, _own_layers(first), first.obs])) / first.n_obs * n_obs
        size = path.stat().st_size + int(1.1 * needed) + MARGIN
        reserve(file.id.get_vfd_handle(), size)
        places = {name: _lengthened(file, name, n_obs) for name in _of_cells(first)}
        done = 0
        for block in chain([first], blocks):
            for name, values in _of_cells(block).items():
                places[name][done : done + block.n_obs] = values
            done += block.n_obs
    trim(path)


def _own_layers(adata: AnnData) -> Entries:
    """Layers without X, which anndata 0.13 has among them, as None."""
    return {name: values for name, values in adata.layers.items() if name is not None}


def _of_cells(adata: AnnData) -> dict[str, np.ndarray]:
    """Arrays with an entry for each cell, by their place in a file."""
    obs = adata.obs
    found = {"X": adata.X, **{f"layers/{name}": v for name, v in _own_layers(adata).items()}}
    found[f"obs/{obs.index.name or '_index'}"] = obs.index.to_numpy(dtype=object)
    for name in obs:
        if isinstance(obs[name].dtype, pd.CategoricalDtype):
            found[f"obs/{name}/codes"] = obs[name].cat.codes.to_numpy()
        else:
            found[f"obs/{name}"] = obs[name].to_numpy()
    return found


def _lengthened(file: h5py.File, name: str, n_rows: int) -> h5py.Dataset:
    """A new dataset in the place of a shorter one, without its values."""
    short = file[name]
    shape, dtype, attributes = (n_rows, *short.shape[1:]), short.dtype, dict(short.attrs)
    del file[name]
    made = file.create_dataset(name, shape, dtype)
    made.attrs.update(attributes)
    return made


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
