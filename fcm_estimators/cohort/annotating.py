"""Apply one model to many files."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import pandas as pd

from fcm_estimators._base.files import model_checksum
from fcm_estimators._base.panels import with_aliases
from fcm_estimators._cells.results import require_key_name
from fcm_estimators._checks import gate_called, listed
from fcm_estimators._files import made_folder
from fcm_estimators._types import Entries, Progress
from fcm_estimators.cohort.executor import Call, executor
from fcm_estimators.cohort.files import PathName, file_names, list_files
from fcm_estimators.cohort.jobs import Job, cached_model, is_model
from fcm_estimators.cohort.records import as_table, write_failed, write_rows
from fcm_estimators.cohort.tasks import annotate_one, failed_row
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.metrics import DEFAULT_PROTOCOL, ClassificationErrors, Protocol
from fcm_estimators.models import result_keys

if TYPE_CHECKING:
    from distributed import Client

    from fcm_estimators.gating import GatingTree


def annotate_files(
    model: Any,
    files: PathName | Sequence[PathName],
    out: PathName,
    *,
    sample_names: Sequence[str] | None = None,
    gates: GatingTree | PathName | None = None,
    only: Sequence[str] = (),
    event_column: str | None = None,
    marker_aliases: Mapping[str, str] | None = None,
    denominator: str | None = None,
    limit_of_blank: float | None = None,
    protocol: Protocol | PathName = DEFAULT_PROTOCOL,
    errors: ClassificationErrors | PathName | None = None,
    key_added: str | None = None,
    also: Callable[[Any, ad.AnnData, Path], Entries] | None = None,
    resume: bool = True,
    client: Client | None = None,
    n_workers: int | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Annotate many files with one model, one task per file.

    Every result is written under a temporary name and renamed when it is complete, so the
    directory never contains half a file. ``{name}.json`` beside it contains its rows of the table
    and the checksums. A file that fails becomes a row with its error and does not stop the others.

    Several runs may write into one directory, also from several hosts: one process at a time works
    on a sample, and ``table.csv`` holds the rows of all runs with the same model and settings.

    Parameters
    ----------
    model : path or fitted estimator
        Every worker process loads a saved model once. A fitted estimator is first saved in
        ``out/"model"``.
    files : path or sequence of paths
        FCS, h5ad or zarr; a directory stands for its files. Raw values are transformed to the
        scale of the model's training data (:meth:`ReluFormerClassifier.prepare`).
    out : path
        Directory for the results, ``{name}.h5ad``, and for ``table.csv``.
    sample_names : sequence of str, optional
        One per file. Default: the file names without ending, which must differ.
    gates : GatingTree or path, optional
        A tree, a saved PolygonRegressor, or what
        :class:`~fcm_estimators.labels.LabelSource` reads: a Gating-ML file, a FlowJo workspace that
        lists the files, a table, or a directory of tables. The membership goes to
        ``obsm["gates"]``, which ``denominator`` and models that read the cells inside a gate
        need.
    only : sequence of str, default ()
        Gates to read of a file, as for LabelSource.
    event_column : str, optional
        Column of tables with the event numbers.
    marker_aliases : mapping, optional
        The model's name of a marker for the name in the files, beside the ``marker_aliases`` of
        the model: ``{"CD19 PE-Cy7": "CD19"}``.
    denominator : str, optional
        Gate to which the fraction of positive cells refers. Default: all analysed cells.
    limit_of_blank : float, optional
        Fraction that the model finds in samples without disease.
    protocol : Protocol, str or path, default "20/50 events"
        Limits by which the counts are read, or what
        :meth:`Protocol.read <fcm_estimators.metrics.Protocol.read>` reads.
    errors : ClassificationErrors or path, optional
        How the model errs in unseen patients, for an interval that knows it
        (:func:`~fcm_estimators.metrics.mrd_table`).
    key_added : str, optional
        Key of the results. Default: "reluformer", or "predicted_gates" for a PolygonRegressor.
    also : callable, optional
        Called before a result is written, with the model, the annotated AnnData and the path of
        the result without its ending. It may add to the AnnData and write other files. It returns
        a dict of further columns for the row. ``resume`` compares it by its ``repr``.
    resume : bool, default True
        Keep complete results of an earlier run with the same input, model, gates and settings, as
        judged by checksums.
    client : dask.distributed.Client, optional
        Cluster to use. It must have access to all paths, and its workers should have one thread
        each. Default: processes on this machine.
    n_workers : int, optional
        Number of processes if no client is given; 0 and 1 use the current process, as one file
        does. Default: one per core. Functions that are passed are then imported by the processes.
    progress : callable, optional
        Called with the first row of each file when the file is done.

    Returns
    -------
    DataFrame
        One row per sample, in the order of the files. Columns ``file``, ``sample``, ``output``,
        ``status`` ("done", "kept" from an earlier run, "failed"), ``error``, ``warning``,
        ``n_cells``, ``n_analysed``, ``n_{class}`` (or ``n_{gate}``), the columns of
        :func:`~fcm_estimators.metrics.mrd_table` if the model has a positive class, ``n_qc_*``
        (:func:`~fcm_estimators.quality.quality_table`), ``farthest_marker`` and its ``distance``
        (``check_sample``), ``seconds``, ``input_sha256``, ``model_sha256``. Also written to
        ``out/"table.csv"``, unless nothing succeeded and there is a table already. In the CSV,
        text that a spreadsheet would take for a formula begins with an apostrophe.

    Raises
    ------
    InvalidInputError
        There are no files, names repeat, an alias is of no marker of the model, the gates or the
        protocol do not exist, the errors are those of another model, or an output would overwrite
        an input.
    ModelFormatError
        The directory of the model does not contain a model that this version can read.
    NotFittedError
        The estimator is not fitted.

    Notes
    -----
    Local worker processes import the calling script, so the script needs
    ``if __name__ == "__main__":``.
    """
    if not isinstance(protocol, Protocol):
        protocol = Protocol.read(protocol)
    if isinstance(errors, str | os.PathLike):
        errors = ClassificationErrors.read(errors)
    paths = list_files(files)
    named = file_names(paths, sample_names)
    folder = made_folder(out)
    for path, name in zip(paths, named, strict=True):
        if path.resolve() == (folder / f"{name}.h5ad").resolve():
            raise InvalidInputError(f"{path} would be overwritten by its own result; change out.")
    if not isinstance(model, str | os.PathLike):
        model.save(folder / "model")
        model = folder / "model"
    model = Path(model).resolve()  # as the jobs name it, so that it is loaded once
    identity = model_checksum(model)
    if errors is not None and errors.model not in ("", identity):
        raise InvalidInputError(
            "errors=... are those of another model, or of this one before it was changed. Evaluate "
            "this model on patients that it does not know."
        )
    loaded = with_aliases(cached_model(str(model), identity), marker_aliases)
    if denominator is not None:
        _require_gate(f"denominator={denominator!r}", denominator, gates, paths)
    if loaded.within_ is not None:
        gate = loaded.within_.gate
        what = f"This model was trained on the cells inside the gate {gate!r}, which"
        _require_gate(what, gate, gates, paths)
    if only and (not isinstance(gates, str | os.PathLike) or is_model(Path(gates))):
        raise InvalidInputError(
            "only=... chooses gates of a table, a Gating-ML file or a workspace. Give one as gates."
        )
    keys = result_keys(loaded, key_added)
    require_key_name(keys.key)
    job = Job(
        model=str(model),
        model_checksum=identity,
        gates=str(Path(gates).resolve()) if isinstance(gates, str | os.PathLike) else gates,
        gates_checksum=_gates_checksum(gates),
        only=list(only),
        event_column=event_column,
        marker_aliases=dict(marker_aliases or {}),
        out=str(folder.resolve()),
        key_added=keys.key,
        denominator=denominator,
        limit_of_blank=limit_of_blank,
        protocol=protocol.to_dict(),
        errors=None if errors is None else errors.to_dict(),
        also=also,
        resume=resume,
    )
    tables: list[list[Entries]] = [[] for _ in paths]
    jobs: list[Call] = [
        (functools.partial(annotate_one, job), (str(path.resolve()), name))
        for path, name in zip(paths, named, strict=True)
    ]
    with executor(client, n_workers, len(jobs)) as run:
        for position, rows, error in run(jobs):
            if error:
                rows = [failed_row(paths[position], named[position], error)]
                write_failed(folder / f"{named[position]}.json", job.fingerprint(), rows)
            tables[position] = rows
            if progress is not None:
                progress(rows[0])
    rows = [row for rows in tables for row in rows]
    write_rows(folder, rows, named, job.fingerprint())
    return as_table(rows)


def _require_gate(
    what: str, gate: str, gates: GatingTree | PathName | None, paths: Sequence[Path]
) -> None:
    """Raise InvalidInputError, before any result is replaced, if no file can have this gate."""
    if gates is None:
        # Results and zarr directories may have gates of their own; FCS files have none.
        if all(path.suffix.lower() not in (".h5ad", ".zarr") for path in paths):
            raise InvalidInputError(
                f"{what} is a gate of the data, and FCS files have none. Give a file of gates or a "
                "model of gates with gates=..."
            )
        return
    from fcm_estimators.cohort.gates import gate_names

    known = gate_names(gates)
    if gate_called(gate, known) not in known:
        raise InvalidInputError(f"{what} is not among the gates {listed(known)}.")


def _gates_checksum(gates: GatingTree | PathName | None) -> str:
    if gates is None:
        return ""
    from fcm_estimators.cohort.gates import gates_checksum

    return gates_checksum(gates)
