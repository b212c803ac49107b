"""Find and check one data set of an FCS file."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd

from fcm_estimators.exceptions import FcsError, InvalidInputError
from fcm_estimators.io.beckman import (
    compensated_parameters,
    instrument_matrix,
    is_older_form,
    with_names_of,
)
from fcm_estimators.io.channels import (
    ADDED_KEYWORD,
    channel_kinds,
    parse_spillover,
    unique_channels,
)
from fcm_estimators.io.keywords import listed
from fcm_estimators.io.layout import Layout, find_events
from fcm_estimators.io.text import Content, DataSet, data_sets, number, parsed_number

# float32 holds no odd whole number above this.
LARGEST_WHOLE = 1 << 24
# float32 holds no more decades.
_MOST_DECADES = 38


@dataclass(frozen=True)
class Channel:
    """One parameter: its unique name, marker and kind, and how its stored values are decoded."""

    name: str
    marker: str
    kind: str
    stored_range: float
    decades: float
    log_zero: float
    gain: float

    @property
    def range(self) -> float:
        """``$PnR`` on the scale of the decoded values; NaN if a file of floats has none."""
        if self.decades > 0:
            return 10**self.decades * self.log_zero / self.gain
        return self.stored_range / self.gain

    @property
    def linear(self) -> bool:
        """Whether the stored values are the values."""
        return self.decades == 0 and self.gain == 1


@dataclass(frozen=True)
class Segment:
    """One data set: where its events are in the file and how they are decoded.

    ``pairs`` are keywords and values as they stand in the file, ``keywords`` the stripped values
    by upper-case name without ``$``. ``compensated`` names the channels whose stored values the
    instrument compensated, ``instrument_spillover`` the matrix that it used.
    """

    path: Path
    version: str
    pairs: tuple[tuple[str, str], ...]
    keywords: dict[str, str]
    channels: tuple[Channel, ...]
    n_events: int
    data_start: int
    layout: Layout
    compensated: frozenset[str] = frozenset()
    instrument_spillover: pd.DataFrame | None = None

    @property
    def channel_names(self) -> list[str]:
        """Unique ``$PnN`` names in file order."""
        return [channel.name for channel in self.channels]

    @property
    def time_step(self) -> float | None:
        """Seconds per unit of Time, None if the file has no ``$TIMESTEP``."""
        text = self.keywords.get("TIMESTEP", "")
        return number(self.path, "TIMESTEP", text) if text else None

    def exceeds_float32(self, index: int) -> bool:
        """Whether parameter number `index` is an integer that may be too large for float32."""
        channel = self.channels[index]
        whole = self.layout.kinds[index] == "I" and channel.linear
        return whole and channel.stored_range > LARGEST_WHOLE

    def spillover(self) -> pd.DataFrame | None:
        """Labelled spillover matrix, None if the file has none that can be read."""
        found = parse_spillover(self.keywords, self.channel_names, self.path)
        return self.instrument_spillover if found is None else found


def open_segment(path: Path, dataset: int | None = None) -> Segment:
    """Find and check one data set of a file, without reading its events.

    Parameters
    ----------
    path : Path
        An FCS 2.0, 3.0, 3.1 or 3.2 file in list mode, or one packed by gzip.
    dataset : int, optional
        Position of the data set in the file, counted from 0. Default: the only FCS 3 data set if
        the others are FCS 2 (Beckman .lmd), otherwise the first; if there are several, a warning
        lists them.

    Returns
    -------
    Segment

    Raises
    ------
    FcsError
        If the file is missing, empty, not FCS, truncated or inconsistent.
    InvalidInputError
        If the file has no data set number `dataset`.

    Warns
    -----
    UserWarning
        For everything that was guessed, dropped or replaced.
    """
    content = Content(path)
    if dataset is not None:
        found = list(islice(data_sets(content), dataset + 1)) if dataset >= 0 else []
        if not 0 <= dataset < len(found):
            count = len(list(data_sets(content)))
            raise InvalidInputError(
                f"{path.name} holds {count} data set(s), so dataset must be 0 to {count - 1}, "
                f"got {dataset}."
            )
        # The twin may come later; a data set that cannot be read is nobody's twin.
        with suppress(FcsError):
            found = list(data_sets(content))
        return _checked_segment(found[dataset], found)
    found = list(data_sets(content))
    modern = [entry for entry in found if not entry.version.startswith("2")]
    chosen = modern[0] if len(modern) == 1 else found[0]
    if len(found) > 1:
        listing = "; ".join(f"dataset={i}: {entry.summary()}" for i, entry in enumerate(found))
        chosen.notes.add(
            f"there are {len(found)} data sets ($NEXTDATA): {listing}. Data set "
            f'{found.index(chosen)} was read; choose another with dataset=, or dataset="all".'
        )
    return _checked_segment(chosen, found)


def open_segments(path: Path) -> list[Segment]:
    """Find and check every data set of a file, as :func:`open_segment` does for one.

    An FCS 2.0 data set with the same events as an FCS 3 data set (Beckman .lmd) is left out, and
    a warning says so.
    """
    found = list(data_sets(Content(path)))
    older = [data for data in found if is_older_form(data, found)]
    kept = [data for data in found if data not in older]
    if older:
        numbers = ", ".join(str(found.index(data)) for data in older)
        kept[0].notes.add(
            f"data set {numbers} (FCS 2.0) holds the same events as another one and was left out; "
            f"read it with dataset={found.index(older[0])}."
        )
    return [_checked_segment(data, found) for data in kept]


def _checked_segment(data: DataSet, others: Sequence[DataSet]) -> Segment:
    data = with_names_of(data, others)
    path, keywords = data.path, data.keywords
    if (keywords.get("MODE") or "L").upper() != "L":
        raise FcsError(f"{path.name}: $MODE is {keywords['MODE']!r}; only list mode (L) is read.")
    data.required("DATATYPE")
    count = data.whole("PAR")
    if count < 1:
        raise FcsError(f"{path.name}: $PAR is {count}; a file needs at least one parameter.")
    if count > len(keywords):
        raise FcsError(
            f"{path.name}: $PAR promises {count} parameters, but TEXT holds only "
            f"{len(keywords)} keywords in all."
        )
    layout, n_events, start = find_events(data, count)
    channels = _channels(data, layout)
    names = [channel.name for channel in channels]
    old = data.version == "2.0" and set(layout.kinds) == {"I"}
    matrix = instrument_matrix(data, names) if old else None
    compensated = compensated_parameters(data, names, matrix)
    data.notes.warn()
    return Segment(
        path,
        data.version,
        data.pairs,
        keywords,
        channels,
        n_events,
        start,
        layout,
        compensated,
        matrix,
    )


def _channels(data: DataSet, layout: Layout) -> tuple[Channel, ...]:
    keywords = data.keywords
    numbers = range(1, len(layout.kinds) + 1)
    names = unique_channels([keywords.get(f"P{n}N", "") for n in numbers])
    added = frozenset(int(n) for n in keywords.get(ADDED_KEYWORD, "").split(",") if n.isdecimal())
    channels = [
        _channel(data, n, name, kind, layout.kinds[n - 1] == "I")
        for n, name, kind in zip(numbers, names, channel_kinds(names, added, keywords), strict=True)
    ]
    _note_amplifiers(data, layout)
    return tuple(channels)


def _channel(data: DataSet, n: int, name: str, kind: str, integer: bool) -> Channel:
    path, keywords = data.path, data.keywords
    decades, log_zero = _amplifier(data, n) if integer else (0.0, 1.0)
    # Readers do not apply the gain to Time.
    gain = 1.0 if kind == "time" else _gain(data, n)
    stored_range = _range(data, n, integer)
    lowest = 1 if integer else 0
    if min(decades, log_zero, gain) < 0 or decades > _MOST_DECADES or stored_range < lowest:
        raise FcsError(
            f"{path.name}: parameter {n} ({name}) has $P{n}E={keywords.get(f'P{n}E', '')}, "
            f"$P{n}G={gain:g} and $P{n}R={stored_range:g}; amplification must be 0 to "
            f"{_MOST_DECADES} decades, the gain not negative, and this range at least {lowest}."
        )
    # f2 = 0 with f1 > 0 is invalid but common; the standard reads it as 1.
    marker = keywords.get(f"P{n}S", "")
    return Channel(name, marker, kind, stored_range, decades, log_zero or 1.0, gain)


def _gain(data: DataSet, n: int) -> float:
    """``$PnG``; a blank or 0 would leave no values, so it counts as 1."""
    text = data.keywords.get(f"P{n}G")
    if text is None:
        return 1.0
    gain = _decimal(data, f"P{n}G", text) if text else 0.0
    if gain == 0:
        data.notes.group("of 0 or blank; the gain counts as 1.", f"$P{n}G")
    return gain or 1.0


def _amplifier(data: DataSet, n: int) -> tuple[float, float]:
    """Decades and offset of a log amplifier of integers."""
    text = data.keywords.get(f"P{n}E", "")
    if not text:
        data.notes.group("absent; the integers were read as linear.", f"$P{n}E")
        return 0.0, 1.0
    parts = [parsed_number(part) for part in text.split(",")]
    if parts[0] == 0:
        return 0.0, 1.0
    if len(parts) != 2 or parts[0] is None or parts[1] is None:
        raise FcsError(
            f"{data.path.name}: keyword $P{n}E is {text!r}; expected the decades and the offset of "
            "the amplifier, such as 0,0 or 4,1. Correct it, or export the file as floating point."
        )
    return parts[0], parts[1]


def _note_amplifiers(data: DataSet, layout: Layout) -> None:
    """Tell which floats have a log amplifier, which means nothing for them."""
    ignored = []
    for n, kind in enumerate(layout.kinds, start=1):
        text = data.keywords.get(f"P{n}E", "")
        if kind != "I" and text and parsed_number(text.split(",")[0]) != 0:
            ignored.append(f"$P{n}E={text}")
    if ignored:
        data.notes.add(f"{listed(ignored)} of floating-point data ignored; floats are linear.")


def _decimal(data: DataSet, keyword: str, text: str) -> float:
    """A number whose decimal mark may be a comma."""
    value = parsed_number(text)
    if value is None and text.count(",") == 1:
        value = parsed_number(text.replace(",", "."))
        if value is not None:
            data.notes.group("read with a decimal comma.", f"${keyword}={text}")
    return number(data.path, keyword, text) if value is None else value


def _range(data: DataSet, n: int, integer: bool) -> float:
    """``$PnR``; floats need no range to be decoded, so NaN stands for one that is no number."""
    text = data.required(f"P{n}R")
    try:
        value = _decimal(data, f"P{n}R", text)
    except FcsError:
        value = float("nan")
    if integer:
        return number(data.path, f"P{n}R", text) if np.isnan(value) else value
    if np.isnan(value) or value < 0:
        data.notes.add(
            f"$P{n}R is {text!r}, which is no range; floating-point data need none, so the range "
            "is unknown (NaN)."
        )
        return float("nan")
    return value
