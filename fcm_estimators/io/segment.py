"""Check and decode one data set of an FCS file.

flowio reads HEADER and TEXT. The DATA segment is decoded here, because flowio copies it several
times and cannot decode log amplifiers and gains without scaling Time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import flowio
import numpy as np
import pandas as pd

from fcm_estimators.exceptions import FcsError, InvalidInputError
from fcm_estimators.io.channels import (
    ADDED_KEYWORD,
    channel_kinds,
    parse_spillover,
    unique_channels,
)
from fcm_estimators.io.text import (
    HEADER_SIZE,
    file_size,
    number,
    parsed_segments,
    supplemental_text,
    whole_number,
)

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
        """``$PnR`` on the scale of the decoded values."""
        if self.decades > 0:
            return 10**self.decades * self.log_zero / self.gain
        return self.stored_range / self.gain


@dataclass(frozen=True)
class Segment:
    """One data set: where its events are in the file and how they are decoded."""

    path: Path
    version: str
    keywords: dict[str, str]
    channels: tuple[Channel, ...]
    n_events: int
    data_start: int
    dtype: np.dtype[np.void]

    @property
    def channel_names(self) -> list[str]:
        """Unique ``$PnN`` names in file order."""
        return [channel.name for channel in self.channels]

    @property
    def time_step(self) -> float | None:
        """Seconds per unit of Time, None if the file has no ``$TIMESTEP``."""
        text = self.keywords.get("TIMESTEP", "")
        return number(self.path, "TIMESTEP", text) if text else None

    def spillover(self) -> pd.DataFrame | None:
        """Labelled spillover matrix, None if the file has none."""
        return parse_spillover(self.keywords, self.channel_names, self.path)


def open_segment(path: Path, dataset: int | None = None) -> Segment:
    """Find and check one data set of a file, without reading its events.

    Parameters
    ----------
    path : Path
        An FCS 2.0, 3.0, 3.1 or 3.2 file in list mode.
    dataset : int, optional
        Position of the data set in the file, counted from 0. Required if there are several, unless
        exactly one is FCS 3 and the others are FCS 2 (Kaluza .lmd): then the FCS 3 one is the
        default.

    Returns
    -------
    Segment

    Raises
    ------
    FcsError
        If the file is missing, empty, not FCS, truncated or inconsistent, or holds several data
        sets and none was chosen.
    InvalidInputError
        If the file has no data set number `dataset`.
    """
    size = file_size(path)
    if dataset is not None:
        found = list(islice(parsed_segments(path, size), dataset + 1)) if dataset >= 0 else []
        if not 0 <= dataset < len(found):
            count = len(list(parsed_segments(path, size)))
            raise InvalidInputError(
                f"{path.name} holds {count} data set(s), so dataset must be 0 to {count - 1}, "
                f"got {dataset}."
            )
        return _checked_segment(path, size, *found[dataset])
    parsed = list(parsed_segments(path, size))
    modern = [entry for entry in parsed if not entry[1].version.startswith("2")]
    chosen = modern if len(modern) == 1 else parsed
    if len(chosen) > 1:
        listing = "; ".join(
            f"dataset={i}: FCS {flow.version}, {flow.event_count} events, "
            f"{flow.channel_count} parameters"
            for i, (_, flow) in enumerate(parsed)
        )
        raise FcsError(f"{path.name} holds {len(parsed)} data sets; choose one ({listing}).")
    return _checked_segment(path, size, *chosen[0])


def decode(segment: Segment, out: np.ndarray, columns: Sequence[int], scale_time: bool) -> None:
    """Read the events of a data set into columns of an array.

    Parameters
    ----------
    segment : Segment
        From :func:`open_segment`.
    out : ndarray of float32, shape (n_events, M)
        Filled column by column; columns without a parameter do not change.
    columns : sequence of int
        Column of `out` for every parameter of the file, -1 for none.
    scale_time : bool
        Multiply Time by ``$TIMESTEP``.

    Raises
    ------
    FcsError
        If `scale_time` is set and the file has a Time channel but no ``$TIMESTEP``, or if values
        exceed float32.

    Notes
    -----
    Scale values are those of FCS 3.1: a log amplifier with ``$PnE = f1,f2`` gives
    f2 * 10^(f1 * x / $PnR), a gain ``$PnG = g`` gives x / g. The gain is not applied to Time.
    """
    raw = np.fromfile(
        segment.path, dtype=segment.dtype, count=segment.n_events, offset=segment.data_start
    )
    for index, (channel, column) in enumerate(zip(segment.channels, columns, strict=True)):
        if column < 0:
            continue
        factor = _time_step(segment) if scale_time and channel.kind == "time" else 1.0
        try:
            with np.errstate(over="raise"):
                out[:, column] = _scale_values(raw[f"f{index}"], channel, factor)
        except FloatingPointError as error:
            raise FcsError(
                f"{segment.path.name}: channel {channel.name} holds values beyond the range of "
                "float32. Its $PnE, $PnG or data are wrong."
            ) from error


def _scale_values(values: np.ndarray, channel: Channel, factor: float) -> np.ndarray:
    if values.dtype.kind == "u":
        mask = (1 << (int(channel.stored_range) - 1).bit_length()) - 1
        # Bits above $PnR are not data: the standard allows instruments to write anything there.
        if mask < np.iinfo(values.dtype).max:
            values = values & values.dtype.type(mask)
    if channel.decades > 0:
        exponent = channel.decades / channel.stored_range
        values = channel.log_zero * 10 ** (values.astype(np.float64) * exponent)
    if channel.gain != 1 or factor != 1:
        values = values.astype(np.float64) / channel.gain * factor
    return values


def _time_step(segment: Segment) -> float:
    if segment.time_step is None:
        raise FcsError(
            f"{segment.path.name} has no $TIMESTEP, so its Time cannot be converted to seconds. "
            "Read it with scale_time=False."
        )
    return segment.time_step


def _checked_segment(path: Path, size: int, offset: int, flow: flowio.FlowData) -> Segment:
    keywords = {name.upper(): value.strip() for name, value in flow.text.items()}
    keywords = {**supplemental_text(path, size, offset, keywords), **keywords}
    if keywords.get("MODE", "L").upper() != "L":
        raise FcsError(f"{path.name}: $MODE is {keywords['MODE']!r}; only list mode (L) is read.")
    if flow.channel_count < 1 or flow.event_count < 0:
        raise FcsError(
            f"{path.name}: $PAR is {flow.channel_count} and $TOT is {flow.event_count}; a file "
            "needs at least one parameter."
        )
    if flow.channel_count > len(keywords):
        raise FcsError(
            f"{path.name}: $PAR promises {flow.channel_count} parameters, but TEXT holds only "
            f"{len(keywords)} keywords in all."
        )
    channels = _channels(path, keywords, flow.channel_count)
    dtype = _event_dtype(path, keywords, channels)
    start = _data_start(path, size, offset, flow, flow.event_count * dtype.itemsize)
    return Segment(path, flow.version, keywords, channels, flow.event_count, start, dtype)


def _channels(path: Path, keywords: Mapping[str, str], count: int) -> tuple[Channel, ...]:
    numbers = range(1, count + 1)
    names = unique_channels([keywords.get(f"P{n}N", "") for n in numbers])
    added = frozenset(int(n) for n in keywords.get(ADDED_KEYWORD, "").split(",") if n.isdecimal())
    channels = []
    for n, name, kind in zip(numbers, names, channel_kinds(names, added), strict=True):
        amplifier = keywords.get(f"P{n}E") or "0,0"
        decades, _, log_zero = amplifier.partition(",")
        f1, f2 = number(path, f"P{n}E", decades), number(path, f"P{n}E", log_zero)
        gain = number(path, f"P{n}G", keywords.get(f"P{n}G") or "1")
        stored_range = number(path, f"P{n}R", keywords.get(f"P{n}R", ""))
        # Some files of floats have a Time with range 0; floats need no range to be decoded.
        lowest = 1 if f1 > 0 or keywords.get("DATATYPE", "").upper() == "I" else 0
        if min(f1, f2, gain) < 0 or f1 > _MOST_DECADES or stored_range < lowest:
            raise FcsError(
                f"{path.name}: parameter {n} ({name}) has $P{n}E={amplifier}, $P{n}G={gain:g} and "
                f"$P{n}R={stored_range:g}; amplification must be 0 to {_MOST_DECADES} "
                f"decades, the gain not negative, and this range at least {lowest}."
            )
        # f2 = 0 with f1 > 0 and a gain of 0 are invalid but common; the standard reads both as 1.
        unity = kind == "time" or gain == 0
        marker = keywords.get(f"P{n}S", "")
        channels.append(
            Channel(name, marker, kind, stored_range, f1, f2 or 1.0, 1.0 if unity else gain)
        )
    return tuple(channels)


def _event_dtype(
    path: Path, keywords: Mapping[str, str], channels: Sequence[Channel]
) -> np.dtype[np.void]:
    """Layout of one event, with a field ``f{index}`` for every parameter."""
    numbers = range(1, len(channels) + 1)
    data_type = keywords.get("DATATYPE", "").upper()
    mixed = {keywords.get(f"P{n}DATATYPE", data_type).upper() for n in numbers} - {data_type}
    if data_type not in ("I", "F", "D") or mixed:
        found = ", ".join(sorted({data_type, *mixed}))
        raise FcsError(
            f"{path.name}: $DATATYPE is {found}; expected I (unsigned integer), F or D (floating "
            "point), the same for all parameters."
        )
    if data_type == "I":
        widths = [whole_number(path, f"P{n}B", keywords.get(f"P{n}B", "")) for n in numbers]
        if odd := sorted(set(widths) - {8, 16, 32, 64}):
            raise FcsError(f"{path.name}: $PnB is {odd} bits; expected 8, 16, 32 or 64.")
        formats = [f"u{width // 8}" for width in widths]
    else:
        formats = ["f4" if data_type == "F" else "f8"] * len(channels)
    order = [part.strip() for part in keywords.get("BYTEORD", "").split(",")]
    ascending = [str(i + 1) for i in range(len(order))]
    if order not in (ascending, ascending[::-1]):
        raise FcsError(
            f"{path.name}: $BYTEORD is {keywords.get('BYTEORD', '')!r}; expected 1,2,3,4 or "
            "4,3,2,1."
        )
    endian = "<" if order == ascending else ">"
    return np.dtype([(f"f{i}", endian + code) for i, code in enumerate(formats)])


def _data_start(path: Path, size: int, offset: int, flow: flowio.FlowData, expected: int) -> int:
    """Absolute position of the first event, once all offsets are checked."""
    header = (flow.header["data_start"], flow.header["data_stop"])
    text = (
        whole_number(path, "BEGINDATA", flow.text.get("begindata", "0")),
        whole_number(path, "ENDDATA", flow.text.get("enddata", "0")),
    )
    if expected == 0:
        return size
    # HEADER holds 0 for an offset of more than 8 digits; FCS 2 has offsets only in HEADER.
    if flow.version == "2.0" or text == (0, 0):
        text = header
    elif header == (0, 0):
        header = text
    if header != text:
        raise FcsError(
            f"{path.name}: HEADER puts DATA at bytes {header[0]} to {header[1]}, TEXT at {text[0]} "
            f"to {text[1]}. One of them is wrong; export the file again."
        )
    start, stop = text
    if not (HEADER_SIZE <= start <= stop):
        raise FcsError(f"{path.name}: DATA at bytes {start} to {stop} is impossible.")
    # Some writers give the byte after the last one; $TOT shows which of the two is meant.
    if stop - start not in (expected - 1, expected):
        raise FcsError(
            f"{path.name}: $TOT = {flow.event_count} events need {expected} bytes, but DATA at "
            f"bytes {start} to {stop} has {stop - start + 1}. $TOT, $PAR, $PnB or the offsets are "
            "wrong."
        )
    if offset + start + expected > size:
        raise FcsError(
            f"{path.name} is truncated: its events end at byte {offset + start + expected - 1}, "
            f"but the file ends at byte {size - 1}. Copy it again from its origin."
        )
    return offset + int(start)
