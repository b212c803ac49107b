"""Commands of ``fcm``. Each makes one call of the Python API."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from fcm_estimators._types import Entries
from fcm_estimators._version import __version__
from fcm_estimators.cli._lab import add_commands
from fcm_estimators.cli._options import (
    ChosenGates,
    Classes,
    Denominator,
    Errors,
    EventColumn,
    Files,
    GatesOption,
    Json,
    LabelGates,
    LabelKey,
    Labels,
    LimitOfBlank,
    Model,
    Out,
    Pool,
    ProtocolOption,
    Resume,
    Scheduler,
    Sheet,
    Within,
    Workers,
    label_source,
    patients_of,
)
from fcm_estimators.cli._output import plain_values, print_files, print_record, print_table
from fcm_estimators.cli._running import dask_client, errors_as_exit_status, progress_bar

app = typer.Typer(
    name="fcm",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Classify and gate flow-cytometry samples with transformers that read whole samples.\n\n"
    "FILES are .fcs, .lmd or .h5ad files, zarr directories, or directories of those. To begin: "
    "[bold]fcm train[/bold] on files with expert gates, [bold]fcm evaluate[/bold] on other files "
    "with expert gates, [bold]fcm annotate[/bold] on new files.\n\n"
    "Training is fastest with as many threads as free cores. Set OMP_NUM_THREADS if several "
    "trainings share a machine.",
    rich_markup_mode="rich",
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"fcm-estimators {__version__}")
        raise typer.Exit


@app.callback()
def _root_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before the command."""


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--out", "-o", help="Directory for the results.")] = Path(
        "demo_output"
    ),
) -> None:
    """Train on real data and annotate samples that the model has not seen (about five minutes)."""
    with errors_as_exit_status():
        from fcm_estimators.demo import run_demo

        run_demo(output)


@app.command()
def train(
    files: Files,
    out: Out,
    gates: LabelGates = None,
    chosen: ChosenGates = None,
    labels: Labels = "classes",
    classes: Classes = None,
    label_key: LabelKey = "cell_type",
    within: Within = None,
    event_column: EventColumn = None,
    kind: Annotated[str, typer.Option(help="classifier, or gates (the polygons of the tree).")] = (
        "classifier"
    ),
    pos_label: Annotated[
        str | None,
        typer.Option(
            help="Label of interest for residual disease, such as blast. Default: that of the only "
            "--class."
        ),
    ] = None,
    subset: Annotated[
        str | None, typer.Option(help="Gate or column; the model reads only the cells inside.")
    ] = None,
    patients: Annotated[
        Path | None,
        typer.Option(help="Table (CSV) with columns sample and patient, for the validation split."),
    ] = None,
    markers: Annotated[
        str | None, typer.Option(help="Markers to read, separated by commas. Default: all stained.")
    ] = None,
    missing_markers: Annotated[
        str,
        typer.Option(
            help="error, or mask: learn to do without one or a few markers, so that files without "
            "them can be annotated."
        ),
    ] = "error",
    transform: Annotated[str, typer.Option(help="auto, logicle, arcsinh or none.")] = "auto",
    cofactor: Annotated[float | None, typer.Option(help="Cofactor of arcsinh.")] = None,
    compensate: Annotated[
        bool | None,
        typer.Option(
            "--compensate/--no-compensate", help="Default: compensate if the files have a matrix."
        ),
    ] = None,
    max_cells: Annotated[
        int | None, typer.Option(help="Train on a random subset of this many cells per sample.")
    ] = None,
    max_epochs: Annotated[
        int | None, typer.Option(help="Largest number of epochs. Default: that of the estimator.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal models.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the interrupted training in --out.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the model in --out.")
    ] = False,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Train a classifier on labelled files, or a model of gates on a gating tree.

    Labels come from a column of h5ad files, or from gates: [bold]--gates tables/ --class
    blast=blast --within intact[/bold], or [bold]--gates lab.wsp --labels deepest[/bold].
    """
    with errors_as_exit_status():
        from fcm_estimators.workflow import train_model

        params: Entries = {"random_state": seed, "device": device}
        if kind == "classifier":
            params |= {"pos_label": pos_label, "missing_markers": missing_markers}
        optional = {
            "max_epochs": max_epochs,
            "subset_key": subset,
            "markers": None if markers is None else [m.strip() for m in markers.split(",")],
        }
        params |= {k: v for k, v in optional.items() if v is not None}
        with progress_bar("Reading", files) as progress:
            model = train_model(
                files,
                out,
                labels=label_source(
                    label_key, gates, classes, within, event_column, chosen, labels
                ),
                kind=kind,  # type: ignore[arg-type]  # checked by train_model
                transform=transform,  # type: ignore[arg-type]  # checked by train_model
                cofactor=cofactor,
                compensate=compensate,
                patients=patients_of(patients),
                max_cells=max_cells,
                resume=resume,
                overwrite=overwrite,
                n_workers=workers,
                progress=progress,
                verbose=int(sys.stderr.isatty()),
                **params,
            )
        last = model.history_.iloc[-1]
        found = {
            "model": str(out),
            "class": type(model).__name__,
            "markers": model.markers_,
            "classes": [str(c) for c in getattr(model, "classes_", [])],
            "positive class": str(getattr(model, "pos_label_", None) or "none"),
            "gates": list(getattr(model, "gates_", [])),
            "epochs": len(model.history_),
            "train_loss": float(last["train_loss"]),
        }
        performance = getattr(model, "performance_", None)
        if as_json and performance is not None:
            found["performance"] = performance.to_dict()
        print_record(found, as_json)
        if performance is not None and not as_json:
            typer.echo(f"\n{performance}")


@app.command()
def annotate(
    model: Model,
    files: Files,
    out: Out,
    gates: GatesOption = None,
    chosen: ChosenGates = None,
    event_column: EventColumn = None,
    denominator: Denominator = None,
    limit_of_blank: LimitOfBlank = None,
    protocol: ProtocolOption = "20/50 events",
    errors: Errors = None,
    resume: Resume = True,
    workers: Workers = None,
    scheduler: Scheduler = None,
    as_json: Json = False,
) -> None:
    """Annotate files; write an h5ad per file and a table of counts, residual disease, quality."""
    with errors_as_exit_status():
        from fcm_estimators.cohort import annotate_files

        with dask_client(scheduler) as client, progress_bar("Annotating", files) as progress:
            table = annotate_files(
                model,
                files,
                out,
                gates=gates,
                only=chosen or (),
                event_column=event_column,
                denominator=denominator,
                limit_of_blank=limit_of_blank,
                protocol=protocol,
                errors=errors,
                resume=resume,
                n_workers=workers,
                client=client,
                progress=progress,
            )
        print_files(table, as_json)


@app.command()
def explain(
    model: Model,
    files: Files,
    out: Out,
    target: Annotated[
        str | None, typer.Option(help="Class to explain. Default: the positive class.")
    ] = None,
    gate: Annotated[str | None, typer.Option(help="Gate to explain, for a model of gates.")] = None,
    mode: Annotated[
        str | None, typer.Option(help="own, set or context; see the documentation.")
    ] = None,
    net_layer: Annotated[
        int | None,
        typer.Option(help="Layer of the net whose heads are told apart. Default: all, as a mean."),
    ] = None,
    gates: GatesOption = None,
    resume: Resume = True,
    workers: Workers = None,
    scheduler: Scheduler = None,
    as_json: Json = False,
) -> None:
    """Annotate and explain files: gradients per marker, received attention."""
    with errors_as_exit_status():
        from fcm_estimators.workflow import explain_files

        with dask_client(scheduler) as client, progress_bar("Explaining", files) as progress:
            table = explain_files(
                model,
                files,
                out,
                target=target,
                gate=gate,
                mode=mode,  # type: ignore[arg-type]  # checked by explain_files
                net_layer=net_layer,
                gates=gates,
                resume=resume,
                n_workers=workers,
                client=client,
                progress=progress,
            )
        print_files(table, as_json)


@app.command()
def gate(
    model: Model,
    files: Files,
    out: Out,
    resume: Resume = True,
    workers: Workers = None,
    scheduler: Scheduler = None,
    as_json: Json = False,
) -> None:
    """Predict gates: write an h5ad with membership and a Gating-ML file for FlowJo per file."""
    with errors_as_exit_status():
        from fcm_estimators.workflow import gate_files

        with dask_client(scheduler) as client, progress_bar("Gating", files) as progress:
            table = gate_files(
                model,
                files,
                out,
                resume=resume,
                n_workers=workers,
                client=client,
                progress=progress,
            )
        print_files(table, as_json)


@app.command()
def evaluate(
    model: Model,
    files: Files,
    gates: LabelGates = None,
    chosen: ChosenGates = None,
    labels: Labels = "classes",
    classes: Classes = None,
    label_key: LabelKey = "cell_type",
    within: Within = None,
    event_column: EventColumn = None,
    patients: Annotated[
        Path | None,
        typer.Option(help="Table (CSV) with columns sample and patient, for --errors."),
    ] = None,
    errors: Annotated[
        Path | None,
        typer.Option(
            help="File (JSON) to write: how the model errs in these patients, for fcm annotate "
            "--errors. They must be unseen, and label the same gate (--within) as --denominator."
        ),
    ] = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Compare a model with expert labels or gates, sample by sample."""
    with errors_as_exit_status():
        import pandas as pd

        from fcm_estimators.cohort import errors_of_evaluation
        from fcm_estimators.workflow import evaluate_files

        with progress_bar("Reading", files) as progress:
            found = evaluate_files(
                model,
                files,
                labels=label_source(
                    label_key, gates, classes, within, event_column, chosen, labels
                ),
                n_workers=workers,
                progress=progress,
            )
        if errors is not None:
            written = errors_of_evaluation(found.table, model, patients_of(patients))
            written.write(errors)
            if written.why:
                text = f"Warning: no interval follows from this: {written.why}."
                typer.secho(text, fg="yellow", err=True)
        if as_json:
            tables = {"table": found.table.reset_index(), "summary": found.summary}
            if found.reliability is not None:
                reliability = found.reliability.reset_index()
                tables["reliability"] = reliability.assign(bin=reliability["bin"].astype(str))
            typer.echo(json.dumps({k: plain_values(v) for k, v in tables.items()}, indent=1))
            return
        print_table(found.table.reset_index().round(4), "Per sample")
        summary = found.summary
        if isinstance(summary, pd.Series):
            summary = summary.rename("value").rename_axis("over samples").to_frame()
        print_table(summary.reset_index().round(4), "Summary")
        if found.reliability is not None:
            print_table(found.reliability.reset_index().round(3), "Reliability of probabilities")


@app.command()
def report(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Annotated h5ad or zarr files, or directories of them.", show_default=False
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out", "-o", help="A page, such as report.html, or a directory for many pages."
        ),
    ] = Path("report.html"),
    sample: Annotated[
        str | None, typer.Option(help="Sample to report, if a file has several.")
    ] = None,
    denominator: Denominator = None,
    limit_of_blank: LimitOfBlank = None,
    protocol: ProtocolOption = "20/50 events",
    errors: Errors = None,
    sheet: Sheet = None,
    pool: Pool = None,
    umap: Annotated[
        bool, typer.Option("--umap", help="Compute a UMAP if the file has none.")
    ] = False,
    max_cells: Annotated[
        int, typer.Option(help="Largest number of cells in the picture.")
    ] = 100_000,
    identifiers: Annotated[
        bool, typer.Option("--identifiers", help="Show the name of the sample on the page.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write results and explanations of annotated samples as HTML pages that need no network.

    With --sheet (sample, patient, day) every page shows the course of its patient, from table.csv
    beside the files.
    """
    with errors_as_exit_status():
        from fcm_estimators.report import report_files

        with progress_bar("Reporting", files) as progress:
            table = report_files(
                files,
                out,
                sample=sample,
                denominator=denominator,
                limit_of_blank=limit_of_blank,
                protocol=protocol,
                errors=errors,
                sheet=sheet,
                pool=pool,
                umap=umap,
                max_cells=max_cells,
                identifiers=identifiers,
                identifiers_option="--identifiers",
                progress=progress,
            )
        print_files(table, as_json)


add_commands(app)
