"""What an installation consists of, and whether it works."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from fcm_estimators._version import __version__


def installation() -> pd.DataFrame:
    """Versions, devices and threads of this installation.

    Returns
    -------
    DataFrame
        Columns ``what`` and ``found``, a row for Python, the system, this package, every package
        that it needs, devices of torch, cores and threads. A version that is not what this package
        asks for is marked.

    Examples
    --------
    >>> from fcm_estimators.doctor import installation
    >>> installation()["what"].tolist()[:3]
    ['fcm-estimators', 'Python', 'system']
    """
    import torch

    rows = [
        ("fcm-estimators", __version__),
        ("Python", sys.version.split()[0]),
        ("system", platform.platform()),
        *_packages(),
    ]
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    asked = os.environ.get("OMP_NUM_THREADS")
    rows += [
        ("GPU", ", ".join(gpus) or "none that torch can use"),
        ("cores", str(os.cpu_count())),
        ("OMP_NUM_THREADS", asked or "not set: torch uses all cores"),
        ("threads of torch", str(torch.get_num_threads())),
    ]
    return pd.DataFrame(rows, columns=["what", "found"])


def _packages() -> list[tuple[str, str]]:
    from packaging.requirements import Requirement

    rows = []
    for text in importlib.metadata.requires("fcm-estimators") or []:
        needed = Requirement(text)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        try:
            found = importlib.metadata.version(needed.name)
        except importlib.metadata.PackageNotFoundError:
            rows.append((needed.name, f"missing; {needed.specifier} is needed"))
            continue
        fits = needed.specifier.contains(found, prereleases=True)
        name = re.sub(r"[-_.]+", "-", needed.name)
        rows.append((name, found if fits else f"{found}; {needed.specifier} is needed"))
    return rows


def self_test() -> pd.DataFrame:
    """Use the package from an FCS file to a saved model, on simulated samples, in about a minute.

    Returns
    -------
    DataFrame
        Columns ``step``, ``works`` (bool) and ``found``, the error of a step that does not work.
        The steps after it are not tried.
    """
    from fcm_estimators import ReluFormerClassifier, load_model, read_fcs, write_fcs
    from fcm_estimators.datasets import simulate_cohort
    from fcm_estimators.preprocessing import standard_steps

    raw = simulate_cohort(n_samples=6, n_cells=1000, n_patients=6, random_state=0)
    clf = ReluFormerClassifier(
        sample_key="sample", label_key="cell_type", pos_label="blast", n_members=0,
        max_epochs=5, steps_per_epoch=20, random_state=0,
    )  # fmt: skip
    state = {"data": raw}

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)

        def write_and_read() -> None:
            one = raw[raw.obs["sample"] == raw.obs["sample"].iloc[0]].copy()
            write_fcs(one, folder / "tube.fcs")
            _require(np.array_equal(read_fcs(folder / "tube.fcs").X, one.X), "events differ")

        def prepare() -> None:
            for step in standard_steps(raw):
                state["data"] = step.fit_transform(state["data"])

        def train() -> None:
            clf.fit(state["data"])

        def save_and_load() -> None:
            clf.save(folder / "model")
            again = load_model(folder / "model").predict_proba(state["data"])
            _require(
                np.allclose(again, clf.predict_proba(state["data"]), atol=1e-5),
                "the loaded model predicts something else",
            )

        def annotate() -> None:
            clf.annotate(state["data"])
            called = (state["data"].obs["reluformer"] == "blast").to_numpy()
            true = (state["data"].obs["cell_type"] == "blast").to_numpy()
            f1 = 2 * (called & true).sum() / (called.sum() + true.sum())
            _require(f1 > 0.8, f"the F1 on its own training data is {f1:.2f}")

        def store() -> None:
            state["data"].write_h5ad(folder / "annotated.h5ad")
            clf.annotate(folder / "annotated.h5ad")

        steps: dict[str, Callable[[], None]] = {
            "write and read FCS": write_and_read,
            "compensate and transform": prepare,
            "train": train,
            "save and load": save_and_load,
            "annotate in memory": annotate,
            "annotate on disk": store,
        }
        rows = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for step, use in steps.items():
                try:
                    use()
                except Exception as error:  # noqa: BLE001  whatever does not work
                    rows.append((step, False, f"{type(error).__name__}: {error}"))
                    break
                rows.append((step, True, ""))
    return pd.DataFrame(rows, columns=["step", "works", "found"])


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise RuntimeError(otherwise)
