"""Gates of one sample of a FlowJo workspace."""

from __future__ import annotations

from collections.abc import Iterable
from os import PathLike
from pathlib import Path

from fcm_estimators.gating._flowjo import WorkspaceSample, import_sample, names_of, workspace
from fcm_estimators.gating._nodes import Imported, Unreadable
from fcm_estimators.gating._samples import Candidate, position_of


def read_flowjo(
    path: str | PathLike[str],
    sample: str | None,
    wanted: Iterable[str] | None,
    unreadable: Unreadable = "error",
    digest: str = "",
) -> Imported:
    """Gates of one sample; arguments as :meth:`GatingTree.from_flowjo`.

    ``digest`` is that of the ``$FIL`` of the file (:func:`~fcm_estimators.io.record.file_digest`).
    """
    found = _found(path, sample, digest)
    return import_sample(found, Path(path).name, wanted, unreadable)


def population_names(
    path: str | PathLike[str], sample: str | None = None, digest: str = ""
) -> list[str]:
    """Names of the gates of a sample, also of those that cannot be read; of all for None."""
    samples = workspace(path) if sample is None else [_found(path, sample, digest)]
    names = [name for each in samples for name in names_of(each, Path(path).name)]
    return list(dict.fromkeys(names))


def _found(path: str | PathLike[str], sample: str | None, digest: str) -> WorkspaceSample:
    samples = workspace(path)
    candidates = [Candidate(s.name, s.path, s.file_name, s.number) for s in samples]
    return samples[position_of(candidates, sample, Path(path).name, digest)]


def flowjo_samples(path: str | PathLike[str]) -> list[str]:
    """Names of the samples of a workspace."""
    return [sample.name for sample in workspace(path)]
