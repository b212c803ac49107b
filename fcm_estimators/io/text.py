"""Read HEADER and TEXT of an FCS file with flowio; errors name the file."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import flowio
import numpy as np
from flowio.exceptions import FlowIOException

from fcm_estimators.exceptions import FcsError

HEADER_SIZE = 58
_VERSIONS = ("2.0", "3.0", "3.1", "3.2")
# What flowio raises on damaged files; KeyError is handled separately.
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


def file_size(path: Path) -> int:
    """Size of a file in bytes; FcsError if it is unreadable or empty."""
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


def parsed_segments(path: Path, size: int) -> Iterator[tuple[int, flowio.FlowData]]:
    """Yield offset and parsed TEXT of every data set; ``$NEXTDATA`` leads to the next."""
    offset = 0
    while True:
        _check_header(path, offset, size)
        flow = _parse_text(path, offset)
        yield offset, flow
        step = whole_number(path, "NEXTDATA", flow.text.get("nextdata", "0"))
        if step == 0:
            return
        # The standard counts from the start of the data set, some writers from that of the file.
        ahead = [o for o in (offset + step, step) if offset < o < size and _has_magic(path, o)]
        if not ahead:
            raise FcsError(
                f"{path.name}: $NEXTDATA promises another data set {step} bytes after byte "
                f"{offset}, but none starts there ({size} bytes in the file). The file is "
                f"truncated or the keyword is wrong; dataset=0 reads only the first data set."
            )
        offset = ahead[0]


def _has_magic(path: Path, offset: int) -> bool:
    with path.open("rb") as handle:
        handle.seek(offset)
        return handle.read(3) == b"FCS"


def _check_header(path: Path, offset: int, size: int) -> None:
    with path.open("rb") as handle:
        handle.seek(offset)
        header = handle.read(HEADER_SIZE)
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
    if not HEADER_SIZE <= start < stop < size - offset:
        raise FcsError(
            f"{path.name}: the HEADER puts TEXT at bytes {start} to {stop}, but the file has "
            f"{size - offset} bytes. It is truncated or its offsets are wrong."
        )


class _Bounded(io.BufferedReader):
    """File whose reads never exceed its size, because a read allocates its memory beforehand."""

    def read(self, size: int | None = -1) -> bytes:
        """Read at most the rest of the file."""
        left = max(os.fstat(self.fileno()).st_size - self.tell(), 0)
        return super().read(left if size is None or size < 0 else min(size, left))


def _parse_text(path: Path, offset: int) -> flowio.FlowData:
    try:
        with _Bounded(io.FileIO(path)) as handle:
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
            "or has wrong offsets. Copy it again from its origin."
        ) from error


def supplemental_text(
    path: Path, size: int, offset: int, keywords: Mapping[str, str]
) -> dict[str, str]:
    """Keywords of the supplemental TEXT segment of FCS 3, which flowio does not read."""
    start = whole_number(path, "BEGINSTEXT", keywords.get("BEGINSTEXT", "0"))
    stop = whole_number(path, "ENDSTEXT", keywords.get("ENDSTEXT", "0"))
    if start == 0 or stop <= start:
        return {}
    if start < 0 or offset + stop >= size:
        raise FcsError(
            f"{path.name}: $BEGINSTEXT is {start} and $ENDSTEXT is {stop}, but the file ends at "
            f"byte {size - offset - 1}. It is truncated or its offsets are wrong."
        )
    with path.open("rb") as handle:
        handle.seek(offset + start)
        raw = handle.read(stop - start + 1)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    delimiter = text[0]
    # A doubled delimiter stands for a literal one.
    tokens = [
        t.replace("\0", delimiter) for t in text[1:].replace(delimiter * 2, "\0").split(delimiter)
    ]
    return {
        name.removeprefix("$").upper(): value.strip()
        for name, value in zip(tokens[0::2], tokens[1::2], strict=False)
    }


def number(path: Path, keyword: str, text: str) -> float:
    """Value of a keyword as a finite number."""
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not np.isfinite(value):
        raise FcsError(f"{path.name}: keyword ${keyword} is {text!r}; expected a number.")
    return value


def whole_number(path: Path, keyword: str, text: str) -> int:
    """Value of a keyword as a whole number."""
    try:
        return int(text)
    except ValueError as error:
        raise FcsError(
            f"{path.name}: keyword ${keyword} is {text!r}; expected a whole number."
        ) from error
