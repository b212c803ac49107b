"""Gating-ML 2.0 and FlowJo, through FlowKit."""

from __future__ import annotations

import copy
import warnings

import flowkit
import numpy as np
import pandas as pd
import pytest
from anndata import AnnData
from lxml import etree

from fcm_estimators import FcmError, read_fcs
from fcm_estimators.datasets import fetch_flowjo_example, simulate_cohort
from fcm_estimators.exceptions import InvalidInputError, MarkerMismatchError, MissingKeyError
from fcm_estimators.gating import (
    BooleanGate,
    EllipsoidGate,
    GatingTree,
    PolygonGate,
    RectangleGate,
)
from fcm_estimators.preprocessing import (
    ArcsinhTransform,
    Compensation,
    LinearTransform,
    LogicleTransform,
    parse_transform,
)
from fcm_estimators.preprocessing.exchange_scales import FlowJoBiex
from tests.helpers import data_home

# Truth files that are not called like their gate.
TRUTH_NAMES = {"ParRectangle1": "ParQuadRect"}
# What is refused, and the words that say why.
UNSUPPORTED = {
    "gml_ellipsoid3d_gate.xml": "Ellipsoid3D.*positive definite",
    "gml_range_gate_attr_testing.xml": "cannot be read",
}
# Gates without a truth file.
WITHOUT_TRUTH = {"myEllipse2"}


@pytest.fixture(scope="module")
def compliance():
    folder = data_home("gatingml_reference")
    return folder, read_fcs(folder / "data1.fcs")


@pytest.mark.real_data
def test_every_supported_gate_of_the_compliance_set_matches_its_truth_event_by_event(compliance):
    folder, raw = compliance
    checked = set()
    for file in sorted((folder / "gml").glob("*.xml")):
        if file.name in UNSUPPORTED or file.name == "gml_all_gates.xml":
            continue
        tree = GatingTree.from_gatingml(file)
        for gate, inside in tree.apply(raw).items():
            if gate in WITHOUT_TRUTH or "(part" in gate:
                continue
            truth = folder / "truth" / f"Results_{TRUTH_NAMES.get(gate, gate)}.txt"
            expected = pd.read_csv(truth, header=None)[0].astype(bool).to_numpy()
            assert np.array_equal(inside.to_numpy(), expected), (file.name, gate)
            checked.add(truth.name)
    unsupported = {"Ellipsoid3D"}
    everything = {path.name for path in (folder / "truth").iterdir()}
    assert everything - checked == {f"Results_{name}.txt" for name in unsupported}


@pytest.mark.real_data
@pytest.mark.parametrize("file", UNSUPPORTED)
def test_what_is_not_supported_is_refused_by_name(compliance, file):
    with pytest.raises(InvalidInputError, match=UNSUPPORTED[file]):
        GatingTree.from_gatingml(compliance[0] / "gml" / file)


@pytest.mark.real_data
def test_the_gates_beside_an_unsupported_one_can_be_imported_alone(compliance):
    path = compliance[0] / "gml" / "gml_all_gates.xml"
    assert len(GatingTree.from_gatingml(path)) > 40
    tree = GatingTree.from_gatingml(path, gates=["ParAnd3", "FL2N-FL4N"])
    assert set(tree.gates) == {"Range1", "Ellipse1", "Polygon1", "ParAnd3", "FL2N-FL4N"}
    assert tree["ParAnd3"].complements == ("Ellipse1",)
    with pytest.raises(MissingKeyError, match="'nobody'"):
        GatingTree.from_gatingml(path, gates=["nobody"])


# FlowJo


@pytest.mark.real_data
def test_a_flowjo_workspace_gates_as_flowkit_does():
    fcs, path = fetch_flowjo_example()
    tree = GatingTree.from_flowjo(path)
    assert isinstance(tree["poly1"], PolygonGate)
    assert isinstance(tree["rect1"], RectangleGate)
    mine = tree.apply(read_fcs(fcs))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        workspace = flowkit.Workspace(str(path), fcs_samples=str(fcs))
        workspace.analyze_samples(use_mp=False)
    for gate in ("poly1", "rect1"):
        theirs = workspace.get_gate_membership("data_set_simple_line_100.fcs", gate)
        assert np.array_equal(mine[gate].to_numpy(), theirs)
        assert theirs.sum() == {"poly1": 50, "rect1": 0}[gate]


@pytest.mark.real_data
def test_a_workspace_of_several_samples_asks_which(tmp_path):
    source = data_home("flowjo_example") / "simple_poly_and_rect_v2_poly50.wsp"
    root = etree.parse(str(source))
    samples = root.find("SampleList")
    second = copy.deepcopy(samples[0])
    old = "data_set_simple_line_100.fcs"
    for element in second.iter():
        for key, value in element.attrib.items():
            element.attrib[key] = value.replace(old, "other.fcs")
    for element in second.iter("DataSet", "SampleNode"):
        element.attrib["sampleID"] = "2"
    samples.append(second)
    path = tmp_path / "two.wsp"
    root.write(str(path))
    assert GatingTree.flowjo_samples(path) == [old, "other.fcs"]
    with pytest.raises(MissingKeyError, match=r"other\.fcs.*none of them was named"):
        GatingTree.from_flowjo(path)
    tree = GatingTree.from_flowjo(path, sample="other.fcs", gates=["rect1"])
    assert list(tree.gates) == ["rect1"]


def test_flowjo_s_biexponential_scale_is_flowkit_s():
    scale = parse_transform(str(FlowJoBiex(negative=0.5, width=-100, positive=4.5)))
    values = np.array([-200.0, 0.0, 50.0, 3000.0, 2e5])
    table = flowkit.transforms.WSPBiexTransform(negative=0.5, width=-100, positive=4.5)
    np.testing.assert_array_equal(scale.transform(values), table.apply(values))
    np.testing.assert_allclose(scale.inverse(scale.transform(values)), values, rtol=1e-6, atol=0.1)


# Out and in again


def tree_of_all_kinds(transform):
    axes = {"transform_x": transform, "transform_y": transform}
    scales = (transform, transform)
    return GatingTree(
        [
            PolygonGate("poly", "A", "B", [[-0.2, -0.1], [0.9, 0], [0.8, 1.1], [0, 0.7]], **axes),
            RectangleGate("rect", ("A", "B"), (0.1, -np.inf), (0.6, 0.5), "poly", scales),
            RectangleGate("range", ("C",), (0.2,), (np.inf,), "poly", (transform,)),
            EllipsoidGate(
                "round", ("A", "C"), (0.4, 0.4), [[0.05, 0.02], [0.02, 0.04]], 2.0, "", scales
            ),
            BooleanGate("both", "and", ("rect", "round"), "poly", ("round",)),
            BooleanGate("none", "not", ("poly",)),
        ]
    )


@pytest.mark.parametrize(
    "transform",
    [
        "none",
        "linear(T=1000)",
        "flin(T=1000,A=100)",
        "arcsinh(cofactor=150)",
        "fasinh(T=1000,M=4,A=1)",
        "logicle(T=1000,W=0.5,M=4.5,A=0)",
        "hyperlog(T=1000,W=0.5,M=4.5,A=0)",
    ],
)
def test_gates_come_back_from_gatingml_with_the_same_cells(tmp_path, transform):
    rng = np.random.default_rng(0)
    scale = parse_transform(transform)
    places = rng.uniform(-0.3, 1.2, size=(4000, 3))
    adata = AnnData(
        scale.inverse(places),
        var=pd.DataFrame({"transform": "none", "compensated": False}, index=list("ABC")),
    )
    tree = tree_of_all_kinds(transform)
    before = tree.apply(adata)
    tree.to_gatingml(tmp_path / "gates.xml")
    again = GatingTree.from_gatingml(tmp_path / "gates.xml").apply(adata)
    assert before.mean().between(0.01, 0.99).all()
    pd.testing.assert_frame_equal(again[before.columns], before)


def test_flowkit_finds_the_same_cells_in_what_is_written(tmp_path):
    adata = simulate_cohort(n_samples=1, n_cells=3000, random_state=1)
    tree = GatingTree.from_adata(adata, sample="patient1_d0")
    tree.to_gatingml(tmp_path / "gates.xml", channels=adata)
    channels = adata.var["channel"].to_dict()
    matrix = Compensation().fit_transform(adata)
    events = pd.DataFrame(matrix.X.astype("f8"), columns=[channels[m] for m in adata.var_names])
    sample = flowkit.Sample(events, sample_id="s")
    strategy = flowkit.parse_gating_xml(str(tmp_path / "gates.xml"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # The values are compensated already, and the sample has no matrix of its own.
        report = strategy.gate_sample(sample)
    for gate in ("syto", "cd19", "blast_cd45_cd10"):
        theirs = report.get_gate_membership(gate)
        assert np.array_equal(theirs, adata.obsm["gates"][gate].to_numpy()), gate


def test_a_gate_on_a_marker_that_the_data_lack_is_not_written(tmp_path):
    adata = simulate_cohort(n_samples=1, n_cells=500)
    tree = GatingTree.from_adata(adata, sample="patient1_d0")
    other = adata[:, adata.var_names != "CD19"]
    with pytest.raises(MarkerMismatchError, match="'CD19', which the data of channels= lack"):
        tree.to_gatingml(tmp_path / "gates.xml", channels=other)
    assert not (tmp_path / "gates.xml").exists()


def test_compensated_gates_compensate_raw_values_themselves(tmp_path):
    adata = simulate_cohort(n_samples=1, n_cells=500)
    tree = GatingTree.from_adata(adata, sample="patient1_d0")
    tree.to_gatingml(tmp_path / "gates.xml", channels=adata)
    again = GatingTree.from_gatingml(tmp_path / "gates.xml")
    steps = (Compensation(), LogicleTransform(W=0.4), LinearTransform())
    data = adata
    expected = adata.obsm["gates"][list(tree.gates)]
    pd.testing.assert_frame_equal(again.apply(adata)[list(tree.gates)], expected)
    for step in steps:
        data = step.fit_transform(data)
    pd.testing.assert_frame_equal(again.apply(data)[list(tree.gates)], expected)
    del adata.uns["fcs"]
    with pytest.raises(FcmError, match="Compensation first"):
        again.apply(adata)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no xml",
        b"<?xml version='1.0'?><a/>",
        b"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY x SYSTEM 'file:///etc/passwd'>]><a>&x;</a>",
        "<?xml version='1.0' encoding='utf-16'?><!DOCTYPE a><a/>".encode("utf-16"),
        # In these, a guard that looks for the letters of DOCTYPE or "<" finds nothing.
        b"<?xml version='1.0' encoding='utf-7'?>" + "<!DOCTYPE a><a/>".encode("utf-7"),
        b"<?xml version='1.0' encoding='utf-7'?>+ADwAIQ-DOCTYPE a+AD4APA-a/+AD4-",
        "<?xml version='1.0' encoding='cp037'?><!DOCTYPE a><a/>".encode("cp037"),
    ],
)
@pytest.mark.parametrize("read", [GatingTree.from_gatingml, GatingTree.from_flowjo])
def test_files_that_are_no_gates_are_refused(tmp_path, content, read):
    path = tmp_path / "file.xml"
    path.write_bytes(content)
    with pytest.raises(InvalidInputError, match=r"file\.xml"):
        read(path)
    with pytest.raises(InvalidInputError, match=r"absent\.xml"):
        read(tmp_path / "absent.xml")


@pytest.mark.parametrize(
    "make",
    [
        lambda: RectangleGate("g", ("A",), (1.0,), (0.0,)),
        lambda: RectangleGate("g", ("A", "A"), (0, 0), (1, 1)),
        lambda: RectangleGate("g", ("A", "B"), (0,), (1,)),
        lambda: RectangleGate("g", "AB", (0, 0), (1, 1)),
        lambda: RectangleGate("g", ("A",), (0,), (1,), "", ("nothing",)),
        lambda: EllipsoidGate("g", ("A", "B"), (0, 0), [[1, 2], [2, 1]]),
        lambda: EllipsoidGate("g", ("A", "B"), (0, np.nan), [[1, 0], [0, 1]]),
        lambda: EllipsoidGate("g", ("A",), (0,), [[1]]),
        lambda: BooleanGate("g", "and", ("a", "b"), "", ("c",)),
    ],
)
def test_shapes_that_cannot_be_are_refused(make):
    with pytest.raises(InvalidInputError, match=r"'g'|'nothing'"):
        make()


def test_transformed_cytometry_can_be_written_for_flowjo(tmp_path):
    data = ArcsinhTransform(cofactor=5.0, markers=["A", "B"]).fit_transform(
        AnnData(np.float32([[10, 20], [30, 5]]), var=pd.DataFrame(index=["A", "B"]))
    )
    gate = PolygonGate(
        "g",
        "A",
        "B",
        [[0, 0], [2, 0], [2, 3], [0, 3]],
        transform_x=str(data.var["transform"].iloc[0]),
        transform_y=str(data.var["transform"].iloc[1]),
    )
    GatingTree([gate]).to_gatingml(tmp_path / "g.xml")
    again = GatingTree.from_gatingml(tmp_path / "g.xml")
    assert again.apply(data)["g"].tolist() == gate.contains(data.X).tolist() == [True, False]
    limits = FlowJoBiex().transform([25.0, 35.0])
    biex = RectangleGate("b", ("A",), limits[:1], limits[1:], "", (str(FlowJoBiex()),))
    with pytest.warns(UserWarning, match=r"'b' were drawn on the closest.*channels=adata"):
        GatingTree([biex]).to_gatingml(tmp_path / "b.xml")
    assert GatingTree.from_gatingml(tmp_path / "b.xml").apply(data)["b"].tolist() == [False, True]
    round_one = EllipsoidGate(
        "e", ("A", "B"), (100, 100), np.eye(2), transforms=(str(FlowJoBiex()),) * 2
    )
    with pytest.raises(InvalidInputError, match="'e' is an ellipsoid"):
        GatingTree([round_one]).to_gatingml(tmp_path / "b.xml")


def test_gates_of_any_name_come_back_from_gatingml(tmp_path):
    rng = np.random.default_rng(0)
    adata = AnnData(rng.random((500, 2)), var=pd.DataFrame(index=["a", "b"]))
    outline = np.array([[0.1, 0.1], [0.9, 0.1], [0.5, 0.9]])
    names = ["CD4 T", "CD4_T", "CD4_T_", "7-AAD−", "CD3+ | CD19−", "γδ T", "a <b> & 'c'", "x"]
    gates = [
        PolygonGate(name, "a", "b", outline + 0.02 * i, names[i - 1] if i % 3 else "")
        for i, name in enumerate(names)
    ]
    both = BooleanGate("no CD4 T", "and", ("CD4 T", "γδ T"), complements=("CD4 T",))
    tree = GatingTree([*gates, both])
    path = tmp_path / "gates.xml"
    tree.to_gatingml(path)
    again = GatingTree.from_gatingml(path)
    assert {g.name: g.parent for g in again} == {g.name: g.parent for g in tree}
    found = again.apply(adata)
    pd.testing.assert_frame_equal(found[list(tree.gates)], tree.apply(adata))
    assert GatingTree.from_gatingml(path, gates=["CD4 T"]).gates.keys() == {"CD4 T"}
    # Others see ids, which are valid XML ids and unlike each other.
    ids = [name for name, _ in flowkit.parse_gating_xml(str(path)).get_gate_ids()]
    assert len(set(ids)) == len(ids) == len(names) + 1
    assert {"CD4_T", "CD4_T_", "x"} <= set(ids)
