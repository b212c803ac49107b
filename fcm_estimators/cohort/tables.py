"""Tables that :func:`annotate_files` wrote, as the input of a laboratory's studies."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from fcm_estimators._base.files import model_checksum
from fcm_estimators._checks import listed
from fcm_estimators._files import read_table
from fcm_estimators.cohort.files import PathName
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.metrics import (
    DEFAULT_PROTOCOL,
    ClassificationErrors,
    DetectionLimits,
    MethodComparison,
    Protocol,
    blank_of_counts,
    course_table,
    detection_limits,
    method_comparison,
    mrd_of_counts,
    pool_tubes,
)

_NEEDED = ("sample", "numerator", "denominator", "denominator_name", "model_sha256")
# What must be the same in all rows, and how it is called.
_SAME = {
    "denominator_name": "denominators",
    "model_sha256": "models",
    "missing_markers": "panels (markers that the data lack)",
}


def read_results(
    tables: PathName | Sequence[PathName],
    sheet: PathName | pd.DataFrame | None = None,
    *,
    same_panel: bool = True,
) -> pd.DataFrame:
    """Read result tables, and add what a sheet says of the samples.

    Parameters
    ----------
    tables : path or sequence of paths
        ``table.csv`` of :func:`annotate_files`, or directories that hold one.
    sheet : path or DataFrame, optional
        A row per sample, with a column ``sample`` and others, such as ``patient`` and ``day``.
        Every sample of the tables must be in it.
    same_panel : bool, default True
        Refuse rows that lack different markers.

    Returns
    -------
    DataFrame
        Index ``sample``; the columns of the tables and of the sheet. ``attrs["n_failed"]`` is the
        number of files without a result, which have no row.

    Raises
    ------
    InvalidInputError
        A table cannot be read, lacks residual disease, or names a sample twice; the rows are of
        several models, panels or denominators; or the sheet lacks a sample.
    """
    paths = [tables] if isinstance(tables, str | os.PathLike) else list(tables)
    parts = [_read(Path(path)) for path in paths]
    if not parts:
        raise InvalidInputError("There are no tables; pass table.csv of annotated files.")
    rows = pd.concat(parts, ignore_index=True)
    done = rows[rows["numerator"].notna()].copy()
    if done.empty:
        raise InvalidInputError("No file of the tables has a result.")
    for column, what in _SAME.items():
        if column == "missing_markers" and not same_panel:
            continue
        if column in done and done[column].fillna("").nunique() > 1:
            values = [str(v) for v in done[column].fillna("none").unique()]
            raise InvalidInputError(
                f"The rows are of several {what}: {listed(values, 4)}. Their counts cannot be put "
                "together."
            )
    done["sample"] = done["sample"].astype(str)
    twice = done["sample"][done["sample"].duplicated()]
    if len(twice):
        raise InvalidInputError(f"Samples occur twice: {listed(twice.unique())}.")
    done = done.set_index("sample")
    done = done.astype({"numerator": "int64", "denominator": "int64"})
    if sheet is not None:
        done = _with_sheet(done, sheet)
    done.attrs["n_failed"] = len(rows) - len(done)
    return done


def limits_of_tables(
    blanks: PathName | Sequence[PathName],
    low: PathName | Sequence[PathName] | None = None,
    *,
    sheet: PathName | pd.DataFrame | None = None,
    percentile: float = 95.0,
    method: str = "nonparametric",
    n_cells: int | None = None,
    protocol: Protocol | PathName = DEFAULT_PROTOCOL,
    cv_goal: float = 0.3,
) -> DetectionLimits:
    """Compute the limits of blank, detection and quantitation from result tables.

    Parameters
    ----------
    blanks : path or sequence of paths
        Tables of :func:`annotate_files` of samples without disease that were not in training.
    low : path or sequence of paths, optional
        Tables of samples with little disease, by the same model with the same denominator.
    sheet : path or DataFrame, optional
        As in :func:`read_results`: ``patient`` for repeats, ``lot``, ``day``, and ``expected``, the
        true fraction of the low samples.
    percentile, method
        As in :func:`~fcm_estimators.metrics.blank_of_counts`.
    n_cells, protocol, cv_goal
        As in :func:`~fcm_estimators.metrics.detection_limits`.

    Returns
    -------
    DetectionLimits
        Nothing is warned of; ``entries()["shortfalls"]`` lists what is missing.

    Raises
    ------
    InvalidInputError
        As the three functions named above.
    """
    whole = None if sheet is None else _sheet(sheet)
    without = read_results(blanks, whole)
    blank = blank_of_counts(
        without,
        percentile=percentile,
        method=method,  # type: ignore[arg-type]  # checked there
        warn=False,
    )
    with_little = None
    if low is not None:
        with_little = read_results(low, whole)
        for column, what in _SAME.items():
            values = [
                set(t[column].fillna("")) if column in t else {""} for t in (without, with_little)
            ]
            if values[0] != values[1]:
                raise InvalidInputError(f"Blanks and low samples are of different {what}.")
    return detection_limits(
        blank, with_little, n_cells=n_cells, protocol=protocol, cv_goal=cv_goal, warn=False
    )


def comparison_of_tables(
    tables: PathName | Sequence[PathName],
    manual: PathName | pd.DataFrame,
    *,
    cut_off: float,
    protocol: Protocol | PathName = DEFAULT_PROTOCOL,
) -> MethodComparison:
    """Compare result tables with the counts of a manual method.

    Parameters
    ----------
    tables : path or sequence of paths
        Tables of :func:`annotate_files`, of patients that were not in training.
    manual : path or DataFrame
        A row per sample: ``sample``, ``manual_numerator``, ``manual_denominator`` (or ``fraction``
        and ``lloq``), and ``patient``, to make sure that there is one sample of each.
    cut_off : float
        Fraction from which a sample is positive.
    protocol : Protocol, str or path, default "20/50 events"
        Its events to quantify, divided by the manual denominator, are the manual LLOQ.

    Returns
    -------
    MethodComparison

    Raises
    ------
    InvalidInputError
        As :func:`read_results` and :func:`~fcm_estimators.metrics.method_comparison`.
    """
    said = _sheet(manual).set_index("sample")
    automatic = read_results(tables)
    if {"manual_numerator", "manual_denominator"} <= set(said):
        counts = said[["manual_numerator", "manual_denominator"]]
        counts = counts.set_axis(["numerator", "denominator"], axis=1)
        by_hand = mrd_of_counts(counts, denominator_name="manual", protocol=protocol)
    else:
        by_hand = said
    patients = said.get("patient")
    return method_comparison(by_hand, automatic, cut_off=cut_off, patients=patients)


def course_of_tables(
    tables: PathName | Sequence[PathName],
    sheet: PathName | pd.DataFrame,
    *,
    pool: str | None = None,
    limit_of_blank: float | None = None,
    protocol: Protocol | PathName = DEFAULT_PROTOCOL,
    errors: ClassificationErrors | PathName | None = None,
) -> pd.DataFrame:
    """Arrange results by patient and day, with tubes that belong together pooled.

    Parameters
    ----------
    tables : path or sequence of paths
        Tables of :func:`annotate_files`.
    sheet : path or DataFrame
        A row per sample: ``sample``, ``patient``, ``day`` (a number) and the column ``pool``.
    pool : str, optional
        Column of the sheet that names the pool of each tube. Default: no tubes are pooled.
    limit_of_blank, protocol
        As in :func:`~fcm_estimators.metrics.mrd_table`; the counts are read anew.
    errors
        As in :func:`~fcm_estimators.metrics.pool_tubes`.

    Returns
    -------
    DataFrame
        As of :func:`~fcm_estimators.metrics.course_table`.

    Raises
    ------
    InvalidInputError, MissingKeyError
        As :func:`read_results`, :func:`~fcm_estimators.metrics.pool_tubes` and
        :func:`~fcm_estimators.metrics.course_table`.
    """
    results = read_results(tables, sheet, same_panel=False)
    if pool is None:
        # Every tube is a pool of its own.
        pool = "tube"
        results[pool] = results.index
    pooled = pool_tubes(
        results, pool, limit_of_blank=limit_of_blank, protocol=protocol, errors=errors
    )
    return course_table(pooled)


def errors_of_evaluation(
    table: pd.DataFrame, model: PathName, patients: Mapping[str, str] | None = None
) -> ClassificationErrors:
    """Estimate how a model errs in patients that it does not know.

    Parameters
    ----------
    table : DataFrame
        Of :func:`~fcm_estimators.workflow.evaluate_files`, for a model with a positive class.
    model : path
        Directory of the model, whose checksum goes into the result.
    patients : mapping of str to str, optional
        Patient of each sample. Default: every sample is another patient.

    Returns
    -------
    ClassificationErrors

    Raises
    ------
    InvalidInputError
        The model has no positive class, or a sample has no patient.
    """
    if patients is not None:
        unknown = [str(s) for s in table.index if str(s) not in patients]
        if unknown:
            raise InvalidInputError(f"patients: the samples {listed(unknown)} have no patient.")
        table = table.assign(patient=[patients[str(s)] for s in table.index])
    return ClassificationErrors.from_table(table, model=model_checksum(model))


def _read(path: Path) -> pd.DataFrame:
    path = path / "table.csv" if path.is_dir() else path
    try:
        table = read_table(path, dtype={"sample": str})
    except (OSError, ValueError) as error:
        raise InvalidInputError(f"{path} cannot be read as a table: {error}") from error
    missing = [c for c in _NEEDED if c not in table]
    if missing:
        raise InvalidInputError(
            f"{path} has no columns {missing}; expected the table of fcm annotate with a model "
            "that has a positive class."
        )
    return table


def _sheet(sheet: PathName | pd.DataFrame) -> pd.DataFrame:
    if isinstance(sheet, pd.DataFrame):
        table, name = sheet, "the sheet"
    else:
        name = str(sheet)
        try:
            table = read_table(sheet, dtype={"sample": str, "patient": str})
        except (OSError, ValueError) as error:
            raise InvalidInputError(f"sheet: {sheet} cannot be read as CSV: {error}") from error
    if "sample" not in table:
        raise InvalidInputError(f"sheet: {name} has no column 'sample'; it has {list(table)}.")
    if table["sample"].duplicated().any():
        raise InvalidInputError(f"sheet: {name} names a sample twice.")
    return table.assign(sample=table["sample"].astype(str))


def _with_sheet(done: pd.DataFrame, sheet: PathName | pd.DataFrame) -> pd.DataFrame:
    said = _sheet(sheet).set_index("sample")
    unknown = [s for s in done.index if s not in said.index]
    if unknown:
        raise InvalidInputError(f"sheet: the samples {listed(unknown)} are not in it.")
    taken = [c for c in said if c in done]
    if taken:
        raise InvalidInputError(f"sheet: the columns {taken} are those of results; rename them.")
    return done.join(said)
