"""Epochs, seconds and cells per second until a net is as good as the trees.

Run ``python benchmarks/learning.py``. Trained on one batch of the multicentre CyTOF data, shown
5,000 cells of each sample of the other after every epoch, which is not counted. Seconds are those
of the CPU. Nothing is chosen by the test samples.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import pandas as pd
import torch
from _rivals import Boosting, raw, read, trained
from _trusted import cytof, macro, quietly, samples_of, show
from nets import SetTransformer
from skorch.callbacks import Callback

from fcm_estimators import ReluFormerClassifier

N_SHOWN = 5_000


class Watch(Callback):
    """Macro-F1 on test samples after each epoch, and what the epochs took."""

    def __init__(self, test, classes):
        self.test, self.samples, self.classes = test, read(test), classes
        self.rows, self.used, self.cells = [], 0.0, 0

    def on_epoch_begin(self, net, **kwargs):
        """Begin to count."""
        self.begun = time.process_time()

    def on_batch_end(self, net, batch=None, training=False, **kwargs):
        """Count the cells of a step."""
        self.cells += len(batch[0]["x"]) if training else 0

    @torch.no_grad()
    def on_epoch_end(self, net, **kwargs):
        """Judge the test samples."""
        self.used += time.process_time() - self.begun
        net.module_.eval()
        found = [
            net.module_(torch.from_numpy(x), [0, len(x)], context_weight=torch.ones(len(x)))
            for x in (self.samples.x[i:j] for i, j in self.samples.spans())
        ]
        predicted = self.classes[torch.cat(found).argmax(1).numpy()]
        self.rows.append((self.used, macro(self.test, predicted)))


def thinned(data, rng):
    """Some cells of each sample."""
    order = rng.permutation(data.n_obs)
    sample = data.obs["sample"].astype(str).to_numpy()[order]
    place = pd.Series(sample).groupby(sample).cumcount().to_numpy()
    return data[np.sort(order[place < N_SHOWN])].copy()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=1, choices=[1, 2], help="batch to train on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=ReluFormerClassifier().max_epochs)
    given = parser.parse_args()
    batches = {1: range(1, 9), 2: range(9, 17)}
    train = samples_of(cytof(), batches[given.batch])
    test = thinned(samples_of(cytof(), batches[3 - given.batch]), np.random.default_rng(0))
    classes = np.array(sorted(train.obs["cell_type"].astype(str).unique()))

    begun = time.process_time()
    trees = Boosting(raw, False, given.seed).fit(train)
    seconds = time.process_time() - begun
    goal = macro(test, trees.predict(test))
    rows = [{"model": "LightGBM", "f1": goal, "seconds": seconds}]

    nets = {"ReluFormer": None, "set transformer": SetTransformer}
    watches = {name: Watch(test, classes) for name in nets}
    for name, module in nets.items():
        model = trained(module, given.seed).set_params(max_epochs=given.epochs)
        quietly(model.fit, train, callbacks=[watches[name]])
    for name, watch in watches.items():
        used, f1 = np.array(watch.rows).T
        reached = np.flatnonzero(f1 >= goal)
        first = int(reached[0]) if len(reached) else None
        rows.append(
            {
                "model": name,
                "f1": f1[-1],
                "seconds": used[-1],
                "epochs": len(f1),
                "epochs to the F1 of LightGBM": None if first is None else first + 1,
                "seconds to it": None if first is None else used[first],
                "cells per second": watch.cells / used[-1],
            }
        )
        print(name, " ".join(f"{value:.3f}" for value in f1))
    show(pd.DataFrame(rows).set_index("model").T, f"Trained on batch {given.batch}")


if __name__ == "__main__":
    main()
