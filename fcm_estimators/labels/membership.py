"""Read membership in gates from tables and exported files; store it in one DataFrame."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import combinations
from os import PathLike
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from fcm_estimators._checks import gate_called, nullable_flags, rows_by_sample
from fcm_estimators.exceptions import InvalidInputError, MissingKeyError
from fcm_estimators.io.decode import decode
from fcm_estimators.io.record import UNS_KEY, sample_row
from fcm_estimators.io.segment import open_segment
from fcm_estimators.io.write import shared_channels
from fcm_estimators.keys import LABELLED_WITHIN

PathName = str | PathLike[str]
# A gate in a table of one or two rows can look like a row counter; then the name decides.
_COUNTER_NAMES = ("", "index", "event", "Unnamed: 0")


def require_own_data(adata: ad.AnnData) -> None:
    """Raise InvalidInputError if `adata` is a view: writing to it would silently copy it."""
    if adata.is_view:
        raise InvalidInputError(
            "adata is a view of another AnnData. Call adata = adata.copy() first; otherwise the "
            "labels would be written to a copy."
        )


def per_sample(
    adata: ad.AnnData, paths: PathName | Mapping[str, PathName], name: str
) -> dict[str, Path]:
    """Map samples to paths, and check that the samples exist."""
    present = [str(sample) for sample in adata.obs["sample"].unique()]
    if not isinstance(paths, Mapping):
        if len(present) != 1:
            raise InvalidInputError(
                f"{name} is one path, but adata holds {len(present)} samples "
                f"({', '.join(present)}). Give a mapping of sample to path."
            )
        return {present[0]: Path(paths)}
    if absent := [str(sample) for sample in paths if sample not in present]:
        raise MissingKeyError(
            f"{name} names the samples {', '.join(absent)}, which adata does not have; it holds "
            f"{', '.join(present) or 'none'}."
        )
    if not paths:
        raise InvalidInputError(f"{name} is empty; give a path for at least one sample.")
    return {str(sample): Path(path) for sample, path in paths.items()}


def rows_of(adata: ad.AnnData, sample: str) -> np.ndarray:
    """Rows of `adata` that belong to `sample`."""
    return rows_by_sample(adata, "sample")[sample]


def read_gate_table(
    adata: ad.AnnData, sample: str, file: Path, event_column: str | None
) -> pd.DataFrame:
    """Read the table of one sample, indexed by event; its rows are the events in `adata`."""
    try:
        table = pd.read_csv(file)
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"Cannot read {file} as CSV: {error}") from error
    events = adata.obs["event"].to_numpy()[rows_of(adata, sample)]
    if event_column is None:
        _check_row_count(adata, sample, table, events, file)
        table = table.loc[:, [not _is_counter(table[column]) for column in table]]
    elif event_column not in table:
        raise MissingKeyError(
            f"{file.name} has no column {event_column!r}; it has {', '.join(table.columns)}."
        )
    else:
        table = table.set_index(event_column)
        if table.index.has_duplicates:
            raise InvalidInputError(
                f"{file.name}: column {event_column!r} repeats "
                f"{int(table.index.duplicated().sum())} events; expected one row per event."
            )
    if absent := int((~np.isin(events, table.index.to_numpy())).sum()):
        raise InvalidInputError(
            f"{file.name} has no row for {absent} of the {len(events)} events of sample "
            f"{sample!r}. Use the table of the same FCS file, with all its events."
        )
    found: pd.DataFrame = table.loc[events]
    return found


def as_membership(column: pd.Series, file: Path) -> pd.Series:
    """Convert 0/1 or True/False to nullable boolean; empty entries are unknown (NA)."""
    flags = nullable_flags(
        column,
        f"{file.name}: column {column.name!r}",
        "Name the gate columns with gates=, or the column of event numbers with event_column=.",
    )
    return pd.Series(flags, index=column.index, name=column.name)


def match_export(
    file: Path, raw: np.ndarray, var: pd.DataFrame, time_in_seconds: bool
) -> np.ndarray:
    """Find the events of a sample that an exported FCS file holds.

    Parameters
    ----------
    file : Path
        The exported gate.
    raw : ndarray of float32, shape (N, M)
        Raw values of the sample.
    var : DataFrame, M rows
        With columns "channel" and "marker".
    time_in_seconds : bool
        Whether Time in `raw` is multiplied by ``$TIMESTEP``.

    Returns
    -------
    ndarray of bool, shape (N,)

    Raises
    ------
    InvalidInputError
        If no channel is shared, or an exported event is not in the sample.
    FcsError
        If the file cannot be read.

    Examples
    --------
    See :func:`fcm_estimators.labels.gates_from_exports`.
    """
    segment = open_segment(file)
    pairs = [(i, j) for i, j in shared_channels(segment, var) if not np.isnan(raw[:, j]).all()]
    if not pairs:
        raise InvalidInputError(
            f"{file.name} shares no channel with the data: it has "
            f"{', '.join(segment.channel_names)}, the data have {', '.join(var['channel'])}."
        )
    if segment.n_events == 0:
        return np.zeros(len(raw), dtype=bool)
    columns = np.full(len(segment.channels), -1)
    columns[[i for i, _ in pairs]] = np.arange(len(pairs))
    exported = np.empty((segment.n_events, len(pairs)), dtype=np.float32)
    decode(segment, exported, columns.tolist(), time_in_seconds)
    found = _positions(exported, raw[:, [j for _, j in pairs]])
    if unmatched := int((found < 0).sum()):
        raise InvalidInputError(
            f"{unmatched} of the {segment.n_events} events in {file.name} are not among the "
            f"{len(raw)} events of the sample. Export the gate from the same file, uncompensated, "
            "and label the sample before removing events."
        )
    inside = np.zeros(len(raw), dtype=bool)
    inside[found] = True
    return inside


def store_gates(
    adata: ad.AnnData, tables: Mapping[str, pd.DataFrame], gates: Iterable[str], key: str
) -> None:
    """Write ``obsm[key]`` from one table per sample, with the rows of the sample in order."""
    names = list(gates)
    if not names:
        raise InvalidInputError("No gate was found; name the gate columns with gates=.")
    if bad := [gate for gate in names if "/" in str(gate)]:
        # In the h5ad format, "/" is a level of nesting.
        raise InvalidInputError(f"Gate names must not contain '/': {', '.join(bad)}. Rename them.")
    frame = pd.DataFrame(index=adata.obs_names)
    for gate in names:
        values = np.zeros(adata.n_obs, dtype=bool)
        unknown = np.ones(adata.n_obs, dtype=bool)
        for sample, table in tables.items():
            if gate in table:
                rows = rows_of(adata, sample)
                column = table[gate].astype("boolean")
                values[rows] = column.fillna(False).to_numpy(dtype=bool)
                unknown[rows] = column.isna().to_numpy()
        frame[str(gate)] = pd.arrays.BooleanArray(values, unknown) if unknown.any() else values
    adata.obsm[key] = frame


def membership(
    adata: ad.AnnData, key: str, gates: Iterable[str]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Two bool arrays per gate: which cells are inside, and for which cells this is known."""
    if key not in adata.obsm:
        raise MissingKeyError(
            f"adata.obsm has no {key!r}; it has {', '.join(adata.obsm) or 'nothing'}. Read the "
            "gates first, e.g. with fcm_estimators.labels.gates_from_csv."
        )
    frame = adata.obsm[key]
    if not isinstance(frame, pd.DataFrame):
        raise InvalidInputError(
            f"obsm[{key!r}] is a {type(frame).__name__}; expected a DataFrame with one bool column "
            "per gate."
        )
    found = {}
    for asked in gates:
        gate = gate_called(asked, frame)
        if gate not in frame:
            raise MissingKeyError(
                f"obsm[{key!r}] has no gate {gate!r}; it has {', '.join(frame.columns)}."
            )
        if not pd.api.types.is_bool_dtype(frame[gate]):
            raise InvalidInputError(
                f"Gate {gate!r} in obsm[{key!r}] is {frame[gate].dtype}; expected bool."
            )
        column = frame[gate].astype("boolean")
        found[asked] = (
            column.fillna(False).to_numpy(dtype=bool),
            column.notna().to_numpy(dtype=bool),
        )
    return found


def record_within(adata: ad.AnnData, label_key: str, within: str | None, gates_key: str) -> None:
    """Record the gate inside which labels were made in ``uns``; forget that of earlier labels."""
    record = dict(adata.uns.get(LABELLED_WITHIN, {}))
    record.pop(label_key, None)
    if within is not None:
        record[label_key] = {"gate": within, "key": gates_key}
    if record:
        adata.uns[LABELLED_WITHIN] = record
    else:
        adata.uns.pop(LABELLED_WITHIN, None)


def refuse_overlap(inside: Mapping[str, np.ndarray], labels: Mapping[str, str]) -> None:
    """Raise InvalidInputError, with counts, if gates of different labels share cells."""
    shared = [
        f"{a} and {b} ({count} cells)"
        for a, b in combinations(inside, 2)
        if labels[a] != labels[b] and (count := int((inside[a] & inside[b]).sum()))
    ]
    if shared:
        raise InvalidInputError(
            f"Gates of different labels overlap: {', '.join(shared)}. Put the most specific "
            'gate first and pass overlap="first", or leave out the parent gates.'
        )


def _check_row_count(
    adata: ad.AnnData, sample: str, table: pd.DataFrame, events: np.ndarray, file: Path
) -> None:
    if UNS_KEY not in adata.uns:
        return
    expected = int(adata.uns[UNS_KEY]["n_events"][sample_row(adata, sample)])
    if len(table) != expected:
        raise InvalidInputError(
            f"{file.name} has {len(table)} rows, the FCS file of sample {sample!r} has {expected} "
            "events. Use the table of the same file, or name its column of event numbers with "
            "event_column=."
        )


def _is_counter(column: pd.Series) -> bool:
    if not pd.api.types.is_integer_dtype(column) or len(column) == 0:
        return False
    values = column.to_numpy()
    counts = np.array_equal(values - values[0], np.arange(len(values))) and values[0] in (0, 1)
    return counts and (len(values) > 2 or column.name in _COUNTER_NAMES)


def _positions(wanted: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Position in `rows` of each wanted row, -1 for none; of equal rows, the k-th of the k-th."""
    codes = np.zeros(len(rows) + len(wanted), dtype=np.int64)
    for column in np.vstack([rows, wanted]).T:
        # This goes column by column, because sorting whole rows is many times slower.
        values, uniques = pd.factorize(column)
        codes = pd.factorize(codes * (len(uniques) + 1) + values + 1)[0]
    pool, sought = pd.Series(codes[: len(rows)]), pd.Series(codes[len(rows) :])
    most = len(codes) + 1
    keys = pool * most + pool.groupby(pool).cumcount()
    wanted_keys = pd.Index(sought * most + sought.groupby(sought).cumcount())
    positions: np.ndarray = pd.Index(keys).get_indexer(wanted_keys)
    return positions
