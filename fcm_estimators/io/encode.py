"""Write one FCS 3.1 file of float32 events, completely or not at all."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from flowio.fcs_keywords import FCS_STANDARD_KEYWORDS

from fcm_estimators.exceptions import InvalidInputError

# Keywords that are written anew; those of the original file are ignored.
_STRUCTURE = re.compile(
    r"P\d+[BENRSG]|P\d+DATATYPE|(BEGIN|END)(DATA|ANALYSIS|STEXT)|BYTEORD|DATATYPE|MODE|NEXTDATA"
    r"|PAR|TOT"
)
_STANDARD = re.compile(r"P\d+([BDEFGLNOPRSTV]|CALIBRATION)|TIMETICKS|CYTNUM|DFC\d+TO\d+|COMP")
_DELIMITERS = "\x0c|!~^*"
_TEXT_START = 256
_OFFSET_WIDTH = 20
_LARGEST_HEADER_OFFSET = 99_999_999


def save_fcs(
    path: Path,
    events: np.ndarray,
    parameters: Sequence[Mapping[str, str]],
    keywords: Mapping[str, str],
) -> None:
    """Write events, parameters and keywords as one FCS 3.1 file.

    Parameters
    ----------
    path : Path
        File to write. It is replaced in one step at the end and unchanged after any error.
    events : ndarray, shape (N, M)
        Scale values; they are stored as little-endian float32.
    parameters : sequence of mapping, length M
        Keyword letters of every parameter: ``N`` (name), ``R`` (range), optionally ``S``, ``G``.
    keywords : mapping of str to str
        Further keywords, upper case without ``$``. Those that describe the structure of a file
        are ignored.

    Raises
    ------
    InvalidInputError
        If the file cannot be written, or its keywords use every possible delimiter.

    References
    ----------
    Spidlen et al., Data File Standard for Flow Cytometry, version FCS 3.1, Cytometry A 77A (2010).

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> from fcm_estimators.io.encode import save_fcs
    >>> path = Path(tempfile.mkdtemp()) / "tiny.fcs"
    >>> save_fcs(path, np.ones((3, 1)), [{"N": "FSC-A", "R": "1024"}], {"CYT": "simulated"})
    >>> path.read_bytes()[:6]
    b'FCS3.1'
    """
    entries = {
        "BEGINANALYSIS": "0",
        "ENDANALYSIS": "0",
        "BEGINSTEXT": "0",
        "ENDSTEXT": "0",
        "BYTEORD": "1,2,3,4",
        "DATATYPE": "F",
        "MODE": "L",
        "NEXTDATA": "0",
        "PAR": str(len(parameters)),
        "TOT": str(len(events)),
    }
    for number, letters in enumerate(parameters, start=1):
        described = {"B": "32", "E": "0,0", **letters}
        entries.update({f"P{number}{letter}": value for letter, value in described.items()})
    entries.update({k: v for k, v in keywords.items() if not _STRUCTURE.fullmatch(k)})

    # Offsets have a fixed width, so filling them in does not change the length of TEXT.
    blank = {"BEGINDATA": "0" * _OFFSET_WIDTH, "ENDDATA": "0" * _OFFSET_WIDTH}
    start = _TEXT_START + len(_encode({**blank, **entries}, path))
    stop = start + events.size * 4 - 1
    offsets = {"BEGINDATA": f"{start:0{_OFFSET_WIDTH}d}", "ENDDATA": f"{stop:0{_OFFSET_WIDTH}d}"}
    text = _encode({**offsets, **entries}, path)
    data = (start, stop) if stop <= _LARGEST_HEADER_OFFSET else (0, 0)
    header = "FCS3.1    " + "".join(f"{n:>8d}" for n in (_TEXT_START, start - 1, *data, 0, 0))
    _replace(path, header.ljust(_TEXT_START).encode("ascii") + text, events)


def _encode(entries: Mapping[str, str], path: Path) -> bytes:
    # FCS has no empty values: two delimiters in a row stand for a literal one.
    pairs = [(_with_dollar(name), value or " ") for name, value in entries.items()]
    used = set("".join(name + value for name, value in pairs))
    delimiter = next((d for d in _DELIMITERS if d not in used), None)
    if delimiter is None:
        raise InvalidInputError(
            f"Cannot write {path.name}: its keywords use all of {_DELIMITERS!r}, so there is no "
            "character to separate them. Remove one of these characters from the keywords."
        )
    return (delimiter + delimiter.join(f for pair in pairs for f in pair) + delimiter).encode()


def _with_dollar(name: str) -> str:
    standard = name.lower() in FCS_STANDARD_KEYWORDS or _STANDARD.fullmatch(name)
    return f"${name}" if standard else name


def _replace(path: Path, head: bytes, events: np.ndarray) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with temporary.open("wb") as handle:
            handle.write(head)
            handle.write(np.ascontiguousarray(events, dtype="<f4").data)
        temporary.replace(path)
    except OSError as error:
        raise InvalidInputError(
            f"Cannot write {path}: {error.strerror}. Check the folder and its free space."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
