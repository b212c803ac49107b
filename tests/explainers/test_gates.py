"""Explanations of gates: vertices, sizes, and which cells a gate's query looks at."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

from explainers import (
    AttentionExplainer,
    GateQuery,
    GateSize,
    GradientExplainer,
    LogOdds,
    Vertex,
    specialisation,
)
from explainers._populations import population_labels
from explainers.faithfulness import (
    Twins,
    attention_deletion,
    completeness,
    deletion,
    head_ablation,
    label_randomisation,
    parameter_randomisation,
    sensitivity,
)
from explainers.faithfulness import twins as make_twins
from explainers.plotting import GateDisplay
from fcm_estimators import PolygonRegressor
from fcm_estimators.exceptions import InvalidInputError, MissingKeyError
from fcm_estimators.gating import BooleanGate, GatingTree
from fcm_estimators.gating.pictures import outline_in_frame
from fcm_estimators.inference import fitted_net, net_for, read_samples
from fcm_estimators.nn.relu_attention import dense_attention
from tests.test_polygons import FAST, GATES, gated_cohort


@pytest.fixture(scope="module")
def cohort():
    return gated_cohort(6, 300)


@pytest.fixture(scope="module")
def reg(cohort):
    gates = {**GATES, "either": BooleanGate("either", "or", ("left", "right"), "live")}
    return PolygonRegressor(**{**FAST, "gates": gates, "max_epochs": 12}).fit(cohort)


def double(adata):
    out = adata[adata.obs["sample"].isin(["s0", "s1"])].copy()
    out.X = out.X.astype("f8")
    return out


def test_a_vertex_s_gradient_is_its_central_difference(cohort, reg):
    adata = double(cohort)
    explainer = GradientExplainer(reg, Vertex("left", 3, "y"))
    gradient = explainer.attribute(adata)
    rng = np.random.default_rng(0)
    index = reg.gates_.index("left")

    def coordinates(x):
        net = reg.net_.module_.double()
        with torch.no_grad():
            return np.array(
                [net.polygons(torch.from_numpy(part), extend=False)[0, index, 3, 1]
                 for part in (x[:300], x[300:])]
            )  # fmt: skip

    for _ in range(5):
        step = rng.normal(size=adata.X.shape)
        change = coordinates(adata.X + 1e-6 * step) - coordinates(adata.X - 1e-6 * step)
        expected = [(gradient * step)[:300].sum(), (gradient * step)[300:].sum()]
        np.testing.assert_allclose(change / 2e-6, expected, rtol=1e-4, atol=1e-8)
    reg.net_.module_.float()


@pytest.mark.parametrize("gate", ["left", "either"])
def test_a_size_s_gradient_is_its_central_difference(cohort, reg, gate):
    adata = double(cohort)
    chosen = np.zeros(adata.n_obs, dtype=bool)
    chosen[100:400] = True
    explainer = GradientExplainer(reg, GateSize(gate))
    gradient = explainer.attribute(adata, cells=chosen)
    rng = np.random.default_rng(0)

    def size(x):
        moved = adata.copy()
        moved.X = x
        return reg._soft_members(read_samples(reg, moved))[gate].to_numpy()[chosen].sum()

    for _ in range(5):
        step = rng.normal(size=adata.X.shape)
        change = size(adata.X + 1e-6 * step) - size(adata.X - 1e-6 * step)
        np.testing.assert_allclose(change / 2e-6, (gradient * step).sum(), rtol=1e-3, atol=1e-5)


def test_gates_are_explained_into_the_adata(cohort, reg, tmp_path):
    adata = cohort.copy()
    GradientExplainer(reg, Vertex("live", 0, "x")).explain(adata)
    assert adata.uns["gradient"]["explained"] == "A of vertex 0 of live"
    assert adata.uns["gradient"]["mode"] == "set"
    assert np.isfinite(adata.layers["gradient"]).all()
    AttentionExplainer(reg, queries=GateQuery("left")).explain(adata)
    assert adata.obsm["attention_layer2"].shape == (cohort.n_obs, 4)
    assert adata.uns["attention"]["queries"] == "gate left"
    adata.write_h5ad(tmp_path / "a.h5ad")
    assert ad.read_h5ad(tmp_path / "a.h5ad").uns["attention"]["net_layer"] == 2


def test_a_gate_s_attention_is_that_of_the_dense_matrix(cohort, reg):
    adata = double(cohort)
    received = AttentionExplainer(reg, queries=GateQuery("right")).attribute(adata)
    net = net_for(fitted_net(reg), np.dtype(np.float64))
    for s in range(2):
        x = torch.from_numpy(adata.X[300 * s : 300 * (s + 1)])
        with torch.no_grad():
            step = net.pooling.trace(net.encode(x), net.standardise(x), [0, len(x)])
            query = step.q[reg.gates_.index("right")].expand(len(x), -1)
            dense = dense_attention(query, step.k, 4, net.eps)[:, 0].T.numpy()
        given = dense.sum(0)
        # A head without attention stays 0.
        expected = dense * 300 / np.where(given > 0, given, 1)
        np.testing.assert_allclose(received.relative[300 * s : 300 * (s + 1)], expected, rtol=1e-9)
        assert (given > 0).any()
        np.testing.assert_allclose(received.absorbed.to_numpy()[s], 1 - given, atol=1e-12)


def test_layers_of_the_encoder_are_explained_as_for_classes(cohort, reg):
    received = AttentionExplainer(reg, net_layer=0).attribute(cohort)
    assert received.relative.shape == (cohort.n_obs, 4)
    cohort = cohort.copy()
    cohort.obs["side"] = np.where(cohort.obsm["gates"]["left"], "left", "not left")
    cohort.obs["all"] = "cell"
    with pytest.raises(InvalidInputError, match="needs a ReluFormerClassifier"):
        make_twins(reg, cohort)
    shuffled = cohort.copy()
    order = np.random.default_rng(0).permutation(300)
    for s in range(6):
        rows = slice(300 * s, 300 * (s + 1))
        shuffled.obsm["gates"].iloc[rows] = cohort.obsm["gates"].iloc[rows].to_numpy()[order]
    permuted = [
        PolygonRegressor(**{**FAST, "max_epochs": 1, "random_state": i}).fit(shuffled)
        for i in range(2)
    ]
    found = specialisation(
        AttentionExplainer(reg, queries=GateQuery("left")),
        cohort,
        "side",
        label_key="all",
        twins=Twins([reg.untrained_twin(i) for i in range(3)], permuted),
        n_permutations=20,
    )
    assert found.information > found.permuted.max()
    assert len(found.label_permuted) == 2


UNKNOWN = {
    "nullable": lambda known: pd.array(known, dtype="boolean"),
    "objects": lambda known: np.array(known, dtype=object),
    "numbers": lambda known: np.array([np.nan if v is None else float(v) for v in known]),
}


@pytest.mark.parametrize("form", UNKNOWN)
def test_cells_of_which_a_gate_says_nothing_have_no_population(form):
    known = [True, False, None, True, None]
    adata = ad.AnnData(np.zeros((5, 1), "f4"))
    adata.obsm["gates"] = pd.DataFrame({"left": UNKNOWN[form](known)}, index=adata.obs_names)
    labels = population_labels(adata, "left")
    names = {True: "left", False: "not left", None: None}
    assert [None if pd.isna(v) else v for v in labels] == [names[v] for v in known]


@pytest.mark.parametrize("dtype", ["boolean", "string", "category", "object"])
def test_cells_without_a_label_count_in_no_population(cohort, reg, dtype):
    adata = cohort.copy()
    left = adata.obsm["gates"]["left"].to_numpy(dtype=bool)
    side = pd.Series(left if dtype == "boolean" else np.where(left, "left", "right"))
    unknown = np.arange(adata.n_obs) % 3 == 0
    adata.obs["side"] = side.astype(dtype).mask(unknown).array
    # AnnData with pandas 3 makes text of objects.
    assert adata.obs["side"].dtype in (dtype, "str" if dtype == "object" else dtype)
    adata.obs["all"] = np.where(unknown, "unknown", side.astype(str))
    explainer = AttentionExplainer(reg, net_layer=0)
    found, every = (explainer.between(adata, key) for key in ("side", "all"))
    known = every[(every["queries"] != "unknown") & (every["keys"] != "unknown")]
    found["queries"], found["keys"] = found["queries"].astype(str), found["keys"].astype(str)
    order = ["head", "queries", "keys"]
    pd.testing.assert_frame_equal(
        found.sort_values(order, ignore_index=True), known.sort_values(order, ignore_index=True)
    )


def test_explaining_samples_apart_or_together_is_the_same(cohort, reg):
    explainer = GradientExplainer(reg, GateSize("right"))
    together = explainer.attribute(cohort)
    rows = (cohort.obs["sample"] == "s4").to_numpy()
    alone = explainer.attribute(cohort[rows].copy())
    np.testing.assert_allclose(alone, together[rows], rtol=1e-3, atol=1e-4)


def test_integrated_gradients_of_a_gate_add_up(cohort, reg):
    explainer = GradientExplainer(reg, Vertex("left", 2, "x"))
    result = completeness(explainer, double(cohort), n_steps=256)
    assert result.correct
    assert result.frame().shape[0] == 2
    falling = deletion(explainer, double(cohort), n_points=4, n_random=2)
    assert np.isfinite(falling.curve).all()
    assert np.isfinite(sensitivity(explainer, double(cohort), noise=[0.1], n_draws=1).change).all()


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({}, InvalidInputError, r"target=None.*Vertex\(gate, number, axis\) or GateSize"),
        ({"target": GateSize("nobody")}, MissingKeyError, "'nobody'.*'live', 'left'"),
        ({"target": Vertex("left", 16, "x")}, InvalidInputError, "0 to 15"),
        ({"target": Vertex("left", 0, None)}, InvalidInputError, "axis=None"),
        ({"target": Vertex("either", 0, "x")}, InvalidInputError, "combines others"),
        ({"target": GateSize("left"), "mode": "own"}, InvalidInputError, "'set' only"),
        ({"target": "left"}, InvalidInputError, "no classes"),
        ({"target": LogOdds("left")}, InvalidInputError, "no classes"),
    ],
)
def test_targets_that_a_gate_does_not_have(cohort, reg, params, error, message):
    with pytest.raises(error, match=message):
        GradientExplainer(reg, **params).attribute(cohort)


def test_what_gates_cannot_be_asked(cohort, reg):
    with pytest.raises(InvalidInputError, match="no target cells"):
        GradientExplainer(reg, Vertex("left", 0, "x")).attribute(cohort, cells="s")
    with pytest.raises(MissingKeyError, match="'either'"):
        AttentionExplainer(reg, queries=GateQuery("either")).attribute(cohort)
    with pytest.raises(InvalidInputError, match="attends after the last layer"):
        AttentionExplainer(reg, queries=GateQuery("left"), net_layer=0).attribute(cohort)
    with pytest.raises(InvalidInputError, match="no cell"):
        AttentionExplainer(reg, queries=GateQuery("left")).rollout(cohort)
    with pytest.raises(InvalidInputError, match="no cell"):
        AttentionExplainer(reg, queries=GateQuery("left")).between(cohort, "sample")
    heads, controls = AttentionExplainer(reg, net_layer=0), Twins([reg] * 4, [reg])
    for check in (
        lambda: head_ablation(heads, cohort, "sample", twins=controls),
        lambda: attention_deletion(heads, cohort, twins=controls),
        lambda: parameter_randomisation(heads, cohort),
        lambda: label_randomisation(heads, cohort, cohort),
    ):
        with pytest.raises(InvalidInputError, match="has no classes"):
            check()


def test_the_picture_of_a_gate_shows_what_was_predicted(cohort, reg):
    adata = cohort[cohort.obs["sample"] == "s1"].copy()
    tree = reg.predict_gates(adata)["s1"]
    GradientExplainer(reg, GateSize("left"), key_added="size").explain(adata)
    expert = GatingTree.from_labels(adata, adata.obsm["gates"], GATES)
    display = GateDisplay.from_tree(adata, tree, "left", expert=expert, key="size", n_arrows=9)
    inside = tree.apply(adata)["live"].to_numpy()
    np.testing.assert_array_equal(display.cells.to_numpy(), adata.X[inside][:, 2:])
    np.testing.assert_array_equal(display.outlines["predicted"], tree["left"].vertices)
    assert len(display.arrows) == 9
    shown = display.plot()
    patches = {p.get_label(): p.get_xy()[:-1] for p in shown.ax_.patches}
    np.testing.assert_allclose(patches["expert"], expert["left"].vertices)
    # It may reach beyond the cells, where it is not drawn.
    in_frame = outline_in_frame(adata, ("C", "D"), tree["left"].vertices)
    np.testing.assert_allclose(patches["predicted"], in_frame)
    assert shown.ax_.get_xlabel() == "C"
    assert "size of left" in shown.ax_.get_title()
    arrows = np.column_stack([shown.quiver_.U, shown.quiver_.V])
    cosine = (arrows * display.arrows[["dx", "dy"]].to_numpy()).sum(1)
    assert (cosine > 0).all()
    value, unit = shown.scale_.text.get_text().split(maxsplit=1)
    assert unit == "per unit along C"
    along = np.abs(display.arrows["dx"]).idxmax()
    longer = shown.quiver_.U[along] / display.arrows["dx"][along]
    np.testing.assert_allclose(shown.scale_.U, float(value) * longer, rtol=1e-5)
    assert set(display.frame()["outline"]) == {"expert", "predicted"}
    with pytest.raises(InvalidInputError, match="no polygon"):
        GateDisplay.from_tree(adata, tree, "either")
    with pytest.raises(MissingKeyError, match="'absent'"):
        GateDisplay.from_tree(adata, tree, "left", key="absent")
