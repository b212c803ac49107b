"""Files larger than memory: read and annotated by block, with the result of memory."""

from __future__ import annotations

import warnings
from functools import partial

import anndata as ad
import h5py
import numpy as np
import pandas as pd
import pytest
from sklearn.pipeline import make_pipeline

from fcm_estimators import PolygonRegressor, ReluFormerClassifier, read_fcs, write_fcs
from fcm_estimators._cells.h5ad import write_h5ad, write_h5ad_by_block
from fcm_estimators.cohort import annotate_files, by_block, counting, memory, tasks
from fcm_estimators.datasets import simulate_cohort
from fcm_estimators.io.opened import open_fcs
from fcm_estimators.preprocessing import Compensation, LinearTransform, LogicleTransform
from fcm_estimators.quality import _judging
from tests.fcs_files import assembled, described, packed_bits, text_segment, write_floats
from tests.helpers import INDEX_TYPE

QUICK = {"n_layers": 1, "hidden_dim": 8, "max_epochs": 1, "steps_per_epoch": 3, "random_state": 0}
N_EVENTS = 2500
NAMES = ("FSC-A", "FL1-A", "Time")
TOLD = "they were read and annotated by block. The result is the same."


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks in small files."""
    monkeypatch.setattr(by_block, "BLOCK", 1 << 10)
    monkeypatch.setattr(_judging, "_ROWS_AT_ONCE", 700)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A classifier and a regressor, and the files of an instrument."""
    folder = tmp_path_factory.mktemp("large")
    raw = simulate_cohort(6, 1500, random_state=4)
    train = make_pipeline(Compensation(), LogicleTransform(), LinearTransform()).fit_transform(raw)
    clf = ReluFormerClassifier(
        sample_key="sample", label_key="cell_type", pos_label="blast", n_members=2, **QUICK
    )
    clf.fit(train).save(folder / "classes")
    # Its key of samples is no column of a file that was just read.
    ReluFormerClassifier(
        sample_key="patient", label_key="cell_type", missing_markers="mask", n_members=0, **QUICK
    ).fit(train).save(folder / "without")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # raw values
        ReluFormerClassifier(sample_key="sample", label_key="cell_type", n_members=0, **QUICK).fit(
            raw
        ).save(folder / "of raw values")
    gates = {"syto": ("", "Syto 41", "FSC-A"), "cd19": ("syto", "CD19", "SSC-A")}
    PolygonRegressor(gates, sample_key="sample", **QUICK).fit(train).save(folder / "gates")
    (folder / "in").mkdir()
    write_fcs(simulate_cohort(1, N_EVENTS, random_state=9), folder / "in" / "plain.fcs")
    return folder


def integers(bits, *, little=True, seed=0):
    """Random integers of some widths, and the bytes of them in words of 16 or 32 bits."""
    high = [1 << min(width, 31) for width in bits]
    values = np.random.default_rng(seed).integers(0, high, (N_EVENTS, len(bits)))
    if any(width % 8 for width in bits):
        return values, packed_bits(values, bits, little=little)
    order = "<" if little else ">"
    parts = [column.astype(f"{order}u{w // 8}") for column, w in zip(values.T, bits, strict=True)]
    table = np.rec.fromarrays(parts)
    return values, table.tobytes()


def numbers():
    table = np.random.default_rng(1).normal(500, 300, (N_EVENTS, 3))
    table[:, 2] = np.arange(N_EVENTS)
    return table


KINDS = {
    "floats": (32, {}, lambda: numbers().astype("<f4").tobytes()),
    "floats of the other order": (
        32, {"BYTEORD": "4,3,2,1"}, lambda: numbers().astype(">f4").tobytes(),
    ),
    "floats with a gain": (32, {"P2G": "4"}, lambda: numbers().astype("<f4").tobytes()),
    "doubles": (64, {"DATATYPE": "D"}, lambda: numbers().astype("<f8").tobytes()),
    "floats beyond the range": (
        32, {"P2R": "10"}, lambda: numbers().astype("<f4").tobytes(),
    ),
    "integers with amplifiers": (
        (16, 16, 16), {"DATATYPE": "I", "P1E": "4,1", "P2G": "2"},
        lambda: integers((16, 16, 16))[1],
    ),
    "integers of several widths": (
        (8, 16, 32), {"DATATYPE": "I"}, lambda: integers((8, 16, 32))[1],
    ),
    "integers that float32 rounds": (
        (32, 32, 32), {"DATATYPE": "I", "P2R": str(1 << 31)}, lambda: integers((32, 32, 32))[1],
    ),
    "packed bits": ((10, 10, 12), {"DATATYPE": "I"}, lambda: integers((10, 10, 12))[1]),
}  # fmt: skip


def assert_same_records(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, dict):
            assert_same_records(value, other[name])
        else:
            assert type(value) is type(other[name])
            np.testing.assert_array_equal(value, other[name])


def assert_same(one, other):
    """Whether two AnnData are equal, with the types of all that is in them."""
    pd.testing.assert_frame_equal(one.obs, other.obs, check_index_type=INDEX_TYPE)
    pd.testing.assert_frame_equal(one.var, other.var)
    for part, twin in ((one.layers, other.layers), (one.obsm, other.obsm)):
        assert list(part) == list(twin)
    for name in one.obsm:
        pd.testing.assert_frame_equal(one.obsm[name], other.obsm[name])
    for values, twin in ((one.X, other.X), *((one.layers[k], other.layers[k]) for k in one.layers)):
        assert values.dtype == twin.dtype
        np.testing.assert_array_equal(values, twin)
    assert_same_records(one.uns, other.uns)


def told(function):
    """Result of a function, and its warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        return function(), [str(w.message) for w in caught]


@pytest.mark.parametrize("version", ["2.0", "3.0", "3.1"])
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_are_what_is_read_at_once(tmp_path, kind, version):
    bits, keywords, data = KINDS[kind]
    text = described(NAMES, n_events=N_EVENTS, bits=bits, **({"TIMESTEP": "0.1"} | keywords))
    path = tmp_path / "a.fcs"
    path.write_bytes(assembled(text_segment(text), data(), version=version))
    whole, warned = told(lambda: read_fcs(path, scale_time=True))
    blocks, also_warned = told(lambda: list(open_fcs(path, scale_time=True).blocks(1 << 10)))
    assert [len(block) for block in blocks] == [1024, 1024, 452]
    assert also_warned == warned
    joined = ad.concat(blocks, merge="same", uns_merge="same")
    np.testing.assert_array_equal(joined.X, whole.X)
    pd.testing.assert_frame_equal(joined.obs, whole.obs, check_index_type=INDEX_TYPE)
    for block in blocks:
        pd.testing.assert_frame_equal(block.var, whole.var)
        assert_same_records(block.uns, whole.uns)


def test_more_events_than_tot_says_are_passed_over(tmp_path):
    path = write_floats(tmp_path / "a.fcs", numbers(), NAMES, TOT=str(N_EVENTS - 7))
    whole, blocks = read_fcs, lambda p: ad.concat(list(open_fcs(p).blocks(1 << 10)))
    errors = []
    for read in (whole, blocks):
        with pytest.raises(Exception) as error:
            read(path)
        errors.append(str(error.value))
    assert errors[0] == errors[1]


def test_a_file_by_block_is_the_file_of_the_whole(tmp_path):
    whole = simulate_cohort(1, 1000, random_state=0)
    whole.obs_names = whole.obs_names.astype(object)  # as those of a file
    whole.layers["raw"] = whole.X.copy()
    whole.obsm.clear()
    parts = [whole[i : i + 300].copy() for i in range(0, 1000, 300)]
    for i, part in enumerate(parts):
        part.obs = whole.obs.iloc[300 * i : 300 * (i + 1)]
    write_h5ad(whole.copy(), tmp_path / "whole.h5ad")
    write_h5ad_by_block(parts, 1000, tmp_path / "parts.h5ad")
    one, other = (ad.read_h5ad(tmp_path / f"{name}.h5ad") for name in ("whole", "parts"))
    assert_same(one, other)
    with h5py.File(tmp_path / "whole.h5ad") as a, h5py.File(tmp_path / "parts.h5ad") as b:
        kinds = [{}, {}]
        for kind, file in zip(kinds, (a, b), strict=True):
            file.visititems(lambda n, e, k=kind: k.update({n: (dict(e.attrs).keys(), str(e))}))
        assert kinds[0].keys() == kinds[1].keys()
        for name in kinds[0]:
            assert kinds[0][name][0] == kinds[1][name][0]
            assert getattr(a[name], "dtype", None) == getattr(b[name], "dtype", None)


def test_names_of_cells_of_any_type_are_written_for_all_tables(tmp_path):
    adata = simulate_cohort(1, 100, random_state=0)  # text of its own type from pandas 3 on
    adata.obsm["own"] = pd.DataFrame({"a": np.arange(100.0)}, index=adata.obs_names)
    write_h5ad(adata, tmp_path / "a.h5ad")
    found = ad.read_h5ad(tmp_path / "a.h5ad")
    assert found.obs_names.tolist() == adata.obs_names.tolist()
    pd.testing.assert_frame_equal(found.obsm["own"], adata.obsm["own"], check_index_type=INDEX_TYPE)


def test_names_of_cells_are_written_once_for_all_tables(tmp_path):
    adata = simulate_cohort(1, 100, random_state=0)
    adata.obs_names = adata.obs_names.astype(object)
    adata.obsm["own"] = pd.DataFrame({"a": np.arange(100.0)}, index=adata.obs_names)
    write_h5ad(adata, tmp_path / "a.h5ad")
    found = ad.read_h5ad(tmp_path / "a.h5ad")
    pd.testing.assert_frame_equal(found.obsm["own"], adata.obsm["own"], check_index_type=INDEX_TYPE)
    with h5py.File(tmp_path / "a.h5ad") as file:
        assert file["obsm/own/_index"] == file["obs/_index"]


def both_ways(folder, tmp_path, monkeypatch, model, file):
    """The row of a file in memory, and that by block."""
    rows = []
    for share in (1e9, 0.0):
        monkeypatch.setattr(tasks, "SHARE", share)
        out = tmp_path / f"share {share}"
        rows.append(annotate_files(folder / model, file, out, n_workers=0).iloc[0])
    return rows


def changed(folder, tmp_path, change):
    """The plain file after a change."""
    adata = read_fcs(folder / "in" / "plain.fcs")
    adata = change(adata) or adata
    path = tmp_path / "plain.fcs"
    write_fcs(adata, path)
    return path


def saturated(adata):
    adata.X[::5, 1:4] = adata.X[:, 1:4].max() * 2


def shuffled_time(adata):
    time = adata.var_names.get_loc("Time")
    adata.X[:, time] = np.random.default_rng(0).permutation(adata.X[:, time])


CHANGES = {
    "nothing": lambda adata: None,
    "saturated": saturated,
    "no time": lambda adata: adata[:, adata.var_names != "Time"].copy(),
    "time out of order": shuffled_time,
    "drift": lambda adata: adata.X.__setitem__((slice(1200, 1800), 5), 1e5),
}


@pytest.mark.parametrize("model", ["classes", "gates", "without", "of raw values"])
@pytest.mark.parametrize("change", CHANGES)
def test_annotation_by_block_is_that_in_memory(folder, tmp_path, monkeypatch, model, change):
    path = changed(folder, tmp_path, CHANGES[change])
    one, other = both_ways(folder, tmp_path, monkeypatch, model, path)
    assert one["status"] == other["status"] == "done"
    assert other["warning"].count(TOLD) == 1
    assert TOLD not in one["warning"]
    also_told = [text for text in other["warning"].split(" | ") if TOLD not in text]
    assert also_told == [text for text in one["warning"].split(" | ") if text]
    differ = ["output", "seconds", "warning"]
    pd.testing.assert_series_equal(one.drop(differ), other.drop(differ), check_names=False)
    in_memory, in_blocks = ad.read_h5ad(one["output"]), ad.read_h5ad(other["output"])
    assert list(in_memory.obs) == list(in_blocks.obs)
    assert_same(in_memory, in_blocks)
    # What is of files with more than one block is tested, not of files with one.
    assert in_blocks.n_obs > 2 * by_block.BLOCK


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_bad_value_in_a_later_block_leaves_nothing(folder, tmp_path, monkeypatch, value):
    path = changed(folder, tmp_path, lambda adata: adata.X.__setitem__((2400, 4), value))
    one, other = both_ways(folder, tmp_path, monkeypatch, "classes", path)
    assert one["status"] == other["status"] == "failed"
    assert "NaN" in one["error"]
    assert "NaN" in other["error"]
    assert sorted(p.suffix for p in (tmp_path / "share 0.0").iterdir()) == [".csv", ".json"]


def test_a_file_that_changes_while_it_is_read_gives_no_result(folder, tmp_path, monkeypatch):
    path = changed(folder, tmp_path, lambda adata: None)
    ready = by_block._ready

    def disturbed(model, block):
        with path.open("ab") as file:
            file.write(b" ")
        return ready(model, block)

    monkeypatch.setattr(by_block, "_ready", disturbed)
    monkeypatch.setattr(tasks, "SHARE", 0.0)
    table = annotate_files(folder / "classes", path, tmp_path / "out", n_workers=0)
    assert "changed while it was read" in table["error"][0]
    assert not list((tmp_path / "out").glob("*.h5ad"))


def test_the_limit_is_a_share_of_what_is_free(monkeypatch, tmp_path):
    free = memory.free_memory()
    assert 1 << 26 < free < 1 << 50
    (tmp_path / "memory.max").write_text("5000000\n")
    (tmp_path / "memory.current").write_text("1000000\n")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    monkeypatch.setattr(memory, "_OF_PROCESS", tmp_path / "none")
    assert memory.free_memory() == 4_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_memory() > 1 << 26


@pytest.mark.parametrize("version", [1, 2])
def test_the_least_of_a_group_and_its_parents_is_free_with_pages_of_files(
    monkeypatch, tmp_path, version
):
    root = tmp_path / "memory" if version == 1 else tmp_path
    limit, used = (
        ("memory.limit_in_bytes", "memory.usage_in_bytes")
        if version == 1
        else ("memory.max", "memory.current")
    )
    cached = "total_inactive_file" if version == 1 else "inactive_file"

    def group(folder, most, taken, pages):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / limit).write_text(f"{most}\n")
        (folder / used).write_text(f"{taken}\n")
        (folder / "memory.stat").write_text(f"anon 5\n{cached} {pages}\nactive_file 7\n")

    group(root / "jobs" / "7", 9_000_000, 8_000_000, 6_000_000)
    group(root / "jobs", 8_000_000, 5_000_000, 0)
    group(root / "others", 10, 10, 0)
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    monkeypatch.setattr(memory, "_OF_PROCESS", tmp_path / "cgroup")
    kinds = "4:cpu,memory" if version == 1 else "0:"
    (tmp_path / "cgroup").write_text(f"9:name=systemd:/others\n{kinds}:/jobs/7\n")
    assert memory.free_memory() == 3_000_000
    group(root / "jobs", 8_000_000, 5_000_000, 4_500_000)
    assert memory.free_memory() == 7_000_000
    # A group that is not seen from here: what is mounted in place of the root counts.
    for path in ("/jobs/8/step", "/../others"):
        (tmp_path / "cgroup").write_text(f"{kinds}:{path}\n")
        group(root, 2_000_000, 1_000_000, 0)
        assert memory.free_memory() == 1_000_000


@pytest.mark.parametrize("whole_for", ["gates", "also"])
def test_a_large_file_that_is_read_whole_is_told(folder, tmp_path, monkeypatch, whole_for):
    file = folder / "in" / "plain.fcs"
    settings = {"gates": folder / "gates"}
    if whole_for == "also":
        settings = {"also": lambda model, adata, path: {"n_read": adata.n_obs}}
    wanted = "gates and explanations need all events at once, so the file was read whole."
    for share, n_told in ((1e9, 0), (0.0, 1)):
        monkeypatch.setattr(tasks, "SHARE", share)
        out = tmp_path / f"share {share}"
        row = annotate_files(folder / "classes", file, out, n_workers=0, **settings).iloc[0]
        assert row["status"] == "done"
        assert row["warning"].count(wanted) == n_told
        assert row["warning"].count("plain.fcs: 2,500 events take about 0.0 GB of ") == n_told
        assert TOLD not in row["warning"]


@pytest.mark.parametrize(
    ("model", "key"), [("classes", "reluformer_proba"), ("gates", "predicted_gates_membership")]
)
@pytest.mark.parametrize("share", [1e9, 0.0])
def test_a_result_without_its_table_is_not_counted(
    folder, tmp_path, monkeypatch, model, key, share
):
    monkeypatch.setattr(tasks, "SHARE", share)

    def without(result, way):
        del (result.obsm if isinstance(result, ad.AnnData) else result.root["obsm"])[key]
        return way(result)

    for way in (counting.InMemory, counting.InStore):
        monkeypatch.setattr(tasks, way.__name__, partial(without, way=way))
    row = annotate_files(folder / model, folder / "in" / "plain.fcs", tmp_path, n_workers=0).iloc[0]
    assert row["status"] == "failed"
    assert f"The result has no obsm table {key!r}. Annotate the file again." in row["error"]
