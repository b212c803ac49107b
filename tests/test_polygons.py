"""Polygon head and PolygonRegressor."""

from __future__ import annotations

import math

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import shapely
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fcm_estimators import PolygonRegressor
from fcm_estimators._gate_training import GateLoss, fit_shapes
from fcm_estimators.nn import PolygonFormer
from fcm_estimators.nn.polygon_head import Shapes, StarGates

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
            shapes = net.shapes(net.encode(x, [0, 40]), [0, 40])
            x[0, :2] = shapes.centre[0, 0]
            x[1, :2] = shapes.centre[0, 0] + 1e-4
    member = torch.full((40, 2), 0 if case == "empty" else 1)
    if case == "centre":
        member[20:] = 0
    target = torch.cat([torch.zeros(40, 1, dtype=torch.long), member], 1)
    x.requires_grad_()
    inputs = {"sample": torch.zeros(40, dtype=torch.long), "log_odds_ratio": torch.zeros(40, 1)}
    loss = GateLoss()(net(x), target, inputs)
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
    GateLoss()(logits, target, inputs).backward()
    assert change.grad.abs().max() < 1e-6


def test_vertices_at_the_end_of_an_axis_lie_beyond_it():
    gates = StarGates([(0, 1)], 4)
    gates.set_limits(torch.tensor([[-10.0, -10.0], [2.0, 10.0]]))
    shapes = Shapes(torch.zeros(1, 1, 2), torch.full((1, 1, 4), math.log(1.95)))
    before, after = (f(shapes)[0, 0].numpy() for f in (gates.vertices, gates.extended))
    assert before[0] == pytest.approx([1.95, 0])
    # 12 long, 5 % beyond the end.
    assert after[0] == pytest.approx([2.6, 0])
    np.testing.assert_allclose(after[1:], before[1:], atol=1e-6)


def fit_free(points, inside, n_vertices=16):
    gates = StarGates([(0, 1)], n_vertices)
    places = points[inside]
    gates.centre.copy_(torch.from_numpy(places.mean(0))[None])
    gates.spread.copy_(torch.from_numpy(places.std(0))[None])
    z = torch.from_numpy(points).float()
    member = torch.from_numpy(inside[:, None].astype("i8"))
    shapes = fit_shapes(gates, z, member, [0, len(z)], shared=False)
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
