"""List, name and read the files of a cohort."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import anndata as ad
import pandas as pd

from fcm_estimators._cells.samples import require_whole
from fcm_estimators._checks import listed
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.io.opened import OpenedFcs, open_fcs

PathName = str | os.PathLike[str]

FCS_ENDINGS = (".fcs", ".lmd", ".fcs.gz")
# CellQuest and MACSQuantify number files (".001"), others name the well (".B08") or end in nothing.
_FCS_START = re.compile(rb"FCS\d\.\d")


def read_file(path: PathName, *, name: str | None = None) -> ad.AnnData:
    """Read one FCS, h5ad or zarr file.

    Parameters
    ----------
    path : path
        An FCS file of any ending (.fcs, .lmd, .001, .B08, ...), an .h5ad file, or a zarr
        directory.
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
    opened = open_fcs_file(path, name=name)
    if opened is not None:
        return opened.read()
    if not path.is_dir() and path.suffix.lower() != ".h5ad":
        raise InvalidInputError(
            f"{path.name} is no FCS file (it does not begin with FCS), does not end in .h5ad and "
            "is not a zarr directory."
        )
    try:
        adata = ad.read_zarr(path) if path.is_dir() else ad.read_h5ad(path)
        for values in (adata.X, *adata.layers.values()):
            require_whole(values)
    except Exception as error:  # anndata does not document its errors
        raise InvalidInputError(f"{path} cannot be read as AnnData: {error}") from error
    if "sample" not in adata.obs:
        adata.obs["sample"] = pd.Categorical([name or _stem(path)] * adata.n_obs)
    return adata


def open_fcs_file(path: Path, *, name: str | None = None) -> OpenedFcs | None:
    """Open an FCS file as :func:`read_file` reads it; None if the file is of another kind."""
    _require_there(path)
    return open_fcs(path, sample_names=name or _stem(path)) if _is_fcs(path) else None


def list_files(files: PathName | Sequence[PathName]) -> list[Path]:
    """List the paths of all files; a directory stands for its files, sorted by name.

    A zarr store is a directory but counts as one file. Hidden files of a directory are passed
    over, and so are the companions "._x.fcs" that macOS writes, wherever they are.

    Raises
    ------
    InvalidInputError
        There are no files, one does not exist, or one is given twice.
    """
    given = [files] if isinstance(files, str | os.PathLike) else list(files)
    found: list[Path] = []
    for entry in map(Path, given):
        _require_there(entry)
        if entry.is_dir() and not _is_zarr(entry):
            inside = [p for p in entry.iterdir() if not p.name.startswith(".")]
            found += sorted(p for p in inside if _is_zarr(p) or _is_data(p))
        elif not entry.name.startswith("._"):
            found.append(entry)
    if not found:
        raise InvalidInputError(f"No FCS, h5ad or zarr file in {listed(given)}.")
    counts = Counter(path.resolve() for path in found)
    if repeated := sorted(str(path) for path, n in counts.items() if n > 1):
        raise InvalidInputError(f"Files repeat: {listed(repeated)}. Give each of them once.")
    return found


def _require_there(path: Path) -> None:
    if not path.exists():
        raise InvalidInputError(f"{as_text(path)} does not exist.")
    if not path.is_file() and not path.is_dir():
        raise InvalidInputError(
            f"{as_text(path)} is no file but a pipe or a device, of which reading may never end. "
            "Copy its content to a file."
        )


def as_text(path: PathName) -> str:
    r"""Path or message as text that can be written; bytes that are not UTF-8 are like \udcff."""
    return os.fspath(path).encode("utf-8", "backslashreplace").decode()


def _is_data(path: Path) -> bool:
    return path.is_file() and (path.suffix.lower() == ".h5ad" or _is_fcs(path))


def _is_fcs(path: Path) -> bool:
    """Whether a file is FCS, by its ending, else by its first bytes."""
    if path.is_dir():
        return False
    if path.name.lower().endswith(FCS_ENDINGS):
        return True
    if path.suffix.lower() == ".h5ad":
        return False
    with path.open("rb") as file:
        return _FCS_START.match(file.read(6)) is not None


def _stem(path: Path) -> str:
    return path.stem.removesuffix(".fcs") if path.name.lower().endswith(".fcs.gz") else path.stem


def _is_zarr(path: Path) -> bool:
    return any((path / name).exists() for name in ("zarr.json", ".zgroup"))


def file_names(paths: list[Path], names: Sequence[str] | None) -> list[str]:
    """Name of each file; its sample and its result get the same name.

    The name is that of the file without its ending. Files of one stem keep their endings, and
    files of one name in several directories get the name of the directory before theirs. Case does
    not tell names apart, since some file systems ignore it.

    Raises
    ------
    InvalidInputError
        ``names`` are not one for each file, repeat, or cannot be the name of a file.
    """
    named = _distinct_names(paths) if names is None else [str(name) for name in names]
    if len(named) != len(paths):
        raise InvalidInputError(f"{len(named)} sample_names for {len(paths)} files; give one each.")
    if repeated := sorted({n for n in named if named.count(n) > 1}):
        raise InvalidInputError(
            f"Names of samples repeat: {listed(repeated)}. Give each file another one with "
            "sample_names=..."
        )
    if wrong := [n for n in named if not n or "/" in n or "\\" in n or n.startswith(".")]:
        raise InvalidInputError(
            f"{listed(wrong)}: a name becomes that of a file, so it must not be empty, contain "
            "'/' or '\\' or begin with a dot."
        )
    return named


def _storable(name: str) -> str:
    """Name of a file whose bytes that are not UTF-8 are "_": no h5ad can hold them."""
    return re.sub(r"[\ud800-\udfff]", "_", name)


def _distinct_names(paths: list[Path]) -> list[str]:
    named = [_storable(_stem(path)) for path in paths]
    for longer in (
        [_storable(path.name) for path in paths],
        [_storable(f"{path.resolve().parent.name}_{path.name}") for path in paths],
        [_storable(f"{i + 1}_{path.name}") for i, path in enumerate(paths)],
    ):
        counts = Counter(name.casefold() for name in named)
        named = [
            long if counts[name.casefold()] > 1 else name
            for name, long in zip(named, longer, strict=True)
        ]
    return named
