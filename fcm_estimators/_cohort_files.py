"""Files of a cohort: which ones, what they are called, and how one becomes training data."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from fcm_estimators._checks import listed
from fcm_estimators.exceptions import (
    InvalidInputError,
    PanelMismatchError,
    ProcessingStateError,
)
from fcm_estimators.gating import GatingTree
from fcm_estimators.io import read_fcs
from fcm_estimators.io._record import UNS_KEY, get_keywords, get_spillover, pack_fcs_record
from fcm_estimators.preprocessing import Compensation

PathName = str | os.PathLike[str]

FCS_ENDINGS = (".fcs", ".lmd")


def read_file(path: PathName, *, name: str | None = None) -> ad.AnnData:
    """Read one FCS, h5ad or zarr file.

    Parameters
    ----------
    path : path
        An .fcs or .lmd file, an .h5ad file, or a zarr directory.
    name : str, optional
        Name of the sample in ``obs["sample"]``. Default: that of the file without its ending; an
        h5ad or zarr file with that column keeps it.

    Returns
    -------
    AnnData

    Raises
    ------
    FcsError
        A file that cannot be read as FCS.
    InvalidInputError
        No such file, or no AnnData.
    """
    path = Path(path)
    if not path.exists():
        raise InvalidInputError(f"{path} does not exist.")
    if path.suffix.lower() in FCS_ENDINGS:
        return read_fcs(path, sample_names=name or path.stem)
    if not path.is_dir() and path.suffix.lower() != ".h5ad":
        raise InvalidInputError(
            f"{path.name} ends in none of {listed([*FCS_ENDINGS, '.h5ad'])} and is no zarr "
            "directory."
        )
    try:
        adata = ad.read_zarr(path) if path.is_dir() else ad.read_h5ad(path)
    except Exception as error:  # what a broken file raises is not documented
        raise InvalidInputError(f"{path} cannot be read as AnnData: {error}") from error
    if "sample" not in adata.obs:
        adata.obs["sample"] = pd.Categorical([name or path.stem] * adata.n_obs)
    return adata


def list_files(files: PathName | Sequence[PathName]) -> list[Path]:
    """Paths of all files; a directory that is no zarr store stands for those in it, by name.

    Raises
    ------
    InvalidInputError
        No files, or one that does not exist.
    """
    given = [files] if isinstance(files, str | os.PathLike) else list(files)
    found: list[Path] = []
    for entry in map(Path, given):
        if not entry.exists():
            raise InvalidInputError(f"{entry} does not exist.")
        if entry.is_dir() and not _is_zarr(entry):
            found += sorted(
                p
                for p in entry.iterdir()
                if p.suffix.lower() in (*FCS_ENDINGS, ".h5ad") or _is_zarr(p)
            )
        else:
            found.append(entry)
    if not found:
        raise InvalidInputError(f"No FCS, h5ad or zarr file in {listed(given)}.")
    return found


def _is_zarr(path: Path) -> bool:
    return any((path / name).exists() for name in ("zarr.json", ".zgroup"))


def file_names(paths: list[Path], names: Sequence[str] | None) -> list[str]:
    """Name of each file, which becomes that of its sample and of its result."""
    named = [p.stem for p in paths] if names is None else [str(n) for n in names]
    if len(named) != len(paths):
        raise InvalidInputError(f"{len(named)} names for {len(paths)} files; give one each.")
    if repeated := sorted({n for n in named if named.count(n) > 1}):
        raise InvalidInputError(f"Names repeat: {listed(repeated)}. Give unique ones as names=.")
    if wrong := [n for n in named if not n or "/" in n or "\\" in n or n.startswith(".")]:
        raise InvalidInputError(
            f"{listed(wrong)}: a name becomes that of a file, so it is not empty, holds no '/' "
            "and does not begin with a dot."
        )
    return named


@dataclass(frozen=True)
class Reading:
    """What is done to every file that becomes part of the training data."""

    steps: Any
    label: Callable[[ad.AnnData], None] | None
    max_cells: int | None
    keep_raw: bool
    seed: int


def read_part(reading: Reading, path: Path, name: str) -> ad.AnnData:
    """One file as it becomes part of the training data; runs in a worker."""
    adata = read_file(path, name=name)
    if reading.label is not None:
        reading.label(adata)
    if reading.max_cells is not None:
        adata = _thinned(adata, reading.max_cells, reading.seed)
    if hasattr(reading.steps, "prepare"):
        adata = reading.steps.prepare(adata)
    else:
        for step in reading.steps:
            adata = step.transform(adata)
    if not reading.keep_raw:
        adata.layers.pop("raw", None)
    return adata


def _thinned(adata: ad.AnnData, max_cells: int, seed: int) -> ad.AnnData:
    rows = []
    for name, inside in adata.obs.groupby("sample", observed=True, sort=False).indices.items():
        own = int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8], "little")
        rng = np.random.default_rng(own)
        some = inside if len(inside) <= max_cells else rng.choice(inside, max_cells, replace=False)
        rows.append(np.sort(some))
    kept = np.sort(np.concatenate(rows))
    return adata if len(kept) == adata.n_obs else adata[kept].copy()


def joined(parts: list[ad.AnnData]) -> ad.AnnData:
    """One AnnData with the markers of the first, and the record of the FCS files."""
    first = parts[0]
    for part in parts[1:]:
        if set(part.var_names) != set(first.var_names):
            differing = sorted(set(part.var_names) ^ set(first.var_names))
            raise PanelMismatchError(
                f"Sample {part.obs['sample'].iloc[0]} has other markers than "
                f"{first.obs['sample'].iloc[0]}: {listed(differing)} are in one of them only. "
                "Rename or remove them before, or read with read_fcs(join=...)."
            )
        for column in ("transform", "compensated"):
            if column in first.var and column in part.var:
                mine, theirs = first.var[column], part.var[column].reindex(first.var_names)
                differs = mine.astype(str).to_numpy() != theirs.astype(str).to_numpy()
                if differs.any():
                    raise PanelMismatchError(
                        f"Sample {part.obs['sample'].iloc[0]}: {column} of "
                        f"{listed(first.var_names[differs])} differs from that of "
                        f"{first.obs['sample'].iloc[0]}. Preprocess all files alike."
                    )
    samples = [str(s) for part in parts for s in part.obs["sample"].unique()]
    if repeated := sorted({s for s in samples if samples.count(s) > 1}):
        raise InvalidInputError(
            f"Samples occur in more than one file: {listed(repeated)}. Name them apart."
        )
    whole = ad.concat([part[:, first.var_names] for part in parts], join="outer", merge=None)
    whole.var = first.var.copy()
    whole.obs["sample"] = pd.Categorical(whole.obs["sample"].astype(str), categories=samples)
    if not whole.obs_names.is_unique:
        whole.obs_names = [
            f"{s}:{i}" for s, n in whole.obs["sample"].value_counts(sort=False).items()
            for i in range(n)
        ]  # fmt: skip
    if all(UNS_KEY in part.uns for part in parts):
        owners = [(part, str(s)) for part in parts for s in part.obs["sample"].unique()]
        record = pack_fcs_record(
            samples,
            [get_keywords(part, s) for part, s in owners],
            [_n_events(part, s) for part, s in owners],
            [get_spillover(part, s) for part, s in owners],
        )
        scaled = bool(first.uns[UNS_KEY].get("time_scaled", False))
        whole.uns[UNS_KEY] = {**record, "time_scaled": scaled}
    return whole


def _n_events(adata: ad.AnnData, sample: str) -> int:
    record = adata.uns[UNS_KEY]
    return int(record["n_events"][[str(s) for s in record["sample"]].index(sample)])


def membership_in(tree: GatingTree, adata: ad.AnnData) -> pd.DataFrame:
    """Membership in drawn gates; data are compensated for gates that want it."""
    try:
        return tree.apply(adata)
    except ProcessingStateError:
        return tree.apply(Compensation(spillover=tree.spillover).fit_transform(adata))
