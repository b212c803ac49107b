"""List, name and read the files of a cohort."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import anndata as ad
import pandas as pd

from fcm_estimators._checks import listed
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.io import read_fcs

PathName = str | os.PathLike[str]

FCS_ENDINGS = (".fcs", ".lmd")


def read_file(path: PathName, *, name: str | None = None) -> ad.AnnData:
    """Read one FCS, h5ad or zarr file.

    Parameters
    ----------
    path : path
        An .fcs or .lmd file, an .h5ad file, or a zarr directory.
    name : str, optional
        Name of the sample in ``obs["sample"]``. Default: the file name without its ending. An
        h5ad or zarr file that has this column keeps it.

    Returns
    -------
    AnnData

    Raises
    ------
    FcsError
        The file cannot be read as FCS.
    InvalidInputError
        The file does not exist or is not an AnnData.
    """
    path = Path(path)
    if not path.exists():
        raise InvalidInputError(f"{path} does not exist.")
    if path.suffix.lower() in FCS_ENDINGS:
        return read_fcs(path, sample_names=name or path.stem)
    if not path.is_dir() and path.suffix.lower() != ".h5ad":
        raise InvalidInputError(
            f"{path.name} ends in none of {listed([*FCS_ENDINGS, '.h5ad'])} and is not a zarr "
            "directory."
        )
    try:
        adata = ad.read_zarr(path) if path.is_dir() else ad.read_h5ad(path)
    except Exception as error:  # anndata does not document its errors
        raise InvalidInputError(f"{path} cannot be read as AnnData: {error}") from error
    if "sample" not in adata.obs:
        adata.obs["sample"] = pd.Categorical([name or path.stem] * adata.n_obs)
    return adata


def list_files(files: PathName | Sequence[PathName]) -> list[Path]:
    """List the paths of all files; a directory stands for its files, sorted by name.

    A zarr store is a directory but counts as one file.

    Raises
    ------
    InvalidInputError
        There are no files, or one does not exist.
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
    """Name of each file; its sample and its result get the same name."""
    named = [p.stem for p in paths] if names is None else [str(n) for n in names]
    if len(named) != len(paths):
        raise InvalidInputError(f"{len(named)} names for {len(paths)} files; give one each.")
    if repeated := sorted({n for n in named if named.count(n) > 1}):
        raise InvalidInputError(
            f"Names repeat: {listed(repeated)}. Pass unique ones with sample_names=."
        )
    if wrong := [n for n in named if not n or "/" in n or "\\" in n or n.startswith(".")]:
        raise InvalidInputError(
            f"{listed(wrong)}: a name becomes that of a file, so it must not be empty, contain "
            "'/' or '\\' or begin with a dot."
        )
    return named
