"""Outlines near their cells: the room of a gate, its open ends, and what is drawn."""

from __future__ import annotations

from itertools import pairwise

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import shapely
import torch
from hypothesis import given
from hypothesis import strategies as st

from fcm_estimators import PolygonRegressor
from fcm_estimators._fitting.gate_draws import AROUND, DRAWN, LASTING, Probes
from fcm_estimators._fitting.gate_hulls import hull_of, hull_probes, open_ends, room_for
from fcm_estimators.gating import GatingTree, PolygonGate
from fcm_estimators.gating.pictures import outline_in_frame
from fcm_estimators.nn.polygon_head import Shapes, StarGates
from tests.test_polygons import FAST

seeds = st.integers(0, 2**32 - 1)
AXES = [(0, 1), (2, 1)]


def clouds(seed, n_samples=3, n_cells=400):
    """Cells of shifted samples, inside the first gate if near the middle; the second is rare."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n_samples, n_cells, 3))
    first = np.hypot(x[..., 0], x[..., 1]) < 1.2
    second = first & (rng.random(first.shape) < 0.4)
    x += rng.normal(size=(n_samples, 1, 3))
    inside = np.stack([first, second], -1).reshape(-1, 2).astype("i8")
    return x.reshape(-1, 3).astype("f4"), inside, [n_cells * s for s in range(n_samples + 1)]


@given(seeds)
def test_points_lie_outside_of_the_cells_and_near_them(seed):
    x, inside, offsets = clouds(seed)
    closed = np.zeros((2, 2, 2), dtype=bool)
    probes = hull_probes(x, inside, offsets, AXES, closed, [None] * 3, np.random.default_rng(0))
    for s, found in enumerate(probes):
        assert not found.inside.any()
        assert set(found.gate) == {0, 1}
        for g, axes in enumerate(AXES):
            rows = slice(offsets[s], offsets[s + 1])
            cells = x[rows][inside[rows, g] == 1][:, axes]
            hull, points = hull_of(cells), found.place[found.gate == g]
            assert not shapely.contains_xy(hull, points).any()
            start, stop = np.reshape(hull.bounds, (2, 2))
            assert (points > start - 3 * (stop - start)).all()
            assert (points < stop + 3 * (stop - start)).all()


def test_the_room_of_few_cells_is_larger():
    square = shapely.box(0, 0, 2, 1)
    ratios = [room_for(square, n).area / square.area for n in (20, 1000, 10_000)]
    assert ratios == pytest.approx([4.9, 1.3, 1.3], rel=0.02)
    assert room_for(square, 20).centroid.distance(square.centroid) < 1e-9


def test_what_an_expert_has_drawn_is_not_replaced_by_a_hull():
    x, inside, offsets = clouds(0, n_cells=4000)
    mine = Probes(np.zeros(5, int), np.ones((5, 2), "f4"), np.ones(5, bool), np.full(5, DRAWN))
    closed, rng = np.zeros((2, 2, 2), dtype=bool), np.random.default_rng(0)
    probes = hull_probes(x, inside, offsets, AXES, closed, [mine, None, None], rng)
    assert (probes[0].gate == 0).sum() == 5
    assert probes[0].inside.sum() == 5
    assert (probes[0].stratum[probes[0].gate == 0] == DRAWN).all()
    assert (probes[0].gate == 1).sum() > 100
    assert (probes[1].gate == 0).sum() > 100
    # A gate without enough cells in a sample gets no points there.
    inside[: offsets[1], 1] = 0
    probes = hull_probes(x, inside, offsets, AXES, closed, [None] * 3, rng)
    assert set(probes[0].gate) == {0}
    none = hull_probes(x, np.zeros_like(inside), offsets, AXES, closed, [None] * 3, rng)
    assert none == [None] * 3


def test_what_an_expert_has_drawn_of_a_rare_gate_lasts_and_moves_with_the_cells():
    x, inside, offsets = clouds(0)
    assert (inside.sum(0) < 1000).all()
    places = np.random.default_rng(1).normal(size=(7, 2))
    mine = Probes(np.zeros(7, int), places, np.arange(7) < 3, np.full(7, DRAWN))
    closed, rng = np.zeros((2, 2, 2), dtype=bool), np.random.default_rng(0)
    # The third sample has too few cells of the gate to say where it is.
    inside[offsets[2] :, 0] = 0
    probes = hull_probes(x, inside, offsets, AXES, closed, [mine, None, None], rng)
    first, second = (p.place[p.gate == 0] for p in probes[:2])
    assert all((p.stratum[p.gate == 0] == LASTING).all() for p in probes)
    assert all((p.stratum[p.gate == 1] == AROUND).all() for p in probes)
    np.testing.assert_array_equal(first, places)
    means = [x[i:j][inside[i:j, 0] == 1][:, :2].mean(0) for i, j in pairwise(offsets[:3])]
    wanted = places + means[1] - means[0]
    order, drawn_order = (np.argsort(p[:, 0]) for p in (second, wanted))
    np.testing.assert_allclose(second[order], wanted[drawn_order], atol=1e-5)
    told = probes[1].inside[probes[1].gate == 0]
    np.testing.assert_array_equal(told[order], (np.arange(7) < 3)[drawn_order])
    assert set(probes[2].gate) == {1}


def test_no_lasting_point_outside_of_a_rare_gate_is_beyond_an_open_end():
    x, inside, offsets = clouds(0)
    places = np.random.default_rng(1).uniform(-8, 8, size=(300, 2))
    mine = Probes(np.zeros(300, int), places, places[:, 1] > 4, np.full(300, DRAWN))
    is_open, rng = np.zeros((2, 2, 2), dtype=bool), np.random.default_rng(0)
    is_open[1, 0, 1] = True
    probes = hull_probes(x, inside, offsets, AXES, is_open, [mine, None, None], rng)
    highest = x[:, 1].max()
    for found in probes:
        mine = found.gate == 0
        assert (found.stratum[mine] == LASTING).all()
        beyond = found.place[:, 1] > highest
        assert (mine & beyond & found.inside).any()
        assert not (mine & beyond & ~found.inside).any()
        # At the closed ends they stay.
        assert (mine & ~found.inside & (found.place[:, 1] < x[:, 1].min())).any()


@pytest.mark.parametrize("end", [0, 1])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_gate_is_open_at_an_end_where_its_cells_are(end, axis):
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, size=(5000, 3)).astype("f4")
    at_end = x[:, axis] > 0.8 if end else x[:, axis] < -0.8
    middle = (np.abs(x) < 0.5).all(1)
    inside = np.stack([at_end, middle], 1).astype("i8")
    expected = np.zeros((2, 2, 2), dtype=bool)
    # The first gate also reaches the ends of the other axis.
    expected[:, 0, 1 - axis] = True
    expected[end, 0, axis] = True
    found = open_ends(x, inside, [(0, 1), (0, 1)], [None])
    np.testing.assert_array_equal(found, expected)
    # An expert's polygon that reaches beyond an end is open there, even without cells.
    place = np.zeros((1, 2))
    place[0, axis] = 5 if end else -5
    for held in (True, False):
        drawn = [Probes(np.array([1]), place, np.array([held]), np.array([DRAWN]))]
        found = open_ends(x, inside, [(0, 1), (0, 1)], drawn)
        assert found[end, 1, axis] == held
        assert found[:, 1].sum() == held
    probes = hull_probes(
        x, inside, [0, 5000], [(0, 1), (0, 1)], expected, [None], np.random.default_rng(0)
    )[0]
    points = probes.place[probes.gate == 0][:, axis]
    assert np.abs(points).max() <= 1 + 1e-6


def test_only_open_ends_move_vertices_beyond_them():
    gates = StarGates([(0, 1)], 4)
    is_open = np.zeros((2, 1, 2), dtype=bool)
    is_open[1, 0, 0] = True
    ends = torch.tensor([[-2.0, -2.0], [2.0, 2.0]])
    gates.set_limits(ends, torch.from_numpy(is_open))
    shapes = Shapes(torch.zeros(1, 1, 2), torch.full((1, 1, 4), float(np.log(1.99))))
    before, after = (f(shapes)[0, 0].numpy() for f in (gates.vertices, gates.extended))
    assert after[0, 0] == pytest.approx(2.2)
    np.testing.assert_allclose(after[1:], before[1:], atol=1e-6)


def islands(n_samples=4, n_cells=3000):
    """A cloud alone in a wide plane, far from all others; the expert's membership only."""
    rng = np.random.default_rng(0)
    kind = rng.random((n_samples, n_cells)) < 0.4
    x = rng.normal(size=(n_samples, n_cells, 2)) + np.where(kind, 0, 14)[..., None]
    # A few strays define the ends of the axes, far away.
    x[:, :4] = [[-30, -30], [-30, 30], [30, -30], [30, 30]]
    kind[:, :4] = False
    x += 0.3 * rng.normal(size=(n_samples, 1, 2))
    names = np.repeat([f"s{i}" for i in range(n_samples)], n_cells)
    obs = pd.DataFrame({"sample": names}, index=[f"c{i}" for i in range(len(names))])
    adata = ad.AnnData(x.reshape(-1, 2).astype("f4"), obs=obs)
    adata.var_names = list("AB")
    adata.obsm["gates"] = pd.DataFrame({"cloud": kind.ravel()}, index=obs.index)
    return adata


def test_outlines_stay_with_their_cells_where_nothing_else_holds_them():
    adata = islands()
    reg = PolygonRegressor(**{**FAST, "gates": {"cloud": ("", "A", "B")}}).fit(adata)
    inside = adata.obsm["gates"]["cloud"].to_numpy()
    hull = hull_of(np.asarray(adata.X[inside], dtype=float))
    for outline in [reg.tree_["cloud"].vertices, *reg.predict(adata)[:, 0]]:
        assert shapely.Polygon(outline).area < 1.8 * hull.area
    assert reg.score(adata) > 0.99


BOX = np.array([[0.0, 0], [6, 0], [6, 6], [0, 6]])


def corners(n_samples=4, n_cells=800, n_inside=60):
    """A few cells in the left third of the expert's box, all others far from it."""
    rng = np.random.default_rng(0)
    x = rng.normal(12, 2, size=(n_samples, n_cells, 2))
    x[:, :n_inside] = rng.uniform(0, [2, 6], size=(n_samples, n_inside, 2))
    x[:, -4:] = [[-20, -20], [-20, 30], [30, -20], [30, 30]]
    shift = 0.5 * rng.normal(size=(n_samples, 1, 2))
    names = [f"s{i}" for i in range(n_samples)]
    obs = pd.DataFrame({"sample": np.repeat(names, n_cells)})
    obs.index = [f"c{i}" for i in range(len(obs))]
    adata = ad.AnnData((x + shift).reshape(-1, 2).astype("f4"), obs=obs)
    adata.var_names = list("AB")
    inside = np.tile(np.arange(n_cells) < n_inside, n_samples)
    adata.obsm["gates"] = pd.DataFrame({"few": inside}, index=obs.index)
    return adata, {name: BOX + by for name, by in zip(names, shift, strict=True)}


@pytest.mark.parametrize("drawn", [False, True])
def test_a_rare_gate_takes_the_shape_that_experts_have_drawn(drawn):
    """Also in samples without an outline, here the last two."""
    adata, boxes = corners()
    if drawn:
        trees = {n: GatingTree([PolygonGate("few", "A", "B", boxes[n])]) for n in ("s0", "s1")}
        adata.uns["gates"] = GatingTree.to_uns(trees)
    reg = PolygonRegressor(**{**FAST, "gates": {"few": ("", "A", "B")}}).fit(adata)
    shared = []
    for box, outline in zip(boxes.values(), reg.predict(adata)[:, 0], strict=True):
        mine, wanted = shapely.Polygon(outline), shapely.Polygon(box)
        shared.append(mine.intersection(wanted).area / mine.union(wanted).area)
    assert (min(shared) > 0.65) == drawn, shared


def test_outlines_are_drawn_as_far_as_there_are_cells():
    adata = islands()
    low, high = adata.X.min(0), adata.X.max(0)
    wide = np.array([[-500.0, -500], [0, -500], [0, 500], [-500, 500]])
    drawn = outline_in_frame(adata, ("A", "B"), wide)
    margin = 0.031 * (high - low)
    assert (drawn >= low - margin).all()
    assert (drawn <= high + margin).all()
    cells = np.asarray(adata.X, dtype=float)
    np.testing.assert_array_equal(
        shapely.contains_xy(shapely.Polygon(drawn), cells),
        shapely.contains_xy(shapely.Polygon(wide), cells),
    )
    # What is not in the frame at all stays what it is.
    away = wide + 1000
    assert outline_in_frame(adata, ("A", "B"), away) is away
