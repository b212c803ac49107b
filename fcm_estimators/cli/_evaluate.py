"""``fcm evaluate``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fcm_estimators.cli._options import (
    Aliases,
    ChosenGates,
    Classes,
    EventColumn,
    Files,
    Json,
    LabelGates,
    LabelKey,
    Labels,
    Model,
    Within,
    Workers,
    aliases_of,
    label_source,
    patients_of,
)
from fcm_estimators.cli._output import plain_values, print_table
from fcm_estimators.cli._running import errors_as_exit_status, progress_bar


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
    aliases: Aliases = None,
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
                marker_aliases=aliases_of(aliases),
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
