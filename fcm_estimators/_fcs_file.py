"""One data set of one FCS file: checked, then decoded.

flowio reads HEADER and TEXT. The DATA segment is decoded here, because flowio copies it several
times and couples the decoding of log amplifiers and gains to the scaling of Time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import flowio
import numpy as np
import pandas as pd
from flowio.exceptions import FlowIOException

from fcm_estimators._exceptions import FcsError, InvalidInputError
from fcm_estimators._fcs_channels import (
    ADDED_KEYWORD,
    channel_kinds,
    parse_spillover,
    unique_channels,
)

_VERSIONS = ("2.0", "3.0", "3.1", "3.2")
_HEADER_SIZE = 58
# What flowio raises on damaged files beside its own exceptions.
_PARSE_ERRORS = (
    FlowIOException,
    ValueError,
    IndexError,
    EOFError,
    OverflowError,
    NotImplementedError,
    OSError,
    MemoryError,
    re.error,
)


@dataclass(frozen=True)
class Channel:
    """One parameter: unique name, marker, kind, and how stored values become scale values."""

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
    """One data set: where its events are and what they mean; the events stay in the file."""

    path: Path
    version: str
    keywords: dict[str, str]
    channels: tuple[Channel, ...]
    n_events: int
    data_start: int
    dtype: np.dtype[Any]

    @property
    def channel_names(self) -> list[str]:
        """Unique ``$PnN`` names in file order."""
        return [channel.name for channel in self.channels]

    @property
    def time_step(self) -> float | None:
        """Seconds per unit of Time, None if the file does not say."""
        text = self.keywords.get("TIMESTEP", "")
        return _number(self.path, "TIMESTEP", text) if text else None

    def spillover(self) -> pd.DataFrame | None:
        """Labelled spillover matrix, None if the file has none."""
        return parse_spillover(self.keywords, self.channel_names, self.path)


def open_segment(path: Path, dataset: int | None = None) -> Segment:
    """
    Find and check one data set of a file, without reading its events.

    Parameters
    ----------
    path : Path
        An FCS 2.0, 3.0, 3.1 or 3.2 file in list mode.
    dataset : int, optional
        Position of the data set in the file, from 0. Needed if there are several, unless exactly
        one of them is FCS 3 and the others are FCS 2 (Kaluza .lmd): then it is the FCS 3 one.

    Returns
    -------
    Segment

    Raises
    ------
    FcsError
        If the file is missing, empty, not FCS, truncated, contradicts itself, or holds several data
        sets and none was chosen.
    InvalidInputError
        If the file has no data set number `dataset`.
    """
    size = _file_size(path)
    if dataset is not None:
        found = list(islice(_parsed_segments(path, size), dataset + 1)) if dataset >= 0 else []
        if not 0 <= dataset < len(found):
            count = len(list(_parsed_segments(path, size)))
            raise InvalidInputError(
                f"{path.name} holds {count} data set(s), so dataset must be 0 to {count - 1}, "
                f"got {dataset}."
            )
        return _checked_segment(path, size, *found[dataset])
    parsed = list(_parsed_segments(path, size))
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
    """
    Read the events of a data set into columns of an array.

    Parameters
    ----------
    segment : Segment
        From :func:`open_segment`.
    out : ndarray of float32, shape (n_events, M)
        Filled column by column; columns without a parameter are left alone.
    columns : sequence of int
        For every parameter of the file the column of `out` that takes it, -1 for none.
    scale_time : bool
        Multiply Time by ``$TIMESTEP``.

    Raises
    ------
    FcsError
        If `scale_time` is set and the file has a Time channel but no ``$TIMESTEP``.

    Notes
    -----
    Scale values as FCS 3.1 defines them: a log amplifier with ``$PnE = f1,f2`` gives
    f2 * 10^(f1 * x / $PnR), a gain ``$PnG = g`` gives x / g. Time is exempt from the gain.
    """
    raw = np.fromfile(
        segment.path, dtype=segment.dtype, count=segment.n_events, offset=segment.data_start
    )
    for index, (channel, column) in enumerate(zip(segment.channels, columns, strict=True)):
        if column < 0:
            continue
        values = raw[f"f{index}"]
        if values.dtype.kind == "u":
            mask = (1 << (int(channel.stored_range) - 1).bit_length()) - 1
            # Bits above $PnR are not data: the standard lets instruments put anything there.
            if mask < np.iinfo(values.dtype).max:
                values = values & values.dtype.type(mask)
        if channel.decades > 0:
            exponent = channel.decades / channel.stored_range
            values = channel.log_zero * 10 ** (values.astype(np.float64) * exponent)
        if channel.gain != 1:
            values = values / np.float64(channel.gain)
        if scale_time and channel.kind == "time":
            step = segment.time_step
            if step is None:
                raise FcsError(
                    f"{segment.path.name} has no $TIMESTEP, so its Time cannot be given in "
                    "seconds. Read it with scale_time=False."
                )
            values = values * np.float64(step)
        out[:, column] = values


def _file_size(path: Path) -> int:
    try:
        if path.is_dir():
            raise FcsError(f"{path} is a folder; pass the list of its FCS files.")
        with path.open("rb"):
            size = path.stat().st_size
    except OSError as error:
        raise FcsError(f"Cannot read {path}: {error.strerror}. Check the path.") from error
    if size == 0:
        raise FcsError(f"{path.name} is empty (0 bytes); copy it again from its origin.")
    return size


def _parsed_segments(path: Path, size: int) -> Iterator[tuple[int, flowio.FlowData]]:
    """Offset and parsed TEXT of every data set, following ``$NEXTDATA``."""
    offset = 0
    while True:
        _check_header(path, offset, size)
        flow = _parse_text(path, offset)
        yield offset, flow
        step = _whole(path, "NEXTDATA", flow.text.get("nextdata", "0"))
        if step == 0:
            return
        # The standard counts from the start of this data set, some writers from the file's.
        ahead = [o for o in (offset + step, step) if offset < o and _has_magic(path, o)]
        if not ahead:
            raise FcsError(
                f"{path.name}: $NEXTDATA promises another data set {step} bytes after byte "
                f"{offset}, but none starts there ({size} bytes in the file). The file is "
                f"truncated or the keyword is wrong; dataset=0 reads the first data set alone."
            )
        offset = ahead[0]


def _has_magic(path: Path, offset: int) -> bool:
    with path.open("rb") as handle:
        handle.seek(offset)
        return handle.read(3) == b"FCS"


def _check_header(path: Path, offset: int, size: int) -> None:
    with path.open("rb") as handle:
        handle.seek(offset)
        header = handle.read(_HEADER_SIZE)
    if header[:3] != b"FCS":
        raise FcsError(
            f"{path.name} is not an FCS file: it starts with {header[:12]!r} instead of 'FCS'."
        )
    version = header[3:6].decode("ascii", errors="replace")
    if version not in _VERSIONS:
        raise FcsError(
            f"{path.name} is FCS version {version!r}; versions {', '.join(_VERSIONS)} are read."
        )
    try:
        start, stop = int(header[10:18]), int(header[18:26])
    except ValueError as error:
        raise FcsError(
            f"{path.name}: the HEADER has no valid TEXT offsets ({header[10:26]!r})."
        ) from error
    if not _HEADER_SIZE <= start < stop < size - offset:
        raise FcsError(
            f"{path.name}: the HEADER puts TEXT at bytes {start} to {stop}, but the file has "
            f"{size - offset} bytes. It is truncated or its offsets are wrong."
        )


def _parse_text(path: Path, offset: int) -> flowio.FlowData:
    try:
        with path.open("rb") as handle:
            return flowio.FlowData(
                handle, only_text=True, ignore_offset_discrepancy=True, nextdata_offset=offset
            )
    except KeyError as error:
        raise FcsError(
            f"{path.name}: TEXT lacks the required keyword ${str(error.args[0]).upper()}."
        ) from error
    except _PARSE_ERRORS as error:
        raise FcsError(
            f"{path.name}: HEADER or TEXT cannot be read ({error}). The file is truncated, damaged "
            "or has wrong offsets; copy it again from its origin."
        ) from error


def _checked_segment(path: Path, size: int, offset: int, flow: flowio.FlowData) -> Segment:
    keywords = {name.upper(): value.strip() for name, value in flow.text.items()}
    keywords = {**_supplemental_text(path, size, offset, keywords), **keywords}
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


def _supplemental_text(
    path: Path, size: int, offset: int, keywords: Mapping[str, str]
) -> dict[str, str]:
    """Keywords of the supplemental TEXT segment of FCS 3, which flowio leaves unread."""
    start = _whole(path, "BEGINSTEXT", keywords.get("BEGINSTEXT", "0"))
    stop = _whole(path, "ENDSTEXT", keywords.get("ENDSTEXT", "0"))
    if start == 0 or stop <= start:
        return {}
    if offset + stop >= size:
        raise FcsError(
            f"{path.name}: $ENDSTEXT is {stop}, but the file ends at byte {size - offset - 1}. It "
            "is truncated or its offsets are wrong."
        )
    with path.open("rb") as handle:
        handle.seek(offset + start)
        raw = handle.read(stop - start + 1)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    delimiter = text[0]
    # A doubled delimiter is a literal one.
    tokens = [
        t.replace("\0", delimiter) for t in text[1:].replace(delimiter * 2, "\0").split(delimiter)
    ]
    return {
        name.removeprefix("$").upper(): value.strip()
        for name, value in zip(tokens[0::2], tokens[1::2], strict=False)
    }


def _channels(path: Path, keywords: Mapping[str, str], count: int) -> tuple[Channel, ...]:
    numbers = range(1, count + 1)
    names = unique_channels([keywords.get(f"P{n}N", "") for n in numbers])
    added = frozenset(int(n) for n in keywords.get(ADDED_KEYWORD, "").split(",") if n.isdecimal())
    channels = []
    for n, name, kind in zip(numbers, names, channel_kinds(names, added), strict=True):
        amplifier = keywords.get(f"P{n}E") or "0,0"
        decades, _, log_zero = amplifier.partition(",")
        f1, f2 = _number(path, f"P{n}E", decades), _number(path, f"P{n}E", log_zero)
        gain = _number(path, f"P{n}G", keywords.get(f"P{n}G") or "1")
        stored_range = _number(path, f"P{n}R", keywords.get(f"P{n}R", ""))
        # Files of floats exist whose Time has the range 0; it decodes nothing there.
        lowest = 1 if f1 > 0 or keywords.get("DATATYPE", "").upper() == "I" else 0
        if min(f1, f2, gain) < 0 or stored_range < lowest:
            raise FcsError(
                f"{path.name}: parameter {n} ({name}) has $P{n}E={amplifier}, $P{n}G={gain:g} and "
                f"$P{n}R={stored_range:g}; no amplification may be negative, and this range must "
                f"be at least {lowest}."
            )
        # f2 = 0 with f1 > 0 and gain 0 are invalid but common; the standard reads both as 1.
        unity = kind == "time" or gain == 0
        marker = keywords.get(f"P{n}S", "")
        channels.append(
            Channel(name, marker, kind, stored_range, f1, f2 or 1.0, 1.0 if unity else gain)
        )
    return tuple(channels)


def _event_dtype(
    path: Path, keywords: Mapping[str, str], channels: Sequence[Channel]
) -> np.dtype[Any]:
    """Layout of one event: a field ``f{index}`` for every parameter."""
    numbers = range(1, len(channels) + 1)
    data_type = keywords.get("DATATYPE", "").upper()
    mixed = {keywords.get(f"P{n}DATATYPE", data_type).upper() for n in numbers} - {data_type}
    if data_type not in ("I", "F", "D") or mixed:
        found = ", ".join(sorted({data_type, *mixed}))
        raise FcsError(
            f"{path.name}: $DATATYPE is {found}; I (unsigned integer), F or D (floating point) for "
            "all parameters is read."
        )
    if data_type == "I":
        widths = [_whole(path, f"P{n}B", keywords.get(f"P{n}B", "")) for n in numbers]
        if odd := sorted(set(widths) - {8, 16, 32, 64}):
            raise FcsError(f"{path.name}: $PnB is {odd} bits; 8, 16, 32 and 64 are read.")
        formats = [f"u{width // 8}" for width in widths]
    else:
        formats = ["f4" if data_type == "F" else "f8"] * len(channels)
    order = [part.strip() for part in keywords.get("BYTEORD", "").split(",")]
    ascending = [str(i + 1) for i in range(len(order))]
    if order not in (ascending, ascending[::-1]):
        raise FcsError(
            f"{path.name}: $BYTEORD is {keywords.get('BYTEORD', '')!r}; 1,2,3,4 or 4,3,2,1 is read."
        )
    endian = "<" if order == ascending else ">"
    return np.dtype([(f"f{i}", endian + code) for i, code in enumerate(formats)])


def _data_start(path: Path, size: int, offset: int, flow: flowio.FlowData, expected: int) -> int:
    """Absolute position of the first event, after checking every number that leads there."""
    header = (flow.header["data_start"], flow.header["data_stop"])
    text = (
        _whole(path, "BEGINDATA", flow.text.get("begindata", "0")),
        _whole(path, "ENDDATA", flow.text.get("enddata", "0")),
    )
    if expected == 0:
        return size
    # HEADER has 0 where an offset needs more than 8 digits; FCS 2 has offsets only in HEADER.
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
    if not (_HEADER_SIZE <= start <= stop):
        raise FcsError(f"{path.name}: DATA at bytes {start} to {stop} is impossible.")
    # Some writers give the byte after the last one; $TOT proves which is meant.
    if stop - start not in (expected - 1, expected):
        raise FcsError(
            f"{path.name}: $TOT = {flow.event_count} events need {expected} bytes, but DATA at "
            f"bytes {start} to {stop} has {stop - start + 1}. $TOT, $PAR, $PnB or the offsets are "
            "wrong."
        )
    if offset + start + expected > size:
        raise FcsError(
            f"{path.name} is truncated: its events end at byte {offset + start + expected - 1}, "
            f"the file at byte {size - 1}. Copy it again from its origin."
        )
    return offset + int(start)


def _number(path: Path, keyword: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise FcsError(f"{path.name}: keyword ${keyword} is {text!r}; a number is needed.")
    return value


def _whole(path: Path, keyword: str, text: str) -> int:
    try:
        return int(text)
    except ValueError as error:
        raise FcsError(
            f"{path.name}: keyword ${keyword} is {text!r}; a whole number is needed."
        ) from error
