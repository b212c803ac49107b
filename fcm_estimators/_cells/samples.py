"""Packed samples, and their reading from AnnData, DataFrames and arrays."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import ArrayLike
from sklearn.utils import column_or_1d

from fcm_estimators._cells.defaults import (
    default_channels,
    idle_channels,
    require_stains,
    warn_of_left_out,
)
from fcm_estimators._cells.within import Within
from fcm_estimators._checks import (
    as_flags,
    gate_called,
    listed,
    marker_positions,
    require_finite,
    require_key,
)
from fcm_estimators.exceptions import InvalidInputError, MissingKeyError
from fcm_estimators.keys import EXPERT_GATES

# Cells in rows, and a value for each of them, as callers pass them.
CellData: TypeAlias = AnnData | pd.DataFrame | ArrayLike
PerCell: TypeAlias = ArrayLike | pd.Series | pd.DataFrame | pd.Categorical | pd.Index | None


@dataclass(frozen=True)
class Samples:
    """Cells of several samples in one block, with their rows in the user's data.

    Attributes
    ----------
    x : ndarray of shape (N, M)
        Analysed cells, float32 or float64, sample after sample.
    offsets : list of S + 1 int
        Sample ``s`` is ``x[offsets[s]:offsets[s + 1]]``.
    names : ndarray of shape (S,)
        Sample ids, by first appearance.
    patients : ndarray of shape (S,)
        Patient of each sample; the sample id if the data name no patients.
    markers : list of M str
    rows : ndarray of int of shape (N,)
        Row in the user's data of each row of ``x``.
    n_rows : int
        Number of rows of the user's data, including cells outside the subset.
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

    def spans(self) -> Iterator[tuple[int, int]]:
        """Start and stop of the rows of each sample in ``x``."""
        return pairwise(self.offsets)

    def scatter(self, values: np.ndarray, fill: object) -> np.ndarray:
        """Values of analysed cells in the order of the user's rows, with ``fill`` elsewhere."""
        out = np.full((self.n_rows, *values.shape[1:]), fill, dtype=values.dtype)
        out[self.rows] = values
        return out

    def cells_of(self, chosen: Sequence[int]) -> np.ndarray:
        """Rows of ``x`` that belong to some of the samples, given by position."""
        spans = [np.arange(self.offsets[s], self.offsets[s + 1]) for s in chosen]
        return np.concatenate([*spans, np.empty(0, dtype=np.intp)])

    def take(self, chosen: Sequence[int]) -> Samples:
        """Return some of the samples, given by position."""
        picked = self.cells_of(chosen)
        sizes = np.diff(self.offsets)[list(chosen)]
        return Samples(
            self.x[picked],
            [0, *np.cumsum(sizes).tolist()],
            self.names[list(chosen)],
            self.patients[list(chosen)],
            self.markers,
            self.rows[picked],
            self.n_rows,
        )

    def thinned(self, n_cells: int) -> tuple[Samples, np.ndarray]:
        """Some of the cells, evenly spaced, and their rows in ``x``.

        Parameters
        ----------
        n_cells : int
            At most this number of each sample.
        """
        rows = np.concatenate(
            [np.arange(i, j, max(1, -(-(j - i) // n_cells))) for i, j in self.spans()]
        )
        sizes = np.bincount(self.sample_of_cell[rows], minlength=len(self.names))
        offsets = [0, *np.cumsum(sizes).tolist()]
        thin = replace(self, x=self.x[rows], offsets=offsets, rows=self.rows[rows])
        return thin, rows


@dataclass(frozen=True)
class Source:
    """Parameters of an estimator that say what to read from the user's data.

    Parameters
    ----------
    sample_key, patient_key, subset_key : str, int or None
        Column of ``obs`` (AnnData) or of the table (DataFrame), or column number (array).
    label_key : str or None
        Column that holds labels and is therefore not a marker.
    layer : str or None
    aliases : mapping or None
        Name in the data -> name in the model.
    within : Within or None
        Gate whose cells are read.
    """

    sample_key: Hashable = None
    patient_key: Hashable = None
    subset_key: Hashable = None
    label_key: Hashable = None
    layer: str | None = None
    aliases: Mapping[str, str] | None = None
    within: Within | None = None

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
    groups: PerCell = None,
) -> Samples:
    """Read samples from AnnData, a DataFrame or a numeric array.

    Parameters
    ----------
    data : AnnData, DataFrame or ndarray
        Cells in rows. An array must have passed scikit-learn's validation.
    source : Source
    markers : sequence of str, optional
        Markers to read, in this order. Default: scatter and one channel per stain of an AnnData
        with ``var["kind"]`` (:func:`~fcm_estimators._cells.defaults.default_channels`), without
        channels that hold one value or only count up; a warning names what is left out. Else all
        columns but Time. For an array, all columns that are no key.
    groups : array-like of shape (n_cells,), optional
        Sample id of each cell, instead of ``source.sample_key``.

    Returns
    -------
    Samples

    Raises
    ------
    InvalidInputError
        There are no cells or no stained channel; a value is not a finite real number; a sample or
        patient id is missing; a sample has more than one patient; or sample ids are given twice.
    MissingKeyError, MarkerMismatchError
        A named column, layer or marker is missing.
    """
    n_rows = data.shape[0]
    if n_rows == 0:
        raise InvalidInputError(
            "Found 0 cells, and at least one is needed. Check how the cells were filtered."
        )
    inside = _subset(data, source)
    ids = _sample_ids(data, source, groups)
    patients = ids
    if source.patient_key is not None:
        patients = _coded(_values(data, source.patient_key, "patient_key"))
        _require_complete(patients, "patient id", source.patient_key)
    names = _marker_names(data, source)
    kinds_known = isinstance(data, AnnData) and "kind" in data.var
    left_out: dict[str, str] = {}
    if markers is not None:
        wanted = list(markers)
    elif kinds_known:
        wanted, left_out = default_channels(data.var, names)
        require_stains(wanted, data.var, names)
    else:
        wanted = _all_but_time(names)
    if isinstance(data, np.ndarray):
        positions = np.array([i for i in range(data.shape[1]) if i not in source.keys])
        wanted = [names[i] for i in positions]
    else:
        positions = marker_positions(wanted, names)

    rows = np.arange(n_rows) if inside is None else np.flatnonzero(inside)
    if len(rows) == 0:
        limits = [] if source.subset_key is None else [f"subset_key={source.subset_key!r}"]
        limits += [] if source.within is None else [f"the gate {source.within.gate!r}"]
        raise InvalidInputError(f"{' and '.join(limits)} leaves 0 of {n_rows} cells to analyse.")
    codes, present = pd.factorize(ids.codes[rows])
    sample_names = ids.names[present]
    if (codes[1:] < codes[:-1]).any():
        rows = rows[np.argsort(codes, kind="stable")]
    counts = np.bincount(codes)
    offsets = [0, *np.cumsum(counts).tolist()]
    first = patients.codes[rows[offsets[:-1]]]
    patient_of_sample = patients.names[first]
    if patients is not ids:
        _require_one_patient(patients.codes[rows], first, counts, sample_names)
    x = _matrix(data, source, rows, positions)
    require_finite(x, wanted)
    if markers is None and kinds_known:
        idle = idle_channels(x, offsets, wanted, _event_numbers(data, source, rows))
        if idle:
            x = np.ascontiguousarray(x[:, [name not in idle for name in wanted]])
            wanted = [name for name in wanted if name not in idle]
            require_stains(wanted, data.var, names)
        warn_of_left_out({**left_out, **idle})
    return Samples(x, offsets, np.asarray(sample_names), patient_of_sample, wanted, rows, n_rows)


def model_names(names: Iterable[object], aliases: Mapping[str, str] | None) -> list[str]:
    """Names in the model of some names in the data."""
    return [(aliases or {}).get(str(name), str(name)) for name in names]


def data_names(names: Iterable[object], aliases: Mapping[str, str] | None) -> dict[str, str]:
    """Names in the data by their names in the model."""
    own = [str(name) for name in names]
    return dict(zip(model_names(own, aliases), own, strict=True))


def column(data: Any, key: Hashable, what: str) -> np.ndarray:
    """One column of ``obs``, of a table or of an array, as an array."""
    if isinstance(data, AnnData):
        require_key(key, data.obs.columns, f"{what}: the obs column")
        return _plain(data.obs[key])
    if isinstance(data, pd.DataFrame):
        require_key(key, data.columns, f"{what}: the column")
        return _plain(data[key])
    if not isinstance(key, (int, np.integer)) or not 0 <= key < data.shape[1]:
        raise MissingKeyError(
            f"{what}={key!r} is not a column of an array with {data.shape[1]} columns. Give a "
            "column number, or pass a DataFrame or AnnData."
        )
    values: np.ndarray = data[:, key]
    return values


class _Ids(NamedTuple):
    """Ids of all rows as codes, -1 if missing, and the names of the codes."""

    codes: np.ndarray
    names: np.ndarray


def _coded(values: Any) -> _Ids:
    if isinstance(values, (pd.Series, pd.Categorical)) and isinstance(
        values.dtype, pd.CategoricalDtype
    ):
        found = pd.Categorical(values)
        return _Ids(np.asarray(found.codes), found.categories.to_numpy())
    codes, names = pd.factorize(np.asarray(values))
    return _Ids(codes, np.asarray(names))


def _values(data: Any, key: Hashable, what: str) -> Any:
    """One column, as :func:`column`; a categorical column stays one."""
    if isinstance(data, AnnData) and key in data.obs:
        return data.obs[key]
    return column(data, key, what)


def _plain(values: pd.Series) -> np.ndarray:
    if isinstance(values.dtype, pd.CategoricalDtype):
        return values.astype(object).to_numpy()
    return values.to_numpy()


def _subset(data: Any, source: Source) -> np.ndarray | None:
    within = None if source.within is None else source.within.inside(data)
    key = source.subset_key
    if key is None:
        return within
    gates = data.obsm.get(EXPERT_GATES) if isinstance(data, AnnData) else None
    gate = gate_called(str(key), gates) if isinstance(gates, pd.DataFrame) else None
    if isinstance(gates, pd.DataFrame) and key not in data.obs and gate in gates:
        inside = gates[gate].to_numpy()
    else:
        inside = column(data, key, "subset_key")
    flags = as_flags(inside, f"subset_key={key!r}")
    return flags if within is None else flags & within


def _sample_ids(data: Any, source: Source, groups: PerCell) -> _Ids:
    if groups is not None:
        if source.sample_key is not None:
            raise InvalidInputError(
                f"Sample ids were given twice: groups= and sample_key={source.sample_key!r}. "
                "Pass one of them."
            )
        given: np.ndarray = column_or_1d(
            np.asarray(groups) if not isinstance(groups, pd.Series) else _plain(groups)
        )
        if len(given) != data.shape[0]:
            raise InvalidInputError(
                f"groups has {len(given)} entries for {data.shape[0]} cells; one per cell is "
                "needed."
            )
        ids = _coded(given)
        _require_complete(ids, "sample id", "groups")
        return ids
    if source.sample_key is None:
        return _Ids(np.zeros(data.shape[0], dtype=np.intp), np.zeros(1, dtype=np.intp))
    ids = _coded(_values(data, source.sample_key, "sample_key"))
    _require_complete(ids, "sample id", source.sample_key)
    return ids


def _require_complete(ids: _Ids, what: str, where: Hashable) -> None:
    n_missing = int((ids.codes < 0).sum())
    if n_missing:
        raise InvalidInputError(
            f"{n_missing} of {len(ids.codes)} cells have no {what} (NaN) in {where!r}. Every cell "
            "needs one. Remove those cells or fill the column."
        )


def _require_one_patient(
    patients: np.ndarray, expected: np.ndarray, counts: np.ndarray, names: np.ndarray
) -> None:
    differs = patients != np.repeat(expected, counts)
    if differs.any():
        sample = np.repeat(np.arange(len(names)), counts)[np.flatnonzero(differs)[0]]
        raise InvalidInputError(
            f"Sample {names[sample]!r} has cells of more than one patient, but a sample belongs "
            "to one patient. Check patient_key and sample_key."
        )


def _marker_names(data: Any, source: Source) -> list[str]:
    if isinstance(data, np.ndarray):
        return [f"column {i}" for i in range(data.shape[1])]
    if isinstance(data, AnnData):
        return model_names(data.var_names, source.aliases)
    names = [name for name in data.columns if name not in source.keys]
    return model_names(names, source.aliases)


def _all_but_time(names: list[str]) -> list[str]:
    chosen = [name for name in names if name.lower() != "time"]
    if not chosen:
        raise InvalidInputError(
            f"No marker to read: there is only {listed(names)}. Name them with markers=[...]."
        )
    return chosen


def _event_numbers(data: AnnData, source: Source, rows: np.ndarray) -> np.ndarray | None:
    """Position of each event in its file, where samples are files that number them."""
    if source.sample_key is None or "event" not in data.obs:
        return None
    numbers = data.obs["event"].to_numpy()
    return numbers[rows] if numbers.dtype.kind in "iuf" else None


def _matrix(data: Any, source: Source, rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Rows and columns of the values as one float block. The user's data do not change."""
    if isinstance(data, AnnData):
        if source.layer is not None:
            # anndata 0.13 has X among the layers, as None.
            require_key(source.layer, [n for n in data.layers if n is not None], "layer: the layer")
        block = data.X if source.layer is None else data.layers[source.layer]
        if block is None:
            raise InvalidInputError("adata.X is None; name the layer to read with layer=...")
        if not isinstance(block, np.ndarray) and not sp.issparse(block):
            block = block[:]  # a backed AnnData: read the array of the file once
        if sp.issparse(block):
            require_whole(block)
            block = block.tocsr()[rows][:, positions].toarray()
            rows, positions = np.arange(len(rows)), np.arange(len(positions))
    elif isinstance(data, pd.DataFrame):
        markers = data.drop(columns=[key for key in source.keys if key in data.columns])
        used = markers.iloc[:, positions]
        text = [str(c) for c, t in used.dtypes.items() if not pd.api.types.is_numeric_dtype(t)]
        if text:
            raise InvalidInputError(
                f"Marker column(s) {listed(text)} are not numeric. If a column is not a marker, "
                "name it as sample_key, patient_key, label_key or subset_key, or list the markers."
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
    all_rows = len(rows) == len(block) and (np.diff(rows) == 1).all()
    all_columns = np.array_equal(positions, np.arange(block.shape[1]))
    picked = block if all_rows else block[rows]
    picked = picked if all_columns else np.take(picked, positions, axis=1)
    return np.ascontiguousarray(picked, dtype=dtype)


def require_whole(matrix: Any) -> None:
    """Raise InvalidInputError if a sparse matrix points beyond itself, which would crash scipy."""
    try:
        if hasattr(matrix, "check_format"):
            matrix.check_format(full_check=True)
    except ValueError as error:
        raise InvalidInputError(f"The sparse values are damaged: {error}.") from error


def read_labels(data: Any, y: PerCell, label_key: Hashable, n_rows: int) -> np.ndarray:
    """Labels of all ``n_rows`` rows: from ``y``, else from the column ``label_key``.

    Raises
    ------
    InvalidInputError
        Both are None, or ``y`` has another length than the data.
    """
    if y is None:
        if label_key is None:
            raise InvalidInputError(
                "This estimator requires y to be passed, but the target y is None. Call "
                "fit(X, y), or name a column with label_key=..."
            )
        return column(data, label_key, "label_key")
    if isinstance(y, (pd.Series, pd.Categorical, pd.Index)):
        y = _plain(pd.Series(y))
    labels: np.ndarray = column_or_1d(y, warn=True)
    if len(labels) != n_rows:
        raise InvalidInputError(
            f"y has {len(labels)} labels for {n_rows} cells; one per cell is needed "
            "(NaN means no label)."
        )
    return labels
