"""Where the files of a cohort are worked on: in this process, on this machine, on a cluster."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from fcm_estimators.exceptions import FcmError, InvalidInputError

if TYPE_CHECKING:
    from distributed import Client


Call = tuple[Callable[..., Any], tuple]
Outcome = tuple[int, Any, str]


@contextmanager
def executor(
    client: Client | None, n_workers: int | None, n_jobs: int
) -> Iterator[Callable[[list[Call]], Iterable[Outcome]]]:
    """Yield what runs jobs: number, result and error of each, in the order they are done."""
    if client is not None:
        yield partial(_spread, client)
        return
    if n_workers == 0:
        yield _in_turn
        return
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise InvalidInputError(
            "Working on several files at once needs Dask: install fcm-estimators[cohort], or pass "
            "n_workers=0 to work on one after the other."
        ) from error
    count = min(n_workers or os.cpu_count() or 1, n_jobs)
    with (
        LocalCluster(
            n_workers=count,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            silence_logs=logging.ERROR,
        ) as cluster,
        Client(cluster) as own,
    ):
        yield partial(_spread, own)


def _in_turn(jobs: list[Call]) -> Iterator[Outcome]:
    for position, (function, arguments) in enumerate(jobs):
        try:
            outcome = function(*arguments), ""
        except Exception as error:  # noqa: BLE001 - becomes the error of this job
            outcome = None, said(error)
        yield position, *outcome


def _spread(client: Client, jobs: list[Call]) -> Iterator[Outcome]:
    from distributed import as_completed
    from distributed.scheduler import KilledWorker

    futures = {
        client.submit(function, *arguments, pure=False): position
        for position, (function, arguments) in enumerate(jobs)
    }
    try:
        for future in as_completed(list(futures)):
            position = futures[future]
            error = future.exception()
            if error is None:
                yield position, future.result(), ""
            elif isinstance(error, KilledWorker):
                yield position, None, "The worker process died each time; is memory short?"
            else:
                yield position, None, said(error)
            future.release()
    finally:
        client.cancel(list(futures))


def said(error: BaseException) -> str:
    """Error as a line of text; errors of a user's input need no name."""
    text = " ".join(str(error).split())
    return text if isinstance(error, FcmError) else f"{type(error).__name__}: {text}"
