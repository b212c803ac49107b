"""An AnnData on disk, h5ad or zarr, read and written block by block.

Opening a store with AnnData reads the names of all cells, about 0.1 GB per million. This module
uses the groups of the store directly, in the format that AnnData documents.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import anndata
import h5py
import numpy as np
import pandas as pd
import zarr
from numpy.typing import DTypeLike

from fcm_estimators._cells.h5ad import MARGIN, trim
from fcm_estimators._cells.samples import model_names
from fcm_estimators._cells.stored_values import Rows, StoredValues, readable
from fcm_estimators._checks import (
    as_flags,
    gate_called,
    listed,
    marker_positions,
    require_key,
)
from fcm_estimators._files import reserve
from fcm_estimators._types import Element, Entries, Group
from fcm_estimators.colours import named
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.keys import EXPERT_GATES

_GROUPS = (h5py.Group, zarr.Group)
# Number of rows that are read from a store at once.
BLOCK = 65_536


class CellStore:
    """An AnnData on disk, open for reading by chunk and for adding results.

    Use :func:`open_store` to open one.

    Parameters
    ----------
    root : h5py.File or zarr.Group
    path : Path
    """

    def __init__(self, root: Group, path: Path) -> None:
        self.root, self.path = root, path
        self._added: list[tuple[Group, str]] = []
        with readable(path):
            for part in ("obs", "var"):
                if part not in root or "_index" not in root[part].attrs:
                    raise InvalidInputError(
                        f"{path} holds no AnnData: {part!r} is missing or is not a table. Found "
                        f"{listed(root)}."
                    )
            self._index = str(root["obs"].attrs["_index"])
            names = root["obs"][self._index]
            # anndata 0.13 writes texts as a group of values and a mask.
            values = cast(Element, names["values"] if isinstance(names, _GROUPS) else names)
            (n_obs,) = values.shape
            self.n_obs = int(n_obs)
            self.var: pd.DataFrame = anndata.io.read_elem(root["var"])
            order = [str(name) for name in root["obs"].attrs["column-order"]]
            kinds = {name: type(root[name]) for name in ("obsm", "layers", "uns") if name in root}
        if any(name not in root["obs"] for name in order):
            raise InvalidInputError(f"{path} is damaged: obs lacks some of its columns {order}.")
        if wrong := [n for n, kind in kinds.items() if kind not in _GROUPS]:
            raise InvalidInputError(f"{path} is damaged: {listed(wrong)} is no group of elements.")
        self._size = 0
        if isinstance(root, h5py.File):
            self._size = path.stat().st_size + MARGIN
            self._reserve(0)

    @property
    def var_names(self) -> pd.Index:
        """Names of the channels."""
        return self.var.index

    def columns(self, markers: Sequence[str], aliases: Mapping[str, str] | None) -> np.ndarray:
        """Column in the values of each marker of a model."""
        return marker_positions(markers, model_names(self.var_names, aliases))

    # -- reading ------------------------------------------------------------------------------

    def blocks(self) -> Iterator[slice]:
        """Rows of each block in which the store is read."""
        for start in range(0, self.n_obs, BLOCK):
            yield slice(start, min(start + BLOCK, self.n_obs))

    def require_column(self, key: object, what: str) -> None:
        """Raise MissingKeyError unless ``obs`` has the column; ``what`` names its purpose."""
        present = [name for name in self.root["obs"] if name != self._index]
        require_key(key, present, f"{what}: the obs column")

    def column(self, key: str) -> pd.Series:
        """A column of ``obs``. Text without categories takes memory for each cell."""
        with readable(self.path):
            found = pd.Series(anndata.io.read_elem(self.root["obs"][key]))
        if len(found) != self.n_obs:
            raise InvalidInputError(
                f"{self.path} is damaged: the obs column {key!r} has {len(found)} values for "
                f"{self.n_obs} cells."
            )
        return found

    def flags(self, key: object, what: str = "cells") -> np.ndarray:
        """A column of ``obs``, or of ``obsm["gates"]``, of True and False; all True for None."""
        if key is None:
            return np.ones(self.n_obs, dtype=bool)
        if not isinstance(key, str):
            raise InvalidInputError(
                f"Choose cells of a store by a column of obs, not by {type(key).__name__}."
            )
        gates = self.table_columns(EXPERT_GATES) or []
        if key not in self.root["obs"] and (gate := gate_called(key, gates)) in gates:
            inside = anndata.io.read_elem(self.root["obsm"][EXPERT_GATES][gate])
            return as_flags(inside, f"Membership in the gate {gate!r}")
        self.require_column(key, what)
        return as_flags(self.column(key), f"The obs column {key!r}")

    def table(self, key: str) -> pd.DataFrame | None:
        """A table of ``obsm`` without its index; None if there is none of this key."""
        names = self.table_columns(key)
        if names is None:
            return None
        group = self.root["obsm"][key]
        return pd.DataFrame({name: anndata.io.read_elem(group[name]) for name in names})

    def table_columns(self, key: str) -> list[str] | None:
        """Names of the columns of a table of ``obsm``; None if there is none of this key."""
        group = self.root.get("obsm", {}).get(key)
        if group is None or group.attrs.get("encoding-type") != "dataframe":
            return None
        return [str(name) for name in group.attrs["column-order"]]

    def matrix(self, layer: str | None) -> Element:
        """The values: ``X`` or a layer."""
        if layer is not None:
            layers = self.root.get("layers", {})
            require_key(layer, list(layers), "layer: the layer")
            return layers[layer]
        if "X" not in self.root:
            raise InvalidInputError(f"{self.path} has no X; name the layer to read with layer=...")
        return self.root["X"]

    def values(self, layer: str | None) -> StoredValues:
        """Rows of ``X`` or of a layer."""
        return StoredValues(self.matrix(layer), (self.n_obs, len(self.var)), self.path)

    def known_colours(self, first: str) -> dict[str, str]:
        """Colours by name of category in ``uns``, those of one column before those of others."""
        obs, uns = self.root["obs"], self.root.get("uns", {})
        columns = [name.removesuffix("_colors") for name in uns if name.endswith("_colors")]
        columns = [c for c in columns if c in obs and "categories" in obs[c]]
        columns.sort(key=lambda column: column != first)
        read = anndata.io.read_elem
        return named((read(obs[c]["categories"]), read(uns[f"{c}_colors"])) for c in columns)

    # -- writing ------------------------------------------------------------------------------

    def add_categorical(self, key: str, categories: Sequence[str], fill: int) -> Element:
        """Add a column to ``obs`` and return its codes, filled with ``fill``; -1 is missing."""
        obs = self.root["obs"]
        self._prepare(obs, key)
        column = obs.create_group(key)
        column.attrs.update(
            {"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": False}
        )
        anndata.io.write_elem(column, "categories", np.array(categories, dtype=object))
        dtype = np.min_scalar_type(-len(categories) - 1)
        self._add_to_order(obs, key)
        return self._array(column, "codes", (), dtype, fill)

    def add_column(self, key: str, dtype: DTypeLike, fill: object) -> Element:
        """Add a column to ``obs`` and return its values, filled with ``fill``."""
        obs = self.root["obs"]
        self._prepare(obs, key)
        self._add_to_order(obs, key)
        return self._array(obs, key, (), dtype, fill)

    def add_table(
        self, key: str, columns: Sequence[str], dtype: DTypeLike, fill: object
    ) -> list[Element]:
        """Add a table to ``obsm`` and return its columns, filled with ``fill``."""
        table = self._new_table(key, columns)
        return [self._array(table, name, (), dtype, fill) for name in columns]

    def add_nullable_flags(
        self, key: str, columns: Sequence[str]
    ) -> tuple[list[Element], list[Element]]:
        """Add a table of nullable booleans; return values and masks, all missing."""
        table = self._new_table(key, columns)
        values, masks = [], []
        for name in columns:
            column = table.create_group(name)
            column.attrs.update({"encoding-type": "nullable-boolean", "encoding-version": "0.1.0"})
            values.append(self._array(column, "values", (), bool, False))
            masks.append(self._array(column, "mask", (), bool, True))
        return values, masks

    def _new_table(self, key: str, columns: Sequence[str]) -> Group:
        obsm = self.root.require_group("obsm")
        self._prepare(obsm, key)
        table = obsm.create_group(key)
        table.attrs.update(
            {
                "encoding-type": "dataframe",
                "encoding-version": "0.2.0",
                "_index": self._index,
                "column-order": _texts(columns, table),
            }
        )
        self._add_index(table)
        return table

    def add_layer(self, key: str) -> Element:
        """Add a layer and return it, filled with NaN."""
        layers = self.root.require_group("layers")
        self._prepare(layers, key)
        return self._array(layers, key, (len(self.var),), np.float32, np.nan)

    def add_channel_flags(self, key: str, flags: np.ndarray) -> None:
        """Add a column of booleans to ``var``."""
        var = self.root["var"]
        self._prepare(var, key)
        self._add_to_order(var, key)
        anndata.io.write_elem(var, key, flags)

    def add_records(self, entries: Entries, within: str = "") -> None:
        """Set entries of ``uns``, or of one of its records."""
        uns = self.root.require_group(f"uns/{within}".rstrip("/"))
        for name, entry in entries.items():
            if name in uns:
                del uns[name]
            anndata.io.write_elem(uns, name, entry)

    def _array(
        self, group: Group, name: str, tail: tuple[int, ...], dtype: DTypeLike, fill: object
    ) -> Element:
        shape = (self.n_obs, *tail)
        chunks = (min(BLOCK, max(self.n_obs, 1)), *tail)
        if isinstance(group, h5py.Group):
            self._reserve(
                -(-self.n_obs // chunks[0]) * math.prod(chunks) * np.dtype(dtype).itemsize
            )
            made = group.create_dataset(name, shape, dtype, chunks=chunks, fillvalue=fill)
        else:
            made = group.create_array(
                name=name, shape=shape, dtype=dtype, chunks=chunks, fill_value=fill
            )
        made.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        return made

    def _reserve(self, n_bytes: int) -> None:
        """Take space for so many more bytes in an h5ad file."""
        self._size += n_bytes
        reserve(self.root.file.id.get_vfd_handle(), self._size)

    def _add_index(self, table: Group) -> None:
        source = self.root["obs"][self._index]
        if isinstance(table, h5py.Group):
            table[self._index] = source  # a hard link to the same values
            return
        if isinstance(source, zarr.Group):
            into = table.create_group(self._index, attributes=dict(source.attrs))
            for part in ("values", "mask"):
                self._copy_array(cast(Element, source[part]), into, part)
        else:
            self._copy_array(source, table, self._index)

    def _copy_array(self, source: Element, group: zarr.Group, name: str) -> None:
        copy = group.create_array(
            name=name, shape=source.shape, dtype=source.dtype, chunks=source.chunks
        )
        copy.attrs.update(dict(source.attrs))
        for rows in self.blocks():
            copy[rows] = source[rows]

    def _add_to_order(self, table: Group, key: str) -> None:
        order = [str(name) for name in table.attrs["column-order"]]
        if key not in order:
            table.attrs["column-order"] = _texts([*order, key], table)

    def _prepare(self, group: Group, key: str) -> None:
        """Remove an old element and record the new one as unfinished."""
        if key in group:
            del group[key]
        self._added.append((group.name.strip("/"), key))

    def remove_added(self) -> None:
        """Remove the unfinished elements that were added."""
        for name, key in self._added:
            # A zarr group keeps the attributes that it was opened with: open it anew.
            group = self.root[name] if name else self.root
            if key in group:
                del group[key]
            order = [str(name) for name in group.attrs.get("column-order", [])]
            if key in order:
                order.remove(key)
                group.attrs["column-order"] = _texts(order, group)


def _texts(names: Sequence[str], group: Group) -> np.ndarray | list[str]:
    return np.array(names, dtype=object) if isinstance(group, h5py.Group) else list(names)


@contextmanager
def open_store(path: str | os.PathLike[str]) -> Iterator[CellStore]:
    """Open an AnnData on disk for reading and for adding results.

    Parameters
    ----------
    path : path
        An .h5ad file or a zarr directory.

    Yields
    ------
    CellStore

    Raises
    ------
    FileNotFoundError
        ``path`` does not exist.
    InvalidInputError
        ``path`` is not an AnnData.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist.")
    if path.is_dir():
        try:
            # Consolidated metadata would hide new elements. They are written again at the end.
            root = zarr.open_group(path, mode="r+", use_consolidated=False)
            list(root.members(max_depth=None))
            metadata = zarr.open_group(path, mode="r").metadata
            consolidated = metadata.consolidated_metadata is not None
        except Exception as error:
            raise InvalidInputError(f"{path} is no zarr store: {error}") from error
        try:
            yield from _without_partial_results(CellStore(root, path))
        finally:
            if consolidated:
                with readable(path):
                    zarr.consolidate_metadata(path)
        return
    try:
        file = h5py.File(path, "r+")
    except OSError as error:
        raise InvalidInputError(f"{path} is no h5ad file: {error}") from error
    try:
        yield from _without_partial_results(CellStore(file, path))
    finally:
        with readable(path):
            file.close()
            trim(path)


def _without_partial_results(store: CellStore) -> Iterator[CellStore]:
    """Yield the store; after an error, remove partly written results."""
    try:
        yield store
    except BaseException:
        store.remove_added()
        raise


def as_index(rows: Rows) -> slice | np.ndarray:
    """Rows as the index of an array; a slice makes a view."""
    return slice(rows.start, rows.stop) if isinstance(rows, range) else rows


def close_rows(rows: Rows) -> Iterator[Rows]:
    """Rows in parts, each within one block of the store."""
    if isinstance(rows, range):
        yield rows
        return
    edges = np.flatnonzero(np.diff(rows // BLOCK)) + 1
    yield from np.split(rows, edges)


def write_rows(element: Element, rows: Rows, values: np.ndarray) -> None:
    """Write the values of some rows of a stored array."""
    if isinstance(rows, range):
        element[as_index(rows)] = values
        return
    done = 0
    for part in close_rows(rows):
        first, last = int(part[0]), int(part[-1]) + 1
        block = np.asarray(element[first:last])
        block[np.asarray(part) - first] = values[done : done + len(part)]
        element[first:last] = block
        done += len(part)
