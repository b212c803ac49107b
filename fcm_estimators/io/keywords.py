"""Split the TEXT of an FCS file into keywords and values, by the standard and with tolerance."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

from fcm_estimators.exceptions import FcsError

# Blanks, line ends and NUL around keywords and values are padding.
PADDING = " \t\r\n\0"
_PADDING = PADDING.encode()
_LISTED = 5
_STANDARD = re.compile(
    r"\$(P\d+[A-Z]+|(BEGIN|END)(DATA|STEXT|ANALYSIS)|BYTEORD|DATATYPE|MODE|NEXTDATA|PAR|TOT"
    r"|SPILLOVER|TIMESTEP|CYT)"
)
_NAME = re.compile(r"\$?P\d+[NS]")


@dataclass
class Notes:
    """What was guessed, dropped or replaced while a file was read; :meth:`warn` tells it."""

    file: str
    texts: list[str] = field(default_factory=list)
    groups: dict[str, list[str]] = field(default_factory=dict)

    def add(self, text: str) -> None:
        """Remember one remark; a repeated one is told once."""
        if text not in self.texts:
            self.texts.append(text)

    def group(self, what: str, keyword: str) -> None:
        """Remember a keyword of which the same is to be said as of others."""
        self.groups.setdefault(what, []).append(keyword)

    def warn(self) -> None:
        """Issue a UserWarning for every remark, then forget them."""
        for what, keywords in self.groups.items():
            self.add(f"{listed(keywords)} {what}")
        self.groups.clear()
        for text in self.texts:
            warnings.warn(f"{self.file}: {text}", UserWarning, stacklevel=3)
        self.texts.clear()


def listed(items: Sequence[str]) -> str:
    """Join the first few items by commas, and say how many follow."""
    more = f" and {len(items) - _LISTED} more" if len(items) > _LISTED else ""
    return ", ".join(items[:_LISTED]) + more


def parse_text(raw: bytes, notes: Notes) -> list[tuple[str, str]]:
    """Split a TEXT segment into keywords and values.

    Parameters
    ----------
    raw : bytes
        The segment; its first byte is the delimiter.
    notes : Notes
        Takes the remarks on what is ambiguous or dropped.

    Returns
    -------
    list of (str, str)
        Keywords and values in file order, as they stand there: keywords without the blanks and
        line ends around them, values without trailing NUL. Each is decoded as UTF-8, or else as
        Latin-1.

    Raises
    ------
    FcsError
        If the segment is empty or its delimiter is "$", with which keywords begin.

    Notes
    -----
    A delimiter inside a value is doubled. A value does not begin with a delimiter, so two in a row
    after a keyword mean an empty value. Three in a row after a keyword are read as an escaped
    delimiter at the beginning of the value, with a remark. The last delimiter may be missing.

    References
    ----------
    Spidlen et al., Data File Standard for Flow Cytometry, version FCS 3.1, Cytometry A 77A (2010).

    Examples
    --------
    >>> from fcm_estimators.io.keywords import Notes, parse_text
    >>> parse_text(b"/$P1S//$OP/a//b/$TOT/12", Notes("x.fcs"))
    [('$P1S', ''), ('$OP', 'a/b'), ('$TOT', '12')]
    """
    if not raw:
        raise FcsError(f"{notes.file}: TEXT is empty. Copy the file again from its origin.")
    delimiter = raw[:1]
    if delimiter == b"$":
        raise FcsError(
            f"{notes.file}: TEXT has the delimiter '$', with which keywords begin, so they cannot "
            "be told apart. Export the file again."
        )
    body = raw[1:].rstrip(_PADDING.replace(delimiter, b""))
    pairs = _Splitter(body.split(delimiter), delimiter, notes).pairs()
    found = [(_decoded(name).strip(PADDING), _decoded(value).rstrip("\0")) for name, value in pairs]
    for (name, text), (_, value) in zip(found, pairs, strict=True):
        if _NAME.fullmatch(name.upper()) and text.encode() != value.rstrip(b"\0"):
            notes.group("not in UTF-8; read as Latin-1.", f"{name}={text}")
    return found


class _Splitter:
    """Walk through the pieces between delimiters; an empty piece is a doubled delimiter."""

    def __init__(self, pieces: list[bytes], delimiter: bytes, notes: Notes) -> None:
        self.pieces, self.delimiter, self.notes = pieces, delimiter, notes
        self.at = 0

    def pairs(self) -> list[tuple[bytes, bytes]]:
        found = []
        while self.at < len(self.pieces):
            name = self.pieces[self.at]
            self.at += 1
            if name.strip(_PADDING):
                found.append((name, self._value(name)))
            elif self.at < len(self.pieces):
                self.notes.add(
                    "TEXT has a delimiter where a keyword is expected"
                    + (f" after {_show(found[-1][0])}" if found else "")
                    + "; it was passed over."
                )
        return found

    def _empty_pieces(self) -> int:
        start = self.at
        while self.at < len(self.pieces) and not self.pieces[self.at]:
            self.at += 1
        return self.at - start

    def _value(self, name: bytes) -> bytes:
        if self.at == len(self.pieces):
            self._say_without_value(name)
            return b""
        delimiters = self._empty_pieces() + 1
        if self.at == len(self.pieces):  # nothing else follows
            return self.delimiter * max((delimiters - 2) // 2, 0)
        if delimiters == 1:
            return self._rest(name, b"")
        if delimiters == 2:  # the next piece is a keyword
            return b""
        self.notes.add(
            f"{_show(name)} is followed by {delimiters} delimiters; they were read as an escaped "
            "delimiter at the beginning of its value."
        )
        escaped = self.delimiter * ((delimiters - 1) // 2)
        return escaped if delimiters % 2 == 0 else self._rest(name, escaped)

    def _rest(self, name: bytes, value: bytes) -> bytes:
        while True:
            value += self.pieces[self.at]
            self.at += 1
            if self.at == len(self.pieces):
                return value  # no final delimiter
            delimiters = self._empty_pieces() + 1
            if self.at == len(self.pieces):  # the end of TEXT; one of the delimiters ends the value
                return value + self.delimiter * ((delimiters - 2) // 2)
            value += self.delimiter * (delimiters // 2)
            if delimiters % 2:
                return value
            following = self.pieces[self.at]
            if _STANDARD.fullmatch(following.strip(_PADDING).decode("latin-1").upper()):
                self.notes.add(
                    f"the value of {_show(name)} has a doubled delimiter before "
                    f"{_show(following)}; it was read as an escaped delimiter, so "
                    f"{_show(following)} is part of the value."
                )

    def _say_without_value(self, name: bytes) -> None:
        self.notes.add(f"TEXT ends after the keyword {_show(name)}, which was read as empty.")


def _show(raw: bytes) -> str:
    text = raw.strip(_PADDING).decode("utf-8", errors="replace")
    return text if text.isprintable() and len(text) <= 40 else ascii(text[:40])


def _decoded(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def lookup(pairs: Sequence[tuple[str, str]], notes: Notes) -> dict[str, str]:
    """Values by upper-case name without ``$``; of two, the standard keyword and the first count.

    Examples
    --------
    >>> from fcm_estimators.io.keywords import Notes, lookup
    >>> lookup([("VOL", "1"), ("$vol", " 2 ")], Notes("x.fcs"))
    {'VOL': '2'}
    """
    standard: dict[str, str] = {}
    other: dict[str, str] = {}
    for name, value in pairs:
        upper, value = name.upper(), value.strip(PADDING)
        target = standard if upper.startswith("$") else other
        key = upper.removeprefix("$")
        if target.setdefault(key, value) != value:
            notes.add(
                f"keyword {name} stands there twice; {target[key]!r} was taken, {value!r} ignored."
            )
    order = dict.fromkeys(name.upper().removeprefix("$") for name, _ in pairs)
    return {key: standard.get(key) or other.get(key) or "" for key in order}
