"""One model applied to many files."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import pandas as pd

from fcm_estimators._cells.keys import require_key_name
from fcm_estimators._files import appearing, checksum
from fcm_estimators.cohort._executor import Call, executor
from fcm_estimators.cohort._files import PathName, file_names, list_files
from fcm_estimators.cohort._tasks import Job, annotate_one, cached_model, failed_row
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.gating import GatingTree

if TYPE_CHECKING:
    from distributed import Client


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
