"""Threads of torch while a model is fitted or used."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def own_threads() -> Iterator[None]:
    """Keep torch from using more threads than ``OMP_NUM_THREADS``, else than there are cores.

    Other libraries change the number: numba, which scanpy's neighbours use, raises it to the
    number of cores whatever the environment says. Several busy processes then wait for each other.
    A smaller number that the caller chose is kept. The number is restored at the end. Also a
    decorator.
    """
    before, allowed = torch.get_num_threads(), allowed_threads()
    if before <= allowed:
        yield
        return
    torch.set_num_threads(allowed)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def allowed_threads() -> int:
    """``OMP_NUM_THREADS`` (its first number), else the number of cores of this process."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if first.isdecimal() and int(first) > 0:
        return int(first)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
