"""Writing of results, with the same fields in an AnnData in memory and in a store on disk.

A result is declared field by field, filled by rows, and committed together with its run record.
All fields survive ``write_h5ad`` and ``write_zarr``: they hold no None and no nested lists, and
names of markers and classes are columns, never keys.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeAlias

import numpy as np
import pandas as pd
from anndata import AnnData

from fcm_estimators._cells.store import CellStore, as_index, open_store, write_rows
from fcm_estimators._cells.stored_values import Rows
from fcm_estimators._types import Element, Entries
from fcm_estimators.colours import colours, known_colours
from fcm_estimators.exceptions import InvalidInputError

# An AnnData, or the path of an h5ad file or a zarr directory.
Writable: TypeAlias = AnnData | str | os.PathLike[str]


class ResultKeys(Protocol):
    """Keys that every result in :mod:`fcm_estimators.keys` has."""

    @property
    def key(self) -> str:
        """The ``key_added`` of the call."""

    @property
    def record(self) -> str:
        """``uns``: the run record."""


class Field(Protocol):
    """A field of a result while it is written."""

    def write(self, rows: Rows, values: np.ndarray) -> None:
        """Set the values of some cells."""


class Sink(ABC):
    """Destination of a result. Cells that are not written keep the declared value.

    Attributes
    ----------
    n_cells : int
    var_names : pandas.Index
    """

    n_cells: int
    var_names: pd.Index

    @abstractmethod
    def categorical(self, key: str, categories: Sequence[Any], fill: int = -1) -> Field:
        """Declare a column of ``obs`` for codes of categories; -1 is missing.

        Its colours are committed to ``uns``; a category that has one keeps it.
        """

    @abstractmethod
    def numbers(self, key: str) -> Field:
        """Declare a column of ``obs`` for float32 numbers, filled with NaN."""

    @abstractmethod
    def mask(self, key: str) -> Field:
        """Declare a column of ``obs`` for booleans, filled with False."""

    @abstractmethod
    def table(self, key: str, columns: Sequence[str]) -> Field:
        """Declare a table of ``obsm`` for float32 rows, filled with NaN."""

    @abstractmethod
    def flags(self, key: str, columns: Sequence[str], *, nullable: bool) -> Field:
        """Declare a table of ``obsm`` for bool rows, filled with False, or missing if nullable."""

    @abstractmethod
    def layer(self, key: str) -> Field:
        """Declare a layer for float32 rows of all vars, filled with NaN."""

    @abstractmethod
    def channels(self, key: str, flags: np.ndarray) -> None:
        """Declare a column of ``var`` with these booleans."""

    @abstractmethod
    def commit(self, keys: ResultKeys, record: Entries) -> None:
        """Write the run record and finish the result."""


class _Array:
    """Values in memory."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def write(self, rows: Rows, values: np.ndarray) -> None:
        self.values[as_index(rows)] = values


class _KnownFlags:
    """Flags in memory, with a mask of the cells whose flags are unknown."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.values, self.unknown = _Array(np.zeros(shape, bool)), _Array(np.ones(shape, bool))

    def write(self, rows: Rows, values: np.ndarray) -> None:
        self.values.write(rows, values)
        self.unknown.write(rows, np.zeros_like(values))


class MemorySink(Sink):
    """Results for an AnnData in memory, which changes only when all results are complete.

    Parameters
    ----------
    adata : AnnData
    """

    def __init__(self, adata: AnnData) -> None:
        self.n_cells, self.var_names = adata.n_obs, adata.var_names
        self._adata = adata
        self._changes: list[Callable[[], None]] = []
        self._categories: dict[str, Sequence[Any]] = {}

    def categorical(self, key: str, categories: Sequence[Any], fill: int = -1) -> Field:
        self._categories[key] = categories
        codes = _Array(np.full(self.n_cells, fill, dtype=np.int64))

        def change() -> None:
            self._adata.obs[key] = pd.Categorical.from_codes(
                codes.values, categories=pd.Index(categories, dtype=object)
            )

        self._changes.append(change)
        return codes

    def numbers(self, key: str) -> Field:
        return self._column(key, self._floats(self.n_cells))

    def mask(self, key: str) -> Field:
        return self._column(key, _Array(np.zeros(self.n_cells, dtype=bool)))

    def table(self, key: str, columns: Sequence[str]) -> Field:
        block = self._floats(self.n_cells, len(columns))
        self._changes.append(lambda: self._set_table(key, columns, block.values))
        return block

    def flags(self, key: str, columns: Sequence[str], *, nullable: bool) -> Field:
        shape = (self.n_cells, len(columns))
        if not nullable:
            block = _Array(np.zeros(shape, dtype=bool))
            self._changes.append(lambda: self._set_table(key, columns, block.values))
            return block
        known = _KnownFlags(shape)

        def change() -> None:
            parts = zip(columns, known.values.values.T, known.unknown.values.T, strict=True)
            table = {c: pd.arrays.BooleanArray(v.copy(), u.copy()) for c, v, u in parts}
            self._adata.obsm[key] = pd.DataFrame(table, index=self._adata.obs_names)

        self._changes.append(change)
        return known

    def layer(self, key: str) -> Field:
        block = self._floats(self.n_cells, len(self.var_names))

        def change() -> None:
            self._adata.layers[key] = block.values

        self._changes.append(change)
        return block

    def channels(self, key: str, flags: np.ndarray) -> None:
        def change() -> None:
            self._adata.var[key] = flags

        self._changes.append(change)

    def commit(self, keys: ResultKeys, record: Entries) -> None:
        # The colours that the columns have now, before they get other categories.
        known = {key: known_colours(self._adata, key) for key in self._categories}
        for change in self._changes:
            change()
        uns = self._adata.uns
        uns[keys.record] = dict(record)
        for key, names in self._categories.items():
            uns[f"{key}_colors"] = list(colours(names, known[key]).values())

    def _column(self, key: str, column: _Array) -> Field:
        def change() -> None:
            self._adata.obs[key] = column.values

        self._changes.append(change)
        return column

    def _floats(self, *shape: int) -> _Array:
        return _Array(np.full(shape, np.nan, dtype=np.float32))

    def _set_table(self, key: str, columns: Sequence[str], values: np.ndarray) -> None:
        self._adata.obsm[key] = pd.DataFrame(
            values, index=self._adata.obs_names, columns=list(columns)
        )


class _Stored:
    """Arrays of a store, one per column of a table."""

    def __init__(self, columns: Sequence[Element]) -> None:
        self._columns = columns

    def write(self, rows: Rows, values: np.ndarray) -> None:
        parts = [values] if len(self._columns) == 1 and values.ndim == 1 else values.T
        for column, part in zip(self._columns, parts, strict=True):
            write_rows(column, rows, part)


class _StoredRows:
    """A matrix of a store."""

    def __init__(self, element: Element) -> None:
        self._element = element

    def write(self, rows: Rows, values: np.ndarray) -> None:
        write_rows(self._element, rows, values)


class _StoredKnownFlags:
    """Nullable flags of a store."""

    def __init__(self, values: Sequence[Element], masks: Sequence[Element]) -> None:
        self._values, self._masks = _Stored(values), _Stored(masks)

    def write(self, rows: Rows, values: np.ndarray) -> None:
        self._values.write(rows, values)
        self._masks.write(rows, np.zeros_like(values))


class StoreSink(Sink):
    """Results in an open store. The store removes them if an error occurs before the commit.

    Parameters
    ----------
    store : CellStore
    """

    def __init__(self, store: CellStore) -> None:
        self.n_cells, self.var_names = store.n_obs, store.var_names
        self._store = store
        self._colours: dict[str, list[str]] = {}

    def categorical(self, key: str, categories: Sequence[Any], fill: int = -1) -> Field:
        known = self._store.known_colours(key)
        self._colours[key] = list(colours(categories, known).values())
        return _Stored([self._store.add_categorical(key, [str(c) for c in categories], fill)])

    def numbers(self, key: str) -> Field:
        return _Stored([self._store.add_column(key, np.float32, np.nan)])

    def mask(self, key: str) -> Field:
        return _Stored([self._store.add_column(key, bool, False)])

    def table(self, key: str, columns: Sequence[str]) -> Field:
        return _Stored(self._store.add_table(key, columns, np.float32, np.nan))

    def flags(self, key: str, columns: Sequence[str], *, nullable: bool) -> Field:
        if nullable:
            return _StoredKnownFlags(*self._store.add_nullable_flags(key, columns))
        return _Stored(self._store.add_table(key, columns, bool, False))

    def layer(self, key: str) -> Field:
        return _StoredRows(self._store.add_layer(key))

    def channels(self, key: str, flags: np.ndarray) -> None:
        self._store.add_channel_flags(key, flags)

    def commit(self, keys: ResultKeys, record: Entries) -> None:
        hues = {f"{key}_colors": np.array(names) for key, names in self._colours.items()}
        self._store.add_records({keys.record: dict(record), **hues})


@contextmanager
def opened(data: Writable, keys: ResultKeys) -> Iterator[tuple[AnnData | CellStore, Sink]]:
    """Data to read cells from, and the sink for their results.

    Raises
    ------
    InvalidInputError
        ``data`` is neither an AnnData nor a path, or is a view; the key is unusable; or the path
        is not a store.
    FileNotFoundError
        The path does not exist.
    """
    if isinstance(data, (str, os.PathLike)):
        require_key_name(keys.key)
        with open_store(data) as store:
            yield store, StoreSink(store)
        return
    require_writable(data, keys.key)
    yield data, MemorySink(data)


def copy_if_asked(data: Writable, copy: bool) -> Writable:
    """Return a copy in memory if ``copy`` is True, else the data.

    Raises
    ------
    InvalidInputError
        ``copy`` is True and ``data`` is a path.
    """
    if not copy:
        return data
    if isinstance(data, (str, os.PathLike)):
        raise InvalidInputError(
            f"copy=True with the path {os.fspath(data)!r}: a store is changed in place. Copy the "
            "file first, or leave copy=False."
        )
    if not isinstance(data, AnnData):
        return data
    return data.to_memory() if data.isbacked else data.copy()


def require_writable(adata: object, key: str) -> None:
    """Raise InvalidInputError unless results can be written into ``adata`` under ``key``."""
    if not isinstance(adata, AnnData):
        raise InvalidInputError(
            "Results are written into an AnnData, or into an h5ad or zarr store given by its "
            f"path; got {type(adata).__name__}. Use predict or predict_proba for other kinds of X."
        )
    if adata.is_view:
        raise InvalidInputError(
            "This AnnData is a view, and writing would not change the original. Copy it first: "
            "adata = adata.copy()."
        )
    require_key_name(key)


def require_key_name(key: str) -> None:
    """Raise InvalidInputError unless ``key`` is usable in files."""
    if not key or "/" in key:
        raise InvalidInputError(
            f"key_added={key!r}: a key needs at least one character, and h5ad files cannot hold "
            "a key with '/'."
        )


def run_record(params: Entries, **entries: object) -> Entries:
    """Run record for ``uns``: parameters as one JSON text, other entries as arrays or scalars.

    Entries that are None are left out.
    """
    out: Entries = {"params": json.dumps(params, default=str, sort_keys=True)}
    for name, value in entries.items():
        if value is None:
            continue
        if isinstance(value, Sequence) and not isinstance(value, str):
            value = np.array([str(v) for v in value], dtype=object)
        out[name] = value
    return out


def column_names(classes: Sequence[Hashable] | np.ndarray) -> list[str]:
    """Classes as column names; raise InvalidInputError for names that files cannot hold."""
    names = [str(c) for c in classes]
    with_slash = [name for name in names if "/" in name]
    if with_slash:
        raise InvalidInputError(
            f"Class name(s) {with_slash} hold '/', which h5ad files cannot have in column names. "
            "Rename those labels before fit."
        )
    return names
