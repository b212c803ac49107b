"""Names, kinds and spillover of the parameters of an FCS file."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from fcm_estimators.io.kinds import (
    is_mass,
    kind_of_name,
    kind_of_type,
)

logger = logging.getLogger(__name__)

# write_fcs writes this keyword, so that classes and probabilities are never read back as markers.
ADDED_KEYWORD = "FCM_ADDED_PARAMETERS"


def channel_kinds(
    channels: Sequence[str],
    added: frozenset[int] = frozenset(),
    keywords: Mapping[str, str] | None = None,
) -> list[str]:
    """Tell the kind of every parameter of one file.

    ``$PnTYPE`` (FCS 3.2) decides where a file has it, then the name ``$PnN``, then ``$PnS``.

    Parameters
    ----------
    channels : sequence of str, length M
        ``$PnN`` names.
    added : frozenset of int, default empty
        1-based numbers of parameters that an analysis added (class codes, probabilities).
    keywords : mapping of str to str, optional
        Upper-case keywords without ``$``: ``PnS`` and ``PnTYPE`` are read. Default: none.

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
    keywords = keywords or {}
    kinds = [
        "other" if n in added else _kind(name, keywords.get(f"P{n}S", ""), keywords, n)
        for n, name in enumerate(channels, start=1)
    ]
    if "mass" not in kinds:
        return [kind or "fluorescence" for kind in kinds]
    return [
        kind or ("mass" if is_mass(name.strip(), among_mass=True) else "other")
        for kind, name in zip(kinds, channels, strict=True)
    ]


def _kind(name: str, marker: str, keywords: Mapping[str, str], number: int) -> str | None:
    by_name = kind_of_name(name)
    by_type = kind_of_type(keywords.get(f"P{number}TYPE", ""))
    if by_type == "fluorescence" and by_name == "time":
        return "time"  # some writers give every parameter the same type
    return by_type or by_name or (kind_of_name(marker, is_marker=True) if marker else None)


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

    The first of ``$SPILLOVER``, ``SPILL`` and ``COMP`` that can be read is taken, in the form that
    FCS 3.1 defines for ``$SPILLOVER``: n, n channel names, n x n values row by row. In the form of
    FCS 3.0, ``$COMP`` is a matrix without channel names.

    Parameters
    ----------
    keywords : mapping of str to str
        Upper-case keywords without ``$``.
    channels : sequence of str, length M
        ``$PnN`` names; they replace parameter numbers in the keyword.
    path : Path
        File that warnings name.

    Returns
    -------
    DataFrame or None
        n x n, labelled on both axes; None if the file has no such keyword, n is 0, or none of the
        keywords can be read.

    Warns
    -----
    UserWarning
        If a keyword does not have that form, repeats a channel, or holds a value that is not
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
    for keyword in ("SPILLOVER", "SPILL", "COMP"):
        text = keywords.get(keyword, "").strip()
        if not text:
            continue
        try:
            return _parsed_matrix(keyword, text, channels)
        except ValueError as error:
            warnings.warn(
                f"{path.name}: keyword {keyword} is not a spillover matrix ({error}) and was "
                "ignored; expected n, n channel names and n x n numbers, separated by commas. To "
                "compensate, pass the matrix to Compensation(spillover=).",
                UserWarning,
                stacklevel=3,
            )
    return None


def _parsed_matrix(keyword: str, text: str, channels: Sequence[str]) -> pd.DataFrame | None:
    """The matrix of a keyword, None if it has no channels; ValueError with the reason."""
    fields = [field.strip() for field in text.rstrip(", \n").split(",")]
    size = int(fields[0])
    if keyword == "COMP" and len(fields) == 1 + size**2:
        raise ValueError("it names no channels")
    if size < 0 or len(fields) != 1 + size + size**2:
        raise ValueError(f"{len(fields) - 1} entries follow the size {size}")
    values = np.array([float(field) for field in fields[1 + size :]], dtype=np.float64)
    if not np.isfinite(values).all():
        raise ValueError("a value is not finite")
    names = [_by_number(name, channels) for name in fields[1 : 1 + size]]
    if len(set(names)) != size:
        raise ValueError(f"it names a channel twice: {', '.join(names)}")
    return pd.DataFrame(values.reshape(size, size), index=names, columns=names) if size else None


def _by_number(name: str, channels: Sequence[str]) -> str:
    if name not in channels and name.isdecimal() and 1 <= int(name) <= len(channels):
        return channels[int(name) - 1]
    return name
