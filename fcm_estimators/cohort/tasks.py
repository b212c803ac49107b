"""Annotate one file in a worker."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
import warnings
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import pandas as pd

from fcm_estimators._base.panels import suited_to, with_aliases
from fcm_estimators._cells.h5ad import write_h5ad
from fcm_estimators._cells.store import open_store
from fcm_estimators._files import checksum, remove_leftovers, replaced_when_complete
from fcm_estimators._types import Entries
from fcm_estimators.cohort.by_block import annotate_by_block
from fcm_estimators.cohort.claims import claimed
from fcm_estimators.cohort.counting import InMemory, InStore, sample_rows
from fcm_estimators.cohort.executor import error_text
from fcm_estimators.cohort.files import as_text, open_fcs_file, read_file
from fcm_estimators.cohort.jobs import Job, cached_model, require_unchanged
from fcm_estimators.cohort.memory import SHARE, free_memory, needed_memory
from fcm_estimators.cohort.records import kept_rows, read_record, write_done, write_failed
from fcm_estimators.exceptions import InvalidInputError, MissingKeyError, ProcessingStateError
from fcm_estimators.io.opened import OpenedFcs
from fcm_estimators.io.record import FILE_KEY, UNS_KEY
from fcm_estimators.models import result_keys
from fcm_estimators.quality import flag_quality, quality_table

logger = logging.getLogger("fcm_estimators")


def annotate_one(job: Job, file: str, name: str) -> list[Entries]:
    """Annotate one file, write its result and return its rows; runs in a worker."""
    path, output = Path(file), Path(job.out) / f"{name}.h5ad"
    record = output.with_suffix(".json")
    try:
        with claimed(output.parent, name):
            try:
                return _kept_or_made(job, path, name, output, record)
            except Exception as error:
                logger.info("%s failed", file, exc_info=True)
                rows = [failed_row(path, name, error_text(error))]
                write_failed(record, job.fingerprint(), rows)
                return rows
    except OSError as error:  # there is no directory to write in
        return [failed_row(path, name, error_text(error))]


def _kept_or_made(job: Job, path: Path, name: str, output: Path, record: Path) -> list[Entries]:
    started = time.perf_counter()
    identity = {**job.fingerprint(), "input": checksum(path)}
    kept = kept_rows(record, output, identity) if job.resume else None
    if kept is not None:
        return kept
    if not record.exists():
        _require_own(output, job.key_added)
    if read_record(record).get("identity", {}).get("input") != identity["input"]:
        # If this run fails, an old result must not pass for the result of these inputs.
        record.unlink(missing_ok=True)
    for ending in (".h5ad", ".json", ".xml", ".gradient.csv"):
        remove_leftovers(output.with_name(f"{name}{ending}"))
    rows = _annotated(job, path, name, output, record, str(identity["input"]))
    for row in rows:
        row["seconds"] = round(time.perf_counter() - started, 3)
        row["input_sha256"], row["model_sha256"] = identity["input"], job.model_checksum
    write_done(record, output, identity, rows)
    return rows


def _require_own(output: Path, key: str) -> None:
    """Raise InvalidInputError if a file that is no earlier result would be replaced."""
    if not output.exists():
        return
    with contextlib.suppress(OSError), h5py.File(output) as file:
        if key in file.get("uns", {}):
            return
    raise InvalidInputError(
        f"{output} is there already and is no result of this kind, so it was not replaced. Move "
        "it, or write into another directory."
    )


def failed_row(path: Path, name: str, error: str) -> Entries:
    """Row of a file that has no result."""
    return {
        "file": as_text(path),
        "sample": as_text(name),
        "output": "",
        "status": "failed",
        "error": as_text(error),
        "warning": "",
    }


def _annotated(
    job: Job, path: Path, name: str, output: Path, record: Path, input_checksum: str
) -> list[Entries]:
    model = with_aliases(cached_model(job.model, job.model_checksum), job.marker_aliases)
    keys = result_keys(model, job.key_added)
    extra: Entries = {}
    with replaced_when_complete(output) as temporary:
        # A worker's warnings are seen by nobody, unless they are in the table.
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            opened = open_fcs_file(path, name=name)
            large = opened is not None and _is_large(opened, job)
            if opened is not None and large:
                changed = functools.partial(require_unchanged, path, input_checksum)
                quality = annotate_by_block(model, opened, temporary, job.key_added, changed)
            else:
                adata = read_file(path, name=name) if opened is None else opened.read()
                require_unchanged(path, input_checksum)
                ready, quality = _in_memory(job, path, model, adata)
        if large:
            with open_store(temporary) as store:
                store.add_records({"model_sha256": job.model_checksum}, within=keys.record)
                found = sample_rows(InStore(store), model, job, keys, quality)
        else:
            # A report can tell by it whether errors of a classifier are those of this one.
            ready.uns[keys.record]["model_sha256"] = job.model_checksum
            found = sample_rows(InMemory(ready), model, job, keys, quality)
            if job.also is not None:
                suited = suited_to(model, ready, quiet=True)
                extra = job.also(suited, ready, output.with_suffix(""))
            # It was for finding the sample in a workspace; who guesses the name could confirm it.
            ready.uns.get(UNS_KEY, {}).pop(FILE_KEY, None)
            # Compression would take longer than all else and save an eighth of the size.
            write_h5ad(ready, temporary)
        # It is about the result that is replaced now.
        record.unlink(missing_ok=True)
    told = dict.fromkeys(str(w.message) for w in caught if w.category is UserWarning)
    heads = {
        "file": as_text(path),
        "sample": "",
        "output": as_text(output),
        "status": "done",
        "error": "",
        "warning": " | ".join(told),
    }
    return [{**heads, **row, **extra} for row in found]


def _is_large(opened: OpenedFcs, job: Job) -> bool:
    """Whether a file is to be read by block; what is done with a large file is told."""
    n_events, n_channels = sum(opened.n_events), len(opened.var)
    needed, free = needed_memory(n_events, n_channels), free_memory()
    if needed <= SHARE * free:
        return False
    whole = job.gates is not None or job.also is not None
    name, share = opened.segments[0].path.name, f"{needed / 1e9:.1f} GB of {free / 1e9:.1f} GB"
    warnings.warn(
        f"{name}: {n_events:,} events take about {share} of free memory; gates and explanations "
        "need all events at once, so the file was read whole."
        if whole
        else f"{name}: {n_events:,} events would take {share} of free memory, so they were read "
        "and annotated by block. The result is the same.",
        UserWarning,
        stacklevel=2,
    )
    return not whole


def _in_memory(
    job: Job, path: Path, model: Any, adata: ad.AnnData
) -> tuple[ad.AnnData, pd.DataFrame | None]:
    """Annotated data, and counts of the quality flags."""
    if isinstance(model.sample_key, str) and model.sample_key not in adata.obs:
        adata.obs[model.sample_key] = adata.obs["sample"]
    quality = _quality(adata, path)
    if job.gates is not None:
        from fcm_estimators.cohort.gates import add_gates

        add_gates(adata, job, model)
    ready = adata if model.is_prepared(adata) else model.prepare(adata, copy=False)
    model.annotate(ready, key_added=job.key_added)
    return ready, quality


def _quality(adata: ad.AnnData, path: Path) -> pd.DataFrame | None:
    """Flag events and count the flags; None where there is nothing to judge."""
    try:
        flag_quality(adata)
        return quality_table(adata)
    except (ProcessingStateError, MissingKeyError) as error:
        # The data have no raw values or no description of the channels.
        logger.info("%s: no quality flags. %s", path, error)
        return None
