"""Names, kinds and spillover of the parameters of an FCS file."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fcm_estimators.exceptions import FcsError

logger = logging.getLogger(__name__)

COMPENSATED_PREFIX = "Comp-"
# write_fcs writes this keyword, so that classes and probabilities are never read back as markers.
ADDED_KEYWORD = "FCM_ADDED_PARAMETERS"

_TIME = re.compile(r"time([ _-].*)?|hdr-t", re.IGNORECASE)
_SCATTER = re.compile(
    r"(comp-)?((violet|blue|[vb])?[ -]?[fs]sc|[fs]s)(?![a-z]).*|(forward|side)[ -]?scatter.*",
    re.IGNORECASE,
)
# Mass cytometry names a channel by its isotope: "Er168Di", "(Nd142)Dd".
_MASS = re.compile(r"\(?[A-Za-z]{1,4}\d{2,3}\)?D[id]")
_BOOKKEEPING = re.compile(
    r"(event|cell)[ _]?length|event( ?#|[ _]?(number|count|id))?|(trigger )?(pulse )?width"
    r"|center|offset|residual|beaddist|(file|sample)[ _-]?(id|number|no|origin)",
    re.IGNORECASE,
)


def channel_kinds(channels: Sequence[str], added: frozenset[int] = frozenset()) -> list[str]:
    """Tell the kind of every parameter of one file from its ``$PnN`` name.

    Parameters
    ----------
    channels : sequence of str, length M
        ``$PnN`` names.
    added : frozenset of int, default empty
        1-based numbers of parameters that an analysis added (class codes, probabilities).

    Returns
    -------
    list of str, length M
        "scatter", "fluorescence", "mass", "time" or "other". A file with mass channels has no
        fluorescence: its remaining parameters (Event_length, Center, ...) are "other".

    Examples
    --------
    >>> from fcm_estimators.io.channels import channel_kinds
    >>> channel_kinds(["Time", "FSC-A", "PE-Cy7-A", "Width"])
    ['time', 'scatter', 'fluorescence', 'other']
    >>> channel_kinds(["Time", "Event_length", "(Nd142)Dd", "Center2"])
    ['time', 'other', 'mass', 'other']
    """
    rest = "other" if any(_MASS.fullmatch(name) for name in channels) else "fluorescence"
    kinds = []
    for number, name in enumerate(channels, start=1):
        if number in added or _BOOKKEEPING.fullmatch(name):
            kinds.append("other")
        elif _TIME.fullmatch(name):
            kinds.append("time")
        elif _SCATTER.fullmatch(name):
            kinds.append("scatter")
        else:
            kinds.append("mass" if _MASS.fullmatch(name) else rest)
    return kinds


def unique_channels(names: Sequence[str]) -> list[str]:
    """Make names of parameters unique: add the number where a name is empty or repeats.

    Examples
    --------
    >>> from fcm_estimators.io.channels import unique_channels
    >>> unique_channels(["FSC-A", "", "FL1", "FL1"])
    ['FSC-A', 'P2', 'FL1', 'FL1 [P4]']
    """
    unique: list[str] = []
    for number, name in enumerate(names, start=1):
        candidate = name or f"P{number}"
        # The marked name may itself be taken; then the mark is added again.
        while candidate in unique:
            candidate = f"{candidate} [P{number}]"
        unique.append(candidate)
    return unique


def marker_names(channels: Sequence[str], markers: Sequence[str]) -> list[str]:
    """Name every parameter uniquely: by its marker if it has one, otherwise by its channel.

    Parameters
    ----------
    channels : sequence of str, length M
        Unique ``$PnN`` names.
    markers : sequence of str, length M
        ``$PnS`` names, ``""`` where there is none.

    Returns
    -------
    list of str, length M
        A marker measured in several channels becomes ``"marker (channel)"`` in each of them.

    Examples
    --------
    >>> from fcm_estimators.io.channels import marker_names
    >>> marker_names(["FSC-A", "FL1-A", "FL1-H", "FL2-A"], ["", "CD3", "CD3", "CD19"])
    ['FSC-A', 'CD3 (FL1-A)', 'CD3 (FL1-H)', 'CD19']
    """
    plain = [marker or channel for channel, marker in zip(channels, markers, strict=True)]
    counts = Counter(plain)
    named = [
        f"{marker} ({channel})" if marker and counts[name] > 1 else name
        for name, channel, marker in zip(plain, channels, markers, strict=True)
    ]
    return unique_channels(named)


def parse_spillover(
    keywords: Mapping[str, str], channels: Sequence[str], path: Path
) -> pd.DataFrame | None:
    """Read the spillover matrix from the keywords of a file.

    The first of ``$SPILLOVER``, ``SPILL`` and ``COMP`` that is present is read, in the form that
    FCS 3.1 defines for ``$SPILLOVER``: n, n channel names, n x n values row by row. In the form of
    FCS 3.0, ``$COMP`` is a matrix without channel names; it is ignored with a log entry.

    Parameters
    ----------
    keywords : mapping of str to str
        Upper-case keywords without ``$``.
    channels : sequence of str, length M
        ``$PnN`` names; they replace parameter numbers in the keyword.
    path : Path
        File that errors name.

    Returns
    -------
    DataFrame or None
        n x n, labelled on both axes; None if the file has no such keyword or n is 0.

    Raises
    ------
    FcsError
        If the keyword does not have that form, repeats a channel, or holds a value that is not
        finite.

    References
    ----------
    Spidlen et al., Data File Standard for Flow Cytometry, version FCS 3.1, Cytometry A 77A (2010).

    Examples
    --------
    >>> from pathlib import Path
    >>> from fcm_estimators.io.channels import parse_spillover
    >>> spill = parse_spillover({"SPILL": "2,B,C,1,0.1,0,1"}, ["A", "B", "C"], Path("x.fcs"))
    >>> float(spill.loc["B", "C"])
    0.1
    """
    keyword = next((k for k in ("SPILLOVER", "SPILL", "COMP") if keywords.get(k, "").strip()), None)
    if keyword is None:
        return None
    fields = [field.strip() for field in keywords[keyword].rstrip(", \n").split(",")]
    try:
        size = int(fields[0])
        if keyword == "COMP" and len(fields) == 1 + size**2:
            logger.warning("%s: $COMP names no channels and is ignored.", path.name)
            return None
        if size < 0 or len(fields) != 1 + size + size**2:
            raise ValueError(f"{len(fields) - 1} entries follow the size {size}")
        values = np.array([float(field) for field in fields[1 + size :]], dtype=np.float64)
        if not np.isfinite(values).all():
            raise ValueError("a value is not finite")
    except ValueError as error:
        raise FcsError(
            f"{path.name}: keyword {keyword} is not a spillover matrix ({error}). Expected: n, "
            "n channel names and n x n numbers, separated by commas. Repair it in the software "
            "that wrote the file."
        ) from error
    names = [_by_number(name, channels) for name in fields[1 : 1 + size]]
    if len(set(names)) != size:
        raise FcsError(f"{path.name}: keyword {keyword} names a channel twice: {', '.join(names)}.")
    return pd.DataFrame(values.reshape(size, size), index=names, columns=names) if size else None


def _by_number(name: str, channels: Sequence[str]) -> str:
    if name not in channels and name.isdecimal() and 1 <= int(name) <= len(channels):
        return channels[int(name) - 1]
    return name
