"""A laboratory's own workspace: what is in it is read as FlowKit reads it, or refused by name."""

from __future__ import annotations

import warnings

import anndata as ad
import flowkit
import numpy as np
import pandas as pd
import pytest

from fcm_estimators import read_fcs
from fcm_estimators.cohort import read_file
from fcm_estimators.exceptions import InvalidInputError, MissingKeyError, ProcessingStateError
from fcm_estimators.gating import BooleanGate, GatingTree, PolygonGate, RectangleGate
from fcm_estimators.gating.records import tree_of_records, tree_records
from fcm_estimators.labels import LabelSource
from fcm_estimators.preprocessing import Compensation, LogicleTransform
from tests.fcs_files import assembled, described, text_segment
from tests.workspaces import (
    SPILL,
    axes,
    boolean,
    box,
    ellipse,
    matrix,
    outline,
    population,
    sample,
    write_file,
    write_gatingml,
    write_workspace,
)

EDITED = ((1.0, 0.4), (0.15, 1.0))
BIG = population("big", box(**{"FSC-A": (100000, None)}))
STAINED = population("stained", box(**{"Comp-PE-A": (1000, 8000)}))


@pytest.fixture
def fcs(tmp_path):
    return write_file(tmp_path / "m.fcs", FIL="acquired 7.fcs")


def flowkit_members(fcs, path, name="m.fcs"):
    """Membership by gate, as FlowKit finds it in a workspace or a Gating-ML file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if path.suffix == ".wsp":
            strategy = flowkit.parse_wsp(str(path))["samples"][name]["gating_strategy"]
        else:
            strategy = flowkit.parse_gating_xml(str(path))
        report = strategy.gate_sample(flowkit.Sample(str(fcs)))
        return {n: report.get_gate_membership(n, p) for n, p in strategy.get_gate_ids()}


def compensated(fcs, values):
    raw = read_fcs(fcs).X[:, 2:4].astype(float)
    return raw @ np.linalg.inv(np.array(values))


def everything(scales=None):
    """Gates of all kinds on one sample."""
    foci = [[90, 80], [180, 190]]
    edge = [[80, 70], [190, 200], [150, 120], [120, 150]]
    return sample(
        "m.fcs",
        population(
            "big",
            box(**{"FSC-A": (60000, None)}),
            population(
                "T",
                outline(
                    "Comp-FITC-A", "Comp-PE-A", [[-80, 50], [9000, -20], [30000, 4000], [300, 9000]]
                ),
                population("round", ellipse("Comp-FITC-A", "Comp-PE-A", foci, edge)),
            ),
            population(
                "mixed", outline("FSC-A", "Comp-PE-A", [[1e5, 0], [2e5, 500], [1.5e5, 9e3]])
            ),
            boolean("Not", "not T", "big/T"),
        ),
        population("late", box(Time=(15.05, 45.5))),
        population(
            "out", outline("FSC-A", "SSC-A", [[5e4, 5e4], [2e5, 5e4], [1e5, 2e5]], inside=0)
        ),
        boolean("And", "both", "big/T", "late"),
        boolean("Or", "any", "big/T", "late"),
        scales=scales,
    )


@pytest.mark.parametrize("kind", ["logicle", "biex", "log"])
def test_a_workspace_is_gated_as_flowkit_gates_it(tmp_path, fcs, kind):
    scales = {c: kind for d in ("FITC-A", "PE-A") for c in (d, f"Comp-{d}")}
    wsp = write_workspace(tmp_path / "lab.wsp", everything(scales))
    theirs = flowkit_members(fcs, wsp)
    mine = GatingTree.from_flowjo(wsp).apply(read_fcs(fcs))
    for name, inside in theirs.items():
        np.testing.assert_array_equal(mine[name].to_numpy(), inside, err_msg=name)
    assert len(theirs) == 9
    assert all(0 < inside.sum() < len(mine) for inside in theirs.values())


def test_integers_of_a_log_amplifier_are_gated_as_flowkit_gates_them(tmp_path):
    # FlowJo draws at the values of channels, so that many events lie exactly on an edge.
    rng = np.random.default_rng(1)
    stored = rng.integers(0, 1024, size=(2000, 2)).astype("<u2")
    amplified = {"P1E": "4,1", "P2E": "4,1", "P1R": "1024", "P2R": "1024", "DATATYPE": "I"}
    text = described(["FITC-A", "PE-A"], n_events=2000, bits=16, **amplified)
    fcs = tmp_path / "m.fcs"
    fcs.write_bytes(assembled(text_segment(text), stored.tobytes()))

    def at(channel):
        return 10 ** (4 * channel / 1024)

    gates = [
        population(f"r{i}", box(**{"FITC-A": (at(100 + 8 * i), at(512 + 8 * i))}))
        for i in range(40)
    ]
    corners = [[at(100), at(100)], [at(700), at(100)], [at(700), at(900)], [at(100), at(900)]]
    gates.append(population("p", outline("FITC-A", "PE-A", corners)))
    scales = {"FITC-A": "log", "PE-A": "log"}
    wsp = write_workspace(tmp_path / "lab.wsp", sample("m.fcs", *gates, matrices=[], scales=scales))
    theirs = flowkit_members(fcs, wsp)
    mine = GatingTree.from_flowjo(wsp).apply(read_fcs(fcs))
    for name, inside in theirs.items():
        np.testing.assert_array_equal(mine[name].to_numpy(), inside, err_msg=name)


# Time and compensation


def test_time_is_gated_in_seconds_and_written_in_seconds(tmp_path, fcs):
    wsp = write_workspace(
        tmp_path / "lab.wsp", sample("m.fcs", population("T", box(Time=(10, 30))))
    )
    tree = GatingTree.from_flowjo(wsp)
    ticks = read_fcs(fcs)
    right = (ticks[:, "Time"].X.ravel() * 0.1 >= 10) & (ticks[:, "Time"].X.ravel() * 0.1 < 30)
    assert 0 < right.sum() < len(right)
    for data in (ticks, read_fcs(fcs, scale_time=True)):
        np.testing.assert_array_equal(tree.apply(data)["T"], right)
    in_ticks = GatingTree([RectangleGate("T", ("Time",), (100,), (300,))])
    for written in (tree, in_ticks):
        written.to_gatingml(tmp_path / "g.xml", channels=ticks)
        np.testing.assert_array_equal(flowkit_members(fcs, tmp_path / "g.xml")["T"], right)
        again = GatingTree.from_gatingml(tmp_path / "g.xml")
        np.testing.assert_array_equal(again.apply(ticks)["T"], right)
    with pytest.raises(InvalidInputError, match=r"'T' is on Time.*channels=adata"):
        in_ticks.to_gatingml(tmp_path / "g.xml")
    del ticks.uns["fcs"]
    with pytest.raises(ProcessingStateError, match=r"\$TIMESTEP is unknown"):
        tree.apply(ticks)


def test_an_edited_matrix_is_used_kept_and_written(tmp_path, fcs):
    wsp = write_workspace(tmp_path / "lab.wsp", sample("m.fcs", STAINED, matrices=[matrix(EDITED)]))
    tree = GatingTree.from_flowjo(wsp)
    pe = compensated(fcs, EDITED)[:, 1]
    right = (pe >= 1000) & (pe < 8000)
    raw = read_fcs(fcs)
    own = Compensation().fit_transform(raw)
    assert right.sum() != ((own[:, "PE-A"].X >= 1000) & (own[:, "PE-A"].X < 8000)).sum()
    edited = Compensation(spillover=tree.spillover).fit_transform(raw)
    for data in (raw, own, edited, LogicleTransform(T=262144).fit_transform(edited)):
        np.testing.assert_array_equal(tree.apply(data)["stained"], right)
    del own.layers["raw"], edited.layers["raw"]
    np.testing.assert_array_equal(tree.apply(edited)["stained"], right)
    with pytest.raises(ProcessingStateError, match="another matrix"):
        tree.apply(own)
    del edited.uns["compensation"]
    with pytest.warns(UserWarning, match="not recorded with which matrix"):
        tree.apply(edited)
    for again in (tree_of_records(tree_records(tree)), tree.renamed({"stained": "x"})):
        pd.testing.assert_frame_equal(again.spillover, tree.spillover)
    tree.to_gatingml(tmp_path / "g.xml", channels=raw)
    np.testing.assert_array_equal(flowkit_members(fcs, tmp_path / "g.xml")["stained"], right)
    again = GatingTree.from_gatingml(tmp_path / "g.xml")
    np.testing.assert_array_equal(again.apply(raw)["stained"], right)


def test_polygons_in_uns_keep_their_matrix_and_the_state_of_each_axis(tmp_path, fcs):
    square = [[1000, 500], [9000, 500], [9000, 9000], [1000, 9000]]
    mixed = population("mixed", outline("FITC-A", "Comp-PE-A", square))
    wsp = write_workspace(tmp_path / "lab.wsp", sample("m.fcs", mixed, matrices=[matrix(EDITED)]))
    raw, tree = read_fcs(fcs), GatingTree.from_flowjo(wsp)
    assert tree["mixed"].compensation == ("none", "spillover")
    raw.uns["gates"] = GatingTree.to_uns({"other": GatingTree([]), "m": tree})
    raw.write_h5ad(tmp_path / "m.h5ad")
    again = GatingTree.from_adata(ad.read_h5ad(tmp_path / "m.h5ad"), sample="m")
    assert again["mixed"].compensation == ("none", "spillover")
    pd.testing.assert_frame_equal(again.apply(raw), tree.apply(raw))
    np.testing.assert_array_equal(again.spillover, EDITED)


def test_each_axis_is_gated_on_the_values_it_was_drawn_on(tmp_path, fcs):
    limits = (1000, 8000)
    gates = [population(c, box(**{c: limits})) for c in ("PE-A", "Comp-PE-A")]
    wsp = write_workspace(tmp_path / "lab.wsp", sample("m.fcs", *gates))
    xml = write_gatingml(
        tmp_path / "mix.xml",
        "".join(
            f'<gating:RectangleGate gating:id="{name}"><gating:dimension '
            f'gating:compensation-ref="{state}" gating:min="1000" gating:max="8000">'
            '<data-type:fcs-dimension data-type:name="PE-A"/></gating:dimension>'
            "</gating:RectangleGate>"
            for name, state in (("PE-A", "uncompensated"), ("Comp-PE-A", "FCS"))
        ),
    )
    raw = read_fcs(fcs)
    values = {
        "PE-A": raw[:, "PE-A"].X.ravel(),
        "Comp-PE-A": compensated(fcs, ((1, 0.2), (0.05, 1)))[:, 1],
    }
    for tree in (GatingTree.from_flowjo(wsp), GatingTree.from_gatingml(xml)):
        for data in (raw, Compensation().fit_transform(raw)):
            found = tree.apply(data)
            for name, of_axis in values.items():
                np.testing.assert_array_equal(found[name], (of_axis >= 1000) & (of_axis < 8000))
        tree.to_gatingml(tmp_path / "again.xml", channels=raw)
        theirs = flowkit_members(fcs, tmp_path / "again.xml")
        assert {k: v.sum() for k, v in theirs.items()} == tree.apply(raw).sum().to_dict()
    lost = Compensation().fit_transform(raw)
    del lost.layers["raw"]
    with pytest.raises(ProcessingStateError, match="'PE-A' is compensated"):
        GatingTree.from_flowjo(wsp).apply(lost)


def test_two_matrices_are_told_apart_or_refused(tmp_path, fcs):
    two = [matrix(), matrix(EDITED, name="mine", prefix="Mine-")]
    gates = [population(p, box(**{f"{p}-PE-A": (1000, 8000)})) for p in ("Comp", "Mine")]
    wsp = write_workspace(tmp_path / "lab.wsp", sample("m.fcs", *gates, BIG, matrices=two))
    with pytest.raises(InvalidInputError, match=r"matrices.*differ"):
        GatingTree.from_flowjo(wsp)
    pe = compensated(fcs, EDITED)[:, 1]
    mine = GatingTree.from_flowjo(wsp, gates=["Mine"]).apply(read_fcs(fcs))["Mine"]
    np.testing.assert_array_equal(mine, (pe >= 1000) & (pe < 8000))
    same = [matrix(), matrix(EDITED, name="mine")]
    wsp = write_workspace(tmp_path / "same.wsp", sample("m.fcs", gates[0], BIG, matrices=same))
    with pytest.raises(InvalidInputError, match=r"'Comp'.*any of the matrices"):
        GatingTree.from_flowjo(wsp)
    assert list(GatingTree.from_flowjo(wsp, gates=["big"]).gates) == ["big"]


# Names


def test_no_gate_is_lost_because_another_has_its_name(tmp_path, fcs):
    def gate(name, low, *below):
        return population(name, box(**{"FSC-A": (low, None)}), *below)

    names = ["A", "A", "CD4/CD8", "CD4|CD8", "p > x", "."]
    gates = [gate(name, 20000 * (i + 1)) for i, name in enumerate(names)]
    gates += [gate("p", 0, gate("x", 150000)), gate("q", 0, gate("x", 170000))]
    wsp = write_workspace(tmp_path / "lab.wsp", sample("m.fcs", *gates))
    with pytest.warns(UserWarning, match=r"'A \(2\)' \('A'\).*'CD4\|CD8 \(2\)'"):
        found = GatingTree.from_flowjo(wsp).apply(read_fcs(fcs))
    forward = read_fcs(fcs)[:, "FSC-A"].X.ravel()
    lows = [20000 * (i + 1) for i in range(len(names))] + [0, 0, 150000, 170000]
    assert sorted(found.sum()) == sorted(int((forward >= low).sum()) for low in lows)
    assert found["CD4|CD8"].sum() == (forward >= 60000).sum()


def test_children_of_siblings_of_one_name_say_whose_they_are(tmp_path, fcs):
    def gate(name, low, *below):
        return population(name, box(**{"FSC-A": (low, None)}), *below)

    twins = [gate("A", 10000, gate("x", 50000)), gate("A", 60000, gate("x", 150000))]
    gates = [*twins, gate("A (2)", 1), gate("q", 1, *twins)]
    wsp = write_workspace(tmp_path / "lab.wsp", sample("m.fcs", *gates))
    with pytest.warns(UserWarning, match=r"'A \(3\)' \('A'\), 'q > A \(2\)' \('A'\)"):
        tree = GatingTree.from_flowjo(wsp)
    parents = {"A > x": "A", "A (3) > x": "A (3)", "q > A > x": "q > A"}
    parents["q > A (2) > x"] = "q > A (2)"
    assert {name: tree[name].parent for name in tree.gates if name.endswith("x")} == parents
    found = tree.apply(read_fcs(fcs)).sum()
    for first, second in (("A", "A (3)"), ("q > A", "q > A (2)")):
        assert found[first] > found[f"{first} > x"] > found[f"{second} > x"]


def test_boolean_gates_find_gates_whose_names_have_slashes(tmp_path, fcs):
    inner = population("a/b", box(**{"SSC-A": (50000, None)}))
    wsp = write_workspace(
        tmp_path / "lab.wsp",
        sample(
            "m.fcs",
            population("CD4/CD8", box(**{"FSC-A": (100000, None)}), inner),
            boolean("And", "both", "CD4/CD8", "CD4/CD8/a/b"),
            boolean("Or", "one", "CD4/CD8/a/b"),
            boolean("And", "lost", "CD4", "CD4/CD8"),
        ),
    )
    found = GatingTree.from_flowjo(wsp, gates=["both", "one"]).apply(read_fcs(fcs))
    for name in ("both", "one"):
        np.testing.assert_array_equal(found[name], found["a|b"])
    with pytest.raises(InvalidInputError, match="Gate 'lost': it refers to 'CD4'"):
        GatingTree.from_flowjo(wsp)


def test_samples_of_one_name_are_never_confused(tmp_path):
    def twin(number, low):
        gate = population("G", box(**{"FSC-A": (low, None)}))
        return sample("twin.fcs", gate, number=number, uri=f"file:/d/plate{number}/twin.fcs")

    wsp = write_workspace(tmp_path / "lab.wsp", twin(1, 1.0), twin(2, 2.0))
    with pytest.raises(MissingKeyError, match=r"2 samples 'twin.fcs'.*plate1/twin.fcs"):
        GatingTree.from_flowjo(wsp, sample="twin.fcs")
    tree = GatingTree.from_flowjo(wsp, sample="plate2/twin.fcs")
    assert tree["G"].low == 2.0 / 262144
    adata = read_file(write_file(tmp_path / "twin.fcs"))
    with pytest.raises(MissingKeyError, match="twin"):
        LabelSource(gates=str(wsp))(adata)


@pytest.mark.parametrize(
    ("file", "name", "uri", "fil"),
    [
        ("m.fcs", "M.FCS", None, None),
        ("m 1.fcs", "m 1", None, None),
        ("m.lmd", "m.LMD", None, None),
        ("m.001", "m.001", None, None),
        ("m.fcs", "m.exported", None, None),
        ("m 5.fcs", "PBMC donor five", "file:/d/a/m%205.fcs", None),
        ("renamed.fcs", "acquired 7.fcs", None, "Acquired 7.FCS"),
        ("renamed.fcs", "donor", "file:/gone.fcs", "d:\\run\\acquired 7.fcs"),
    ],
)
def test_samples_are_found_by_any_of_their_names(tmp_path, file, name, uri, fil):
    adata = read_file(write_file(tmp_path / file, FIL="acquired 7.fcs"))
    other = sample("m_5.fcs", population("other", box(**{"SSC-A": (1, None)})), number=2)
    wsp = write_workspace(tmp_path / "lab.wsp", sample(name, BIG, uri=uri, fil=fil), other)
    LabelSource(gates=str(wsp), classes={"big": "B"})(adata)
    assert list(adata.obsm["gates"]) == ["big"]
    lost = write_workspace(tmp_path / "lost.wsp", sample("a.fcs", BIG, fil="was.fcs"), other)
    with pytest.raises(MissingKeyError, match=r"'a.fcs' \(\$FIL was.fcs\), 'm_5.fcs'"):
        LabelSource(gates=str(lost))(adata)


def test_a_slash_in_a_channel_is_flowjo_s_underscore(tmp_path):
    names = ["FSC-A", "SSC-A", "FITC/GFP-A", "PE-A", "Time"]
    raw = read_fcs(write_file(tmp_path / "m.fcs", names=names))
    text = sample("m.fcs", population("G", box(**{"Comp-FITC-A": (2000, None)})))
    wsp = write_workspace(tmp_path / "lab.wsp", text.replace("FITC-A", "FITC_GFP-A"))
    values = compensated(tmp_path / "m.fcs", ((1, 0.2), (0.05, 1)))[:, 0]
    tree = GatingTree.from_flowjo(wsp)
    np.testing.assert_array_equal(tree.apply(raw)["G"], values >= 2000)
    tree.to_gatingml(tmp_path / "g.xml", channels=raw)
    theirs = flowkit_members(tmp_path / "m.fcs", tmp_path / "g.xml")
    np.testing.assert_array_equal(theirs["G"], values >= 2000)


# One odd item

CURLY = f"<gating:CurlyQuad>{axes(**{'FSC-A': None, 'SSC-A': None})}</gating:CurlyQuad>"
ODD = {
    "miltenyi": (box(**{"Odd-A": (1, 2)}), {"scales": {"Odd-A": "miltenyi"}}),
    "hyperlog": (box(**{"Odd-A": (1, 2)}), {"scales": {"Odd-A": "hyperlog"}}),
    "length 4096": (box(**{"Odd-A": (1, 2)}), {"scales": {"Odd-A": "4096"}}),
    "width": (box(**{"Odd-A": (1, 2)}), {"scales": {"Odd-A": "width 0"}}),
    "CurlyQuad": (CURLY, {}),
    "WLS": (
        box(**{"Comp-PE-A": (1, 2)}),
        {"matrices": [matrix(spectral="1", weightOptAlgorithmType="WLS")]},
    ),
    "unmixes 3 signals in 2": (
        box(**{"Comp-AF-A": (1, 2)}),
        {
            "matrices": [
                matrix(((1, 0), (0, 1), (0.5, 0.5)), rows=["FITC-A", "PE-A", "AF-A"], spectral="1")
            ]
        },
    ),
    "not finite": (outline("FSC-A", "SSC-A", [[1, 1], [np.inf, 1], [1, 3]]), {}),
    "lower limits": (box(**{"FSC-A": (2, 1)}), {}),
}


@pytest.mark.parametrize("reason", ODD)
def test_one_odd_gate_locks_nobody_out(tmp_path, fcs, reason):
    shape, more = ODD[reason]
    below = population("below", box(**{"FSC-A": (1, None)}))
    odd = sample("m.fcs", BIG, population("odd", shape, below), **more)
    plain = sample("n.fcs", BIG, number=2)
    empty = '<Sample><SampleNode name="empty.fcs" sampleID="3"/></Sample>'
    wsp = write_workspace(tmp_path / "lab.wsp", odd, plain, empty, groups=False)
    right = (read_fcs(fcs)[:, "FSC-A"].X >= 100000).ravel()
    for arguments in ({"gates": ["big"]}, {"sample": "n.fcs"}):
        tree = GatingTree.from_flowjo(wsp, **{"sample": "m.fcs", **arguments})
        np.testing.assert_array_equal(tree.apply(read_fcs(fcs))["big"], right)
    assert len(GatingTree.from_flowjo(wsp, sample="empty.fcs")) == 0
    for asked in (None, ["below"]):
        with pytest.raises(InvalidInputError, match=f"Gate 'odd': .*{reason}.*'below': it needs"):
            GatingTree.from_flowjo(wsp, sample="m.fcs", gates=asked)
    with pytest.warns(UserWarning, match=f"2 of 3 gates.*'odd'.*{reason}"):
        tree = GatingTree.from_flowjo(wsp, sample="m.fcs", unreadable="skip")
    assert list(tree.gates) == ["big"]
    adata = read_file(fcs)
    with pytest.warns(UserWarning, match=r"Only the gates 'big' were read.*'odd'"):
        LabelSource(gates=str(wsp), classes={"big": "B"})(adata)
    assert (adata.obs["cell_type"] == "B").sum() == right.sum()


def test_an_outline_that_crosses_itself_is_read_by_the_even_odd_rule(tmp_path, fcs):
    star = [[np.cos(a), np.sin(a)] for a in np.arange(5) * 4 * np.pi / 5]
    points = 130000 + 110000 * np.array(star)
    gate = population(
        "star", outline("FSC-A", "SSC-A", points), population("sub", box(Time=(1, 50)))
    )
    wsp = write_workspace(tmp_path / "lab.wsp", sample("m.fcs", gate))
    theirs = flowkit_members(fcs, wsp)
    tree = GatingTree.from_flowjo(wsp)
    mine = tree.apply(read_fcs(fcs))
    assert isinstance(tree["star"], BooleanGate)
    for name in ("star", "sub"):
        np.testing.assert_array_equal(mine[name], theirs[name])
    assert theirs["star"].sum() > 20


def test_ratios_and_bounds_of_gatingml_are_those_of_the_standard(tmp_path, fcs):
    def dimension(low, channel="", transform="", made=""):
        inner = f'<data-type:fcs-dimension data-type:name="{channel}"/>' if channel else made
        reference = f'gating:transformation-ref="{transform}"' if transform else ""
        return (
            f'<gating:dimension gating:compensation-ref="uncompensated" {reference} '
            f'gating:min="{low}">{inner}</gating:dimension>'
        )

    ratio = '<data-type:new-dimension data-type:transformation-ref="r"/>'
    both = (
        f'<gating:RectangleGate gating:id="ratio">{dimension(2, made=ratio)}'
        '</gating:RectangleGate><gating:RectangleGate gating:id="bound">'
        f"{dimension(-0.5, 'PE-A', 'l')}</gating:RectangleGate>"
    )
    xml = write_gatingml(
        tmp_path / "r.xml",
        '<transforms:transformation transforms:id="r"><transforms:fratio transforms:A="2" '
        'transforms:B="10" transforms:C="-5"><data-type:fcs-dimension data-type:name="FITC-A"/>'
        '<data-type:fcs-dimension data-type:name="PE-A"/></transforms:fratio>'
        '</transforms:transformation><transforms:transformation transforms:id="l" '
        'transforms:boundMin="-0.1"><transforms:flin transforms:T="1000" transforms:A="0"/>'
        f"</transforms:transformation>{both}",
    )
    raw = read_fcs(fcs)
    x, y = (raw[:, c].X.ravel().astype(float) for c in ("FITC-A", "PE-A"))
    tree = GatingTree.from_gatingml(xml)
    found = tree.apply(raw)
    np.testing.assert_array_equal(found["ratio"], 2 * (x - 10) / (y + 5) >= 2)
    assert found["bound"].all()
    tree = GatingTree([tree["ratio"]])
    tree.to_gatingml(tmp_path / "again.xml", channels=raw)
    assert (
        GatingTree.from_gatingml(tmp_path / "again.xml")["ratio"].markers == tree["ratio"].markers
    )
    renamed = raw.copy()
    renamed.var_names = [f"marker {c}" for c in raw.var_names]
    moved = tree.on_markers(renamed)
    assert "marker FITC-A / marker PE-A" in moved["ratio"].markers[0]
    np.testing.assert_array_equal(moved.apply(renamed)["ratio"], found["ratio"])


# Back to where the lab works


def quiet_file(path, n=20000):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # floats beyond the range, which gates must bear
        return read_fcs(write_file(path, n=n))


@pytest.mark.parametrize("kind", ["biex", "log", "from -100"])
def test_gates_on_flowjo_s_scales_leave_on_scales_of_gatingml(tmp_path, kind):
    raw = quiet_file(tmp_path / "m.fcs")
    scales = {c: kind for d in ("FITC-A", "PE-A") for c in (d, f"Comp-{d}")}
    wsp = write_workspace(tmp_path / "lab.wsp", everything(scales))
    tree = GatingTree.from_flowjo(wsp)
    path = tmp_path / "g.xml"
    drawn, changed = tree.on_exchange_scales(raw)
    most = changed["changed"].max()
    with pytest.warns(UserWarning, match=f"'T'.*closest ones.*At most {most} of 20000 cells"):
        tree.to_gatingml(path, channels=raw)
    written = path.read_bytes()
    assert (changed["fraction"] <= 1e-3).all()
    assert changed["inside"].drop("round").between(100, 19900).all()
    drawn.to_gatingml(path, channels=raw)
    assert path.read_bytes() == written
    before = tree.apply(raw)
    theirs = flowkit_members(tmp_path / "m.fcs", path)
    for name, inside in GatingTree.from_gatingml(path).apply(raw).items():
        assert (inside != before[name]).sum() <= changed.loc[name, "changed"] + 1
        if name in theirs:
            np.testing.assert_array_equal(theirs[name], inside)
    assert {"T", "mixed", "big"} <= set(theirs)
    # A rectangle in the place of a drawn outline moves more cells than are allowed.
    far = GatingTree([g for g in tree if g.name in ("big", "T")], spillover=tree.spillover)
    far.apply = lambda data: tree.apply(data)[["big", "mixed"]].set_axis(["big", "T"], axis=1)
    with pytest.raises(InvalidInputError, match=r"0\.1% of the cells change sides of 'T'"):
        far.on_exchange_scales(raw)


def test_cells_without_a_logarithm_leave_with_their_gate(tmp_path):
    """FlowJo shows them at the lower end of a log axis; for others they are nowhere there."""
    raw = quiet_file(tmp_path / "m.fcs", n=5000)
    open_below = population("low", box(**{"Comp-PE-A": (None, 2000)}))
    beyond = population("wide", box(**{"Comp-FITC-A": (300, 20000), "Comp-PE-A": (-50, 9000)}))
    above = population("above", box(**{"Comp-PE-A": (50, 2000)}))
    scales = {c: "log" for d in ("FITC-A", "PE-A") for c in (d, f"Comp-{d}")}
    wsp = write_workspace(
        tmp_path / "lab.wsp", sample("m.fcs", open_below, beyond, above, scales=scales)
    )
    tree = GatingTree.from_flowjo(wsp)
    right = tree.apply(raw)
    values = compensated(tmp_path / "m.fcs", SPILL)[:, 1]
    assert (right["low"].to_numpy() & (values <= 0)).sum() > 10
    with pytest.warns(UserWarning, match="At most 0 of 5000 cells"):
        tree.to_gatingml(tmp_path / "g.xml", channels=raw)
    theirs = flowkit_members(tmp_path / "m.fcs", tmp_path / "g.xml")
    for name in tree.gates:
        np.testing.assert_array_equal(theirs[name], right[name], err_msg=name)


def test_a_workspace_that_flowkit_writes_is_kept_only_if_it_comes_back_whole(tmp_path):
    raw = quiet_file(tmp_path / "m.fcs", n=500)
    scales = {c: "biex" for d in ("FITC-A", "PE-A") for c in (d, f"Comp-{d}")}
    tree = GatingTree.from_flowjo(write_workspace(tmp_path / "lab.wsp", everything(scales)))
    names = ("big", "T", "round", "late")
    drawn = GatingTree([tree[name] for name in names], spillover=tree.spillover)
    path = tmp_path / "back.wsp"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        drawn.to_flowjo(path, tmp_path / "m.fcs")
        theirs = flowkit_members(tmp_path / "m.fcs", path)
        before = drawn.apply(raw)
        for name in names:
            np.testing.assert_array_equal(theirs[name], before[name])
        path.unlink()
        with pytest.raises(InvalidInputError, match=r"'out', .* are none"):
            tree.to_flowjo(path, tmp_path / "m.fcs")
        on_raw = [RectangleGate("raw", ("PE-A",), (1000,), (8000,)), drawn["big"], drawn["T"]]
        with pytest.raises(InvalidInputError, match=r"transform|differ: 'raw'"):
            GatingTree(on_raw, spillover=tree.spillover).to_flowjo(path, tmp_path / "m.fcs")
    assert not path.exists()


def test_the_form_of_cytobank_has_names_and_populations(tmp_path, fcs):
    raw = read_fcs(fcs)
    square = [[0.2, 0.2], [0.7, 0.2], [0.7, 0.7], [0.2, 0.7]]
    asinh = "arcsinh(cofactor=150)"
    tree = GatingTree(
        [
            RectangleGate("Live cells", ("FSC-A",), (50000,), (np.inf,)),
            PolygonGate(
                "T or B", "FITC-A", "PE-A", 8 * np.array(square), "Live cells",
                asinh, asinh, "fcs",
            ),
            RectangleGate("late", ("SSC-A",), (100000,), (np.inf,)),
            BooleanGate("both", "and", ("T or B", "late")),
        ]
    )  # fmt: skip
    path = tmp_path / "cytobank.xml"
    tree.to_gatingml(path, channels=raw, cytobank=True)
    again = GatingTree.from_gatingml(path)
    found, right = again.apply(raw), tree.apply(raw)
    assert {"Live cells", "Live cells (gate)", "T or B", "late", "both"} <= set(again.gates)
    pd.testing.assert_frame_equal(found[list(tree.gates)], right)
    assert found["T or B (gate)"].sum() > right["T or B"].sum() > right["both"].sum() > 0
    theirs = flowkit_members(fcs, path)
    np.testing.assert_array_equal(theirs["GateSet_4"], right["both"])
    text = path.read_text()
    assert text.count("<fcs_file_filename") == 7
    assert "parent_id" not in text
    nots = GatingTree([*tree, BooleanGate("not", "not", ("late",))])
    with pytest.raises(InvalidInputError, match="'not' are boolean gates"):
        nots.to_gatingml(path, cytobank=True)


def test_gates_that_cytobank_tailored_are_those_of_the_file(tmp_path, fcs):
    def gate(number, low, file=""):
        return (
            f'<gating:RectangleGate gating:id="Gate_{number}"><data-type:custom_info><cytobank>'
            f"<name>big</name><gate_id>1</gate_id><fcs_file_filename>{file}</fcs_file_filename>"
            "</cytobank></data-type:custom_info><gating:dimension "
            f'gating:compensation-ref="uncompensated" gating:min="{low}"><data-type:fcs-dimension '
            'data-type:name="FSC-A"/></gating:dimension></gating:RectangleGate>'
        )

    xml = write_gatingml(tmp_path / "c.xml", gate(1, 1.0) + gate(2, 2.0, "m.fcs"))
    for sample_name, low in (("m", 2.0), ("other", 1.0)):
        assert GatingTree.from_gatingml(xml, sample=sample_name)["big"].low == low
    with pytest.warns(UserWarning, match=r"'big' are drawn differently.*'m.fcs'"):
        GatingTree.from_gatingml(xml)


# Labels


def test_the_label_of_a_cell_is_its_deepest_gate(tmp_path, fcs):
    wsp = write_workspace(
        tmp_path / "lab.wsp",
        sample(
            "m.fcs",
            population(
                "cells",
                box(**{"FSC-A": (50000, None)}),
                population("low", box(**{"SSC-A": (None, 100000)})),
                population(
                    "high",
                    box(**{"SSC-A": (100000, None)}),
                    population("top", box(**{"SSC-A": (200000, None)})),
                ),
                boolean("Or", "either", "cells/low", "cells/high"),
            ),
        ),
    )
    raw = read_file(fcs)
    forward, side = (raw[:, c].X.ravel() for c in ("FSC-A", "SSC-A"))
    expected = np.select(
        [forward < 50000, side < 100000, side < 200000], ["other", "low", "high"], "top"
    )
    LabelSource(gates=str(wsp), labels="deepest")(raw)
    np.testing.assert_array_equal(raw.obs["cell_type"].astype(str), expected)
    LabelSource(gates=str(wsp), labels="deepest", only=["high"], within="cells")(raw)
    right = np.where(expected == "top", "high", np.where(expected == "low", "other", expected))
    right = np.where(forward < 50000, "nan", right)
    found = raw.obs["cell_type"].astype(object).fillna("nan")
    np.testing.assert_array_equal(found, right)
    twice = population("again", box(**{"FSC-A": (60000, None)}))
    tied = write_workspace(
        tmp_path / "tied.wsp", sample("m.fcs", population("A", box(**{"FSC-A": (1, None)})), twice)
    )
    with pytest.raises(
        InvalidInputError, match=r"equal depth share cells.*A and again \(\d+ cells"
    ):
        LabelSource(gates=str(tied), labels="deepest")(raw)
    (tmp_path / "m.csv").write_text("A\n" + "1\n" * raw.n_obs)
    with pytest.raises(InvalidInputError, match="needs a tree"):
        LabelSource(gates=str(tmp_path), labels="deepest")(raw)


SLASHED = population(
    "CD4/CD8",
    box(**{"FSC-A": (50000, None)}),
    population("Ki/67", box(**{"SSC-A": (100000, None)})),
)


@pytest.mark.parametrize(
    ("asked", "label", "n_unlabelled"),
    [
        ({"classes": {"CD4/CD8": "x"}}, "x", 0),
        ({"classes": {"Ki/67": "x"}, "within": "CD4/CD8"}, "x", 1),
        ({"labels": "deepest", "only": ["Ki/67"]}, "Ki|67", 0),
        ({"labels": "deepest", "only": ["Ki/67"], "within": "CD4/CD8"}, "Ki|67", 1),
    ],
)
def test_gates_are_asked_for_as_they_are_called_there(tmp_path, fcs, asked, label, n_unlabelled):
    """A name with "/" once chose no gate, and every cell was "other"."""
    wsp = write_workspace(tmp_path / "lab.wsp", sample("m.fcs", SLASHED))
    raw = read_file(fcs)
    LabelSource(gates=str(wsp), **asked)(raw)
    forward, side = (raw[:, c].X.ravel() for c in ("FSC-A", "SSC-A"))
    inside = forward >= 50000
    if "CD4/CD8" not in asked.get("classes", {}):
        inside &= side >= 100000
    found = raw.obs["cell_type"]
    np.testing.assert_array_equal(found == label, inside)
    assert found.isna().sum() == n_unlabelled * (forward < 50000).sum()
    told = r'both with "/" and with "\|".*of several parents are called "parent > name"'
    with pytest.raises(InvalidInputError, match=told):
        LabelSource(gates=str(wsp), classes={"CD4/CD8": "x", "CD4|CD8": "y"})


def test_samples_of_one_table_may_have_different_gates(tmp_path):
    paths = [write_file(tmp_path / f"s{i}.fcs", seed=i) for i in (1, 2)]
    both, one = population("side", box(**{"SSC-A": (100000, None)})), BIG
    wsp = write_workspace(
        tmp_path / "lab.wsp", sample("s1.fcs", one, both), sample("s2.fcs", one, number=2)
    )
    adata = read_fcs(paths)
    LabelSource(gates=str(wsp), classes={"big": "B"})(adata)
    gates = adata.obsm["gates"]
    assert gates["big"].dtype == bool
    np.testing.assert_array_equal(gates["side"].isna(), adata.obs["sample"] == "s2")
    right = adata[:, "FSC-A"].X.ravel() >= 100000
    np.testing.assert_array_equal(adata.obs["cell_type"] == "B", right)
    adata.write_h5ad(tmp_path / "both.h5ad")
    again = ad.read_h5ad(tmp_path / "both.h5ad").obsm["gates"]
    assert again["side"].isna().sum() == gates["side"].isna().sum() > 0
