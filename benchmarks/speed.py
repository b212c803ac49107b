"""Time and memory of whole samples: prediction, gradients, attention, training, data on disk.

Run ``python benchmarks/speed.py forward`` (or ``agreement``, ``explain``, ``train``, ``disk``,
``spill``, ``gpu``, ``all``). Times are minima of interleaved repeats; extra memory is the peak of
a process of its own above what it held before (Linux). Threads are torch's default, one per core,
unless ``OMP_NUM_THREADS`` says otherwise.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import platform
import tempfile
import time
import warnings
from pathlib import Path

import anndata
import h5py
import lightgbm
import numpy as np
import pandas as pd
import torch
from _peers import PublishedReluFormer, SoftmaxTransformer
from nets import SetTransformer

from explainers import AttentionExplainer, GradientExplainer
from fcm_estimators import ReluFormerClassifier
from fcm_estimators.datasets import simulate_cohort
from fcm_estimators.inference import FileRows, with_net
from fcm_estimators.nn import ReluFormer, streamed
from fcm_estimators.nn.sources import PackedCells, Stored
from fcm_estimators.nn.streaming import Stream
from fcm_estimators.preprocessing import Compensation, LogicleTransform

N_MARKERS, N_CLASSES = 11, 2
# Softmax attention of more cells takes minutes.
SOFTMAX_CELLS = 30_000


def cells_of(n):
    return torch.randn(n, N_MARKERS, generator=torch.Generator().manual_seed(0))


def net_of():
    torch.manual_seed(0)
    return ReluFormer(N_MARKERS, N_CLASSES).eval()


def predictors():
    """Name and prediction of logits for one sample, the same width and depth throughout."""
    net = net_of()
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20_000, N_MARKERS))
    trees = lightgbm.LGBMClassifier(n_estimators=150, verbose=-1, random_state=0)
    trees.fit(x, x[:, 0] * x[:, 1] > 0)
    induced = SetTransformer(N_MARKERS, N_CLASSES).eval()
    peers = {
        "published": PublishedReluFormer(net),
        "set transformer": lambda x: induced(x, [0, len(x)], x.new_ones(len(x))),
        "softmax": SoftmaxTransformer(net),
    }
    found = {name: torch.no_grad()(peer) for name, peer in peers.items()}
    found["LightGBM"] = lambda x: trees.booster_.predict(x.numpy())
    found["streamed"] = lambda x: streamed(net, x).outputs
    return found


def interleaved(tasks, repeats):
    """Shortest seconds of each task, taken in turns."""
    best = dict.fromkeys(tasks, np.inf)
    for _ in range(repeats):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def extra_memory(task, *args):
    """Peak memory in MB of ``task(*args)()`` in a process of its own, beyond that before."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_measure, (task, args))


def _measure(task, args):
    work = task(*args)
    gc.collect()
    before = _status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    work()
    return (_status("VmHWM") - before) / 1024


def _status(name):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise KeyError(name)


def predict_once(name, n):
    """One prediction, after a small one that loads what is loaded once."""
    predict, x = predictors()[name], cells_of(n)
    predict(x[:5000])
    return lambda: predict(x)


def forward(repeats):
    """Prediction at several sizes against peers on the same cells."""
    rows = []
    for n in (10_000, 100_000, 1_000_000, 10_000_000):
        x, found = cells_of(n), predictors()
        if n > SOFTMAX_CELLS:
            del found["softmax"]
        if n > 1_000_000:
            found = {"streamed": found["streamed"]}
        best = interleaved({k: lambda f=f, x=x: f(x) for k, f in found.items()}, repeats)
        for name, seconds in best.items():
            rows.append(
                {
                    "cells": n,
                    "net": name,
                    "seconds": seconds,
                    "us_per_cell": 1e6 * seconds / n,
                    "extra_mb": extra_memory(predict_once, name, n),
                    "times_slower": seconds / best["streamed"],
                }
            )
    table = pd.DataFrame(rows)
    memory = table[table["net"] == "streamed"].set_index("cells")["extra_mb"]
    table["times_memory"] = table["extra_mb"] / table["cells"].map(memory)
    show(table)


def agreement(repeats):
    """Streamed logits in single precision against the whole sample in double precision."""
    net, x = net_of(), cells_of(1_000_000)
    with torch.no_grad():
        single = streamed(net, x).outputs
        double = net.double()(x.double())
    print("largest difference of a logit, 1 M cells:", float((single - double).abs().max()))


def explained(name, n):
    """One explanation or training step of one sample."""
    net = net_of()
    published, clf = PublishedReluFormer(net), fitted(net)
    parameters = list(net.parameters())

    def step(rows, logits):
        x = torch.from_numpy(rows)
        loss = torch.nn.functional.cross_entropy(logits(x), (x[:, 0] > 0).long())
        torch.autograd.grad(loss, parameters)

    def whole(x):
        return streamed(net, x, parameters=parameters).outputs

    work = {
        "prediction": lambda rows: streamed(net, torch.from_numpy(rows)).outputs,
        "own gradient": GradientExplainer(clf, mode="own").attribute,
        "set gradient": GradientExplainer(clf, mode="set").attribute,
        "attention, layer 0": AttentionExplainer(clf, net_layer=0).attribute,
        "attention, layer 3": AttentionExplainer(clf, net_layer=3).attribute,
        "training step": lambda rows: step(rows, whole),
        "training step, published": lambda rows: step(rows, published),
    }[name]
    cells = cells_of(n).numpy()
    work(cells[:5000])
    return lambda: work(cells)


def fitted(net):
    """Classifier with this net."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, N_MARKERS)).astype(np.float32)
    clf = ReluFormerClassifier(max_epochs=1, steps_per_epoch=1, random_state=0)
    clf.fit(x, (x[:, 0] > 0).astype(int))
    return with_net(clf, net)


def explain(repeats):
    """Gradients, attention and a training step in units of a streamed prediction."""
    names = [
        "prediction",
        "own gradient",
        "set gradient",
        "attention, layer 0",
        "attention, layer 3",
        "training step",
        "training step, published",
    ]
    rows = []
    for n in (10_000, 100_000, 1_000_000, 10_000_000):
        # The published step needs 5 GB for every million cells.
        used = names if n <= 1_000_000 else ["prediction", "set gradient", "training step"]
        tasks = {name: explained(name, n) for name in used}
        best = interleaved(tasks, repeats if n <= 1_000_000 else 1)
        for name, seconds in best.items():
            rows.append(
                {
                    "cells": n,
                    "what": name,
                    "seconds": seconds,
                    "us_per_cell": 1e6 * seconds / n,
                    "predictions": seconds / best["prediction"],
                    "extra_mb": extra_memory(explained, name, n),
                }
            )
    show(pd.DataFrame(rows))


def training(n):
    """Two steps of a fit on whole samples."""
    x = cells_of(n).numpy()
    groups, y = np.repeat(["a", "b"], n // 2), np.where(x[:, 0] > 0, "left", "right")
    clf = ReluFormerClassifier(
        max_epochs=1,
        steps_per_epoch=2,
        cells_per_sample=n // 2,
        random_state=0,
    )
    return lambda: clf.fit(x, y, groups=groups)


def train(repeats):
    """Peak memory of a fit whose steps see whole samples of 1 M cells."""
    print("fit on two samples of 1 M cells, extra MB:", round(extra_memory(training, 2_000_000)))


def write_large(path, n, block=1_000_000):
    """A store of ``n`` cells, written by chunk: two samples, normal values."""
    rng = np.random.default_rng(0)
    names = [f"m{i}" for i in range(N_MARKERS)]
    empty = anndata.AnnData(
        np.zeros((0, N_MARKERS), dtype=np.float32),
        obs=pd.DataFrame({"sample": pd.Categorical([], categories=["a", "b"])}),
        var=pd.DataFrame(index=names),
    )
    empty.write_h5ad(path)
    with h5py.File(path, "r+") as file:
        kept = {name: dict(file[name].attrs) for name in ("X", "obs/_index", "obs/sample/codes")}
        for name in kept:
            del file[name]
        text = h5py.string_dtype()
        x = file.create_dataset("X", (n, N_MARKERS), np.float32, chunks=(65_536, N_MARKERS))
        index = file.create_dataset("obs/_index", (n,), text, chunks=(65_536,))
        codes = file.create_dataset("obs/sample/codes", (n,), np.int8, chunks=(65_536,))
        for start in range(0, n, block):
            stop = min(start + block, n)
            x[start:stop] = rng.standard_normal((stop - start, N_MARKERS), dtype=np.float32)
            index[start:stop] = [str(i) for i in range(start, stop)]
            codes[start:stop] = np.arange(start, stop) >= n // 4
        for name, attributes in kept.items():
            file[name].attrs.update(attributes)


def on_disk(what, path):
    """One pass over a store."""
    clf = fitted(net_of()).set_params(sample_key="sample")
    clf.markers_ = [f"m{i}" for i in range(N_MARKERS)]
    clf.fitted_with_groups_ = False
    return {
        "prediction": lambda: clf.annotate(path),
        "own gradient": lambda: GradientExplainer(clf, mode="own").explain(path),
        "set gradient": lambda: GradientExplainer(clf, mode="set").explain(path),
        "attention": lambda: AttentionExplainer(clf).explain(path),
    }[what]


def disk_pass(what, path):
    work = on_disk(what, path)

    def run():
        start = time.perf_counter()
        work()
        print(f"  {what}: {time.perf_counter() - start:.0f} s", flush=True)

    return run


def disk(repeats, n=20_000_000):
    """Peak memory of a process that predicts and explains more cells than it can hold."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.h5ad"
        write_large(path, n)
        print(f"{n} cells, {path.stat().st_size / 1e9:.1f} GB on disk", flush=True)
        for what in ("prediction", "own gradient", "attention", "set gradient"):
            extra = extra_memory(disk_pass, what, path)
            print(f"  {what}: {extra:.0f} MB beyond the loaded package", flush=True)


def spill(repeats, n=2_000_000):
    """Contexts of a large sample: rows between sweeps in memory, in a file, or recomputed."""
    net, source = net_of(), PackedCells(cells_of(n))
    stream = Stream(net, source)
    kernels = stream.kernels
    readers = [kernels.readers(context) for context in stream.contexts]

    @torch.no_grad()
    def recomputed():
        # For the context of every layer, all layers before it from the cells.
        for layer in range(len(net.layers)):
            sums = kernels.zero_sums(1)
            for start, stop, pieces in stream.chunks():
                h = net.standardise(source.read(start, stop))
                for number in range(layer):
                    q = kernels.queries(kernels.project(number, h))
                    h = kernels.read(number, q, pieces, readers[number])
                kernels.add(sums, kernels.project(layer, h), pieces, None)

    best = interleaved(
        {
            "memory": lambda: Stream(net, source, store=Stored.new),
            "file": lambda: Stream(net, source, store=FileRows),
            "recomputed": recomputed,
        },
        repeats,
    )
    show(pd.DataFrame([best]))


def gpu(repeats):
    """Cells per second on a GPU, and the share of its memory bandwidth that is used."""
    if not torch.cuda.is_available():
        print("no GPU here: nothing measured")
        return
    device = torch.device("cuda")
    print(torch.cuda.get_device_name())
    block = torch.empty(1 << 28, device=device)
    bandwidth = 2 * block.nbytes / _on_gpu(lambda: block.add_(1), repeats)
    net = net_of().to(device)
    # Of each cell: markers once, queries written and read once per layer, logits.
    moved = 4 * (N_MARKERS + 2 * net.hidden_dim * len(net.layers) + N_CLASSES)
    rows = []
    for n in (1_000_000, 10_000_000):
        x = torch.randn(n, N_MARKERS, device=device)
        tasks = {
            "streamed": lambda x=x: streamed(net, x).outputs,
            "streamed, bfloat16": lambda x=x: streamed(net, x, precision=torch.bfloat16).outputs,
        }
        if n <= 1_000_000:
            tasks["published"] = lambda x=x: PublishedReluFormer(net)(x)
        with torch.no_grad():
            exact = streamed(net, x).outputs
        for name, task in tasks.items():
            with torch.no_grad():
                seconds, found = _on_gpu(task, repeats), task()
            difference = torch.softmax(found.float(), 1) - torch.softmax(exact, 1)
            rows.append(
                {
                    "cells": n,
                    "net": name,
                    "million_cells_per_s": n / seconds / 1e6,
                    "share_of_bandwidth": moved * n / seconds / bandwidth,
                    "same_class": (found.argmax(1) == exact.argmax(1)).double().mean().item(),
                    "probability_off_by": difference.abs().max().item(),
                }
            )
    x = torch.randn(SOFTMAX_CELLS, N_MARKERS, device=device)
    with torch.no_grad():
        seconds = _on_gpu(lambda: SoftmaxTransformer(net)(x), repeats)
    rate = SOFTMAX_CELLS / seconds / 1e6
    rows.append({"cells": SOFTMAX_CELLS, "net": "softmax", "million_cells_per_s": rate})
    show(pd.DataFrame(rows))
    show(pd.DataFrame([{"device": name, **_fit_seconds(name)} for name in ("cpu", "cuda")]))


def _fit_seconds(device):
    """Seconds of a fit of the default size, without members, on a simulated cohort."""
    cohort = simulate_cohort(8, 20_000, random_state=0)
    ready = LogicleTransform().fit_transform(Compensation().fit_transform(cohort))
    clf = ReluFormerClassifier(
        sample_key="sample", label_key="cell_type", pos_label="blast", n_members=0,
        validation_fraction=None, max_epochs=5, device=device, random_state=0,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clf.fit(ready)
    seconds = clf.history_["seconds"].to_numpy()
    loss = clf.history_["train_loss"].iloc[-1]
    return {"seconds_per_epoch": np.median(seconds[1:]), "loss": loss}


def _on_gpu(task, repeats):
    best = np.inf
    for _ in range(repeats + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        task()
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - start)
    return best


def show(table):
    print(table.round(3).to_string(index=False), flush=True)


if __name__ == "__main__":
    parts = {f.__name__: f for f in (forward, agreement, explain, train, disk, spill, gpu)}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=[*parts, "all"])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}"
    )
    for name, part in parts.items():
        if options.what in (name, "all"):
            print(f"-- {name}", flush=True)
            part(options.repeats)
