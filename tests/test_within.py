"""A model that was trained inside a gate remembers it, and judges no other cells."""

from __future__ import annotations

import copy
import json

import anndata as ad
import joblib
import numpy as np
import pandas as pd
import pytest

from explainers import GradientExplainer
from fcm_estimators import ReluFormerClassifier, load_model
from fcm_estimators.cohort import annotate_files, read_files
from fcm_estimators.exceptions import InvalidInputError, MissingKeyError
from fcm_estimators.gating import GatingTree, PolygonGate
from fcm_estimators.labels import labels_from_gates
from tests.helpers import toy_cohort

pytestmark = pytest.mark.filterwarnings("ignore:Writing zarr v2:UserWarning")
PARAMS = {
    "sample_key": "sample",
    "label_key": "cell_type",
    "pos_label": "blast",
    "n_members": 0,
    "max_epochs": 2,
    "steps_per_epoch": 5,
    "n_layers": 1,
    "hidden_dim": 8,
    "random_state": 0,
}
READ = {"h5ad": ad.read_h5ad, "zarr": ad.read_zarr}


@pytest.fixture(scope="module")
def cohort():
    """A fifth of the cells are debris, far away; the experts' labels are inside "intact"."""
    adata = toy_cohort(6, 200)
    blast = (adata.obs["cell_type"] == "blast").to_numpy()
    debris = np.arange(adata.n_obs) % 5 == 0
    adata.X[debris] -= 3
    adata.obsm["gates"] = pd.DataFrame(
        {"intact": ~debris, "blast": blast & ~debris}, index=adata.obs_names
    )
    del adata.obs["cell_type"]
    labels_from_gates(adata, ["blast"], within="intact")
    return adata


@pytest.fixture(scope="module")
def clf(cohort):
    return ReluFormerClassifier(**PARAMS).fit(cohort)


def without_gates(adata):
    bare = adata.copy()
    del bare.obsm["gates"]
    return bare


def test_cells_outside_are_neither_read_nor_judged(cohort, clf):
    inside = cohort.obsm["gates"]["intact"].to_numpy()
    called = clf.predict(cohort)
    assert ((called == "not analysed") == ~inside).all()
    assert np.isnan(clf.predict_proba(cohort)).any(axis=1).tolist() == (~inside).tolist()
    # It is the model of these cells alone.
    alone = cohort[inside].copy()
    np.testing.assert_array_equal(clf.predict_proba(alone), clf.predict_proba(cohort)[inside])
    twin = ReluFormerClassifier(**PARAMS).fit(alone)
    np.testing.assert_array_equal(twin.predict_proba(alone), clf.predict_proba(alone))
    assert sum(clf.training_[0]["cells"].values()) == inside.sum()
    # Control: labels without a gate above them are about all cells.
    free = cohort.copy()
    labels_from_gates(free, ["blast"])
    assert "not analysed" not in ReluFormerClassifier(**PARAMS).fit(free).predict(free)


@pytest.mark.parametrize(
    "use",
    [
        lambda clf, data: clf.predict(data),
        lambda clf, data: clf.predict_proba(data),
        lambda clf, data: clf.score(data),
        lambda clf, data: clf.check_sample(data),
        lambda clf, data: clf.annotate(data),
        lambda clf, data: GradientExplainer(clf).explain(data),
    ],
    ids=["predict", "predict_proba", "score", "check_sample", "annotate", "explain"],
)
def test_without_the_gate_there_is_no_result(cohort, clf, use):
    for data in (without_gates(cohort), cohort.copy()):
        if "gates" in data.obsm:
            data.obsm["gates"] = data.obsm["gates"][["blast"]]
        before = data.copy()
        with pytest.raises(MissingKeyError, match=r"inside the gate 'intact'.*obsm\['gates'\]"):
            use(clf, data)
        assert list(data.obs) == list(before.obs)
        assert set(data.uns) == set(before.uns)


def test_tables_name_the_gate_in_a_column(cohort, clf):
    table = pd.DataFrame(cohort.X, columns=list(cohort.var_names), index=cohort.obs_names)
    table["sample"] = cohort.obs["sample"].astype(str)
    with pytest.raises(MissingKeyError, match="inside the gate 'intact'"):
        clf.predict(table)
    table["intact"] = cohort.obsm["gates"]["intact"]
    np.testing.assert_array_equal(clf.predict(table), clf.predict(cohort))


@pytest.mark.parametrize("form", ["h5ad", "zarr"])
def test_stores_are_treated_like_data_in_memory(cohort, clf, tmp_path, form):
    gates = pd.DataFrame(cohort.obsm["gates"])
    data = cohort.copy()
    # Unknown membership counts as outside.
    unknown = np.arange(data.n_obs) % 7 == 0
    data.obsm["gates"] = gates.astype("boolean")
    data.obsm["gates"].loc[unknown, "intact"] = pd.NA
    for name, adata in (("with", data), ("bare", without_gates(cohort))):
        getattr(adata, f"write_{form}")(tmp_path / f"{name}.{form}")
    clf.annotate(tmp_path / f"with.{form}")
    clf.annotate(data)
    stored = READ[form](tmp_path / f"with.{form}")
    assert stored.obs["reluformer"].tolist() == data.obs["reluformer"].tolist()
    outside = ~gates["intact"].to_numpy() | unknown
    assert ((stored.obs["reluformer"] == "not analysed") == outside).all()
    assert stored.uns["reluformer"]["within"] == "intact"
    with pytest.raises(MissingKeyError, match="inside the gate 'intact'"):
        clf.annotate(tmp_path / f"bare.{form}")
    assert "reluformer" not in READ[form](tmp_path / f"bare.{form}").obs


def test_a_saved_model_remembers(cohort, clf, tmp_path):
    clf.save(tmp_path / "model")
    saved = json.loads((tmp_path / "model" / "model.json").read_text())
    assert "intact" in json.dumps(saved["fitted"])
    assert "inside the gate intact" in (tmp_path / "model" / "MODEL_CARD.md").read_text()
    joblib.dump(clf, tmp_path / "m.joblib")
    copies = [load_model(tmp_path / "model"), joblib.load(tmp_path / "m.joblib"), copy.copy(clf)]
    for same in (*copies, clf.untrained_twin()):
        with pytest.raises(MissingKeyError, match="inside the gate 'intact'"):
            same.predict(without_gates(cohort))
    np.testing.assert_array_equal(copies[0].predict(cohort), clf.predict(cohort))


def test_labels_that_were_changed_are_not_those_inside_the_gate(cohort):
    changed = cohort.copy()
    changed.obs["cell_type"] = changed.obs["cell_type"].fillna("other")
    with pytest.raises(InvalidInputError, match="240 cells outside of it have a label"):
        ReluFormerClassifier(**PARAMS).fit(changed)
    # Labels without a gate replace the record.
    labels_from_gates(changed, ["blast"])
    assert "labelled_within" not in changed.uns
    with pytest.raises(MissingKeyError, match="inside the gate 'intact'"):
        ReluFormerClassifier(**PARAMS).fit(without_gates(cohort))


def test_training_goes_on_inside_the_same_gate(cohort, clf):
    other = cohort.copy()
    labels_from_gates(other, ["blast"])
    more = copy.deepcopy(clf).set_params(warm_start=True, max_epochs=1)
    with pytest.raises(InvalidInputError, match=r"inside the gate 'intact'.*'none'"):
        more.fit(other)
    assert len(more.fit(cohort).history_) == len(clf.history_) + 1


def test_files_are_read_with_the_gate_of_their_labels(cohort, clf, tmp_path):
    parts = [cohort[cohort.obs["sample"] == s].copy() for s in ("s0", "s1")]
    labels_from_gates(parts[1], ["blast"])
    for part, name in zip(parts, "ab", strict=True):
        part.write_h5ad(tmp_path / f"{name}.h5ad")
    one = read_files(tmp_path / "a.h5ad", n_workers=0)
    assert one.uns["labelled_within"]["cell_type"]["gate"] == "intact"
    with pytest.raises(InvalidInputError, match="inside different gates"):
        read_files([tmp_path / "a.h5ad", tmp_path / "b.h5ad"], n_workers=0)
    # A tree of gates may say who is inside.
    without_gates(parts[0]).write_h5ad(tmp_path / "c.h5ad")
    square = [[-9, -9], [9, -9], [9, 1], [-9, 1]]
    tree = GatingTree([PolygonGate("intact", "CD10", "CD19", square)])
    with pytest.raises(InvalidInputError, match=r"'intact'.*not among the gates"):
        annotate_files(
            clf, tmp_path / "c.h5ad", tmp_path / "o",
            gates=GatingTree([PolygonGate("other", "CD10", "CD19", square)]), n_workers=0,
        )  # fmt: skip
    table = annotate_files(clf, tmp_path / "c.h5ad", tmp_path / "o", gates=tree, n_workers=0)
    assert table["n_analysed"].tolist() == [int(tree.apply(parts[0])["intact"].sum())]


@pytest.fixture(scope="module")
def slashed(cohort):
    """The data with the gate as importers of gates write a name with "/"."""
    data = cohort.copy()
    del data.uns["labelled_within"], data.obs["cell_type"]
    data.obsm["gates"] = pd.DataFrame(data.obsm["gates"]).rename(columns={"intact": "CD4|CD8"})
    return data


@pytest.mark.parametrize("asked", [{"within": "CD4/CD8"}, {"subset_key": "CD4/CD8"}])
def test_a_gate_is_found_by_its_name_with_a_slash(cohort, clf, slashed, asked, tmp_path):
    data = slashed.copy()
    labels_from_gates(data, {"blast": "blast"}, within=asked.get("within"))
    model = ReluFormerClassifier(**PARAMS, subset_key=asked.get("subset_key")).fit(data)
    np.testing.assert_array_equal(model.predict(data), clf.predict(cohort))
    model.save(tmp_path / "model")
    model = load_model(tmp_path / "model")
    for form in READ:
        path = tmp_path / f"cells.{form}"
        getattr(slashed.copy(), f"write_{form}")(path)
        model.annotate(path)
        assert READ[form](path).obs["reluformer"].tolist() == clf.predict(cohort).tolist()
    for store in (slashed, tmp_path / "cells.h5ad"):
        part = ad.read_h5ad(store) if store is not slashed else store.copy()
        part.obsm["gates"] = pd.DataFrame(part.obsm["gates"])[["blast"]]
        with pytest.raises(MissingKeyError, match="CD4/CD8"):
            model.annotate(part)
