"""The one place that turns AnnData, DataFrames and arrays into packed samples."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from sklearn.utils import column_or_1d

from fcm_estimators._checks import listed, marker_positions, require_finite, require_key
from fcm_estimators.exceptions import InvalidInputError, MissingKeyError

# Kinds of channel that a model reads unless told otherwise.
_DEFAULT_KINDS = ("scatter", "fluorescence", "mass")


@dataclass(frozen=True)
class Samples:
    """Cells of several samples in one block, and the way back to the caller's rows.

    Attributes
    ----------
    x : ndarray of shape (N, M)
        Analysed cells, float32 or float64, sample after sample.
    offsets : list of S + 1 int
        Sample ``s`` is ``x[offsets[s]:offsets[s + 1]]``.
    names : ndarray of shape (S,)
        Sample ids, by first appearance.
    patients : ndarray of shape (S,)
        Patient of each sample; the sample id where no patient was named.
    markers : list of M str
    rows : ndarray of int of shape (N,)
        The caller's row of each row of ``x``.
    n_rows : int
        The caller's number of rows, cells outside the subset included.
    """

    x: np.ndarray
    offsets: list[int]
    names: np.ndarray
    patients: np.ndarray
    markers: list[str]
    rows: np.ndarray
    n_rows: int

    @property
    def sample_of_cell(self) -> np.ndarray:
        """Position in ``names`` of each row of ``x``."""
        return np.repeat(np.arange(len(self.names)), np.diff(self.offsets))

    def scatter(self, values: np.ndarray, fill: Any) -> np.ndarray:
        """Put a value per analysed cell back into the caller's order; ``fill`` elsewhere."""
        out = np.full((self.n_rows, *values.shape[1:]), fill, dtype=values.dtype)
        out[self.rows] = values
        return out

    def take(self, chosen: Sequence[int]) -> Samples:
        """Return some of the samples, by position."""
        spans = [np.arange(self.offsets[s], self.offsets[s + 1]) for s in chosen]
        picked = np.concatenate(spans)
        return Samples(
            self.x[picked],
            [0, *np.cumsum([len(span) for span in spans]).tolist()],
            self.names[list(chosen)],
            self.patients[list(chosen)],
            self.markers,
            self.rows[picked],
            self.n_rows,
        )


@dataclass(frozen=True)
class Source:
    """Where in the caller's data to look; the reading parameters of an estimator.

    Parameters
    ----------
    sample_key, patient_key, subset_key : str, int or None
        Column of ``obs`` (AnnData), of the table (DataFrame), or number (array).
    label_key : str or None
        Column that holds labels, hence no marker.
    layer : str or None
    aliases : mapping or None
        Name in the data -> name the model uses.
    """

    sample_key: Hashable = None
    patient_key: Hashable = None
    subset_key: Hashable = None
    label_key: Hashable = None
    layer: str | None = None
    aliases: Mapping[str, str] | None = None

    @property
    def keys(self) -> list[Hashable]:
        """Columns that are not markers."""
        keys = [self.sample_key, self.patient_key, self.subset_key, self.label_key]
        return [key for key in keys if key is not None]


def read_samples(
    data: Any,
    source: Source,
    *,
    markers: Sequence[str] | None = None,
    groups: Any = None,
) -> Samples:
    """Read samples from AnnData, a DataFrame or a numeric array.

    Parameters
    ----------
    data : AnnData, DataFrame or ndarray
        Cells in rows. An array has passed scikit-learn's validation.
    source : Source
    markers : sequence of str, optional
        Markers to read, in this order. Default: scatter, stained fluorescence and mass channels
        of an AnnData whose ``var["kind"]`` says so, else all columns; never Time. For an array,
        all columns that are no key.
    groups : array-like of shape (n_cells,), optional
        Sample id of each cell; instead of ``source.sample_key``.

    Returns
    -------
    Samples

    Raises
    ------
    InvalidInputError
        No cells; values that are not finite, real numbers; ids that are missing; ids given twice.
    MissingKeyError, MarkerMismatchError
        A named column, layer or marker that is not there.
    """
    n_rows = data.shape[0]
    if n_rows == 0:
        raise InvalidInputError(
            "Found 0 cells, and at least one is needed. Check the filter applied before."
        )
    inside = _subset(data, source)
    ids = _sample_ids(data, source, groups)
    patients = column(data, source.patient_key, "patient_key") if _has(source.patient_key) else ids
    if _has(source.patient_key):
        _require_complete(patients, "patient id", source.patient_key)
    names = _marker_names(data, source)
    wanted = _default_markers(data, source, names) if markers is None else list(markers)
    if isinstance(data, np.ndarray):
        positions = np.array([i for i in range(data.shape[1]) if i not in source.keys])
        wanted = [names[i] for i in positions]
    else:
        positions = marker_positions(wanted, names)

    rows = np.arange(n_rows) if inside is None else np.flatnonzero(inside)
    if len(rows) == 0:
        raise InvalidInputError(
            f"subset_key={source.subset_key!r} leaves 0 of {n_rows} cells; nothing to analyse."
        )
    codes, sample_names = pd.factorize(ids[rows])
    order = np.argsort(codes, kind="stable")
    rows = rows[order]
    counts = np.bincount(codes)
    offsets = [0, *np.cumsum(counts).tolist()]
    patient_of_sample = np.asarray(patients)[rows[offsets[:-1]]]
    _require_one_patient(np.asarray(patients)[rows], patient_of_sample, counts, sample_names)
    x = _matrix(data, source, rows, positions)
    require_finite(x, wanted)
    return Samples(x, offsets, np.asarray(sample_names), patient_of_sample, wanted, rows, n_rows)


def column(data: Any, key: Hashable, what: str) -> np.ndarray:
    """One column of ``obs``, of a table, or of an array, as an object or numeric array."""
    if isinstance(data, AnnData):
        require_key(key, data.obs.columns, f"{what}: the obs column")
        return _plain(data.obs[key])
    if isinstance(data, pd.DataFrame):
        require_key(key, data.columns, f"{what}: the column")
        return _plain(data[key])
    if not isinstance(key, (int, np.integer)) or not 0 <= key < data.shape[1]:
        raise MissingKeyError(
            f"{what}={key!r} does not name a column of an array with {data.shape[1]} columns; "
            "give a column number, or pass a DataFrame or AnnData."
        )
    return data[:, key]


def _plain(values: pd.Series) -> np.ndarray:
    if isinstance(values.dtype, pd.CategoricalDtype):
        return values.astype(object).to_numpy()
    return values.to_numpy()


def _has(key: Hashable) -> bool:
    return key is not None


def _subset(data: Any, source: Source) -> np.ndarray | None:
    key = source.subset_key
    if key is None:
        return None
    gates = data.obsm.get("gates") if isinstance(data, AnnData) else None
    if isinstance(gates, pd.DataFrame) and key not in data.obs and key in gates:
        inside = gates[key].to_numpy()
    else:
        inside = column(data, key, "subset_key")
    values = pd.Series(inside)
    if values.isna().any() or not values.isin([0, 1]).all():
        raise InvalidInputError(
            f"subset_key={key!r} must be True or False for every cell; found "
            f"{listed(pd.unique(values)[:6])}."
        )
    return values.astype(bool).to_numpy()


def _sample_ids(data: Any, source: Source, groups: Any) -> np.ndarray:
    if groups is not None:
        if source.sample_key is not None:
            raise InvalidInputError(
                f"Sample ids were given twice: groups= and sample_key={source.sample_key!r}. "
                "Pass one of them."
            )
        ids = column_or_1d(
            np.asarray(groups) if not isinstance(groups, pd.Series) else _plain(groups)
        )
        if len(ids) != data.shape[0]:
            raise InvalidInputError(
                f"groups has {len(ids)} entries for {data.shape[0]} cells; one per cell is needed."
            )
        _require_complete(ids, "sample id", "groups")
        return ids
    if source.sample_key is None:
        return np.zeros(data.shape[0], dtype=np.intp)
    ids = column(data, source.sample_key, "sample_key")
    _require_complete(ids, "sample id", source.sample_key)
    return ids


def _require_complete(ids: np.ndarray, what: str, where: Hashable) -> None:
    n_missing = int(pd.isna(ids).sum())
    if n_missing:
        raise InvalidInputError(
            f"{n_missing} of {len(ids)} cells have no {what} (NaN) in {where!r}. Every cell "
            "belongs to one; remove those cells or fill the column."
        )


def _require_one_patient(
    patients: np.ndarray, expected: np.ndarray, counts: np.ndarray, names: np.ndarray
) -> None:
    differs = patients != np.repeat(expected, counts)
    if differs.any():
        sample = np.repeat(np.arange(len(names)), counts)[np.flatnonzero(differs)[0]]
        raise InvalidInputError(
            f"Sample {names[sample]!r} has cells of more than one patient; a sample belongs to "
            "one patient. Check patient_key and sample_key."
        )


def _marker_names(data: Any, source: Source) -> list[str]:
    if isinstance(data, np.ndarray):
        return [f"column {i}" for i in range(data.shape[1])]
    if isinstance(data, AnnData):
        names = [str(name) for name in data.var_names]
    else:
        names = [str(name) for name in data.columns if name not in source.keys]
    aliases = source.aliases or {}
    return [aliases.get(name, name) for name in names]


def _default_markers(data: Any, source: Source, names: list[str]) -> list[str]:
    if isinstance(data, AnnData) and "kind" in data.var:
        # As text: a stored AnnData comes back with categorical columns.
        kind = data.var["kind"].astype(str)
        keep = kind.isin(_DEFAULT_KINDS).to_numpy()
        if "marker" in data.var:
            unstained = data.var["marker"].isna() | (data.var["marker"].astype(str) == "")
            keep &= ~(unstained & (kind != "scatter")).to_numpy()
    else:
        keep = np.array([name.lower() != "time" for name in names], dtype=bool)
    chosen = [name for name, kept in zip(names, keep, strict=True) if kept]
    if not chosen:
        raise InvalidInputError(
            f"No marker to read: none of {listed(names)} is a scatter or stained channel. "
            "Name them with markers=[...]."
        )
    return chosen


def _matrix(data: Any, source: Source, rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Rows and columns of the values as one float block; the caller's data are not touched."""
    if isinstance(data, AnnData):
        if source.layer is not None:
            require_key(source.layer, data.layers.keys(), "layer: the layer")
        block = data.X if source.layer is None else data.layers[source.layer]
        if block is None:
            raise InvalidInputError("adata.X is None; name the layer to read with layer=...")
        if not isinstance(block, np.ndarray) and not sp.issparse(block):
            block = block[:]  # backed: a store's array, read once
        if sp.issparse(block):
            block = block.tocsr()[rows][:, positions].toarray()
            rows, positions = np.arange(len(rows)), np.arange(len(positions))
    elif isinstance(data, pd.DataFrame):
        markers = data.drop(columns=[key for key in source.keys if key in data.columns])
        used = markers.iloc[:, positions]
        words = [str(c) for c, t in used.dtypes.items() if not pd.api.types.is_numeric_dtype(t)]
        if words:
            raise InvalidInputError(
                f"Marker column(s) {listed(words)} are not numeric. Name the columns that are no "
                "markers as sample_key, patient_key, label_key or subset_key, or list markers."
            )
        block, positions = used.to_numpy(), np.arange(len(positions))
    else:
        block = data
    if np.iscomplexobj(block) or block.dtype.kind not in "fiub":
        raise InvalidInputError(
            f"X holds values of type {block.dtype}; real numbers are needed. Complex data not "
            "supported, and text must be converted first."
        )
    dtype = np.float64 if block.dtype == np.float64 else np.float32
    everything = len(rows) == len(block) and (np.diff(rows) == 1).all()
    columns = np.array_equal(positions, np.arange(block.shape[1]))
    picked = block if everything else block[rows]
    picked = picked if columns else picked[:, positions]
    return np.ascontiguousarray(picked, dtype=dtype)


def read_labels(data: Any, y: Any, label_key: Hashable, n_rows: int) -> np.ndarray:
    """Labels of all ``n_rows`` rows: from ``y``, else from the column ``label_key``.

    Raises
    ------
    InvalidInputError
        Neither given, or of another length than the data.
    """
    if y is None:
        if label_key is None:
            raise InvalidInputError(
                "This estimator requires y to be passed, but the target y is None: give "
                "fit(X, y) or name a column with label_key=..."
            )
        return column(data, label_key, "label_key")
    if isinstance(y, (pd.Series, pd.Categorical, pd.Index)):
        y = _plain(pd.Series(y))
    y = column_or_1d(y, warn=True)
    if len(y) != n_rows:
        raise InvalidInputError(
            f"y has {len(y)} labels for {n_rows} cells; one per cell is needed "
            "(NaN where a cell has none)."
        )
    return y
