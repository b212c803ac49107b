"""Pooled tubes, and the course of a patient over days."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
from scipy import stats

from fcm_estimators._checks import listed
from fcm_estimators.exceptions import InvalidInputError, MissingKeyError
from fcm_estimators.metrics._mrd import mrd_of_counts
from fcm_estimators.metrics._mrd_words import in_percent, interval_in_percent
from fcm_estimators.metrics._protocol import DEFAULT_PROTOCOL, Protocol
from fcm_estimators.metrics._total_interval import ClassificationErrors

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# What tubes must have in common, where the table says it.
_SAME = ("denominator_name", "model_sha256", "missing_markers", "panel", "patient", "day")
_HUE, _WARNING = "#0072B2", "#D55E00"
# How a result is drawn: its kind, marker, face, label.
_MARKERS = (
    ("seen", "o", "", "detected, 95 % by counting"),
    ("few", "o", "white", "seen, too few cells"),
    ("less", "v", "white", "less than"),
    ("none", "x", "", "no result"),
)


def pool_tubes(
    results: pd.DataFrame,
    by: str,
    *,
    limit_of_blank: float | None = None,
    protocol: Protocol | str | os.PathLike[str] = DEFAULT_PROTOCOL,
    errors: ClassificationErrors | str | os.PathLike[str] | None = None,
    confidence: float = 0.95,
) -> pd.DataFrame:
    """Add the counts of tubes that belong together, and read the sums.

    Counts are added, fractions and intervals never: all are computed anew from the sums. A pool in
    which a tube was not tested, or the members of the model disagree on one, is not tested or
    disagreed on.

    Parameters
    ----------
    results : DataFrame of shape (tubes, 3 or more)
        Index the tube; ``numerator``, ``denominator``, ``denominator_name``, and ``detection`` if
        known, as :func:`mrd_table` returns them.
    by : str
        Column that names the pool of each tube, such as a visit of a patient.
    limit_of_blank, protocol, confidence
        As in :func:`mrd_table`, for the pools.
    errors : ClassificationErrors or path, optional
        As in :func:`mrd_table`. The tubes of a pool are of one patient, so one false-positive rate
        and one sensitivity hold for their sum.

    Returns
    -------
    DataFrame
        As of :func:`mrd_of_counts`, index ``by``. Also ``n_tubes``, ``tubes`` (their names),
        ``tubes_p`` (the probability of so different fractions if the tubes differ by counting
        alone, by the chi-square test; NaN for one tube or no positive cell), and the columns
        ``patient`` and ``day`` where ``results`` has them.

    Raises
    ------
    MissingKeyError
        There is no column ``by``.
    InvalidInputError
        A pool has several denominators, models, panels (``missing_markers``, ``panel``), patients
        or days, a tube has no pool, counts are missing or impossible, or ``errors`` are those of
        another model.

    Warns
    -----
    UserWarning
        The tubes have intervals with wrongly classified cells, and there are no ``errors`` to
        compute those of the pools.

    Examples
    --------
    >>> import pandas as pd
    >>> from fcm_estimators.metrics import pool_tubes
    >>> tubes = pd.DataFrame({"numerator": [12, 14], "denominator": [200_000, 300_000]})
    >>> tubes = tubes.assign(denominator_name="intact", visit="day 33")
    >>> pool_tubes(tubes, "visit")[["numerator", "detection"]].to_dict("records")
    [{'numerator': 26, 'detection': 'detected, not quantifiable'}]
    """
    if by not in results:
        raise MissingKeyError(f"There is no column {by!r}; there are {list(results)}.")
    missing = {"numerator", "denominator", "denominator_name"} - set(results)
    if missing:
        raise InvalidInputError(f"The results have no {sorted(missing)}.")
    if results[by].isna().any():
        unnamed = list(results.index[results[by].isna()])
        raise InvalidInputError(f"{by}: the tubes {listed(unnamed)} have no pool.")
    pools = results.groupby(by, sort=False)
    for column in _SAME:
        if column == by or column not in results:
            continue
        several = results[column].fillna("").groupby(results[by], sort=False).nunique()
        mixed = list(several.index[several > 1])
        if mixed:
            raise InvalidInputError(
                f"{by}: the tubes of {listed(mixed)} have several values of {column}. Only tubes "
                "with the same panel and denominator, of one patient and day, can be pooled."
            )
    names = results["denominator_name"].unique()
    if len(names) > 1:
        raise InvalidInputError(f"The pools have several denominators: {listed(names)}.")
    errors = _errors_of(results, errors)
    state = results["detection"] if "detection" in results else pd.Series("", results.index)
    counts = pools[["numerator", "denominator"]].sum()

    def any_of(text: str) -> pd.Series:
        found: pd.Series = state.eq(text).groupby(results[by], sort=False).any()
        return found

    untested = any_of("not tested")
    uncertain = {str(k): bool(v) for k, v in any_of("members disagree").items()}
    parts = [
        mrd_of_counts(
            counts[untested == unknown],
            denominator_name=str(names[0]),
            limit_of_blank=limit_of_blank,
            uncertain=uncertain,
            tested=not unknown,
            protocol=protocol,
            errors=errors,
            confidence=confidence,
        )
        for unknown in (False, True)
        if (untested == unknown).any()
    ]
    table = pd.concat(parts).loc[counts.index]
    table["n_tubes"] = pools.size()
    tubes = {k: ", ".join(str(i) for i in group.index) for k, group in pools}
    table["tubes"] = pd.Series(tubes)
    table["tubes_p"] = pd.Series({k: _difference_p(group) for k, group in pools})
    for column in ("patient", "day"):
        if column in results and column != by:
            table[column] = pools[column].first()
    return table


def _errors_of(
    results: pd.DataFrame, errors: ClassificationErrors | str | os.PathLike[str] | None
) -> ClassificationErrors | None:
    """Read the errors, and make sure that they are those of the model that counted."""
    if errors is None:
        if "ci_total_low" in results:
            warnings.warn(
                "The tubes have intervals with wrongly classified cells, which cannot be added. "
                "Pass errors=..., the file of fcm evaluate --errors, for those of the pools.",
                UserWarning,
                stacklevel=3,
            )
        return None
    if not isinstance(errors, ClassificationErrors):
        errors = ClassificationErrors.read(errors)
    models = set(results["model_sha256"].dropna().astype(str)) if "model_sha256" in results else ()
    if errors.model and any(model != errors.model for model in models):
        raise InvalidInputError("errors=... are those of another model than annotated the tubes.")
    return errors


def course_table(results: pd.DataFrame) -> pd.DataFrame:
    """Arrange results by patient and day.

    Parameters
    ----------
    results : DataFrame of shape (S, 8 or more)
        As of :func:`mrd_table`, :func:`mrd_of_counts` or :func:`pool_tubes`, with columns
        ``patient`` and ``day`` (a number).

    Returns
    -------
    DataFrame
        Index ``patient`` and ``day``, ascending in days, patients in order of first appearance.
        The columns of ``results`` and ``shown``: the fraction in percent; ``< x %`` where nothing
        was detected, x as in ``words``; "too few cells" where these say so; else the state, such as
        "members disagree". With ``ci_total_low`` also ``shown_total``, this interval in percent;
        "not estimable" or "no result" where there is none.

    Raises
    ------
    MissingKeyError
        A column is missing.
    InvalidInputError
        A day is no number, or a patient has several results of a day.

    Examples
    --------
    >>> import pandas as pd
    >>> from fcm_estimators.metrics import course_table, mrd_of_counts
    >>> counts = pd.DataFrame({"numerator": [0, 900], "denominator": 500_000})
    >>> results = mrd_of_counts(counts, denominator_name="intact").assign(patient="a", day=[33, 15])
    >>> course_table(results)["shown"].to_dict()
    {('a', 15): '0.18 %', ('a', 33): '< 0.004 %'}
    """
    for column in ("patient", "day", "detection"):
        if column not in results:
            raise MissingKeyError(f"There is no column {column!r}; there are {list(results)}.")
    day = pd.to_numeric(results["day"], errors="coerce")
    if day.isna().any():
        wrong = list(results["day"][day.isna()].unique())
        raise InvalidInputError(f"day: {listed(wrong)} are no numbers; expected days, such as 15.")
    order = {p: i for i, p in enumerate(results["patient"].unique())}
    table = results.assign(day=day, shown=[_shown(row) for _, row in results.iterrows()])
    if "ci_total_low" in results:
        table["shown_total"] = [_shown_total(row) for _, row in results.iterrows()]
    table = table.sort_values(
        ["patient", "day"], key=lambda c: c.map(order) if c.name == "patient" else c
    ).set_index(["patient", "day"])
    if not table.index.is_unique:
        twice = list(table.index[table.index.duplicated()].unique())
        raise InvalidInputError(
            f"Several results of one patient and day: {listed(twice)}. Pool tubes first."
        )
    return table


@dataclass
class CourseDisplay:
    """Course of one patient over days, on a log scale.

    Attributes
    ----------
    table : DataFrame
        Index ``day``: ``fraction``, ``ci_low``, ``ci_high``, ``lod``, ``detection``, ``shown``;
        ``ci_total_low`` and ``ci_total_high`` if they are known.
    title : str
    cut_offs : tuple of float
        Fractions at which decisions are made, drawn as lines.
    """

    table: pd.DataFrame
    title: str = ""
    cut_offs: tuple[float, ...] = ()

    @classmethod
    def from_table(
        cls,
        table: pd.DataFrame,
        patient: Any,
        *,
        title: str | None = None,
        cut_offs: tuple[float, ...] = (),
    ) -> Self:
        """Take one patient from the result of :func:`course_table`.

        Raises
        ------
        MissingKeyError
            The patient is not in the table.

        Examples
        --------
        >>> import pandas as pd
        >>> from fcm_estimators.metrics import CourseDisplay, course_table, mrd_of_counts
        >>> counts = pd.DataFrame({"numerator": [0, 900], "denominator": 500_000})
        >>> results = mrd_of_counts(counts, denominator_name="intact")
        >>> table = course_table(results.assign(patient="a", day=[33, 15]))
        >>> display = CourseDisplay.from_table(table, "a").plot()
        >>> display.ax_.get_yscale()
        'log'
        """
        known = table.index.get_level_values("patient")
        if patient not in known:
            raise MissingKeyError(f"{patient!r} is none of {listed(known.unique())}.")
        return cls(table.loc[patient], str(patient) if title is None else title, cut_offs)

    def plot(self, ax: Axes | None = None) -> Self:
        """Draw the course; sets ``ax_`` and ``figure_``.

        Full points are detected, with the counting interval and, as a thin bar, that with wrongly
        classified cells; a dotted line joins those that follow each other. Open points are cells
        that were seen, too few to say more. An open triangle stands for "less than", at the upper
        end of what may be there. Crosses at the bottom are results on which nothing can be said.
        The grey band is below the LOD or, if it is known and higher, the limit of blank.
        """
        if ax is None:
            import matplotlib.pyplot as plt

            ax = plt.subplots(figsize=(6, 3.8), layout="constrained")[1]
        days = self.table.index.to_numpy(dtype=float)
        values, low, high, lod = (
            self.table[c].to_numpy(dtype=float) for c in ("fraction", "ci_low", "ci_high", "lod")
        )
        kind = np.array([_kind(row) for _, row in self.table.iterrows()])
        smallest = np.nanmin([*lod, *values[values > 0], 1e-2])
        floor = 10 ** np.floor(np.log10(smallest) - 0.3)
        margin = max(np.ptp(days) * 0.15, 1.0)
        edges = [days[0] - margin, *((days[1:] + days[:-1]) / 2), days[-1] + margin]
        blank = self.table.get("limit_of_blank", pd.Series(np.nan, self.table.index)).to_numpy()
        unseen = np.fmax(lod, blank)
        label = "below LOD" if np.isnan(blank).all() else "below LOD or limit of blank"
        ax.stairs(unseen, edges, baseline=floor, fill=True, color="#DDDDDD", label=label)
        known = kind != "none"
        lowest, highest = (
            self.table.get(f"ci_total_{end}", pd.Series(np.nan, self.table.index)).to_numpy(float)
            for end in ("low", "high")
        )
        total = known & ~np.isnan(lowest)
        if total.any():
            ax.vlines(days[total], np.maximum(lowest, floor)[total], highest[total], color=_HUE,
                      lw=0.7, label="95 % with wrongly\nclassified cells")  # fmt: skip
        width = 2.4 if total.any() else 1.2
        ax.vlines(days[known], np.maximum(low, floor)[known], high[known], color=_HUE, lw=width)
        most = np.fmax(high, highest)
        at = np.select([kind == "less", known], [np.fmax(unseen, most), values], floor * 1.5)
        for i in range(len(days) - 1):
            if kind[i] == kind[i + 1] == "seen":
                ax.plot(days[i : i + 2], at[i : i + 2], color=_HUE, lw=0.8, ls=":")
        for name, marker, face, label in _MARKERS:
            if (kind == name).any():
                hue = _WARNING if name == "none" else _HUE
                ax.plot(days[kind == name], at[kind == name], marker, mfc=face or hue, mec=hue,
                        ls="none", label=label)  # fmt: skip
        top = np.where(known, np.fmax(at, most), at)
        for day, text, height in zip(days, self.table["shown"], top, strict=True):
            ax.annotate(text.replace(", ", ",\n"), (day, height), (0, 6), ha="center",
                        textcoords="offset points", fontsize="x-small")  # fmt: skip
        for cut_off in self.cut_offs:
            ax.axhline(
                cut_off, color="#D55E00", lw=0.8, ls="--", label=f"cut-off {in_percent(cut_off)}"
            )
        ax.set_yscale("log")
        ax.set_ylim(floor, 6 * float(np.nanmax([*top, *unseen])))
        ax.set_xlim(edges[0], edges[-1])
        ax.set_xticks(days, [f"{d:g}" for d in days])
        ax.set(xlabel="day", ylabel="fraction", title=self.title)
        ax.legend(frameon=False, fontsize="x-small", loc="upper left", bbox_to_anchor=(1, 1))
        self.ax_, self.figure_ = ax, ax.figure
        return self


def _kind(row: pd.Series) -> str:
    """How a result is drawn and written: seen, few, less or none."""
    if row["detection"] in ("detected, not quantifiable", "quantifiable"):
        return "seen"
    if row["detection"] == "within blank" or row["words"].startswith("No MRD detected above"):
        return "less"
    return "few" if row["detection"] == "below LOD" else "none"


def _shown(row: pd.Series) -> str:
    kind = _kind(row)
    if kind == "none" or row["detection"] == "within blank":
        return str(row["detection"])
    if kind == "seen":
        return in_percent(row["fraction"])
    if kind == "few":
        return f"{in_percent(row['fraction'])}, too few cells"
    ends = [row[c] for c in ("lod", "ci_high", "ci_total_high", "limit_of_blank") if c in row]
    why = row.get("adequacy_why")  # NaN if it was empty in a CSV
    missed = f", {why}" if isinstance(why, str) and why else ""
    return f"< {in_percent(float(np.nanmax(ends)))}{missed}"


def _shown_total(row: pd.Series) -> str:
    if np.isnan(row["ci_total_low"]):
        why = row["ci_total_why"]  # NaN if it was empty in a CSV
        return "not estimable" if isinstance(why, str) and why else "no result"
    return interval_in_percent(row["ci_total_low"], row["ci_total_high"])


def _difference_p(group: pd.DataFrame) -> float:
    """P-value of equal fractions in all tubes."""
    k, n = group["numerator"].to_numpy(), group["denominator"].to_numpy()
    if len(group) < 2 or not k.any() or (k == n).all() or (n == 0).any():
        return float("nan")
    return float(stats.chi2_contingency(np.stack([k, n - k]), correction=False).pvalue)
