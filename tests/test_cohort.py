"""Many files: assembly, annotation, failures, resuming, a cluster one of whose workers dies."""

from __future__ import annotations

import json
import os
import signal

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from sklearn.pipeline import make_pipeline

from fcm_estimators import PolygonRegressor, ReluFormerClassifier, read_fcs, write_fcs
from fcm_estimators.cohort import annotate_files, read_file, read_files
from fcm_estimators.cohort.executor import executor
from fcm_estimators.datasets import simulate_cohort
from fcm_estimators.exceptions import (
    InvalidInputError,
    ModelFormatError,
    NotFittedError,
    PanelMismatchError,
)
from fcm_estimators.labels import labels_from_gates
from fcm_estimators.models import load_model
from fcm_estimators.preprocessing import Compensation, LinearTransform, LogicleTransform

pytestmark = pytest.mark.filterwarnings("ignore:Writing zarr v2:UserWarning")

QUICK = {"n_layers": 1, "hidden_dim": 8, "max_epochs": 1, "steps_per_epoch": 3, "random_state": 0}
N_FILES = 6


def steps():
    return [Compensation(), LogicleTransform(), LinearTransform()]


@pytest.fixture(scope="module")
def raw():
    return simulate_cohort(N_FILES, 1500, random_state=4)


@pytest.fixture(scope="module")
def folder(raw, tmp_path_factory):
    """FCS files, and a model trained on them."""
    folder = tmp_path_factory.mktemp("cohort")
    (folder / "in").mkdir()
    for sample in raw.obs["sample"].cat.categories:
        write_fcs(raw[raw.obs["sample"] == sample].copy(), folder / "in" / f"{sample}.fcs")
    train = make_pipeline(*steps()).fit_transform(raw)
    clf = ReluFormerClassifier(
        sample_key="sample", label_key="cell_type", pos_label="blast", n_members=2, **QUICK
    )
    clf.fit(train).save(folder / "model")
    gates = {"syto": ("", "Syto 41", "FSC-A"), "cd19": ("syto", "CD19", "SSC-A")}
    reg = PolygonRegressor(gates, sample_key="sample", **QUICK)
    reg.fit(train).save(folder / "gates")
    return folder


@pytest.fixture(scope="module")
def serial(folder):
    return annotate_files(folder / "model", folder / "in", folder / "serial", n_workers=0)


def files_of(folder):
    return sorted((folder / "in").iterdir())


def same_results(one, other):
    """Whether two directories hold the same annotated samples."""
    names = sorted(p.name for p in one.glob("*.h5ad"))
    assert names == sorted(p.name for p in other.glob("*.h5ad"))
    for name in names:
        a, b = ad.read_h5ad(one / name), ad.read_h5ad(other / name)
        np.testing.assert_array_equal(a.X, b.X)
        pd.testing.assert_frame_equal(a.obs, b.obs)
        pd.testing.assert_frame_equal(a.obsm["reluformer_proba"], b.obsm["reluformer_proba"])
    return len(names)


def comparable(table):
    return table.drop(columns=["seconds", "output", "status"])


# -- annotation ---------------------------------------------------------------------------------


def test_results_are_those_of_the_estimator(folder, serial):
    clf = ReluFormerClassifier.load(folder / "model")
    assert len(serial) == N_FILES
    assert (serial["status"] == "done").all()
    for file, row in zip(files_of(folder), serial.to_dict("records"), strict=True):
        alone = clf.prepare(read_fcs(file))
        called = clf.predict(alone)
        assert row["n_blast"] == (called == "blast").sum() == row["numerator"]
        assert row["denominator"] == row["n_cells"] == alone.n_obs
        assert row["distance"] == pytest.approx(clf.check_sample(alone)["distance"].max())
        written = ad.read_h5ad(row["output"])
        np.testing.assert_array_equal(written.obs["reluformer"].astype(str), called)
        assert written.obs["qc_margin"].sum() == row["n_qc_margin"]
        np.testing.assert_array_equal(written.layers["raw"], read_fcs(file).X)
    on_disk = pd.read_csv(folder / "serial" / "table.csv")
    assert on_disk["n_blast"].tolist() == serial["n_blast"].tolist()


def test_finished_results_are_kept_and_others_made_anew(folder, tmp_path):
    some = files_of(folder)[:3]
    first = annotate_files(folder / "model", some, tmp_path, n_workers=0)
    stamps = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("*.h5ad")}
    again = annotate_files(folder / "model", some, tmp_path, n_workers=0)
    assert (again["status"] == "kept").all()
    pd.testing.assert_frame_equal(comparable(again), comparable(first))
    assert stamps == {p.name: p.stat().st_mtime_ns for p in tmp_path.glob("*.h5ad")}
    # Damaged, half-recorded, and a leftover of a killed process.
    names = [p.stem for p in some]
    with (tmp_path / f"{names[0]}.h5ad").open("ab") as file:
        file.write(b"x")
    (tmp_path / f"{names[1]}.json").write_text("{")
    leftover = tmp_path / f".{names[0]}.h5ad.abc.part"
    leftover.write_bytes(b"half")
    mended = annotate_files(folder / "model", some, tmp_path, n_workers=0)
    assert mended["status"].tolist() == ["done", "done", "kept"]
    assert not leftover.exists()
    pd.testing.assert_frame_equal(comparable(mended), comparable(first))
    other = annotate_files(
        folder / "model", some, tmp_path, n_workers=0, limit_of_blank=0.5
    )  # another setting
    assert (other["status"] == "done").all()
    assert set(
        annotate_files(
            folder / "model", some, tmp_path, n_workers=0, limit_of_blank=0.5, resume=False
        )["status"]
    ) == {"done"}


def test_another_model_at_the_same_place_is_noticed(folder, tmp_path):
    some = files_of(folder)[:1]
    clf = ReluFormerClassifier.load(folder / "model")
    clf.save(tmp_path / "model")
    annotate_files(tmp_path / "model", some, tmp_path / "out", n_workers=0)
    clf.threshold_ = 0.9
    clf.save(tmp_path / "model")
    table = annotate_files(tmp_path / "model", some, tmp_path / "out", n_workers=0)
    assert table["status"].tolist() == ["done"]


def test_a_failing_file_is_a_row_and_the_others_are_done(folder, tmp_path):
    broken = tmp_path / "broken.fcs"
    broken.write_bytes(b"FCS3.1    nothing of the kind")
    empty = ad.AnnData(np.zeros((3, 1), np.float32), var=pd.DataFrame(index=["CD3"]))
    empty.write_h5ad(tmp_path / "other.h5ad")
    given = [files_of(folder)[0], broken, tmp_path / "other.h5ad", files_of(folder)[1]]
    seen = []
    table = annotate_files(
        folder / "model", given, tmp_path / "out", n_workers=0, progress=seen.append
    )
    assert table["status"].tolist() == ["done", "failed", "failed", "done"]
    assert "HEADER" in table["error"][1]
    assert "CD19" in table["error"][2]
    assert table["n_blast"].isna().tolist() == [False, True, True, False]
    assert str(table["n_blast"].dtype) == "Int64"
    assert [row["status"] for row in seen] == table["status"].tolist()
    written = sorted(p.name for p in (tmp_path / "out").iterdir())
    good = [f"{p.stem}{e}" for p in (given[0], given[3]) for e in (".h5ad", ".json")]
    assert written == sorted([*good, "broken.json", "other.json", "table.csv"])


def test_a_result_of_an_earlier_input_does_not_outlive_it(folder, tmp_path):
    file = tmp_path / "tube.fcs"
    file.write_bytes(files_of(folder)[0].read_bytes())
    annotate_files(folder / "model", file, tmp_path / "out", n_workers=0)
    file.write_bytes(file.read_bytes()[:5000])
    table = annotate_files(folder / "model", file, tmp_path / "out", n_workers=0)
    assert table["status"].tolist() == ["failed"]
    assert not json.loads((tmp_path / "out" / "tube.json").read_text())["rows"]


def test_h5ad_and_zarr_files_and_several_samples_in_one(folder, raw, serial, tmp_path):
    two = raw[raw.obs["sample"].isin(raw.obs["sample"].cat.categories[:2])].copy()
    two.write_h5ad(tmp_path / "two.h5ad")
    third = raw[raw.obs["sample"] == raw.obs["sample"].cat.categories[2]].copy()
    third.write_zarr(tmp_path / "third.zarr")
    given = [tmp_path / "two.h5ad", tmp_path / "third.zarr"]
    table = annotate_files(folder / "model", given, tmp_path / "out", n_workers=0)
    assert table["sample"].tolist() == serial["sample"][:3].tolist()
    for column in ("n_blast", "n_qc_margin", "fraction", "distance"):
        assert table[column].tolist() == serial[column][:3].tolist()


def test_gates_make_the_denominator(folder, tmp_path):
    table = annotate_files(
        folder / "model",
        files_of(folder)[:2],
        tmp_path,
        gates=folder / "gates",
        denominator="syto",
        n_workers=0,
    )
    reg = PolygonRegressor.load(folder / "gates")
    for file, row in zip(files_of(folder), table.to_dict("records"), strict=False):
        inside = reg.predict_membership(reg.prepare(read_fcs(file)))["syto"]
        assert row["denominator"] == inside.sum()
        assert row["denominator_name"] == "syto"
    good = (tmp_path / "table.csv").read_bytes()
    files, gates = files_of(folder)[:2], folder / "gates"
    with pytest.raises(
        InvalidInputError, match="'intact' is a gate of the data, and FCS files have none"
    ):
        annotate_files(folder / "model", files, tmp_path, denominator="intact", n_workers=0)
    with pytest.raises(InvalidInputError, match="'intact' is not among the gates"):
        annotate_files(
            folder / "model", files, tmp_path, gates=gates, denominator="intact", n_workers=0
        )
    assert (tmp_path / "table.csv").read_bytes() == good


def test_a_regressor_counts_gates(folder, tmp_path):
    table = annotate_files(folder / "gates", files_of(folder)[:2], tmp_path, n_workers=0)
    written = ad.read_h5ad(table["output"][0])
    assert table["n_cd19"][0] == written.obsm["predicted_gates_membership"]["cd19"].sum()
    assert "numerator" not in table


def test_fitted_models_are_saved_first(folder, tmp_path):
    clf = load_model(folder / "model")
    table = annotate_files(clf, files_of(folder)[0], tmp_path, n_workers=0)
    assert table["status"].tolist() == ["done"]
    assert isinstance(load_model(tmp_path / "model"), ReluFormerClassifier)
    assert isinstance(load_model(folder / "gates"), PolygonRegressor)


def test_bad_calls_are_refused_before_work_begins(folder, tmp_path):
    file = files_of(folder)[0]
    with pytest.raises(InvalidInputError, match="repeat"):
        annotate_files(folder / "model", [file, file], tmp_path, n_workers=0)
    with pytest.raises(InvalidInputError, match="give one each"):
        annotate_files(folder / "model", [file], tmp_path, sample_names=["a", "b"], n_workers=0)
    with pytest.raises(InvalidInputError, match="name becomes that of a file"):
        annotate_files(folder / "model", [file], tmp_path, sample_names=["../a"], n_workers=0)
    with pytest.raises(InvalidInputError, match="does not exist"):
        annotate_files(folder / "model", folder / "nothing.fcs", tmp_path, n_workers=0)
    with pytest.raises(InvalidInputError, match="No FCS"):
        annotate_files(folder / "model", tmp_path, tmp_path / "out", n_workers=0)
    with pytest.raises(ModelFormatError, match="No model"):
        annotate_files(folder / "in", file, tmp_path, n_workers=0)
    with pytest.raises(NotFittedError):
        annotate_files(ReluFormerClassifier(), file, tmp_path, n_workers=0)
    own = ad.AnnData(np.zeros((1, 1), np.float32))
    own.write_h5ad(tmp_path / "x.h5ad")
    with pytest.raises(InvalidInputError, match="overwritten"):
        annotate_files(folder / "model", tmp_path / "x.h5ad", tmp_path, n_workers=0)
    (tmp_path / "unknown").mkdir()
    (tmp_path / "unknown" / "model.json").write_text(json.dumps({"class": "os.system"}))
    with pytest.raises(ModelFormatError, match=r"os\.system"):
        load_model(tmp_path / "unknown")


# -- a cluster ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client():
    from distributed import Client, LocalCluster

    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def test_a_dying_worker_loses_nothing(folder, serial, client, tmp_path):
    killed = []

    def kill_one(row):
        if not killed:
            killed.append(next(iter(client.run(os.getpid).values())))
            os.kill(killed[0], signal.SIGKILL)

    table = annotate_files(
        folder / "model", folder / "in", tmp_path, client=client, progress=kill_one
    )
    assert killed
    assert (table["status"] != "failed").all()
    pd.testing.assert_frame_equal(comparable(table), comparable(serial))
    assert same_results(tmp_path, folder / "serial") == N_FILES
    assert not list(tmp_path.glob(".*.part"))


def deadly(number):
    """Kill the process of one job, and with it all others that it shares a pool with."""
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == 2:
        raise ValueError("wrong\nfile")
    return number, os.getpid()


def test_a_process_that_is_killed_costs_no_other_job():
    jobs = [(deadly, (number,)) for number in range(4)]
    with executor(None, 2, len(jobs)) as run:
        found = {position: (result, error) for position, result, error in run(jobs)}
    assert [found[i][0][0] for i in (0, 3)] == [0, 3]
    assert os.getpid() not in {found[i][0][1] for i in (0, 3)}
    assert found[2] == (None, "ValueError: wrong file")
    assert "also with this file alone" in found[1][1]


def test_what_cannot_be_sent_to_processes_is_refused_before_they_start():
    jobs = [(lambda: 1, ()), (os.getpid, ())]
    with (
        executor(None, 2, len(jobs)) as run,
        pytest.raises(InvalidInputError, match=r"no lambdas.*n_workers=0"),
    ):
        list(run(jobs))


def test_results_hold_no_digest_of_the_name_of_the_acquisition(folder, serial):
    assert "fil_sha256" in read_fcs(files_of(folder)[0]).uns["fcs"]
    assert "fil_sha256" not in ad.read_h5ad(serial["output"].iloc[0]).uns["fcs"]


def test_one_job_needs_no_other_process():
    with executor(None, None, 1) as run:
        assert list(run([(os.getpid, ())])) == [(0, os.getpid(), "")]


def test_assembly_on_a_cluster_is_that_in_one_process(folder, client):
    here = read_files(folder / "in", steps=steps(), n_workers=0, max_cells=700)
    there = read_files(folder / "in", steps=steps(), client=client, max_cells=700)
    np.testing.assert_array_equal(here.X, there.X)
    pd.testing.assert_frame_equal(here.obs, there.obs)


# -- assembly -----------------------------------------------------------------------------------


def label(adata):
    """Blasts brighter than some value of CD10: a function that a worker can import."""
    adata.obsm["gates"] = pd.DataFrame(
        {"bright": adata[:, "CD10"].X.ravel() > 5000}, index=adata.obs_names
    )
    labels_from_gates(adata, {"bright": "blast"})


def test_assembled_files_are_ready_to_fit(folder, raw):
    adata = read_files(folder / "in", steps=steps(), label=label, n_workers=0)
    whole = make_pipeline(*steps()).fit_transform(read_fcs(files_of(folder)))
    np.testing.assert_array_equal(adata.X, whole.X)
    assert adata.obs_names.tolist() == whole.obs_names.tolist()
    assert "raw" not in adata.layers
    for key, value in whole.uns["fcs"].items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(adata.uns["fcs"][key], value)
    assert adata.uns["cohort"]["n_cells"].tolist() == [1500] * N_FILES
    clf = ReluFormerClassifier(
        sample_key="sample", label_key="cell_type", n_members=2, **QUICK
    ).fit(adata)
    new = read_files(files_of(folder)[:1], steps=clf, n_workers=0)
    assert clf.predict(new).shape == (1500,)


def test_thinned_samples_depend_on_seed_and_name_only(folder, tmp_path):
    some = read_files(files_of(folder)[:2], max_cells=300, n_workers=0)
    assert some.obs["sample"].value_counts().tolist() == [300, 300]
    one = read_files(files_of(folder)[1:2], max_cells=300, n_workers=0)
    second = (some.obs["sample"] == one.obs["sample"].iloc[0]).to_numpy()
    np.testing.assert_array_equal(some[second].X, one.X)
    other = read_files(files_of(folder)[1:2], max_cells=300, random_state=1, n_workers=0)
    assert not np.array_equal(other.X, one.X)
    some.write_h5ad(tmp_path / "some.h5ad")


def test_files_that_cannot_be_used_are_named_or_skipped(folder, tmp_path):
    (tmp_path / "a.fcs").write_bytes(b"no")
    (tmp_path / "b.fcs").write_bytes(b"FCS3.0")
    given = [tmp_path / "a.fcs", files_of(folder)[0], tmp_path / "b.fcs"]
    with pytest.raises(InvalidInputError, match=r"2 of 3 .*a\.fcs.*b\.fcs"):
        read_files(given, n_workers=0)
    adata = read_files(given, n_workers=0, on_error="skip")
    assert adata.uns["cohort"]["n_cells"].tolist() == [0, 1500, 0]
    assert [bool(e) for e in adata.uns["cohort"]["error"]] == [True, False, True]
    with pytest.raises(InvalidInputError, match="1 of 1"):
        read_files(given[:1], n_workers=0, on_error="skip")
    with pytest.raises(InvalidInputError, match="on_error"):
        read_files(given, n_workers=0, on_error="ignore")


def test_other_panels_and_other_scales_are_refused(folder, raw, tmp_path):
    one = raw[raw.obs["sample"] == raw.obs["sample"].cat.categories[0]].copy()
    fewer = one[:, one.var_names != "CD10"].copy()
    fewer.obs["sample"] = "fewer"
    fewer.write_h5ad(tmp_path / "fewer.h5ad")
    with pytest.raises(PanelMismatchError, match="CD10"):
        read_files([files_of(folder)[1], tmp_path / "fewer.h5ad"], n_workers=0)
    scaled = LogicleTransform().fit_transform(Compensation().fit_transform(one))
    scaled.obs["sample"] = "scaled"
    scaled.write_h5ad(tmp_path / "scaled.h5ad")
    with pytest.raises(PanelMismatchError, match="transform of"):
        read_files([files_of(folder)[1], tmp_path / "scaled.h5ad"], n_workers=0)
    one.write_h5ad(tmp_path / "one.h5ad")
    with pytest.raises(InvalidInputError, match="more than one file"):
        read_files([files_of(folder)[0], tmp_path / "one.h5ad"], n_workers=0)


def test_one_file_of_any_kind(folder, raw, tmp_path):
    assert read_file(files_of(folder)[0], name="x").obs["sample"].unique().tolist() == ["x"]
    plain = ad.AnnData(np.zeros((2, 1), np.float32))
    plain.write_h5ad(tmp_path / "plain.h5ad")
    assert read_file(tmp_path / "plain.h5ad").obs["sample"].tolist() == ["plain"] * 2
    (tmp_path / "bad.h5ad").write_bytes(b"\x89HDF\r\n\x1a\n rubbish")
    with pytest.raises(InvalidInputError, match="cannot be read"):
        read_file(tmp_path / "bad.h5ad")
    (tmp_path / "table.csv").write_text("a")
    with pytest.raises(InvalidInputError, match="is no FCS file"):
        read_file(tmp_path / "table.csv")


def test_a_model_may_call_its_samples_otherwise(folder, raw, serial, tmp_path):
    train = make_pipeline(*steps()).fit_transform(raw)
    train.obs["tube"] = train.obs["sample"]
    clf = ReluFormerClassifier(
        sample_key="tube", label_key="cell_type", pos_label="blast", n_members=2, **QUICK
    ).fit(train)
    table = annotate_files(clf, folder / "in", tmp_path, n_workers=0)
    for column in ("n_blast", "distance", "farthest_marker"):
        assert table[column].tolist() == serial[column].tolist()


@pytest.mark.parametrize(
    "given",
    [steps, lambda: lambda first: steps(), lambda: ()],
    ids=["transformers", "function", "none"],
)
def test_every_file_is_read_once(folder, given, monkeypatch):
    from fcm_estimators.cohort import reading

    read, seen = reading.read_file, []

    def counting(path, **kwargs):
        seen.append(path)
        return read(path, **kwargs)

    monkeypatch.setattr(reading, "read_file", counting)
    adata = read_files(folder / "in", steps=given(), n_workers=0, max_cells=50)
    assert sorted(seen) == files_of(folder)
    assert adata.n_obs == 50 * N_FILES


def test_steps_from_a_function_are_those_in_a_list(folder):
    listed = read_files(folder / "in", steps=steps(), n_workers=0, max_cells=50)
    made = read_files(folder / "in", steps=lambda first: steps(), n_workers=0, max_cells=50)
    np.testing.assert_array_equal(listed.X, made.X)
    assert listed.obs_names.equals(made.obs_names)


def test_gates_and_distances_are_taken_from_the_annotation(folder, tmp_path, monkeypatch):
    from fcm_estimators.workflow import gate_files

    def twice(self, *args, **kwargs):
        raise AssertionError("computed a second time")

    monkeypatch.setattr(PolygonRegressor, "predict_gates", twice)
    monkeypatch.setattr(PolygonRegressor, "check_sample", twice)
    table = gate_files(
        folder / "gates", files_of(folder)[0], tmp_path, key_added="mine", n_workers=0
    )
    assert table["status"].tolist() == ["done"]
    assert (tmp_path / table["gatingml"].iloc[0]).stat().st_size > 1000
    assert table["distance"].iloc[0] > 0


@pytest.mark.parametrize("kind", ["model", "gates"])
def test_explanations_follow_the_key(folder, tmp_path, kind):
    from fcm_estimators.workflow import explain_files

    gate = None if kind == "model" else "cd19"
    table = explain_files(
        folder / kind, files_of(folder)[0], tmp_path, gate=gate, key_added="mine", n_workers=0
    )
    assert table["error"].tolist() == [""]
    found = ad.read_h5ad(table["output"].iloc[0])
    assert "mine" in found.uns
    assert not {"reluformer", "predicted_gates"} & set(found.uns)
    summary = pd.read_csv(tmp_path / f"{table['sample'].iloc[0]}.gradient.csv")
    assert summary["population"].nunique() == 2


@pytest.mark.filterwarnings("ignore:The members of the model")
def test_labels_under_the_key_of_results_are_evaluated(folder, raw):
    from fcm_estimators.labels import LabelSource
    from fcm_estimators.workflow import evaluate_files

    file = files_of(folder)[0]
    one = raw[raw.obs["sample"] == file.stem]

    def label(adata):
        adata.obs["reluformer"] = one.obs["cell_type"].to_numpy()

    named = LabelSource(label_key="reluformer")
    source = type("Labels", (), {"label_key": named.label_key, "__call__": staticmethod(label)})()
    found = evaluate_files(folder / "model", file, labels=source, n_workers=0)
    assert found.table["f1"].iloc[0] < 1
