"""Options that several commands share, and functions that read their values."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fcm_estimators.labels import LabelSource

Files = Annotated[
    list[Path],
    typer.Argument(help="FCS, h5ad or zarr files, or directories of them.", show_default=False),
]
Model = Annotated[Path, typer.Argument(help="Directory that fcm train wrote.", show_default=False)]
Out = Annotated[Path, typer.Option("--out", "-o", help="Directory for the results.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="No progress and no table; warnings and errors are told."),
]
Aliases = Annotated[
    list[str] | None,
    typer.Option(
        "--alias",
        help="A=B: marker A of the files is marker B of the model; can be repeated.",
        metavar="A=B",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(help="Number of processes; 0: one file after the other. Default: one per core."),
]
Scheduler = Annotated[
    str | None, typer.Option(help="Address of a Dask scheduler to use, tcp://host:port.")
]
Resume = Annotated[
    bool, typer.Option("--resume/--redo", help="Keep finished results whose inputs are the same.")
]
GatesOption = Annotated[
    Path | None,
    typer.Option(
        help="Gates to apply first: a Gating-ML file (.xml), a FlowJo workspace (.wsp) that lists "
        "the files, a table (.csv), a directory with a table SAMPLE.csv per file, or a model of "
        "gates. --denominator and models that read only cells inside a gate need them."
    ),
]
ChosenGates = Annotated[
    list[str] | None,
    typer.Option(
        "--gate",
        help="Read only this gate of --gates, with those above it; can be repeated. A name that "
        "occurs twice is a path, 'parent > name'.",
        metavar="NAME",
    ),
]
Labels = Annotated[
    str,
    typer.Option(
        help="classes (those of --class), or deepest: the label of a cell is its deepest gate, of "
        "those of --gate if there are any."
    ),
]
Denominator = Annotated[
    str | None, typer.Option(help="Gate to which the fraction of positive cells refers.")
]
LimitOfBlank = Annotated[
    float | None, typer.Option(help="Fraction found in samples without disease.")
]
ProtocolOption = Annotated[
    str,
    typer.Option(
        "--protocol",
        help="Limits by which positive cells are counted: 20/50 events, eln-aml, all-response, "
        "pnh, or your own as JSON or as a .json file, such as "
        '{"name": "our lab", "events_to_detect": 10, "sensitivity": 1e-5}.',
    ),
]
Errors = Annotated[
    Path | None,
    typer.Option(
        help="File that fcm evaluate --errors wrote for this model, for an interval of residual "
        "disease that knows wrongly classified cells."
    ),
]
Sheet = Annotated[
    Path | None,
    typer.Option(help="Table (CSV) with a column sample and what is known of each sample."),
]
Pool = Annotated[
    str | None,
    typer.Option(help="Column of --sheet that names the tubes whose counts are added."),
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
    str,
    typer.Option(help="Column of obs with the labels (h5ad, zarr), or for the labels of --class."),
]
Within = Annotated[
    str | None,
    typer.Option(
        help="Gate outside of which cells stay unlabelled. A model that is trained with it reads "
        "and judges only the cells inside, and needs the gate (--gates) whenever it is used."
    ),
]
EventColumn = Annotated[
    str | None,
    typer.Option(help="Column of the tables with the number of the event, counted from 0."),
]


def label_source(
    label_key: str,
    gates: Path | None,
    classes: list[str] | None,
    within: str | None,
    event_column: str | None,
    chosen: list[str] | None = None,
    labels: str = "classes",
) -> LabelSource:
    """Make the label source from the options of a command."""
    from fcm_estimators.labels import LabelSource

    pairs = _pairs("--class", classes, "GATE=LABEL, such as cd3=T cell")
    return LabelSource(
        label_key=label_key,
        gates=None if gates is None else str(gates),
        classes=pairs,
        within=within,
        event_column=event_column,
        only=tuple(chosen or ()),
        labels=labels,  # type: ignore[arg-type]  # checked when it labels
    )


def aliases_of(texts: list[str] | None) -> dict[str, str]:
    """Read the pairs of ``--alias``: the model's name of a marker for its name in the files."""
    return _pairs("--alias", texts, "NAME IN FILES=NAME IN MODEL, such as 'CD19 PE=CD19'")


def _pairs(option: str, texts: list[str] | None, form: str) -> dict[str, str]:
    from fcm_estimators.exceptions import InvalidInputError

    pairs: dict[str, str] = {}
    for text in texts or []:
        left, _, right = text.partition("=")
        if not left or not right:
            raise InvalidInputError(f"{option} {text!r}: expected {form}.")
        if pairs.setdefault(left, right) != right:
            raise InvalidInputError(f"{option}: {left!r} is both {pairs[left]!r} and {right!r}.")
    return pairs


def patients_of(path: Path | None) -> dict[str, str] | None:
    """Read the patient of each sample from a table (CSV)."""
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
