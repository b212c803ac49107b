"""Gates: geometry, membership, states of the data, exchange in AnnData."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from fcm_estimators.datasets import simulate_cohort
from fcm_estimators.exceptions import (
    InvalidInputError,
    MarkerMismatchError,
    MissingKeyError,
    ProcessingStateError,
)
from fcm_estimators.gating import BooleanGate, GatingTree, PolygonGate
from fcm_estimators.preprocessing import (
    ArcsinhTransform,
    Compensation,
    LinearTransform,
    LogicleTransform,
)

SQUARE = [[0, 0], [1, 0], [1, 1], [0, 1]]
BLAST_PLANES = ("blast_cd45_cd10", "blast_cd20_cd10", "blast_cd38_cd10")


@pytest.fixture(scope="module")
def compensated():
    return Compensation().fit_transform(simulate_cohort(n_samples=3, n_cells=4000, random_state=1))


def with_blasts(tree):
    return GatingTree([*tree, BooleanGate("blast", "and", BLAST_PLANES, parent="cd19")])


def plane(n=4, markers=("a", "b")):
    rng = np.random.default_rng(0)
    return ad.AnnData(
        rng.normal(size=(n, len(markers))).astype(np.float32),
        obs=pd.DataFrame(index=[f"c{i}" for i in range(n)]),
        var=pd.DataFrame(index=list(markers)),
    )


def test_the_experts_gates_hold_the_experts_cells(compensated):
    for sample in compensated.obs["sample"].unique():
        cells = compensated[compensated.obs["sample"] == sample]
        inside = with_blasts(GatingTree.from_adata(compensated, sample=sample)).apply(cells)
        expected = pd.DataFrame(cells.obsm["gates"])
        pd.testing.assert_frame_equal(inside[list(expected)], expected, check_names=False)


@pytest.mark.parametrize(
    "steps",
    [
        [LogicleTransform(), LinearTransform()],
        [LogicleTransform(T=262144, W=1.0)],
        [ArcsinhTransform(cofactor=150.0), LinearTransform()],
    ],
)
def test_gates_are_converted_to_the_transform_of_the_data(compensated, steps):
    cells = compensated[compensated.obs["sample"] == "patient1_d0"].copy()
    shown = cells
    for step in steps:
        shown = step.fit_transform(shown)
    inside = GatingTree.from_adata(cells, sample="patient1_d0").apply(shown)
    agreement = (inside == cells.obsm["gates"][list(inside)]).to_numpy().mean()
    # A cell on the very edge may change sides in single precision.
    assert agreement > 0.9998
    assert inside.to_numpy().any(0).all()


def test_the_state_of_the_data_is_respected(compensated):
    whole = simulate_cohort(n_samples=3, n_cells=4000, random_state=1)
    tree = GatingTree.from_adata(compensated, sample="patient1_d0")
    raw = simulate_cohort(n_samples=1, n_cells=100)
    del raw.uns["fcs"]
    with pytest.raises(ProcessingStateError, match=r"'Syto 41' is not compensated.*Compensation"):
        tree.apply(raw)
    unknown = compensated.copy()
    del unknown.var["transform"]
    with pytest.raises(ProcessingStateError, match="no column 'transform'"):
        tree.apply(unknown)
    on_raw = GatingTree([PolygonGate("g", "CD19", "CD10", SQUARE)])
    assert on_raw.apply(compensated)["g"].sum() == on_raw.apply(whole)["g"].sum()
    compensated = compensated.copy()
    del compensated.layers["raw"]
    with pytest.raises(ProcessingStateError, match="'CD19' is compensated"):
        on_raw.apply(compensated)
    without = GatingTree([PolygonGate("g", "a", "b", SQUARE)]).apply(plane())
    assert without.shape == (4, 1)


@given(st.integers(0, 2**31 - 1), st.integers(3, 12))
def test_membership_agrees_with_shapely(seed, n_vertices):
    rng = np.random.default_rng(seed)
    angle = np.sort(rng.uniform(0, 2 * np.pi, n_vertices))
    if np.diff(angle, append=angle[0] + 2 * np.pi).max() > 3:
        angle = np.linspace(0, 2 * np.pi, n_vertices, endpoint=False)
    radius = rng.uniform(0.3, 1, n_vertices)
    gate = PolygonGate("g", "a", "b", np.c_[radius * np.cos(angle), radius * np.sin(angle)])
    points = rng.uniform(-1, 1, size=(500, 2))
    shape = shapely.Polygon(gate.vertices)
    clear = shapely.distance(shape.exterior, shapely.points(points)) > 1e-9
    expected = shapely.contains_xy(shape, *points.T)
    np.testing.assert_array_equal(gate.contains(points)[clear], expected[clear])
    turned = PolygonGate("g", "a", "b", gate.vertices[::-1])
    np.testing.assert_array_equal(turned.contains(points)[clear], expected[clear])
    assert gate.area == pytest.approx(turned.area)


def test_geometry():
    square = PolygonGate("s", "a", "b", SQUARE)
    moved = PolygonGate("m", "a", "b", np.add(SQUARE, [0.5, 0]))
    assert square.area == 1
    np.testing.assert_allclose(square.centroid, [0.5, 0.5])
    assert square.iou(square) == 1
    assert square.iou(moved) == pytest.approx(1 / 3)
    assert square.iou(PolygonGate("f", "a", "b", np.add(SQUARE, 5))) == 0
    with pytest.raises(InvalidInputError, match="different planes"):
        square.iou(PolygonGate("o", "a", "c", SQUARE))
    assert square.contains(np.empty((0, 2))).shape == (0,)
    with pytest.raises(ValueError, match="read-only"):
        square.vertices[0] = 9


def test_boolean_gates():
    data = plane(50)
    left = PolygonGate("left", "a", "b", [[-9, -9], [0, -9], [0, 9], [-9, 9]])
    low = PolygonGate("low", "a", "b", [[-9, -9], [9, -9], [9, 0], [-9, 0]])
    tree = GatingTree(
        [
            BooleanGate("outside", "not", ("left",), parent="low"),
            BooleanGate("either", "or", ("left", "low")),
            BooleanGate("both", "and", ("left", "low")),
            left,
            low,
        ]
    )
    inside = tree.apply(data)
    a, b = data.X.T
    np.testing.assert_array_equal(inside["left"], a < 0)
    np.testing.assert_array_equal(inside["either"], (a < 0) | (b < 0))
    np.testing.assert_array_equal(inside["both"], (a < 0) & (b < 0))
    np.testing.assert_array_equal(inside["outside"], (a >= 0) & (b < 0))
    assert list(inside.index) == list(data.obs_names)


def test_children_lie_within_their_parents(compensated):
    cells = compensated[compensated.obs["sample"] == "patient1_d0"]
    tree = GatingTree.from_adata(compensated, sample="patient1_d0")
    inside = tree.apply(cells)
    for gate in tree:
        for parent in tree.ancestors(gate.name):
            assert not (inside[gate.name] & ~inside[parent]).any()
    assert tree.ancestors("cd19") == ["intact", "singlets", "syto"]
    assert tree.leaves == list(BLAST_PLANES)
    assert repr(tree).splitlines()[1:4] == ["syto", "  singlets", "    intact"]
    shuffled = GatingTree(list(tree)[::-1]).apply(cells)
    pd.testing.assert_frame_equal(shuffled[list(inside)], inside)


def test_polygons_survive_h5ad(compensated, tmp_path):
    trees = {
        s: GatingTree.from_adata(compensated, sample=s) for s in compensated.obs["sample"].unique()
    }
    data = compensated.copy()
    data.uns["mine"] = GatingTree.to_uns(trees)
    data.write_h5ad(tmp_path / "a.h5ad")
    back = ad.read_h5ad(tmp_path / "a.h5ad")
    for sample, tree in trees.items():
        again = GatingTree.from_adata(back, key="mine", sample=sample)
        assert list(again.gates) == list(tree.gates)
        for gate in tree:
            np.testing.assert_array_equal(again[gate.name].vertices, gate.vertices)
            assert again[gate.name].transform_x == gate.transform_x
    with pytest.raises(MissingKeyError, match="patient1_d0"):
        GatingTree.from_adata(back, key="mine", sample="nobody")
    with pytest.raises(MissingKeyError, match="mine"):
        GatingTree.from_adata(back, key="yours", sample="patient1_d0")


def test_polygons_are_traced_around_labelled_cells(compensated):
    cells = compensated[compensated.obs["sample"] == "patient1_d0"].copy()
    shown = LinearTransform().fit_transform(LogicleTransform().fit_transform(cells))
    planes = {"intact": ("", "FSC-A", "SSC-A"), "cd19": ("intact", "CD19", "SSC-A")}
    tree = GatingTree.from_labels(shown, shown.obsm["gates"], planes)
    inside = tree.apply(shown)
    truth = shown.obsm["gates"]["cd19"]
    f1 = 2 * (inside["cd19"] & truth).sum() / (inside["cd19"].sum() + truth.sum())
    assert f1 > 0.9
    assert tree["cd19"].transform_x.startswith("logicle")
    assert tree["cd19"].compensation == "spillover"
    nobody = pd.DataFrame({"cd19": np.zeros(cells.n_obs, dtype=bool)})
    with pytest.raises(InvalidInputError, match="'cd19' has 0 cells"):
        GatingTree.from_labels(shown, nobody, {"cd19": ("", "CD19", "SSC-A")})
    with pytest.raises(MissingKeyError, match="'cd20'"):
        GatingTree.from_labels(shown, nobody, {"cd20": ("", "CD20", "SSC-A")})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PolygonGate("g", "a", "b", SQUARE[:2]), "three or more"),
        (lambda: PolygonGate("g", "a", "b", [[0, 0], [1, 1], [1, 0], [0, 1]]), "cross itself"),
        (lambda: PolygonGate("g", "a", "b", [[0, 0], [1, 1], [2, 2]]), "cross itself"),
        (lambda: PolygonGate("g", "a", "b", [[0, 0], [1, np.nan], [2, 2]]), "not finite"),
        (lambda: PolygonGate("g", "a", "a", SQUARE), "more than one axis"),
        (lambda: PolygonGate("a/b", "a", "b", SQUARE), "without '/'"),
        (lambda: PolygonGate("g", "a", "b", SQUARE, transform_x="log"), "is not a transform"),
        (lambda: PolygonGate("g", "a", "b", SQUARE, compensation="yes"), "not among"),
        (lambda: PolygonGate("g", "a", "b", SQUARE).contains([1, 2]), r"expected \(N, 2\)"),
        (lambda: BooleanGate("g", "xor", ("a", "b")), "not among"),
        (lambda: BooleanGate("g", "not", ("a", "b")), "takes one"),
        (lambda: BooleanGate("g", "and", ("a",)), "two or more"),
        (lambda: BooleanGate("g", "not", "a"), "tuple"),
        (lambda: GatingTree([PolygonGate("g", "a", "b", SQUARE, "p")]), "needs 'p'"),
        (lambda: GatingTree([PolygonGate("g", "a", "b", SQUARE)] * 2), "more than once"),
        (
            lambda: GatingTree(
                [PolygonGate("g", "a", "b", SQUARE, "h"), PolygonGate("h", "a", "b", SQUARE, "g")]
            ),
            "circle",
        ),
    ],
)
def test_what_is_no_gate_is_refused(make, message):
    with pytest.raises(InvalidInputError, match=message):
        make()


def test_a_marker_that_the_panel_lacks_is_named():
    tree = GatingTree([PolygonGate("g", "a", "CD99", SQUARE)])
    with pytest.raises(MarkerMismatchError, match=r"'CD99' \(gate 'g'\); present are 'a', 'b'"):
        tree.apply(plane())
    with pytest.raises(MissingKeyError, match="'g'"):
        tree["h"]
