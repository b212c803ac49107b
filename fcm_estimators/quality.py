"""Quality control: flag events to look at. Nothing is ever removed.

:func:`flag_quality` writes the flags; :func:`quality_table` counts them per sample.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import anndata as ad
import numpy as np
import pandas as pd
from scipy.optimize import brentq

from fcm_estimators._cells.results import require_key_name
from fcm_estimators._checks import column_extremes, rows_by_sample
from fcm_estimators._ranks import mean_ranks, rank_keys
from fcm_estimators.exceptions import InvalidInputError, MissingKeyError
from fcm_estimators.io.write import raw_values, require_columns
from fcm_estimators.keys import QualityKeys
from fcm_estimators.labels.membership import require_own_data

__all__ = ["flag_quality", "quality_table"]

CHECKS = ("time", "margin", "doublet", "dead")

# Events in a stretch of the acquisition, and the largest number of stretches.
_STRETCH = 500
_STRETCHES = 200
# A marker drifts if its mean rank in a stretch is off by more than this share of all events (0.5
# is the largest possible) and by more than this number of standard errors.
_RANK_SHIFT = 0.1
_STANDARD_ERRORS = 6.0
# The flow rate is off if it differs from the median by more than this factor.
_RATE = 3.0
# A step back of more than this share of the whole time is no jitter of the clock. Events are out of
# order if there are such steps in this share of the stretches.
_FAR_BACK = 0.05
_OUT_OF_ORDER_SHARE = 1 / 3
_OUT_OF_ORDER = "events are not in order of acquisition (shuffled, or pooled from several files)"
# Doublets are wider than the median event by more than this number of robust SD.
_WIDE = 4.0
# Events with exactly the largest value that show a saturated detector.
_SATURATED = 10
# Live and dead are told apart if two normal distributions are at least this number of their
# common SD apart.
_APART = 3.0
_ARCSINH_COFACTOR = 150.0
_SEEN_BY_MIXTURE = 20_000
_VIABILITY = re.compile(
    r"7-?aad|dapi|live|dead|viab|zombie|fvd|fvs|\bl/?d\b|cisplatin|\bpi\b|propidium|sytox|aqua|"
    r"ghost dye",
    re.IGNORECASE,
)


def flag_quality(
    adata: ad.AnnData,
    *,
    sample_key: str | None = "sample",
    viability: str | None = None,
    key_added: str = QualityKeys.key,
) -> None:
    """Flag events that a cytometrist would look at before trusting them.

    Each sample is judged separately, on raw values. The flags are for looking and counting: nothing
    is removed, and the models use flagged events like all others.

    Parameters
    ----------
    adata : AnnData
        Data from :func:`~fcm_estimators.read_fcs`, raw or with ``layers["raw"]``.
    sample_key : str or None, default "sample"
        Column of ``obs`` that names the file of each event. None: all events are of one file.
    viability : str, optional
        Marker of the dye that enters dead cells. Default: the first marker with the name of such
        a dye (7-AAD, DAPI, Zombie, Live/Dead, ...).
    key_added : str, default "qc"
        Prefix of the columns of ``obs``, and key of ``uns``.

    Notes
    -----
    Sets the following fields; a check that cannot be judged gets no column:

    ``adata.obs[f"{key_added}_time"]`` : bool
        The event is in a stretch of 500 events (or a 200th of the sample, if that is more) in
        which the flow rate differed from the sample's median by more than a factor of 3, time ran
        backwards, or a marker drifted: its mean rank was off by more than 0.1 of all events and by
        more than 6 standard errors. A clock that wraps around counts as running on. No column if
        events are not in order of acquisition: time jumps back in a third of the stretches.
    ``adata.obs[f"{key_added}_margin"]`` : bool
        The event is at the end of the range (``$PnR``) in a scatter or stained fluorescence
        channel, or has a scatter of 0 or less. Where values exceed the range, which only floats
        can, it is no bound: events are then flagged if 10 or more share the largest value.
    ``adata.obs[f"{key_added}_doublet"]`` : bool
        Forward scatter area divided by height (or the width, if one of them is missing) is above
        the median by more than 4 times 1.4826 times the median absolute deviation.
    ``adata.obs[f"{key_added}_dead"]`` : bool
        The event more likely belongs to the brighter of two normal distributions of the arcsinh
        (cofactor 150) of the viability dye. No event is flagged if the two are less than 3 times
        their root mean square SD apart.
    ``adata.uns[key_added]`` : dict
        ``checks``; ``reason``, for each check "" or why it could not be judged; ``viability``, the
        marker of the dye, "" for none.

    Raises
    ------
    InvalidInputError
        If ``adata`` is a view or has no cells, or a channel that is judged holds NaN or infinite
        values.
    MissingKeyError
        If the sample column, the marker or a column of ``var`` (``kind``, ``channel``, ``marker``,
        ``range``) is missing.
    ProcessingStateError
        If X is compensated or transformed and there is no ``layers["raw"]``.

    References
    ----------
    The checks follow flowAI (Monaco et al., Bioinformatics 32, 2016) and PeacoQC (Emmaneel et al.,
    Cytometry A 101, 2022), in a simpler form.

    Examples
    --------
    >>> from fcm_estimators.datasets import simulate_cohort
    >>> from fcm_estimators.quality import flag_quality, quality_table
    >>> adata = simulate_cohort(2, 2000, random_state=0)
    >>> flag_quality(adata)
    >>> quality_table(adata).columns.tolist()
    ['n_cells', 'n_qc_time', 'n_qc_margin', 'n_qc_doublet', 'n_qc_dead', 'n_qc_any']
    """
    require_own_data(adata)
    require_key_name(key_added)
    require_columns(adata.var, "var", "kind", "channel", "marker", "range")
    if adata.n_obs == 0:
        raise InvalidInputError("adata has no cells, so there is nothing to judge.")
    dye = _viability_dye(adata, viability)
    raw = _Raw.from_adata(adata)
    judges: dict[str, Callable[[_Raw], np.ndarray | str]] = {
        "time": _unstable,
        "margin": _at_margin,
        "doublet": _wide,
        "dead": lambda part: _dead(part, dye),
    }
    rows_of = rows_by_sample(adata, sample_key)
    flags: dict[str, np.ndarray] = {}
    reasons = dict.fromkeys(CHECKS, "")
    for check, judge in judges.items():
        flagged = np.zeros(adata.n_obs, dtype=bool)
        for sample, rows in rows_of.items():
            found = judge(raw.of(rows))
            if isinstance(found, str):
                which = f"{sample}: " if found == _OUT_OF_ORDER and len(rows_of) > 1 else ""
                reasons[check] = which + found
                break
            flagged[rows] = found
        else:
            flags[check] = flagged
    for check in CHECKS:
        name = QualityKeys(key_added).flag(check)
        if check in flags:
            adata.obs[name] = flags[check]
        elif name in adata.obs:
            del adata.obs[name]
    adata.uns[key_added] = {
        "checks": np.array(CHECKS, dtype=object),
        "reason": np.array([reasons[check] for check in CHECKS], dtype=object),
        "viability": dye or "",
    }


def quality_table(
    adata: ad.AnnData, *, sample_key: str | None = "sample", key: str = QualityKeys.key
) -> pd.DataFrame:
    """Count the flagged events of every sample.

    Parameters
    ----------
    adata : AnnData
        Data with the flags of :func:`flag_quality`.
    sample_key : str or None, default "sample"
        Column of ``obs``, as in :func:`flag_quality`.
    key : str, default "qc"
        The ``key_added`` of :func:`flag_quality`.

    Returns
    -------
    DataFrame of Int64
        One row per sample, index ``sample``. Columns: ``n_cells``; ``n_{key}_time``, ``_margin``,
        ``_doublet``, ``_dead``, NA for a check that could not be judged; ``n_{key}_any``, events
        with at least one flag.

    Raises
    ------
    MissingKeyError
        If there are no flags, or the sample column is missing.
    """
    if key not in adata.uns or "checks" not in adata.uns[key]:
        raise MissingKeyError(f"adata.uns has no quality flags {key!r}. Call flag_quality first.")
    samples = rows_by_sample(adata, sample_key)
    names, rows_of = pd.Index(samples, name="sample"), samples.values()
    table = pd.DataFrame({"n_cells": [len(rows) for rows in rows_of]}, index=names, dtype="Int64")
    flagged = np.zeros(adata.n_obs, dtype=bool)
    for check in CHECKS:
        name = QualityKeys(key).flag(check)
        counts = pd.array([pd.NA] * len(names), dtype="Int64")
        if name in adata.obs:
            values = adata.obs[name].to_numpy(dtype=bool)
            flagged |= values
            counts = pd.array([int(values[rows].sum()) for rows in rows_of], dtype="Int64")
        table[f"n_{name}"] = counts
    table[f"n_{QualityKeys(key).flag('any')}"] = pd.array(
        [int(flagged[r].sum()) for r in rows_of], dtype="Int64"
    )
    return table


@dataclass(frozen=True)
class _Raw:
    """Raw values of N events, and what ``var`` says about their M channels.

    Attributes
    ----------
    values : ndarray, shape (N, M)
    order : ndarray of int, shape (N,), or None
        Position of each event in its file.
    names, channels : list of M str
    kinds : ndarray of M str
    judged : ndarray of bool, shape (M,)
        Scatter, and fluorescence with a marker.
    stained : ndarray of bool, shape (M,)
        Fluorescence or mass with a marker.
    range : ndarray of float64, shape (M,)
    """

    values: np.ndarray
    order: np.ndarray | None
    names: list[str]
    channels: list[str]
    kinds: np.ndarray
    judged: np.ndarray
    stained: np.ndarray
    range: np.ndarray

    @classmethod
    def from_adata(cls, adata: ad.AnnData) -> _Raw:
        """Raw values of all events."""
        kinds = adata.var["kind"].astype(str).to_numpy()
        stained = adata.var["marker"].astype(str).to_numpy() != ""
        return cls(
            values=raw_values(adata),
            order=adata.obs["event"].to_numpy() if "event" in adata.obs else None,
            names=[str(name) for name in adata.var_names],
            channels=adata.var["channel"].astype(str).tolist(),
            kinds=kinds,
            judged=(kinds == "scatter") | ((kinds == "fluorescence") & stained),
            stained=((kinds == "fluorescence") | (kinds == "mass")) & stained,
            range=adata.var["range"].to_numpy(dtype=np.float64),
        )

    def of(self, rows: np.ndarray) -> _Raw:
        """Events of one sample."""
        first, last = int(rows[0]), int(rows[-1]) + 1
        index = slice(first, last) if last - first == len(rows) else rows
        order = None if self.order is None else self.order[index]
        return replace(self, values=self.values[index], order=order)

    def require_finite(self, positions: np.ndarray) -> None:
        """Raise InvalidInputError that names a channel with NaN or infinite values."""
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(self.values.sum(dtype=np.float64)):
                return
        for position in positions:
            self.column(int(position))

    def column(self, position: int) -> np.ndarray:
        """One channel, float64 and finite."""
        values = self.values[:, position].astype(np.float64)
        if not np.isfinite(values).all():
            raise InvalidInputError(
                f"Channel {self.names[position]!r} holds NaN or infinite values, which cannot be "
                "judged. Repair or remove those events."
            )
        return values

    def channel(self, pattern: str) -> int | None:
        """Position of the first channel whose name matches."""
        for i, name in enumerate(self.channels):
            if re.fullmatch(pattern, name, re.IGNORECASE):
                return i
        return None


def _viability_dye(adata: ad.AnnData, given: str | None) -> str | None:
    if given is not None:
        if given not in adata.var_names:
            raise MissingKeyError(
                f"viability={given!r} is not among the markers {list(adata.var_names)}."
            )
        return given
    kinds = adata.var["kind"].astype(str).to_numpy()
    # Only the marker is searched: a channel may be named after a dye with another use.
    markers = adata.var["marker"].astype(str)
    for name, marker, kind in zip(adata.var_names, markers, kinds, strict=True):
        if kind in ("fluorescence", "mass") and _VIABILITY.search(marker):
            return str(name)
    return None


def _unstable(part: _Raw) -> np.ndarray | str:
    """Flag stretches in which the flow rate is off, time runs backwards or a marker drifts."""
    found = np.flatnonzero(part.kinds == "time")
    if len(found) == 0:
        return "no Time channel"
    time = part.column(int(found[0]))
    n = len(time)
    order = _acquired(part.order)
    edges = np.linspace(0, n, min(_STRETCHES, max(1, n // _STRETCH)) + 1).astype(int)
    length = np.diff(edges)
    if len(length) < 4:
        return f"fewer than {4 * _STRETCH} events"
    ordered = _in_order(time if order is None else time[order], edges)
    if ordered is None:
        return _OUT_OF_ORDER
    starts = np.minimum(edges, n - 1)
    duration = ordered[starts[1:]] - ordered[starts[:-1]]
    typical = np.median(duration / length)
    bad = np.zeros(len(length), dtype=bool)
    if typical > 0:
        slowness = duration / length / typical
        bad |= (slowness > _RATE) | (slowness < 1 / _RATE)
    backwards = np.minimum.reduceat(np.diff(ordered, prepend=ordered[0]), edges[:-1]) < 0
    # Some clocks go back a little all the time.
    if backwards.mean() <= 0.5:
        bad |= backwards
    error = 1 / np.sqrt(12 * length)
    drifting = np.flatnonzero(part.stained | (part.kinds == "scatter"))
    part.require_finite(drifting)
    for keys in rank_keys(part.values, drifting):
        ranks = mean_ranks(keys)[keys if order is None else keys[order]]
        shift = np.abs(np.add.reduceat(ranks, edges[:-1]) / length - 0.5)
        bad |= (shift > _RANK_SHIFT) & (shift > _STANDARD_ERRORS * error)
    flagged = np.repeat(bad, length)
    if order is not None:
        flagged[order] = flagged.copy()
    return flagged


def _acquired(order: np.ndarray | None) -> np.ndarray | None:
    """Rows in order of acquisition; None if they are already."""
    if order is None or (order[1:] > order[:-1]).all():
        return None
    return np.argsort(order, kind="stable")


def _in_order(time: np.ndarray, edges: np.ndarray) -> np.ndarray | None:
    """Time without jumps where the clock wrapped around; None if it is out of order throughout."""
    steps, low, span = np.diff(time), time.min(), np.ptp(time)
    far = np.flatnonzero(steps < -_FAR_BACK * span)
    if len(far) == 0:
        return time
    hit = len(np.unique(np.searchsorted(edges, far + 1, side="right"))) / (len(edges) - 1)
    wraps = (time[far] >= low + 0.9 * span) & (time[far + 1] <= low + 0.1 * span)
    # Between wraps a clock counts about as many events; populations one after the other do not.
    pieces = np.diff(far)
    alike = len(pieces) == 0 or pieces.max() <= _RATE * pieces.min()
    if wraps.all() and alike and hit <= 0.5:
        steps[far] = np.median(steps)
        return np.concatenate([time[:1], time[0] + np.cumsum(steps)])
    return None if len(far) > 1 and hit >= _OUT_OF_ORDER_SHARE else time


def _at_margin(part: _Raw) -> np.ndarray | str:
    """Flag events at the ends of the range, where the detector cannot tell values apart."""
    if not part.judged.any():
        return "no scatter and no stained fluorescence"
    flagged = np.zeros(len(part.values), dtype=bool)
    judged = np.flatnonzero(part.judged)
    part.require_finite(judged)
    lowest, highest = column_extremes(part.values)
    for position in judged:
        top, end = highest[position], part.range[position]
        if np.isfinite(end) and end > 1:
            if top > end:
                # Only floats exceed the range, and for them it is no bound. Where a detector is
                # saturated, many events have exactly the largest value.
                saturated = part.values[:, position] == top
                if saturated.sum() >= _SATURATED:
                    flagged |= saturated
            elif top >= end - 1:
                # The largest value that a detector can report is the range minus 1.
                flagged |= part.values[:, position] >= end - 1
        if part.kinds[position] == "scatter" and lowest[position] <= 0:
            flagged |= part.values[:, position] <= 0
    return flagged


def _wide(part: _Raw) -> np.ndarray | str:
    """Flag events that take longer to pass the laser than a single cell."""
    area, height, width = (part.channel(rf"FSC[- ]?{letter}") for letter in "AHW")
    if area is not None and height is not None:
        tall = part.column(height)
        measure = part.column(area) / np.where(tall > 0, tall, np.inf)
    elif width is not None:
        measure = part.column(width)
    else:
        return "neither FSC-A with FSC-H nor FSC-W"
    centre = np.median(measure)
    spread = 1.4826 * np.median(np.abs(measure - centre))
    if spread == 0:
        return "the width of most events is the same"
    wide: np.ndarray = measure > centre + _WIDE * spread
    return wide


def _dead(part: _Raw, dye: str | None) -> np.ndarray | str:
    """Flag the brighter of two clearly separated populations of a viability dye."""
    from sklearn.mixture import GaussianMixture

    if dye is None:
        return "no marker with the name of a viability dye"
    values = part.column(part.names.index(dye))
    some = values[:: -(-len(values) // _SEEN_BY_MIXTURE), None]
    seen = np.arcsinh(some / _ARCSINH_COFACTOR)
    if len(seen) < 2 or np.ptp(seen) == 0:
        return np.zeros(len(values), dtype=bool)
    ends = np.quantile(seen, [0.05, 0.95])[:, None]
    mixture = GaussianMixture(2, means_init=ends, random_state=0).fit(seen)
    low, high = np.argsort(mixture.means_.ravel())
    common = np.sqrt(mixture.covariances_.ravel().mean())
    if mixture.means_[high, 0] - mixture.means_[low, 0] < _APART * common:
        return np.zeros(len(values), dtype=bool)

    means, variances = mixture.means_.ravel(), mixture.covariances_.ravel()

    def brighter(value: float) -> float:
        """Log-odds of the brighter population."""
        density = np.log(mixture.weights_) - np.log(variances) / 2
        density -= np.square(value - means) / (2 * variances)
        return float(density[high] - density[low])

    # A broad lower population must not take the brightest events, so one limit separates the two.
    if brighter(means[low]) >= 0:
        limit = means[low]
    elif brighter(means[high]) <= 0:
        limit = means[high]
    else:
        limit = brentq(brighter, means[low], means[high])
    return np.asarray(values > _ARCSINH_COFACTOR * np.sinh(limit))
