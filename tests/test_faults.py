"""Whatever happens to disks, processes and files, nothing half or wrong is left behind.

``benchmarks/faults.py`` does the same with whole commands that are killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from typer.testing import CliRunner

from fcm_estimators import ReluFormerClassifier, read_fcs, write_fcs
from fcm_estimators._files import read_table, remove_leftovers, write_table
from fcm_estimators.cli import app
from fcm_estimators.cohort import annotate_files, claims, jobs, read_file, read_files
from fcm_estimators.datasets import simulate_cohort
from fcm_estimators.exceptions import FcsError, InvalidInputError, ModelFormatError
from fcm_estimators.io.opened import OpenedFcs
from fcm_estimators.models import load_model
from fcm_estimators.preprocessing import LogicleTransform

pytestmark = pytest.mark.filterwarnings(
    "ignore:The training data are of:UserWarning", "ignore:Writing zarr v2:UserWarning"
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Three FCS files, prepared data, and a model of them."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "in").mkdir()
    raw = simulate_cohort(3, 300, random_state=0)
    for name in raw.obs["sample"].cat.categories:
        write_fcs(raw[raw.obs["sample"] == name].copy(), folder / "in" / f"{name}.fcs")
    train = LogicleTransform().fit_transform(raw)
    train.write_h5ad(folder / "train.h5ad")
    clf = ReluFormerClassifier(
        sample_key="sample", label_key="cell_type", pos_label="blast", n_members=0,
        n_layers=1, hidden_dim=8, max_epochs=1, steps_per_epoch=1, random_state=0,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clf.fit(train).save(folder / "model")
    return folder


def annotated(lab, files, out, **options):
    return annotate_files(lab / "model", files, out, n_workers=0, **options)


def files_of(lab):
    return sorted((lab / "in").iterdir())


@contextlib.contextmanager
def no_file_larger_than(n_bytes):
    """A disk that is full: HDF5 used to crash the process after such an error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# -- what was read, and who writes --------------------------------------------------------------


@pytest.mark.parametrize("what", ["input", "gates", "model"])
def test_what_changes_while_it_is_read_has_no_result(lab, tmp_path, monkeypatch, what):
    file, gates = tmp_path / "tube.fcs", tmp_path / "gates.csv"
    file.write_bytes(files_of(lab)[0].read_bytes())
    gates.write_text("a\n" + "1\n" * 300)
    model = load_model(lab / "model")
    model.save(tmp_path / "model")

    def replacing(function):
        def wrapper(*args, **kwargs):
            found = function(*args, **kwargs)
            if what == "input":
                file.write_bytes(files_of(lab)[1].read_bytes())
            elif what == "gates":
                gates.write_text("a\n" + "0\n" * 300)
            else:
                model.set_params(random_state=9).save(tmp_path / "model")
            return found

        return wrapper

    if what == "model":
        monkeypatch.setattr(jobs, "load_model", replacing(jobs.load_model))
        with pytest.raises(InvalidInputError, match="replaced meanwhile"):
            annotate_files(tmp_path / "model", file, tmp_path / "out", n_workers=0)
        return
    monkeypatch.setattr(OpenedFcs, "read", replacing(OpenedFcs.read))
    table = annotated(lab, file, tmp_path / "out", gates=gates)
    name = "tube.fcs" if what == "input" else "gates.csv"
    assert table["error"][0].startswith(f"{name} changed while it was read")
    assert not (tmp_path / "out" / "tube.h5ad").exists()


def test_a_table_of_gates_that_changed_is_read_again(lab, tmp_path):
    file = files_of(lab)[0]
    (tmp_path / "tables").mkdir()
    table = tmp_path / "tables" / f"{file.stem}.csv"
    for inside in (1, 0):
        table.write_text("a\n" + "1\n" * 299 + f"{inside}\n")
        found = annotated(lab, file, tmp_path, gates=tmp_path / "tables", denominator="a")
        assert found["status"].tolist() == ["done"]
        assert found["denominator"].tolist() == [299 + inside]


def test_runs_on_different_files_share_one_table(lab, tmp_path):
    first, second, third = files_of(lab)
    broken = tmp_path / "broken.fcs"
    broken.write_bytes(b"FCS3.1")
    out = tmp_path / "out"
    for given in ([first], [broken], [second], [first]):
        annotated(lab, given, out)
    table = pd.read_csv(out / "table.csv").set_index("sample")
    assert table["status"].to_dict() == {
        first.stem: "kept", "broken": "failed", second.stem: "done"
    }  # fmt: skip
    annotated(lab, third, out, limit_of_blank=0.1)
    assert pd.read_csv(out / "table.csv")["sample"].tolist() == [third.stem]


def test_a_call_in_which_nothing_succeeds_replaces_no_table_and_no_result(lab, tmp_path):
    file = files_of(lab)[0]
    annotated(lab, file, tmp_path)
    before = (tmp_path / "table.csv").read_bytes()
    gates = tmp_path / "gates.csv"
    gates.write_text("a\n1\n")  # of another file
    failed = annotated(lab, file, tmp_path, gates=gates)
    assert failed["status"].tolist() == ["failed"]
    assert (tmp_path / "table.csv").read_bytes() == before
    assert annotated(lab, file, tmp_path)["status"].tolist() == ["kept"]


def test_a_file_that_is_no_result_is_not_replaced(lab, tmp_path):
    file = files_of(lab)[0]
    mine = tmp_path / f"{file.stem}.h5ad"
    shutil.copy(lab / "train.h5ad", mine)
    before = mine.read_bytes()
    table = annotated(lab, file, tmp_path)
    assert "is there already and is no result" in table["error"].iloc[0]
    assert mine.read_bytes() == before
    mine.unlink()
    assert annotated(lab, file, tmp_path)["status"].tolist() == ["done"]
    # A run that was killed has left the result of an earlier one without its record.
    mine.with_suffix(".json").unlink()
    assert annotated(lab, file, tmp_path)["status"].tolist() == ["done"]


def test_one_process_at_a_time_holds_a_claim(tmp_path):
    held, seen = [], []

    def hold():
        with claims.claimed(tmp_path, "a"):
            held.append(1)
            seen.append(len(held))
            time.sleep(0.05)
            held.pop()

    threads = [threading.Thread(target=hold) for _ in range(4)]
    for thread in threads:
        thread.start()
    with claims.claimed(tmp_path, "b"):  # another sample waits for nobody
        pass
    for thread in threads:
        thread.join(20)
    assert seen == [1] * 4
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("host", ["here", "elsewhere"])
def test_a_claim_of_the_dead_is_taken_over(tmp_path, monkeypatch, host):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    claim = {"host": claims._host() if host == "here" else host, "pid": gone.pid, "token": "x"}
    (tmp_path / ".a.claim").write_text(json.dumps(claim))
    if host == "elsewhere":  # nothing is known of it but that its heart does not beat
        monkeypatch.setattr(claims, "STALE", 0.5)
    monkeypatch.setattr(claims, "_SETTLED", 0.1)
    started = time.monotonic()
    with claims.claimed(tmp_path, "a"):
        assert time.monotonic() - started < 5
        assert json.loads((tmp_path / ".a.claim").read_text())["pid"] == os.getpid()


def test_a_beating_heart_keeps_a_claim(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "HEARTBEAT", 0.1)
    monkeypatch.setattr(claims, "STALE", 0.6)
    taken = []

    def take():
        with claims.claimed(tmp_path, "a"):
            taken.append(time.monotonic())

    with claims.claimed(tmp_path, "a"):
        thread = threading.Thread(target=take)
        thread.start()
        time.sleep(1.5)
        ended = time.monotonic()
    thread.join(10)
    assert taken[0] >= ended


def test_leftovers_of_other_names_are_not_touched(tmp_path):
    other = tmp_path / ".a1.h5ad.x.part"
    own = tmp_path / ".a[1].h5ad.x.part"
    for path in (other, own):
        path.write_bytes(b"half")
    remove_leftovers(tmp_path / "a[1].h5ad")
    assert other.exists()
    assert not own.exists()


def test_models_saved_by_two_at_once_keep_their_weights(lab, tmp_path, monkeypatch):
    """The weights of another are written after this save began and before it ends."""
    from fcm_estimators._base import files

    one, other = (load_model(lab / "model") for _ in range(2))
    other = other.untrained_twin(1)
    write = files.write_whole

    def interleaved(path, content):
        write(path, content)
        if path.name == "model.json":
            monkeypatch.setattr(files, "write_whole", write)
            other.save(tmp_path)

    monkeypatch.setattr(files, "write_whole", interleaved)
    one.save(tmp_path)
    assert isinstance(load_model(tmp_path), ReluFormerClassifier)


# -- disks --------------------------------------------------------------------------------------


def test_a_full_disk_is_a_row_and_no_crash(lab, tmp_path):
    for n_bytes in (10_000, 50_000, 100_000):
        with no_file_larger_than(n_bytes):
            table = annotated(lab, files_of(lab)[0], tmp_path)
        assert "too large" in table["error"][0]
        assert not list(tmp_path.glob("*.h5ad"))
        assert not list(tmp_path.glob(".*"))
    assert annotated(lab, files_of(lab)[0], tmp_path)["status"].tolist() == ["done"]


def test_results_are_as_large_as_they_need_be(lab, tmp_path):
    row = annotated(lab, files_of(lab)[0], tmp_path).iloc[0]
    ad.read_h5ad(row["output"]).write_h5ad(tmp_path / "again.h5ad")
    # AnnData writes the names of the cells anew for every table.
    again = (tmp_path / "again.h5ad").stat().st_size
    assert 0.75 * again < Path(row["output"]).stat().st_size < 1.05 * again


def test_a_full_disk_leaves_a_store_as_it_was(lab, tmp_path):
    path = tmp_path / "store.h5ad"
    path.write_bytes((lab / "train.h5ad").read_bytes())
    clf, before = load_model(lab / "model"), path.read_bytes()
    for more in (0, 4096, 100_000):
        with no_file_larger_than(len(before) + more), pytest.raises(OSError, match="too large"):
            clf.annotate(path)
        assert path.read_bytes() == before
    clf.annotate(path)
    assert "reluformer" in ad.read_h5ad(path).obs


def test_an_error_of_the_system_names_the_file(lab, tmp_path):
    with no_file_larger_than(100), pytest.raises(OSError, match=r"table\.csv"):
        write_table(tmp_path / "table.csv", pd.DataFrame({"a": range(100)}))
    assert not list(tmp_path.iterdir())


def test_an_output_that_disappears_is_an_error_that_names_it(lab, tmp_path):
    out, rows = tmp_path / "out", []

    def remove(row):
        rows.append(row["status"])
        shutil.rmtree(out, ignore_errors=True)

    with pytest.raises(FileNotFoundError, match=r"table\.csv"):
        annotated(lab, files_of(lab), out, progress=remove)
    assert rows == ["done", "failed", "failed"]


# -- files --------------------------------------------------------------------------------------


def sparse_store(lab, folder, kind="h5ad"):
    adata = ad.read_h5ad(lab / "train.h5ad")
    adata.X = sp.csr_matrix(adata.X)
    path = folder / f"sparse.{kind}"
    getattr(adata, f"write_{kind}")(path)
    return path


@pytest.mark.parametrize("name", ["indptr", "indices", "shape"])
@pytest.mark.parametrize("value", [-5, 10**6])
def test_sparse_values_that_point_elsewhere_are_refused(lab, tmp_path, name, value):
    path, clf = sparse_store(lab, tmp_path), load_model(lab / "model")
    clf.annotate(path)
    with h5py.File(path, "r+") as file:
        if name == "shape":
            file["X"].attrs["shape"] = [900, abs(value)]
        else:
            file[f"X/{name}"][7] = value
    with pytest.raises(InvalidInputError, match=r"damaged|fit together|indices must"):
        clf.annotate(path)
    if name != "shape":
        with pytest.raises(InvalidInputError, match="cannot be read"):
            read_file(path)


def test_sparse_values_in_memory_are_checked(lab):
    adata = ad.read_h5ad(lab / "train.h5ad")
    adata.X = sp.csr_matrix(adata.X)
    adata.X.indices[3] = 10**6
    with pytest.raises(InvalidInputError, match="sparse values are damaged"):
        load_model(lab / "model").predict(adata)


@pytest.mark.parametrize("name", [".zattrs", "X/.zarray", "obs/.zattrs", "obs/cell_type/.zgroup"])
def test_a_damaged_zarr_store_is_refused(lab, tmp_path, name):
    path = sparse_store(lab, tmp_path, "zarr")
    target = path / name
    if not target.exists():
        target = next(p for p in sorted(path.rglob("*")) if p.name in (".zarray", "zarr.json"))
    target.write_text("[]")
    with pytest.raises(InvalidInputError):
        load_model(lab / "model").annotate(path)


def test_a_pipe_is_refused_and_not_waited_for(lab, tmp_path):
    pipe = tmp_path / "x.fcs"
    os.mkfifo(pipe)
    for read in (read_file, read_files, lambda path: annotated(lab, path, tmp_path / "out")):
        with pytest.raises(InvalidInputError, match="pipe or a device"):
            read(pipe)
    with pytest.raises(FcsError, match="pipe or a device"):
        read_fcs(pipe)
    with pytest.raises(InvalidInputError, match="No FCS"):
        read_files(tmp_path)  # a directory stands for its files


def test_a_name_that_is_not_utf8_costs_nobody_the_table(lab, tmp_path):
    odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xff.fcs"))
    odd.write_bytes(files_of(lab)[0].read_bytes())
    table = annotated(lab, [odd, files_of(lab)[1]], tmp_path / "out")
    assert table["status"].tolist() == ["done", "done"]
    assert table["sample"][0] == "a_"
    assert pd.read_csv(tmp_path / "out" / "table.csv")["file"][0].endswith("a\\udcff.fcs")
    odd.write_bytes(b"FCS3.1")
    with pytest.raises(InvalidInputError, match="udcff"):
        read_files([odd])


def test_one_file_of_nothing_stops_no_other(lab, tmp_path):
    (tmp_path / "zero.fcs").write_bytes(b"")
    ad.read_h5ad(lab / "train.h5ad")[:0].copy().write_h5ad(tmp_path / "zero.h5ad")
    (tmp_path / "good.fcs").write_bytes(files_of(lab)[0].read_bytes())
    table = annotated(lab, tmp_path, tmp_path / "out").set_index("sample")
    assert table["status"].to_dict() == {
        "good": "done", "zero.fcs": "failed", "zero.h5ad": "failed"
    }  # fmt: skip


def test_the_same_error_of_many_files_is_told_once(lab, tmp_path):
    for name in "abc":
        (tmp_path / f"{name}.fcs").write_bytes(b"FCS3.1")
    with pytest.raises(InvalidInputError) as caught:
        read_files([*sorted(tmp_path.iterdir()), files_of(lab)[0]], n_workers=0)
    text = str(caught.value)
    assert "3 of 4 files" in text
    assert "a.fcs, b.fcs, c.fcs: " in text
    assert text.count("HEADER") == 1


# -- models, keywords, tables -------------------------------------------------------------------


def test_a_deep_model_is_refused(lab, tmp_path):
    load_model(lab / "model").save(tmp_path)
    path = tmp_path / "model.json"
    described = json.loads(path.read_text())
    value = 1
    for _ in range(900):
        value = [value]
    described["fitted"]["pairs"].append(["x", value])
    path.write_text("[" * 100_000)
    with pytest.raises(ModelFormatError):
        load_model(tmp_path)
    path.write_text(json.dumps(described))
    with contextlib.suppress(ModelFormatError):  # Python 3.12 can read what is as deep as this
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["checkpoint", "out", "folder"])
def test_no_model_decides_a_path(lab, tmp_path, name):
    load_model(lab / "model").save(tmp_path / "model")
    path = tmp_path / "model" / "model.json"
    described = json.loads(path.read_text())
    described["params"]["pairs"].append([name, str(tmp_path / "elsewhere")])
    path.write_text(json.dumps(described))
    with pytest.raises(ModelFormatError, match=name):
        load_model(tmp_path / "model")


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        ("TIMESTEP", "0.01", True),
        ("TIMESTEP", "Ada Lovelace", False),
        ("VOL", "1e3", True),
        ("VOL", "=cmd()", False),
        ("CYT", "FACSCanto II (B/L)", True),
        ("CYT", "<script>", False),
        ("CYT", "=1+1", False),
        ("CREATOR", "x" * 100, False),
        ("THRESHOLD", "FSC,5000", True),
        ("THRESHOLD", "Ada", False),
        ("APPLY COMPENSATION", "TRUE", True),
        ("APPLY COMPENSATION", "Ada", False),
    ],
)
def test_technical_keywords_are_kept_if_they_look_technical(lab, tmp_path, name, value, kept):
    content = files_of(lab)[0].read_bytes()
    adata = read_fcs(files_of(lab)[0])
    adata.uns["fcs"]["keywords"] = {name: np.array([value], dtype=object)}
    write_fcs(adata, tmp_path / "a.fcs")
    assert (tmp_path / "a.fcs").read_bytes() != content
    with contextlib.ExitStack() as stack:
        if not kept:
            stack.enter_context(pytest.warns(UserWarning, match=f"{name} not kept"))
        found = read_fcs(tmp_path / "a.fcs").uns["fcs"]["keywords"]
    assert {k: v.tolist() for k, v in found.items()} == ({name: [value]} if kept else {})
    asked = read_fcs(tmp_path / "a.fcs", keep_keywords=[name]).uns["fcs"]["keywords"]
    assert asked[name].tolist() == [value]


def test_no_name_becomes_a_formula(lab, tmp_path):
    file = tmp_path / "=cmd()+.fcs"
    file.write_bytes(files_of(lab)[0].read_bytes())
    table = annotated(lab, file, tmp_path / "out")
    assert table["sample"].tolist() == ["=cmd()+"]
    assert pd.read_csv(tmp_path / "out" / "table.csv")["sample"].tolist() == ["'=cmd()+"]
    data = pd.DataFrame({"=a": ["@b", "c"], "n": [-1, 2]})
    write_table(tmp_path / "t.csv", data)
    assert (tmp_path / "t.csv").read_text().split() == ["'=a,n", "'@b,-1", "c,2"]
    assert data.columns.tolist() == ["=a", "n"]
    pd.testing.assert_frame_equal(read_table(tmp_path / "t.csv"), data)


# -- commands and processes ---------------------------------------------------------------------


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_short_help():
    assert call("-h").exit_code == 0
    assert "--out" in call("annotate", "-h").output


@pytest.mark.parametrize("command", ["annotate", "train"])
def test_a_file_is_no_directory_of_results(lab, tmp_path, command):
    (tmp_path / "file").write_text("mine")
    given = [lab / "model"] if command == "annotate" else []
    for out in (tmp_path / "file", tmp_path / "file" / "inner"):
        done = call(command, *given, lab / "in", "-o", out, "--workers", 0)
        assert done.exit_code == 2, done.output
        assert "--out" in done.stderr
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_exits_with_1_and_one_line(lab, tmp_path):
    with no_file_larger_than(3000):
        done = call("annotate", lab / "model", lab / "in", "-o", tmp_path, "--workers", 0)
    assert done.exit_code == 1
    assert "File too large" in done.stderr
    assert "Traceback" not in done.output


def test_a_polite_end_is_an_interrupt(lab, tmp_path, monkeypatch):
    def end(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr("fcm_estimators.cohort.annotate_files", end)
    before = signal.getsignal(signal.SIGTERM)
    done = call("annotate", lab / "model", lab / "in", "-o", tmp_path)
    assert done.exit_code == 130
    assert "--resume" in done.stderr
    assert signal.getsignal(signal.SIGTERM) is before


_PARENT = """
import os, signal, sys, time
from fcm_estimators.cohort.executor import executor

if __name__ == "__main__":
    with executor(None, 2, 2) as run:
        for _, pid, _ in run([(os.getpid, ()), (os.getpid, ())]):
            print(pid, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_end_with_the_process_that_started_them(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(_PARENT)
    parent = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    assert parent.returncode == -signal.SIGKILL
    worker = int(parent.stdout)
    for _ in range(100):
        if not Path(f"/proc/{worker}/cmdline").exists():
            break
        time.sleep(0.1)
    else:
        os.kill(worker, signal.SIGKILL)
        pytest.fail("a worker waits for ever")
