"""``fcm``, the command line. Everything it does is one call of the Python API.

Results go to standard output, as a table or with ``--json`` as JSON; progress, on a terminal only,
and errors go to standard error. Exit status: 0 done; 1 done, but some files failed; 2 a wrong
call or input that cannot be used; 130 interrupted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fcm_estimators._version import __version__

if TYPE_CHECKING:
    import pandas as pd

app = typer.Typer(
    name="fcm",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    help="Classify and gate flow-cytometry samples with transformers that read whole samples.\n\n"
    "FILES are .fcs, .lmd, .h5ad files, zarr directories, or directories of those. A first "
    "session: [bold]fcm train[/bold] on files with expert gates, [bold]fcm evaluate[/bold] on "
    "others, [bold]fcm annotate[/bold] new ones.\n\n"
    "Training is fastest with as many threads as free cores; set OMP_NUM_THREADS where several "
    "trainings share a machine.",
    rich_markup_mode="rich",
)

Files = Annotated[
    list[Path], typer.Argument(help="FCS, h5ad, zarr, or directories of them.", show_default=False)
]
Model = Annotated[Path, typer.Argument(help="Directory that fcm train wrote.", show_default=False)]
Out = Annotated[Path, typer.Option("--out", "-o", help="Directory for the results.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Workers = Annotated[
    int | None,
    typer.Option(help="Processes; 0: one file after the other. Default: one per core."),
]
Scheduler = Annotated[
    str | None, typer.Option(help="Address of a Dask scheduler to work on, tcp://host:port.")
]
Resume = Annotated[
    bool, typer.Option("--resume/--redo", help="Keep finished results whose inputs are the same.")
]
GatesOption = Annotated[
    Path | None,
    typer.Option(
        help="Gates to apply first: a Gating-ML file or a model of gates. Needed for "
        "--denominator and for models that look inside a gate."
    ),
]
Denominator = Annotated[
    str | None, typer.Option(help="Gate to which the fraction of positive cells refers.")
]
LimitOfBlank = Annotated[
    float | None, typer.Option(help="Fraction found in samples without disease.")
]
LabelGates = Annotated[
    Path | None,
    typer.Option(
        help="Expert gates: a table (.csv) of one file with a 0/1 column per gate, a directory "
        "with a table SAMPLE.csv per file, a Gating-ML file (.xml) or a FlowJo workspace (.wsp)."
    ),
]
Classes = Annotated[
    list[str] | None,
    typer.Option(
        "--class",
        help="GATE=LABEL: cells of a gate get this label; can be repeated.",
        metavar="G=L",
    ),
]
LabelKey = Annotated[
    str, typer.Option(help="Column of obs with the labels (h5ad, zarr), or for those of --class.")
]
Within = Annotated[str | None, typer.Option(help="Gate outside of which cells stay unlabelled.")]
EventColumn = Annotated[
    str | None, typer.Option(help="Column of the tables with the number of the event, from 0.")
]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"fcm-estimators {__version__}")
        raise typer.Exit


@app.callback()
def _options(
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
    """Train on real data and annotate samples the model has not seen; about five minutes."""
    with _errors():
        from fcm_estimators.demo import run_demo

        run_demo(output)


@app.command()
def train(
    files: Files,
    out: Out,
    gates: LabelGates = None,
    classes: Classes = None,
    label_key: LabelKey = "cell_type",
    within: Within = None,
    event_column: EventColumn = None,
    kind: Annotated[str, typer.Option(help="classifier, or gates: polygons of the tree.")] = (
        "classifier"
    ),
    pos_label: Annotated[
        str | None, typer.Option(help="Label of interest, such as blast, for residual disease.")
    ] = None,
    subset: Annotated[
        str | None, typer.Option(help="Gate or column: the model reads only cells inside.")
    ] = None,
    patients: Annotated[
        Path | None,
        typer.Option(help="Table (CSV) with columns sample and patient, for the validation split."),
    ] = None,
    markers: Annotated[
        str | None, typer.Option(help="Markers to read, separated by commas. Default: all stained.")
    ] = None,
    transform: Annotated[str, typer.Option(help="auto, logicle, arcsinh or none.")] = "auto",
    cofactor: Annotated[float | None, typer.Option(help="Of arcsinh.")] = None,
    compensate: Annotated[
        bool | None,
        typer.Option("--compensate/--no-compensate", help="Default: where files have a matrix."),
    ] = None,
    max_cells: Annotated[
        int | None, typer.Option(help="Random subset of each sample to train on.")
    ] = None,
    max_epochs: Annotated[int | None, typer.Option(help="Default: that of the estimator.")] = None,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal models.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda.")] = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the interrupted training in --out.")
    ] = False,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Train a classifier on labelled files, or a model of gates on a gating tree.

    Labels come from a column of h5ad files, or from gates: [bold]--gates tables/ --class
    blast=blast --within intact[/bold].
    """
    with _errors():
        from fcm_estimators.workflow import train_model

        params: dict[str, Any] = {"random_state": seed, "device": device}
        if kind == "classifier":
            params["pos_label"] = pos_label
        optional = {
            "max_epochs": max_epochs,
            "subset_key": subset,
            "markers": None if markers is None else [m.strip() for m in markers.split(",")],
        }
        params |= {k: v for k, v in optional.items() if v is not None}
        with _progress("Reading", files) as progress:
            model = train_model(
                files,
                out,
                labels=_labels(label_key, gates, classes, within, event_column),
                kind=kind,  # type: ignore[arg-type]
                transform=transform,  # type: ignore[arg-type]
                cofactor=cofactor,
                compensate=compensate,
                patients=_patients(patients),
                max_cells=max_cells,
                resume=resume,
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
            "gates": list(getattr(model, "gates_", [])),
            "epochs": len(model.history_),
            "train_loss": float(last["train_loss"]),
            "validation_samples": [str(s) for s in model.validation_samples_],
        }
        _print_record(found, as_json)


@app.command()
def annotate(
    model: Model,
    files: Files,
    out: Out,
    gates: GatesOption = None,
    denominator: Denominator = None,
    limit_of_blank: LimitOfBlank = None,
    resume: Resume = True,
    workers: Workers = None,
    scheduler: Scheduler = None,
    as_json: Json = False,
) -> None:
    """Annotate files: an h5ad per file, and a table of counts, residual disease and quality."""
    with _errors():
        from fcm_estimators.cohort import annotate_files

        with _client(scheduler) as client, _progress("Annotating", files) as progress:
            table = annotate_files(
                model,
                files,
                out,
                gates=gates,
                denominator=denominator,
                limit_of_blank=limit_of_blank,
                resume=resume,
                n_workers=workers,
                client=client,
                progress=progress,
            )
        _print_files(table, as_json)


@app.command()
def explain(
    model: Model,
    files: Files,
    out: Out,
    target: Annotated[
        str | None, typer.Option(help="Class to explain. Default: the positive one.")
    ] = None,
    gate: Annotated[str | None, typer.Option(help="Gate to explain, of a model of gates.")] = None,
    mode: Annotated[
        str | None, typer.Option(help="own, set or context; see the documentation.")
    ] = None,
    layer: Annotated[int, typer.Option(help="Layer whose attention is shown; -1 the last.")] = -1,
    gates: GatesOption = None,
    resume: Resume = True,
    workers: Workers = None,
    scheduler: Scheduler = None,
    as_json: Json = False,
) -> None:
    """Annotate files and add why: gradients per marker, assigned heads, received attention."""
    with _errors():
        from fcm_estimators.workflow import explain_files

        with _client(scheduler) as client, _progress("Explaining", files) as progress:
            table = explain_files(
                model,
                files,
                out,
                target=target,
                gate=gate,
                mode=mode,  # type: ignore[arg-type]
                layer=layer,
                gates=gates,
                resume=resume,
                n_workers=workers,
                client=client,
                progress=progress,
            )
        _print_files(table, as_json)


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
    """Predict the gates of files: an h5ad with membership and a Gating-ML file for FlowJo each."""
    with _errors():
        from fcm_estimators.workflow import gate_files

        with _client(scheduler) as client, _progress("Gating", files) as progress:
            table = gate_files(
                model,
                files,
                out,
                resume=resume,
                n_workers=workers,
                client=client,
                progress=progress,
            )
        _print_files(table, as_json)


@app.command()
def evaluate(
    model: Model,
    files: Files,
    gates: LabelGates = None,
    classes: Classes = None,
    label_key: LabelKey = "cell_type",
    within: Within = None,
    event_column: EventColumn = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Compare a model with expert labels or gates, sample by sample."""
    with _errors():
        import pandas as pd

        from fcm_estimators.workflow import evaluate_files

        with _progress("Reading", files) as progress:
            found = evaluate_files(
                model,
                files,
                labels=_labels(label_key, gates, classes, within, event_column),
                n_workers=workers,
                progress=progress,
            )
        if as_json:
            tables = {"table": found.table.reset_index(), "summary": found.summary}
            if found.reliability is not None:
                reliability = found.reliability.reset_index()
                tables["reliability"] = reliability.assign(bin=reliability["bin"].astype(str))
            typer.echo(json.dumps({k: _jsonable(v) for k, v in tables.items()}, indent=1))
            return
        _print_table(found.table.reset_index().round(4), "Per sample")
        summary = found.summary
        if isinstance(summary, pd.Series):
            summary = summary.rename("value").rename_axis("over samples").to_frame()
        _print_table(summary.reset_index().round(4), "Summary")
        if found.reliability is not None:
            _print_table(found.reliability.reset_index().round(3), "Reliability of probabilities")


@app.command()
def report(
    files: Annotated[
        list[Path],
        typer.Argument(help="Annotated h5ad or zarr, or directories of them.", show_default=False),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="A page, report.html, or a directory for many.")
    ] = Path("report.html"),
    sample: Annotated[
        str | None, typer.Option(help="Which sample, where a file has several.")
    ] = None,
    denominator: Denominator = None,
    limit_of_blank: LimitOfBlank = None,
    umap: Annotated[
        bool, typer.Option("--umap", help="Make a UMAP where the file has none.")
    ] = False,
    max_cells: Annotated[int, typer.Option(help="Cells in the picture.")] = 100_000,
    identifiers: Annotated[
        bool, typer.Option("--identifiers", help="Name the sample on the page.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Write what was found in annotated samples, and why, as HTML pages that need no network."""
    with _errors():
        from fcm_estimators.report import report_files

        with _progress("Reporting", files) as progress:
            table = report_files(
                files,
                out,
                sample=sample,
                denominator=denominator,
                limit_of_blank=limit_of_blank,
                umap=umap,
                max_cells=max_cells,
                identifiers=identifiers,
                progress=progress,
            )
        _print_files(table, as_json)


# -- what the commands share --------------------------------------------------------------------


@contextmanager
def _errors() -> Iterator[None]:
    """Errors of input as one line and exit status 2; an interrupt as 130."""
    from fcm_estimators.exceptions import FcmError

    try:
        yield
    except (FcmError, FileNotFoundError, PermissionError) as error:
        typer.secho(f"Error: {error}", fg="red", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        typer.secho("Interrupted.", err=True)
        raise typer.Exit(130) from None


@contextmanager
def _progress(what: str, files: list[Path]) -> Iterator[Callable[[dict[str, Any]], None] | None]:
    """Bar over files on a terminal, nothing in a pipe."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    from fcm_estimators.cohort import list_files

    n_files = len(list_files(files))
    columns = (what, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), "{task.description}")
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=n_files)

        def advance(row: dict[str, Any]) -> None:
            bar.update(task, advance=1, description=Path(str(row["file"])).name)
            if bar.finished:
                # What comes next, such as training, has a bar of its own.
                bar.stop()

        yield advance


@contextmanager
def _client(scheduler: str | None) -> Iterator[Any]:
    if scheduler is None:
        yield None
        return
    from fcm_estimators.exceptions import InvalidInputError

    try:
        from distributed import Client
    except ImportError as error:
        raise InvalidInputError(
            "--scheduler needs Dask: install fcm-estimators[cohort]."
        ) from error
    try:
        client = Client(scheduler, timeout=30)
    except OSError as error:
        raise InvalidInputError(f"No Dask scheduler answers at {scheduler}: {error}") from error
    with client:
        yield client


def _labels(
    key: str,
    gates: Path | None,
    classes: list[str] | None,
    within: str | None,
    event_column: str | None,
) -> Any:
    from fcm_estimators.exceptions import InvalidInputError
    from fcm_estimators.workflow import LabelSource

    pairs = {}
    for text in classes or []:
        gate, found, label = text.partition("=")
        if not found or not gate or not label:
            raise InvalidInputError(f"--class {text!r}: expected GATE=LABEL, such as cd3=T cell.")
        pairs[gate] = label
    return LabelSource(
        key=key,
        gates=None if gates is None else str(gates),
        classes=pairs,
        within=within,
        event_column=event_column,
    )


def _patients(path: Path | None) -> dict[str, str] | None:
    import pandas as pd

    from fcm_estimators.exceptions import InvalidInputError

    if path is None:
        return None
    try:
        table = pd.read_csv(path, dtype=str)
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"--patients: {path} cannot be read as CSV: {error}") from error
    if not {"sample", "patient"} <= set(table):
        raise InvalidInputError(
            f"--patients: {path} has the columns {list(table)}; expected sample and patient."
        )
    return dict(zip(table["sample"], table["patient"], strict=True))


def _print_files(table: pd.DataFrame, as_json: bool) -> None:
    """Table of files; exit status 1 if some failed."""
    failed = table[table["status"] == "failed"]
    if as_json:
        typer.echo(json.dumps(_jsonable(table), indent=1))
    else:
        _print_table(_shown(table), "")
        for warning in dict.fromkeys(w for w in table["warning"] if w):
            typer.secho(f"Warning: {warning}", fg="yellow", err=True)
    for row in failed.to_dict("records"):
        name = Path(row["file"]).name
        said = row["error"] if row["error"].startswith(name) else f"{name}: {row['error']}"
        typer.secho(said, fg="red", err=True)
    if len(failed):
        typer.secho(f"{len(failed)} of {len(table)} files failed.", fg="red", err=True)
        raise typer.Exit(1)


def _shown(table: pd.DataFrame) -> pd.DataFrame:
    """What fits on a screen of a table of files."""
    aside = ("n_qc", "n_positive", "n_outside")
    counts = [c for c in table if str(c).startswith("n_") and not str(c).startswith(aside)]
    wanted = ["sample", "status", *counts[:8]]
    found = table[[c for c in wanted if c in table]].rename(columns=lambda c: c.removeprefix("n_"))
    if "fraction" in table:
        found["fraction"] = table["fraction"].map("{:.2g}".format, na_action="ignore")
        low, high = (
            table[c].map("{:.2g}".format, na_action="ignore") for c in ("ci_low", "ci_high")
        )
        found["95 % interval"] = low + "-" + high
        found["MRD"] = table["mrd_status"]
    if "n_qc_any" in table:
        found["flagged"] = table["n_qc_any"]
    if "distance" in table:
        distance = table["distance"].map("{:.1f} SD".format, na_action="ignore")
        found["farthest"] = table["farthest_marker"] + " " + distance
    others = [c for c in ("strongest_marker", "gatingml") if c in table]
    if "n_cells" not in table:
        others.append("output")
    return found.join(table[others])


def _print_record(record: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(record, indent=1))
        return
    for name, value in record.items():
        if value not in ([], ""):
            shown = ", ".join(value) if isinstance(value, list) else value
            typer.echo(f"{name.replace('_', ' '):>18}  {shown}")


def _print_table(table: pd.DataFrame, title: str) -> None:
    import pandas as pd
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table

    console = Console()
    shown = Table(title=title or None, title_justify="left", box=None, pad_edge=False)
    for name in table:
        shown.add_column(str(name), no_wrap=True)
    for row in table.itertuples(index=False):
        shown.add_row(*("" if pd.isna(value) else str(value) for value in row))
    # Too narrow a terminal wraps lines; nothing is cut off.
    needed = Measurement.get(console, console.options.update(width=10_000), shown).maximum
    console.width = max(console.width, needed)
    console.print(shown, soft_wrap=True)


def _jsonable(table: pd.DataFrame | pd.Series) -> Any:
    """Plain values; what is missing is null."""
    if table.ndim == 1:
        return json.loads(table.to_json())
    return json.loads(table.to_json(orient="records"))


def main() -> None:
    """Entry point of ``fcm``."""
    app()


if __name__ == "__main__":
    main()
