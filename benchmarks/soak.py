"""Does memory stay flat when one process trains on, annotates and explains 200 samples?

Run ``python benchmarks/soak.py``. Every sample is new; every tenth time a model is trained anew.
The script fails if the mean resident memory of the last quarter is more than 5 % above that of the
second.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from pathlib import Path

import anndata as ad
import numpy as np

from explainers import AttentionExplainer, GradientExplainer
from fcm_estimators import ReluFormerClassifier
from fcm_estimators.datasets import simulate_cohort
from fcm_estimators.preprocessing import Compensation, LinearTransform, LogicleTransform
from fcm_estimators.quality import flag_quality

TRAIN_EVERY = 10


def resident():
    """Resident memory in MiB, as Linux counts it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("/proc/self/status has no VmRSS")


def sample(number, n_cells):
    """One preprocessed sample, different for every number."""
    adata = simulate_cohort(1, n_cells, blast_fraction=0.2, random_state=number)
    flag_quality(adata)
    for step in (Compensation(), LogicleTransform(), LinearTransform()):
        adata = step.fit_transform(adata)
    return adata


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--cells", type=int, default=20_000)
    given = parser.parse_args()
    used, started = [], time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        for i in range(given.samples):
            adata = sample(i, given.cells)
            if i % TRAIN_EVERY == 0:
                clf = ReluFormerClassifier(
                    sample_key="sample",
                    label_key="cell_type",
                    pos_label="blast",
                    max_epochs=3,
                    random_state=i,
                ).fit(adata)
                clf.save(Path(folder) / "model")
                clf = ReluFormerClassifier.load(Path(folder) / "model")
            clf.annotate(adata)
            GradientExplainer(clf, mode="own").explain(adata)
            GradientExplainer(clf, mode="set", key_added="set").explain(adata)
            AttentionExplainer(clf, net_layer=-1).explain(adata)
            adata.write_h5ad(Path(folder) / "sample.h5ad")
            again = ad.read_h5ad(Path(folder) / "sample.h5ad")
            if again.n_obs != adata.n_obs:
                raise RuntimeError("the sample was not written whole")
            gc.collect()
            used.append(resident())
            if (i + 1) % (given.samples // 8) == 0:
                print(f"{i + 1:4d} samples: {used[-1]:.0f} MiB", flush=True)
    quarters = [float(np.mean(part)) for part in np.array_split(used, 4)]
    change = quarters[3] / quarters[1] - 1
    print(
        f"mean of the quarters: {', '.join(f'{q:.0f}' for q in quarters)} MiB; last against second "
        f"{100 * change:+.1f} %; {time.perf_counter() - started:.0f} s"
    )
    sys.exit(0 if change <= 0.05 else 1)


if __name__ == "__main__":
    main()
