"""Faults of disks, processes and files, made on purpose: how many were tried, how many survived.

Run ``python benchmarks/faults.py``, or with names of faults; ``--times`` says how often each is
tried, ``--files`` how many files are many. A fault is survived if the command ends with an error in
words or goes on, no result is half or another one than it says, and the next run completes the
rest. Full and read-only disks are small file systems in memory where this process may mount them,
else a limit of the size of files.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from fcm_estimators import ReluFormerClassifier, write_fcs
from fcm_estimators._files import checksum
from fcm_estimators.cohort import annotate_files
from fcm_estimators.datasets import simulate_cohort
from fcm_estimators.models import load_model
from fcm_estimators.preprocessing import Compensation, LogicleTransform

N_FILES, N_MANY = 4, 2_000
FCM = [sys.executable, "-W", "ignore", "-m", "fcm_estimators.cli"]
TRAIN = ("--label-key", "cell_type", "--pos-label", "blast", "--max-epochs", "4")


class Lab:
    """Files, a model and the results that all runs must give."""

    def __init__(self, folder: Path, n_many: int):
        self.n_many = n_many
        self.folder, self.files, self.model = folder, folder / "in", folder / "model"
        self.files.mkdir()
        raw = simulate_cohort(N_FILES, 3000, random_state=0)
        for name in raw.obs["sample"].cat.categories:
            write_fcs(raw[raw.obs["sample"] == name].copy(), self.files / f"{name}.fcs")
        raw.write_h5ad(folder / "raw.h5ad")
        self.train = LogicleTransform().fit_transform(Compensation().fit_transform(raw))
        ReluFormerClassifier(
            sample_key="sample", label_key="cell_type", pos_label="blast", n_members=0,
            n_layers=1, hidden_dim=16, max_epochs=2, steps_per_epoch=5, random_state=0,
        ).fit(self.train).save(self.model)  # fmt: skip
        self.table = annotate_files(self.model, self.files, folder / "reference", n_workers=0)
        self.fresh = 0

    def new(self) -> Path:
        """A directory that does not exist yet."""
        self.fresh += 1
        return self.folder / f"out{self.fresh}"

    def annotate(self, out, *options, files=None):
        """Arguments of the command."""
        given = [self.files] if files is None else files
        return ["annotate", self.model, *given, "-o", out, *options]

    def same(self, out: Path, names=None) -> bool:
        """Whether all results are those of the reference, recorded and in the table."""
        names = [path.stem for path in sorted(self.files.iterdir())] if names is None else names
        rows = pd.read_csv(out / "table.csv").set_index("sample")
        left = [p for p in out.iterdir() if p.name.startswith(".")]
        return (
            sorted(rows.index) == sorted(names)
            and not left
            and all(self.same_result(out, name) for name in names)
            and all(rows.loc[t["sample"], "n_blast"] == t["n_blast"]
                    for t in self.table.to_dict("records") if t["sample"] in names)
        )  # fmt: skip

    def same_result(self, out: Path, name: str, tolerance: float = 0) -> bool:
        """Whether one result is that of the reference, and recorded."""
        record = json.loads((out / f"{name}.json").read_bytes())
        found = ad.read_h5ad(out / f"{name}.h5ad")
        wanted = ad.read_h5ad(self.folder / "reference" / f"{name}.h5ad")
        a, b = (x.obsm["reluformer_proba"].to_numpy() for x in (found, wanted))
        return (
            record["output"] == checksum(out / f"{name}.h5ad")
            and np.array_equal(found.X, wanted.X)
            and bool((found.obs["reluformer"] == wanted.obs["reluformer"]).all())
            and bool(np.abs(a - b).max() <= tolerance)
        )

    def nothing_half(self, out: Path) -> bool:
        """Whether every result that has a name can be read to its end."""
        for path in out.glob("*.h5ad") if out.exists() else ():
            ad.read_h5ad(path)
        return True


def fcm(arguments, **options):
    return subprocess.run(
        [*FCM, *map(str, arguments)], capture_output=True, text=True, check=False, **options
    )


def in_words(done, status: int) -> bool:
    """Whether a command ended with this status and without a traceback."""
    good = done.returncode == status and "Traceback" not in done.stderr
    if not good:
        print(f"status {done.returncode}: {done.stderr[-400:]}", file=sys.stderr)
    return good


def seconds_of(arguments) -> float:
    started = time.perf_counter()
    fcm(arguments)
    return time.perf_counter() - started


def ended(lab, times, number, *options):
    """Runs that are ended at a random moment, each completed by the next run."""
    whole = seconds_of(lab.annotate(lab.new(), *options))
    for _ in range(times):
        out = lab.new()
        command = [*FCM, *map(str, lab.annotate(out, *options))]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        time.sleep(random.uniform(0.3, 1) * whole)
        process.send_signal(number)
        silent = b"Traceback" not in process.communicate()[1]
        yield (
            lab.nothing_half(out)
            and silent
            and in_words(fcm(lab.annotate(out, *options)), 0)
            and lab.same(out)
        )


def killed(lab, times):
    yield from ended(lab, times, signal.SIGKILL, "--workers", "0")


def killed_with_workers(lab, times):
    yield from ended(lab, times, signal.SIGKILL, "--workers", "2")


def terminated(lab, times):
    yield from ended(lab, times, signal.SIGTERM, "--workers", "2")


def interrupted(lab, times):
    yield from ended(lab, times, signal.SIGINT, "--workers", "0")


def worker_killed(lab, times):
    """One of two workers is killed, as the kernel does when memory is short."""
    for _ in range(times):
        out = lab.new()
        command = [*FCM, *map(str, lab.annotate(out, "--workers", "2"))]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        workers: list[int] = []
        while not workers and process.poll() is None:
            workers = spawned_by(process.pid)
            time.sleep(0.02)
        time.sleep(random.uniform(0, 6))
        with contextlib.suppress(ProcessLookupError):
            os.kill(random.choice(workers), signal.SIGKILL)
        yield process.wait() == 0 and lab.same(out)


def spawned_by(parent: int) -> list[int]:
    """Workers that a process has started."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if int(fields[1]) == parent and b"spawn_main" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def two_runs(lab, times):
    """Two runs of the same files into one directory."""
    for _ in range(times):
        out = lab.new()
        command = [*FCM, *map(str, lab.annotate(out, "--workers", "0"))]
        runs = [subprocess.Popen(command, stdout=subprocess.DEVNULL) for _ in range(2)]
        yield [run.wait() for run in runs] == [0, 0] and lab.same(out)


def array_of_runs(lab, times):
    """One run for each file, all at once, into one directory."""
    for _ in range(times):
        out, runs = lab.new(), []
        for file in sorted(lab.files.iterdir()):
            command = [*FCM, *map(str, lab.annotate(out, "--workers", "0", files=[file]))]
            runs.append(subprocess.Popen(command, stdout=subprocess.DEVNULL))
        statuses = [run.wait() for run in runs]
        yield not any(statuses) and lab.same(out)


def input_replaced(lab, times):
    """The file is replaced all the time: a row never has the checksum of another result."""
    contents = [path.read_bytes() for path in sorted(lab.files.iterdir())[:2]]
    expected = dict(zip(lab.table["input_sha256"], lab.table["n_blast"], strict=True))
    place = lab.new()
    place.mkdir()
    file, stop = place / "tube.fcs", threading.Event()
    file.write_bytes(contents[0])

    def replace():
        while not stop.wait(random.uniform(0, 0.2)):
            (place / "next").write_bytes(random.choice(contents))
            (place / "next").replace(file)

    thread = threading.Thread(target=replace)
    thread.start()
    for _ in range(10 * times):
        [row] = annotate_files(lab.model, file, lab.new(), n_workers=0).to_dict("records")
        yield row["status"] == "failed" or expected[row["input_sha256"]] == row["n_blast"]
    stop.set()
    thread.join()


@contextlib.contextmanager
def small_disk(lab, kib):
    """A directory on a disk of this size, and options of commands that write there."""
    place = lab.new()
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode == 0:
        try:
            yield place, {}
        finally:
            subprocess.run(["umount", "-l", str(place)], check=False)
        return

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (kib << 10, kib << 10))

    yield place, {"preexec_fn": limit}


def disk_full(lab, times):
    """Annotate, train and report on disks that have too little space."""
    fcm(["report", lab.folder / "reference", "-o", lab.folder / "pages"])
    page = next((lab.folder / "pages").iterdir()).stat().st_size >> 10
    result = (lab.folder / "reference" / f"{lab.table['sample'][0]}.h5ad").stat().st_size >> 10
    model = sum(path.stat().st_size for path in lab.model.iterdir()) >> 10
    commands = {
        "annotate": (["annotate", lab.model, lab.files, "--workers", "0"], N_FILES * result),
        "train": (["train", lab.folder / "raw.h5ad", *TRAIN, "--workers", "0"], model),
        "report": (["report", lab.folder / "reference"], N_FILES * page),
    }
    for _ in range(times):
        for command, needed in commands.values():
            with small_disk(lab, random.randint(4, int(0.9 * needed))) as (place, limited):
                done = fcm([*command, "-o", place / "out"], **limited)
                yield in_words(done, 1) and lab.nothing_half(place / "out")


STORE = """
import sys, warnings
from fcm_estimators.models import load_model
warnings.simplefilter("ignore")
try:
    load_model(sys.argv[1]).annotate(sys.argv[2])
except OSError:
    sys.exit(1)
"""


def disk_full_store(lab, times):
    """Results into a store whose disk has space for a part of them: the store stays as it was."""
    lab.train.write_h5ad(lab.folder / "train.h5ad")
    before = (lab.folder / "train.h5ad").read_bytes()
    for _ in range(3 * times):
        size = (len(before) >> 10) + random.randint(8, 4000)
        with small_disk(lab, size) as (place, limited):
            (place / "train.h5ad").write_bytes(before)
            command = [sys.executable, "-c", STORE, str(lab.model), str(place / "train.h5ad")]
            done = subprocess.run(command, capture_output=True, text=True, check=False, **limited)
            yield in_words(done, 1) and (place / "train.h5ad").read_bytes() == before


def output_lost(lab, times):
    """The directory of results is removed while a run writes into it."""
    command = lab.annotate(lab.new(), "--workers", "0")
    whole = seconds_of(command)
    for _ in range(times):
        out = lab.new()
        process = subprocess.Popen(
            [*FCM, *map(str, lab.annotate(out, "--workers", "0"))],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        time.sleep(random.uniform(0.5, 1) * whole)
        shutil.rmtree(out, ignore_errors=True)
        yield "Traceback" not in process.communicate()[1]


def read_only(lab, times):
    """A disk that can only be read."""
    for _ in range(times):
        with small_disk(lab, 4096) as (place, limited):
            (place / "out").mkdir()
            if limited:
                (place / "out").chmod(0o555)
            else:
                subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
            done = fcm(lab.annotate(place / "out", "--workers", "0"))
            yield done.returncode in (1, 2) and "Traceback" not in done.stderr


def training_killed(lab, times):
    """Training that is killed and resumed ends with the weights of one that was not."""
    command = ["train", lab.folder / "raw.h5ad", *TRAIN, "--workers", "0", "-o"]
    wanted = lab.new()
    whole = seconds_of([*command, wanted])
    weights = [path.name for path in wanted.glob("*.safetensors")]
    for _ in range(times):
        out = lab.new()
        process = subprocess.Popen(
            [*FCM, *map(str, [*command, out])], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(random.uniform(0.4, 1) * whole)
        process.kill()
        process.wait()
        done = fcm([*command, out, "--resume", "--overwrite"])
        yield in_words(done, 0) and [p.name for p in out.glob("*.safetensors")] == weights


def training_twice(lab, times):
    """Two processes with one seed give equal weights."""
    command = ["train", lab.folder / "raw.h5ad", *TRAIN, "--workers", "0", "-o"]
    found = []
    for _ in range(times + 1):
        out = lab.new()
        fcm([*command, out])
        found.append([path.name for path in out.glob("*.safetensors")])
    yield from (names == found[0] for names in found[1:])


def odd_files(lab, times):
    """Beside good files: a pipe, nothing, a damaged store, names with other bytes or a formula."""
    good = sorted(lab.files.iterdir())[0].read_bytes()
    for _ in range(times):
        folder = lab.new()
        folder.mkdir()
        os.mkfifo(folder / "pipe.fcs")
        for name in ("zero.fcs", "zero.h5ad"):
            (folder / name).write_bytes(b"")
        for name in (b"a\xff.fcs", b"=cmd().fcs", b"a b\n.fcs", b"plain.fcs"):
            Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(good)
        done = fcm(lab.annotate(lab.new(), "--workers", "0", "--json", files=[folder]))
        rows = json.loads(done.stdout)
        n_done = sum(row["status"] == "done" for row in rows)
        table = (lab.folder / f"out{lab.fresh}" / "table.csv").read_text()
        yield in_words(done, 1) and (n_done, len(rows)) == (4, 6) and "\n=cmd" not in table


def many_files(lab, times):
    """Open files and memory stay flat over many small files."""
    folder = lab.new()
    folder.mkdir()
    content = sorted(lab.files.iterdir())[0].read_bytes()
    for i in range(lab.n_many):
        (folder / f"{i}.fcs").write_bytes(content)
    seen = []

    def look(_):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        seen.append(
            (len(list(Path("/proc/self/fd").iterdir())), pages * os.sysconf("SC_PAGE_SIZE"))
        )

    table = annotate_files(lab.model, folder, lab.new(), n_workers=0, progress=look)
    handles, memory = np.array(seen[lab.n_many // 10 :]).T
    grown = (memory[-50:].mean() - memory[:50].mean()) / 2**20
    found = f"handles {handles.min()} to {handles.max()}, memory {grown:+.1f} MiB"
    print(f"{lab.n_many} files: {found}")
    yield bool((table["status"] == "done").all() and np.ptp(handles) <= 2 and grown < 20)


def equality(lab, times):
    """Threads, workers, order of files, and chunks change no result."""
    for threads, workers in ((1, 0), (2, 0), (1, 2)):
        out = lab.new()
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        files = sorted(lab.files.iterdir(), reverse=threads == 2)
        done = fcm(lab.annotate(out, "--workers", workers, files=files), env=environment)
        names = [path.stem for path in files]
        yield in_words(done, 0) and all(lab.same_result(out, name, 1e-6) for name in names)
    clf = load_model(lab.model)
    whole = clf.predict_proba(lab.train)
    path = lab.folder / "chunks.h5ad"
    lab.train.write_h5ad(path)
    clf.annotate(path)
    stored = ad.read_h5ad(path).obsm["reluformer_proba"].to_numpy()
    yield bool(np.abs(stored - whole).max() <= 1e-6)


FAULTS = {
    "killed": (killed, "annotate killed (SIGKILL) at any moment, run again"),
    "killed_with_workers": (killed_with_workers, "the same with two workers"),
    "terminated": (terminated, "annotate ended by SIGTERM, run again"),
    "interrupted": (interrupted, "annotate interrupted (SIGINT), run again"),
    "worker_killed": (worker_killed, "one worker killed"),
    "two_runs": (two_runs, "two runs of the same files into one directory"),
    "array_of_runs": (array_of_runs, "a run per file into one directory, all at once"),
    "input_replaced": (input_replaced, "input replaced all the time"),
    "disk_full": (disk_full, "disk full: annotate, train, report"),
    "disk_full_store": (disk_full_store, "disk full: results into a store"),
    "output_lost": (output_lost, "output removed during the run"),
    "read_only": (read_only, "output on a disk that can only be read"),
    "odd_files": (odd_files, "pipe, empty files, names not UTF-8 or like a formula"),
    "training_killed": (training_killed, "training killed at any moment, resumed: equal weights"),
    "training_twice": (training_twice, "training in two processes: equal weights"),
    "many_files": (many_files, "many files in one process: handles and memory flat"),
    "equality": (equality, "equal over threads, workers, order, chunks"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("faults", nargs="*", choices=[*FAULTS, []], help="default: all")
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--files", type=int, default=N_MANY, help="how many files are many")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    random.seed(given.seed)
    good = True
    print("| fault | tried | survived |\n|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(Path(folder), given.files)
        for name in given.faults or FAULTS:
            make, text = FAULTS[name]
            outcomes = list(make(lab, given.times))
            good &= all(outcomes)
            print(f"| {text} | {len(outcomes)} | {sum(outcomes)} |", flush=True)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
