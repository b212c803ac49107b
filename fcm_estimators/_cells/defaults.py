"""Which channels of an AnnData a fit reads where nobody names markers."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Hashable
from itertools import pairwise

import numpy as np
import pandas as pd

from fcm_estimators._checks import listed
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.io.kinds import (
    is_autofluorescence,
    is_bead,
    is_compensated,
    is_detector,
    is_spectral,
    only_isotope,
    stem_and_pulse,
)

_STAINS = ("fluorescence", "mass")
# A channel counts up if it never falls and rises this often in each sample; by chance, a marker
# does so once in 10! = 3.6 million.
_RISES = 9

COMPENSATED = "the compensated channel is read"
AREA = "another measure of the same pulse is read (area before height before width)"
UNMIXED = "a raw detector; the unmixed channels are read"
UNSTAINED = "without a marker, which other channels have (an isotope or a detector is none)"
AUTOFLUORESCENCE = "autofluorescence"
BEADS = "beads for normalisation"
CONSTANT = "holds one value only"
COUNTS = "only counts up from event to event"


def default_channels(var: pd.DataFrame, names: list[str]) -> tuple[list[str], dict[str, str]]:
    """Choose scatter and one channel per stain.

    Stained are fluorescence and mass channels with a ``marker``, or all of them if no channel has
    one. Of several channels of a stain the compensated one is read rather than the raw one, the
    area rather than the height and the width, the unmixed one rather than the raw detector.

    Parameters
    ----------
    var : DataFrame
        Has ``kind``; ``channel``, ``marker`` and ``compensated`` are used where they are there.
    names : list of M str
        Name of each channel for the model.

    Returns
    -------
    chosen : list of str
    left_out : dict of str to str
        Stained channels that are not read, and the reason.

    Raises
    ------
    InvalidInputError
        The only stained channels are raw detectors of a spectral instrument.
    """
    table = _described(var, names)
    left_out: dict[str, str] = {}

    def leave_out(part: pd.DataFrame, reason: str) -> None:
        nonlocal table
        left_out.update(dict.fromkeys(part["name"], reason))
        table = table.drop(index=part.index)

    stains = table["kind"].isin(_STAINS)
    leave_out(table[stains & table["autofluorescence"]], AUTOFLUORESCENCE)
    leave_out(table[(table["kind"] == "mass") & table["bead"]], BEADS)
    stains = table["kind"].isin(_STAINS)
    if not table.loc[stains, "stained"].any():
        _refuse_raw_spectral(table[stains])
        table.loc[stains, "stained"] = True
        mixed = stains & table["detector"]
        if mixed.any() and (stains & ~table["detector"]).any():
            leave_out(table[mixed], UNMIXED)
    for reason, rows in _unstained(table[table["kind"].isin(_STAINS)]).items():
        leave_out(table.loc[rows], reason)
    fluorescence = table[table["kind"] == "fluorescence"]
    unmixed = set(fluorescence.loc[~fluorescence["detector"], "marker"]) - {""}
    leave_out(
        fluorescence[fluorescence["detector"] & fluorescence["marker"].isin(unmixed)], UNMIXED
    )
    for column, reason in (("rank", COMPENSATED), ("pulse_rank", AREA)):
        fluorescence = table[table["kind"] == "fluorescence"]
        best = fluorescence.groupby("stem")[column].transform("max")
        leave_out(fluorescence[fluorescence[column] < best], reason)
    return table["name"].tolist(), left_out


def _described(var: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """One row per channel that a default may read, with what its names say."""
    # As text: a stored AnnData comes back with categorical columns.
    table = pd.DataFrame({"name": names, "kind": var["kind"].astype(str).to_numpy()})
    table["channel"] = (var["channel"].astype(str) if "channel" in var else var.index).to_numpy()
    known = "marker" in var
    marker = var["marker"].astype(object).where(var["marker"].notna(), "") if known else ""
    table["marker"] = pd.Series(marker, index=var.index).astype(str).str.strip().to_numpy()
    table = table[table["kind"].isin(("scatter", *_STAINS))].copy()
    channels, markers = table["channel"].tolist(), table["marker"].tolist()
    parts = [stem_and_pulse(channel) for channel in channels]
    table["stem"] = [stem for stem, _ in parts]
    table["pulse"] = [pulse for _, pulse in parts]
    table["pulse_rank"] = [{"H": -1, "W": -2}.get(pulse, 0) for _, pulse in parts]
    table["detector"] = [is_detector(channel) for channel in channels]
    by_name = np.array([is_compensated(channel) for channel in channels], dtype=int)
    recorded = var["compensated"].astype(bool).to_numpy() if "compensated" in var else False
    table["rank"] = 2 * by_name + pd.Series(recorded, index=range(len(var)))[table.index].to_numpy()
    pairs = list(zip(channels, markers, strict=True))
    table["autofluorescence"] = [is_autofluorescence(m or c) for c, m in pairs]
    table["bead"] = [is_bead(m) or is_bead(c) for c, m in pairs]
    table["stained"] = [
        not known or (m != "" and not only_isotope(m) and not (is_detector(c) and m == c))
        for c, m in pairs
    ]
    # Some programs repeat the marker on raw channels only.
    same = table.groupby(["stem", "pulse"])["stained"].transform("any")
    table["stained"] |= same & (table["rank"] > 0)
    return table


def _unstained(stains: pd.DataFrame) -> dict[str, list[Hashable]]:
    """Channels without a marker, by the best reason for leaving them out."""
    stained = stains[stains["stained"]]
    unmixed = not stained["detector"].all()
    best = stained.groupby("stem")[["rank", "pulse_rank"]].max()
    found: dict[str, list[Hashable]] = defaultdict(list)
    for name, row in stains[~stains["stained"]].iterrows():
        rank, pulse_rank = best.loc[row["stem"]] if row["stem"] in best.index else (-1, -1)
        if row["detector"] and unmixed:
            reason = UNMIXED
        elif rank > row["rank"]:
            reason = COMPENSATED
        elif pulse_rank > row["pulse_rank"]:
            reason = AREA
        else:
            reason = UNSTAINED
        found[reason].append(name)
    return found


def _refuse_raw_spectral(stains: pd.DataFrame) -> None:
    channels = stains["channel"].tolist()
    if channels and stains["detector"].all() and is_spectral(channels):
        raise InvalidInputError(
            f"The fluorescence channels are raw detectors of a spectral instrument "
            f"({listed(channels, 6)}), each of which sees many dyes, so none is a marker. Export "
            "unmixed files, or name the channels to read with markers=[...]."
        )


def idle_channels(
    x: np.ndarray, offsets: list[int], markers: list[str], order: np.ndarray | None
) -> dict[str, str]:
    """Find channels whose values cannot be those of a marker, and the reason.

    Parameters
    ----------
    x : ndarray of shape (N, M)
        Sample after sample.
    offsets : list of S + 1 int
        Limits of the samples.
    markers : list of M str
    order : ndarray of shape (N,) or None
        Position of each event in its file. None: events are in order.
    """
    found: dict[str, str] = {}
    if len(x) < 2:
        return found
    for j, marker in enumerate(markers):
        column = x[:, j]
        if column[0] == column[-1] and (column == column[0]).all():
            found[marker] = CONSTANT
        elif _only_counts(column, offsets, order):
            found[marker] = COUNTS
    return found


def _only_counts(column: np.ndarray, offsets: list[int], order: np.ndarray | None) -> bool:
    judged = False
    for first, last in pairwise(offsets):
        if last - first <= _RISES:
            continue
        values = column[first:last]
        if order is not None:
            values = values[np.argsort(order[first:last], kind="stable")]
        steps = np.diff(values)
        if (steps < 0).any() or np.count_nonzero(steps) < _RISES:
            return False
        judged = True
    return judged


def require_stains(chosen: list[str], var: pd.DataFrame, names: list[str]) -> None:
    """Raise InvalidInputError if only scatter, or nothing, is left to read."""
    kind = dict(zip(names, var["kind"].astype(str), strict=True))
    if any(kind[name] in _STAINS for name in chosen):
        return
    what = f"only scatter ({listed(chosen)})" if chosen else "nothing"
    channels = [f"{name} ({kind[name]})" for name in names]
    raise InvalidInputError(
        f"No stained channel to read: by default this fit would read {what}. The data have "
        f"{listed(channels)}. Name the channels to read with markers=[...]."
    )


def warn_of_left_out(left_out: dict[str, str]) -> None:
    """Say once which stained channels are not read, and why."""
    if not left_out:
        return
    by_reason = defaultdict(list)
    for name, reason in left_out.items():
        by_reason[reason].append(name)
    text = "; ".join(f"{listed(names)}: {reason}" for reason, names in by_reason.items())
    warnings.warn(
        f"Channels that are not read: {text}. To read them, name all markers with markers=[...].",
        UserWarning,
        stacklevel=2,
    )
