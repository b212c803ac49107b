"""Run jobs on the files of a cohort: in this process, on this machine or on a cluster."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any

from fcm_estimators.exceptions import FcmError, InvalidInputError

if TYPE_CHECKING:
    from distributed import Client

# Function and its arguments.
Call = tuple[Callable[..., Any], tuple[Any, ...]]
# Position of the job, its result or None, and its error or "".
Outcome = tuple[int, Any, str]


@contextmanager
def executor(
    client: Client | None, n_workers: int | None, n_jobs: int
) -> Iterator[Callable[[list[Call]], Iterable[Outcome]]]:
    """Yield a function that runs jobs and returns their outcomes as they finish."""
    if client is not None:
        yield partial(_run_on_client, client)
        return
    count = min(os.cpu_count() or 1 if n_workers is None else n_workers, n_jobs)
    # A process costs more than a small file.
    yield in_turn if count <= 1 else partial(_in_processes, count)


def in_turn(jobs: list[Call]) -> Iterator[Outcome]:
    """Run jobs in this process, one after the other."""
    for position, (function, arguments) in enumerate(jobs):
        try:
            outcome = function(*arguments), ""
        except Exception as error:  # noqa: BLE001 - becomes the error of this job
            outcome = None, error_text(error)
        yield position, *outcome


def _in_processes(count: int, jobs: list[Call]) -> Iterator[Outcome]:
    """Run jobs in new processes of this machine, which talk to this one by pipes alone.

    The death of a worker, by the kernel when memory is short, breaks the pool. Jobs that did not
    finish are then repeated, each in a process of its own, so the death costs at most one job.
    """
    _require_sendable(jobs)
    context = multiprocessing.get_context("spawn")
    left = dict(enumerate(jobs))
    with ProcessPoolExecutor(count, mp_context=context, initializer=_start_worker) as pool:
        futures = {pool.submit(f, *arguments): i for i, (f, arguments) in left.items()}
        try:
            for future in as_completed(futures):
                outcome = _outcome_of(future)
                if outcome is not None:
                    del left[futures[future]]
                    yield futures[future], *outcome
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
    for position, (function, arguments) in left.items():
        with ProcessPoolExecutor(1, mp_context=context, initializer=_start_worker) as pool:
            outcome = _outcome_of(pool.submit(function, *arguments))
        yield position, *(outcome or (None, _DIED))


def _require_sendable(jobs: list[Call]) -> None:
    """Raise InvalidInputError if another process cannot get what the jobs need."""
    try:
        for job in jobs:
            ForkingPickler.dumps(job)
    except Exception as error:  # what cannot be sent raises errors of many classes
        raise InvalidInputError(
            f"Other processes cannot get what was passed ({error}). Pass functions that a module "
            "defines, no lambdas and no functions inside functions; or pass n_workers=0."
        ) from error


_DIED = (
    "The process died, also with this file alone. Is memory short? A script that starts workers "
    "also needs if __name__ == '__main__': around what it does."
)


def _outcome_of(future: Future[Any]) -> tuple[Any, str] | None:
    """Result and error of a job; None if its process died."""
    try:
        return future.result(), ""
    except BrokenProcessPool:
        return None
    except Exception as error:  # noqa: BLE001 - becomes the error of this job
        return None, error_text(error)


def _start_worker() -> None:
    """Let a worker use one thread, and end with the process that started it.

    Threads of several workers wait for each other. A process that is killed leaves its workers,
    which would wait for work for ever.
    """
    # An interrupt from the keyboard reaches the workers too; they end without a word.
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
    import torch

    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _run_on_client(client: Any, jobs: list[Call]) -> Iterator[Outcome]:
    """Run jobs on a ``distributed.Client``, which has no annotations."""
    import distributed
    from distributed.scheduler import KilledWorker

    dask: Any = distributed
    futures = {
        client.submit(function, *arguments, pure=False): position
        for position, (function, arguments) in enumerate(jobs)
    }
    try:
        for future in dask.as_completed(list(futures)):
            position = futures[future]
            error = future.exception()
            if error is None:
                yield position, future.result(), ""
            elif isinstance(error, KilledWorker):
                yield position, None, "The worker process died each time; is memory short?"
            else:
                yield position, None, error_text(error)
            future.release()
    finally:
        client.cancel(list(futures))


def error_text(error: BaseException) -> str:
    """Error as one line of text; other errors than FcmError begin with the name of their class."""
    text = " ".join(str(error).split())
    return text if isinstance(error, FcmError) else f"{type(error).__name__}: {text}"
