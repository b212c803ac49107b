"""When a file is too large to be annotated in memory."""

from __future__ import annotations

import os
from pathlib import Path

# A file is read by block if it would need more than this share of the memory that is free.
SHARE = 0.25
# Bytes of a cell in memory besides its values, which are there raw and transformed: its name, and
# its results.
_PER_CELL = 200
# Where the system does not tell what is free.
_ASSUMED = 8 << 30
_CGROUP = Path("/sys/fs/cgroup")


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
    """What the limit of a control group leaves; more than any machine has without a limit."""
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            most = int((_CGROUP / limit).read_text())
            taken = int((_CGROUP / used).read_text())
        except (OSError, ValueError):
            continue
        return max(most - taken, 0)
    return 1 << 62
