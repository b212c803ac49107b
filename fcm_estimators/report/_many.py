"""Write the pages of many files, with the courses of their patients."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd

from fcm_estimators._files import write_whole
from fcm_estimators._types import Entries, Progress
from fcm_estimators._version import __version__
from fcm_estimators.cohort import course_of_tables, read_results
from fcm_estimators.cohort.executor import error_text
from fcm_estimators.cohort.files import PathName, file_names, list_files, read_file
from fcm_estimators.cohort.tasks import failed_row
from fcm_estimators.exceptions import FcmError, InvalidInputError, MissingKeyError
from fcm_estimators.report._sample import samples_in
from fcm_estimators.report._write import GENERATOR, resource, template, write_report

# What tells an index of reports from another page.
_INDEX = f"{GENERATOR}s, index"
# The metadata of a page are within so many characters.
_HEAD = 4096


def report_files(
    files: PathName | Sequence[PathName],
    out: PathName | None = None,
    *,
    sample: str | None = None,
    sheet: PathName | pd.DataFrame | None = None,
    pool: str | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Write the reports of annotated files, one page per sample.

    Parameters
    ----------
    files : path or sequence of paths
        h5ad or zarr files, for example from :func:`~fcm_estimators.cohort.annotate_files`; a
        directory stands for its files.
    out : path, optional
        A page (.html or .htm) for one sample of one file, or a directory. The directory gets
        ``{name}.html`` for each file, or ``{name}-1.html``, ``{name}-2.html`` and so on if the file
        has several samples, and ``index.html``, which links all reports of the directory, also
        those of earlier calls, unless a file or a page that is no such index has this name.
        ``name`` is the name of the file, also without ``identifiers``. Default: report.html for one
        sample, the directory reports for several.
    sample : str, optional
        Report only this sample.
    sheet : path or DataFrame, optional
        A row per sample with ``sample``, ``patient`` and ``day``, as for
        :func:`~fcm_estimators.cohort.course_of_tables`. Every page then shows the course of its
        patient, from ``table.csv`` beside the files, which :func:`annotate_files` wrote.
    pool : str, optional
        Column of the sheet that names the tubes whose counts are added.
    progress : callable, optional
        Called with the last row of each file when the file is done.
    **options
        Options of :func:`write_report`.

    Returns
    -------
    DataFrame
        A row per page: ``file``, ``sample``, ``output``, ``status`` ("done" or "failed"),
        ``error``. If ``out`` is a directory, a file that fails does not stop the others.

    Raises
    ------
    InvalidInputError, MissingKeyError
        There are no files, there are several files for one page, names repeat, there is a ``pool``
        and no ``sheet``, or as ``course_of_tables``. For one page also the errors of
        :func:`write_report`.
    """
    paths = list_files(files)
    keys = {k: v for k, v in options.items() if k in ("key", "gates_key")}
    if out is None:
        several = len(paths) > 1 or (
            sample is None and len(samples_in(read_file(paths[0]), **keys)) > 1
        )
        out = "reports" if several else "report.html"
    target = Path(out)
    single = target.suffix.lower() in (".html", ".htm")
    if single and len(paths) > 1:
        raise InvalidInputError(
            f"{len(paths)} files do not fit on one page, {target.name}. Pass a directory as out."
        )
    if pool is not None and sheet is None:
        raise InvalidInputError(f"pool={pool!r} is a column of a sheet; pass sheet=... too.")
    names = file_names(paths, None)
    courses = {} if sheet is None else _courses(paths, sheet, pool, options)

    def course_of(name: str | None) -> pd.DataFrame | None:
        if sheet is not None and name is not None and name not in courses:
            raise MissingKeyError(
                f"There is no course of {name!r}: the table beside the file has no count of it, or "
                "the sheet no patient. Annotate the file again, complete the sheet, or give none."
            )
        return courses.get(str(name))

    target.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for path, name in zip(paths, names, strict=True):
        try:
            adata = read_file(path, name=name)
            found = samples_in(adata, **keys)
            # Several samples on one page are an error of write_report.
            chosen = found if sample is None and not (single and len(found) > 1) else [sample]
            for i, one in enumerate(chosen):
                page = target
                if not single:
                    target.mkdir(exist_ok=True)
                    page = target / (f"{name}-{i + 1}.html" if len(chosen) > 1 else f"{name}.html")
                write_report(adata, page, sample=one, course=course_of(one), **options)
                done = {"output": str(page), "status": "done"}
                rows.append({**failed_row(path, str(one or ""), ""), **done})
        except FcmError as error:
            if single:
                raise
            rows.append(failed_row(path, name, error_text(error)))
        if progress is not None:
            progress(rows[-1])
    if target.is_dir() and "index" not in names:
        _write_index(target, rows, bool(options.get("identifiers", False)))
    return pd.DataFrame(rows)


def _courses(
    paths: Sequence[Path], sheet: PathName | pd.DataFrame, pool: str | None, options: Entries
) -> dict[str, pd.DataFrame]:
    """Course of the patient of each sample, from the tables beside the files."""
    tables = list(dict.fromkeys(path.parent for path in paths))
    wanted = {k: options[k] for k in ("limit_of_blank", "protocol", "errors") if k in options}
    course = course_of_tables(tables, sheet, pool=pool, **wanted)
    patients = read_results(tables, sheet, same_panel=False)["patient"]
    return {str(sample): course.loc[[patient]] for sample, patient in patients.dropna().items()}


def _write_index(folder: Path, rows: list[Entries], identifiers: bool) -> None:
    """Write a page that links all reports of a directory and says why a file has none."""
    path = folder / "index.html"
    if path.exists() and _metadata(path).get("generator") != _INDEX:
        warnings.warn(
            f"{path} is no index of reports and was left as it is, so there is no index of the "
            "pages.",
            UserWarning,
            stacklevel=3,
        )
        return
    failed = {row["sample"]: row for row in rows if row["status"] != "done"}
    written = {Path(row["output"]).name for row in rows if row["status"] == "done"}
    pages = []
    for page in sorted(folder.glob("*.html")):
        about = _metadata(page) if page.is_file() else {}
        if about.get("generator") == GENERATOR:
            # name.html, name-1.html and so on are of the file of this name.
            whole = page.stem in failed or page.name in written
            name = page.stem if whole else re.sub(r"-\d+$", "", page.stem)
            note = ""
            if name in failed and page.name not in written:
                note = f"of an earlier call; now: {failed[name]['error']}"
            sample = about.get("sample", "")
            pages.append({"name": name, "page": page.name, "sample": sample, "note": note})
    missing = [
        {"file": Path(row["file"]).name, "note": f"no report: {row['error']}"}
        for name, row in failed.items()
        if name not in {page["name"] for page in pages}
    ]
    text = template("index.html.j2").render(
        rows=[*missing, *pages],
        failed=bool(failed),
        identifiers=identifiers,
        generator=_INDEX,
        css=resource("page.css"),
        version=__version__,
    )
    write_whole(path, text.encode("utf-8"))


def _metadata(page: Path) -> dict[str, str]:
    """Names and contents of the ``meta`` elements at the beginning of a page."""
    found: dict[str, str] = {}

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            entry = dict(attrs)
            if tag == "meta" and entry.get("name"):
                found[str(entry["name"])] = entry.get("content") or ""

    with page.open(encoding="utf-8", errors="replace") as file:
        Reader().feed(file.read(_HEAD))
    return found
