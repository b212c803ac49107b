"""Errors, progress and Dask clients around a command."""

from __future__ import annotations

import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from fcm_estimators._types import Entries, Progress

# Arguments of the Python functions that messages name, and the options of the commands.
_OPTIONS = {
    "missing_markers": "--missing-markers",
    "markers": "--markers",
    "sample": "--sample",
    "kind": "--kind",
    "mode": "--mode",
    "gates": "--gates",
    "classes": "--class",
    "only": "--gate",
    "labels": "--labels",
    "label_key": "--label-key",
    "within": "--within",
    "event_column": "--event-column",
    "subset_key": "--subset",
    "patient_key": "--patients",
    "pos_label": "--pos-label",
    "denominator": "--denominator",
    "limit_of_blank": "--limit-of-blank",
    "protocol": "--protocol",
    "n_cells": "--cells",
    "sheet": "--sheet",
    "errors": "--errors",
    "pool": "--pool",
    "cut_off": "--cut-off",
    "max_cells": "--max-cells",
    "max_epochs": "--max-epochs",
    "cofactor": "--cofactor",
    "compensate": "--compensate",
    "random_state": "--seed",
    "device": "--device",
    "n_workers": "--workers",
    "out": "--out",
}
_VALUE = r"=(?P<value>\[\.\.\.\]|\.\.\.|\[[^\]]*\]|\{[^}]*\}|'[^']*'|\"[^\"]*\"|\w+)?"
_ARGUMENT = re.compile(rf"(?<![\w\[(.])(?P<name>{'|'.join(_OPTIONS)}){_VALUE}")
_ALIASES = re.compile(r"marker_aliases=(\{[^}]*\})")
_PAIR = re.compile(r"'([^']*)': '([^']*)'")
_PYTHON_ONLY = re.compile(r"(?<!\w)(dataset|sample_names|join|spillover|layer|scale_time|names)=")


def in_words_of_commands(text: str) -> str:
    """Name options of the commands where a message names arguments of Python functions.

    Examples
    --------
    >>> from fcm_estimators.cli._running import in_words_of_commands
    >>> in_words_of_commands("Name them with markers=[...], not with denominator='x'.")
    "Name them with --markers, not with --denominator 'x'."
    >>> in_words_of_commands("Name them with gates=[...], or give them with gates=...")
    'Name them with --gate, or give them with --gates'
    >>> in_words_of_commands("Pass marker_aliases={'CD 34': 'CD34'} or sample=...")
    "Pass --alias 'CD 34=CD34' or --sample"
    >>> in_words_of_commands("Choose one with dataset=1.")
    'Choose one with dataset=1. (The commands have no option for dataset; use Python.)'
    """

    def option(found: re.Match[str]) -> str:
        value = found["value"] or ""
        return _OPTIONS[found["name"]] + (f" {value}" if value.strip("[.]") else "")

    text = text.replace("resume=True (--resume)", "--resume")
    text = text.replace("overwrite=True (--overwrite)", "--overwrite")
    # Lists of gates are chosen, files of gates are given.
    text = text.replace("gates=[...]", "--gate").replace(
        ' (or leave these out with unreadable="skip")', ""
    )
    text = _ALIASES.sub(
        lambda found: " ".join(f"--alias '{a}={b}'" for a, b in _PAIR.findall(found[1])), text
    ).replace("marker_aliases=", "--alias A=B")
    text = _ARGUMENT.sub(option, text)
    missing = dict.fromkeys(_PYTHON_ONLY.findall(text))
    if missing:
        text += f" (The commands have no option for {', '.join(missing)}; use Python.)"
    return text


@contextmanager
def errors_as_exit_status() -> Iterator[None]:
    """Print an error of the input as one line and exit with 2; exit with 130 if interrupted.

    An error of the system, such as a full disk, exits with 1. Warnings are printed as one line
    each.
    """
    from fcm_estimators.exceptions import FcmError

    shown = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> None:
        if issubclass(category, UserWarning):
            typer.secho(f"Warning: {in_words_of_commands(str(message))}", fg="yellow", err=True)
        else:
            shown(message, category, *args, **kwargs)

    warnings.showwarning = show
    # Whoever ends the command politely gets the same order as from the keyboard.
    in_charge = threading.current_thread() is threading.main_thread()
    ended_by = signal.getsignal(signal.SIGTERM)
    if in_charge:
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except (FcmError, FileNotFoundError, PermissionError) as error:
        typer.secho(f"Error: {in_words_of_commands(str(error))}", fg="red", err=True)
        raise typer.Exit(2) from None
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        typer.secho(f"Error: {error.strerror or error}{where}", fg="red", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.secho(
            "Interrupted. Whole results stay: repeat the command to go on (fcm train: with "
            "--resume).",
            err=True,
        )
        raise typer.Exit(130) from None
    finally:
        if in_charge:
            signal.signal(signal.SIGTERM, ended_by or signal.SIG_DFL)
        warnings.showwarning = shown


@contextmanager
def progress_bar(what: str, files: list[Path], quiet: bool = False) -> Iterator[Progress | None]:
    """Show a progress bar over files on a terminal; show nothing in a pipe, or if ``quiet``."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeElapsedColumn

    from fcm_estimators.cohort.files import list_files

    n_files = len(list_files(files))
    columns = (what, BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), "{task.description}")
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=n_files)

        def advance(row: Entries) -> None:
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
