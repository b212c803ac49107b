"""Errors, progress and Dask clients around a command."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer


@contextmanager
def errors_as_exit_status() -> Iterator[None]:
    """Print an error of the input as one line and exit with 2; exit with 130 if interrupted."""
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
def progress_bar(what: str, files: list[Path]) -> Iterator[Callable[[dict[str, Any]], None] | None]:
    """Show a progress bar over files on a terminal; show nothing in a pipe."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    from fcm_estimators.cohort.files import list_files

    n_files = len(list_files(files))
    columns = (what, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), "{task.description}")
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=n_files)

        def advance(row: dict[str, Any]) -> None:
            bar.update(task, advance=1, description=Path(str(row["file"])).name)
            if bar.finished:
                # The next step, such as training, shows its own bar.
                bar.stop()

        yield advance


@contextmanager
def dask_client(scheduler: str | None) -> Iterator[Any]:
    """Connect to a Dask scheduler; yield None without an address."""
    if scheduler is None:
        yield None
        return
    from fcm_estimators.exceptions import InvalidInputError

    try:
        import distributed
    except ImportError as error:
        raise InvalidInputError(
            "--scheduler needs Dask: install fcm-estimators[cohort]."
        ) from error
    dask: Any = distributed  # has no annotations
    try:
        client = dask.Client(scheduler, timeout=30)
    except OSError as error:
        raise InvalidInputError(f"No Dask scheduler answers at {scheduler}: {error}") from error
    with client:
        yield client
