"""Outlines traced around the expert's cells: the ceiling of star polygons."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from fcm_estimators._fitting.gate_tracing import _RadiusSearch, traced_vertices
from fcm_estimators.nn import PolygonFormer
from fcm_estimators.nn.soft_gates import SoftGate
from tests.helpers import polygons_below

N_VERTICES = 16


def ellipse(z, rng):
    """A tilted cloud among its neighbours, cut at 2.5 SD."""
    x, y = z.T
    return ((x + y) / 1.6) ** 2 + ((x - y) / 0.6) ** 2 < 1


def rectangle(z, rng):
    return (z[:, 0] > -1) & (z[:, 0] < 0.4) & (z[:, 1] > -0.2) & (z[:, 1] < 0.5)


def boomerang(z, rng):
    return (z > -1).all(1) & (z < 1).all(1) & ~(z > -0.3).all(1)


def cut(z, rng):
    """A cloud that ends at a straight line, as at another gate's edge."""
    return (np.hypot(*z.T) + 0.1 * rng.normal(size=len(z)) < 1) & (z[:, 0] < 0.3)


def percentile_star(points, n_vertices=N_VERTICES, share=0.995):
    """The start that a ceiling must reach: radii from the mean, at a quantile by direction."""
    centre = points.mean(0)
    arm = points - centre
    sector = np.round(np.arctan2(arm[:, 1], arm[:, 0]) / (2 * np.pi / n_vertices)) % n_vertices
    distance = np.hypot(*arm.T)
    radii = [np.quantile(np.r_[distance[sector == k], 0.01], share) for k in range(n_vertices)]
    angle = 2 * np.pi * np.arange(n_vertices) / n_vertices
    return centre + np.stack([np.cos(angle), np.sin(angle)], 1) * np.array(radii)[:, None]


def called_by(outline, z):
    return shapely.contains_xy(shapely.Polygon(outline), z)


def traced(z, member, hierarchy, axes):
    net = PolygonFormer(z.shape[1], axes, N_VERTICES, n_layers=1, hidden_dim=8)
    return traced_vertices(net, z, member, hierarchy, np.random.default_rng(0))


@pytest.mark.parametrize("n_cells", [1500, 30_000])
@pytest.mark.parametrize("shape", [ellipse, rectangle, boomerang, cut])
def test_a_traced_outline_agrees_at_least_as_well_as_quantiles_of_the_distances(shape, n_cells):
    rng = np.random.default_rng(0)
    z = (1.2 * rng.normal(size=(n_cells, 2))).astype("f4")
    inside = shape(z, rng)
    (outline,) = traced(z, inside[:, None].astype("i8"), polygons_below(-1), [(0, 1)])
    assert shapely.Polygon(outline).is_valid
    reached = f1_score(inside, called_by(outline, z))
    assert reached >= f1_score(inside, called_by(percentile_star(z[inside]), z))
    assert reached > (0.93 if shape is cut else 0.97)


def test_a_gate_below_not_is_traced_without_the_cells_that_not_takes_away():
    """Dead cells lie in the place of the T cells; only the gate of the dead tells them apart."""
    rng = np.random.default_rng(1)
    z = rng.normal(size=(6000, 3)).astype("f4")
    dead = np.arange(6000) < 3000
    z[:, 2] += np.where(dead, 9, 0)
    t = (np.hypot(*z[:, :2].T) < 1) & ~dead
    member = np.stack([dead, np.where(dead, -2, t)], 1).astype("i8")
    below_not = SoftGate(-1, operation="not", operands=(0,), complements=(False,))
    hierarchy = [SoftGate(-1, 0), below_not, SoftGate(1, 1)]
    outlines = traced(z, member, hierarchy, [(2, 0), (0, 1)])
    called_dead, alone = called_by(outlines[0], z[:, [2, 0]]), called_by(outlines[1], z[:, :2])
    assert f1_score(dead, called_dead) > 0.99
    # Alone it holds as many dead as live cells.
    assert f1_score(t, alone) < 0.8
    assert f1_score(t, alone & ~called_dead) > 0.985


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(4, 20))
def test_each_step_of_the_search_finds_the_best_radius_of_all(seed, n_vertices):
    rng = np.random.default_rng(seed)
    place = rng.normal(size=(60, 2))
    inside = rng.random(60) < 1 / (1 + np.exp(4 * (np.hypot(*place.T) - 1)))
    n_inside = int(inside.sum()) + int(rng.integers(0, 5))
    search = _RadiusSearch(place, inside, n_inside, rng.uniform(0.3, 2, n_vertices))

    def agreement():
        called = search.distance() <= 1
        return 2 * (called & inside).sum() / max(called.sum() + n_inside, 1)

    k = int(rng.integers(n_vertices))
    before, start = search.inverse.copy(), agreement()
    found = search._improve(k, start)
    assert found == pytest.approx(max(agreement(), start))
    assert np.flatnonzero(search.inverse != before).tolist() in ([], [k])
    for radius in np.geomspace(0.02, 50, 200):
        search.inverse[k] = 1 / radius
        assert agreement() <= found + 1e-12
    # And the whole search never becomes worse.
    search.inverse = before.copy()
    assert search.improved() >= start
    assert agreement() >= start
