"""The values of a store, read by rows, which are checked before they are used."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anndata
import numpy as np

from fcm_estimators._types import Element
from fcm_estimators.exceptions import FcmError, InvalidInputError

# Rows of a sample: a range if they have no gaps, else ascending numbers.
Rows = range | np.ndarray


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turn what a damaged store raises in the block into InvalidInputError."""
    try:
        yield
    except FcmError:
        raise
    except Exception as error:  # anndata, h5py and zarr do not document their errors
        text = " ".join(str(error).split()) or type(error).__name__
        raise InvalidInputError(
            f"{path} cannot be read as AnnData: {text}. Copy the file again, or write it again."
        ) from error


class StoredValues:
    """Rows of a dense or CSR matrix on disk.

    Parameters
    ----------
    element : array or group of h5py or zarr
    shape : tuple of int
        Cells and columns that it must have.
    path : Path
        Of the store, for messages.

    Raises
    ------
    InvalidInputError
        The matrix is of another kind or shape, or damaged, or its values are not real numbers.
    """

    def __init__(self, element: Element, shape: tuple[int, int], path: Path) -> None:
        self._shape, self._path = shape, path
        with readable(path):
            kind = element.attrs.get("encoding-type", "array")
            if kind not in ("array", "csr_matrix"):
                raise InvalidInputError(
                    f"The values are stored as {kind}; rows can be read from a dense array or a "
                    "csr_matrix. Convert them first."
                )
            self._sparse = kind == "csr_matrix"
            if self._sparse:
                _require_whole(element, shape[0])
            self._rows = anndata.io.sparse_dataset(element) if self._sparse else element
            if tuple(self._rows.shape) != shape:
                raise InvalidInputError(
                    f"{path} is damaged: its values have the shape {tuple(self._rows.shape)}, but "
                    f"obs and var have {shape[0]} cells and {shape[1]} columns."
                )
            stored = np.dtype(self._rows.dtype)
            if stored.kind not in "fiub":
                raise InvalidInputError(
                    f"X holds values of type {stored}; real numbers are needed."
                )
        # The net computes in float64 if the values are float64, else in float32.
        self.dtype = np.dtype(np.float64 if stored == np.float64 else np.float32)

    def read(self, rows: Rows) -> np.ndarray:
        """Values of ascending rows, shape (n, n_columns); reads all rows from first to last."""
        first, last = int(rows[0]), int(rows[-1]) + 1
        with readable(self._path):
            block = self._rows[first:last]
            if self._sparse:
                # A column that does not exist would be written beyond the array.
                block.check_format(full_check=True)
            dense = block.toarray() if self._sparse else np.asarray(block)
        return dense if len(rows) == last - first else dense[np.asarray(rows) - first]


def _require_whole(element: Element, n_rows: int) -> None:
    """Raise InvalidInputError unless the rows of a CSR matrix lie one after the other."""
    ends = np.asarray(element["indptr"][:])
    sizes = {element[name].shape for name in ("data", "indices")}
    if (
        ends.dtype.kind not in "iu"
        or np.dtype(element["indices"].dtype).kind not in "iu"
        or ends.shape != (n_rows + 1,)
        or ends[0] != 0
        or (np.diff(ends.astype(np.int64)) < 0).any()
        or sizes != {(int(ends[-1]),)}
    ):
        raise InvalidInputError(
            "indptr, indices and data of its csr_matrix do not fit together or do not fit obs"
        )
