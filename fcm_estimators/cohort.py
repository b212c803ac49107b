"""Many files at once, on the cores of one machine or on a cluster, through Dask.

:func:`read_files` assembles training data, :func:`annotate_files` applies a model. Both need the
extra ``cohort``: ``pip install "fcm-estimators[cohort]"``.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd

from fcm_estimators._cells.keys import require_key_name
from fcm_estimators._cohort_files import (
    PathName,
    Reading,
    file_names,
    joined,
    list_files,
    read_file,
    read_part,
)
from fcm_estimators._cohort_run import Call, executor
from fcm_estimators._cohort_tasks import Job, annotate_one, cached_model, failed_row
from fcm_estimators._files import appearing, checksum
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.gating import GatingTree

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["annotate_files", "read_file", "read_files"]


def read_files(
    files: PathName | Sequence[PathName],
    *,
    steps: Any = (),
    label: Callable[[ad.AnnData], None] | None = None,
    max_cells: int | None = None,
    keep_raw: bool = False,
    names: Sequence[str] | None = None,
    random_state: int = 0,
    client: Client | None = None,
    n_workers: int | None = None,
    on_error: str = "raise",
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> ad.AnnData:
    """Assemble many files into one AnnData, ready for ``fit``.

    Each file is read, labelled, preprocessed and thinned by itself, several at a time; only what
    is left of it is kept, so the whole never lies in memory in raw form.

    Parameters
    ----------
    files : path or sequence of paths
        FCS, h5ad, zarr; mixed if the markers are the same. A directory stands for its files.
    steps : fitted model or sequence of transformers, default ()
        How to preprocess: a model's ``prepare``, or transformers such as
        ``[Compensation(), LogicleTransform()]``, fitted on the first file and applied to all, so
        that the scale is the same.
    label : callable, optional
        Called with the raw AnnData of each file, which it labels in place; for worker processes
        a function of a module.
    max_cells : int, optional
        Keep a random subset of so many cells of each sample. Labels are not looked at, so the
        subset is a smaller sample of the same kind; rare cells get rarer in number.
    keep_raw : bool, default False
        Keep ``layers["raw"]``, which doubles the memory.
    names : sequence of str, optional
        Sample names, one per FCS file. Default: file names without ending.
    random_state : int, default 0
        Of the subsets; a sample's depends on its name only.
    client : dask.distributed.Client, optional
        Cluster to use, which must see the files. Default: processes on this machine.
    n_workers : int, optional
        Processes where no client is given; 0 reads in this one. Default: one per core.
    on_error : {"raise", "skip"}, default "raise"
        What to do if files cannot be read: raise one error that names all of them, or leave them
        out and list them in ``uns["cohort"]``.
    progress : callable, optional
        Called with a dict (``file``, ``error``) after each file.

    Returns
    -------
    AnnData
        Samples in the order of the files. ``obs`` and ``obsm`` columns that some files lack are
        missing there; ``uns["fcs"]`` is the record of all samples, ``uns["cohort"]`` lists the
        files with ``file``, ``n_cells`` and ``error``.

    Raises
    ------
    InvalidInputError
        No files, names that repeat, no file that can be read, or ``on_error="raise"`` and one
        that cannot.
    PanelMismatchError
        Files with different markers or in a different state of preprocessing.
    """
    if on_error not in ("raise", "skip"):
        raise InvalidInputError(f'on_error must be "raise" or "skip", got {on_error!r}.')
    if max_cells is not None and max_cells < 1:
        raise InvalidInputError(f"max_cells is {max_cells}; expected at least 1.")
    paths = list_files(files)
    named = file_names(paths, names)
    reading = Reading(_fitted(steps, paths[0]), label, max_cells, keep_raw, random_state)
    parts: list[ad.AnnData | None] = [None] * len(paths)
    errors = [""] * len(paths)
    jobs: list[Call] = [
        (functools.partial(read_part, reading), (path, name))
        for path, name in zip(paths, named, strict=True)
    ]
    with executor(client, n_workers, len(jobs)) as run:
        for position, part, error in run(jobs):
            parts[position], errors[position] = part, error
            if progress is not None:
                progress({"file": str(paths[position]), "error": error})
    failed = [f"{p.name}: {e}" for p, e in zip(paths, errors, strict=True) if e]
    if failed and (on_error == "raise" or len(failed) == len(paths)):
        raise InvalidInputError(
            f"{len(failed)} of {len(paths)} files cannot be used. {' | '.join(failed[:10])}"
            + (f" | and {len(failed) - 10} more" if len(failed) > 10 else "")
        )
    adata = joined([part for part in parts if part is not None])
    adata.uns["cohort"] = {
        "file": np.array([p.name for p in paths], dtype=object),
        "n_cells": np.array([0 if part is None else part.n_obs for part in parts]),
        "error": np.array(errors, dtype=object),
    }
    return adata


def _fitted(steps: Any, first: Path) -> Any:
    """Transformers fitted on the first file; a model stays as it is."""
    if hasattr(steps, "prepare"):
        return steps
    chosen = list(steps)
    if chosen:
        adata = read_file(first)
        fitted = []
        for step in chosen:
            fitted.append(step.fit(adata))
            adata = step.transform(adata)
        return fitted
    return chosen


def annotate_files(
    model: Any,
    files: PathName | Sequence[PathName],
    out: PathName,
    *,
    names: Sequence[str] | None = None,
    gates: GatingTree | PathName | None = None,
    denominator: str | None = None,
    limit_of_blank: float | None = None,
    key_added: str | None = None,
    also: Callable[[Any, ad.AnnData, Path], dict[str, Any]] | None = None,
    resume: bool = True,
    client: Client | None = None,
    n_workers: int | None = None,
    progress: Callable[[dict[str, Any]], None] | None = None,
) -> pd.DataFrame:
    """Annotate many files with one model, a file per task.

    Every result is written under a temporary name and renamed once it is complete, so that a
    directory never holds half a file; beside it ``{name}.json`` holds its rows of the table and
    the checksums. A file that fails is a row with its error and does not stop the others.

    Parameters
    ----------
    model : path or fitted estimator
        A saved model, which every worker process loads once; a fitted one is saved in
        ``out/"model"`` first.
    files : path or sequence of paths
        FCS, h5ad or zarr; a directory stands for its files. Raw values are brought to the scale
        of the model's training data (:meth:`ReluFormerClassifier.prepare`).
    out : path
        Directory of the results, ``{name}.h5ad``, and of ``table.csv``.
    names : sequence of str, optional
        One per file. Default: file names without ending, which must differ.
    gates : GatingTree or path, optional
        Gates for ``obsm["gates"]``, needed for a model with ``subset_key`` and for
        ``denominator``: a tree, a Gating-ML file, or a saved PolygonRegressor.
    denominator : str, optional
        Gate to which the fraction of positive cells refers. Default: all analysed cells.
    limit_of_blank : float, optional
        Fraction that the model finds in samples without disease.
    key_added : str, optional
        Where results go. Default: "reluformer", or "predicted_gates" for a PolygonRegressor.
    also : callable, optional
        Called with the model, the annotated AnnData and the path of the result without ending,
        before that is written: it may add to the AnnData and write files of its own, and returns
        further columns of the row. Two with the same ``repr`` count as the same in ``resume``.
    resume : bool, default True
        Keep results of an earlier run whose input, model, gates and settings have the same
        checksums, and which are whole.
    client : dask.distributed.Client, optional
        Cluster to use, which must see all paths; its workers should have one thread each.
        Default: processes on this machine.
    n_workers : int, optional
        Processes where no client is given; 0 works in this one. Default: one per core.
    progress : callable, optional
        Called with the first row of each file when it is done.

    Returns
    -------
    DataFrame
        A row per sample, files in the given order. Columns ``file``, ``sample``, ``output``,
        ``status`` ("done", "kept" from an earlier run, "failed"), ``error``, ``warning``,
        ``n_cells``, ``n_analysed``, ``n_{class}`` (or ``n_{gate}``), the columns of
        :func:`~fcm_estimators.metrics.mrd_table` where the model has a positive class, ``n_qc_*``
        (:func:`~fcm_estimators.quality.quality_table`), ``farthest_marker`` and its ``distance``
        (``check_sample``), ``seconds``, ``input_sha256``, ``model_sha256``. Also written to
        ``out/"table.csv"``.

    Raises
    ------
    InvalidInputError
        No files, names that repeat, or an output that is one of the inputs.
    ModelFormatError, NotFittedError
        No model that can be used.

    Notes
    -----
    Local processes are started anew, so a script that calls this needs
    ``if __name__ == "__main__":``.
    """
    paths = list_files(files)
    named = file_names(paths, names)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    for path, name in zip(paths, named, strict=True):
        if path.resolve() == (folder / f"{name}.h5ad").resolve():
            raise InvalidInputError(f"{path} would be overwritten by its own result; change out.")
    if not isinstance(model, str | os.PathLike):
        model.save(folder / "model")
        model = folder / "model"
    model_checksum = checksum(Path(model)) if Path(model).is_dir() else ""
    loaded = cached_model(str(model), model_checksum)
    key = key_added or ("predicted_gates" if hasattr(loaded, "tree_") else "reluformer")
    require_key_name(key)
    job = Job(
        model=str(Path(model).resolve()),
        model_checksum=model_checksum,
        gates=gates if isinstance(gates, GatingTree | None) else str(Path(gates).resolve()),
        gates_checksum=_gates_checksum(gates),
        out=str(folder.resolve()),
        key_added=key,
        denominator=denominator,
        limit_of_blank=limit_of_blank,
        also=also,
        resume=resume,
    )
    tables: list[list[dict[str, Any]]] = [[] for _ in paths]
    jobs: list[Call] = [
        (functools.partial(annotate_one, job), (str(path.resolve()), name))
        for path, name in zip(paths, named, strict=True)
    ]
    with executor(client, n_workers, len(jobs)) as run:
        for position, rows, error in run(jobs):
            if error:
                rows = [failed_row(paths[position], named[position], error)]
            tables[position] = rows
            if progress is not None:
                progress(rows[0])
    table = pd.DataFrame([row for rows in tables for row in rows])
    columns = table.columns.astype(str)
    whole = [c for c in columns if c.startswith("n_") or c in ("numerator", "denominator")]
    # Of a failed file they are missing, which must not make decimals of the others.
    table = table.astype(dict.fromkeys(whole, "Int64"))
    with appearing(folder / "table.csv") as temporary:
        table.to_csv(temporary, index=False)
    return table


def _gates_checksum(gates: Any) -> str:
    if gates is None:
        return ""
    if isinstance(gates, GatingTree):
        text = json.dumps(gates.to_records(), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()
    if not Path(gates).exists():
        raise InvalidInputError(f"gates: {gates} does not exist.")
    return checksum(Path(gates))
