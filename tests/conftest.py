"""Set-up shared by all tests."""

from __future__ import annotations

import functools
import os
import sys

import pytest

# Before torch is imported: two multi-threaded workers on two cores wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

from hypothesis import settings

settings.register_profile("default", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("default")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip real-data tests where the data cannot be had; fail where they were promised."""
    # scanpy's neighbours, in an earlier test, give torch as many threads as there are cores.
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    # A hook and no fixture: it has to come before the fixtures that read the data.
    if item.get_closest_marker("real_data") and "FCM_DATA_HOME" not in os.environ:
        reason = _why_unavailable()
        if reason:
            pytest.skip(reason)


@pytest.fixture(params=["short", pytest.param("whole", marks=pytest.mark.slow)])
def training(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Length of trainings: short, to see that code runs, or whole, to see what it gives."""
    if request.param == "short":
        from fcm_estimators import PolygonRegressor, ReluFormerClassifier

        for estimator in (PolygonRegressor, ReluFormerClassifier):
            defaults = estimator.__init__.__kwdefaults__
            few = {"max_epochs": 1, "steps_per_epoch": 5, "n_members": 2}
            for name in defaults.keys() & few.keys():
                monkeypatch.setitem(defaults, name, few[name])
    return str(request.param)


@functools.cache
def _why_unavailable() -> str:
    from fcm_estimators.datasets import fetch_all494, fetch_multicenter_cytof
    from fcm_estimators.exceptions import DataUnavailableError

    try:
        fetch_all494()
        fetch_multicenter_cytof([15])
    except DataUnavailableError as error:
        return f"the public data are not available: {error}"
    return ""
