"""Read HEADER and TEXT of the data sets of an FCS file; errors name the file."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fcm_estimators.exceptions import FcsError
from fcm_estimators.io.keywords import Notes, lookup, parse_text

HEADER_SIZE = 58
VERSIONS = ("2.0", "3.0", "3.1", "3.2")
_VERSION_BYTES = tuple(version.encode() for version in VERSIONS)
_GZIP = b"\x1f\x8b"
# A check sum and padding may lie between two data sets.
_BETWEEN = 64
# The final delimiter is looked for this far behind the end that HEADER gives.
_LOOK_AHEAD = 8


class Content:
    """The bytes of a file; a gzip file is unpacked into memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._bytes: bytes | None = None
        try:
            if path.is_dir():
                raise FcsError(f"{path} is a folder; pass the list of its FCS files.")
            if path.exists() and not path.is_file():
                raise FcsError(f"{path} is no file but a pipe or a device; copy it to a file.")
            with path.open("rb") as handle:
                packed = handle.read(2) == _GZIP
            if packed:
                self._bytes = gzip.decompress(path.read_bytes())
            self.size = path.stat().st_size if self._bytes is None else len(self._bytes)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise FcsError(
                f"{path.name} cannot be unpacked ({error}). Copy it again from its origin."
            ) from error
        except OSError as error:
            raise FcsError(f"Cannot read {path}: {error.strerror}. Check the path.") from error
        if self.size == 0:
            raise FcsError(f"{path.name} is empty (0 bytes); copy it again from its origin.")

    def read(self, start: int, count: int) -> bytes:
        """Return the bytes from `start` on, at most to the end of the file."""
        count = max(min(count, self.size - start), 0)
        if self._bytes is not None:
            return self._bytes[start : start + count]
        with self.path.open("rb") as handle:
            handle.seek(start)
            return handle.read(count)

    def fill(self, start: int, array: np.ndarray) -> None:
        """Overwrite a contiguous array with the bytes from `start` on."""
        target = array.reshape(-1).view(np.uint8).data
        if self._bytes is not None:
            target[:] = self._bytes[start : start + len(target)]
            return
        with self.path.open("rb", buffering=0) as handle:
            handle.seek(start)
            done = 0
            while done < len(target):
                # One call reads at most 2 GiB.
                count = handle.readinto(target[done:])
                if not count:
                    raise FcsError(f"{self.path.name} became shorter while it was read.")
                done += count


@dataclass(frozen=True)
class DataSet:
    """HEADER and TEXT of one data set; offsets count from its first byte."""

    path: Path
    offset: int
    size: int
    version: str
    header_data: tuple[int, int]
    text_segments: tuple[tuple[int, int], ...]
    pairs: tuple[tuple[str, str], ...]
    keywords: dict[str, str]
    notes: Notes

    def required(self, keyword: str) -> str:
        """Value of a keyword that every file has; FcsError if it is absent or empty."""
        value = self.keywords.get(keyword, "")
        if not value:
            raise FcsError(
                f"{self.path.name}: TEXT lacks the required keyword ${keyword}. The file is "
                "damaged or its TEXT offsets are wrong; export it again."
            )
        return value

    def whole(self, keyword: str) -> int:
        """Value of a required keyword as a whole number."""
        return whole_number(self.path, keyword, self.required(keyword))

    def summary(self) -> str:
        """Version, events and parameters, for a list of data sets."""
        events, parameters = self.keywords.get("TOT", "?"), self.keywords.get("PAR", "?")
        return f"FCS {self.version}, {events} events, {parameters} parameters"


def data_sets(content: Content) -> Iterator[DataSet]:
    """Yield HEADER and TEXT of every data set; ``$NEXTDATA`` leads to the next."""
    offset = 0
    while True:
        found = _data_set(content, offset)
        yield found
        text = found.keywords.get("NEXTDATA", "") or "0"
        step = whole_number(content.path, "NEXTDATA", text)
        if step == 0:
            _note_unread(content, found)
            return
        # The standard counts from the start of the data set, some writers from that of the file.
        ahead = [
            o
            for o in (offset + step, step)
            if offset < o < content.size and content.read(o, 3) == b"FCS"
        ]
        if not ahead:
            if content.size in (offset + step, step):
                found.notes.add(
                    f"$NEXTDATA is {step}, the end of the file, where no data set starts; it was "
                    "read as 0."
                )
                return
            raise FcsError(
                f"{content.path.name}: $NEXTDATA promises another data set {step} bytes after byte "
                f"{offset}, but none starts there ({content.size} bytes in the file). The file is "
                f"truncated or the keyword is wrong; dataset=0 reads only the first data set."
            )
        offset = ahead[0]


def _note_unread(content: Content, last: DataSet) -> None:
    """Tell of a data set that follows the last one although no ``$NEXTDATA`` leads to it."""
    segments = [last.header_data, *last.text_segments]
    offsets = [last.keywords.get(keyword, "") for keyword in ("BEGINDATA", "ENDDATA")]
    if all(text.isdecimal() for text in offsets):
        segments.append((int(offsets[0]), int(offsets[1])))
    behind = last.offset + max(end for _, end in segments) + 1
    place = content.read(behind, _BETWEEN).find(b"FCS")
    if place >= 0 and content.read(behind + place + 3, 3) in _VERSION_BYTES:
        last.notes.add(
            f"another data set starts at byte {behind + place}, but $NEXTDATA is 0; it was not "
            "read. To read it, cut the file there."
        )


def _data_set(content: Content, offset: int) -> DataSet:
    path, size = content.path, content.size - offset
    notes = Notes(path.name)
    header = content.read(offset, HEADER_SIZE)
    if header[:3] != b"FCS":
        raise FcsError(
            f"{path.name} is not an FCS file: it starts with {header[:12]!r} instead of 'FCS'."
        )
    version = header[3:6].decode("ascii", errors="replace")
    if version not in VERSIONS:
        raise FcsError(
            f"{path.name} is FCS version {version!r}; versions {', '.join(VERSIONS)} are read."
        )
    try:
        start, stop = int(header[10:18]), int(header[18:26])
    except ValueError as error:
        raise FcsError(
            f"{path.name}: the HEADER has no valid TEXT offsets ({header[10:26]!r})."
        ) from error
    if not HEADER_SIZE <= start < stop < size:
        raise FcsError(
            f"{path.name}: the HEADER puts TEXT at bytes {start} to {stop}, but the file has "
            f"{size} bytes. It is truncated or its offsets are wrong."
        )
    data = (_header_offset(header, 26, notes), _header_offset(header, 34, notes))
    raw = _with_last_value(content, offset, start, stop, data[0])
    pairs = parse_text(raw, notes)
    keywords = lookup(pairs, notes)
    segments = [(start, stop)]
    if place := _supplement(path, size, keywords, notes):
        segments.append(place)
        first, last = place
        more = parse_text(content.read(offset + first, last - first + 1), notes)
        known = {name.upper() for name, _ in pairs}
        pairs += [pair for pair in more if pair[0].upper() not in known]
        keywords = lookup(pairs, notes)
    return DataSet(
        path, offset, size, version, data, tuple(segments), tuple(pairs), keywords, notes
    )


def _header_offset(header: bytes, start: int, notes: Notes) -> int:
    """One DATA offset of HEADER; 0 where it is blank or no number."""
    raw = header[start : start + 8].strip(b" \0")
    try:
        return int(raw) if raw else 0
    except ValueError:
        notes.add(f"HEADER has the DATA offset {raw!r}; it was read as 0.")
        return 0


def _with_last_value(content: Content, offset: int, start: int, stop: int, data: int) -> bytes:
    """TEXT with the end of its last value, where HEADER ends it before the last delimiter."""
    raw = content.read(offset + start, stop - start + 1)
    delimiter = raw[:1]
    behind = content.read(offset + stop + 1, min(max(data - stop - 1, 0), _LOOK_AHEAD))
    end = behind.find(delimiter)
    if not raw.endswith(delimiter) and end > 0 and behind[:end].decode("latin-1").isprintable():
        return raw + behind[: end + 1]
    return raw


def _supplement(
    path: Path, size: int, keywords: dict[str, str], notes: Notes
) -> tuple[int, int] | None:
    """Where the supplemental TEXT segment of FCS 3 lies, None if there is none."""
    start, stop = (
        optional_offset(keywords, keyword, notes) or 0 for keyword in ("BEGINSTEXT", "ENDSTEXT")
    )
    if start == 0 or stop <= start:
        return None
    if start < 0 or stop >= size:
        raise FcsError(
            f"{path.name}: $BEGINSTEXT is {start} and $ENDSTEXT is {stop}, but the file ends at "
            f"byte {size - 1}. It is truncated or its offsets are wrong."
        )
    return start, stop


def optional_offset(keywords: dict[str, str], keyword: str, notes: Notes) -> int | None:
    """An offset of TEXT, None where it is absent, empty or no whole number."""
    text = keywords.get(keyword, "")
    try:
        return int(text) if text else None
    except ValueError:
        notes.add(f"${keyword} is {text!r}, which is no whole number; it was ignored.")
        return None


def number(path: Path, keyword: str, text: str) -> float:
    """Value of a keyword as a finite number."""
    value = parsed_number(text)
    if value is None:
        raise FcsError(f"{path.name}: keyword ${keyword} is {text!r}; expected a number.")
    return value


def parsed_number(text: str) -> float | None:
    """A finite number, None where the text is none."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def whole_number(path: Path, keyword: str, text: str) -> int:
    """Value of a keyword as a whole number."""
    try:
        return int(text)
    except ValueError as error:
        raise FcsError(
            f"{path.name}: keyword ${keyword} is {text!r}; expected a whole number."
        ) from error
