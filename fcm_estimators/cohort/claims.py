"""One process at a time works on a sample of a directory, whichever host it runs on."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fcm_estimators._files import write_whole
from fcm_estimators._types import Entries

# Seconds between the heartbeats of a claim, and without one until others take it over.
HEARTBEAT, STALE = 5.0, 30.0
# Longer than another process needs between its look at a stale claim and its own claim.
_SETTLED = 1.0


@contextmanager
def claimed(folder: Path, name: str) -> Iterator[None]:
    """Hold ``.{name}.claim`` in a folder during the block; wait while another process holds it.

    The claim names host and process, and its time is renewed as long as they live. That of a
    process that died is taken over, on the same host at once. A lock of the whole folder would
    forbid several runs on different files.
    """
    path = folder / f".{name}.claim"
    mine = {"host": _host(), "pid": os.getpid(), "token": uuid.uuid4().hex}
    content = json.dumps(mine).encode()
    seen, since = 0, time.monotonic()
    while True:
        with contextlib.suppress(FileExistsError), path.open("xb") as file:
            file.write(content)
            break
        with contextlib.suppress(FileNotFoundError):
            beat = path.stat().st_mtime_ns
            # Clocks of hosts differ, so only that the time stands still is taken from the file.
            if beat != seen:
                seen, since = beat, time.monotonic()
            if time.monotonic() - since > STALE or _is_dead(_holder(path)):
                write_whole(path, content)
                time.sleep(_SETTLED)
                if _holder(path) == mine:
                    break
        time.sleep(0.1)
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(path, ended), daemon=True)
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join()
        if _holder(path) == mine:
            path.unlink(missing_ok=True)


def _beat(path: Path, ended: threading.Event) -> None:
    while not ended.wait(HEARTBEAT):
        with contextlib.suppress(OSError):
            os.utime(path)


def _holder(path: Path) -> Entries:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_dead(holder: Entries) -> bool:
    """Whether the holder was a process of this host that is no more."""
    pid = holder.get("pid")
    if holder.get("host") != _host() or not isinstance(pid, int) or pid < 1 or os.name != "posix":
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError):
        pass
    return False


def _host() -> str:
    """Name of the host, with what tells containers of one name apart."""
    try:
        return f"{platform.node()} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return platform.node()
