"""Public data sets, downloaded once and checked at every use."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pooch
from anndata import AnnData

from fcm_estimators.datasets._checksums import ALL494, FLOWJO_EXAMPLE, MULTICENTER_CYTOF
from fcm_estimators.exceptions import DataUnavailableError, InvalidInputError

_ALL494_ORIGIN = (
    "https://raw.githubusercontent.com/CaRniFeXeR/python4FCM_Examples/"
    "9f1fc6a047ab89f2b58d96242cf34761bc7f3d83/data/"
)
_CYTOF_ORIGIN = (
    "https://raw.githubusercontent.com/KlugerLab/deepcytof/"
    "ac924b10a77cf2d5c7ea43ea39a172898d71abb1/Data/MultiCenter_16sample/"
)
_FLOWJO_ORIGIN = (
    "https://raw.githubusercontent.com/whitews/FlowKit/"
    "f2159043b6a56e527d4baacf97490caf8354618e/data/simple_line_example/"
)
_CYTOF_CLASSES = ["other", "B", "CD4 T", "CD8 T", "monocyte"]
_CYTOF_NOTES = {
    "c0": "B-cell marker",
    "c1": "B-cell marker",
    "c2": "CD45-like",
    "c3": "CD33- or CD14-like",
    "c4": "unknown",
    "c5": "CD8",
    "c6": "CD3",
    "c7": "CD4",
}


def _fetch(folder: str, names: Sequence[str], hashes: Mapping[str, str], origin: str) -> list[Path]:
    """Paths of local files, after checking them and downloading missing ones.

    Raises
    ------
    DataUnavailableError
        If a file is missing and cannot be downloaded, or its checksum is wrong.
    """
    home = os.environ.get("FCM_DATA_HOME")
    base = Path(home) if home else Path(pooch.os_cache("fcm-estimators"))
    paths = []
    for name in names:
        path = base / folder / name
        if path.exists():
            found = pooch.file_hash(str(path))
            if found != hashes[name]:
                raise DataUnavailableError(
                    f"{path} has SHA-256 {found}, expected {hashes[name]}: the file is damaged or "
                    f"not the published one. Remove it to download it again from {origin}{name}."
                )
        else:
            _download(path, origin + name, hashes[name])
        paths.append(path)
    return paths


def _download(path: Path, url: str, sha256: str) -> None:
    try:
        pooch.retrieve(url, f"sha256:{sha256}", fname=path.name, path=path.parent)
    except (OSError, ValueError) as error:
        # requests raises OSErrors; pooch raises a ValueError with the checksum that it found.
        reason = str(error) if isinstance(error, ValueError) else type(error).__name__
        raise DataUnavailableError(
            f"{path.name} is not in {path.parent} and could not be downloaded from {url} "
            f"({reason}). Connect to the network, or download it by hand into that "
            "folder, or set the environment variable FCM_DATA_HOME to a folder that has it. "
            "datasets.simulate_cohort needs no download."
        ) from error


def fetch_all494() -> AnnData:
    """Bone marrow of a child with B-cell acute lymphoblastic leukaemia, with expert gates.

    83,411 events and 12 channels, not compensated (the spillover matrix is in the file) and not
    transformed. FCS 3.0, BD FACSDiva. 41.0 % of all and 44.1 % of intact events are blasts.

    Returns
    -------
    AnnData
        Sample "494" as :func:`~fcm_estimators.read_fcs` returns it, with

        - ``obsm["gates"]``: DataFrame of bool, expert gates allevents, syto, singlets, intact,
          erythropoiesis, cd19, cd20, blast;
        - ``obs["cell_type"]``: Categorical, "blast" or "other".

    Raises
    ------
    DataUnavailableError
        If the files are not in the folder ``all494`` of ``FCM_DATA_HOME`` (default: the user's
        cache) and cannot be downloaded, or their checksum is wrong.

    References
    ----------
    github.com/CaRniFeXeR/python4FCM_Examples, MIT licence, (c) 2023 Florian Kowarsch.

    Examples
    --------
    >>> from fcm_estimators.datasets import fetch_all494
    >>> adata = fetch_all494()  # doctest: +SKIP
    >>> adata.obs["cell_type"].value_counts()["blast"]  # doctest: +SKIP
    34174
    """
    from fcm_estimators.io import read_fcs
    from fcm_estimators.labels import gates_from_csv, labels_from_gates

    fcs, csv = _fetch("all494", list(ALL494), ALL494, _ALL494_ORIGIN)
    adata = read_fcs(fcs)
    gates_from_csv(adata, csv)
    labels_from_gates(adata, {"blast": "blast"}, default="other")
    return adata


def fetch_flowjo_example() -> tuple[Path, Path]:
    """FCS file of 100 events, and the workspace in which FlowJo 10.7 gated it.

    The gates are ``poly1``, a polygon that holds 50 events, and ``rect1``, a rectangle that holds
    none. The counts saved with them are both 0.

    Returns
    -------
    fcs, workspace : Path

    Raises
    ------
    DataUnavailableError
        As for :func:`fetch_all494`; the folder is ``flowjo_example``.

    References
    ----------
    github.com/whitews/FlowKit, BSD-3-Clause, (c) 2018 Scott White.

    Examples
    --------
    >>> from fcm_estimators.datasets import fetch_flowjo_example
    >>> from fcm_estimators.gating import GatingTree
    >>> fcs, workspace = fetch_flowjo_example()  # doctest: +SKIP
    >>> list(GatingTree.from_flowjo(workspace).gates)  # doctest: +SKIP
    ['poly1', 'rect1']
    """
    fcs, workspace = _fetch("flowjo_example", list(FLOWJO_EXAMPLE), FLOWJO_EXAMPLE, _FLOWJO_ORIGIN)
    return fcs, workspace


def _sample_numbers(samples: Sequence[int] | None) -> list[int]:
    if samples is None:
        return list(range(1, 17))
    known = isinstance(samples, Iterable) and all(n in range(1, 17) for n in samples)
    if not known or not len(samples) or len(set(samples)) < len(samples):
        raise InvalidInputError(
            f"samples must be a list of different numbers from 1 to 16, got {samples!r}."
        )
    return [int(n) for n in samples]


def fetch_multicenter_cytof(samples: Sequence[int] | None = None) -> AnnData:
    """Blood of 16 healthy donors by mass cytometry, in two batches with a clear shift.

    28,637 to 77,094 cells per donor, 8 markers, raw dual counts. Transform them with
    ``ArcsinhTransform(cofactor=5)``. CyTOF data need no compensation.

    Parameters
    ----------
    samples : sequence of int, optional
        Samples to fetch, from 1 to 16. Default: all.

    Returns
    -------
    AnnData
        Cells x 8 markers, float32, ``var_names`` ``c0`` to ``c7``. The origin does not name
        the markers; ``var["note"]`` holds the names that class medians suggest.

        - ``obs["sample"]``: Categorical "sample1" ... in the order of ``samples``;
        - ``obs["event"]``: int, row in the file;
        - ``obs["batch"]``: "batch1" for samples 1 to 8, "batch2" for 9 to 16;
        - ``obs["cell_type"]``: Categorical "other" (unlabelled in the origin), "B", "CD4 T",
          "CD8 T", "monocyte";
        - ``obsm["gates"]``: DataFrame of bool: T (CD4 or CD8), CD4, CD8, B, Mono.

    Raises
    ------
    InvalidInputError
        If ``samples`` is empty, repeats a number, or has one outside of 1 to 16.
    DataUnavailableError
        As for :func:`fetch_all494`; the folder is ``multicenter_cytof``.

    References
    ----------
    github.com/KlugerLab/deepcytof, Apache-2.0; Li et al., *Gating mass cytometry data by deep
    learning*, Bioinformatics 2017.

    Examples
    --------
    >>> from fcm_estimators.datasets import fetch_multicenter_cytof
    >>> fetch_multicenter_cytof([15]).shape  # doctest: +SKIP
    (28637, 8)
    """
    numbers = _sample_numbers(samples)
    names = [f"{kind}{n}.csv" for n in numbers for kind in ("sample", "labels")]
    paths = _fetch("multicenter_cytof", names, MULTICENTER_CYTOF, _CYTOF_ORIGIN)
    x = [pd.read_csv(path, header=None, dtype=np.float32).to_numpy() for path in paths[::2]]
    codes = np.concatenate([np.loadtxt(path, dtype=np.int64) for path in paths[1::2]])
    sizes = [len(block) for block in x]
    number = np.repeat(numbers, sizes)
    event = np.concatenate([np.arange(n) for n in sizes])
    sample_names = [f"sample{n}" for n in numbers]
    sample = pd.Categorical(np.repeat(sample_names, sizes), categories=sample_names)
    obs = pd.DataFrame(
        {
            "sample": sample,
            "event": event,
            "batch": pd.Categorical(np.where(number <= 8, "batch1", "batch2")),
            "cell_type": pd.Categorical(np.array(_CYTOF_CLASSES)[codes], categories=_CYTOF_CLASSES),
        },
        index=[f"sample{n}:{e}" for n, e in zip(number, event, strict=True)],
    )
    var = pd.DataFrame(
        {
            "channel": list(_CYTOF_NOTES),
            "marker": list(_CYTOF_NOTES),
            "kind": "mass",
            "range": np.max([block.max(0) for block in x], axis=0).astype(np.float64),
            "compensated": False,
            "transform": "none",
            "note": list(_CYTOF_NOTES.values()),
        },
        index=list(_CYTOF_NOTES),
    )
    cd4, cd8 = codes == 2, codes == 3
    gates = {"T": cd4 | cd8, "CD4": cd4, "CD8": cd8, "B": codes == 1, "Mono": codes == 4}
    return AnnData(
        np.concatenate(x), obs=obs, var=var, obsm={"gates": pd.DataFrame(gates, index=obs.index)}
    )
