"""Damaged and hostile files: each is read or refused with an FcmError, soon and in little memory.

Run ``python benchmarks/fuzz.py fcs`` (or ``model``, ``gates``, ``store``, ``csv``, ``all``);
``--files`` says how many of each.
Files are made from small valid ones by mutations that a seed decides. Any outcome other than a
result or an FcmError is printed, its file is kept in ``--keep``, and the script fails.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import tracemalloc
import warnings
from collections import Counter
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import scipy.sparse as sp

from fcm_estimators import FcmError, read_fcs, write_fcs
from fcm_estimators.datasets import simulate_cohort

# For one file: seconds of the CPU and of the clock, and bytes that Python and numpy may hold.
SECONDS, SECONDS_WAITED = 5, 60
BYTES = 256 << 20
ADDRESS_SPACE = 8 << 30

NASTY = [
    b"", b" ", b"0", b"-1", b"1", b"7", b"99999999", b"9223372036854775807", b"1e308", b"nan",
    b"inf", b"-0", b"0x10", b"1,2,3,4", b"4,3,2,1", b"1.5", b"65", b"\x00", b"\xff\xfe", b"A", b"F",
    b"D", b"I", b"L", b"/", b"//", b"$", "\u00b5\u2028".encode(), b"%s%n", b"../../etc/passwd",
]  # fmt: skip
KEYWORDS = [
    b"$TOT", b"$PAR", b"$NEXTDATA", b"$BEGINDATA", b"$ENDDATA", b"$BEGINSTEXT", b"$ENDSTEXT",
    b"$BEGINANALYSIS", b"$ENDANALYSIS", b"$DATATYPE", b"$BYTEORD", b"$MODE", b"$P1B", b"$P2B",
    b"$P1R", b"$P2R", b"$P1E", b"$P2E", b"$P1N", b"$P2N", b"$P1S", b"$P1G", b"$TIMESTEP",
    b"$SPILLOVER", b"SPILL", b"$UNICODE", b"$CYT",
]  # fmt: skip


def seeds(folder):
    """Small valid files of several kinds."""
    raw = simulate_cohort(1, 60, random_state=0)
    write_fcs(raw, folder / "float.fcs")
    found = [(folder / "float.fcs").read_bytes(), integer_file(), integer_file(bits=(8, 32))]
    return [*found, found[1].replace(b"FCS3.0", b"FCS2.0"), log_file()]


def integer_file(bits=(16, 32), extra=()):
    """Integer data in list mode."""
    rng = np.random.default_rng(0)
    text = {b"$MODE": b"L", b"$DATATYPE": b"I", b"$BYTEORD": b"4,3,2,1", b"$TOT": b"40"}
    text |= {b"$PAR": b"2", b"$NEXTDATA": b"0"}
    for i, n in enumerate(bits, 1):
        text |= {b"$P%dB" % i: b"%d" % n, b"$P%dR" % i: b"1024", b"$P%dE" % i: b"0,0"}
        text |= {b"$P%dN" % i: b"FL%d" % i}
    text |= dict(extra)
    data = b"".join(int(v).to_bytes(n // 8, "big") for v in rng.integers(0, 200, 40) for n in bits)
    return assembled(text, data)


def log_file():
    return integer_file(extra={b"$P1E": b"4,1", b"$P2E": b"4,0", b"$P2R": b"1000"}.items())


def assembled(text, data, delimiter=b"/"):
    """File with HEADER, TEXT and DATA that agree."""
    text = {**text, b"$BEGINDATA": b"%8d" % 0, b"$ENDDATA": b"%8d" % 0}
    for _ in range(2):
        body = delimiter + b"".join(k + delimiter + v + delimiter for k, v in text.items())
        begin = 58 + len(body)
        text[b"$BEGINDATA"], text[b"$ENDDATA"] = b"%8d" % begin, b"%8d" % (begin + len(data) - 1)
    header = b"FCS3.0    " + b"%8d%8d%8d%8d%8d%8d" % (
        58, 58 + len(body) - 1, begin, begin + len(data) - 1, 0, 0,
    )  # fmt: skip
    return header + body + data


def mutated(content, rng):
    """One to four mutations of a file's bytes."""
    out = bytearray(content)
    for _ in range(rng.integers(1, 5)):
        kind = rng.integers(0, 9)
        at = int(rng.integers(0, max(len(out), 1)))
        if kind == 0 and out:
            out[at] = rng.integers(0, 256)
        elif kind == 1:
            del out[at : at + int(rng.integers(1, 200))]
        elif kind == 2:
            out[at:at] = rng.bytes(int(rng.integers(1, 100)))
        elif kind == 3:
            field = 10 + 8 * int(rng.integers(0, 6))
            value = int(rng.choice([-1, 0, 1, 57, 58, len(out), 10 * len(out), 99_999_999]))
            out[field : field + 8] = (b"%8d" % value)[:8]
        elif kind in (4, 5):
            replace_value(out, bytes(rng.choice(np.array(KEYWORDS, dtype=object))), rng)
        elif kind == 6:
            del out[at:]
        elif kind == 7:
            out += out[: int(rng.integers(0, len(out) + 1))]
        else:
            out[at : at + 4] = struct.pack(">I", int(rng.integers(0, 2**32)))
    return bytes(out)


def replace_value(out, keyword, rng):
    """Another value of a keyword, or the keyword once more."""
    nasty = NASTY[int(rng.integers(0, len(NASTY)))]
    start = out.find(keyword + b"/")
    if start < 0:
        out[58:58] = b"/" + keyword + b"/" + nasty
        return
    begin = start + len(keyword) + 1
    end = out.find(b"/", begin)
    out[begin : end if end > 0 else begin] = nasty


def fuzz_fcs(n_files, folder, rng):
    originals = seeds(folder)
    for content in originals:
        path = folder / "valid.fcs"
        path.write_bytes(content)
        read_fcs(path)
    for i in range(n_files):
        content = mutated(originals[i % len(originals)], rng)
        path = folder / "mutated.fcs"
        path.write_bytes(content)
        yield path, lambda path=path: read_fcs(path)


def small_model(rng):
    """A classifier that was hardly trained, and its data."""
    from fcm_estimators import ReluFormerClassifier

    x = rng.normal(size=(60, 3)).astype(np.float32)
    names = [f"cell {i}" for i in range(60)]
    obs = pd.DataFrame({"y": np.where(x[:, 0] > 0, "a", "b")}, index=names)
    adata = ad.AnnData(x, obs=obs.astype("category"), var=pd.DataFrame(index=["A", "B", "C"]))
    clf = ReluFormerClassifier(
        label_key="y", max_epochs=1, steps_per_epoch=1, hidden_dim=8, n_layers=1
    )
    return clf.fit(adata), adata


def fuzz_model(n_files, folder, rng):
    from fcm_estimators.models import load_model

    clf, _ = small_model(rng)
    clf.save(folder / "model")
    original = {p.name: p.read_bytes() for p in (folder / "model").iterdir()}
    target = folder / "mutated"
    for _ in range(n_files):
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir()
        for name, content in original.items():
            (target / name).write_bytes(content)
        if rng.random() < 0.3:
            name = str(rng.choice(list(original)))
            (target / name).write_bytes(mutated(original[name], rng))
        else:
            described = json.loads(original["model.json"])
            twist(described, rng)
            (target / "model.json").write_text(json.dumps(described))
        yield target, lambda: load_model(target)


def twist(value, rng):
    """Replace something inside of a JSON value."""
    odd = [None, -1, 10**30, 1e308, "", "x" * 1000, [], {}, True, [[]], {"pairs": 3}, "../../x"]
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        if not keys:
            return
        key = keys[int(rng.integers(0, len(keys)))]
        if isinstance(value[key], dict | list) and value[key] and rng.random() < 0.8:
            value = value[key]
            continue
        value[key] = odd[int(rng.integers(0, len(odd)))]
        return


def fuzz_gates(n_files, folder, rng):
    from fcm_estimators.gating import GatingTree

    raw = simulate_cohort(1, 200, random_state=0)
    tree = GatingTree.from_adata(raw, sample="patient1_d0")
    tree.to_gatingml(folder / "valid.xml", channels=raw)
    originals = [(".xml", (folder / "valid.xml").read_bytes())]
    home = os.environ.get("FCM_DATA_HOME")
    for path in sorted(Path(home).rglob("*.wsp")) if home else ():
        originals.append((".wsp", path.read_bytes()))
    words = [b"-1", b"nan", b"1e308", b"", b"<x/>", b"&a;", b"0", b"gating:", b"../../etc/passwd"]
    for i in range(n_files):
        ending, original = originals[i % len(originals)]
        content = bytearray(original)
        for _ in range(rng.integers(1, 4)):
            quotes = [k for k, c in enumerate(content) if c == 34]
            if rng.random() < 0.2 or len(quotes) < 2:
                content = bytearray(mutated(bytes(content), rng))
                continue
            at = int(rng.integers(0, len(quotes) - 1))
            content[quotes[at] + 1 : quotes[at + 1]] = words[int(rng.integers(0, len(words)))]
        path = folder / f"mutated{ending}"
        path.write_bytes(bytes(content))
        read = GatingTree.from_gatingml if ending == ".xml" else GatingTree.from_flowjo
        yield path, lambda path=path, read=read: read(path)


def fuzz_store(n_files, folder, rng):
    """h5ad and zarr, dense and sparse: read into memory, and annotated on the disk."""
    from fcm_estimators.cohort import read_file

    clf, adata = small_model(rng)
    adata.obs["sample"] = pd.Categorical(np.repeat(["s", "t"], 30))
    clf.set_params(sample_key="sample")
    originals = []
    for name, x in (("dense", adata.X), ("sparse", sp.csr_matrix(adata.X))):
        made = ad.AnnData(x, obs=adata.obs, var=adata.var, obsm={"gates": adata.obs})
        made.write_h5ad(folder / f"{name}.h5ad")
        made.write_zarr(folder / f"{name}.zarr", convert_strings_to_categoricals=False)
        originals += [folder / f"{name}.h5ad", folder / f"{name}.zarr"]
    for i in range(n_files):
        original = originals[i % len(originals)]
        target = folder / f"mutated{original.suffix}"
        shutil.rmtree(target, ignore_errors=True)
        copy = shutil.copytree if original.is_dir() else shutil.copy
        copy(original, target)
        for _ in range(rng.integers(1, 4)):
            if original.is_dir():
                damage_zarr(target, rng)
            else:
                with (
                    contextlib.suppress(KeyError, TypeError, ValueError),
                    h5py.File(target, "r+") as file,
                ):
                    damage_h5(file, rng)
        if not original.is_dir() and rng.random() < 0.2:
            target.write_bytes(mutated(target.read_bytes(), rng))

        def both(target=target):
            try:
                clf.predict(read_file(target))
            finally:
                clf.annotate(target)

        yield target, both


def damage_h5(file, rng):
    """Change one element of an HDF5 file, or an attribute."""
    found = []
    file.visit(found.append)
    name = str(rng.choice(found))
    element, kind = file[name], rng.integers(0, 6)
    if kind == 0:
        del file[name]
    elif kind == 1 and len(element.attrs):
        key = str(rng.choice(list(element.attrs)))
        odd = [0, "", "csr_matrix", "array", "categorical", "x" * 99, np.array([9, 9]), -1.5]
        element.attrs[key] = odd[int(rng.integers(0, len(odd)))]
    elif kind == 2:
        del file[name]
        file[name] = np.zeros(int(rng.integers(0, 90)))
    elif kind == 3:
        del file[name]
        file.create_group(name)
    elif isinstance(element, h5py.Dataset) and element.size and element.dtype.kind in "fiu":
        values = element[:]
        odd = [-1, 2**31 - 1, 10**6, 0, 127, 1, 59]
        at = int(rng.integers(0, values.size))
        values.reshape(-1)[at] = np.array(odd[int(rng.integers(0, 7))]).astype(values.dtype)
        element[...] = values
        if kind == 5:
            del file[name]
            file[name] = values.reshape(-1)[: int(rng.integers(0, values.size + 1))]


def damage_zarr(folder, rng):
    """Change a description of a zarr store, or the bytes of a chunk, or remove a file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    path = files[int(rng.integers(0, len(files)))]
    if rng.random() < 0.2:
        path.unlink()
    elif path.name.startswith(".z") or path.suffix == ".json":
        described = json.loads(path.read_bytes())
        twist(described, rng)
        path.write_text(json.dumps(described))
    else:
        path.write_bytes(mutated(path.read_bytes(), rng))


def fuzz_csv(n_files, folder, rng):
    """Tables of gates, and of patients."""
    from fcm_estimators.cli._options import patients_of
    from fcm_estimators.labels import LabelSource

    adata = simulate_cohort(1, 60, random_state=0)
    table = pd.DataFrame({"event": range(len(adata)), "a": 1, "b": rng.integers(0, 2, len(adata))})
    table.to_csv(folder / "by event.csv", index=False)
    table.drop(columns="event").to_csv(folder / "by row.csv", index=False)
    samples = adata.obs["sample"].unique()
    pd.DataFrame({"sample": samples, "patient": "p"}).to_csv(folder / "patients.csv", index=False)
    words = [b"", b"-1", b"nan", b"1e308", b"2", b"0.5", b'"', b"\n", b",", b"\xff", b"event", b"0"]
    path = folder / "mutated.csv"
    for i in range(n_files):
        name = ("patients.csv", "by event.csv", "by row.csv")[i % 3]
        content = bytearray((folder / name).read_bytes())
        for _ in range(rng.integers(1, 4)):
            fields = [k for k, c in enumerate(content) if c in b",\n"]
            if rng.random() < 0.3 or len(fields) < 2:
                content = bytearray(mutated(bytes(content), rng))
                continue
            at = int(rng.integers(0, len(fields) - 1))
            word = words[int(rng.integers(0, len(words)))]
            content[fields[at] + 1 : fields[at + 1]] = word
        path.write_bytes(bytes(content))
        column = "event" if name == "by event.csv" else None
        source = LabelSource(gates=str(path), classes={"b": "blast"}, event_column=column)
        yield (
            path,
            (
                (lambda: patients_of(path))
                if name == "patients.csv"
                else lambda source=source: source(adata.copy())
            ),
        )


def run(name, cases, keep):
    """Run all cases and count outcomes; unwanted ones are printed and their files kept."""
    outcomes, slowest, largest = Counter(), 0.0, 0
    tracemalloc.start()
    for i, (path, action) in enumerate(cases):
        tracemalloc.reset_peak()
        held = tracemalloc.get_traced_memory()[0]
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.setitimer(signal.ITIMER_REAL, SECONDS_WAITED)
        started = time.process_time()
        try:
            action()
            outcome = "read"
        except FcmError:
            outcome = "refused"
        except BaseException as error:  # noqa: BLE001 - what this script looks for
            outcome = f"{type(error).__name__}: {error}"[:200]
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
            signal.setitimer(signal.ITIMER_REAL, 0)
        seconds, peak = time.process_time() - started, tracemalloc.get_traced_memory()[1] - held
        slowest, largest = max(slowest, seconds), max(largest, peak)
        if peak > BYTES:
            outcome = f"{peak / 2**20:.0f} MiB"
        outcomes[outcome] += 1
        if outcome not in ("read", "refused"):
            print(f"{name} {i}: {outcome}", flush=True)
            if keep is not None:
                copy = shutil.copytree if path.is_dir() else shutil.copy
                copy(path, keep / f"{name}_{i}_{path.name}")
    tracemalloc.stop()
    print(
        f"{name}: {outcomes['read']:,} read, {outcomes['refused']:,} refused with an FcmError, "
        f"{sum(outcomes.values()) - outcomes['read'] - outcomes['refused']:,} else; slowest "
        f"{1000 * slowest:.0f} ms, largest {largest / 2**20:.1f} MiB"
    )
    return sum(outcomes.values()) == outcomes["read"] + outcomes["refused"]


def main():
    kinds = {
        "fcs": (fuzz_fcs, 5_000),
        "model": (fuzz_model, 2_000),
        "gates": (fuzz_gates, 900),
        "store": (fuzz_store, 600),
        "csv": (fuzz_csv, 1_500),
    }
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=[*kinds, "all"])
    parser.add_argument("--files", type=int, help="default: 10,000 in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="keep what was neither read nor refused here")
    given = parser.parse_args()
    if given.keep is not None:
        given.keep.mkdir(parents=True, exist_ok=True)

    def too_long(*_):
        raise TimeoutError(f"longer than {SECONDS} s, or {SECONDS_WAITED} s with waiting")

    signal.signal(signal.SIGPROF, too_long)
    signal.signal(signal.SIGALRM, too_long)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    warnings.simplefilter("ignore")
    good = True
    for name, (make, n_files) in kinds.items():
        if given.what in (name, "all"):
            with tempfile.TemporaryDirectory() as folder:
                rng = np.random.default_rng(given.seed)
                cases = make(given.files or n_files, Path(folder), rng)
                good &= run(name, cases, given.keep)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
