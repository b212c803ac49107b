"""Stores larger than memory: read, classified and explained by chunk."""

from __future__ import annotations

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from explainers import AttentionExplainer, GateQuery, GateSize, GradientExplainer, Vertex
from fcm_estimators import PolygonRegressor, ReluFormerClassifier
from fcm_estimators._cells import rows as rows_module
from fcm_estimators._cells import store as store_module
from fcm_estimators._cells.rows import FileRows
from fcm_estimators.datasets import simulate_cohort
from fcm_estimators.exceptions import InvalidInputError, MarkerMismatchError, MissingKeyError
from fcm_estimators.gating import GatingTree
from fcm_estimators.nn import streaming
from fcm_estimators.preprocessing import LogicleTransform

pytestmark = pytest.mark.filterwarnings("ignore:Writing zarr v2:UserWarning")
READ = {"h5ad": anndata.read_h5ad, "zarr": anndata.read_zarr}


@pytest.fixture(scope="module")
def cohort():
    adata = LogicleTransform().fit_transform(simulate_cohort(n_samples=3, n_cells=700))
    adata.obs["intact"] = adata.obsm["gates"]["intact"].to_numpy()
    adata.obs["is_blast"] = (adata.obs["cell_type"] == "blast").to_numpy()
    return adata


def fitted(cohort, **params):
    return ReluFormerClassifier(
        n_members=0,
        sample_key="sample",
        label_key="cell_type",
        pos_label="blast",
        max_epochs=2,
        steps_per_epoch=10,
        hidden_dim=16,
        n_layers=2,
        random_state=0,
        **params,
    ).fit(cohort)


@pytest.fixture(scope="module")
def clf(cohort):
    return fitted(cohort)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks and chunks in small data."""
    for module in (store_module, rows_module):
        monkeypatch.setattr(module, "BLOCK", 256)
    monkeypatch.setattr(streaming, "chunk_rows", lambda module, like: 150)


def shuffled(cohort):
    return cohort[np.random.default_rng(0).permutation(cohort.n_obs)].copy()


def sparse(cohort):
    other = cohort.copy()
    other.X = sp.csr_matrix(cohort.X)
    return other


def written(adata, folder, kind="h5ad"):
    path = folder / f"cohort.{kind}"
    getattr(adata, f"write_{kind}")(path)
    return path


def same(got, expected, key):
    """Whether what stands under a key is the same, up to the order of sums."""
    assert sorted(got.obs.columns) == sorted(expected.obs.columns)
    for name in [c for c in expected.obs.columns if c.startswith(key)]:
        left, right = got.obs[name], expected.obs[name]
        if isinstance(right.dtype, pd.CategoricalDtype):
            assert left.cat.categories.tolist() == right.cat.categories.tolist()
            left, right = (c.astype(object).fillna("none").to_numpy() for c in (left, right))
            assert (left == right).mean() > 0.995
        else:
            np.testing.assert_allclose(left, right, rtol=1e-3, atol=1e-5)
    for tables, names in ((got.obsm, expected.obsm), (got.layers, expected.layers)):
        for name in [n for n in names if str(n).startswith(key)]:
            np.testing.assert_allclose(tables[name], names[name], rtol=1e-3, atol=1e-4)
    assert got.uns[key].keys() == expected.uns[key].keys()


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
@pytest.mark.parametrize(
    "change", [lambda a: a, shuffled, sparse], ids=["plain", "shuffled", "csr"]
)
@pytest.mark.parametrize("subset", [None, "intact"])
def test_classification_of_a_store_is_that_in_memory(tmp_path, cohort, kind, change, subset):
    clf = fitted(cohort, subset_key=subset)
    data = change(cohort)
    path = written(data, tmp_path, kind)
    for _ in range(2):  # results of an earlier run are replaced
        clf.annotate(path)
    got, expected = READ[kind](path), clf.annotate(data, copy=True)
    same(got, expected, "reluformer")
    assert isinstance(got.obsm["reluformer_proba"], pd.DataFrame)
    assert got.obsm["reluformer_proba"].index.equals(got.obs_names)
    np.testing.assert_array_equal(
        np.asarray(got.X.todense() if sp.issparse(got.X) else got.X),
        np.asarray(data.X.todense() if sp.issparse(data.X) else data.X),
    )


@pytest.mark.parametrize("mode", ["own", "set", "context"])
@pytest.mark.parametrize("cells", [None, "is_blast"])
def test_gradients_of_a_store_are_those_in_memory(tmp_path, cohort, clf, mode, cells):
    path = written(shuffled(cohort), tmp_path)
    explainer = GradientExplainer(clf, mode=mode, units="sd")
    explainer.explain(path, cells=cells)
    expected = shuffled(cohort)
    explainer.explain(expected, cells=cells)
    same(anndata.read_h5ad(path), expected, "gradient")


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("queries", [None, "is_blast"])
def test_attention_of_a_store_is_that_in_memory(tmp_path, cohort, clf, layer, queries):
    path = written(cohort, tmp_path, "zarr")
    explainer = AttentionExplainer(clf, net_layer=layer, queries=queries)
    explainer.explain(path)
    expected = cohort.copy()
    explainer.explain(expected)
    same(anndata.read_zarr(path), expected, "attention")


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
@pytest.mark.parametrize("subset", [None, "intact"])
def test_gates_of_a_store_are_those_in_memory(tmp_path, cohort, kind, subset):
    names = {"syto": ("", "FSC-A", "Syto 41"), "cd19": ("syto", "CD19", "SSC-A")}
    gates = cohort.copy()
    gates.obsm["gates"] = cohort.obsm["gates"][list(names)]
    reg = PolygonRegressor(
        gates=names,
        sample_key="sample",
        subset_key=subset,
        max_epochs=1,
        steps_per_epoch=5,
        random_state=0,
    ).fit(gates)
    path = written(cohort, tmp_path, kind)
    reg.annotate(path)
    got, expected = READ[kind](path), reg.annotate(cohort, copy=True)
    table, reference = (a.obsm["predicted_gates_membership"] for a in (got, expected))
    assert table.dtypes.tolist() == reference.dtypes.tolist()
    assert (table.isna() == reference.isna()).all().all()
    assert (table.fillna(False) == reference.fillna(False)).to_numpy().mean() > 0.999
    for name in cohort.obs["sample"].unique():
        tree, reference = (
            GatingTree.from_adata(a, key="predicted_gates", sample=name) for a in (got, expected)
        )
        for gate in names:
            np.testing.assert_allclose(tree[gate].vertices, reference[gate].vertices, rtol=1e-4)


def test_gates_of_a_store_are_explained_as_in_memory(tmp_path, cohort):
    names = {"syto": ("", "FSC-A", "Syto 41"), "cd19": ("syto", "CD19", "SSC-A")}
    gates = cohort.copy()
    gates.obsm["gates"] = cohort.obsm["gates"][list(names)]
    reg = PolygonRegressor(
        gates=names, sample_key="sample", max_epochs=1, steps_per_epoch=5, random_state=0
    ).fit(gates)
    for explainer, key in (
        (GradientExplainer(reg, GateSize("cd19")), "gradient"),
        (GradientExplainer(reg, Vertex("cd19", 3, "x")), "gradient"),
        (AttentionExplainer(reg, queries=GateQuery("cd19")), "attention"),
    ):
        path = written(cohort, tmp_path)
        explainer.explain(path)
        expected = cohort.copy()
        explainer.explain(expected)
        same(anndata.read_h5ad(path), expected, key)


def test_a_bad_store_is_refused_and_stays_as_it_is(tmp_path, cohort, clf):
    broken = cohort.copy()
    broken.X[1500, broken.var_names.get_loc("CD10")] = np.nan
    nameless = cohort.copy()
    nameless.obs["sample"] = nameless.obs["sample"].astype(object).where(cohort.obs["event"] > 0)
    for data, error, message in (
        (broken, InvalidInputError, "'CD10' .1 NaN"),
        (nameless, InvalidInputError, "3 of 2100 cells .* no sample id"),
        (cohort[:, :5].copy(), MarkerMismatchError, "CD45"),
        (cohort[:0].copy(), InvalidInputError, "0 cells"),
    ):
        path = written(data, tmp_path)
        before = path.read_bytes()
        with pytest.raises(error, match=message):
            clf.annotate(path)
        assert path.read_bytes() == before
        path.unlink()


def test_a_store_that_is_none_is_refused(tmp_path, cohort, clf):
    with pytest.raises(FileNotFoundError):
        clf.annotate(tmp_path / "nothing.h5ad")
    text = tmp_path / "text.h5ad"
    text.write_text("no store")
    with pytest.raises(InvalidInputError, match="no h5ad file"):
        clf.annotate(text)
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(InvalidInputError, match="no zarr store"):
        clf.annotate(tmp_path / "empty.zarr")
    with h5py.File(tmp_path / "other.h5ad", "w") as file:
        file.create_group("obs")
    with pytest.raises(InvalidInputError, match="no AnnData"):
        clf.annotate(tmp_path / "other.h5ad")
    path = written(cohort, tmp_path)
    with pytest.raises(MissingKeyError, match="blasts"):
        GradientExplainer(clf).explain(path, cells="blasts")
    with pytest.raises(InvalidInputError, match="True or False"):
        GradientExplainer(clf).explain(path, cells="event")
    with pytest.raises(InvalidInputError, match="only 'plain'"):
        GradientExplainer(clf, method="smooth").explain(path)


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_names_of_cells_may_be_values_and_a_mask(tmp_path, cohort, clf, kind):
    """As anndata 0.13 writes texts."""
    data = cohort.copy()
    tables = {key: data.obsm.pop(key) for key in list(data.obsm)}
    data.obs.index = data.obs.index.astype("string")
    for key, table in tables.items():
        data.obsm[key] = pd.DataFrame(table).set_axis(data.obs.index, axis=0)
    with anndata.settings.override(allow_write_nullable_strings=True):
        path = written(data, tmp_path, kind)
    clf.annotate(path)
    got = READ[kind](path)
    same(got, clf.annotate(cohort, copy=True), "reluformer")
    assert got.obs_names.tolist() == cohort.obs_names.tolist()
    assert got.obsm["reluformer_proba"].index.tolist() == cohort.obs_names.tolist()


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_half_written_results_do_not_stay(tmp_path, cohort, clf, kind, monkeypatch):
    path = written(cohort, tmp_path, kind)
    monkeypatch.setattr(store_module.CellStore, "add_records", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        clf.annotate(path)
    got = READ[kind](path)
    assert sorted(got.obs.columns) == sorted(cohort.obs.columns)
    assert set(got.obsm) == set(cohort.obsm)


def test_rows_in_a_file_are_what_was_put_there():
    like = torch.zeros(1, dtype=torch.float32)
    rows, values = FileRows(10, 3, like), torch.randn(10, 3)
    assert (rows.get(0, 10) == 0).all()
    for start in (7, 0, 3):
        rows.put(start, values[start : start + 4])
    np.testing.assert_array_equal(rows.get(0, 10), values)
