"""Run jobs on the files of a cohort: in this process, on this machine or on a cluster."""

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
    if n_workers == 0:
        yield in_turn
        return
    try:
        import distributed
    except ImportError as error:
        raise InvalidInputError(
            "Several processes need Dask: install fcm-estimators[cohort], or pass n_workers=0 to "
            "process one file after the other."
        ) from error
    count = min(n_workers or os.cpu_count() or 1, n_jobs)
    dask: Any = distributed  # has no annotations
    with (
        dask.LocalCluster(
            n_workers=count,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            silence_logs=logging.ERROR,
        ) as cluster,
        dask.Client(cluster) as own_client,
    ):
        yield partial(_run_on_client, own_client)


def in_turn(jobs: list[Call]) -> Iterator[Outcome]:
    """Run jobs in this process, one after the other."""
    for position, (function, arguments) in enumerate(jobs):
        try:
            outcome = function(*arguments), ""
        except Exception as error:  # noqa: BLE001 - becomes the error of this job
            outcome = None, error_text(error)
        yield position, *outcome


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
