"""Commands of ``fcm``. Each makes one call of the Python API."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from fcm_estimators._types import Entries
from fcm_estimators._version import __version__
from fcm_estimators.cli._evaluate import evaluate
from fcm_estimators.cli._lab import add_commands
from fcm_estimators.cli._options import (
    Aliases,
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
    Quiet,
    Resume,
    Scheduler,
    Sheet,
    Within,
    Workers,
    aliases_of,
    label_source,
    patients_of,
)
from fcm_estimators.cli._output import print_files, print_record
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


def _names(text: str | None) -> list[str]:
    return [] if text is None else [name.strip() for name in text.split(",")]


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
    one_marker: Annotated[
        list[str] | None,
        typer.Option(
            "--marker", help="A marker to read, beside --markers; can be repeated.", metavar="NAME"
        ),
    ] = None,
    aliases: Aliases = None,
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
    quiet: Quiet = False,
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
            "markers": [*_names(markers), *(one_marker or ())] or None,
            "marker_aliases": aliases_of(aliases) or None,
        }
        params |= {k: v for k, v in optional.items() if v is not None}
        with progress_bar("Reading", files, quiet) as progress:
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
                verbose=int(sys.stderr.isatty() and not quiet),
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
        if as_json or not quiet:
            print_record(found, as_json)
        if performance is not None and not as_json and not quiet:
            typer.echo(f"\n{performance}")


@app.command()
def annotate(
    model: Model,
    files: Files,
    out: Out,
    aliases: Aliases = None,
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
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Annotate files; write an h5ad per file and a table of counts, residual disease, quality."""
    with errors_as_exit_status():
        from fcm_estimators.cohort import annotate_files

        with dask_client(scheduler) as client, progress_bar("Annotating", files, quiet) as progress:
            table = annotate_files(
                model,
                files,
                out,
                marker_aliases=aliases_of(aliases),
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
        print_files(table, as_json, quiet)


@app.command()
def explain(
    model: Model,
    files: Files,
    out: Out,
    aliases: Aliases = None,
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
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Annotate and explain files: gradients per marker, received attention."""
    with errors_as_exit_status():
        from fcm_estimators.workflow import explain_files

        with dask_client(scheduler) as client, progress_bar("Explaining", files, quiet) as progress:
            table = explain_files(
                model,
                files,
                out,
                marker_aliases=aliases_of(aliases),
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
        print_files(table, as_json, quiet)


@app.command()
def gate(
    model: Model,
    files: Files,
    out: Out,
    aliases: Aliases = None,
    resume: Resume = True,
    workers: Workers = None,
    scheduler: Scheduler = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Predict gates: write an h5ad with membership and a Gating-ML file for FlowJo per file."""
    with errors_as_exit_status():
        from fcm_estimators.workflow import gate_files

        with dask_client(scheduler) as client, progress_bar("Gating", files, quiet) as progress:
            table = gate_files(
                model,
                files,
                out,
                marker_aliases=aliases_of(aliases),
                resume=resume,
                n_workers=workers,
                client=client,
                progress=progress,
            )
        print_files(table, as_json, quiet)


app.command()(evaluate)


@app.command()
def report(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Annotated h5ad or zarr files, or directories of them.", show_default=False
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="A page, or a directory for a page per sample and an index.html of them. "
            "Default: report.html for one sample, the directory reports for several.",
        ),
    ] = None,
    sample: Annotated[str | None, typer.Option(help="Report only this sample.")] = None,
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
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write results and explanations of annotated samples as HTML pages that need no network.

    With --sheet (sample, patient, day) every page shows the course of its patient, from table.csv
    beside the files.
    """
    with errors_as_exit_status():
        from fcm_estimators.report import report_files

        with progress_bar("Reporting", files, quiet) as progress:
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
        print_files(table, as_json, quiet)


add_commands(app)
