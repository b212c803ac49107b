"""Trees of the files that other software writes, whichever it is."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from fcm_estimators.gating._gatingml import gate_names
from fcm_estimators.gating._tree import GatingTree
from fcm_estimators.gating._workspaces import population_names, read_flowjo

WORKSPACE = ".wsp"
TREE_ENDINGS = (".xml", WORKSPACE)


def is_workspace(path: str | PathLike[str]) -> bool:
    """Whether a file is a FlowJo workspace, by its ending."""
    return Path(path).suffix.lower() == WORKSPACE


def tree_of_sample(
    path: str | PathLike[str],
    sample: str,
    *,
    digest: str = "",
    gates: Sequence[str] | None = None,
) -> GatingTree:
    """Read the gates of one sample from a Gating-ML file or a FlowJo workspace.

    Parameters
    ----------
    path : path
    sample : str
        Name of the sample in the data.
    digest : str, default ""
        Digest of the ``$FIL`` of its file (:func:`~fcm_estimators.io.record.file_digests`).
    gates : sequence of str, optional
        As in :meth:`GatingTree.from_flowjo`.
    """
    if not is_workspace(path):
        return GatingTree.from_gatingml(path, gates=gates, sample=sample)
    found = read_flowjo(path, sample, gates, digest=digest)
    return GatingTree(found.gates, spillover=found.spillover)


def names_in(path: str | PathLike[str]) -> list[str]:
    """Names of all gates of a file, of all samples of a workspace."""
    if not is_workspace(path):
        return gate_names(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # told when the gates of a sample are read
        return population_names(path)
