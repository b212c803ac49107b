"""The record of the original FCS files in ``adata.uns["fcs"]``.

All entries are flat arrays in the order of the samples. They can be saved as h5ad and zarr, and no
sample or channel name becomes a key. Spillover matrices differ in size between files; they are
stored one after the other, row by row.
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Iterable

import anndata as ad
import numpy as np
import pandas as pd

from fcm_estimators.exceptions import InvalidInputError, MissingKeyError

UNS_KEY = "fcs"
# Channels whose values the instrument compensated before it wrote the file.
INSTRUMENT_KEY = "instrument_compensated"
# How integers of log amplifiers and gains were decoded; absent if all integers are the values.
AMPLIFIER_KEY = "amplifiers"
_AMPLIFIER_COLUMNS = ("sample", "channel", "decades", "log_zero", "range", "gain")
# In ``uns``: the matrix with which the values of X were compensated.
COMPENSATION_KEY = "compensation"
# Digest of the name that each file had when it was acquired ($FIL), which may identify a person.
FILE_KEY = "fil_sha256"


def pack_fcs_record(
    samples: list[str],
    keywords: list[dict[str, str]],
    n_events: list[int],
    spillovers: list[pd.DataFrame | None],
) -> dict[str, np.ndarray | dict[str, np.ndarray]]:
    """Build ``uns["fcs"]`` from one entry per sample.

    Parameters
    ----------
    samples : list of str, length S
        Sample names, unique, in file order.
    keywords : list of dict, length S
        Keywords of each file without the leading ``$``. Names absent from a file become ``""``.
    n_events : list of int, length S
        Events in each original file.
    spillovers : list of DataFrame or None, length S
        Square matrices with the same ``$PnN`` names, in the same order, as index and columns. Row:
        the fluorochrome that spills; column: the detector. None where the file has no matrix.

    Returns
    -------
    dict
        ``sample``, ``n_events``, ``keywords`` (dict of arrays), ``spillover_size``,
        ``spillover_channels``, ``spillover_values``. Every array is in the order of `samples`.

    Raises
    ------
    InvalidInputError
        If the lists differ in length, a sample name repeats, or a spillover matrix is not square
        with equal labels on both axes.

    Examples
    --------
    >>> import pandas as pd
    >>> from fcm_estimators.io.record import pack_fcs_record
    >>> spill = pd.DataFrame([[1.0, 0.1], [0.0, 1.0]], ["FL1-A", "FL2-A"], ["FL1-A", "FL2-A"])
    >>> record = pack_fcs_record(["a", "b"], [{"CYT": "X"}, {}], [10, 20], [spill, None])
    >>> record["spillover_size"].tolist(), record["keywords"]["CYT"].tolist()
    ([2, 0], ['X', ''])
    """
    lengths = {len(samples), len(keywords), len(n_events), len(spillovers)}
    if len(lengths) != 1:
        raise InvalidInputError(
            f"{len(samples)} samples, {len(keywords)} keyword sets, {len(n_events)} event counts "
            f"and {len(spillovers)} spillover matrices; expected one of each per sample."
        )
    if len(set(samples)) != len(samples):
        raise InvalidInputError(f"Sample names must be unique, got {samples}.")
    names = [_checked_labels(sample, m) for sample, m in zip(samples, spillovers, strict=True)]
    values = [np.asarray(m, dtype=np.float64).ravel() for m in spillovers if m is not None]
    # dict.fromkeys keeps the order of appearance, so the same files always give the same record.
    all_keywords = dict.fromkeys(name for entry in keywords for name in entry)
    return {
        "sample": _strings(samples),
        "n_events": np.asarray(n_events, dtype=np.int64),
        "keywords": {
            name: _strings([entry.get(name, "") for entry in keywords]) for name in all_keywords
        },
        "spillover_size": np.asarray([len(n) for n in names], dtype=np.int64),
        "spillover_channels": _strings([channel for n in names for channel in n]),
        "spillover_values": np.concatenate(values) if values else np.empty(0, dtype=np.float64),
    }


def get_spillover(adata: ad.AnnData, sample: str) -> pd.DataFrame | None:
    """Return the spillover matrix of one sample's FCS file.

    Parameters
    ----------
    adata : AnnData
        Data from :func:`fcm_estimators.read_fcs`.
    sample : str
        Name of the sample, as in ``obs["sample"]``.

    Returns
    -------
    DataFrame or None
        Square, labelled on both axes by ``$PnN`` names. Row: the fluorochrome that spills; column:
        the detector; 1 means 100 %. None if the file had no spillover keyword.

    Raises
    ------
    MissingKeyError
        If `adata` has no ``uns["fcs"]`` or the record does not list `sample`.

    Examples
    --------
    >>> import anndata as ad, numpy as np
    >>> from fcm_estimators.io.record import get_spillover, pack_fcs_record
    >>> adata = ad.AnnData(np.zeros((1, 1), dtype="float32"))
    >>> adata.uns["fcs"] = pack_fcs_record(["a"], [{}], [1], [None])
    >>> get_spillover(adata, "a") is None
    True
    """
    row = sample_row(adata, sample)
    record = adata.uns[UNS_KEY]
    sizes = np.asarray(record["spillover_size"], dtype=np.int64)
    size = int(sizes[row])
    if size == 0:
        return None
    first_name = int(sizes[:row].sum())
    first_value = int((sizes[:row] ** 2).sum())
    channels = [str(c) for c in record["spillover_channels"][first_name : first_name + size]]
    values = np.asarray(record["spillover_values"][first_value : first_value + size**2])
    return pd.DataFrame(values.reshape(size, size).copy(), index=channels, columns=channels)


def get_keywords(adata: ad.AnnData, sample: str) -> dict[str, str]:
    """Return the keywords kept from one sample's FCS file, without the leading ``$``.

    Parameters
    ----------
    adata : AnnData
        Data from :func:`fcm_estimators.read_fcs`.
    sample : str
        Name of the sample, as in ``obs["sample"]``.

    Returns
    -------
    dict of str to str
        Only the keywords that this file has.

    Raises
    ------
    MissingKeyError
        If `adata` has no ``uns["fcs"]`` or the record does not list `sample`.

    Examples
    --------
    >>> import anndata as ad, numpy as np
    >>> from fcm_estimators.io.record import get_keywords, pack_fcs_record
    >>> adata = ad.AnnData(np.zeros((1, 1), dtype="float32"))
    >>> adata.uns["fcs"] = pack_fcs_record(["a", "b"], [{"CYT": "X"}, {}], [1, 1], [None, None])
    >>> get_keywords(adata, "a"), get_keywords(adata, "b")
    ({'CYT': 'X'}, {})
    """
    row = sample_row(adata, sample)
    entries = {name: str(values[row]) for name, values in adata.uns[UNS_KEY]["keywords"].items()}
    return {name: value for name, value in entries.items() if value}


def file_digest(name: str) -> str:
    """Digest of the name of a file without folder, ending and case; "" for no name.

    Workspaces list the name under which a file was acquired (``$FIL``). It may contain the name of
    a person, so the data keep only its digest, which is enough to find the file there.

    Examples
    --------
    >>> from fcm_estimators.io.record import file_digest
    >>> file_digest("Tube_1.FCS") == file_digest("d:/run/tube_1.fcs") != file_digest("tube_2.fcs")
    True
    """
    bare = unicodedata.normalize("NFC", name.replace("\\", "/").rsplit("/", 1)[-1].strip())
    bare = bare.casefold().removesuffix(".fcs")
    return hashlib.sha256(bare.encode()).hexdigest() if bare else ""


def file_digests(adata: ad.AnnData) -> dict[str, str]:
    """Digest of the ``$FIL`` of each sample, as ``read_fcs`` records it."""
    record = adata.uns.get(UNS_KEY, {})
    if FILE_KEY not in record:
        return {}
    return {
        str(sample): str(digest)
        for sample, digest in zip(record["sample"], record[FILE_KEY], strict=True)
    }


def pack_amplifiers(
    rows: Iterable[tuple[str, str, float, float, float, float]],
) -> dict[str, object]:
    """Entry of ``uns["fcs"]`` that says how integers were decoded; empty without rows.

    Parameters
    ----------
    rows : iterable of (sample, channel, decades, log_zero, range, gain)
        One for each channel of integers that are not the values.
    """
    columns = list(zip(*rows, strict=True))
    if not columns:
        return {}
    texts = {name: _strings(list(columns[i])) for i, name in enumerate(_AMPLIFIER_COLUMNS[:2])}
    numbers = {
        name: np.asarray(columns[i + 2], dtype=np.float64)
        for i, name in enumerate(_AMPLIFIER_COLUMNS[2:])
    }
    return {AMPLIFIER_KEY: {**texts, **numbers}}


def amplifiers(adata: ad.AnnData) -> list[tuple[str, str, float, float, float, float]]:
    """Rows of :func:`pack_amplifiers`; none if nothing is recorded."""
    found = adata.uns.get(UNS_KEY, {}).get(AMPLIFIER_KEY)
    if found is None:
        return []
    columns = [np.asarray(found[name]).tolist() for name in _AMPLIFIER_COLUMNS]
    return list(zip(*columns, strict=True))


def pack_compensation(matrix: pd.DataFrame | None) -> dict[str, np.ndarray]:
    """Entry of ``uns`` for the matrix that all samples were compensated with.

    Parameters
    ----------
    matrix : DataFrame or None
        None: each sample with the matrix of its file.
    """
    if matrix is None:
        return {"channels": _strings([]), "values": np.empty((0, 0))}
    values = np.asarray(matrix, dtype=np.float64)
    return {"channels": _strings([str(c) for c in matrix.columns]), "values": values}


def recorded_matrix(adata: ad.AnnData, sample: str) -> pd.DataFrame | None:
    """Matrix with which a sample was compensated; None if that is not recorded."""
    found = adata.uns.get(COMPENSATION_KEY)
    if found is None:
        return None
    names = [str(name) for name in found["channels"]]
    if names:
        return pd.DataFrame(np.asarray(found["values"]), index=names, columns=names)
    if sample not in [str(name) for name in adata.uns.get(UNS_KEY, {}).get("sample", [])]:
        return None
    return get_spillover(adata, sample)


def sample_row(adata: ad.AnnData, sample: str) -> int:
    """Position of `sample` in ``uns["fcs"]``; MissingKeyError if it is not there."""
    if UNS_KEY not in adata.uns:
        raise MissingKeyError(
            'adata.uns has no "fcs" record of the original files. Read the data with '
            "fcm_estimators.read_fcs, or pass the values explicitly."
        )
    names = [str(name) for name in adata.uns[UNS_KEY]["sample"]]
    if sample not in names:
        raise MissingKeyError(
            f'Sample {sample!r} is not in adata.uns["fcs"]; it lists {", ".join(names) or "none"}.'
        )
    return names.index(sample)


def _checked_labels(sample: str, matrix: pd.DataFrame | None) -> list[str]:
    if matrix is None:
        return []
    rows, columns = [str(r) for r in matrix.index], [str(c) for c in matrix.columns]
    if rows != columns or len(set(rows)) != len(rows):
        raise InvalidInputError(
            f"The spillover of sample {sample!r} has rows {rows} and columns {columns}; both must "
            "be the same unique $PnN names in the same order."
        )
    return rows


def _strings(values: list[str]) -> np.ndarray:
    # Fixed-width arrays would cut a longer string that a user assigns later.
    return np.asarray(values, dtype=object)
