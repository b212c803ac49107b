"""Records of results, ``{name}.json`` beside ``{name}.h5ad``, and the table made of them."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pandas as pd

from fcm_estimators._files import checksum, remove_leftovers, write_table, write_whole
from fcm_estimators._types import Entries

_TABLE = "table.csv"
# Seconds that nobody needs to write a table.
_LONG = 600.0


def read_record(path: Path) -> Entries:
    """Entries of a record; none if there is none or it is damaged."""
    try:
        found = json.loads(path.read_bytes())
        identity, rows = found.get("identity"), found.get("rows")
        whole = isinstance(identity, dict) and isinstance(rows, list)
        return found if whole and all(isinstance(row, dict) for row in rows) else {}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}


def kept_rows(record: Path, output: Path, identity: Entries) -> list[Entries] | None:
    """Rows of an earlier run if its inputs were the same and its result is unchanged."""
    done = read_record(record)
    try:
        if done.get("identity") != identity or checksum(output) != done.get("output"):
            return None
    except OSError:
        return None
    return [{**row, "status": "kept"} for row in done["rows"]]


def write_done(record: Path, output: Path, identity: Entries, rows: list[Entries]) -> None:
    """Record a result."""
    done = {"identity": identity, "output": checksum(output), "rows": rows}
    write_whole(record, json.dumps(done, indent=1).encode())


def write_failed(record: Path, settings: Entries, rows: list[Entries]) -> None:
    """Record a failure beside the result of other settings, if there is one."""
    found = {"identity": {}, "rows": [], **read_record(record)}
    found["failed"] = {"identity": settings, "rows": rows}
    # If even this cannot be written, the table of this run still has the row.
    with contextlib.suppress(OSError):
        write_whole(record, json.dumps(found, indent=1).encode())


def as_table(rows: list[Entries]) -> pd.DataFrame:
    """Table of rows; counts are whole numbers that may be missing."""
    table = pd.DataFrame(rows)
    columns = table.columns.astype(str)
    whole = [c for c in columns if c.startswith("n_") or c in ("numerator", "denominator")]
    # Failed files have no counts. Int64 holds missing values without turning counts into floats.
    return table.astype(dict.fromkeys(whole, "Int64"))


def write_rows(folder: Path, rows: list[Entries], names: list[str], settings: Entries) -> None:
    """Write ``table.csv``: these rows, then those that other runs with the same settings recorded.

    A table is not replaced by one in which nothing succeeded.

    Parameters
    ----------
    folder : Path
        Directory of the results.
    rows : list of dict
        Rows of this run.
    names : list of str
        Names of the results that they are about.
    settings : dict
        :meth:`~fcm_estimators.cohort.jobs.Job.fingerprint`.
    """
    remove_leftovers(folder / _TABLE, seconds=_LONG)
    while True:
        before = _records(folder)
        others = [row for path in before if path.stem not in names for row in _rows(path, settings)]
        every = [*rows, *others]
        good = any(row.get("status") != "failed" for row in every)
        if good or not (folder / _TABLE).exists():
            write_table(folder / _TABLE, as_table(every))
        # A run that recorded its last result meanwhile may have written its table before this.
        if _records(folder) == before:
            return


def _records(folder: Path) -> dict[Path, int]:
    """Records and the times when they were written."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        with contextlib.suppress(FileNotFoundError):
            found[path] = path.stat().st_mtime_ns
    return found


def _rows(path: Path, settings: Entries) -> list[Entries]:
    """Rows that a record has of these settings."""
    found = read_record(path)
    if not found:
        return []
    made = {k: v for k, v in found["identity"].items() if k != "input"}
    if made == settings and path.with_suffix(".h5ad").exists():
        return list(found["rows"])
    failed = found.get("failed", {})
    return list(failed["rows"]) if failed.get("identity") == settings else []
