"""Judge the events of one file: the checks behind :func:`fcm_estimators.quality.flag_quality`."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import anndata as ad
import numpy as np
from scipy.optimize import brentq

from fcm_estimators._checks import column_extremes
from fcm_estimators._ranks import mean_ranks, rank_keys
from fcm_estimators._types import Element
from fcm_estimators.exceptions import InvalidInputError, MissingKeyError
from fcm_estimators.io.write import raw_values

CHECKS = ("time", "margin", "doublet", "dead")

# Events whose values are read at once, and 16-bit keys that are kept at once.
_ROWS_AT_ONCE, _KEYS_AT_ONCE = 1 << 16, 1 << 27
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


@dataclass(frozen=True)
class Raw:
    """Raw values of N events, and what ``var`` says about their M channels.

    Attributes
    ----------
    values : ndarray or array of a store, shape (N, M)
        Read by block.
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

    values: Element
    order: np.ndarray | None
    names: list[str]
    channels: list[str]
    kinds: np.ndarray
    judged: np.ndarray
    stained: np.ndarray
    range: np.ndarray

    @classmethod
    def from_adata(cls, adata: ad.AnnData) -> Raw:
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

    def of(self, rows: np.ndarray | None) -> Raw:
        """Events of one sample; None for all."""
        if rows is None:
            return self
        first, last = int(rows[0]), int(rows[-1]) + 1
        index = slice(first, last) if last - first == len(rows) else rows
        order = None if self.order is None else self.order[index]
        return replace(self, values=self.values[index], order=order)

    def blocks(self) -> Iterator[np.ndarray]:
        """Values of some events at a time."""
        for start in range(0, len(self.values), _ROWS_AT_ONCE):
            yield self.values[start : start + _ROWS_AT_ONCE]

    def extremes(self) -> np.ndarray:
        """Smallest and largest value of every channel, shape (2, M)."""
        return column_extremes(np.concatenate([column_extremes(part) for part in self.blocks()]))

    def require_finite(self, positions: np.ndarray) -> None:
        """Raise InvalidInputError that names a channel with NaN or infinite values."""
        with np.errstate(over="ignore", invalid="ignore"):
            if np.isfinite(sum(part.sum(dtype=np.float64) for part in self.blocks())):
                return
        for position in positions:
            self.column(int(position))

    def where(self, position: int, compare: np.ufunc, limit: float) -> np.ndarray:
        """For which events a comparison of a channel with a limit holds."""
        return np.concatenate([compare(part[:, position], limit) for part in self.blocks()])

    def column(self, position: int) -> np.ndarray:
        """One channel, float64 and finite."""
        values = np.empty(len(self.values))
        done = 0
        for part in self.blocks():
            values[done : done + len(part)] = part[:, position]
            done += len(part)
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


def judged(
    raw: Raw, rows_of: Mapping[str, np.ndarray | None], dye: str | None
) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Flags of all events by check, and by check why it cannot be judged, "" if it can.

    Parameters
    ----------
    raw : Raw
    rows_of : mapping of sample to ndarray of int
        None for all rows.
    dye : str or None
        Marker of dead cells.
    """
    judges: dict[str, Callable[[Raw], np.ndarray | str]] = {
        "time": _unstable,
        "margin": _at_margin,
        "doublet": _wide,
        "dead": lambda part: _dead(part, dye),
    }
    flags: dict[str, np.ndarray] = {}
    reasons = dict.fromkeys(CHECKS, "")
    for check, judge in judges.items():
        flagged = np.zeros(len(raw.values), dtype=bool)
        for sample, rows in rows_of.items():
            found = judge(raw.of(rows))
            if isinstance(found, str):
                which = f"{sample}: " if found == _OUT_OF_ORDER and len(rows_of) > 1 else ""
                reasons[check] = which + found
                break
            flagged[slice(None) if rows is None else rows] = found
        else:
            flags[check] = flagged
    return flags, reasons


def viability_dye(adata: ad.AnnData, given: str | None) -> str | None:
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


def _unstable(part: Raw) -> np.ndarray | str:
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
    at_once = max(_KEYS_AT_ONCE // n, 1)
    for first in range(0, len(drifting), at_once):
        for keys in rank_keys(part.values, drifting[first : first + at_once]):
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


def _at_margin(part: Raw) -> np.ndarray | str:
    """Flag events at the ends of the range, where the detector cannot tell values apart."""
    if not part.judged.any():
        return "no scatter and no stained fluorescence"
    flagged = np.zeros(len(part.values), dtype=bool)
    positions = np.flatnonzero(part.judged)
    part.require_finite(positions)
    lowest, highest = part.extremes()
    for position in map(int, positions):
        top, end = highest[position], part.range[position]
        if np.isfinite(end) and end > 1:
            if top > end:
                # Only floats exceed the range, and for them it is no bound. Where a detector is
                # saturated, many events have exactly the largest value.
                saturated = part.where(position, np.equal, top)
                if saturated.sum() >= _SATURATED:
                    flagged |= saturated
            elif top >= end - 1:
                # The largest value that a detector can report is the range minus 1.
                flagged |= part.where(position, np.greater_equal, end - 1)
        if part.kinds[position] == "scatter" and lowest[position] <= 0:
            flagged |= part.where(position, np.less_equal, 0)
    return flagged


def _wide(part: Raw) -> np.ndarray | str:
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


def _dead(part: Raw, dye: str | None) -> np.ndarray | str:
    """Flag the brighter of two clearly separated populations of a viability dye."""
    if dye is None:
        return "no marker with the name of a viability dye"
    from sklearn.mixture import GaussianMixture

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
