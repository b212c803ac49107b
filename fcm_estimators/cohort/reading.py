"""Combine many files into one AnnData to train on."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd

from fcm_estimators._cells.samples import data_names, model_names
from fcm_estimators._checks import listed
from fcm_estimators._types import Entries, Progress
from fcm_estimators.cohort.executor import Call, executor, in_turn
from fcm_estimators.cohort.files import PathName, as_text, file_names, list_files, read_file
from fcm_estimators.exceptions import InvalidInputError, PanelMismatchError
from fcm_estimators.io.record import (
    COMPENSATION_KEY,
    FILE_KEY,
    INSTRUMENT_KEY,
    UNS_KEY,
    amplifiers,
    file_digests,
    get_keywords,
    get_spillover,
    pack_amplifiers,
    pack_fcs_record,
)
from fcm_estimators.keys import LABELLED_WITHIN

if TYPE_CHECKING:
    from distributed import Client


def read_files(
    files: PathName | Sequence[PathName],
    *,
    steps: Any = (),
    label: Callable[[ad.AnnData], None] | None = None,
    marker_aliases: Mapping[str, str] | None = None,
    max_cells: int | None = None,
    keep_raw: bool = False,
    sample_names: Sequence[str] | None = None,
    random_state: int = 0,
    client: Client | None = None,
    n_workers: int | None = None,
    on_error: str = "raise",
    progress: Progress | None = None,
) -> ad.AnnData:
    """Combine many files into one AnnData, ready for ``fit``.

    Each file is read, labelled, subsampled and preprocessed separately, several files at a time.
    Only the result is kept, so the raw data of all files are never in memory together.

    Parameters
    ----------
    files : path or sequence of paths
        FCS, h5ad or zarr, also mixed if the markers are the same. A directory stands for its files.
    steps : fitted model, sequence of transformers, or callable, default ()
        Preprocessing: the ``prepare`` of a model; or transformers such as
        ``[Compensation(), LogicleTransform()]``; or a function that takes the raw first file and
        returns transformers, such as ``preprocessing.standard_steps``. Transformers are fitted on
        the first file and applied to all files, so that the scale is the same.
    label : callable, optional
        Called with the raw AnnData of each file, which it labels in place. For worker processes it
        must be a function of a module.
    marker_aliases : mapping, optional
        Name in the model of names of markers in the files. Files that differ only in these names
        are joined: markers get the names of the first file, after ``label``.
    max_cells : int, optional
        Keep a random subset of this many cells of each sample. The subset ignores labels, so the
        share of a rare population stays about the same and its number of cells falls.
    keep_raw : bool, default False
        Keep ``layers["raw"]``, which doubles the memory.
    sample_names : sequence of str, optional
        Sample names, one per FCS file. Default: file names without ending.
    random_state : int, default 0
        Seed of the subsets. The subset of a sample depends only on this seed and its name.
    client : dask.distributed.Client, optional
        Cluster to use. It must have access to the files. Default: processes on this machine.
    n_workers : int, optional
        Number of processes if no client is given; 0 and 1 use the current process, as one file
        does. Default: one per core. Functions that are passed are then imported by the processes.
    on_error : {"raise", "skip"}, default "raise"
        "raise": raise one error that names the files that cannot be read (at most 10). "skip":
        leave these files out and list them in ``uns["cohort"]``.
    progress : callable, optional
        Called with a dict (``file``, ``error``) after each file.

    Returns
    -------
    AnnData
        Samples in the order of the files. If a file lacks a column of ``obs`` or ``obsm``, its
        cells have missing values there. ``uns["fcs"]`` is the record of all samples.
        ``uns["cohort"]`` lists the files with ``file``, ``n_cells`` and ``error``.

    Raises
    ------
    InvalidInputError
        There are no files, names repeat, no file can be read, or one cannot be read and
        ``on_error="raise"``; an alias gives two markers of a file the same name.
    PanelMismatchError
        Files differ in markers or in preprocessing.
    """
    if on_error not in ("raise", "skip"):
        raise InvalidInputError(f'on_error must be "raise" or "skip", got {on_error!r}.')
    if max_cells is not None and max_cells < 1:
        raise InvalidInputError(f"max_cells is {max_cells}; expected at least 1.")
    paths = list_files(files)
    named = file_names(paths, sample_names)
    fitted, first = _fitted(steps, paths[0], named[0], read=bool(marker_aliases))
    markers = [] if first is None else [str(name) for name in first.var_names]
    reading = Reading(
        fitted, label, max_cells, keep_raw, random_state, dict(marker_aliases or {}), markers
    )
    parts: list[ad.AnnData | None] = [None] * len(paths)
    errors = [""] * len(paths)

    def done(position: int, part: ad.AnnData | None, error: str) -> None:
        parts[position], errors[position] = part, as_text(error)
        if progress is not None:
            progress({"file": as_text(paths[position]), "error": errors[position]})

    n_done = 0
    if first is not None:
        # It was read for the steps and the names, and need not be read again.
        for _, part, error in in_turn([(functools.partial(prepare_part, reading), (first,))]):
            done(0, part, error)
        n_done = 1
    jobs: list[Call] = [
        (functools.partial(read_part, reading), (path, name))
        for path, name in zip(paths[n_done:], named[n_done:], strict=True)
    ]
    with executor(client, n_workers, len(jobs)) as run:
        for position, part, error in run(jobs):
            done(n_done + position, part, error)
    names = [as_text(path.name) for path in paths]
    failed = [(name, error) for name, error in zip(names, errors, strict=True) if error]
    if failed and (on_error == "raise" or len(failed) == len(paths)):
        raise InvalidInputError(
            f"{len(failed)} of {len(paths)} files cannot be used. {_by_cause(failed)}"
        )
    adata = joined([part for part in parts if part is not None])
    adata.uns["cohort"] = {
        "file": np.array(names, dtype=object),
        "n_cells": np.array([0 if part is None else part.n_obs for part in parts]),
        "error": np.array(errors, dtype=object),
    }
    return adata


def _by_cause(failed: list[tuple[str, str]]) -> str:
    """Errors of files, each once with the files that have it; the first ten."""
    causes: dict[str, list[str]] = {}
    for name, error in failed:
        causes.setdefault(error.removeprefix(f"{name}: "), []).append(name)
    texts = [f"{', '.join(names[:10])}: {error}" for error, names in causes.items()]
    more = [f"and {len(texts) - 10} other errors"] if len(texts) > 10 else []
    return " | ".join([*texts[:10], *more])


def _fitted(steps: Any, path: Path, name: str, *, read: bool) -> tuple[Any, ad.AnnData | None]:
    """Fit transformers on the first file; return them, and that file if it was or shall be read."""
    if hasattr(steps, "prepare") or (not callable(steps) and not list(steps)):
        return steps, read_file(path, name=name) if read else None
    first = adata = read_file(path, name=name)
    fitted = []
    for step in steps(first) if callable(steps) else steps:
        fitted.append(step.fit(adata))
        adata = step.transform(adata)
    return fitted, first


@dataclass(frozen=True)
class Reading:
    """Settings for reading each file of the training data."""

    steps: Any
    label: Callable[[ad.AnnData], None] | None
    max_cells: int | None
    keep_raw: bool
    seed: int
    aliases: Mapping[str, str]
    markers: list[str]


def read_part(reading: Reading, path: Path, name: str) -> ad.AnnData:
    """Read, label, subsample and preprocess one file; runs in a worker."""
    return prepare_part(reading, read_file(path, name=name))


def prepare_part(reading: Reading, adata: ad.AnnData) -> ad.AnnData:
    """Label, subsample and preprocess one file that was read."""
    if reading.label is not None:
        reading.label(adata)
    if reading.aliases and set(adata.var_names) != set(reading.markers):
        adata.var_names = _as_in_first(reading, adata.var_names.astype(str).tolist())
    if reading.max_cells is not None:
        adata = _subsampled(adata, reading.max_cells, reading.seed)
    if hasattr(reading.steps, "prepare"):
        adata = reading.steps.prepare(adata)
    else:
        for step in reading.steps:
            adata = step.transform(adata)
    if not reading.keep_raw:
        adata.layers.pop("raw", None)
    return adata


def _as_in_first(reading: Reading, names: list[str]) -> list[str]:
    """Markers of a file by the names of the first file that mean the same to the model."""
    first = data_names(reading.markers, reading.aliases)
    pairs = zip(names, model_names(names, reading.aliases), strict=True)
    renamed = [first.get(meant, name) for name, meant in pairs]
    if repeated := sorted({name for name in renamed if renamed.count(name) > 1}):
        raise InvalidInputError(
            f"marker_aliases={dict(reading.aliases)!r} give several markers the name "
            f"{listed(repeated)}. The markers are {listed(names)}; each needs a name of its own."
        )
    return renamed


def _subsampled(adata: ad.AnnData, max_cells: int, seed: int) -> ad.AnnData:
    rows = []
    for name, inside in adata.obs.groupby("sample", observed=True, sort=False).indices.items():
        digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        some = inside if len(inside) <= max_cells else rng.choice(inside, max_cells, replace=False)
        rows.append(np.sort(some))
    kept = np.sort(np.concatenate(rows))
    return adata if len(kept) == adata.n_obs else adata[kept].copy()


def joined(parts: list[ad.AnnData]) -> ad.AnnData:
    """Concatenate files in the marker order of the first, with the record of the FCS files."""
    first = parts[0]
    for part in parts[1:]:
        if set(part.var_names) != set(first.var_names):
            differing = sorted(set(part.var_names) ^ set(first.var_names))
            raise PanelMismatchError(
                f"Sample {part.obs['sample'].iloc[0]} has other markers than "
                f"{first.obs['sample'].iloc[0]}: {listed(differing)} are in only one of them. "
                "Rename or remove them first, or read with read_fcs(join=...)."
            )
        for column in ("transform", "compensated"):
            if column in first.var and column in part.var:
                expected, found = first.var[column], part.var[column].reindex(first.var_names)
                differs = expected.astype(str).to_numpy() != found.astype(str).to_numpy()
                if differs.any():
                    raise PanelMismatchError(
                        f"Sample {part.obs['sample'].iloc[0]}: {column} of "
                        f"{listed(first.var_names[differs])} differs from that of "
                        f"{first.obs['sample'].iloc[0]}. Preprocess all files in the same way."
                    )
    samples = [str(s) for part in parts for s in part.obs["sample"].unique()]
    if repeated := sorted({s for s in samples if samples.count(s) > 1}):
        raise InvalidInputError(
            f"Samples occur in more than one file: {listed(repeated)}. Give them different names."
        )
    whole = ad.concat([part[:, first.var_names] for part in parts], join="outer", merge=None)
    whole.var = first.var.copy()
    whole.obs["sample"] = pd.Categorical(whole.obs["sample"].astype(str), categories=samples)
    if not whole.obs_names.is_unique:
        whole.obs_names = [
            f"{s}:{i}" for s, n in whole.obs["sample"].value_counts(sort=False).items()
            for i in range(n)
        ]  # fmt: skip
    if all(UNS_KEY in part.uns for part in parts):
        owners = [(part, str(s)) for part in parts for s in part.obs["sample"].unique()]
        record = pack_fcs_record(
            samples,
            [get_keywords(part, s) for part, s in owners],
            [_n_events(part, s) for part, s in owners],
            [get_spillover(part, s) for part, s in owners],
        )
        scaled = bool(first.uns[UNS_KEY].get("time_scaled", False))
        whole.uns[UNS_KEY] = {**record, "time_scaled": scaled}
        if INSTRUMENT_KEY in first.uns[UNS_KEY]:
            whole.uns[UNS_KEY][INSTRUMENT_KEY] = first.uns[UNS_KEY][INSTRUMENT_KEY]
        digests = [file_digests(part).get(s, "") for part, s in owners]
        whole.uns[UNS_KEY][FILE_KEY] = np.array(digests, dtype=object)
        whole.uns[UNS_KEY] |= pack_amplifiers(row for part in parts for row in amplifiers(part))
    if within := _same_record([part.uns.get(LABELLED_WITHIN, {}) for part in parts], samples):
        whole.uns[LABELLED_WITHIN] = within
    matrices = [part.uns.get(COMPENSATION_KEY) for part in parts]
    if all(_same_matrix(matrices[0], other) for other in matrices):
        whole.uns[COMPENSATION_KEY] = matrices[0]
    return whole


def _same_record(records: list[Entries], samples: list[str]) -> Entries:
    """The gates inside which labels were made, which must be the same in all files."""
    for record in records[1:]:
        if record != records[0]:
            one, other = ({k: v["gate"] for k, v in r.items()} for r in (records[0], record))
            raise InvalidInputError(
                f"Labels were made inside different gates: {one or 'none'} in some files, "
                f"{other or 'none'} in others (samples {listed(samples)}). Label all files inside "
                "the same gate."
            )
    return records[0]


def _same_matrix(
    one: Mapping[str, np.ndarray] | None, other: Mapping[str, np.ndarray] | None
) -> bool:
    return (
        one is not None
        and other is not None
        and list(one["channels"]) == list(other["channels"])
        and np.array_equal(one["values"], other["values"])
    )


def _n_events(adata: ad.AnnData, sample: str) -> int:
    record = adata.uns[UNS_KEY]
    return int(record["n_events"][[str(s) for s in record["sample"]].index(sample)])
