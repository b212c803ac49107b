"""Files that appear whole or not at all, and their checksums."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """Temporary path beside ``path`` that takes its place once everything is on the disk.

    Where an error ends the block, the temporary file is removed and ``path`` stays as it was.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a small file so that it appears whole or not at all."""
    with appearing(path) as temporary:
        temporary.write_bytes(content)
    path.chmod(0o644)


def _sync_folder(folder: Path) -> None:
    """Make a renaming last; not every system can."""
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


def sweep(folder: Path, path: Path) -> None:
    """Remove what a killed process left of ``path``."""
    for left in folder.glob(f".{path.name}.*.part"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def checksum(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of the files in a directory."""
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    total = hashlib.sha256()
    for part in sorted(p for p in path.rglob("*") if p.is_file()):
        total.update(f"{part.relative_to(path).as_posix()}\0{checksum(part)}\n".encode())
    return total.hexdigest()
