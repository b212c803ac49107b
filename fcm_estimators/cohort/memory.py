"""When a file is too large to be annotated in memory."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

# A file is read by block if it would need more than this share of the memory that is free.
SHARE = 0.25
# Bytes of a cell in memory besides its values, which are there raw and transformed: its name, and
# its results.
_PER_CELL = 200
# Where the system does not tell what is free.
_ASSUMED = 8 << 30
# Control groups, and those that this process is in.
_CGROUP, _OF_PROCESS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
# Controller and folder of control groups of versions 2 and 1; files with the limit and the use; the
# entry of memory.stat for pages of files, which count as used until others need the memory.
_VERSIONS = (
    ("", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def needed_memory(n_events: int, n_channels: int) -> int:
    """Bytes that annotating so many events in memory takes, about."""
    return n_events * (2 * 4 * n_channels + _PER_CELL)


def free_memory() -> int:
    """Bytes that this process can still take, as the system and its container say."""
    return min(_of_system(), _of_container())


def _of_system() -> int:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found = dict(line.split(":", 1) for line in lines)
        return int(found["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError, ValueError):
        pass
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):
        return _ASSUMED


def _of_container() -> int:
    """What the limits of control groups leave; more than any machine has without a limit."""
    least = 1 << 62
    for controller, *names in _VERSIONS:
        group = _group(controller)
        # In a container, the group itself may be mounted in place of the root.
        for folder in (group, *group.parents):
            least = min(least, _left(_CGROUP / controller / folder, *names))
    return least


def _group(controller: str) -> PurePosixPath:
    """Path of the control group of this process; the root if it is not known or not seen."""
    root = PurePosixPath()
    try:
        lines = [line.split(":", 2) for line in _OF_PROCESS.read_text().splitlines()]
        found = [path for _, kinds, path in lines if controller in kinds.split(",")]
    except (OSError, ValueError):
        return root
    group = PurePosixPath(found[0].lstrip("/")) if found else root
    return root if ".." in group.parts else group


def _left(folder: Path, limit: str, used: str, cached: str) -> int:
    """What the limit of one control group leaves."""
    try:
        most, taken = (int((folder / name).read_text()) for name in (limit, used))
    except (OSError, ValueError):
        return 1 << 62
    try:
        lines = (folder / "memory.stat").read_text().splitlines()
        taken -= int(dict(line.split() for line in lines)[cached])
    except (OSError, KeyError, ValueError):
        pass
    return min(max(most - taken, 0), most)
