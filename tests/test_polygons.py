"""Polygon head and PolygonRegressor."""

from __future__ import annotations

import copy
import itertools
import math
import time

import anndata as ad
import joblib
import numpy as np
import pandas as pd
import pytest
import shapely
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.model_selection import GroupKFold, cross_validate
from sklearn.pipeline import make_pipeline

from fcm_estimators import FcmError, PolygonRegressor
from fcm_estimators._fitting.gate_fit import fit_shapes, place_gates, settled_change
from fcm_estimators._fitting.gate_loss import GateLoss
from fcm_estimators._fitting.gate_targets import soft_gates
from fcm_estimators.datasets import simulate_cohort
from fcm_estimators.exceptions import (
    InvalidInputError,
    MarkerMismatchError,
    MissingKeyError,
    NotFittedError,
    ProcessingStateError,
)
from fcm_estimators.gating import BooleanGate, GatingTree, PolygonGate, RectangleGate
from fcm_estimators.metrics import gate_agreement, summarize
from fcm_estimators.nn import PolygonFormer, streamed
from fcm_estimators.nn.polygon_head import Shapes, StarGates
from fcm_estimators.nn.soft_gates import SoftGate, soft_members, soft_parents
from fcm_estimators.preprocessing import Compensation, LinearTransform, LogicleTransform
from tests.helpers import polygons_below

GATES = {"live": ("", "A", "B"), "left": ("live", "C", "D"), "right": ("live", "C", "D")}
FAST = {
    "gates": GATES,
    "sample_key": "sample",
    "max_epochs": 6,
    "steps_per_epoch": 15,
    "n_layers": 2,
    "hidden_dim": 16,
    "cells_per_sample": 400,
    "random_state": 0,
}


def gated_cohort(n_samples=6, n_cells=600, *, seed=0, shift=0.5):
    """Live cells among debris in A x B, two clouds among them in C x D; shifted per sample."""
    rng = np.random.default_rng(seed)
    blocks, tables = [], []
    for _ in range(n_samples):
        kind = rng.choice(3, n_cells, p=[0.3, 0.4, 0.3])  # debris, left, right
        x = rng.normal(size=(n_cells, 4))
        x[:, :2] += np.where(kind[:, None] == 0, 0, 6)
        x[:, 2] += np.select([kind == 1, kind == 2], [-4, 4], 0)
        blocks.append(x + shift * rng.normal(size=4))
        tables.append(np.stack([kind > 0, kind == 1, kind == 2], 1))
    names = np.repeat([f"s{i}" for i in range(n_samples)], n_cells)
    obs = pd.DataFrame(
        {"sample": names, "patient": np.repeat(np.arange(n_samples) // 2, n_cells).astype(str)},
        index=[f"{n}:{i}" for i, n in enumerate(names)],
    )
    adata = ad.AnnData(
        np.concatenate(blocks).astype("f4"), obs=obs, var=pd.DataFrame(index=list("ABCD"))
    )
    adata.obsm["gates"] = pd.DataFrame(
        np.concatenate(tables), index=obs.index, columns=["live", "left", "right"]
    )
    return adata


@pytest.fixture(scope="module")
def cohort():
    return gated_cohort()


@pytest.fixture(scope="module")
def fitted(cohort):
    return PolygonRegressor(**FAST).fit(cohort)


# The head


def random_shapes(gates, n_samples, rng, size=3.0):
    shape = (n_samples, len(gates.axes), gates.n_parameters)
    return gates.shapes(torch.from_numpy(size * rng.normal(size=shape)))


@given(seed=st.integers(0, 2**32 - 1), n_vertices=st.integers(4, 40))
def test_soft_membership_is_positive_exactly_inside_the_drawn_polygon(seed, n_vertices):
    rng = np.random.default_rng(seed)
    gates = StarGates([(0, 1), (2, 1)], n_vertices).double()
    gates.spread.copy_(torch.from_numpy(rng.uniform(0.2, 3, size=(2, 2))))
    shapes = random_shapes(gates, 2, rng)
    z = torch.from_numpy(5 * rng.normal(size=(200, 3)))
    logits = gates.membership(z, shapes, [0, 120, 200]).numpy()
    outlines = gates.vertices(shapes).numpy()
    for s, rows in enumerate((slice(0, 120), slice(120, 200))):
        for g, axes in enumerate(((0, 1), (2, 1))):
            outline = shapely.Polygon(outlines[s, g])
            points = z[rows][:, axes].numpy()
            inside = shapely.contains_xy(outline, points)
            near = np.abs(logits[rows, g]) < 1e-6
            assert np.array_equal((logits[rows, g] > 0)[~near], inside[~near])


@given(seed=st.integers(0, 2**32 - 1), n_vertices=st.integers(4, 40), size=st.floats(0, 100))
def test_every_polygon_is_simple_and_in_a_finite_box(seed, n_vertices, size):
    rng = np.random.default_rng(seed)
    gates = StarGates([(0, 1), (2, 1)], n_vertices)
    shape = (2, 2, n_vertices + 2)
    shapes = gates.shapes(torch.from_numpy(size * rng.normal(size=shape)).float())
    gates.set_limits(torch.from_numpy(np.sort(3 * rng.normal(size=(2, 3)), axis=0)).float())
    for outlines in (gates.vertices(shapes), gates.extended(shapes)):
        assert outlines.abs().max() < 2 * (2 + 2 * math.exp(1.5)) + 4
        for outline in outlines.double().numpy().reshape(-1, n_vertices, 2):
            polygon = shapely.Polygon(outline)
            assert polygon.is_valid
            assert polygon.area > 0


@settings(max_examples=15)
@given(seed=st.integers(0, 2**32 - 1), case=st.sampled_from(["centre", "empty", "far"]))
def test_gradients_stay_finite_and_bounded_at_the_hard_places(seed, case):
    """A cell on the centre or 1e-4 from it; a gate without cells; a centre far from all cells."""
    torch.manual_seed(seed % 2**31)
    net = PolygonFormer(3, [(0, 1), (1, 2)], n_vertices=8, n_layers=1, hidden_dim=8)
    torch.nn.init.normal_(net.weight)
    x = torch.randn(40, 3)
    if case == "far":
        net.gates.centre.fill_(1e3)
    with torch.no_grad():
        if case == "centre":
            shapes = net.shapes(net.encode(x, [0, 40]), net.standardise(x), [0, 40])
            x[0, :2] = shapes.centre[0, 0]
            x[1, :2] = shapes.centre[0, 0] + 1e-4
    member = torch.full((40, 2), 0 if case == "empty" else 1)
    if case == "centre":
        member[20:] = 0
    target = torch.cat([torch.zeros(40, 1, dtype=torch.long), member], 1)
    x.requires_grad_()
    inputs = {"sample": torch.zeros(40, dtype=torch.long), "log_odds_ratio": torch.zeros(40, 1)}
    loss = GateLoss(polygons_below(-1, -1))(net(x), target, inputs)
    loss.backward()
    gradients = [x.grad, *(p.grad for p in net.parameters())]
    assert torch.isfinite(loss)
    assert all(torch.isfinite(g).all() for g in gradients)
    assert max(float(g.abs().max()) for g in gradients) < 1e3


def test_a_gate_without_cells_does_not_move_its_centre():
    gates = StarGates([(0, 1)], 8)
    change = torch.zeros(1, 1, 10, requires_grad=True)
    z = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)) + 30
    target = torch.zeros(50, 2, dtype=torch.long)
    inputs = {"sample": torch.zeros(50, dtype=torch.long), "log_odds_ratio": torch.zeros(50, 1)}
    logits = gates.membership(z, gates.shapes(change), [0, 50])
    GateLoss(polygons_below(-1))(logits, target, inputs).backward()
    assert change.grad.abs().max() < 1e-6


PLANE = [[0, 0], [1, 0], [1, 1], [0, 1]]


@st.composite
def mixed_trees(draw):
    """Polygons and combinations of any earlier gates, also of relatives, at any depth."""
    gates, n_polygons = [], draw(st.integers(1, 6))
    left = n_polygons
    while left:
        names = [gate.name for gate in gates]
        parent = draw(st.sampled_from(["", *names]))
        name = f"g{len(gates)}"
        combine = len(names) >= 2 and len(gates) < 2 * n_polygons and draw(st.booleans())
        if not combine:
            gates.append(PolygonGate(name, "x", "y", PLANE, parent))
            left -= 1
            continue
        operation = draw(st.sampled_from(["and", "or", "not"]))
        size = 1 if operation == "not" else draw(st.integers(2, 3))
        operands = tuple(draw(st.sampled_from(names)) for _ in range(size))
        complements = tuple(draw(st.sets(st.sampled_from(operands))))
        gates.append(BooleanGate(name, operation, operands, parent, complements))
    return GatingTree(gates)


@settings(deadline=None)
@given(mixed_trees(), st.integers(0, 2**32 - 1), st.booleans())
def test_soft_membership_is_the_chance_of_being_inside(tree, seed, sharp):
    """Of independent polygons, each counted once; at 0 and 1 that is the tree's own logic."""
    polygons = [gate.name for gate in tree if isinstance(gate, PolygonGate)]
    chances = np.random.default_rng(seed).random(len(polygons))
    own = torch.tensor(np.round(chances) if sharp else chances)[None].requires_grad_()
    hierarchy = soft_gates(tree)
    found = soft_members(hierarchy, own)
    # Every way in which the polygons may hold a cell, and how likely it is.
    ways = np.array(list(itertools.product([False, True], repeat=len(polygons))))
    likely = torch.where(torch.from_numpy(ways), own, 1 - own).prod(1)
    everything = np.ones(len(ways), dtype=bool)
    cells = {"": everything}
    for gate in tree:
        if isinstance(gate, PolygonGate):
            inside = ways[:, polygons.index(gate.name)]
        else:
            inside = gate.combine([cells[o] for o in gate.operands])
        cells[gate.name] = inside & cells[gate.parent]
    for place, name in enumerate(tree.gates):
        expected = likely[torch.from_numpy(cells[name])].sum()
        assert found[0, place].item() == pytest.approx(expected.item(), abs=1e-12)
        slopes = (
            torch.autograd.grad(value, own, retain_graph=True, allow_unused=True)[0]
            for value in (found[0, place], expected)
        )
        a, b = (torch.zeros_like(own) if s is None else s for s in slopes)
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    above = soft_parents(hierarchy, own)
    for number, name in enumerate(polygons):
        expected = likely[torch.from_numpy(cells[tree[name].parent])].sum()
        assert above[0, number].item() == pytest.approx(expected.item(), abs=1e-12)


def test_a_shared_ancestor_counts_once_and_a_gate_and_itself_are_the_gate():
    live, t, b = (SoftGate(parent, place) for place, parent in enumerate((-1, 0, 0)))
    both = SoftGate(0, operation="and", operands=(1, 2), complements=(False, False))
    same = SoftGate(-1, operation="and", operands=(1, 1), complements=(False, False))
    rest = SoftGate(0, operation="not", operands=(1,), complements=(False,))
    own = torch.tensor([[0.5, 0.4, 0.2]], dtype=torch.float64)
    found = soft_members([live, t, b, both, same, rest], own)[0].tolist()
    assert found == pytest.approx([0.5, 0.2, 0.1, 0.5 * 0.4 * 0.2, 0.2, 0.5 * 0.6])


def test_combinations_of_many_gates_stay_small():
    """A union of forty children, and the cells in none of them: no more nodes than twice forty."""
    parts = [SoftGate(0, place) for place in range(1, 41)]
    operands, plain = tuple(range(1, 41)), (False,) * 40
    union = SoftGate(0, operation="or", operands=operands, complements=plain)
    none = SoftGate(0, operation="not", operands=(41,), complements=(False,))
    own = torch.full((3, 41), 0.1, dtype=torch.float64)
    start = time.perf_counter()
    found = soft_members([SoftGate(-1, 0), *parts, union, none], own)
    assert time.perf_counter() - start < 2
    assert found[0, -1].item() == pytest.approx(0.1 * 0.9**40)


def test_cells_are_independent_given_the_contexts_and_the_gates_attention_is_one():
    torch.manual_seed(0)
    net = PolygonFormer(4, [(0, 1), (2, 3)], n_vertices=8, n_layers=2, hidden_dim=8).double()
    torch.nn.init.normal_(net.weight)
    x = torch.randn(60, 4, dtype=torch.float64)
    contexts = net.contexts(x, [0, 25, 60])
    assert len(contexts) == 3
    whole = net(x, [0, 25, 60])
    torch.testing.assert_close(net(x, [0, 25, 60], contexts=contexts), whole)
    first = net.contexts(x[:25])
    torch.testing.assert_close(net(x[3:9], contexts=first), whole[3:9])
    assert not torch.allclose(net(x[3:9]), whole[3:9])


def test_vertices_at_the_end_of_an_axis_lie_beyond_it():
    gates = StarGates([(0, 1)], 4)
    gates.set_limits(torch.tensor([[-10.0, -10.0], [2.0, 10.0]]))
    shapes = Shapes(torch.zeros(1, 1, 2), torch.full((1, 1, 4), math.log(1.95)))
    before, after = (f(shapes)[0, 0].numpy() for f in (gates.vertices, gates.extended))
    assert before[0] == pytest.approx([1.95, 0])
    # 12 long, 5 % beyond the end.
    assert after[0] == pytest.approx([2.6, 0])
    np.testing.assert_allclose(after[1:], before[1:], atol=1e-6)
    # At most twice as far from the centre: a small gate at the end stays a small one.
    small = Shapes(torch.tensor([[[1.95, 0.0]]]), torch.full((1, 1, 4), math.log(0.05)))
    assert gates.extended(small)[0, 0, 0].tolist() == pytest.approx([2.05, 0])


def limited(seed, n_vertices=8):
    """Gates around cells whose polygons reach beyond or near the ends of some axes."""
    rng = np.random.default_rng(seed)
    gates = StarGates([(0, 1), (2, 1)], n_vertices).double()
    gates.spread.copy_(torch.from_numpy(rng.uniform(0.5, 2, size=(2, 2))))
    low, high = -rng.uniform(0.57, 3, 3), rng.uniform(0.57, 3, 3)
    gates.set_limits(torch.from_numpy(np.stack([low, high])))
    shapes = random_shapes(gates, 12, rng, size=0.7)
    return gates, shapes, low, high


@given(seed=st.integers(0, 2**32 - 1))
def test_vertices_near_an_end_are_moved_along_their_ray_until_they_lie_beyond(seed):
    gates, shapes, low, high = limited(seed)
    before, after = gates.vertices(shapes).numpy(), gates.extended(shapes).numpy()
    centre = shapes.centre.numpy()[:, :, None]
    arm = before - centre
    factor = np.linalg.norm(after - centre, axis=-1) / np.linalg.norm(arm, axis=-1)
    np.testing.assert_allclose(after - centre, arm * factor[..., None], atol=1e-9)
    assert factor.min() > 1 - 1e-9
    assert factor.max() < 2 + 1e-9
    for g, axes in enumerate(((0, 1), (2, 1))):
        ends = np.stack([low, high])[:, axes]
        outward = np.sign(np.round(arm[:, g], 9))
        end = np.where(outward > 0, ends[1], ends[0])
        # Share of the axis by which a vertex lies beyond the end to which it points.
        was, now = ((v[:, g] - end) * outward / (ends[1] - ends[0]) for v in (before, after))
        near, doubled = (was >= -0.01) & (outward != 0), factor[:, g] > 2 - 1e-9
        np.testing.assert_allclose(factor[:, g][~near.any(-1)], 1, atol=1e-9)
        assert ((now > 0.05 - 1e-6) | doubled[..., None])[near].all()
        # No farther than needed.
        moved = factor[:, g] > 1 + 1e-9
        least = np.where(near, now, np.inf).min(-1)
        np.testing.assert_allclose(least[moved & ~doubled], 0.05, atol=1e-6)


@given(seed=st.integers(0, 2**32 - 1), unit=st.floats(0.1, 10))
def test_what_is_moved_beyond_the_end_depends_on_neither_unit_nor_direction(seed, unit):
    gates, shapes, low, high = limited(seed)
    after = gates.extended(shapes)
    # In other units.
    larger = copy.deepcopy(gates)
    larger.spread.mul_(unit)
    larger.set_limits(torch.from_numpy(unit * np.stack([low, high])))
    scaled = larger.extended(shapes._replace(centre=unit * shapes.centre))
    torch.testing.assert_close(scaled, unit * after, rtol=1e-6, atol=1e-9)
    # Turned by half a turn: vertex k becomes vertex k + V / 2.
    turned = copy.deepcopy(gates)
    turned.set_limits(torch.from_numpy(-np.stack([high, low])))
    half = shapes.log_radius.shape[-1] // 2
    mirrored = Shapes(-shapes.centre, shapes.log_radius.roll(half, -1))
    torch.testing.assert_close(
        turned.extended(mirrored), -after.roll(half, 2), rtol=1e-6, atol=1e-6
    )


def random_net(seed, **kwargs):
    torch.manual_seed(seed)
    net = PolygonFormer(
        4, [(0, 1), (3, 2)], n_vertices=8, n_layers=1, hidden_dim=8, **kwargs
    ).double()
    with torch.no_grad():
        torch.nn.init.normal_(net.weight)
        torch.nn.init.normal_(net.bias)
        net.gates.centre.normal_()
        net.gates.spread.uniform_(0.5, 2)
    net.gates.set_limits(torch.tensor([[-1.0] * 4, [1.0] * 4]))
    return net, torch.randn(50, 4, dtype=torch.float64)


@pytest.mark.parametrize("extend", [True, False])
def test_polygons_and_membership_are_the_same_in_any_unit_of_the_markers(extend):
    net, z = random_net(0)
    mean, scale = torch.tensor([5.0, -3, 0, 100]).double(), torch.tensor([0.1, 1, 7, 50]).double()
    other = copy.deepcopy(net)
    other.input_mean.copy_(mean)
    other.input_scale.copy_(scale)
    x, offsets = z * scale + mean, [0, 20, 50]
    torch.testing.assert_close(other(x, offsets), net(z, offsets))
    axes = torch.tensor([[0, 1], [3, 2]])
    in_units = net.polygons(z, offsets, extend=extend) * scale[axes][:, None] + mean[axes][:, None]
    torch.testing.assert_close(other.polygons(x, offsets, extend=extend), in_units)
    torch.testing.assert_close(
        other.typical(), net.typical() * scale[axes][:, None] + mean[axes][:, None]
    )
    # By chunk and from contexts alone.
    contexts = streamed(other, x, offsets, chunk_size=7).contexts
    torch.testing.assert_close(
        other.polygons(x, extend=extend, contexts=contexts), in_units, rtol=1e-6, atol=1e-6
    )


def test_a_net_that_has_learnt_nothing_predicts_the_typical_polygons():
    net, x = random_net(1)
    with torch.no_grad():
        net.weight.zero_()
        net.bias.zero_()
        highest = net.polygons(x, extend=False)[0].amax(1)
        net.gates.limits.copy_(torch.stack([highest - 20, highest]))
    for sample in (x, x[:9] + 30):
        torch.testing.assert_close(net.polygons(sample)[0], net.typical())
    # They too are moved beyond the ends of the axes.
    assert not torch.allclose(net.polygons(x, extend=False)[0], net.typical())


def test_changes_are_adjusted_as_said():
    net, x = random_net(2)
    scale, offset = torch.rand(2, 1).double(), torch.randn(2, 10).double()
    pooled = net.contexts(x, [0, 30, 50])[-1]
    before = net.change_in(pooled)
    net.adjust(scale, offset)
    torch.testing.assert_close(net.change_in(pooled), scale * before + offset)


@given(seed=st.integers(0, 2**32 - 1), factor=st.floats(0.1, 5))
def test_membership_falls_with_the_way_from_the_centre_whatever_its_size(seed, factor):
    """Relative to the outline: on it the logit is 0, and its slope is that of the soft width."""
    rng = np.random.default_rng(seed)
    gates = StarGates([(0, 1)], 8).double()
    gates.spread.copy_(torch.from_numpy(rng.uniform(0.2, 3, size=(1, 2))))
    shapes = random_shapes(gates, 1, rng)
    vertices = gates.vertices(shapes)[0, 0]
    # Between two vertices too.
    outline = torch.cat([vertices, (vertices + vertices.roll(-1, 0)) / 2])
    places = shapes.centre[0, 0] + factor * (outline - shapes.centre[0, 0])
    logits = gates.membership(places, shapes, [0, 16])[:, 0]
    torch.testing.assert_close(
        logits, torch.full((16,), -math.log(factor) / 0.1).double(), rtol=1e-6, atol=1e-6
    )


def test_changes_are_bounded_and_small_ones_are_what_they_say():
    gates = StarGates([(0, 1)], 4).double()
    gates.centre.copy_(torch.tensor([[1.0, -1.0]]))
    small = torch.tensor([[[0.01, -0.02, 0.03, 0.0, -0.01, 0.02]]]).double()
    shapes = gates.shapes(small)
    torch.testing.assert_close(shapes.centre - gates.centre, small[..., :2], rtol=1e-3, atol=0)
    torch.testing.assert_close(
        shapes.log_radius - gates.log_radius, small[..., 2:], rtol=1e-3, atol=1e-6
    )
    for sign in (1, -1):
        shapes = gates.shapes(sign * 1e3 * torch.ones(1, 1, 6).double())
        torch.testing.assert_close(
            shapes.centre - gates.centre, sign * torch.full((1, 1, 2), 2.0).double()
        )
        torch.testing.assert_close(
            shapes.log_radius - gates.log_radius, sign * torch.full((1, 1, 4), 1.5).double()
        )


def fit_free(points, inside, n_vertices=16):
    gates = StarGates([(0, 1)], n_vertices)
    places = points[inside]
    gates.centre.copy_(torch.from_numpy(places.mean(0))[None])
    gates.spread.copy_(torch.from_numpy(places.std(0))[None])
    z = torch.from_numpy(points).float()
    member = torch.from_numpy(inside[:, None].astype("i8"))
    shapes = fit_shapes(gates, z, member, [0, len(z)], polygons_below(-1), shared=False)
    called = gates.membership(z, shapes, [0, len(z)])[:, 0].numpy() > 0
    return 2 * (called & inside).sum() / (called.sum() + inside.sum())


def test_star_polygons_hold_a_boomerang_that_convex_gates_do_not():
    rng = np.random.default_rng(0)
    points = rng.uniform(-1, 3, size=(6000, 2))
    inside = ((points > 0).all(1) & (points < 2).all(1)) & ~(points > 0.7).all(1)
    hull = shapely.MultiPoint(points[inside]).convex_hull
    in_hull = shapely.contains_xy(hull, points)
    hull_f1 = 2 * (in_hull & inside).sum() / (in_hull.sum() + inside.sum())
    star_f1 = fit_free(points, inside)
    assert star_f1 > 0.93
    assert hull_f1 < 0.87


def test_what_no_star_holds_has_a_ceiling_below_one():
    rng = np.random.default_rng(0)
    points = rng.uniform(-1.5, 1.5, size=(6000, 2))
    radius, angle = np.hypot(*points.T), np.arctan2(points[:, 1], points[:, 0])
    crescent = (radius > 0.8) & (radius < 1.2) & (np.abs(angle) < 2.6)
    assert 0.4 < fit_free(points, crescent) < 0.9


def discs(n_samples, n=300, *, shift=0.0):
    """Cells of each sample, and whether they are within 1 of its centre; shifted samples."""
    rng = np.random.default_rng(0)
    z = rng.uniform(-2, 2, size=(n_samples, n, 2))
    inside = np.linalg.norm(z, axis=2) < 1
    z = z + shift * np.arange(n_samples)[:, None, None]
    return z.reshape(-1, 2).astype("f4"), inside.reshape(-1), list(range(0, n_samples * n + 1, n))


def test_a_gate_is_as_wide_as_its_cells_within_a_sample_wherever_the_samples_lie():
    spreads = []
    for shift in (0.0, 6.0):
        z, inside, offsets = discs(2, shift=shift)
        gates = StarGates([(0, 1)], 8)
        place_gates(gates, z, inside[:, None].astype("i8"), offsets, polygons_below(-1))
        spreads.append(gates.spread[0].numpy())
    np.testing.assert_allclose(spreads[0], discs(2)[0][discs(2)[1]].std(0), rtol=0.05)
    np.testing.assert_allclose(spreads[1], spreads[0], rtol=1e-4)


def test_a_gate_of_few_cells_keeps_its_place_and_the_others_find_theirs():
    z, inside, offsets = discs(1)
    few = inside & (np.cumsum(inside) <= 19)
    gates = StarGates([(0, 1), (0, 1)], 8)
    gates.centre.fill_(0.5)
    before = copy.deepcopy(gates)
    place_gates(gates, z, np.stack([inside, few], 1).astype("i8"), offsets, polygons_below(-1, -1))
    for name in ("centre", "spread", "log_radius"):
        old, new = getattr(before, name), getattr(gates, name)
        assert torch.equal(new[1], old[1])
        assert not torch.allclose(new[0], old[0])
    found = Shapes(gates.centre[None], gates.log_radius[None])
    called = gates.membership(torch.from_numpy(z), found, offsets)[:, 0].numpy() > 0
    assert (called == inside).mean() > 0.9


def test_a_sample_gets_the_polygon_that_it_gets_alone():
    z, inside, offsets = discs(2, 200, shift=1.0)
    member, gates = torch.from_numpy(inside[:, None].astype("i8")), StarGates([(0, 1)], 8)
    together = fit_shapes(
        gates, torch.from_numpy(z), member, offsets, polygons_below(-1), shared=False
    )
    for s in range(2):
        rows = slice(offsets[s], offsets[s + 1])
        alone = fit_shapes(
            gates,
            torch.from_numpy(z[rows]),
            member[rows],
            [0, 200],
            polygons_below(-1),
            shared=False,
        )
        for a, b in zip(alone, together, strict=True):
            np.testing.assert_allclose(a[0], b[s], atol=0.02)
    called = gates.membership(torch.from_numpy(z), together, offsets)[:, 0].numpy() > 0
    assert (called == inside).mean() > 0.9


def test_changes_are_suited_to_samples_as_measured():
    """Polygons follow their samples twice too far and to the right: both is taken back."""
    rng = np.random.default_rng(0)
    gates = StarGates([(0, 1), (0, 1)], 16)
    gates.log_radius.fill_(0.0)
    steps = rng.normal(scale=0.3, size=(12, 2)).astype("f4")
    z = torch.from_numpy(rng.uniform(-2, 2, size=(12, 800, 2)).astype("f4"))
    inside = (z - torch.from_numpy(steps)[:, None]).norm(dim=2) < 1
    change = torch.zeros(12, 2, gates.n_parameters)
    change[:, 0, :2] = 2 * torch.from_numpy(steps) + torch.tensor([0.3, 0.0])
    known = inside.flatten().long()
    target = torch.stack([torch.zeros_like(known), known, torch.full_like(known, -1)], 1)
    inputs = {
        "x": z.flatten(0, 1),
        "sample": torch.arange(12).repeat_interleave(800),
        "log_odds_ratio": torch.zeros(12 * 800, 3),
    }
    scale, offset = settled_change(gates, change, (inputs, target), polygons_below(-1, -1))
    assert scale[0].item() == pytest.approx(0.5, abs=0.1)

    def agreement(change):
        shapes = gates.shapes(change)
        called = gates.membership(inputs["x"], shapes, list(range(0, 9601, 800)))[:, 0] > 0
        return (called == known.bool()).float().mean().item()

    assert agreement(change) < 0.93
    assert agreement(change * scale + offset) > 0.98
    # Of the second gate nothing is known.
    assert scale[1].item() == 1
    assert (offset[1] == 0).all()


# The estimator


def test_gates_follow_the_samples(cohort, fitted):
    unseen = gated_cohort(3, seed=7)
    table = fitted.score_table(unseen)
    assert (table["f1"] > 0.9).all()
    assert fitted.score(unseen) == pytest.approx(table["f1"].mean())
    polygons = fitted.predict(unseen)
    assert polygons.shape == (3, 3, 16, 2)
    assert polygons.dtype == np.float32
    assert all(shapely.Polygon(p).is_valid for p in polygons.reshape(-1, 16, 2))


def test_gates_move_with_their_sample():
    train = gated_cohort(10, shift=1.0)
    reg = PolygonRegressor(**{**FAST, "max_epochs": 20, "validation_fraction": None}).fit(train)
    unseen = gated_cohort(3, seed=7)
    moved = unseen.copy()
    moved.X = unseen.X + 1.0
    steps = (reg.predict(moved) - reg.predict(unseen)).mean(2)
    # D tells nothing about left and right, so there the gate need not follow. Between the live
    # cells and the debris there is room, in which an outline need not follow to the full.
    np.testing.assert_allclose(steps[:, 0], 1.0, atol=0.5)
    np.testing.assert_allclose(steps[:, 1:, 0], 1.0, atol=0.5)
    assert reg.score(moved) > 0.98


def test_membership_is_that_of_the_predicted_trees(cohort, fitted):
    trees = fitted.predict_gates(cohort)
    assert list(trees) == [f"s{i}" for i in range(6)]
    table = fitted.predict_membership(cohort)
    for name, tree in trees.items():
        rows = (cohort.obs["sample"] == name).to_numpy()
        pd.testing.assert_frame_equal(tree.apply(cohort[rows]), table[rows])
    assert not (table["left"] & ~table["live"]).any()


def test_samples_do_not_depend_on_each_other_or_on_the_order_of_cells(cohort, fitted):
    together = fitted.predict(cohort)
    alone = fitted.predict(cohort[cohort.obs["sample"] == "s3"].copy())
    np.testing.assert_allclose(alone[0], together[3], atol=1e-4)
    rng = np.random.default_rng(0)
    rows = rng.permutation(cohort.n_obs)
    shuffled = fitted.predict_gates(cohort[rows].copy())
    for name, vertices in zip(fitted.predict_gates(cohort), together, strict=True):
        np.testing.assert_allclose(shuffled[name]["left"].vertices, vertices[1], atol=1e-4)


def test_annotate_writes_what_h5ad_can_hold_and_nothing_else(cohort, fitted, tmp_path):
    adata = cohort.copy()
    before = adata.copy()
    fitted.annotate(adata)
    adata.write_h5ad(tmp_path / "a.h5ad")
    again = ad.read_h5ad(tmp_path / "a.h5ad")
    table = again.obsm["predicted_gates_membership"]
    pd.testing.assert_frame_equal(table, fitted.predict_membership(cohort), check_names=False)
    tree = GatingTree.from_adata(again, key="predicted_gates", sample="s2")
    np.testing.assert_allclose(
        tree["right"].vertices, fitted.predict_gates(cohort)["s2"]["right"].vertices
    )
    assert (before.X == adata.X).all()
    pd.testing.assert_frame_equal(
        pd.DataFrame(before.obsm["gates"]), pd.DataFrame(adata.obsm["gates"])
    )
    with pytest.raises(InvalidInputError, match="view"):
        fitted.annotate(adata[:50])


def test_leaves_classify_cells(cohort, fitted):
    called = fitted.predict_cells(cohort)
    gates = cohort.obsm["gates"]
    truth = np.select([gates["left"], gates["right"]], ["left", "right"], "other")
    assert set(called) == {"left", "right", "other"}
    assert (called == truth).mean() > 0.9
    only = fitted.predict_cells(cohort, leaves=["right"], outside="rest")
    assert set(only) == {"right", "rest"}
    with pytest.raises(MissingKeyError, match="'nobody'"):
        fitted.predict_cells(cohort, leaves=["nobody"])


def test_two_fits_are_equal_and_a_copy_stays_a_copy(cohort, fitted, tmp_path):
    other = clone(fitted).fit(cohort)
    np.testing.assert_array_equal(other.predict(cohort), fitted.predict(cohort))
    for same in (copy.deepcopy(fitted), round_trip(fitted, tmp_path)):
        np.testing.assert_array_equal(same.predict(cohort), fitted.predict(cohort))
    fitted.save(tmp_path / "model")
    loaded = PolygonRegressor.load(tmp_path / "model")
    np.testing.assert_array_equal(loaded.predict(cohort), fitted.predict(cohort))
    assert [g.name for g in loaded.tree_] == [g.name for g in fitted.tree_]
    pd.testing.assert_frame_equal(loaded.history_, fitted.history_)
    loaded.warm_start = True
    loaded.set_params(max_epochs=1).fit(cohort)
    assert len(loaded.history_) == len(fitted.history_) + 1


def round_trip(model, folder):
    joblib.dump(model, folder / "m.joblib")
    return joblib.load(folder / "m.joblib")


def test_cross_validation_by_patient(cohort):
    reg = PolygonRegressor(**{**FAST, "max_epochs": 2})
    result = cross_validate(reg, cohort, groups=cohort.obs["patient"].to_numpy(), cv=GroupKFold(3))
    assert len(result["test_score"]) == 3
    assert (result["test_score"] > 0.6).all()


def test_a_pipeline_from_raw_events_to_gates(tmp_path):
    raw = simulate_cohort(n_samples=6, n_cells=600, random_state=3)
    params = {**FAST, "max_epochs": 4}
    template = GatingTree.from_adata(raw, sample="patient1_d0")
    pipeline = make_pipeline(
        Compensation(),
        LogicleTransform(),
        LinearTransform(),
        PolygonRegressor(**{**params, "gates": template, "patient_key": "patient"}),
    )
    pipeline.fit(raw)
    assert pipeline.score(raw) > 0.7
    reg = pipeline[-1]
    gate = reg.predict_gates(pipeline[:-1].transform(raw))["patient1_d0"]["cd19"]
    assert gate.compensation == "spillover"
    assert gate.transform_x.startswith("logicle(")
    # The tree is in its own units and converts raw, compensated events as well.
    compensated = pipeline[0].transform(raw)
    first = (raw.obs["sample"] == "patient1_d0").to_numpy()
    tree = reg.predict_gates(pipeline[:-1].transform(raw))["patient1_d0"]
    pd.testing.assert_frame_equal(
        tree.apply(compensated[first]), reg.predict_membership(pipeline[:-1].transform(raw))[first]
    )


def test_arrays_tables_and_groups_teach_the_same(cohort, fitted):
    member = pd.DataFrame(cohort.obsm["gates"])
    frame = pd.DataFrame(cohort.X, columns=list(cohort.var_names), index=cohort.obs_names)
    frame["sample"] = cohort.obs["sample"]
    by_frame = PolygonRegressor(**FAST).fit(frame, member)
    np.testing.assert_array_equal(by_frame.predict(frame), fitted.predict(cohort))
    params = {k: v for k, v in FAST.items() if k != "sample_key"}
    gates = {
        "live": ("", "column 0", "column 1"),
        "left": ("live", "column 2", "column 3"),
        "right": ("live", "column 2", "column 3"),
    }
    groups = cohort.obs["sample"].to_numpy()
    by_array = PolygonRegressor(**{**params, "gates": gates}).fit(
        cohort.X, member.to_numpy(), groups
    )
    np.testing.assert_array_equal(by_array.predict(cohort.X, groups), fitted.predict(cohort))
    assert by_array.score(cohort.X, member.to_numpy(), groups) == fitted.score(cohort)


def with_polygons(adata):
    """The cohort with an expert's squares instead of membership."""
    trees = {}
    for name in adata.obs["sample"].unique():
        cells = adata[adata.obs["sample"] == name]
        trees[name] = GatingTree.from_labels(
            cells, pd.DataFrame(cells.obsm["gates"]), GATES, trim=3.5
        )
    out = adata.copy()
    del out.obsm["gates"]
    out.uns["gates"] = GatingTree.to_uns(trees)
    return out


def test_drawn_polygons_teach_as_membership_does(cohort):
    drawn = with_polygons(cohort)
    reg = PolygonRegressor(**FAST).fit(drawn)
    assert reg.score(gated_cohort(3, seed=7)) > 0.9
    # Where the polygons are known and the membership is not, scores are against the polygons.
    assert reg.score(drawn) > 0.9


def test_polygons_in_other_units_teach_the_same_places(cohort):
    def prepared(scale):
        out = with_polygons(cohort)
        out.var["transform"], out.var["compensated"] = f"linear(T={scale})", False
        entry = out.uns["gates"]
        for axis in ("transform_x", "transform_y"):
            entry[axis] = np.array(["linear(T=2)"] * len(entry["name"]), dtype=object)
        out.X = out.X * np.float32(2 / scale)
        return out

    here, there = (PolygonRegressor(**FAST).fit(prepared(scale)) for scale in (2, 4))
    np.testing.assert_allclose(there.predict(prepared(4)) * 2, here.predict(prepared(2)), atol=0.05)


def test_a_tree_from_other_software_names_channels(cohort):
    """Rectangles and axes named by $PnN: the planes of the template and the expert's polygons."""
    adata = with_polygons(cohort)
    adata.var["channel"] = ["FL1-A", "FL2-A", "FL3-A", "FL4-A"]
    channel = dict(zip("ABCD", adata.var["channel"], strict=True))
    for axis in ("x", "y"):
        names = adata.uns["gates"][axis]
        adata.uns["gates"][axis] = np.array([channel[m] for m in names], dtype=object)
    template = GatingTree(
        [
            RectangleGate("live", ("FL1-A", "FL2-A"), (0, 0), (9, 9)),
            RectangleGate("left", ("FL3-A", "FL4-A"), (-9, -9), (0, 9), "live"),
        ]
    )
    reg = PolygonRegressor(**{**FAST, "gates": template}).fit(adata)
    assert reg.gates_ == ["live", "left"]
    assert reg.tree_["left"].markers == ("C", "D")
    assert reg.score(cohort) > 0.9
    box = RectangleGate("box", ("A", "B", "C"), (0, 0, 0), (1, 1, 1))
    with pytest.raises(InvalidInputError, match="'box' has 3 marker"):
        PolygonRegressor(**broken(gates=GatingTree([box]))).fit(adata)


def test_polygons_of_x_do_not_teach_about_a_layer(cohort):
    adata = with_polygons(cohort)
    adata.var["transform"], adata.var["compensated"] = "linear(T=2)", False
    adata.layers["other"] = 10 * adata.X
    reg = PolygonRegressor(**{**FAST, "layer": "other", "max_epochs": 1})
    with pytest.raises(MissingKeyError, match="No membership"):
        reg.fit(adata)
    reg.fit(adata, pd.DataFrame(cohort.obsm["gates"]))
    assert reg.predict_gates(adata)["s0"]["live"].transform_x == "none"


def test_boolean_gates_are_derived(cohort):
    adata = cohort.copy()
    gates = {**GATES, "either": BooleanGate("either", "or", ("left", "right"), "live")}
    reg = PolygonRegressor(**{**FAST, "gates": gates}).fit(adata)
    table = reg.predict_membership(adata)
    assert (table["either"] == (table["left"] | table["right"])).all()
    assert reg.gates_ == ["live", "left", "right"]
    agreement = reg.score_table(adata).groupby("gate")["f1"].mean()
    assert agreement["either"] > 0.9
    assert reg.predict_gates(adata)["s0"]["either"] == gates["either"]


def test_cells_outside_of_the_subset_are_not_gated(cohort):
    adata = cohort.copy()
    adata.obs["live"] = adata.obsm["gates"]["live"].to_numpy()
    gates = {"left": ("", "C", "D"), "right": ("", "C", "D")}
    reg = PolygonRegressor(**{**FAST, "gates": gates, "subset_key": "live", "max_epochs": 2})
    reg.fit(adata)
    table = reg.predict_membership(adata)
    assert (table["left"].isna() == ~adata.obs["live"]).all()
    assert set(reg.predict_cells(adata)[~adata.obs["live"]]) == {"not analysed"}
    reg.annotate(adata)


@pytest.mark.filterwarnings("ignore:.* far beyond all training data")
def test_an_empty_parent_is_counted_as_nan(cohort, fitted):
    adata = gated_cohort(2, seed=3)
    adata.obsm["gates"].loc[:, :] = False
    far = adata.copy()
    far.X[:, :2] -= 100
    table = fitted.score_table(far)
    assert table["n_true"].sum() == 0
    empty = table["n_predicted"] == 0
    assert empty.any()
    assert table.loc[empty, "f1"].isna().all()


def test_gate_agreement_counts_what_is_known():
    truth = pd.DataFrame({"g": pd.array([True, True, None, False], dtype="boolean")})
    table = gate_agreement(truth, pd.DataFrame({"g": [True, False, True, True]}))
    assert table.loc[0, ["n_cells", "n_true", "n_predicted"]].tolist() == [3, 2, 2]
    assert table.loc[0, "f1"] == 0.5
    two = pd.concat(
        [table, gate_agreement(pd.DataFrame({"g": [False]}), pd.DataFrame({"g": [False]}))]
    )
    assert summarize(two).loc["g", ["n_samples", "f1_mean", "f1_undefined"]].tolist() == [2, 0.5, 1]
    one_sided = gate_agreement(pd.DataFrame({"g": [True]}), pd.DataFrame({"g": [False]}))
    assert one_sided.loc[0, "f1"] == 0


# Bad input


def broken(**change):
    return {**FAST, "max_epochs": 1, **change}


@pytest.mark.parametrize(
    ("gates", "error", "message"),
    [
        ({"g": ("", "A", "Z")}, MarkerMismatchError, "'g' needs marker.*'Z'"),
        ({"g": ("nobody", "A", "B")}, InvalidInputError, "'nobody'"),
        ({"g": ("h", "A", "B"), "h": ("g", "A", "B")}, InvalidInputError, "circle"),
        ({"g": ("", "A")}, InvalidInputError, "expected"),
        ({}, InvalidInputError, "no polygon"),
        ({"unknown": ("", "A", "B")}, MissingKeyError, "No membership"),
        ({**GATES, "x": BooleanGate("y", "not", ("left",))}, InvalidInputError, "named 'y'"),
    ],
)
def test_trees_that_cannot_be_learnt(cohort, gates, error, message):
    with pytest.raises(error, match=message):
        PolygonRegressor(**broken(gates=gates)).fit(cohort)


def test_membership_that_contradicts_the_tree_is_counted(cohort):
    adata = cohort.copy()
    adata.obsm["gates"].iloc[:7] = [False, True, False]
    with pytest.raises(InvalidInputError, match="7 of 'left' are outside of its parent 'live'"):
        PolygonRegressor(**broken()).fit(adata)
    adata = cohort.copy()
    adata.obsm["gates"]["left"] = 2
    with pytest.raises(InvalidInputError, match="'left' holds '2'"):
        PolygonRegressor(**broken()).fit(adata)
    adata.obsm["gates"]["left"] = False
    with pytest.raises(InvalidInputError, match=r"'left' has 0 cell.*gate_aliases"):
        PolygonRegressor(**broken()).fit(adata)
    with pytest.raises(InvalidInputError, match="shape"):
        PolygonRegressor(**broken()).fit(cohort, np.ones((cohort.n_obs, 2)))
    with pytest.raises(InvalidInputError, match="rows"):
        PolygonRegressor(**broken()).fit(cohort, np.ones((5, 3)))


def test_a_gate_that_is_missing_is_unlabelled_and_other_names_are_mapped(cohort):
    adata = cohort.copy()
    adata.obsm["gates"] = pd.DataFrame(adata.obsm["gates"]).rename(columns={"left": "L"})
    with pytest.raises(InvalidInputError, match="'left' has 0"):
        PolygonRegressor(**broken()).fit(adata)
    reg = PolygonRegressor(**broken(gate_aliases={"L": "left"})).fit(adata)
    assert reg.gates_ == ["live", "left", "right"]


def test_a_failed_fit_leaves_the_model_and_the_data_alone(cohort, fitted):
    reg = copy.deepcopy(fitted)
    adata = cohort.copy()
    adata.obsm["gates"].iloc[:7] = [False, True, False]
    before = pd.DataFrame(adata.obsm["gates"]).copy()
    with pytest.raises(FcmError):
        reg.fit(adata)
    np.testing.assert_array_equal(reg.predict(cohort), fitted.predict(cohort))
    pd.testing.assert_frame_equal(pd.DataFrame(adata.obsm["gates"]), before)


def test_data_in_another_state_are_refused(cohort):
    adata = cohort.copy()
    adata.var["transform"], adata.var["compensated"] = "arcsinh(cofactor=5)", False
    reg = PolygonRegressor(**broken()).fit(adata)
    gate = reg.predict_gates(adata)["s0"]["left"]
    assert gate.transform_x == "arcsinh(cofactor=5)"
    raw = adata.copy()
    raw.var["transform"] = "none"
    with pytest.raises(ProcessingStateError, match=r"'A' is in transform 'none'.*arcsinh"):
        reg.predict(raw)


def test_without_fit_or_with_another_tree_there_is_no_prediction(cohort, fitted):
    with pytest.raises(NotFittedError):
        PolygonRegressor(**FAST).predict(cohort)
    other = copy.deepcopy(fitted)
    other.set_params(warm_start=True, gates={"live": ("", "A", "B")})
    with pytest.raises(InvalidInputError, match="warm_start continues with"):
        other.fit(cohort)
