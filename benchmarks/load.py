"""From an FCS file to the annotated h5ad: time of each step, memory, start-up.

Run ``python benchmarks/load.py path`` (or ``memory``, ``start``, ``large``, ``all``)
``[--events 1000000]``.
Times of ``path`` are the least of the repeats, on one thread and on two, beside the net's own time
in the same process; those of ``start`` are of a process of its own. Memory is the peak of a process
of its own above what it held before the step (Linux), less what the step leaves behind, in MB and
in multiples of X, the float32 events. ``large`` annotates one file with the events fifty times
over, in a process of its own.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from reading import status

from fcm_estimators import ReluFormerClassifier, write_fcs
from fcm_estimators._cells.h5ad import write_h5ad
from fcm_estimators.cohort import annotate_files
from fcm_estimators.datasets import simulate_cohort
from fcm_estimators.io import read_fcs
from fcm_estimators.io.segment import open_segment
from fcm_estimators.models import load_model
from fcm_estimators.nn import streamed
from fcm_estimators.preprocessing import Compensation, LinearTransform, LogicleTransform
from fcm_estimators.quality import flag_quality


def make(folder, n_events):
    """A small model, a large file and a small one."""
    raw = simulate_cohort(6, 3000, n_patients=6, random_state=0)
    for step in (Compensation(), LogicleTransform(), LinearTransform()):
        raw = step.fit_transform(raw)
    ReluFormerClassifier(
        sample_key="sample", label_key="cell_type", pos_label="blast", max_epochs=4, n_members=3,
        steps_per_epoch=20, random_state=0,
    ).fit(raw).save(folder / "model")  # fmt: skip
    for name, n in (("large", n_events), ("small", 2000)):
        write_fcs(simulate_cohort(1, n, random_state=9), folder / f"{name}.fcs")


def steps(folder, file="large"):
    """Name and function of each step; each takes what the last one gave."""
    model = load_model(folder / "model", device="cpu")
    return {
        "read": lambda _: read_fcs(folder / f"{file}.fcs"),
        "quality": lambda adata: flag_quality(adata) or adata,
        "prepare": model.prepare,
        "annotate": lambda adata: model.annotate(adata) or adata,
        "write": lambda adata: write_h5ad(adata, folder / "out.h5ad"),
    }


def _timed(best, name, function, *given):
    """Result of a function; keep its least seconds of the CPU and of the clock."""
    used, begun = time.process_time(), time.perf_counter()
    result = function(*given)
    taken = time.process_time() - used, time.perf_counter() - begun
    best[name] = np.minimum(best.get(name, np.inf), taken)
    return result


def path(folder, repeats):
    """Seconds of each step, of the whole command, and of the net alone; one thread and two."""
    for threads in ("1", "2"):
        os.environ["OMP_NUM_THREADS"] = threads
        torch.set_num_threads(int(threads))
        _path(folder, repeats, threads)


@torch.no_grad()
def _path(folder, repeats, threads):
    best = {}
    model, ready = load_model(folder / "model", device="cpu"), None
    for _ in range(repeats):
        adata = None
        for name, step in steps(folder).items():
            adata = _timed(best, name, step, adata)
            ready = adata if name == "prepare" else ready
        make = functools.partial(annotate_files, resume=False, n_workers=0)
        given = folder / "model", [folder / "large.fcs"], folder / "out"
        table = _timed(best, "all, with counts and checksums", make, *given)
        assert table["status"].tolist() == ["done"]
        x = torch.from_numpy(np.ascontiguousarray(ready[:, model.markers_].X))
        _timed(best, "the net alone", streamed, model.net_.module_, x)
    print(f"| step, threads: {threads} | CPU s | wall s | CPU, times the net |\n|---|---|---|---|")
    for name, (cpu, wall) in best.items():
        ratio = cpu / best["the net alone"][0]
        print(f"| {name} | {cpu:.2f} | {wall:.2f} | {ratio:.1f} |", flush=True)


def _memory_of(folder, wanted):
    """Size of X, and peak during a step above what was held before and what is left behind."""
    warnings.simplefilter("ignore")
    for file in ("small", "large"):
        adata = None
        for name, step in steps(folder, file).items():
            if name == wanted and file == "large":
                break
            adata = step(adata)
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    result = step(adata)
    peak, after = status("VmHWM"), status("VmRSS")
    size = (result if adata is None else adata).X.nbytes
    return size, peak - before, peak - max(after, before)


def memory(folder, repeats):
    """Memory of each step beyond what it is given and leaves."""
    print("| step | peak, MB | beyond input and result, MB | times X |\n|---|---|---|---|")
    context = multiprocessing.get_context("spawn")
    for name in steps(folder):
        with context.Pool(1) as pool:
            size, peak, beyond = pool.apply(_memory_of, (folder, name))
        print(
            f"| {name} | {peak / 1e6:.0f} | {beyond / 1e6:.0f} | {beyond / size:.2f} |", flush=True
        )


START = {
    "third-party imports": "import torch, anndata, sklearn",
    "with our imports and the model": (
        "import torch, anndata, sklearn; from fcm_estimators.models import load_model; "
        "load_model('model')"
    ),
    "fcm annotate of 2,000 events": (
        "from fcm_estimators.cli import app; "
        "app(['annotate', 'model', 'small.fcs', '-o', 'started', '--redo'])"
    ),
}


def start(folder, repeats):
    """Seconds of a process by the clock and of the CPU, taken in turns.

    Python keeps compiled files, as after an installation by pip.
    """
    best = dict.fromkeys(START, np.inf)
    keeping = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    for _ in range(repeats):
        for name, code in START.items():
            begun, used = time.perf_counter(), _used_by_children()
            subprocess.run(
                [sys.executable, "-c", code],
                cwd=folder,
                env=keeping,
                capture_output=True,
                check=True,
            )
            taken = time.perf_counter() - begun, _used_by_children() - used
            best[name] = np.minimum(best[name], taken)
    print("| process | wall s | CPU s |\n|---|---|---|")
    for name, (wall, cpu) in best.items():
        print(f"| {name} | {wall:.2f} | {cpu:.2f} |", flush=True)


def _used_by_children():
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def make_many(folder, copies):
    """The large file, some times over: its events one after the other, and time runs on."""
    segment, x = open_segment(folder / "large.fcs"), read_fcs(folder / "large.fcs").X
    begin, n_bytes = 8192, x.nbytes * copies
    keywords = dict(segment.pairs) | {
        "$TOT": str(len(x) * copies), "$BEGINDATA": str(begin), "$ENDDATA": str(begin + n_bytes - 1)
    }  # fmt: skip
    text = "\f" + "".join(f"{name}\f{value}\f" for name, value in keywords.items())
    header = f"FCS3.1    {58:>8}{57 + len(text):>8}" + f"{0:>8}" * 4
    with (folder / "many.fcs").open("wb") as file:
        file.write((header + text).encode().ljust(begin))
        time_column = [channel.kind for channel in segment.channels].index("time")
        step = x[:, time_column].max()
        for _ in range(copies):
            file.write(x.astype("<f4").data)
            x[:, time_column] += step


def _annotated_by_block(folder):
    """Seconds of the clock and of the CPU, memory before and at the peak, and the row."""
    begun, used, before = time.perf_counter(), time.process_time(), status("VmRSS")
    table = annotate_files(
        folder / "model", [folder / "many.fcs"], folder / "out", resume=False, n_workers=0
    )
    seconds = time.perf_counter() - begun, time.process_time() - used
    return *seconds, before, status("VmHWM"), table.iloc[0].to_dict()


def large(folder, repeats, copies=50):
    """Annotate a file that needs more memory than is given to it."""
    make_many(folder, copies)
    size = (folder / "many.fcs").stat().st_size
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        wall, cpu, before, peak, row = pool.apply(_annotated_by_block, (folder,))
    (folder / "many.fcs").unlink()
    print(f"{row['status']} {row['error']} {row['warning']}")
    print("| events | FCS, GB | wall s | CPU s | memory before, MB | peak, MB | h5ad, GB |")
    print("|---|---|---|---|---|---|---|")
    result = Path(row["output"]).stat().st_size
    print(
        f"| {row['n_cells']:,} | {size / 1e9:.2f} | {wall:.0f} | {cpu:.0f} | {before / 1e6:.0f} | "
        f"{peak / 1e6:.0f} | {result / 1e9:.2f} |",
        flush=True,
    )


def main():
    parts = {f.__name__: f for f in (path, memory, start, large)}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=[*parts, "all"])
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    print(
        f"{options.events:,} events, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), options.events)
        for name, part in parts.items():
            if options.what in (name, "all"):
                print(f"-- {name}", flush=True)
                part(Path(folder), options.repeats)


if __name__ == "__main__":
    main()
