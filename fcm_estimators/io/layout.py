"""Where the events of a data set lie, and how one event is laid out in bytes or bits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fcm_estimators.exceptions import FcsError
from fcm_estimators.io.keywords import listed
from fcm_estimators.io.text import HEADER_SIZE, Content, DataSet, optional_offset

_LARGEST_HEADER_OFFSET = 99_999_999
# HEADER may end TEXT a few bytes too late; more is an overlap.
_SLACK = 8
_CHUNK_BYTES = 1 << 22
_FLOAT_BITS = {"F": 32, "D": 64}


@dataclass(frozen=True)
class Layout:
    """One event: the type ("F", "D" or "I"), bits of value and bits of storage of each parameter.

    Values of whole bytes lie one after the other. If `packed`, values of any number of bits do,
    without padding between events.
    """

    kinds: tuple[str, ...]
    bits: tuple[int, ...]
    stored: tuple[int, ...]
    little: bool
    packed: bool = False

    def n_bytes(self, n_events: int) -> int:
        """Bytes of that many events."""
        return -(-n_events * sum(self.stored) // 8)

    def n_events(self, n_bytes: int) -> int:
        """Whole events in that many bytes."""
        return n_bytes * 8 // sum(self.stored)

    @property
    def uniform(self) -> np.dtype | None:
        """The numpy type of all parameters, None if there is not one for all."""
        if self.packed or len(set(zip(self.kinds, self.stored, strict=True))) != 1:
            return None
        return self._plain(0)

    def _plain(self, index: int) -> np.dtype | None:
        size = self.stored[index] // 8
        if self.kinds[index] == "I" and size not in (1, 2, 4, 8):
            return None
        letter = "u" if self.kinds[index] == "I" else "f"
        return np.dtype(f"{'<' if self.little else '>'}{letter}{size}")

    def chunks(
        self, content: Content, start: int, n_events: int
    ) -> Iterator[tuple[slice, list[np.ndarray]]]:
        """Yield the rows of a chunk of events and one array of stored values per parameter."""
        # A multiple of 8 events begins and ends at a whole byte.
        step = max(_CHUNK_BYTES // max(sum(self.stored), 1), 1) * 8
        for first in range(0, n_events, step):
            count = min(step, n_events - first)
            raw = np.empty(self.n_bytes(count), dtype=np.uint8)
            content.fill(start + self.n_bytes(first), raw)
            yield slice(first, first + count), self._columns(raw, count)

    def _columns(self, raw: np.ndarray, count: int) -> list[np.ndarray]:
        if self.packed:
            return self._from_bits(raw, count)
        if self.uniform is not None:
            return list(raw.view(self.uniform).reshape(count, -1).T)
        table = raw.reshape(count, -1)
        ends = np.cumsum(self.stored) // 8
        columns = []
        for index, end in enumerate(ends):
            part = table[:, end - self.stored[index] // 8 : end]
            plain = self._plain(index)
            columns.append(
                _whole(part, self.little)
                if plain is None
                else np.ascontiguousarray(part).view(plain)[:, 0]
            )
        return columns

    def _from_bits(self, raw: np.ndarray, count: int) -> list[np.ndarray]:
        order = "little" if self.little else "big"
        width = sum(self.stored)
        table = np.unpackbits(raw, count=count * width, bitorder=order).reshape(count, width)  # type: ignore[call-overload]
        columns, first = [], 0
        for size in self.stored:
            columns.append(_whole(table[:, first : first + size], self.little, bits=1))
            first += size
        return columns


def _whole(parts: np.ndarray, little: bool, bits: int = 8) -> np.ndarray:
    """Unsigned integers of the bytes or bits in each row."""
    total = np.zeros(len(parts), dtype=np.uint64)
    for part in parts.T[::-1] if little else parts.T:
        total = (total << np.uint64(bits)) | part
    return total


def layouts(data: DataSet, count: int) -> list[Layout]:
    """Every layout of an event that the keywords allow, the most literal one first."""
    default = data.keywords.get("DATATYPE", "").upper()
    kinds = [data.keywords.get(f"P{n}DATATYPE", "").upper() or default for n in range(1, count + 1)]
    if wrong := sorted({kind for kind in (default, *kinds) if kind not in ("I", "F", "D")}):
        raise FcsError(
            f"{data.path.name}: $DATATYPE is {', '.join(wrong)}; expected I (unsigned integer), F "
            "or D (floating point). Export the file as floating point."
        )
    bits = [
        _FLOAT_BITS[kind] if kind in _FLOAT_BITS else data.whole(f"P{n}B")
        for n, kind in enumerate(kinds, start=1)
    ]
    if odd := [f"$P{n}B is {width}" for n, width in enumerate(bits, 1) if not 1 <= width <= 64]:
        raise FcsError(
            f"{data.path.name}: {listed(odd)} bits; expected 1 to 64. Export the file again."
        )
    little = _little_endian(data)
    literal = Layout(tuple(kinds), tuple(bits), tuple(bits), little)
    if not any(width % 8 for width in bits):
        return [literal]
    words = tuple(-(-width // 8) * 8 for width in bits)
    powers = tuple(1 << max(width - 1, 7).bit_length() for width in bits)
    packed = Layout(tuple(kinds), tuple(bits), tuple(bits), little, packed=True)
    return [packed, *(Layout(tuple(kinds), tuple(bits), w, little) for w in {words, powers})]


def _little_endian(data: DataSet) -> bool:
    order = [part.strip() for part in data.required("BYTEORD").split(",")]
    ascending = [str(i + 1) for i in range(len(order))]
    if order not in (ascending, ascending[::-1]):
        raise FcsError(
            f"{data.path.name}: $BYTEORD is {data.keywords.get('BYTEORD', '')!r}; expected 1,2,3,4 "
            "or 4,3,2,1."
        )
    return order == ascending


def find_events(data: DataSet, count: int) -> tuple[Layout, int, int]:
    """Choose the layout and find the events.

    Returns
    -------
    tuple
        The layout, the number of events and the position of the first one in the file.

    Raises
    ------
    FcsError
        If HEADER and TEXT give no place, or two places, that fit the number of events.
    """
    candidates = layouts(data, count)
    pairs = _pairs(data)
    total = _total(data, candidates, pairs)
    if total < 0:
        raise FcsError(f"{data.path.name}: $TOT is {total}; expected the number of events.")
    fitting = [
        layout
        for slack in (0, 1)
        for layout in candidates
        if any(last - first + 1 == layout.n_bytes(total) + slack for first, last in pairs.values())
    ]
    layout = fitting[0] if fitting else candidates[0]
    if len(candidates) > 1:
        kind = "packed bits" if layout.packed else f"words of {listed_bits(layout)} bits"
        data.notes.add(
            f"$PnB is {listed_bits(candidates[0])} bits; by the length of DATA, values were read "
            f"as {kind}."
        )
    return layout, total, _data_start(data, pairs, total, layout.n_bytes(total))


def listed_bits(layout: Layout) -> str:
    """The different widths of storage, in words."""
    return ", ".join(map(str, sorted(set(layout.stored))))


def _pairs(data: DataSet) -> dict[str, tuple[int, int]]:
    """First and last byte of DATA by the place that gives them; 0 and 0 mean no place."""
    begin = optional_offset(data.keywords, "BEGINDATA", data.notes) or 0
    end = optional_offset(data.keywords, "ENDDATA", data.notes) or 0
    found = {"HEADER": data.header_data, "TEXT": (begin, end)}
    return {where: pair for where, pair in found.items() if pair[0] != 0}


def _total(data: DataSet, candidates: list[Layout], pairs: dict[str, tuple[int, int]]) -> int:
    """``$TOT``; FCS 2.0 may lack it, then the length of DATA tells."""
    if data.version != "2.0" or data.keywords.get("TOT"):
        return data.whole("TOT")
    for first, last in pairs.values():
        length = last - first + 1
        for layout in candidates[::-1]:
            count = layout.n_events(length)
            if length > 0 and length - layout.n_bytes(count) in (0, 1):
                data.notes.add(
                    f"$TOT is absent; {count} events were read, as many as DATA at bytes {first} "
                    f"to {last} holds."
                )
                return count
    raise FcsError(
        f"{data.path.name}: the keyword $TOT is absent and DATA at {_places(pairs)} does not hold "
        "a whole number of events. Export the file again."
    )


def _places(pairs: dict[str, tuple[int, int]]) -> str:
    texts = [f"bytes {first} to {last} by {where}" for where, (first, last) in pairs.items()]
    return ", ".join(texts) or "no place"


def _data_start(data: DataSet, pairs: dict[str, tuple[int, int]], total: int, expected: int) -> int:
    """Absolute position of the first event, by the offsets that fit its length."""
    if expected == 0:
        return data.offset + data.size
    inside = {
        where: pair
        for where, pair in pairs.items()
        if pair[0] >= HEADER_SIZE and pair[0] + expected <= data.size
    }
    # Some writers give the byte after the last one; $TOT shows which of the two is meant.
    fits = {w: p for w, p in inside.items() if p[1] - p[0] + 1 in (expected, expected + 1)}
    # The end may be unknown (0, eight nines, the beginning) or cut to 32 bits.
    open_ended = {
        where: (first, last)
        for where, (first, last) in inside.items()
        if last in (0, _LARGEST_HEADER_OFFSET, first)
        or (last != first + expected - 1 and (first + expected - 1 - last) % 2**32 == 0)
    }
    chosen = _outside_text(data, fits or open_ended, expected)
    starts = {first for first, _ in chosen.values()}
    if len(starts) > 1 and data.version == "2.0":
        starts = {chosen["HEADER"][0]}  # FCS 2.0 has offsets in HEADER only
    if len(starts) != 1:
        raise FcsError(_refusal(data, pairs, inside, starts, total, expected))
    start = starts.pop()
    _note_choice(data, pairs, start, expected)
    return data.offset + start


def _outside_text(
    data: DataSet, pairs: dict[str, tuple[int, int]], expected: int
) -> dict[str, tuple[int, int]]:
    return {
        where: (first, last)
        for where, (first, last) in pairs.items()
        if not any(
            first + expected > begin and first <= end - _SLACK for begin, end in data.text_segments
        )
    }


def _note_choice(
    data: DataSet, pairs: dict[str, tuple[int, int]], start: int, expected: int
) -> None:
    usual = {(start, start + expected - 1), (start, start + expected)}
    told = [
        pair
        for where, pair in pairs.items()
        # HEADER has no room for offsets above eight digits; then TEXT holds them.
        if not (where == "HEADER" and "TEXT" in pairs and pair[1] == _LARGEST_HEADER_OFFSET)
    ]
    if not usual.issuperset(told) or len(set(told)) > 1:
        data.notes.add(
            f"DATA lies at {_places(pairs)} (HEADER, or $BEGINDATA and $ENDDATA of TEXT); bytes "
            f"{start} to {start + expected - 1} were read, which fit $TOT."
        )


def _refusal(
    data: DataSet,
    pairs: dict[str, tuple[int, int]],
    inside: dict[str, tuple[int, int]],
    starts: set[int],
    total: int,
    expected: int,
) -> str:
    name, size = data.path.name, data.size
    if len(starts) > 1:
        (first, last), (begin, end) = pairs["HEADER"], pairs["TEXT"]
        return (
            f"{name}: HEADER puts DATA at bytes {first} to {last}, TEXT at {begin} to {end}. One "
            "of them is wrong; export the file again."
        )
    if not pairs:
        return (
            f"{name}: neither HEADER nor $BEGINDATA and $ENDDATA say where DATA is. Export the "
            "file again."
        )
    whole = [p for p in pairs.values() if p[1] - p[0] + 1 in (expected, expected + 1)]
    cut = [first + expected for first, _ in whole if first + expected > size]
    if cut:
        return (
            f"{name} is truncated: its events end at byte {data.offset + cut[0] - 1}, but the file "
            f"ends at byte {data.offset + size - 1}. Copy it again from its origin."
        )
    if any(first < HEADER_SIZE or last < first for first, last in pairs.values()) or whole:
        return f"{name}: DATA at {_places(pairs)} is impossible. Export the file again."
    first, last = next(iter((inside or pairs).values()))
    return (
        f"{name}: $TOT = {total} events need {expected} bytes, but DATA at bytes {first} to {last} "
        f"has {last - first + 1}. $TOT, $PAR, $PnB or the offsets are wrong."
    )
