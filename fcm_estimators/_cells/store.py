"""Cells of an h5ad or zarr store, read and annotated by chunk; never the store as a whole.

Opening a store with AnnData reads the names of all cells, about 0.1 GB per million. Here the
groups of the store are used directly, in the form that AnnData documents.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anndata
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
import zarr
from torch import Tensor

from fcm_estimators._checks import listed, marker_positions, require_finite, require_key
from fcm_estimators._fitting.reference import evenly
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.nn.sources import Piece

# Rows that are read from a store at once.
_BLOCK = 65_536

Rows = range | np.ndarray


class CellStore:
    """An AnnData on disk, open for reading by chunk and for adding results.

    Made by :func:`open_store`.

    Parameters
    ----------
    root : h5py.File or zarr.Group
    path : Path
    """

    def __init__(self, root: Any, path: Path) -> None:
        self.root, self.path = root, path
        self._added: list[tuple[Any, str]] = []
        for part in ("obs", "var"):
            if part not in root or "_index" not in root[part].attrs:
                raise InvalidInputError(
                    f"{path} holds no AnnData: {part!r} is missing or no table. Found "
                    f"{listed(root)}."
                )
        self._index = str(root["obs"].attrs["_index"])
        self.n_obs = int(root["obs"][self._index].shape[0])
        self.var: pd.DataFrame = anndata.io.read_elem(root["var"])

    @property
    def var_names(self) -> pd.Index:
        """Names of the channels."""
        return self.var.index

    def columns(self, markers: Sequence[str], aliases: Mapping | None) -> np.ndarray:
        """Column of each marker of a model in the values."""
        names = [(aliases or {}).get(str(name), str(name)) for name in self.var_names]
        return marker_positions(markers, names)

    # -- reading ------------------------------------------------------------------------------

    def blocks(self) -> Iterator[slice]:
        """Limits of the blocks in which the store is read."""
        for start in range(0, self.n_obs, _BLOCK):
            yield slice(start, min(start + _BLOCK, self.n_obs))

    def require_column(self, key: Any, what: str) -> None:
        """Raise MissingKeyError unless ``obs`` has a column; ``what`` says for what it is."""
        present = [name for name in self.root["obs"] if name != self._index]
        require_key(key, present, f"{what}: the obs column")

    def column(self, key: str) -> Iterator[tuple[slice, np.ndarray]]:
        """Values of a column of ``obs``, block by block; missing ones are None or NaN."""
        element = self.root["obs"][key]
        kind = element.attrs.get("encoding-type")
        if kind == "categorical":
            known = np.asarray(anndata.io.read_elem(element["categories"]))
            # Code -1, none, takes the last.
            categories = np.array([*known, None], dtype=object)
            for rows in self.blocks():
                yield rows, categories[element["codes"][rows]]
        elif hasattr(element, "shape"):
            text = isinstance(element, h5py.Dataset) and h5py.check_string_dtype(element.dtype)
            for rows in self.blocks():
                values = element.asstr()[rows] if text else element[rows]
                yield rows, np.asarray(values)
        elif "values" in element and "mask" in element:
            for rows in self.blocks():
                values = np.asarray(element["values"][rows]).astype(object)
                values[element["mask"][rows]] = None
                yield rows, values
        else:
            raise InvalidInputError(f"obs[{key!r}] in {self.path} is a {kind}, no column of ids.")

    def flags(self, key: Any) -> np.ndarray:
        """A column of True and False for all cells; all True where ``key`` is None."""
        found = np.ones(self.n_obs, dtype=bool)
        if key is None:
            return found
        if not isinstance(key, str):
            raise InvalidInputError(
                f"Cells of a store are chosen by a column of obs, not by {type(key).__name__}."
            )
        self.require_column(key, "cells")
        for rows, values in self.column(key):
            found[rows] = as_flags(values, key)
        return found

    def matrix(self, layer: str | None) -> Any:
        """The values: ``X`` or a layer."""
        if layer is not None:
            layers = self.root.get("layers", {})
            require_key(layer, list(layers), "layer: the layer")
            return layers[layer]
        if "X" not in self.root:
            raise InvalidInputError(f"{self.path} has no X; name the layer to read with layer=...")
        return self.root["X"]

    def value_type(self, layer: str | None) -> np.dtype:
        """float64 where the values are, else float32."""
        kind = _Matrix(self.matrix(layer), len(self.var)).dtype
        return np.dtype(np.float64 if kind == np.float64 else np.float32)

    # -- writing ------------------------------------------------------------------------------

    def add_categorical(self, key: str, categories: Sequence[str], missing: int) -> Any:
        """Add a column to ``obs`` and return its codes, all ``missing``."""
        obs = self.root["obs"]
        self._drop(obs, key)
        column = obs.create_group(key)
        column.attrs.update(
            {"encoding-type": "categorical", "encoding-version": "0.2.0", "ordered": False}
        )
        anndata.io.write_elem(column, "categories", np.array(categories, dtype=object))
        dtype = np.min_scalar_type(-len(categories) - 1)
        self._list(obs, key)
        return self._array(column, "codes", (), dtype, missing)

    def add_column(self, key: str, dtype: Any = np.float32) -> Any:
        """Add a numeric column to ``obs`` and return its values, all NaN."""
        obs = self.root["obs"]
        self._drop(obs, key)
        self._list(obs, key)
        return self._array(obs, key, (), dtype, np.nan)

    def add_table(self, key: str, columns: Sequence[str], dtype: Any, fill: Any) -> list[Any]:
        """Add a table to ``obsm`` and return its columns, all ``fill``."""
        table = self._new_table(key, columns)
        return [self._array(table, name, (), dtype, fill) for name in columns]

    def add_nullable_flags(self, key: str, columns: Sequence[str]) -> tuple[list[Any], list[Any]]:
        """Add a table of nullable booleans; return values and masks, all missing."""
        table = self._new_table(key, columns)
        values, masks = [], []
        for name in columns:
            column = table.create_group(name)
            column.attrs.update({"encoding-type": "nullable-boolean", "encoding-version": "0.1.0"})
            values.append(self._array(column, "values", (), bool, False))
            masks.append(self._array(column, "mask", (), bool, True))
        return values, masks

    def _new_table(self, key: str, columns: Sequence[str]) -> Any:
        obsm = self.root.require_group("obsm")
        self._drop(obsm, key)
        table = obsm.create_group(key)
        table.attrs.update(
            {
                "encoding-type": "dataframe",
                "encoding-version": "0.2.0",
                "_index": self._index,
                "column-order": _texts(columns, table),
            }
        )
        self._share_index(table)
        return table

    def add_layer(self, key: str) -> Any:
        """Add a layer and return it, all NaN."""
        layers = self.root.require_group("layers")
        self._drop(layers, key)
        return self._array(layers, key, (len(self.var),), np.float32, np.nan)

    def add_record(self, key: str, record: Mapping[str, Any]) -> None:
        """Add a run record to ``uns``; colours of an earlier run are removed."""
        uns = self.root.require_group("uns")
        for name in (key, f"{key}_colors", f"{key}_head_colors", f"{key}_marker_colors"):
            if name in uns:
                del uns[name]
        anndata.io.write_elem(uns, key, dict(record))

    def _array(self, group: Any, name: str, tail: tuple, dtype: Any, fill: Any) -> Any:
        shape = (self.n_obs, *tail)
        chunks = (min(_BLOCK, max(self.n_obs, 1)), *tail)
        if isinstance(group, h5py.Group):
            made = group.create_dataset(name, shape, dtype, chunks=chunks, fillvalue=fill)
        else:
            made = group.create_array(
                name=name, shape=shape, dtype=dtype, chunks=chunks, fill_value=fill
            )
        made.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        return made

    def _share_index(self, table: Any) -> None:
        source = self.root["obs"][self._index]
        if isinstance(table, h5py.Group):
            table[self._index] = source  # a second name of the same values
            return
        copy = table.create_array(
            name=self._index, shape=source.shape, dtype=source.dtype, chunks=source.chunks
        )
        copy.attrs.update(dict(source.attrs))
        for rows in self.blocks():
            copy[rows] = source[rows]

    def _list(self, table: Any, key: str) -> None:
        order = [str(name) for name in table.attrs["column-order"]]
        if key not in order:
            table.attrs["column-order"] = _texts([*order, key], table)

    def _drop(self, group: Any, key: str) -> None:
        """Make place for an element and remember it as unfinished."""
        if key in group:
            del group[key]
        self._added.append((group, key))

    def remove_added(self) -> None:
        """Remove what was added, which is not finished."""
        for group, key in self._added:
            if key in group:
                del group[key]
            order = [str(name) for name in group.attrs.get("column-order", [])]
            if key in order:
                order.remove(key)
                group.attrs["column-order"] = _texts(order, group)


def _texts(names: Sequence[str], group: Any) -> Any:
    return np.array(names, dtype=object) if isinstance(group, h5py.Group) else list(names)


@contextmanager
def open_store(path: str | os.PathLike) -> Iterator[CellStore]:
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
        There is nothing at ``path``.
    InvalidInputError
        No AnnData.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist.")
    if path.is_dir():
        try:
            # A collected copy of the metadata would hide what is added; it is renewed at the end.
            root = zarr.open_group(path, mode="r+", use_consolidated=False)
            collected = zarr.open_group(path, mode="r").metadata.consolidated_metadata is not None
        except Exception as error:
            raise InvalidInputError(f"{path} is no zarr store: {error}") from error
        try:
            yield from _kept_whole(CellStore(root, path))
        finally:
            if collected:
                zarr.consolidate_metadata(path)
        return
    try:
        file = h5py.File(path, "r+")
    except OSError as error:
        raise InvalidInputError(f"{path} is no h5ad file: {error}") from error
    with file:
        yield from _kept_whole(CellStore(file, path))


def _kept_whole(store: CellStore) -> Iterator[CellStore]:
    """Yield the store; half-written results do not stay."""
    try:
        yield store
    except BaseException:
        store.remove_added()
        raise


def sample_rows(store: CellStore, sample_key: Any, subset_key: Any) -> dict[Any, Rows]:
    """Rows of each sample, in the order of their first appearance.

    Parameters
    ----------
    store : CellStore
    sample_key, subset_key : str or None
        Columns of ``obs``.

    Returns
    -------
    dict of sample to range or ndarray of int
        A range where the sample is one block of the store.

    Raises
    ------
    InvalidInputError
        No cells, a missing id, a subset that is not True or False.
    MissingKeyError
        No such column.
    """
    if store.n_obs == 0:
        raise InvalidInputError(f"Found 0 cells in {store.path}, and at least one is needed.")
    for key, what in ((sample_key, "sample_key"), (subset_key, "subset_key")):
        if key is not None:
            store.require_column(key, what)
    subset = None if subset_key is None else store.column(subset_key)
    found: dict[Any, list[Rows]] = {}
    for rows, ids in _ids(store, sample_key):
        kept = np.ones(len(ids), dtype=bool)
        if subset is not None:
            kept = as_flags(next(subset)[1], subset_key)
        codes, names = pd.factorize(ids)
        if (codes < 0).any():
            raise InvalidInputError(
                f"{(codes < 0).sum()} of the cells {rows.start} to {rows.stop} in {store.path} "
                f"have no sample id (NaN) in {sample_key!r}. Every cell belongs to one; fill the "
                "column."
            )
        for code, name in enumerate(names):
            inside = np.flatnonzero((codes == code) & kept)
            if len(inside):
                _append(found.setdefault(name, []), inside + rows.start)
    if not found:
        raise InvalidInputError(f"subset_key={subset_key!r} leaves no cells; nothing to analyse.")
    return {name: _joined(parts) for name, parts in found.items()}


def as_flags(values: np.ndarray, key: Any) -> np.ndarray:
    """Values of a column as bool; InvalidInputError where they are not."""
    column = pd.Series(values)
    if column.isna().any() or not column.isin([0, 1]).all():
        raise InvalidInputError(
            f"The obs column {key!r} must be True or False for every cell; found "
            f"{listed(pd.unique(column)[:6])}."
        )
    return column.astype(bool).to_numpy()


def _ids(store: CellStore, key: str | None) -> Iterator[tuple[slice, np.ndarray]]:
    if key is not None:
        yield from store.column(key)
        return
    for rows in store.blocks():
        yield rows, np.zeros(rows.stop - rows.start, dtype=np.int8)


def _append(parts: list[Rows], rows: np.ndarray) -> None:
    """Add rows, as a range where they have no gaps, to the range before where they follow it."""
    first, last = int(rows[0]), int(rows[-1])
    if last - first + 1 != len(rows):
        parts.append(rows)
    elif parts and isinstance(parts[-1], range) and parts[-1].stop == first:
        parts[-1] = range(parts[-1].start, last + 1)
    else:
        parts.append(range(first, last + 1))


def _joined(parts: list[Rows]) -> Rows:
    return parts[0] if len(parts) == 1 else np.concatenate([np.asarray(part) for part in parts])


class StoredCells:
    """One sample of a store, chunk by chunk; a :class:`~fcm_estimators.nn.streaming.CellSource`.

    Parameters
    ----------
    store : CellStore
    rows : range or ndarray of int
        Ascending.
    columns : ndarray of int
        Of the markers.
    markers : list of str
        Their names, for messages.
    layer : str or None
    like : Tensor
        Of the dtype and device that the cells shall have.
    """

    n_samples = 1
    # Some of the cells, evenly spaced.
    glance: np.ndarray

    def __init__(
        self,
        store: CellStore,
        rows: Rows,
        columns: np.ndarray,
        markers: list[str],
        layer: str | None,
        like: Tensor,
    ) -> None:
        self.n_cells = len(rows)
        self.rows = rows
        self._columns, self._markers, self._like = columns, markers, like
        self._matrix = _Matrix(store.matrix(layer), len(store.var))
        self._held = range(0)
        self._cells = like.new_empty(0, len(columns))

    def read(self, start: int, stop: int) -> Tensor:
        """Cells ``start:stop`` of the sample."""
        if start < self._held.start or stop > self._held.stop:
            self._held = range(start, min(max(stop, start + _BLOCK), self.n_cells))
            self._cells = self._load(self._held.start, self._held.stop)
        return self._cells[start - self._held.start : stop - self._held.start]

    def pick(self, values: np.ndarray) -> np.ndarray:
        """Those of this sample among values of all cells of the store."""
        rows = self.rows
        return values[rows.start : rows.stop] if isinstance(rows, range) else values[rows]

    def check(self) -> None:
        """Raise InvalidInputError for values that are not finite; sets ``glance``."""
        some, step = [], evenly(self.n_cells).step
        for start in range(0, self.n_cells, _BLOCK):
            block = self.read(start, min(start + _BLOCK, self.n_cells))
            some.append(block[-start % step :: step].numpy(force=True).copy())
        self.glance = np.concatenate(some)

    @property
    def dtype(self) -> np.dtype:
        """Type of the cells as they are read."""
        return np.dtype(str(self._like.dtype).removeprefix("torch."))

    def pieces(self, start: int, stop: int) -> list[Piece]:
        """All of the chunk is of the one sample."""
        return [Piece(0, 0, stop - start)]

    def _load(self, start: int, stop: int) -> Tensor:
        values = np.concatenate(
            [self._matrix.read(rows)[:, self._columns] for rows in _spans(self.rows[start:stop])]
        )
        require_finite(values, self._markers)
        return torch.from_numpy(np.ascontiguousarray(values)).to(self._like)


def _spans(rows: Rows) -> Iterator[range | np.ndarray]:
    """Rows in parts that lie within a block's length of the store."""
    if isinstance(rows, range):
        yield rows
        return
    edges = np.flatnonzero(np.diff(rows // _BLOCK)) + 1
    yield from np.split(rows, edges)


class _Matrix:
    """Rows of a dense or sparse matrix on disk."""

    def __init__(self, element: Any, n_columns: int) -> None:
        self._element, self._n_columns = element, n_columns
        self._kind = element.attrs.get("encoding-type", "array")
        if self._kind not in ("array", "csr_matrix"):
            raise InvalidInputError(
                f"The values are stored as {self._kind}; rows can be read from a dense array or a "
                "csr_matrix. Convert them first."
            )
        self.dtype = (element if self._kind == "array" else element["data"]).dtype
        if self.dtype.kind not in "fiub":
            raise InvalidInputError(
                f"X holds values of type {self.dtype}; real numbers are needed."
            )

    def read(self, rows: range | np.ndarray) -> np.ndarray:
        """Values of ascending rows that lie close together, shape (n, n_columns)."""
        first, last = int(rows[0]), int(rows[-1]) + 1
        if self._kind == "array":
            block = np.asarray(self._element[first:last])
        else:
            ends = np.asarray(self._element["indptr"][first : last + 1])
            stored = slice(int(ends[0]), int(ends[-1]))
            parts = (self._element["data"][stored], self._element["indices"][stored])
            shape = (last - first, self._n_columns)
            block = sp.csr_matrix((*parts, ends - ends[0]), shape=shape).toarray()
        return block if len(rows) == last - first else block[np.asarray(rows) - first]


def write_rows(element: Any, rows: Rows, values: np.ndarray) -> None:
    """Write the values of some rows of a stored array."""
    if isinstance(rows, range):
        element[rows.start : rows.stop] = values
        return
    done = 0
    for part in _spans(rows):
        first, last = int(part[0]), int(part[-1]) + 1
        block = np.asarray(element[first:last])
        block[np.asarray(part) - first] = values[done : done + len(part)]
        element[first:last] = block
        done += len(part)


def by_block(chunks: Iterable[tuple[int, int, Tensor]]) -> Iterator[tuple[int, int, np.ndarray]]:
    """Chunks of rows that follow each other, as arrays of a block's length."""
    first, parts = 0, list[np.ndarray]()
    for start, stop, values in chunks:
        if not parts:
            first = start
        parts.append(values.cpu().numpy().copy())
        if stop - first >= _BLOCK:
            yield first, stop, np.concatenate(parts)
            parts = []
    if parts:
        yield first, stop, np.concatenate(parts)


class FileRows:
    """Rows in a temporary file, which is gone when they are no longer used.

    Read and written by chunk, so that none of it counts as the process's memory.

    Parameters
    ----------
    n_rows, width : int
    like : Tensor
        Of the dtype and device of the rows.
    """

    def __init__(self, n_rows: int, width: int, like: Tensor) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  closed with these rows
        weakref.finalize(self, self._file.close)
        self._like, self._width = like, width
        self._dtype = np.dtype(str(like.dtype).removeprefix("torch."))
        self._row = width * self._dtype.itemsize
        self._file.truncate(n_rows * self._row)

    def get(self, start: int, stop: int) -> Tensor:
        """Rows ``start:stop``, a copy."""
        rows = np.empty((stop - start, self._width), dtype=self._dtype)
        self._file.seek(start * self._row)
        self._file.readinto(rows.data.cast("B"))
        return torch.from_numpy(rows).to(self._like.device)

    def put(self, start: int, rows: Tensor) -> None:
        """Replace rows from ``start`` on."""
        self._file.seek(start * self._row)
        self._file.write(rows.contiguous().cpu().numpy().data.cast("B"))
