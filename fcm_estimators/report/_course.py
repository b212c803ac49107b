"""The course of the sample's patient over days, as a table and a picture."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
import pandas as pd

from fcm_estimators._checks import listed
from fcm_estimators.exceptions import InvalidInputError, MissingKeyError
from fcm_estimators.metrics import ClassificationErrors, CourseDisplay, Protocol
from fcm_estimators.report._sample import Annotated
from fcm_estimators.report._tables import Residual, Table

# Probability of so different tubes by counting alone, below which it is told.
_DIFFERENT_TUBES = 0.001
_NEEDED = (
    "numerator",
    "denominator",
    "denominator_name",
    "fraction",
    "ci_low",
    "ci_high",
    "lod",
    "detection",
    "adequacy",
    "words",
    "shown",
    "n_tubes",
    "tubes",
    "tubes_p",
)
_OTHER_ERRORS = (
    "course and report differ in errors=..., by which intervals know wrongly classified cells. "
    "Give the same to both, or none."
)
# How results without a denominator gate are called.
_ALL_CELLS = ("analysed", "analysed cells")


@dataclass(frozen=True)
class Course:
    """Course of a patient.

    Attributes
    ----------
    table : Table
        A row per day.
    picture : str
        SVG as a data address.
    words : str
        What the picture shows, for those who do not see it.
    """

    table: Table
    picture: str
    words: str


def course_of(
    sample: Annotated,
    course: pd.DataFrame,
    residual: Residual | None,
    protocol: Protocol,
    errors: ClassificationErrors | None,
) -> Course:
    """Table and picture of the course that the sample belongs to.

    Raises
    ------
    InvalidInputError
        The sample has no residual disease; the course is of several patients, another denominator,
        another protocol or other errors; or it lacks this sample or holds other counts of it.
    MissingKeyError
        The course lacks a column.
    """
    _require_same(sample, course, residual, protocol, errors)
    days = course.reset_index(level="patient", drop=True)
    # Without a title: the name of a patient stays out.
    display = CourseDisplay(days, cut_offs=protocol.cut_offs)
    has_total = "shown_total" in days
    rows = []
    for day, row in days.iterrows():
        rows.append(
            [
                f"{day:g}",
                str(row["shown"]),
                f"{row['numerator']:,} of {row['denominator']:,}",
                *([str(row["shown_total"])] if has_total else []),
                str(row["detection"]),
                str(row["adequacy"]),
                f"{row['n_tubes']:,}",
            ]
        )
    total = ["95 % interval with wrongly classified cells"] if has_total else []
    columns = ["day", "result", "positive cells", *total, "status", "sensitivity asked for"]
    columns.append("tubes")
    reasons = list(days["ci_total_why"].unique()) if has_total else []
    why = [text for text in reasons if isinstance(text, str) and text]
    notes = ["The bars in the picture are 95 % intervals of counting alone."]
    if why:
        notes.append(f"Intervals with wrongly classified cells are not estimable: {why[0]}.")
    elif has_total:
        notes = [
            "The thick bars in the picture are 95 % intervals of counting alone; the thin ones "
            "know wrongly classified cells too, and need not hold the counted fraction."
        ]
    if (days["n_tubes"] > 1).any():
        notes.append("Counts of the tubes of a day are added, never averaged.")
    apart = days.index[days["tubes_p"] < _DIFFERENT_TUBES]
    if len(apart):
        notes.append(
            f"The tubes of day {', '.join(f'{d:g}' for d in apart)} differ by more than counting "
            "explains: look at each."
        )
    words = "; ".join(f"day {row[0]}: {row[1]}" for row in rows)
    return Course(
        Table("course-table", "Course as a table", columns, rows, " ".join(notes)),
        _drawn(display),
        f"Residual disease over days. {words}",
    )


def _require_same(
    sample: Annotated,
    course: pd.DataFrame,
    residual: Residual | None,
    protocol: Protocol,
    errors: ClassificationErrors | None,
) -> None:
    if residual is None:
        raise InvalidInputError("The model has no positive class, so there is no course.")
    missing = [column for column in _NEEDED if column not in course]
    if missing or course.index.names != ["patient", "day"]:
        raise MissingKeyError(
            f"course lacks {missing} or the index patient and day; expected the result of "
            "fcm_estimators.cohort.course_of_tables(...)."
        )
    patients = course.index.unique("patient")
    if len(patients) != 1:
        raise InvalidInputError(
            f"course is of {len(patients)} patients; a report shows one: course.loc[[patient]]."
        )
    gates = {str(name) for name in course["denominator_name"]}
    own = set(_ALL_CELLS) if residual.gate is None else {residual.gate}
    if not gates <= own:
        raise InvalidInputError(
            f"course counts in {listed(sorted(gates))}, the report in "
            f"{residual.gate or 'all analysed cells'}. Use the same denominator for both."
        )
    end = f" Protocol: {protocol.name}."
    if not course["words"].str.endswith(end).all():
        raise InvalidInputError(
            f"course was read by another protocol than the report's, {protocol.name!r}. Use the "
            "same one for both."
        )
    if ("shown_total" in course) != (errors is not None):
        raise InvalidInputError(_OTHER_ERRORS)
    # Without a column of samples the name of this one is not known.
    if sample.name != "all" and not any(f", {sample.name}," in f", {t}," for t in course["tubes"]):
        raise InvalidInputError("course has no result of this sample; it is of another patient.")
    here = course[course["tubes"] == sample.name]
    counts = (int(residual.called.sum()), int(residual.inside.sum()))
    for row in here.itertuples():
        if (row.numerator, row.denominator) != counts:
            raise InvalidInputError(
                f"course has {row.numerator:,} of {row.denominator:,} cells for this sample, and "
                f"the file {counts[0]:,} of {counts[1]:,}. The table is of another run: annotate "
                "again."
            )
    if errors is not None:
        ends = course[["ci_total_low", "ci_total_high"]].to_numpy(dtype=float)
        counted = course[["numerator", "denominator"]].astype(int).itertuples(index=False)
        expected = [errors.interval(k, n) for k, n in counted]
        if not np.allclose(ends, expected, rtol=1e-6, atol=0, equal_nan=True):
            raise InvalidInputError(_OTHER_ERRORS)


def _drawn(display: CourseDisplay) -> str:
    """The picture as an SVG that a page can hold; equal courses give equal pictures."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"svg.hashsalt": "course", "font.size": 11}):
        figure = Figure(figsize=(8, 3.4), layout="constrained")
        display.plot(figure.subplots())
        drawn = io.BytesIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(drawn.getvalue()).decode('ascii')}"
