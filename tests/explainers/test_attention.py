"""AttentionExplainer against dense N x N matrices in double precision, and what it writes."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

from explainers import AttentionExplainer
from explainers._maths.attention import population_attention
from explainers.attention import assigned_heads
from fcm_estimators import ReluFormerClassifier
from fcm_estimators.exceptions import InvalidInputError, MissingKeyError, NotFittedError
from fcm_estimators.inference import fitted_net, net_for
from fcm_estimators.nn.relu_attention import dense_attend, dense_attention
from fcm_estimators.nn.sources import PackedCells
from fcm_estimators.nn.streaming import Stream
from tests.helpers import toy_cohort

QUICK = {"max_epochs": 3, "steps_per_epoch": 10, "hidden_dim": 16, "n_layers": 3, "n_members": 0}


@pytest.fixture(scope="module")
def cohort():
    data = toy_cohort(3, 300)
    data.X = data.X.astype(np.float64)
    data.obs["chosen"] = np.arange(data.n_obs) % 5 == 0
    return data


@pytest.fixture(scope="module")
def clf():
    model = ReluFormerClassifier(
        sample_key="sample", label_key="cell_type", pos_label="blast", **QUICK
    )
    return model.fit(toy_cohort(6, 200))


def dense(clf, x):
    """Attention matrices of one sample, (layers, heads, N, N)."""
    module = net_for(fitted_net(clf), np.dtype(np.float64))
    with torch.no_grad():
        steps = module.trace(torch.from_numpy(x))
        layers = module.layers
        return np.stack(
            [dense_attention(s.q, s.k, 4, layer.eps).numpy() for s, layer in zip(steps, layers)]  # noqa: B905
        )


@pytest.mark.parametrize("layer", [0, 1, -1])
@pytest.mark.parametrize("queries", [None, "chosen"])
def test_received_attention_is_the_column_mean_of_the_dense_matrix(clf, cohort, layer, queries):
    got = AttentionExplainer(clf, net_layer=layer, queries=queries).attribute(cohort)
    for i in range(3):
        rows = slice(300 * i, 300 * i + 300)
        matrix = dense(clf, cohort.X[rows])[layer]
        asked = cohort.obs["chosen"].to_numpy()[rows] if queries else np.ones(300, bool)
        received = matrix[:, asked].mean(1)
        want = 300 * received / received.sum(1, keepdims=True)
        np.testing.assert_allclose(got.relative[rows], want.T, rtol=1e-8)
        np.testing.assert_allclose(got.absorbed.iloc[i], 1 - received.sum(1), rtol=1e-8, atol=1e-12)


def test_a_large_sample_is_exact_too(clf):
    data = toy_cohort(1, 2000)
    data.X = data.X.astype(np.float64)
    received = dense(clf, data.X)[-1].mean(1)
    got = AttentionExplainer(clf, net_layer=-1).attribute(data).relative
    np.testing.assert_allclose(got, (2000 * received / received.sum(1, keepdims=True)).T, rtol=1e-8)


def test_attention_between_populations_is_the_block_sum_of_the_dense_matrix(clf, cohort):
    table = AttentionExplainer(clf, net_layer=1).between(cohort, "cell_type")
    table = table.set_index(["head", "queries", "keys"])
    for h in range(4):
        for queries in ("blast", "other"):
            for keys in ("blast", "other"):
                want, size = [], []
                for i in range(3):
                    rows = slice(300 * i, 300 * i + 300)
                    label = cohort.obs["cell_type"].to_numpy()[rows]
                    matrix = dense(clf, cohort.X[rows])[1, h]
                    want.append(matrix[np.ix_(label == queries, label == keys)].sum(1).mean())
                    size.append((label == keys).mean())
                row = table.loc[(f"head{h}", queries, keys)]
                assert row["attention"] == pytest.approx(np.mean(want), rel=1e-8)
                assert row["enrichment"] == pytest.approx(np.mean(np.divide(want, size)), rel=1e-8)
                assert row["n_samples"] == 3


def test_populations_that_look_may_be_others_than_those_looked_at(clf, cohort):
    x = cohort.X[:300]
    rng = np.random.default_rng(0)
    readers, read = (
        torch.from_numpy(rng.random((2, 300)) < 0.3),
        torch.from_numpy(rng.random((3, 300)) < 0.6),
    )
    stream = Stream(
        net_for(fitted_net(clf), np.dtype(np.float64)),
        PackedCells(torch.from_numpy(x)),
        chunk_size=70,
        keep_layers=True,
    )
    matrix = dense(clf, x)[1]
    want = [[[m[p][:, r].sum(1).mean() for r in read] for p in readers] for m in matrix]
    got = population_attention(stream, 1, readers, read)
    np.testing.assert_allclose(got, want, rtol=1e-8)


def measured_shares(clf, x):
    """|attention| / (|attention| + |residual|) of each cell, by the dense equations."""
    module = net_for(fitted_net(clf), np.dtype(np.float64))
    shares = []
    with torch.no_grad():
        h = module.standardise(torch.from_numpy(x))
        for step, layer in zip(module.trace(torch.from_numpy(x)), module.layers, strict=True):
            out = dense_attend(step.q, step.k, layer.value(h), 4, layer.eps).norm(dim=1)
            shares.append((out / (out + step.q.norm(dim=1))).numpy()[:, None])
            h = step.output
    return shares


@pytest.mark.parametrize("share", ["measured", 0.5, 0, 1])
@pytest.mark.parametrize("queries", [None, "chosen", 7])
def test_rollout_is_the_product_of_the_dense_layers(clf, cohort, queries, share):
    explainer = AttentionExplainer(clf, queries=queries)
    got = explainer.rollout(cohort, share=share)[:300]
    if share == "measured":
        np.testing.assert_array_equal(got, explainer.rollout(cohort)[:300])
    asked = {
        None: np.ones(300),
        "chosen": cohort.obs["chosen"].to_numpy()[:300].astype(float),
        7: (np.arange(300) == 7).astype(float),
    }[queries]
    mass, matrices = asked / asked.sum(), dense(clf, cohort.X[:300])
    shares = [share] * len(matrices)
    if share == "measured":
        shares = measured_shares(clf, cohort.X[:300])
        assert all(part.min() > 0 and part.max() < 1 for part in shares)
        assert np.std([part.mean() for part in shares]) > 0
    for matrix, part in zip(matrices[::-1], shares[::-1], strict=True):
        mass = mass @ ((1 - part) * np.eye(300) + part * matrix.mean(0))
    np.testing.assert_allclose(got, 300 * mass, rtol=1e-8)


@pytest.mark.parametrize("share", ["half", 1.5, -0.1, None])
def test_shares_of_a_rollout_are_checked(clf, cohort, share):
    with pytest.raises(InvalidInputError, match="give 'measured' or a number from 0 to 1"):
        AttentionExplainer(clf).rollout(cohort, share=share)


def one_sample(cohort):
    return cohort[cohort.obs["sample"] == "s1"].copy()


@pytest.mark.parametrize("layer", [0, -1])
def test_the_matrix_is_the_dense_one_and_agrees_with_what_is_streamed(clf, cohort, layer):
    sample = one_sample(cohort)
    explainer = AttentionExplainer(clf, net_layer=layer)
    matrix = explainer.matrix(sample)
    np.testing.assert_allclose(matrix, dense(clf, sample.X)[layer], rtol=1e-8)
    received = matrix.mean(1)
    streamed = explainer.attribute(sample)
    np.testing.assert_allclose(
        300 * received / received.sum(1, keepdims=True), streamed.relative.T, rtol=1e-8
    )
    np.testing.assert_allclose(1 - received.sum(1), streamed.absorbed.iloc[0], atol=1e-12)
    some = AttentionExplainer(clf, net_layer=layer, queries="chosen").matrix(sample)
    np.testing.assert_allclose(some, matrix[:, sample.obs["chosen"].to_numpy()], rtol=1e-12)


def test_a_matrix_has_no_values_for_cells_that_are_not_analysed():
    data = toy_cohort(3, 60)
    data.obs["inside"] = np.arange(data.n_obs) % 4 > 0
    clf = ReluFormerClassifier(
        sample_key="sample", label_key="cell_type", subset_key="inside", **QUICK
    ).fit(data)
    sample = data[data.obs["sample"] == "s2"].copy()
    inside = sample.obs["inside"].to_numpy()
    matrix = AttentionExplainer(clf, net_layer=0).matrix(sample)
    assert matrix.shape == (4, 60, 60)
    assert matrix.dtype == np.float32
    np.testing.assert_array_equal(~np.isnan(matrix[0]), np.outer(inside, inside))
    queries = np.arange(60) < 10
    part = AttentionExplainer(clf, net_layer=0, queries=queries).matrix(sample)
    np.testing.assert_allclose(part, matrix[:, :10], rtol=1e-5)


def test_matrices_that_are_too_large_are_refused_with_the_size(clf, cohort, monkeypatch):
    monkeypatch.setattr("explainers.attention.LARGEST_MATRIX", 299 * 300)
    sample = one_sample(cohort)
    with pytest.raises(InvalidInputError, match="300 queries x 300 cells has 90,000 entries"):
        AttentionExplainer(clf, net_layer=0).matrix(sample)
    assert AttentionExplainer(clf, net_layer=0, queries="chosen").matrix(sample).shape[1] == 60
    with pytest.raises(InvalidInputError, match="that of one sample, and there are 3"):
        AttentionExplainer(clf, net_layer=0).matrix(cohort)
    with pytest.raises(InvalidInputError, match="Choose it with net_layer=0 to 2"):
        AttentionExplainer(clf).matrix(sample)


@pytest.mark.parametrize("size", [7, 299, 300])
def test_chunk_size_changes_nothing(clf, cohort, monkeypatch, size):
    def everything():
        explainer = AttentionExplainer(clf, net_layer=1, queries="chosen")
        received = explainer.attribute(cohort)
        between = explainer.between(cohort, "cell_type")[["attention", "enrichment"]]
        return received.relative, received.absorbed, explainer.rollout(cohort), between

    whole = everything()
    monkeypatch.setattr("fcm_estimators.nn.streaming.chunk_rows", lambda module, like: size)
    for got, want in zip(everything(), whole, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-8, atol=1e-12)


def test_heads_are_assigned_to_the_one_that_looks_most():
    relative = np.array([[1.5, 2.0], [0.9, 0.2], [3.0, 1.0], [np.nan, np.nan], [1.0, 0.5]])
    assert assigned_heads(relative).tolist() == [1, -1, 0, -2, -1]


def test_samples_together_or_alone_and_cells_in_any_order_are_the_same(clf, cohort):
    together = AttentionExplainer(clf).attribute(cohort).relative
    alone = AttentionExplainer(clf).attribute(cohort[:300].copy()).relative
    np.testing.assert_allclose(together[:300], alone, rtol=1e-9)
    order = np.random.default_rng(0).permutation(cohort.n_obs)
    shuffled = AttentionExplainer(clf).attribute(cohort[order].copy()).relative
    np.testing.assert_allclose(shuffled, together[order], rtol=1e-8)


def test_single_precision_agrees_with_double(clf, cohort):
    single = cohort.copy()
    single.X = single.X.astype(np.float32)
    exact = AttentionExplainer(clf).attribute(cohort).relative
    got = AttentionExplainer(clf).attribute(single).relative
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, exact, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("grad", [True, False])
def test_nothing_is_changed(clf, cohort, grad):
    before = {k: v.clone() for k, v in clf.net_.module_.state_dict().items()}
    state = torch.random.get_rng_state()
    with torch.set_grad_enabled(grad):
        explainer = AttentionExplainer(clf, net_layer=-1, queries="chosen")
        explainer.explain(cohort.copy())
        explainer.rollout(cohort)
        explainer.between(cohort, "cell_type")
        assert torch.is_grad_enabled() == grad
    assert all(torch.equal(before[k], v) for k, v in clf.net_.module_.state_dict().items())
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("store", ["h5ad", "zarr"])
@pytest.mark.filterwarnings("ignore:Writing zarr v2")
def test_written_keys_survive_stores(clf, cohort, tmp_path, store):
    data = cohort.copy()
    explainer = AttentionExplainer(clf, net_layer=-1)
    assert explainer.explain(data) is None
    frame = data.obsm["attention_layer2"]
    assert list(frame.columns) == ["head0", "head1", "head2", "head3"]
    np.testing.assert_allclose(
        frame.groupby(data.obs["sample"], observed=True).mean(), 1, rtol=1e-4
    )
    assert data.obs["attention_head"].cat.categories.tolist() == [*frame.columns, "none"]
    best = frame.to_numpy().argmax(1)
    looked_at = frame.to_numpy().max(1) > 1
    want = np.where(looked_at, np.array(frame.columns)[best], "none")
    assert (data.obs["attention_head"].astype(str) == want).all()
    path = tmp_path / f"a.{store}"
    getattr(data, f"write_{store}")(path)
    back = getattr(ad, f"read_{store}")(path)
    pd.testing.assert_frame_equal(back.obsm["attention_layer2"], frame)
    assert list(back.obs["attention_head"]) == list(data.obs["attention_head"])
    assert back.uns["attention"]["absorbed"].shape == (3, 4)


def test_cells_outside_the_parent_gate_are_missing():
    data = toy_cohort(3, 60)
    data.obs["inside"] = np.arange(data.n_obs) % 4 > 0
    clf = ReluFormerClassifier(
        sample_key="sample", label_key="cell_type", subset_key="inside", **QUICK
    ).fit(data)
    AttentionExplainer(clf, net_layer=-1).explain(data)
    outside = ~data.obs["inside"].to_numpy()
    assert data.obsm["attention_layer2"][outside].isna().to_numpy().all()
    assert (data.obs["attention_head"].isna() == outside).all()


@pytest.mark.parametrize("layer", [3, -4, "last"])
def test_layers_that_are_not_there_are_named(clf, cohort, layer):
    data = cohort.copy()
    with pytest.raises(InvalidInputError, match=r"has the layers '0', '1', '2'"):
        AttentionExplainer(clf, net_layer=layer).explain(data)
    assert "attention" not in data.uns


def test_bad_requests_name_what_there_is(clf, cohort):
    with pytest.raises(MissingKeyError, match="'lineage' was not found"):
        AttentionExplainer(clf, net_layer=-1).between(cohort, "lineage")
    with pytest.raises(MissingKeyError, match="neither an obs column"):
        AttentionExplainer(clf, queries="nobody").attribute(cohort)
    with pytest.raises(NotFittedError):
        AttentionExplainer(ReluFormerClassifier()).attribute(cohort)


def test_without_a_layer_the_importance_is_the_mean_over_layers_and_heads(clf, cohort):
    data = cohort.copy()
    AttentionExplainer(clf).explain(data)
    n_layers = len(clf.net_.module_.layers)
    each = [
        AttentionExplainer(clf, net_layer=i).attribute(cohort).relative for i in range(n_layers)
    ]
    np.testing.assert_allclose(data.obs["attention"], np.mean(each, axis=(0, 2)), rtol=1e-5)
    assert "attention_head" not in data.obs
    assert list(data.uns["attention"]["layers"]) == list(range(n_layers))
    found = AttentionExplainer(clf).attribute(cohort)
    np.testing.assert_allclose(found.relative, np.concatenate(each, axis=1), rtol=1e-5)
    assert found.absorbed.columns[-1] == f"layer{n_layers - 1}_head{clf.n_heads - 1}"


@pytest.mark.parametrize("use", ["between", "ablation", "specialisation"])
def test_heads_need_a_layer(clf, cohort, use):
    from explainers import specialisation
    from explainers.faithfulness import head_ablation

    explainer = AttentionExplainer(clf)
    calls = {
        "between": lambda: explainer.between(cohort, "cell_type"),
        "ablation": lambda: head_ablation(explainer, cohort, "cell_type", twins=[]),
        "specialisation": lambda: specialisation(
            explainer, cohort, "cell_type", label_key="cell_type", twins=[]
        ),
    }
    with pytest.raises(InvalidInputError, match="Choose it with net_layer=0 to 2"):
        calls[use]()
