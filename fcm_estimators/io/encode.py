"""Write one FCS 3.1 file of float32 events, completely or not at all."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from fcm_estimators.exceptions import InvalidInputError

# Keywords that are written anew; those of the original file are ignored.
_STRUCTURE = re.compile(
    r"\$(P\d+[BENRSG]|P\d+DATATYPE|(BEGIN|END)(DATA|ANALYSIS|STEXT)|BYTEORD|DATATYPE|MODE"
    r"|NEXTDATA|PAR|TOT|UNICODE)"
)
# Keywords that FCS 2.0 to 3.2 define, besides those of the structure.
_STANDARD = re.compile(
    r"P\d+([DFLOPTV]|ANALYTE|CALIBRATION|DET|FEATURE|TAG|TYPE)|ABRT|BTIM|CARRIER(ID|TYPE)|CELLS"
    r"|COM|COMP|CSMODE|CSVBITS|CSV\d+FLAG|CYT|CYTSN|CYTNUM|DATE|(BEGIN|END)DATETIME|DFC\d+TO\d+"
    r"|ETIM|EXP|FIL|FLOWRATE|G\d+[EFNPRSTV]|GATE|GATING|INST|LAST_MODIFIED|LAST_MODIFIER|LOCATIONID"
    r"|LOST|OP|ORIGINALITY|PK\d+|PKN\d+|PLATEID|PLATENAME|PROJ|R\d+[IW]|SMNO|SPILLOVER|SRC|SYS"
    r"|TIMESTEP|TIMETICKS|TR|UNSTAINED(CENTERS|INFO)|VOL|WELLID"
)
# Every reader takes these, also those that use them in a regular expression.
_DELIMITERS = "\x0c|/!~\\*\x1e"
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
        Further keywords as they shall stand in the file, with ``$`` where the standard defines
        them. Those that describe the structure of a file are ignored; those without a value,
        which FCS does not allow, are left out.

    Warns
    -----
    UserWarning
        If keywords without a value are left out.

    Raises
    ------
    InvalidInputError
        If the file cannot be written, or its keywords leave no delimiter.

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
        "$BEGINANALYSIS": "0",
        "$ENDANALYSIS": "0",
        "$BEGINSTEXT": "0",
        "$ENDSTEXT": "0",
        "$BYTEORD": "1,2,3,4",
        "$DATATYPE": "F",
        "$MODE": "L",
        "$NEXTDATA": "0",
        "$PAR": str(len(parameters)),
        "$TOT": str(len(events)),
    }
    for number, letters in enumerate(parameters, start=1):
        described = {"B": "32", "E": "0,0", **letters}
        entries.update({f"$P{number}{letter}": value for letter, value in described.items()})
    kept = {k: v for k, v in keywords.items() if not _STRUCTURE.fullmatch(k.upper())}
    entries.update({name: value for name, value in kept.items() if value})
    if empty := [name for name, value in kept.items() if not value]:
        warnings.warn(
            f"{path.name}: FCS has no empty values, so these keywords were not written: "
            f"{', '.join(empty)}.",
            UserWarning,
            stacklevel=3,
        )

    # Offsets have a fixed width, so filling them in does not change the length of TEXT.
    blank = {"$BEGINDATA": "0" * _OFFSET_WIDTH, "$ENDDATA": "0" * _OFFSET_WIDTH}
    start = _TEXT_START + len(_encode({**blank, **entries}, path))
    stop = start + events.size * 4 - 1
    offsets = {"$BEGINDATA": f"{start:0{_OFFSET_WIDTH}d}", "$ENDDATA": f"{stop:0{_OFFSET_WIDTH}d}"}
    text = _encode({**offsets, **entries}, path)
    data = (start, stop) if stop <= _LARGEST_HEADER_OFFSET else (0, 0)
    header = "FCS3.1    " + "".join(f"{n:>8d}" for n in (_TEXT_START, start - 1, *data, 0, 0))
    _replace(path, header.ljust(_TEXT_START).encode("ascii") + text, events)


def standard_name(keyword: str) -> str:
    """Keyword with the ``$`` that it has in the standard.

    Examples
    --------
    >>> from fcm_estimators.io.encode import standard_name
    >>> standard_name("CYT"), standard_name("WINDOW EXTENSION")
    ('$CYT', 'WINDOW EXTENSION')
    """
    return f"${keyword}" if _STANDARD.fullmatch(keyword.upper()) else keyword


def _encode(entries: Mapping[str, str], path: Path) -> bytes:
    delimiter = _delimiter(entries, path)
    fields = [text.replace(delimiter, delimiter * 2) for pair in entries.items() for text in pair]
    return (delimiter + delimiter.join(fields) + delimiter).encode()


def _delimiter(entries: Mapping[str, str], path: Path) -> str:
    """A character that is not in the keywords, or one that is doubled inside values."""
    used = set().union(*entries, *entries.values())
    if unused := [d for d in _DELIMITERS if d not in used]:
        return unused[0]
    # A value cannot begin with its delimiter, and one at its end confuses some readers.
    inside = [
        d
        for d in _DELIMITERS
        if not any(d in name or d in (value[0], value[-1]) for name, value in entries.items())
    ]
    if not inside:
        raise InvalidInputError(
            f"Cannot write {path.name}: its keywords use all of {_DELIMITERS!r}, so there is no "
            "character to separate them. Remove one of these characters from the keywords."
        )
    return inside[0]


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
