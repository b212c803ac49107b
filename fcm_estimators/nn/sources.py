"""Sources of the cells of a stream, and stores of its rows between sweeps."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from torch import Tensor


class Piece(NamedTuple):
    """Cells of one sample in a chunk: rows ``start:stop`` of the chunk."""

    sample: int
    start: int
    stop: int


class CellSource(Protocol):
    """Cells that are read chunk by chunk; every reading gives the same cells.

    Attributes
    ----------
    n_cells, n_samples : int
    """

    n_cells: int
    n_samples: int

    def read(self, start: int, stop: int) -> Tensor:
        """Cells ``start:stop`` in the caller's units, shape (stop - start, M)."""

    def pieces(self, start: int, stop: int) -> Sequence[Piece]:
        """Tell which rows of this chunk belong to which sample.

        Pieces are in ascending order. Every row is in one piece, every sample in at most one.
        """


class PackedCells:
    """Cells in memory, with samples packed.

    Parameters
    ----------
    x : Tensor of shape (N, M)
    offsets : sequence of S + 1 int, optional
        Row limits of the samples. Default: all rows are one sample.
    """

    def __init__(self, x: Tensor, offsets: Sequence[int] | None = None) -> None:
        self.x = x
        self.offsets = [0, len(x)] if offsets is None else list(offsets)
        self.n_cells, self.n_samples = len(x), len(self.offsets) - 1

    def read(self, start: int, stop: int) -> Tensor:
        """Cells ``start:stop``."""
        return self.x[start:stop]

    def pieces(self, start: int, stop: int) -> list[Piece]:
        """Parts of the samples that lie in the chunk."""
        found = []
        for sample in range(bisect_right(self.offsets, start) - 1, self.n_samples):
            first, last = self.offsets[sample : sample + 2]
            if first >= stop:
                break
            low, high = max(first, start), min(last, stop)
            if low < high:
                found.append(Piece(sample, low - start, high - start))
        return found


class Rows(Protocol):
    """Store of rows between sweeps."""

    def get(self, start: int, stop: int) -> Tensor:
        """Rows ``start:stop``."""

    def put(self, start: int, rows: Tensor) -> None:
        """Replace the rows from ``start`` on."""


class Stored:
    """Rows in memory.

    Parameters
    ----------
    rows : Tensor of shape (N, width)
    """

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    @classmethod
    def new(cls, n_rows: int, width: int, like: Tensor) -> Stored:
        """Make rows with arbitrary content, of the dtype and device of ``like``."""
        return cls(like.new_empty(n_rows, width))

    def get(self, start: int, stop: int) -> Tensor:
        """Return rows ``start:stop``, as a view."""
        return self.rows[start:stop]

    def put(self, start: int, rows: Tensor) -> None:
        """Replace the rows from ``start`` on."""
        self.rows[start : start + len(rows)] = rows
