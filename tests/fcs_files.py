"""Bytes of FCS files, put together from the standard; every part can be made wrong on purpose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

# DATA of a generated file begin here, whatever the length of TEXT.
DATA_START = 4096


def text_segment(
    pairs: Mapping[str, str] | Sequence[tuple[str, str]], delimiter: str = "/", code: str = "utf-8"
) -> bytes:
    """TEXT by the standard: delimiters inside keywords and values are doubled."""
    pairs = pairs.items() if isinstance(pairs, Mapping) else pairs
    fields = [field.replace(delimiter, delimiter * 2) for pair in pairs for field in pair]
    return (delimiter + delimiter.join(fields) + delimiter).encode(code)


def described(
    names: Sequence[str] = ("FSC-A", "FL1-A"),
    *,
    n_events: int = 2,
    n_bytes: int | None = None,
    bits: int | Sequence[int] = 32,
    **keywords: str | None,
) -> dict[str, str]:
    """Keywords of floats; by name without ``$`` they are replaced, or removed by None."""
    widths = [bits] * len(names) if isinstance(bits, int) else list(bits)
    size = n_events * sum(widths) // 8 if n_bytes is None else n_bytes
    text: dict[str, str | None] = {
        "BEGINDATA": str(DATA_START),
        "ENDDATA": str(DATA_START + size - 1),
        "BYTEORD": "1,2,3,4",
        "DATATYPE": "F",
        "MODE": "L",
        "NEXTDATA": "0",
        "PAR": str(len(names)),
        "TOT": str(n_events),
    }
    for n, (name, width) in enumerate(zip(names, widths, strict=True), start=1):
        text |= {f"P{n}N": name, f"P{n}B": str(width), f"P{n}E": "0,0", f"P{n}R": "1024"}
    return {f"${name}": value for name, value in (text | keywords).items() if value is not None}


def assembled(
    text: bytes,
    data: bytes,
    *,
    version: str = "3.1",
    header_data: tuple[int | str, int | str] | None = None,
    text_stop: int | None = None,
    filler: bytes = b" ",
) -> bytes:
    """HEADER, TEXT, `filler` up to DATA, and DATA."""
    places = (DATA_START, DATA_START + len(data) - 1) if header_data is None else header_data
    stop = 58 + len(text) - 1 if text_stop is None else text_stop
    header = f"FCS{version}    " + "".join(f"{n:>8}" for n in (58, stop, *places, 0, 0))
    head = header.encode() + text
    assert len(head) <= DATA_START
    return head + filler * (DATA_START - len(head)) + data


def write_floats(
    path: Path,
    values: Sequence[Sequence[float]],
    names: Sequence[str] = ("FSC-A", "FL1-A"),
    *,
    version: str = "3.1",
    header_data: tuple[int | str, int | str] | None = None,
    **keywords: str | None,
) -> Path:
    """A file of little-endian float32."""
    table = np.asarray(values, dtype="<f4")
    text = text_segment(described(names, n_events=len(table), **keywords))
    path.write_bytes(assembled(text, table.tobytes(), version=version, header_data=header_data))
    return path


def packed_bits(values: np.ndarray, bits: Sequence[int], *, little: bool) -> bytes:
    """Unsigned integers of any width, without padding: the first bit is the lowest if `little`."""
    stream = []
    for row in values.tolist():
        for value, width in zip(row, bits, strict=True):
            digits = [(value >> place) & 1 for place in range(width)]
            stream += digits if little else digits[::-1]
    return np.packbits(stream, bitorder="little" if little else "big").tobytes()
