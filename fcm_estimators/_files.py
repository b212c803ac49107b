"""Write files completely or not at all; checksums of files."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fcm_estimators.exceptions import InvalidInputError

if TYPE_CHECKING:
    import pandas as pd

# With these a spreadsheet begins a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
_NO_SPACE = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


@contextmanager
def replaced_when_complete(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder, which replaces ``path`` at the end of the block.

    The block writes the temporary file, which is flushed to the disk and then renamed. If the
    block raises an error, the temporary file is removed and ``path`` stays as it was.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        # The error of a full disk names no file.
        if error.errno is not None and not error.filename:
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file completely or not at all."""
    with replaced_when_complete(path) as temporary:
        temporary.write_bytes(content)


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a CSV completely or not at all, in which a spreadsheet finds no formulas.

    Names of files, samples and classes come from others. Text that would begin a formula gets an
    apostrophe before it.

    Examples
    --------
    >>> import pandas as pd, tempfile
    >>> from fcm_estimators._files import write_table
    >>> path = Path(tempfile.mkdtemp()) / "table.csv"
    >>> write_table(path, pd.DataFrame({"sample": ["=cmd()", "a"], "shift": [-1.5, 2.0]}))
    >>> path.read_text().split()
    ['sample,shift', "'=cmd(),-1.5", 'a,2.0']
    """
    table = table.rename(columns=_plain)
    for name in table.columns[table.dtypes.map(lambda kind: kind.kind not in "biuf").to_numpy()]:
        table[name] = table[name].astype(object).map(_plain)
    with replaced_when_complete(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        table.to_csv(file, index=False, lineterminator="\n")


def _plain(value: object) -> object:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def read_table(path: str | os.PathLike[str], **options: Any) -> pd.DataFrame:
    """Read a CSV with pandas, without the apostrophes that :func:`write_table` adds."""
    import pandas as pd

    table: pd.DataFrame = pd.read_csv(path, **options).rename(columns=_as_it_was)
    for name in table.select_dtypes(object):
        table[name] = table[name].map(_as_it_was)
    return table


def _as_it_was(value: object) -> object:
    is_marked = isinstance(value, str) and value.startswith("'") and value[1:].startswith(_FORMULA)
    return value[1:] if is_marked and isinstance(value, str) else value


def made_folder(path: str | os.PathLike[str]) -> Path:
    """Directory for results, made if it is not there; InvalidInputError if it is a file."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InvalidInputError(
            f"{folder} cannot be the directory of the results, because a file is there. Give "
            "another out=..."
        ) from error
    return folder


def reserve(handle: int, n_bytes: int) -> None:
    """Take space on the disk for an open file, to its size ``n_bytes``.

    HDF5 crashes after a write that fails, so space is taken before.

    Raises
    ------
    OSError
        There is less space, or files may not be so large.
    """
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(handle, 0, max(n_bytes, 1))
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise


def _sync_folder(folder: Path) -> None:
    """Flush a renaming to the disk, where the system can."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        return
    finally:
        os.close(handle)


def remove_leftovers(path: Path, *, seconds: float = 0) -> None:
    """Remove temporary files that a killed process left beside ``path``.

    Where other processes may be writing the same file, ``seconds`` says for how long a temporary
    file has not changed that none of them can be writing.
    """
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        with contextlib.suppress(FileNotFoundError):
            if seconds and time.time() - leftover.stat().st_mtime < seconds:
                continue
            leftover.unlink()


def checksum(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of the files in a directory (zarr)."""
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    total = hashlib.sha256()
    for part in sorted(p for p in path.rglob("*") if p.is_file()):
        total.update(f"{part.relative_to(path).as_posix()}\0{checksum(part)}\n".encode())
    return total.hexdigest()
