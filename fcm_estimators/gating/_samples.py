"""Find a sample among those of a workspace by what it may be called there."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from fcm_estimators._checks import listed
from fcm_estimators.exceptions import MissingKeyError
from fcm_estimators.io.record import file_digest

# Endings of files with events; CellQuest and MACSQuantify number them, others name the well.
_ENDING = re.compile(r"(?:\.(?:fcs|lmd|h5ad|zarr|gz|\d{3}|[a-p]\d{1,2}))+$", re.IGNORECASE)
_SHOWN = 50


class Candidate(NamedTuple):
    """What a sample is called: its name, the path of its file, and the ``$FIL`` of the file."""

    name: str
    path: str = ""
    file_name: str = ""
    number: str = ""

    def described(self) -> str:
        """Describe the sample in a message: its name, and its file where that is another one."""
        base = self.path.rsplit("/", 1)[-1]
        other = [f"file {base}"] if base and base != self.name else []
        if self.file_name and self.file_name not in (self.name, base):
            other.append(f"$FIL {self.file_name}")
        return repr(self.name) + (f" ({', '.join(other)})" if other else "")


def matches(candidates: Sequence[Candidate], name: str, digest: str = "") -> list[int]:
    """Positions of the samples that a name means: of the first rule that finds any.

    The name may be that in the workspace, that of the file, its path, or the ``$FIL`` of the file;
    first as it is, then without the ending, then in any case, then without any ending.

    Parameters
    ----------
    candidates : sequence of Candidate
    name : str
    digest : str, default ""
        :func:`~fcm_estimators.io.record.file_digest` of the ``$FIL`` of the file.
    """
    for alike in (_equal, _equal_without_ending, _equal_in_any_case, _equal_with_any_ending):
        for called in (_by_name, _by_file, _by_folder, _by_original_name):
            found = [
                i
                for i, candidate in enumerate(candidates)
                if any(alike(text, name) for text in called(candidate, name) if text)
            ]
            if found:
                return found
    if digest:
        names = [(c.file_name, c.name, c.path) for c in candidates]
        return [i for i, called in enumerate(names) if digest in map(file_digest, called)]
    return []


def position_of(
    candidates: Sequence[Candidate], name: str | None, file: str, digest: str = ""
) -> int:
    """Position of the sample that a name means; of the only one for None.

    Raises
    ------
    MissingKeyError
        No sample is called so, or several are.
    """
    if name is None and len(candidates) == 1:
        return 0
    found = [] if name is None else matches(candidates, name, digest)
    if len(found) == 1:
        return found[0]
    if found:
        paths = ", ".join(repr(candidates[i].path or candidates[i].number) for i in found)
        raise MissingKeyError(
            f"{file} has {len(found)} samples {candidates[found[0]].name!r}, with gates of their "
            f"own: {paths}. Name the sample with the folder of its file, 'folder/file.fcs', or "
            "rename one of them in FlowJo."
        )
    if name is None:
        raise MissingKeyError(
            f"{file} has {len(candidates)} samples, {listed(c.name for c in candidates)}, and "
            "none of them was named. Give the name of one."
        )
    shown = ", ".join(c.described() for c in candidates[:_SHOWN]) or "none"
    rest = f" and {len(candidates) - _SHOWN} more" if len(candidates) > _SHOWN else ""
    raise MissingKeyError(
        f"{file} has no sample {name!r}; it has {shown}{rest}. Samples are matched by name, file "
        "name and $FIL, in any case and with any ending."
    )


def _by_name(candidate: Candidate, _: str) -> list[str]:
    return [candidate.name]


def _by_file(candidate: Candidate, _: str) -> list[str]:
    return [candidate.path.rsplit("/", 1)[-1]]


def _by_folder(candidate: Candidate, name: str) -> list[str]:
    """The end of the path with as many folders as the name has; and "folder_file"."""
    parts = candidate.path.strip("/").split("/")
    ending = "/".join(parts[-(name.count("/") + 1) :]) if "/" in name else ""
    return [ending, "_".join(parts[-2:]) if len(parts) > 1 else ""]


def _by_original_name(candidate: Candidate, _: str) -> list[str]:
    return [candidate.file_name]


def _equal(one: str, other: str) -> bool:
    return one == other


def _equal_without_ending(one: str, other: str) -> bool:
    return _ENDING.sub("", one) == _ENDING.sub("", other) != ""


def _equal_in_any_case(one: str, other: str) -> bool:
    return _folded(one) == _folded(other) != ""


def _equal_with_any_ending(one: str, other: str) -> bool:
    """Whether one of the names is the other with an ending that few programs write."""
    one, other = _folded(one), _folded(other)
    return other != "" and (one.rpartition(".")[0] == other or other.rpartition(".")[0] == one)


def _folded(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", _ENDING.sub("", text)).casefold().split())
