"""Time and memory of reading an FCS file, against flowio's bare decode of the same file.

Run ``python benchmarks/reading.py [--events 1000000]``. Times are CPU seconds, minima of repeats
taken in turns. Memory is the peak of a process of its own above what it held before it read
(Linux), in multiples of X, the float32 events.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import time
from pathlib import Path

import flowio
import numpy as np

from fcm_estimators import read_fcs

# Numpy type, $DATATYPE, $BYTEORD, $PnE
KINDS = {
    "float32": ("<f4", "F", "1,2,3,4", "0,0"),
    "float32, big-endian": (">f4", "F", "4,3,2,1", "0,0"),
    "float64": ("<f8", "D", "1,2,3,4", "0,0"),
    "16 bits, linear": (">u2", "I", "4,3,2,1", "0,0"),
    "10 bits in 16, logarithmic": (">u2", "I", "4,3,2,1", "4,1"),
}


def write_file(path, kind, n_events, n_channels):
    """A file of one kind with random events."""
    code, letter, order, amplifier = KINDS[kind]
    top = 1024 if amplifier != "0,0" else 1 << 16
    data = np.random.default_rng(0).integers(0, top, size=(n_events, n_channels)).astype(code)
    keywords = {
        "$BEGINDATA": "8192",
        "$ENDDATA": str(8192 + data.nbytes - 1),
        "$BYTEORD": order,
        "$DATATYPE": letter,
        "$MODE": "L",
        "$NEXTDATA": "0",
        "$PAR": str(n_channels),
        "$TOT": str(n_events),
    }
    for n in range(1, n_channels + 1):
        keywords |= {
            f"$P{n}N": f"FL{n}-A",
            f"$P{n}B": str(8 * data.itemsize),
            f"$P{n}E": amplifier,
            f"$P{n}R": str(top),
        }
    text = "|" + "|".join(field for pair in keywords.items() for field in pair) + "|"
    header = "FCS3.1    " + "".join(f"{n:>8}" for n in (58, 58 + len(text) - 1, 0, 0, 0, 0))
    path.write_bytes((header + text).encode().ljust(8192) + data.tobytes())


def decode_only(path):
    """What flowio does before anything is made of the events."""
    return flowio.FlowData(path, ignore_offset_discrepancy=True).events


def seconds(tasks, repeats):
    """Fewest CPU seconds of each task, taken in turns."""
    best = dict.fromkeys(tasks, np.inf)
    for _ in range(repeats):
        for name, task in tasks.items():
            start = time.process_time()
            task()
            best[name] = min(best[name], time.process_time() - start)
    return best


def status(field):
    """A field of /proc/self/status in bytes."""
    text = Path("/proc/self/status").read_text()
    line = next(line for line in text.splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024


def extra_memory(path, small):
    """Peak bytes of read_fcs above what the process held before."""
    read_fcs(small)  # modules that are loaded at the first use
    before = status("VmRSS")
    adata = read_fcs(path)
    return status("VmHWM") - before, adata.X.nbytes


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    print("| events | read_fcs, s | flowio, s | ratio | peak, times X |")
    print("|---|---|---|---|---|")
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        path, small = Path(folder) / "tube.fcs", Path(folder) / "small.fcs"
        for kind in KINDS:
            for n_channels in (12, 30):
                write_file(path, kind, args.events, n_channels)
                write_file(small, kind, 100, n_channels)
                tasks = {"ours": lambda: read_fcs(path), "flowio": lambda: decode_only(path)}
                found = seconds(tasks, args.repeats)
                with context.Pool(1) as pool:
                    peak, size = pool.apply(extra_memory, (path, small))
                print(
                    f"| {args.events:,} x {n_channels}, {kind} | {found['ours']:.3f} "
                    f"| {found['flowio']:.3f} | {found['ours'] / found['flowio']:.1f} "
                    f"| {peak / size:.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
