"""Annotation of many files on one and on two worker processes.

Run ``python benchmarks/cohort.py``. Clusters are started, and models loaded, before the clock is;
runs alternate, and the fastest of each counts. One thread per worker.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import tempfile
import time
from pathlib import Path

from distributed import Client, LocalCluster

from fcm_estimators import ReluFormerClassifier, write_fcs
from fcm_estimators.cohort import annotate_files, read_files
from fcm_estimators.datasets import simulate_cohort
from fcm_estimators.preprocessing import Compensation, LinearTransform, LogicleTransform


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=16)
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "fcs").mkdir()
        for i in range(given.files):
            raw = simulate_cohort(1, given.cells, random_state=i)
            write_fcs(raw, folder / "fcs" / f"{i:03d}.fcs")
        first = sorted((folder / "fcs").iterdir())[:4]
        steps = [Compensation(), LogicleTransform(), LinearTransform()]
        train = read_files(first, steps=steps, label=label, n_workers=0, max_cells=5000)
        clf = ReluFormerClassifier(
            sample_key="sample", label_key="cell_type", pos_label="blast", max_epochs=1
        ).fit(train)
        clf.save(folder / "model")
        seconds = {1: [], 2: []}
        for _ in range(given.repeats):
            for n_workers, found in seconds.items():
                with (
                    LocalCluster(
                        n_workers=n_workers,
                        threads_per_worker=1,
                        dashboard_address=None,
                        silence_logs=logging.ERROR,
                    ) as cluster,
                    Client(cluster) as client,
                ):
                    run(folder, first[:n_workers], client)
                    found.append(run(folder, folder / "fcs", client))
        for n_workers, found in seconds.items():
            cells = given.files * given.cells / min(found)
            print(f"{n_workers} worker(s): {min(found):.1f} s, {cells:,.0f} cells a second")
        print(f"two workers are {min(seconds[1]) / min(seconds[2]):.2f} times as fast as one")


def label(adata):
    """Any two classes: what is measured does not depend on them."""
    bright = adata[:, "CD10"].X.ravel() > 3000
    adata.obs["cell_type"] = ["blast" if b else "other" for b in bright]


def run(folder, files, client):
    """Seconds for one annotation of the files, from nothing."""
    shutil.rmtree(folder / "out", ignore_errors=True)
    started = time.perf_counter()
    table = annotate_files(folder / "model", files, folder / "out", client=client)
    if (table["status"] != "done").any():
        raise RuntimeError(table.to_string())
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
