"""Cells of one sample, in memory or in a store, as the input of a net."""

from __future__ import annotations

import tempfile
import weakref
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fcm_estimators._cells.samples import Samples
from fcm_estimators._cells.store import BLOCK, CellStore, as_index, close_rows
from fcm_estimators._cells.stored_values import Rows, StoredValues
from fcm_estimators._checks import column_extremes, require_finite, sample_codes
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.nn.sources import CellSource, PackedCells, Piece

# Largest number of cells per sample that are compared with the training samples.
GLANCE = 50_000


def even_slice(n_cells: int) -> slice:
    """Slice of at most :data:`GLANCE` evenly spaced cells."""
    return slice(None, None, -(-n_cells // GLANCE))


@dataclass(frozen=True)
class SampleCells:
    """Cells of one sample, and their rows in the user's data.

    Attributes
    ----------
    name : object
        Id of the sample.
    rows : range or ndarray of int
        Rows in the user's data, in the order of the source.
    source : CellSource
    glance : ndarray of shape (n, M)
        Some of the cells, evenly spaced.
    extremes : ndarray of shape (2, M)
        Smallest and largest value of each marker.
    in_file : bool
        Whether the cells are read from a store. Nothing of their size is then kept in memory.
    """

    name: Hashable
    rows: Rows
    source: CellSource
    glance: np.ndarray
    extremes: np.ndarray
    in_file: bool

    def pick(self, values: np.ndarray) -> np.ndarray:
        """Entries of this sample among the values of all of the user's rows."""
        picked: np.ndarray = values[as_index(self.rows)]
        return picked


def cells_in_memory(samples: Samples, device: torch.device) -> list[SampleCells]:
    """Cells of each sample, on a device."""
    found = []
    for name, (start, stop) in zip(samples.names.tolist(), samples.spans(), strict=True):
        x, rows = samples.x[start:stop], samples.rows[start:stop]
        first, last = int(rows[0]), int(rows[-1]) + 1
        no_gaps = last - first == len(rows) and bool((np.diff(rows) == 1).all())
        found.append(
            SampleCells(
                name,
                range(first, last) if no_gaps else rows,
                PackedCells(as_tensor(x).to(device)),
                x[even_slice(len(x))],
                column_extremes(x),
                in_file=False,
            )
        )
    return found


def as_tensor(x: np.ndarray) -> Tensor:
    """Cells as a tensor; a copy if the array is read-only, of which torch warns."""
    return torch.from_numpy(np.require(x, requirements="W"))


def cells_in_store(
    store: CellStore,
    rows: dict[Hashable, Rows],
    markers: Sequence[str],
    columns: np.ndarray,
    layer: str | None,
    like: Tensor,
) -> list[SampleCells]:
    """Cells of each sample of a store. All values are read once and checked.

    Parameters
    ----------
    store : CellStore
    rows : dict of sample to rows
    markers : sequence of M str
    columns : ndarray of int of shape (M,)
        Columns of the markers.
    layer : str or None
    like : Tensor
        Tensor with the dtype and device of the result.

    Raises
    ------
    InvalidInputError
        A value is not finite.
    """
    found = []
    for name, sample_rows in rows.items():
        source = _StoredCells(store.values(layer), sample_rows, columns, markers, like)
        found.append(SampleCells(name, sample_rows, source, *source.checked(), in_file=True))
    return found


class _StoredCells:
    """Cells of one sample of a store, read chunk by chunk."""

    n_samples = 1

    def __init__(
        self,
        values: StoredValues,
        rows: Rows,
        columns: np.ndarray,
        markers: Sequence[str],
        like: Tensor,
    ) -> None:
        self.n_cells = len(rows)
        self._values, self._rows = values, rows
        self._columns, self._markers, self._like = columns, markers, like
        self._held = range(0)
        self._cells = like.new_empty(0, len(columns))

    def read(self, start: int, stop: int) -> Tensor:
        """Cells ``start:stop`` of the sample."""
        if start < self._held.start or stop > self._held.stop:
            self._held = range(start, min(max(stop, start + BLOCK), self.n_cells))
            self._cells = self._load(self._held.start, self._held.stop)
        return self._cells[start - self._held.start : stop - self._held.start]

    def checked(self) -> tuple[np.ndarray, np.ndarray]:
        """Read and check all cells once; return some, evenly spaced, and the extreme values."""
        some, extremes, step = [], [], even_slice(self.n_cells).step
        for start in range(0, self.n_cells, BLOCK):
            block = self.read(start, min(start + BLOCK, self.n_cells)).numpy(force=True)
            some.append(block[-start % step :: step].copy())
            extremes.append(column_extremes(block))
        return np.concatenate(some), column_extremes(np.concatenate(extremes))

    def pieces(self, start: int, stop: int) -> list[Piece]:
        """The whole chunk, which belongs to one sample."""
        return [Piece(0, 0, stop - start)]

    def _load(self, start: int, stop: int) -> Tensor:
        parts = [self._values.read(rows) for rows in close_rows(self._rows[start:stop])]
        values = np.concatenate([part[:, self._columns] for part in parts])
        require_finite(values, self._markers)
        return torch.from_numpy(np.ascontiguousarray(values)).to(self._like)


def by_block(chunks: Iterable[tuple[int, int, Tensor]]) -> Iterator[tuple[int, int, np.ndarray]]:
    """Join consecutive chunks of rows into arrays of about the length of a block."""
    first, parts = 0, list[np.ndarray]()
    for start, stop, values in chunks:
        if not parts:
            first = start
        parts.append(values.cpu().numpy().copy())
        if stop - first >= BLOCK:
            yield first, stop, np.concatenate(parts)
            parts = []
    if parts:
        yield first, stop, np.concatenate(parts)


class FileRows:
    """Rows in a temporary file, which is removed when this object is.

    Rows are read and written by chunk and do not count as memory of the process.

    Parameters
    ----------
    n_rows, width : int
    like : Tensor
        Tensor with the dtype and device of the rows.
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


def sample_rows(
    store: CellStore,
    sample_key: str | int | None,
    subset_key: str | None,
    chosen: np.ndarray | None = None,
) -> dict[Hashable, Rows]:
    """Rows of each sample, in the order of their first appearance.

    Parameters
    ----------
    store : CellStore
    sample_key, subset_key : str or None
        Columns of ``obs``; the subset may also be a gate of ``obsm["gates"]``.
    chosen : ndarray of bool, shape (n_obs,), optional
        Cells to analyse among those of ``subset_key``.

    Returns
    -------
    dict of sample to range or ndarray of int
        A range if the rows of the sample have no gaps.

    Raises
    ------
    InvalidInputError
        There are no cells, an id is missing, or the subset is not True or False.
    MissingKeyError
        A column is missing.
    """
    if store.n_obs == 0:
        raise InvalidInputError(f"Found 0 cells in {store.path}, and at least one is needed.")
    if sample_key is not None:
        store.require_column(sample_key, "sample_key")
    codes, names = np.zeros(store.n_obs, dtype=np.int8), pd.Index([0])
    if sample_key is not None:
        codes, names = sample_codes(store.column(str(sample_key)), sample_key)
    kept = store.flags(subset_key, "subset_key")
    if chosen is not None:
        kept &= chosen
    found: dict[Hashable, list[Rows]] = {}
    for block in store.blocks():
        part, inside = codes[block], kept[block]
        for code in pd.unique(part):
            rows = np.flatnonzero((part == code) & inside)
            if len(rows):
                _append(found.setdefault(names[int(code)], []), rows + block.start)
    if not found:
        limit = "The gate of the model" if subset_key is None else f"subset_key={subset_key!r}"
        raise InvalidInputError(f"{limit} leaves no cells to analyse.")
    return {name: _joined(parts) for name, parts in found.items()}


def _append(parts: list[Rows], rows: np.ndarray) -> None:
    """Append rows, as a range if they have no gaps; extend the last range if they follow it."""
    first, last = int(rows[0]), int(rows[-1])
    if last - first + 1 != len(rows):
        parts.append(rows)
    elif parts and isinstance(parts[-1], range) and parts[-1].stop == first:
        parts[-1] = range(parts[-1].start, last + 1)
    else:
        parts.append(range(first, last + 1))


def _joined(parts: list[Rows]) -> Rows:
    return parts[0] if len(parts) == 1 else np.concatenate([np.asarray(part) for part in parts])
