"""Annotate one file in a worker."""

from __future__ import annotations

import contextlib
import functools
import logging
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pandas as pd

from fcm_estimators._base.files import model_checksum
from fcm_estimators._base.panels import suited_to
from fcm_estimators._cells.h5ad import write_h5ad
from fcm_estimators._cells.records import members_table, uncertain_samples, was_tested
from fcm_estimators._checks import listed, sample_codes
from fcm_estimators._files import checksum, remove_leftovers, replaced_when_complete
from fcm_estimators._types import Entries
from fcm_estimators._version import __version__
from fcm_estimators.cohort.claims import claimed
from fcm_estimators.cohort.executor import error_text
from fcm_estimators.cohort.files import as_text, read_file
from fcm_estimators.cohort.records import kept_rows, read_record, write_done, write_failed
from fcm_estimators.exceptions import InvalidInputError, MissingKeyError, ProcessingStateError
from fcm_estimators.gating import GatingTree
from fcm_estimators.io.record import FILE_KEY, UNS_KEY
from fcm_estimators.keys import EXPERT_GATES, ClassKeys, GateKeys, QualityKeys
from fcm_estimators.labels.source import LabelSource
from fcm_estimators.metrics import ClassificationErrors, Protocol, mrd_table
from fcm_estimators.models import load_model, result_keys
from fcm_estimators.quality import CHECKS, flag_quality, quality_table

logger = logging.getLogger("fcm_estimators")


@dataclass(frozen=True)
class Job:
    """Settings for annotating each file."""

    model: str
    model_checksum: str
    gates: GatingTree | str | None
    gates_checksum: str
    only: list[str]
    event_column: str | None
    out: str
    key_added: str
    denominator: str | None
    limit_of_blank: float | None
    protocol: Entries
    errors: Entries | None
    also: Callable[[Any, ad.AnnData, Path], Entries] | None
    resume: bool

    def fingerprint(self) -> Entries:
        """Settings that must be equal for an earlier result to be kept."""
        irrelevant = ("model", "gates", "out", "resume", "also")
        wanted = {k: v for k, v in vars(self).items() if k not in irrelevant}
        return {**wanted, "also": repr(self.also), "version": __version__}


@functools.lru_cache(maxsize=2)
def cached_model(path: str, checksum: str) -> Any:
    """Load a model once per process; the checksum distinguishes models saved at the same path."""
    model = load_model(path)
    if model_checksum(path) != checksum:
        raise InvalidInputError(f"The model in {path} was replaced meanwhile. Run again.")
    return model


def _require_unchanged(path: Path, expected: str) -> None:
    """Raise InvalidInputError if a file is not what its checksum was taken of."""
    if checksum(path) != expected:
        raise InvalidInputError(
            f"{path.name} changed while it was read, so nothing was written. Annotate it again "
            "when it is complete."
        )


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
    model = cached_model(job.model, job.model_checksum)
    # A worker's warnings are seen by nobody, unless they are in the table.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        adata = read_file(path, name=name)
        _require_unchanged(path, input_checksum)
        if isinstance(model.sample_key, str) and model.sample_key not in adata.obs:
            adata.obs[model.sample_key] = adata.obs["sample"]
        quality = _quality(adata, path)
        if job.gates is not None:
            _add_gates(adata, job, model)
        ready = adata if model.is_prepared(adata) else model.prepare(adata)
        model.annotate(ready, key_added=job.key_added)
    told = dict.fromkeys(str(w.message) for w in caught if w.category is UserWarning)
    warned = " | ".join(told)
    keys = result_keys(model, job.key_added)
    # A report can tell by it whether errors of a classifier are those of this one.
    ready.uns[keys.record]["model_sha256"] = job.model_checksum
    distances = _distances(ready, keys.record)
    results = _counts(model, ready, job, keys)
    suited = suited_to(model, ready, quiet=True)
    extra = {} if job.also is None else job.also(suited, ready, output.with_suffix(""))
    rows = []
    for sample in ready.obs["sample"].unique():
        inside = (ready.obs["sample"] == sample).to_numpy()
        key = model.sample_key
        of_sample = distances.loc[
            distances.index[0][0] if key is None else str(ready.obs[key][inside].iloc[0])
        ]
        rows.append(
            {
                "file": as_text(path),
                "sample": str(sample),
                "output": as_text(output),
                "status": "done",
                "error": "",
                "warning": warned,
                "n_cells": int(inside.sum()),
                **_plain(results.loc[sample]),
                **_plain(quality.loc[sample].drop("n_cells")),
                "farthest_marker": str(of_sample.idxmax()),
                "distance": float(of_sample.max()),
                **extra,
            }
        )
    with replaced_when_complete(output) as temporary:
        # It was for finding the sample in a workspace; who guesses the name could confirm it.
        ready.uns.get(UNS_KEY, {}).pop(FILE_KEY, None)
        # Compression would take longer than all else and save an eighth of the size.
        write_h5ad(ready, temporary)
        # It is about the result that is replaced now.
        record.unlink(missing_ok=True)
    return rows


def _distances(adata: ad.AnnData, record: str) -> pd.Series:
    """Distance from training by sample and marker, as ``annotate`` recorded it."""
    found = adata.uns[record]["distance"]
    index = pd.MultiIndex.from_arrays([found["sample"], found["marker"]])
    return pd.Series(found["distance"], index=index)


def _quality(adata: ad.AnnData, path: Path) -> pd.DataFrame:
    """Flag events and count the flags; without counts where there is nothing to judge."""
    try:
        flag_quality(adata)
        return quality_table(adata)
    except (ProcessingStateError, MissingKeyError) as error:
        # The data have no raw values or no description of the channels.
        logger.info("%s: no quality flags. %s", path, error)
        return _no_quality(adata)


def _no_quality(adata: ad.AnnData) -> pd.DataFrame:
    names = pd.Index(adata.obs["sample"].unique(), name="sample")
    columns = ["n_cells", *(f"n_{QualityKeys().flag(check)}" for check in (*CHECKS, "any"))]
    return pd.DataFrame({c: pd.array([pd.NA] * len(names), dtype="Int64") for c in columns}, names)


def _add_gates(adata: ad.AnnData, job: Job, model: Any) -> None:
    """Write the membership of gates to ``obsm["gates"]``."""
    if isinstance(job.gates, GatingTree):
        adata.obsm[EXPERT_GATES] = job.gates.apply(adata)
        return
    path = Path(str(job.gates))
    if is_model(path):
        regressor = cached_model(str(path), job.gates_checksum)
        ready = adata if regressor.is_prepared(adata) else regressor.prepare(adata)
        adata.obsm[EXPERT_GATES] = regressor.predict_membership(ready)
        return
    source = LabelSource(gates=str(path), only=job.only, event_column=job.event_column)
    subset = getattr(model, "subset_key", None)
    is_gate = isinstance(subset, str) and subset not in adata.obs
    within = None if model.within_ is None else model.within_.gate
    needed = (job.denominator, subset if is_gate else None, within)
    source.add_gates(adata, [gate for gate in needed if gate])
    if path.is_file():
        _require_unchanged(path, job.gates_checksum)


def is_model(path: Path) -> bool:
    """Whether a path is the directory of a saved model, not of tables of gates."""
    return (path / "model.json").exists()


def _counts(model: Any, adata: ad.AnnData, job: Job, keys: ClassKeys | GateKeys) -> pd.DataFrame:
    """Count cells per class or gate, and residual disease; one row per sample."""
    sample = adata.obs["sample"]
    codes, names = sample_codes(sample, "sample")

    def counted(masks: dict[str, np.ndarray]) -> pd.DataFrame:
        counts = {
            name: np.bincount(codes[mask], minlength=len(names)) for name, mask in masks.items()
        }
        return pd.DataFrame(counts, index=names.rename(None))

    if isinstance(keys, GateKeys):
        inside = adata.obsm[keys.membership]
        analysed = ~inside.isna().any(axis=1).to_numpy()
        parts = {f"n_{gate}": inside[gate].fillna(False).to_numpy(dtype=bool) for gate in inside}
        return counted({"n_analysed": analysed, **parts})
    predicted = adata.obs[keys.label]
    proba = adata.obsm[keys.probabilities]
    analysed = ~np.isnan(proba.to_numpy()).any(axis=1)
    parts = {f"n_{name}": (predicted == name).to_numpy() & analysed for name in proba}
    # Those cells that keep a class are counted there too.
    parts["n_unknown"] = adata.obs[keys.unknown].to_numpy()
    table = counted({"n_analysed": analysed, **parts})
    missing = list(adata.uns[keys.record]["missing_markers"])
    if missing:
        table["missing_markers"] = ", ".join(missing)
    if model.pos_label_ is None:
        return table
    inside, gate = analysed, "analysed"
    if job.denominator is not None:
        gates = adata.obsm.get(EXPERT_GATES)
        gate = job.denominator
        if gates is not None and gate not in gates:
            gate = gate.replace("/", "|")  # as importers of gates write it
        if gates is None or gate not in gates:
            raise MissingKeyError(
                f"denominator={job.denominator!r} is not among the gates "
                f"{listed([] if gates is None else gates)}. Pass gates=..., or no denominator."
            )
        inside = gates[gate].fillna(False).to_numpy(dtype=bool)
    flags = [QualityKeys().flag(check) for check in CHECKS]
    flags = [name for name in flags if name in adata.obs]
    positive = (predicted == str(model.pos_label_)).to_numpy() & analysed
    mrd = mrd_table(
        positive,
        denominator=inside,
        denominator_name=gate,
        groups=sample,
        limit_of_blank=job.limit_of_blank,
        uncertain=uncertain_samples(adata.uns[keys.record]),
        tested=was_tested(adata.uns[keys.record]),
        protocol=Protocol.from_dict(job.protocol),
        errors=None if job.errors is None else ClassificationErrors.from_dict(job.errors),
    )
    members = members_table(adata.uns[keys.record]).set_index("sample")
    for name in ("lowest", "highest", "possible"):
        mrd[f"members_{name}"] = members[name].reindex(mrd.index.astype(str)).to_numpy()
    for name in flags:
        mrd[f"n_positive_{name}"] = counted({name: adata.obs[name].to_numpy() & positive & inside})
    return table.join(mrd)


def _plain(row: pd.Series) -> Entries:
    """Convert values to types that JSON has."""
    values = {str(k): v.item() if isinstance(v, np.generic) else v for k, v in row.items()}
    return {k: None if v is pd.NA or v != v else v for k, v in values.items()}
