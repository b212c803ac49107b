"""Print results as tables or JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from fcm_estimators._types import Entries

if TYPE_CHECKING:
    import pandas as pd


def print_files(table: pd.DataFrame, as_json: bool, quiet: bool) -> None:
    """Print a table of files, unless it is to be quiet; exit with 1 if some failed."""
    failed = table[table["status"] == "failed"]
    if as_json:
        typer.echo(json.dumps(plain_values(table), indent=1))
    else:
        if not quiet:
            print_table(_screen_columns(table), "")
        for warning in dict.fromkeys(w for w in table["warning"] if w):
            typer.secho(f"Warning: {warning}", fg="yellow", err=True)
    for row in failed.to_dict("records"):
        name = Path(row["file"]).name
        text = row["error"] if row["error"].startswith(name) else f"{name}: {row['error']}"
        typer.secho(text, fg="red", err=True)
    if len(failed):
        typer.secho(f"{len(failed)} of {len(table)} files failed.", fg="red", err=True)
        raise typer.Exit(1)


def _screen_columns(table: pd.DataFrame) -> pd.DataFrame:
    """Choose the columns of a table of files that fit on a screen."""
    hidden = ("n_qc", "n_positive", "n_outside")
    counts = [c for c in table if str(c).startswith("n_") and not str(c).startswith(hidden)]
    wanted = ["sample", "status", *counts[:8]]
    found = table[[c for c in wanted if c in table]].rename(columns=lambda c: c.removeprefix("n_"))
    if "missing_markers" in table:
        found["missing"] = table["missing_markers"]
    if "fraction" in table:
        found["fraction"] = table["fraction"].map("{:.2g}".format, na_action="ignore")
        low, high = (
            table[c].map("{:.2g}".format, na_action="ignore") for c in ("ci_low", "ci_high")
        )
        found["95 % interval"] = low + "-" + high
        why = table["adequacy_why"]
        found["MRD"] = table["detection"] + (", " + why).where(why != "", "")
        low, high = (
            table[c].map("{:.2g}".format, na_action="ignore")
            for c in ("members_lowest", "members_possible")
        )
        found["members"] = low + "-" + high
    if "n_qc_any" in table:
        found["flagged"] = table["n_qc_any"]
    if "distance" in table:
        distance = table["distance"].map("{:.1f} SD".format, na_action="ignore")
        found["farthest"] = table["farthest_marker"] + " " + distance
    others = [c for c in ("strongest_marker", "gatingml") if c in table]
    if "n_cells" not in table:
        others.append("output")
    return found.join(table[others])


def print_record(record: Entries, as_json: bool) -> None:
    """Print names and values, one per line."""
    if as_json:
        typer.echo(json.dumps(record, indent=1))
        return
    for name, value in record.items():
        if value not in ([], ""):
            shown = ", ".join(value) if isinstance(value, list) else value
            typer.echo(f"{name.replace('_', ' '):>18}  {shown}")


def print_table(table: pd.DataFrame, title: str) -> None:
    """Print a table in full; a narrow terminal wraps the lines."""
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
    # A console as wide as the table cuts nothing off; the terminal wraps the lines.
    needed = Measurement.get(console, console.options.update(width=10_000), shown).maximum
    console.width = max(console.width, needed)
    console.print(shown, soft_wrap=True)


def plain_values(table: pd.DataFrame | pd.Series) -> Any:
    """Convert a table to lists and dicts for JSON; missing values become null."""
    if table.ndim == 1:
        return json.loads(table.to_json())
    return json.loads(table.to_json(orient="records"))
