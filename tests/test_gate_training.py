"""How gates are learnt: the expert's targets, training draws, and the loss."""

from __future__ import annotations

import math

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from fcm_estimators import PolygonRegressor
from fcm_estimators._fitting.draws import DrawPlan
from fcm_estimators._fitting.gate_draws import AROUND, DRAWN, LASTING, GateDraws, Probes
from fcm_estimators._fitting.gate_loss import _SHARPNESS, GateLoss
from fcm_estimators._fitting.gate_targets import (
    derive_booleans,
    fill_from_polygons,
    sample_probes,
    strata,
    within_parents,
)
from fcm_estimators.gating import BooleanGate, GatingTree, PolygonGate
from fcm_estimators.nn.soft_gates import SoftGate
from tests.helpers import plain_scale, polygons_below
from tests.test_polygons import FAST, gated_cohort

seeds = st.integers(0, 2**32 - 1)
SQUARE = [[0, 0], [1, 0], [1, 1], [0, 1]]
TREE = GatingTree(
    [
        PolygonGate("live", "A", "B", SQUARE),
        PolygonGate("t", "C", "D", SQUARE, "live"),
        PolygonGate("b", "D", "C", SQUARE, "live"),
        BooleanGate("neither", "and", ("t", "b"), "live", complements=("t", "b")),
        PolygonGate("rest", "A", "C", SQUARE, "neither"),
        PolygonGate("doublet", "B", "D", SQUARE),
    ]
)
POLYGONS = [gate.name for gate in TREE if isinstance(gate, PolygonGate)]


def membership(seed, n=80):
    """Inside (1), outside (0) or unknown (-1) of every gate, in keeping with the tree."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(
        rng.choice([-1, 0, 1], (n, len(TREE)), p=[0.2, 0.3, 0.5]), columns=[*TREE.gates]
    )
    for name, gate in TREE.gates.items():
        if gate.parent:
            table.loc[(table[gate.parent] == 0) & (table[name] == 1), name] = 0
    return table


# -- targets --------------------------------------------------------------------------------------


@given(seeds)
def test_a_polygon_is_taught_by_the_cells_of_its_parent_and_knows_the_strays(seed):
    table = membership(seed)
    found = pd.DataFrame(within_parents(TREE, table.to_numpy("i1")), columns=POLYGONS)
    for name in POLYGONS:
        parent = TREE.gates[name].parent
        above = table[parent] if parent else 1
        expected = np.select([above == 0, above == -1], [-2, -1], table[name])
        assert found[name].tolist() == expected.tolist()


@given(seeds)
def test_cells_are_alike_that_are_in_the_same_last_polygon(seed):
    inside = within_parents(TREE, membership(seed).to_numpy("i1"))
    for found, row in zip(strata(inside), inside, strict=True):
        held = [i + 1 for i, value in enumerate(row) if value == 1]
        assert found == max(held, default=0)


@given(seeds)
def test_a_boolean_gate_is_known_where_all_it_needs_is(seed):
    table = membership(seed)
    before = table.copy()
    values = table.to_numpy("i1", copy=True)
    derive_booleans(TREE, values)
    found = pd.Series(values[:, [*TREE.gates].index("neither")])
    needed = before[["t", "b", "live"]]
    follows = (needed["t"] == 0) & (needed["b"] == 0) & (needed["live"] == 1)
    derived = (needed >= 0).all(axis=1) & (before["neither"] < 0)
    assert found[derived].tolist() == follows[derived].astype(int).tolist()
    assert found[~derived].tolist() == before.loc[~derived, "neither"].tolist()


@given(seeds)
def test_polygons_fill_in_what_is_unknown_of_cells_of_a_known_parent(seed):
    table = membership(seed)
    drawn = pd.DataFrame(
        np.random.default_rng(seed + 1).random((len(table), 3)) < 0.6, columns=["live", "t", "rest"]
    )
    values = table.to_numpy("i1", copy=True)
    fill_from_polygons(TREE, values, drawn)
    filled = pd.DataFrame(values, columns=table.columns)
    known = table >= 0
    assert (filled[known] == table[known]).sum().sum() == known.sum().sum()
    for name in drawn:
        parent = TREE.gates[name].parent
        above = filled[parent] if parent else pd.Series(1, index=table.index)
        unknown = table[name] < 0
        expected = np.select([above < 0, above == 0], [-1, 0], drawn[name].astype(int))
        assert filled.loc[unknown, name].tolist() == expected[unknown].tolist()
    # Nothing was drawn of these.
    for name in ("b", "doublet"):
        assert filled[name].tolist() == table[name].tolist()


def test_points_of_a_plane_are_inside_where_the_experts_polygon_holds_them_in_the_datas_units():
    rng = np.random.default_rng(0)
    adata = ad.AnnData(rng.normal(size=(5, 4)).astype("f4"), var=pd.DataFrame(index=list("ABCD")))
    adata.var["transform"], adata.var["compensated"] = "linear(T=4)", False
    wide = np.array([[0.0, 10], [1, 10], [0.9, 30], [0.1, 30]])
    units = {"transform_x": "linear(T=2)", "transform_y": "linear(T=8)"}
    drawn = PolygonGate("b", "D", "C", wide, **units)
    other = PolygonGate("t", "C", "D", SQUARE, transform_x="linear(T=4)", transform_y="linear(T=4)")
    gate, place, inside, stratum = sample_probes(adata, TREE, GatingTree([drawn, other]), rng)
    assert (stratum == DRAWN).all()
    assert set(gate) == {POLYGONS.index("b"), POLYGONS.index("t")}
    mine = gate == POLYGONS.index("b")
    # T is the value that becomes 1, so x is halved and y doubled.
    points = place[mine] * [2, 0.5]
    np.testing.assert_array_equal(inside[mine], drawn.contains(points))
    low, high = wide.min(0), wide.max(0)
    reach = np.stack([points.min(0), points.max(0)])
    np.testing.assert_allclose(reach, [1.5 * low - 0.5 * high, 1.5 * high - 0.5 * low], atol=0.5)
    assert 0.15 < inside[mine].mean() < 0.25
    np.testing.assert_array_equal(inside[~mine], other.contains(place[~mine]))


# -- draws ----------------------------------------------------------------------------------------


@given(seeds)
def test_points_lie_in_the_plane_of_their_gate_and_teach_of_it_alone(seed):
    rng = np.random.default_rng(seed)
    axes = [(0, 1), (3, 2)]
    # No cell is beyond 1, no point is below 10; those inside have x < y.
    x = rng.uniform(-1, 1, size=(40, 5)).astype("f4")
    place = rng.uniform(10, 20, size=(30, 2)).astype("f4")
    gate = rng.integers(0, 2, 30)
    probes = Probes(gate, place, place[:, 0] < place[:, 1], np.full(len(gate), DRAWN))
    draws = GateDraws(
        x, np.zeros(40, int), [0, 40],
        scale=plain_scale(5), n_classes=3,
        plan=DrawPlan(1, 1, 20, 0.0, None), seed=seed, axes=axes, probes=[probes],
        target=np.zeros((40, 3), "i8"),
    )  # fmt: skip
    inputs, target = draws[0]
    points, target = inputs["x"].numpy(), target.numpy()
    is_point = target[:, 0] == -1
    assert is_point.sum() == 30
    # They are seen by no one.
    assert inputs["context_weight"].numpy().tolist() == (~is_point).astype(float).tolist()
    known = target[is_point, 1:] >= 0
    assert (known.sum(1) == 1).all()
    for row, of_gate in zip(np.flatnonzero(is_point), known.argmax(1), strict=True):
        moved = points[row] > 5
        assert np.flatnonzero(moved).tolist() == sorted(axes[of_gate])
        here = points[row, list(axes[of_gate])]
        assert (here == place[gate == of_gate]).all(1).any()
        assert target[row, 1 + of_gate] == (here[0] < here[1])
        # The other markers are those of a cell.
        assert (points[row, ~moved] == x[:, ~moved]).all(1).any()


# -- loss -----------------------------------------------------------------------------------------


def gate_loss(logits, member, *, sample=None, stratum=None, ratio=(0.0, 0.0), progress=None):
    """Loss of gates without parents, in validation where no progress is given; and its gradient."""
    logits = torch.as_tensor(logits, dtype=torch.float64).requires_grad_()
    n = len(logits)
    sample, stratum = (np.zeros(n, int) if v is None else np.asarray(v) for v in (sample, stratum))
    target = torch.from_numpy(np.column_stack([stratum, member]).astype("i8"))
    inputs = {
        "sample": torch.from_numpy(sample),
        "log_odds_ratio": torch.tensor(ratio, dtype=torch.float64).expand(n, -1),
    }
    loss = GateLoss(polygons_below(*[-1] * logits.shape[1])).train(progress is not None)
    loss.progress = progress or 0.0
    value = loss(logits, target, inputs)
    return value.item(), torch.autograd.grad(value, logits)[0].numpy()


def gated_cells(seed, n=120, n_gates=2):
    rng = np.random.default_rng(seed)
    member = rng.choice([-1, 0, 1], (n, n_gates), p=[0.1, 0.4, 0.5])
    return 2 * rng.normal(size=(n, n_gates)), member, rng.integers(0, 2, n)


@given(seeds)
def test_for_cells_far_from_the_outline_validation_is_one_minus_the_mean_f1(seed):
    """Of gates with 20 cells inside; cells of which nothing is known are left out."""
    rng = np.random.default_rng(seed)
    share = rng.choice([0.05, 0.3, 0.6], (2, 3))
    sample = np.repeat([0, 1], [90, 60])
    member = (rng.random((150, 3)) < share[sample]).astype(int)
    member[rng.random((150, 3)) < 0.1] = -1
    called = rng.random((150, 3)) < 0.5
    scores = [
        f1_score(member[rows, g] == 1, called[rows, g])
        for s in (0, 1)
        for g in range(3)
        if ((rows := (sample == s) & (member[:, g] >= 0)) & (member[:, g] == 1)).sum() >= 20
    ]
    value, _ = gate_loss(np.where(called, 50, -50), member, sample=sample)
    assert value == pytest.approx(1 - np.mean(scores) if scores else 0, abs=1e-9)


@given(seeds, st.integers(2, 5), st.sampled_from([None, 0.0, 0.4, 1.0]))
def test_cells_that_are_drawn_more_often_count_as_often_as_the_sample_has_them(
    seed, times, progress
):
    logits, member, stratum = gated_cells(seed)
    once, _ = gate_loss(logits, member, stratum=stratum, progress=progress)
    rows = np.repeat(np.arange(len(stratum)), np.where(stratum == 1, times, 1))
    ratio = (0.0, math.log(times))
    more, _ = gate_loss(
        logits[rows], member[rows], stratum=stratum[rows], ratio=ratio, progress=progress
    )
    assert more == pytest.approx(once, rel=1e-9)
    # Control: without the ratio they would count more.
    unsaid, _ = gate_loss(logits[rows], member[rows], stratum=stratum[rows], progress=progress)
    assert unsaid != pytest.approx(once, rel=1e-6)


@given(seeds)
def test_training_begins_with_soft_outlines_and_ends_as_validation(seed):
    logits, member, _ = gated_cells(seed)
    end, _ = gate_loss(logits, member, progress=1.0)
    assert end == pytest.approx(gate_loss(logits, member)[0], rel=1e-9)
    # At first there is cross-entropy beside it, which is all that points of the plane have.
    start, _ = gate_loss(logits, member, progress=0.0)
    soft, _ = gate_loss(logits / _SHARPNESS, member)
    points, _ = gate_loss(logits, member, stratum=np.full(len(logits), -1), progress=0.0)
    assert points > 0
    assert start == pytest.approx(soft + points, rel=1e-9)
    cells, _ = gate_loss(logits, member, progress=0.5)
    dice, _ = gate_loss(logits * _SHARPNESS ** (0.5 - 1), member)
    assert cells == pytest.approx(dice + points / 2, rel=1e-9)


@given(seeds, st.sampled_from([LASTING, AROUND]))
def test_points_that_last_become_sharp_and_keep_a_part_of_their_weight(seed, kind):
    """At the end a point beyond the outline says nothing, and one inside what it is told."""
    logits, member, _ = gated_cells(seed, n_gates=1)
    points = np.full(len(logits), kind)
    start, _ = gate_loss(logits, member, stratum=points, progress=0.0)
    end, gradient = gate_loss(logits, member, stratum=points, progress=1.0)
    drawn, _ = gate_loss(logits, member, stratum=np.full(len(logits), DRAWN), progress=1.0)
    assert drawn == 0
    right = (member[:, 0] == 1) == (logits[:, 0] > 0)
    far = np.abs(logits[:, 0]) > 1
    known = member[:, 0] >= 0
    assert 0 < end < start
    assert np.abs(gradient[known & right & far]).max(initial=0) < 1e-6
    assert np.abs(gradient[known & ~right & far]).min(initial=1) > 1e-5


@given(seeds, st.integers(2, 6), st.sampled_from([0, 1]))
def test_points_weigh_inside_and_outside_alike_and_are_no_cells(seed, times, side):
    logits, member, _ = gated_cells(seed, n_gates=1)
    points = np.full(len(logits), -1)
    once, _ = gate_loss(logits, member, stratum=points, progress=0.0)
    rows = np.repeat(np.arange(len(logits)), np.where(member[:, 0] == side, times, 1))
    more, _ = gate_loss(logits[rows], member[rows], stratum=points[rows], progress=0.0)
    assert more == pytest.approx(once, rel=1e-9)
    # Beside cells they do not change how well the gate holds those.
    cells, _ = gate_loss(logits, member)
    both = np.r_[np.zeros(len(logits), int), points]
    with_points, gradient = gate_loss(
        np.tile(logits, (2, 1)), np.tile(member, (2, 1)), stratum=both
    )
    assert with_points == pytest.approx(cells, rel=1e-9)
    assert (gradient[both < 0] == 0).all()


@pytest.mark.parametrize(("n_inside", "says_where"), [(19, False), (20, True)])
def test_a_gate_of_few_cells_says_only_where_it_is_not(n_inside, says_where):
    logits = np.random.default_rng(0).normal(size=(60, 1))
    member = (np.arange(60) < n_inside).astype(int)[:, None]
    _, gradient = gate_loss(logits, member, progress=0.0)
    assert (gradient[n_inside:] > 0).all()
    assert (gradient[:n_inside] < 0).all() == says_where
    assert (gradient[:n_inside] == 0).all() == (not says_where)
    _, gradient = gate_loss(logits, member)
    assert (gradient != 0).any() == says_where


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shut", [None, "parent", "grandparent"])
def test_a_stray_cell_counts_as_far_as_every_predicted_ancestor_lets_it_through(training, shut):
    """A cell outside of the expert's parent, which the predicted parents hold or not."""
    logits = torch.zeros(41, 3)
    logits[:, :2] = 5.0
    if shut is not None:
        logits[-1, ["grandparent", "parent"].index(shut)] = -5.0
    logits.requires_grad_()
    member = torch.ones(41, 3, dtype=torch.long)
    member[20:40, 2] = 0
    member[40] = torch.tensor([0, 0, -2])
    target = torch.cat([torch.zeros(41, 1, dtype=torch.long), member], 1)
    inputs = {"sample": torch.zeros(41, dtype=torch.long), "log_odds_ratio": torch.zeros(41, 1)}
    loss = GateLoss(polygons_below(-1, 0, 1)).train(training)
    (gradient,) = torch.autograd.grad(loss(logits, target, inputs), logits)
    strays, known_outside = gradient[-1, 2], gradient[20, 2]
    # It pushes the gate away as a cell does of which the expert says that it is outside, or not.
    assert known_outside > 1e-4
    assert strays.item() == pytest.approx(0 if shut else known_outside.item(), abs=1e-6)
    # And it is no reason to open or shut the parents for it.
    of_gate = GateLoss(polygons_below(-1, 0, 1)).train(training)
    target[:, 1:3] = -1
    (gradient,) = torch.autograd.grad(of_gate(logits, target, inputs), logits)
    assert (gradient[:, :2] == 0).all()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("parent", "holds"),
    [
        # live and dead are polygons 0 and 1, both below none; t is below their combination.
        (SoftGate(0, operation="not", operands=(1,), complements=(False,)), lambda a, b: a & ~b),
        (
            SoftGate(-1, operation="or", operands=(0, 1), complements=(False, True)),
            lambda a, b: a | ~b,
        ),
        (
            SoftGate(0, operation="and", operands=(0, 1), complements=(False, False)),
            lambda a, b: a & b,
        ),
    ],
    ids=["not", "or", "and"],
)
@pytest.mark.parametrize("between", [False, True])
def test_a_stray_cell_counts_as_far_as_a_combination_above_lets_it_through(
    training, parent, holds, between
):
    """As above; ``between`` puts another combination between them, which is all of the first."""
    again = SoftGate(2, operation="or", operands=(0, 2), complements=(False, False))
    hierarchy = [SoftGate(-1, 0), SoftGate(-1, 1), parent]
    hierarchy += [again] if between else []
    hierarchy.append(SoftGate(len(hierarchy) - 1, 2))
    strays = np.array([[a, b] for a in (False, True) for b in (False, True)])
    logits = torch.zeros(44, 3)
    logits[40:, :2] = torch.from_numpy(np.where(strays, 5.0, -5.0)).float()
    logits.requires_grad_()
    member = torch.full((44, 3), -1, dtype=torch.long)
    member[:20, 2], member[20:40, 2], member[40:, 2] = 1, 0, -2
    target = torch.cat([torch.zeros(44, 1, dtype=torch.long), member], 1)
    inputs = {"sample": torch.zeros(44, dtype=torch.long), "log_odds_ratio": torch.zeros(44, 1)}
    loss = GateLoss(hierarchy).train(training)
    (gradient,) = torch.autograd.grad(loss(logits, target, inputs), logits)
    full, pushed = gradient[20, 2].item(), gradient[40:, 2].numpy()
    assert full > 1e-4
    expected = np.where(holds(*strays.T), full, 0)
    np.testing.assert_allclose(pushed, expected, atol=1e-6)
    assert (gradient[:, :2] == 0).all()


def shadowed_cohort(n_samples=4, n_cells=3000):
    """Live T cells in A x B, dead cells (by C) in the same place; debris far below (by D)."""
    rng = np.random.default_rng(0)
    kind = rng.choice(4, (n_samples, n_cells), p=[0.3, 0.3, 0.3, 0.1])  # T, other, dead, debris
    x = rng.normal(size=(n_samples, n_cells, 4))
    x[..., 0] += np.select([kind == 0, kind == 1], [0, 7], 1.5)
    x[..., 2] += np.where(kind == 2, 7, 0)
    x[..., 3] += np.where(kind == 3, 0, 7)
    kind, x = kind.ravel(), x.reshape(-1, 4)
    names = np.repeat([f"s{i}" for i in range(n_samples)], n_cells)
    index = [f"c{i}" for i in range(len(names))]
    adata = ad.AnnData(x.astype("f4"), obs=pd.DataFrame({"sample": names}, index=index))
    adata.var_names = list("ABCD")
    live = np.isin(kind, [0, 1])
    adata.obsm["gates"] = pd.DataFrame(
        {"cell": kind != 3, "dead": kind == 2, "live": live, "T": kind == 0}, index=index
    )
    return adata


@pytest.mark.parametrize("depth", [1, 2])
def test_a_gate_below_not_is_learnt_among_the_cells_that_not_lets_through(depth):
    """The T cells lie among dead cells and debris, which the gates above take away."""
    adata = shadowed_cohort()
    gates = {
        "cell": ("", "D", "A"),
        "dead": ("cell", "C", "A"),
        "live": BooleanGate("live", "not", ("dead",), "cell"),
        "T": ("live", "A", "B"),
    }
    if depth == 2:
        adata.obsm["gates"]["alive"] = adata.obsm["gates"]["live"]
        gates["alive"] = BooleanGate("alive", "and", ("live", "cell"), "live")
        gates["T"] = ("alive", "A", "B")
    reg = PolygonRegressor(**{**FAST, "gates": gates, "max_epochs": 10}).fit(adata)
    table = reg.score_table(adata)
    assert table.loc[table["gate"] == "T", "f1"].mean() > 0.985
    traced = pd.concat(
        [tree.apply(adata[adata.obs["sample"] == s]) for s, tree in reg.trace_gates(adata).items()]
    )
    truth = adata.obsm["gates"]["T"]
    assert f1_score(truth, traced.loc[truth.index, "T"]) > 0.985


def test_outlines_become_sharp_from_the_first_epoch_to_the_last(monkeypatch):
    seen = []
    plain = GateLoss.forward

    def spy(self, *args):
        if self.training:
            seen.append((self, self.progress))
        return plain(self, *args)

    monkeypatch.setattr(GateLoss, "forward", spy)
    params = {**FAST, "max_epochs": 3, "steps_per_epoch": 4}
    reg = PolygonRegressor(**params).fit(gated_cohort(2, 200))
    # Other losses place the typical gates before.
    steps = [progress for loss, progress in seen if loss is reg.net_.criterion_]
    assert steps == [0.0] * 4 + [0.5] * 4 + [1.0] * 4
