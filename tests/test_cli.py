"""The command line, as a newcomer, a script and a cluster job meet it."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from fcm_estimators import read_fcs, write_fcs
from fcm_estimators.cli import app
from fcm_estimators.datasets import fetch_all494, simulate_cohort
from fcm_estimators.exceptions import InvalidInputError, MissingKeyError
from fcm_estimators.gating import GatingTree
from fcm_estimators.keys import AttentionKeys, ClassKeys, GateKeys, GradientKeys
from fcm_estimators.metrics import ClassificationErrors
from fcm_estimators.metrics._total_interval import Spread
from fcm_estimators.models import load_model
from fcm_estimators.preprocessing import Compensation
from fcm_estimators.report._figures import planes
from fcm_estimators.report._sample import Annotated, Keys
from fcm_estimators.workflow import LabelSource, evaluate_files, standard_steps, train_model
from tests import workspaces
from tests.helpers import data_home, weights_file

ONE_PROCESS = ["--workers", "0"]


@pytest.fixture(scope="module")
def raw():
    return simulate_cohort(6, 1200, random_state=2)


@pytest.fixture(scope="module")
def lab(raw, tmp_path_factory):
    """FCS files, a table of gates for each, a Gating-ML file, whose sample is whose."""
    lab = tmp_path_factory.mktemp("lab")
    for name in ("fcs", "tables"):
        (lab / name).mkdir()
    samples = raw.obs["sample"].cat.categories
    for sample in samples:
        one = raw[raw.obs["sample"] == sample].copy()
        write_fcs(one, lab / "fcs" / f"{sample}.fcs")
        table = one.obsm["gates"].astype(int).assign(event=one.obs["event"])
        table.to_csv(lab / "tables" / f"{sample}.csv", index=False)
    tree = GatingTree.from_adata(raw, sample=samples[0])
    drawn = GatingTree([tree[name] for name in ("syto", "singlets", "intact", "cd19")])
    drawn.to_gatingml(lab / "gates.xml", channels=raw)
    patient = [s.split("_")[0] for s in samples]
    pd.DataFrame({"sample": samples, "patient": patient}).to_csv(lab / "patients.csv", index=False)
    return lab


@pytest.fixture(scope="module")
def model(lab):
    done = call(
        "train", lab / "fcs", "-o", lab / "model", *labelled(lab), "--pos-label", "blast",
        "--patients", lab / "patients.csv", "--max-epochs", 3, *ONE_PROCESS,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    return lab / "model"


def test_the_positive_class_is_the_only_one_that_was_named(lab, tmp_path):
    files = sorted((lab / "fcs").iterdir())[:2]
    quick = ["--max-epochs", 1, "--json", *ONE_PROCESS]
    done = call("train", *files, "-o", tmp_path / "one", *labelled(lab), *quick)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["positive class"] == "blast"
    raw = ad.concat([read_fcs(file) for file in files], merge="same")
    raw.obs["cell_type"] = np.where(np.arange(raw.n_obs) % 3, "other", "blast")
    raw.write_h5ad(tmp_path / "labelled.h5ad")
    done = call("train", tmp_path / "labelled.h5ad", "-o", tmp_path / "two", *quick)
    assert done.exit_code == 2
    assert "Name it with --pos-label" in " ".join(done.stderr.split())
    assert not (tmp_path / "two" / "model.json").exists()


def test_a_model_is_not_replaced_unless_asked(lab, model):
    before = (model / "model.json").read_bytes()
    arguments = ["train", lab / "fcs", "-o", model, *labelled(lab), "--max-epochs", 1]
    done = call(*arguments, *ONE_PROCESS)
    assert done.exit_code == 2
    assert "--overwrite" in " ".join(done.stderr.split())
    assert (model / "model.json").read_bytes() == before


def labelled(lab):
    tables = ["--gates", lab / "tables", "--event-column", "event"]
    return [*tables, "--class", "blast=blast", "--within", "intact"]


def call(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_trained_model_is_that_of_the_python_api(lab, model, raw):
    clf = load_model(model)
    assert clf.classes_.tolist() == ["blast", "other"]
    assert clf.pos_label_ == "blast"
    assert clf.patient_key == "patient"
    assert len(clf.history_) == len(pd.read_csv(model / "history.csv")) == 3
    assert sorted(p.name for p in model.iterdir()) == [
        "DATA_CARD.md", "MODEL_CARD.md", "history.csv", weights_file(model).name, "model.json",
    ]  # fmt: skip
    again = train_model(
        lab / "fcs",
        lab / "again",
        labels=LabelSource(
            gates=str(lab / "tables"),
            classes={"blast": "blast"},
            within="intact",
            event_column="event",
        ),
        patients=dict(pd.read_csv(lab / "patients.csv").to_numpy()),
        n_workers=0,
        pos_label="blast",
        max_epochs=3,
    )
    new = again.prepare(raw[raw.obs["sample"] == "patient1_d0"].copy())
    np.testing.assert_array_equal(again.predict_proba(new), clf.predict_proba(new))


def test_annotate_prints_a_table_or_json_and_writes_files(lab, model, tmp_path):
    gates = ["--gates", lab / "tables"]
    done = call("annotate", model, lab / "fcs", "-o", tmp_path, *gates, "--json", *ONE_PROCESS)
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)
    assert [row["status"] for row in rows] == ["done"] * 6
    assert rows[0]["n_cells"] == 1200
    assert rows[0]["n_qc_dead"] is None
    written = ad.read_h5ad(rows[0]["output"])
    assert (written.obs["reluformer"] == "blast").sum() == rows[0]["n_blast"]
    again = call("annotate", model, lab / "fcs", "-o", tmp_path, *gates, *ONE_PROCESS)
    assert again.exit_code == 0
    assert again.stdout.count("kept") == 6
    assert "patient1_d0" in again.stdout


def test_a_model_asks_for_the_gate_inside_which_it_was_trained(lab, model, raw, tmp_path):
    """Dead cells and debris, about which nobody told it anything, are not analysed."""
    first = sorted((lab / "fcs").iterdir())[0]
    for command in ("annotate", "explain"):
        for gates in ([], ["--gates", lab / "some.csv"]):
            table = pd.read_csv(lab / "tables" / f"{first.stem}.csv")[["syto", "event"]]
            table.to_csv(lab / "some.csv", index=False)
            refused = call(command, model, first, "-o", tmp_path / "no", *gates, *ONE_PROCESS)
            assert refused.exit_code == 2
            told = " ".join(refused.stderr.split())
            assert "inside the gate 'intact'" in told
            assert gates or "--gates" in told
            assert "gates=" not in told
            assert not list((tmp_path / "no").glob("*.h5ad"))
    refused = call("evaluate", model, lab / "fcs", *ONE_PROCESS)
    assert refused.exit_code == 2
    done = call(
        "annotate", model, first, "-o", tmp_path, "--gates", lab / "tables", "--json",
        *ONE_PROCESS,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.stdout)
    inside = raw[raw.obs["sample"] == first.stem].obsm["gates"]["intact"].to_numpy()
    assert row["n_analysed"] == row["denominator"] == inside.sum() < row["n_cells"]
    called = ad.read_h5ad(row["output"]).obs["reluformer"]
    assert ((called == "not analysed") == ~inside).all()
    # A file that has the membership already needs no more; one that lacks it fails alone.
    stored = read_fcs(first)
    stored.write_h5ad(tmp_path / "without.h5ad")
    failed = call("annotate", model, tmp_path / "without.h5ad", "-o", tmp_path / "o", *ONE_PROCESS)
    assert failed.exit_code == 1
    assert "inside the gate 'intact'" in " ".join(failed.stderr.split())
    # Gates that a model has learnt will do.
    learnt = call(
        "train", lab / "fcs", "-o", tmp_path / "gates", "--kind", "gates", "--gates",
        lab / "gates.xml", "--max-epochs", 1, *ONE_PROCESS,
    )  # fmt: skip
    assert learnt.exit_code == 0, learnt.output
    done = call(
        "annotate", model, first, "-o", tmp_path / "g", "--gates", tmp_path / "gates", "--json",
        *ONE_PROCESS,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.stdout)
    assert row["n_analysed"] == ad.read_h5ad(row["output"]).obsm["gates"]["intact"].sum()


def test_within_is_of_labels_and_not_of_gates(lab, tmp_path):
    done = call(
        "train", lab / "fcs", "-o", tmp_path, "--kind", "gates", "--gates", lab / "gates.xml",
        "--within", "intact", *ONE_PROCESS,
    )  # fmt: skip
    assert done.exit_code == 2
    assert "--subset" in " ".join(done.stderr.split())


def test_denominator_comes_from_gates(lab, model, tmp_path):
    done = call(
        "annotate", model, lab / "fcs", "-o", tmp_path, "--gates", lab / "gates.xml",
        "--denominator", "intact", "--limit-of-blank", 0.9, "--json", *ONE_PROCESS,
    )  # fmt: skip
    rows = json.loads(done.stdout)
    assert {row["denominator_name"] for row in rows} == {"intact"}
    assert all(0 < row["denominator"] < row["n_cells"] for row in rows)
    assert {row["protocol"] for row in rows} == {"20/50 events"}
    own = '{"name": "lab", "events_to_detect": 1, "events_to_quantify": 1, "least_events": 1}'
    other = call(
        "annotate", model, lab / "fcs", "-o", tmp_path, "--gates", lab / "gates.xml",
        "--denominator", "intact", "--protocol", own, "--json", *ONE_PROCESS,
    )  # fmt: skip
    for row in json.loads(other.stdout):
        assert (row["protocol"], row["adequacy"]) == ("lab", "reached")
        called = "quantifiable" if row["numerator"] else "below LOD"
        assert row["detection"] in (called, "members disagree")
    wrong = call("annotate", model, lab / "fcs", "-o", tmp_path, "--protocol", "euroflow")
    assert wrong.exit_code == 2
    assert "--protocol 'euroflow' is none of" in wrong.stderr


@pytest.fixture(scope="module")
def wsp(lab, raw):
    """A workspace of all files, with a gate that nobody can read."""
    forward = raw.var["channel"][raw.var["kind"] == "scatter"].iloc[0]
    middle = float(np.median(raw[:, raw.var["channel"] == forward].X))
    below = workspaces.population("upper half", workspaces.box(**{forward: (middle, None)}))
    gates = workspaces.population("all", workspaces.box(**{forward: (None, None)}), below)
    odd = workspaces.population("odd", "<gating:CurlyQuad/>")
    intact = workspaces.population("intact", workspaces.box(**{forward: (middle / 2, None)}))
    samples = raw.obs["sample"].cat.categories
    return workspaces.write_workspace(
        lab / "lab.wsp",
        *(
            workspaces.sample(f"{name}.FCS", gates, intact, odd, number=i + 1)
            for i, name in enumerate(samples)
        ),
    )


def test_gates_of_a_workspace_are_chosen_by_name(lab, model, raw, wsp, tmp_path):
    first = sorted((lab / "fcs").iterdir())[0]
    for i, gates in enumerate((["--gates", wsp], ["--gates", wsp, "--gate", "upper half"])):
        done = call(
            "annotate", model, first, "-o", tmp_path / str(i), *gates,
            "--denominator", "upper half", "--json", *ONE_PROCESS,
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        (row,) = json.loads(done.stdout)
        assert row["denominator_name"] == "upper half"
        assert 400 < row["denominator"] < 800
        assert ("'odd'" in row["warning"]) == (i == 0)
    tables = ["--gates", lab / "tables", "--event-column", "event", "--denominator", "intact"]
    done = call("annotate", model, first, "-o", tmp_path / "t", *tables, "--json", *ONE_PROCESS)
    assert json.loads(done.stdout)[0]["denominator_name"] == "intact", done.output
    wrong = call("annotate", model, first, "-o", tmp_path / "w", "--gates", wsp,
                 "--denominator", "nobody", *ONE_PROCESS)  # fmt: skip
    assert wrong.exit_code == 2
    assert "'upper half'" in " ".join(wrong.stderr.split())


def test_labels_of_the_deepest_gate_need_no_list_of_classes(lab, raw, wsp, tmp_path):
    files = sorted((lab / "fcs").iterdir())[:2]
    deepest = ["--gates", wsp, "--labels", "deepest", "--gate", "all", "--gate", "upper half"]
    quick = ["--max-epochs", 1, "--pos-label", "upper half", "--json", *ONE_PROCESS]
    done = call("train", *files, "-o", tmp_path / "m", *deepest, *quick)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["classes"] == ["all", "upper half"]
    done = call("evaluate", tmp_path / "m", files[0], *deepest, "--json", *ONE_PROCESS)
    assert done.exit_code == 0, done.output
    odd = call("train", *files, "-o", tmp_path / "o", *deepest[:4], *quick)
    assert odd.exit_code == 2
    assert "name them with --gate." in " ".join(odd.stderr.split())


def test_a_subset_whose_name_has_a_slash_is_read_from_the_gates(lab, raw, tmp_path):
    """Importers write "|" for "/", and --gate alone would leave the subset out."""
    forward = raw.var["channel"][raw.var["kind"] == "scatter"].iloc[0]
    low, middle = np.quantile(raw[:, raw.var["channel"] == forward].X, [0.2, 0.5])
    upper = workspaces.population("up/per", workspaces.box(**{forward: (middle, None)}))
    subset = workspaces.population("in/tact", workspaces.box(**{forward: (low, None)}))
    files = sorted((lab / "fcs").iterdir())[:2]
    wsp = workspaces.write_workspace(
        tmp_path / "lab.wsp", *(workspaces.sample(f.name, upper, subset) for f in files)
    )
    gates = ["--gates", wsp, "--gate", "up/per"]
    done = call(
        "train", *files, "-o", tmp_path / "m", *gates, "--class", "up/per=upper",
        "--subset", "in/tact", "--max-epochs", 1, *ONE_PROCESS,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    for command, chosen in (("annotate", gates), ("annotate", gates[:2]), ("explain", gates[:2])):
        out = tmp_path / f"{command}{len(chosen)}"
        done = call(command, tmp_path / "m", files[0], "-o", out, *chosen, *ONE_PROCESS)
        assert done.exit_code == 0, done.output
        called = ad.read_h5ad(next(out.glob("*.h5ad")))
        inside = called[:, called.var["channel"] == forward].layers["raw"].ravel() >= low
        assert ((called.obs["reluformer"] != "not analysed").to_numpy() == inside).all()
        again = load_model(tmp_path / "m").annotate(called, copy=True)
        assert list(again.obs["reluformer"]) == list(called.obs["reluformer"])


def test_explain_adds_gradients_and_heads(lab, model, tmp_path):
    first = sorted((lab / "fcs").iterdir())[0]
    done = call(
        "explain", model, first, "-o", tmp_path, "--gates", lab / "tables", "--json",
        "--net-layer", 0, *ONE_PROCESS,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.stdout)
    adata = ad.read_h5ad(row["output"])
    heads = adata.obs["attention_head"].value_counts()
    assert row["n_none"] == heads["none"]
    assert row["strongest_marker"] in adata.var_names
    table = pd.read_csv(tmp_path / f"{first.stem}.gradient.csv")
    of_one = table[(table["population"] == table["population"][0]) & (table["marker"] == "CD10")]
    cells = (adata.obs["reluformer"] == table["population"][0]).to_numpy()
    mean = adata.layers["gradient"][cells, adata.var_names.get_loc("CD10")].mean()
    assert of_one["mean"].item() == pytest.approx(mean, rel=1e-4)


@pytest.fixture(scope="module")
def gates_model(lab):
    done = call(
        "train", lab / "fcs", "-o", lab / "gates_model", "--kind", "gates",
        "--gates", lab / "gates.xml", "--max-epochs", 2, "--json", *ONE_PROCESS,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["gates"] == ["syto", "singlets", "intact", "cd19"]
    return lab / "gates_model"


def test_gates_are_learnt_predicted_explained_and_exported(lab, model, gates_model, tmp_path):
    first = sorted((lab / "fcs").iterdir())[0]
    done = call("gate", gates_model, first, "-o", tmp_path / "out", "--json", *ONE_PROCESS)
    assert done.exit_code == 0, done.output
    (row,) = json.loads(done.stdout)
    assert row["gatingml"] == f"{first.stem}.xml"
    tree = GatingTree.from_gatingml(tmp_path / "out" / row["gatingml"])
    compensated = Compensation().fit_transform(read_fcs(first))
    membership = ad.read_h5ad(row["output"]).obsm["predicted_gates_membership"]
    for gate in membership:
        assert row[f"n_{gate}"] == membership[gate].sum()
        # An event on an edge may fall on the other side of it in the text of the file.
        assert (tree.apply(compensated)[gate].to_numpy() != membership[gate].to_numpy()).sum() <= 2
    done = call(
        "explain", gates_model, first, "-o", tmp_path / "why", "--gate", "cd19",
        "--json", *ONE_PROCESS,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    done = call("evaluate", gates_model, lab / "fcs", "--gates", lab / "gates.xml", *ONE_PROCESS)
    assert done.exit_code == 0, done.output
    assert "singlets" in done.stdout
    done = call("gate", model, first, "-o", tmp_path / "x", *ONE_PROCESS)
    assert done.exit_code == 2


def test_an_alias_reaches_gates_their_file_and_their_picture(
    lab, model, gates_model, raw, tmp_path
):
    name = "patient1_d0"
    renamed = raw[raw.obs["sample"] == name].copy()
    renamed.var["marker"] = renamed.var["marker"].replace("CD19", "our marker")
    file = tmp_path / f"{name}.fcs"
    write_fcs(renamed, file)
    alias = ["--alias", "our marker=CD19", *ONE_PROCESS]
    first = call("gate", gates_model, lab / "fcs" / file.name, "-o", tmp_path / "a", *ONE_PROCESS)
    second = call("gate", gates_model, file, "-o", tmp_path / "b", *alias)
    assert first.exit_code == second.exit_code == 0, second.output
    # The channels are the same, whatever the marker is called.
    written = [(tmp_path / out / f"{name}.xml").read_text() for out in "ab"]
    assert written[0] == written[1]
    usual, other = (ad.read_h5ad(tmp_path / out / f"{name}.h5ad") for out in "ab")
    keys = Keys(ClassKeys(), GateKeys(), "gates", GradientKeys(), AttentionKeys())
    drawn = [planes(Annotated(adata, name, keys)) for adata in (usual, other)]
    assert [plane["gate"] for plane in drawn[0]] == [plane["gate"] for plane in drawn[1]]
    axes = [{plane[axis] for plane in each for axis in "xy"} for each in drawn]
    assert axes[1] ^ axes[0] == {"CD19", "our marker"}
    # A model of gates as --gates reads the same names as the classifier.
    done = call("annotate", model, file, "-o", tmp_path / "c", "--gates", gates_model, *alias)
    assert done.exit_code == 0, done.output
    found = ad.read_h5ad(tmp_path / "c" / f"{name}.h5ad").obsm["gates"]
    expected = usual.obsm["predicted_gates_membership"]
    assert (found.to_numpy() == expected.to_numpy()).all()


@pytest.mark.filterwarnings("ignore:The members of the model")
def test_errors_go_from_evaluation_to_annotation(lab, model, tmp_path):
    file = tmp_path / "errors.json"
    done = call(
        "evaluate", model, lab / "fcs", *labelled(lab), "--errors", file, "--json", *ONE_PROCESS
    )
    assert done.exit_code == 0, done.output
    assert "no interval follows from this" in done.stderr  # there are 6 samples
    errors = ClassificationErrors.read(file)
    assert "10 of either are needed" in errors.why
    # As if there had been enough patients.
    known = dataclasses.replace(
        errors, why="", false_positives=Spread(-8, 1, 20), sensitivity=Spread(2, 1, 20)
    )
    for written, estimable in ((errors, False), (known, True)):
        written.write(file)
        one = sorted((lab / "fcs").iterdir())[0]
        command = ["annotate", model, one, "-o", tmp_path / "out", *labelled(lab)[:4]]
        command += ["--errors", file, *ONE_PROCESS]
        done = call(*command, "--json")
        assert done.exit_code == 0, done.output
        row = json.loads(done.stdout)[0]
        assert row["ci_total_why"] == written.why
        assert (row["ci_total_high"] is not None) == estimable
        if estimable:
            assert row["ci_total_high"] >= row["ci_high"]
    dataclasses.replace(known, model="another").write(file)
    wrong = call(*command)
    assert wrong.exit_code == 2
    assert "--errors are those of another model" in wrong.stderr


@pytest.mark.filterwarnings("ignore:The members of the model")
def test_evaluate_compares_with_experts(lab, model):
    done = call("evaluate", model, lab / "fcs", *labelled(lab), "--json", *ONE_PROCESS)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert set(found) == {"table", "summary", "reliability"}
    source = LabelSource(
        gates=str(lab / "tables"), classes={"blast": "blast"}, within="intact", event_column="event"
    )
    same = evaluate_files(model, lab / "fcs", labels=source, n_workers=0)
    assert found["summary"]["f1_mean"] == pytest.approx(same.summary["f1_mean"])
    shown = call("evaluate", model, lab / "fcs", *labelled(lab), *ONE_PROCESS)
    assert "Reliability" in shown.stdout
    assert "patient1_d0" in shown.stdout


def test_annotated_files_become_pages(lab, model, tmp_path):
    two = sorted((lab / "fcs").iterdir())[:2]
    done = call(
        "explain", model, *two, "-o", tmp_path / "h5ad", "--gates", lab / "gates.xml", *ONE_PROCESS
    )
    assert done.exit_code == 0, done.output
    options = ["--denominator", "intact"]
    done = call("report", tmp_path / "h5ad", "-o", tmp_path / "pages", *options, "--json")
    assert done.exit_code == 0, done.output
    assert [row["status"] for row in json.loads(done.stdout)] == ["done", "done"]
    names = [f"{path.stem}.html" for path in two]
    assert sorted(p.name for p in (tmp_path / "pages").iterdir()) == ["index.html", *names]
    file = tmp_path / "h5ad" / f"{two[0].stem}.h5ad"
    done = call("report", file, "-o", tmp_path / "one.html", *options)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "one.html").read_text() == (tmp_path / "pages" / names[0]).read_text()
    assert "withheld (--identifiers shows it)" in (tmp_path / "one.html").read_text()
    done = call("report", two[0], "-o", tmp_path / "raw.html")
    assert done.exit_code == 2
    assert "Annotate the sample first" in done.stderr


def test_h5ad_and_zarr_are_read_like_fcs(lab, model, raw, tmp_path):
    sample = raw.obs["sample"].cat.categories[0]
    one = raw[raw.obs["sample"] == sample].copy()
    one.write_h5ad(tmp_path / f"{sample}.h5ad")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Writing zarr v2", UserWarning)
        one.write_zarr(tmp_path / "stored.zarr")
    found = []
    for file in (
        lab / "fcs" / f"{sample}.fcs",
        tmp_path / f"{sample}.h5ad",
        tmp_path / "stored.zarr",
    ):
        # The stored ones have gates of their own.
        gates = ["--gates", lab / "tables"] if file.suffix == ".fcs" else []
        done = call(
            "annotate", model, file, "-o", tmp_path / file.suffix[1:], "--json", *gates,
            *ONE_PROCESS,
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        [row] = json.loads(done.stdout)
        found.append((row["n_cells"], row["n_blast"], row["n_other"]))
    assert found[1] == found[2]
    assert found[0][0] == found[1][0]
    np.testing.assert_allclose(found[0], found[1], atol=2)  # FCS holds float32


def test_failed_files_are_told_on_stderr_and_by_the_exit_status(lab, model, tmp_path):
    (tmp_path / "broken.fcs").write_bytes(b"FCS3.1")
    first = sorted((lab / "fcs").iterdir())[0]
    done = call(
        "annotate", model, first, tmp_path / "broken.fcs", "-o", tmp_path / "o",
        "--gates", lab / "tables", *ONE_PROCESS,
    )  # fmt: skip
    assert done.exit_code == 1
    assert "1 of 2 files failed" in done.stderr
    assert "done" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["annotate", "nowhere", "FCS", "-o", "OUT"], "No model"),
        (["annotate", "MODEL", "nothing.fcs", "-o", "OUT"], "does not exist"),
        (["train", "FCS", "-o", "OUT", "--class", "blast"], "GATE=LABEL"),
        (["train", "FCS", "-o", "OUT"], "no labels"),
        (["train", "FCS", "-o", "OUT", "--kind", "forest"], "classifier"),
        (["train", "FCS", "-o", "OUT", "--kind", "gates"], "tree"),
        (["train", "FCS", "-o", "OUT", "--patients", "FCS"], "CSV"),
        (["train", "FCS", "-o", "OUT", "--transform", "log"], "logicle"),
        (["explain", "MODEL", "FCS", "-o", "OUT", "--scheduler", "tcp://127.0.0.1:1"], "scheduler"),
        (
            ["annotate", "MODEL", "FCS", "-o", "OUT", "--alias", "CD19"],
            "NAME IN FILES=NAME IN MODEL",
        ),
        (["evaluate", "MODEL", "FCS", "--alias", "CD19=nothing"], "no marker 'nothing'"),
        (["gate", "MODEL", "FCS", "-o", "OUT", "--alias", "a=CD19", "--alias", "a=CD3"], "is both"),
        (["annotate"], "Missing argument"),
    ],
)
def test_wrong_calls_say_what_is_wrong(lab, model, tmp_path, arguments, expected, monkeypatch):
    if "--scheduler" in arguments:
        distributed = pytest.importorskip("distributed")

        def refuse(*args, **kwargs):
            raise OSError("refused")

        monkeypatch.setattr(distributed, "Client", refuse)
    places = {"FCS": lab / "fcs", "MODEL": model, "OUT": tmp_path / "out"}
    given = [places.get(a, a) for a in arguments]
    done = call(*given, *(["--workers", "0"] if len(given) > 1 else []))
    assert done.exit_code == 2, done.output
    assert expected in " ".join(done.stderr.split())
    assert "Traceback" not in done.output


def test_interrupted_training_goes_on_only_when_asked(lab, model, tmp_path):
    (tmp_path / "out" / "training").mkdir(parents=True)
    arguments = ["train", lab / "fcs", "-o", tmp_path / "out", *labelled(lab), *ONE_PROCESS]
    arguments += ["--max-epochs", 3, "--pos-label", "blast", "--patients", lab / "patients.csv"]
    refused = call(*arguments)
    assert refused.exit_code == 2
    assert "--resume" in refused.stderr
    resumed = call(*arguments, "--resume")
    assert resumed.exit_code == 0, resumed.output
    assert weights_file(tmp_path / "out").name == weights_file(model).name


def test_an_interrupt_has_a_status_of_its_own(lab, model, tmp_path, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("fcm_estimators.cohort.annotate_files", interrupt)
    assert call("annotate", model, lab / "fcs", "-o", tmp_path).exit_code == 130


def test_demo_is_the_demo(tmp_path, monkeypatch):
    folders = []
    monkeypatch.setattr("fcm_estimators.demo.run_demo", folders.append)
    assert call("demo", "-o", tmp_path / "x").exit_code == 0
    assert folders == [tmp_path / "x"]


def test_every_command_has_help_and_the_version_is_told():
    assert call("--version").stdout.startswith("fcm-estimators ")
    for command in ("demo", "train", "annotate", "explain", "gate", "evaluate"):
        done = call(command, "--help")
        assert done.exit_code == 0
        assert "Usage" in done.stdout


def test_an_alias_reads_a_marker_that_has_another_name(lab, model, raw, tmp_path):
    renamed = raw[raw.obs["sample"] == "patient1_d0"].copy()
    renamed.var["marker"] = renamed.var["marker"].replace("CD19", "our marker")
    write_fcs(renamed, tmp_path / "patient1_d0.fcs")
    arguments = ["annotate", model, "--gates", lab / "tables", "--json", *ONE_PROCESS]
    refused = call(*arguments, tmp_path / "patient1_d0.fcs", "-o", tmp_path / "a")
    assert refused.exit_code == 1
    alias = ["--alias", "our marker=CD19"]
    done = call(*arguments, tmp_path / "patient1_d0.fcs", "-o", tmp_path / "a", *alias)
    assert done.exit_code == 0, done.output
    usual = call(*arguments, lab / "fcs" / "patient1_d0.fcs", "-o", tmp_path / "b")
    counts = [json.loads(d.stdout)[0]["n_blast"] for d in (done, usual)]
    assert counts[0] == counts[1] > 0
    table = ["--gates", lab / "tables", "--class", "blast=blast", "--within", "intact"]
    mixed = [lab / "fcs" / "patient2_d0.fcs", tmp_path / "patient1_d0.fcs"]
    found = call("evaluate", model, *mixed, *table, *alias, "--event-column", "event", *ONE_PROCESS)
    assert found.exit_code == 0, found.output


def test_a_marker_of_the_training_may_hold_a_comma_and_another_name(lab, raw, tmp_path):
    (tmp_path / "fcs").mkdir()
    # Files of one training may spell a marker in several ways.
    for sample, stem in (("patient1_d0", "CD34"), ("patient2_d0", "stem")):
        names = {"CD19": "CD19, clone x", "CD34": stem}
        one = raw[raw.obs["sample"] == sample].copy()
        one.var["marker"] = one.var["marker"].replace(names)
        write_fcs(one, tmp_path / "fcs" / f"{sample}.fcs")
    done = call(
        "train", tmp_path / "fcs", "-o", tmp_path / "m", *labelled(lab), "--max-epochs", 1,
        "--markers", "CD45, CD10", "--marker", "CD19, clone x", "--marker", "CD34",
        "--alias", "stem=CD34", "--quiet", *ONE_PROCESS,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert done.stdout == ""
    assert load_model(tmp_path / "m").markers_ == ["CD45", "CD10", "CD19, clone x", "CD34"]


def test_quiet_prints_no_table_but_what_is_wrong(lab, model, tmp_path):
    first = sorted((lab / "fcs").iterdir())[0]
    arguments = ["annotate", model, "-o", tmp_path / "o", "--quiet", "--gates", lab / "tables"]
    done = call(*arguments, first, *ONE_PROCESS)
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "")
    (tmp_path / "broken.fcs").write_bytes(b"FCS3.1")
    done = call(*arguments, tmp_path / "broken.fcs", *ONE_PROCESS)
    assert (done.exit_code, done.stdout) == (1, "")
    assert "broken.fcs" in done.stderr
    written = call("report", tmp_path / "o", "-o", tmp_path / "r", "-q")
    assert (written.exit_code, written.stdout) == (0, "")
    assert (tmp_path / "r" / "index.html").exists()


def test_a_pipe_gets_the_result_and_nothing_else(lab, model, tmp_path):
    first = sorted((lab / "fcs").iterdir())[0]
    fcm = Path(sys.executable).with_name("fcm")
    done = subprocess.run(
        [
            fcm,
            "annotate",
            model,
            first,
            "-o",
            tmp_path,
            "--json",
            "--workers",
            "0",
            "--gates",
            lab / "tables",
        ],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert json.loads(done.stdout)[0]["status"] == "done"
    assert done.stderr == ""


# -- what commands are made of ------------------------------------------------------------------


def test_standard_steps_suit_the_kind_of_data(raw):
    def names(adata, **options):
        return [type(step).__name__ for step in standard_steps(adata, **options)]

    assert names(raw) == ["Compensation", "LogicleTransform", "LinearTransform"]
    assert names(raw, compensate=False, transform="none") == []
    assert names(raw, transform="arcsinh") == [
        "Compensation",
        "ArcsinhTransform",
        "LinearTransform",
    ]
    mass = raw.copy()
    mass.var["kind"] = "mass"
    (step,) = standard_steps(mass)
    assert step.cofactor == 5
    done = standard_steps(raw)[0].fit_transform(raw)
    assert names(done) == ["LogicleTransform", "LinearTransform"]
    logicle = standard_steps(done)[0].fit_transform(done)
    assert names(logicle) == []
    with pytest.raises(InvalidInputError, match="log"):
        standard_steps(raw, transform="log")


def test_labels_from_drawn_gates_are_those_of_the_tables(lab, raw):
    one = raw[raw.obs["sample"] == raw.obs["sample"].cat.categories[0]].copy()
    expected = one.obsm["gates"]
    labels = LabelSource(gates=str(lab / "gates.xml"), classes={"cd19": "B"}, within="intact")
    labels(one)
    for gate in ("syto", "cd19"):
        np.testing.assert_array_equal(one.obsm["gates"][gate], expected[gate])
    assert (one.obs["cell_type"] == "B").sum() == expected["cd19"].sum()
    missing = LabelSource(gates=str(lab / "fcs"))
    with pytest.raises(MissingKeyError, match=r"patient1_d0\.csv"):
        missing(one)


@pytest.mark.real_data
def test_workspaces_are_matched_by_the_name_of_the_file():
    folder = data_home("flowjo_example")
    adata = read_fcs(folder / "data_set_simple_line_100.fcs")
    workspace = folder / "simple_poly_and_rect_v2_poly50.wsp"
    labels = LabelSource(gates=str(workspace), classes={"poly1": "in"})
    labels(adata)
    assert (adata.obs["cell_type"] == "in").sum() == 50
    with pytest.raises(MissingKeyError, match="data_set_simple_line_100"):
        labels.tree("other")


@pytest.mark.real_data
@pytest.mark.filterwarnings("ignore:Channels that are not read. 'APC-Cy7-A':UserWarning")
def test_real_leukaemia_from_file_and_table(tmp_path):
    folder = data_home("all494")
    labels = ["--gates", folder / "494_labels.csv", "--class", "blast=blast", "--within", "intact"]
    done = call(
        "train", folder / "494.fcs", "-o", tmp_path / "model", *labels, "--event-column", "index",
        "--pos-label", "blast", "--max-epochs", 2, *ONE_PROCESS,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    done = call("annotate", tmp_path / "model", folder / "494.fcs", "-o", tmp_path, "--json",
                *labels[:2], "--event-column", "index", *ONE_PROCESS)  # fmt: skip
    (row,) = json.loads(done.stdout)
    expert = (fetch_all494().obs["cell_type"] == "blast").sum()
    assert row["n_blast"] == pytest.approx(expert, rel=0.1)
