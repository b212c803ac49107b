"""Commands for a laboratory's own studies, from the tables of ``fcm annotate``, and the doctor."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fcm_estimators._files import made_folder, write_table
from fcm_estimators.cli._options import (
    Errors,
    Json,
    LimitOfBlank,
    Pool,
    ProtocolOption,
    Sheet,
)
from fcm_estimators.cli._output import plain_values, print_record, print_table
from fcm_estimators.cli._running import errors_as_exit_status

Tables = Annotated[
    list[Path],
    typer.Argument(
        help="table.csv of fcm annotate, or directories that hold one.", show_default=False
    ),
]
_YES_NO = {True: "yes", False: "NO"}


def blank(
    tables: Tables,
    low: Annotated[
        list[Path] | None,
        typer.Option(
            "--low",
            help="Table of samples with little disease; can be repeated. --sheet gives "
            "their true fraction in a column expected.",
        ),
    ] = None,
    sheet: Sheet = None,
    method: Annotated[str, typer.Option(help="nonparametric or parametric.")] = "nonparametric",
    percentile: Annotated[float, typer.Option(help="Percentile of the patients.")] = 95.0,
    n_cells: Annotated[
        int | None,
        typer.Option("--cells", help="Denominator for which the limits hold. Default: the median."),
    ] = None,
    cv_goal: Annotated[
        float, typer.Option(help="Coefficient of variation that is good enough for a quantity.")
    ] = 0.3,
    protocol: ProtocolOption = "20/50 events",
    as_json: Json = False,
) -> None:
    """Limits of blank, detection and quantitation, from samples without and with little disease.

    The samples must not have been in training. Patients count, not repeats: --sheet names the
    patient, lot and day of each sample. CLSI EP17 asks for 60 results, two lots and three days.
    """  # fmt: skip
    with errors_as_exit_status():
        from fcm_estimators.cohort import limits_of_tables

        found = limits_of_tables(
            tables,
            low,
            sheet=sheet,
            method=method,
            percentile=percentile,
            n_cells=n_cells,
            cv_goal=cv_goal,
            protocol=protocol,
        ).entries()
        if as_json:
            print_record({k: None if v != v else v for k, v in found.items()}, as_json)
            return
        missing = found.pop("shortfalls")
        print_record(
            {k: f"{v:.3g}" if isinstance(v, float) else v for k, v in found.items()}, as_json
        )
        for text in missing if isinstance(missing, list) else []:
            typer.secho(f"Warning: {text}", fg="yellow", err=True)


def compare(
    tables: Tables,
    manual: Annotated[
        Path,
        typer.Option(
            help="Table (CSV) with sample, manual_numerator and manual_denominator, or sample, "
            "fraction and lloq; and patient."
        ),
    ],
    cut_off: Annotated[float, typer.Option(help="Fraction from which a sample is positive.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Directory for pairs.csv and pairs.png.")
    ] = None,
    protocol: ProtocolOption = "20/50 events",
    as_json: Json = False,
) -> None:
    """Compare results with those of a manual method, on patients that were not in training."""
    with errors_as_exit_status():
        from fcm_estimators.cohort import comparison_of_tables

        found = comparison_of_tables(tables, manual, cut_off=cut_off, protocol=protocol)
        if out is not None:
            import matplotlib.pyplot as plt

            from fcm_estimators.metrics import MethodComparisonDisplay

            write_table(made_folder(out) / "pairs.csv", found.pairs.reset_index())
            picture = MethodComparisonDisplay(found).plot()
            picture.figure_.savefig(out / "pairs.png", dpi=150)
            plt.close(picture.figure_)
        figures, discordant = found.frame().reset_index(), found.discordant.reset_index()
        if as_json:
            tables_of = {"figures": figures, "discordant": discordant}
            values = {k: plain_values(v) for k, v in tables_of.items()}
            print_record({**values, "notes": list(found.notes)}, as_json)
            return
        print_table(figures.round(4), "")
        if len(discordant):
            columns = ["sample", "manual", "automatic"]
            shown = discordant[columns].map(lambda v: v if isinstance(v, str) else f"{v:.3g}")
            print_table(shown, f"On different sides of {cut_off:g}")
        for note in found.notes:
            typer.secho(f"Note: {note}", err=True)


def course(
    tables: Tables,
    sheet: Annotated[
        Path, typer.Option(help="Table (CSV) with sample, patient, day and the column of --pool.")
    ],
    out: Annotated[
        Path,
        typer.Option("--out", "-o", help="Directory for course.csv and a picture per patient."),
    ] = Path("course"),
    pool: Pool = None,
    limit_of_blank: LimitOfBlank = None,
    protocol: ProtocolOption = "20/50 events",
    errors: Errors = None,
    identifiers: Annotated[
        bool, typer.Option("--identifiers", help="Show the names of patients in the pictures.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Residual disease of patients over days, with the counts of pooled tubes added."""
    with errors_as_exit_status():
        import matplotlib.pyplot as plt

        from fcm_estimators.cohort import course_of_tables
        from fcm_estimators.metrics import CourseDisplay, Protocol

        table = course_of_tables(
            *(tables, sheet),
            pool=pool,
            limit_of_blank=limit_of_blank,
            protocol=protocol,
            errors=errors,
        )
        write_table(made_folder(out) / "course.csv", table.reset_index())
        cut_offs = Protocol.read(protocol).cut_offs
        for number, patient in enumerate(table.index.unique("patient"), 1):
            title = str(patient) if identifiers else f"Patient {number}"
            figure, ax = plt.subplots(figsize=(7, 4), layout="constrained")
            CourseDisplay.from_table(table, patient, title=title, cut_offs=cut_offs).plot(ax)
            figure.savefig(out / f"course-{number}.png", dpi=150)
            plt.close(figure)
        rows = table.reset_index()
        if as_json:
            print_record({"course": plain_values(rows)}, as_json)
            return
        columns = ["patient", "day", "numerator", "denominator", "shown", "detection", "adequacy"]
        if errors is not None:
            columns.append("shown_total")
            for why in filter(None, rows["ci_total_why"].unique()):
                text = f"Warning: No interval knows wrongly classified cells: {why}."
                typer.secho(text, fg="yellow", err=True)
        print_table(rows[[*columns, "n_tubes"]], "")


def doctor(
    quick: Annotated[bool, typer.Option("--quick", help="Do not try the package.")] = False,
    as_json: Json = False,
) -> None:
    """Print versions, devices and threads, and try the package on simulated samples (a minute)."""
    with errors_as_exit_status():
        from fcm_estimators.doctor import installation, self_test

        found = {"installation": installation()}
        if not quick:
            found["self_test"] = self_test()
        if as_json:
            print_record({name: plain_values(table) for name, table in found.items()}, as_json)
        else:
            print_table(found["installation"], "")
            if not quick:
                shown = found["self_test"].assign(works=found["self_test"]["works"].map(_YES_NO))
                print_table(shown, "Tried on simulated samples")
        if not quick and not found["self_test"]["works"].all():
            raise typer.Exit(1)


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command()(blank)
    app.command()(compare)
    app.command()(course)
    app.command()(doctor)
