from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcm_estimators.exceptions import (
    FcmError,
    FcsError,
    InvalidInputError,
    MissingKeyError,
    ProcessingStateError,
)
from fcm_estimators.io import read_fcs, write_fcs
from fcm_estimators.io.record import pack_fcs_record
from fcm_estimators.labels import (
    gates_from_csv,
    gates_from_exports,
    labels_from_channel,
    labels_from_gates,
)
from tests.helpers import data_home


def make(values: np.ndarray, samples: list[str] | None = None) -> ad.AnnData:
    """Raw data as read_fcs gives them; `samples` names the sample of every cell."""
    values = np.asarray(values, dtype="f4")
    names = ["a"] * len(values) if samples is None else samples
    event = pd.Series(names).groupby(names).cumcount().to_numpy(dtype=np.int64)
    channels = [f"FL{i + 1}-A" for i in range(values.shape[1])]
    categories = list(dict.fromkeys(names))
    adata = ad.AnnData(
        values,
        obs=pd.DataFrame(
            {"sample": pd.Categorical(names, categories=categories), "event": event},
            index=[f"{s}:{e}" for s, e in zip(names, event, strict=True)],
        ),
        var=pd.DataFrame(
            {"channel": channels, "marker": "", "kind": "fluorescence", "range": 1024.0,
             "compensated": False, "transform": "none"},
            index=channels,
        ),
    )  # fmt: skip
    counts = [names.count(name) for name in categories]
    adata.uns["fcs"] = pack_fcs_record(categories, [{}] * len(counts), counts, [None] * len(counts))
    return adata


def table(path: Path, **columns: list[object]) -> Path:
    pd.DataFrame(columns).to_csv(path, index=False)
    return path


def listed(labels: pd.Series) -> list[str | None]:
    return [None if pd.isna(label) else label for label in labels]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def adata(rng) -> ad.AnnData:
    return make(rng.normal(size=(4, 2)))


# Tables


def test_row_i_of_a_table_is_event_i_in_any_order_of_cells(tmp_path, adata):
    path = table(tmp_path / "g.csv", index=[0, 1, 2, 3], T=[1, 0, 0, 1], B=[0, 1, 0, 0])
    shuffled = adata[[2, 0, 3]].copy()
    gates_from_csv(shuffled, path)
    gates = shuffled.obsm["gates"]
    assert gates.index.equals(shuffled.obs_names)
    assert gates.dtypes.tolist() == [bool, bool]
    assert gates.to_dict("list") == {"T": [False, True, True], "B": [False, False, False]}


def test_an_event_column_says_which_event_a_row_is(tmp_path, adata):
    path = table(tmp_path / "g.csv", T=[1, 0, 0, 1, 0], event=[3, 2, 1, 0, 9])
    gates_from_csv(adata, path, event_column="event")
    assert adata.obsm["gates"]["T"].tolist() == [True, False, False, True]


def test_chosen_gates_come_in_the_chosen_order_under_the_chosen_key(tmp_path, adata):
    path = table(tmp_path / "g.csv", T=[1, 0, 0, 1], cells=[5, 6, 7, 9], B=[0, 1, 0, 0])
    gates_from_csv(adata, path, gates=["B", "T"], key_added="expert")
    assert adata.obsm["expert"].columns.tolist() == ["B", "T"]
    assert "gates" not in adata.obsm


def test_a_gate_that_a_sample_lacks_is_unknown_not_negative(tmp_path, rng):
    adata = make(rng.normal(size=(5, 1)), ["a", "b", "a", "b", "c"])
    paths = {
        "a": table(tmp_path / "a.csv", T=[1, 0]),
        "b": table(tmp_path / "b.csv", T=[0, 1], B=[True, False]),
    }
    gates_from_csv(adata, paths)
    gates = adata.obsm["gates"]
    assert gates["T"].astype(object).where(gates["T"].notna(), None).tolist() == [
        True, False, False, True, None,
    ]  # fmt: skip
    assert gates["B"].isna().tolist() == [True, False, True, False, True]
    labels_from_gates(adata, ["T", "B"], overlap="first")
    assert listed(adata.obs["cell_type"]) == ["T", "B", None, "T", None]


# anndata announces new defaults of its zarr format.
@pytest.mark.filterwarnings("ignore:Writing zarr v2 data will no longer:UserWarning")
@pytest.mark.parametrize("form", ["h5ad", "zarr"])
def test_gates_and_labels_survive_being_saved(tmp_path, rng, form):
    adata = make(rng.normal(size=(3, 1)), ["a", "a", "b"])
    gates_from_csv(adata, {"a": table(tmp_path / "a.csv", T=[1, 0], known=[1, 1])})
    labels_from_gates(adata, ["T"])
    getattr(adata, f"write_{form}")(tmp_path / f"saved.{form}")
    back = getattr(ad, f"read_{form}")(tmp_path / f"saved.{form}")
    pd.testing.assert_frame_equal(back.obsm["gates"], adata.obsm["gates"])
    assert listed(back.obs["cell_type"]) == listed(adata.obs["cell_type"])
    labels_from_gates(back, ["T"], key_added="again")
    assert listed(back.obs["again"]) == listed(adata.obs["cell_type"])


@pytest.mark.parametrize(
    ("columns", "options", "error", "message"),
    [
        ({"T": [1, 0, 1]}, {}, InvalidInputError, r"g\.csv has 3 rows, the FCS file .* 4 events"),
        ({"T": [1, 0, 2, 5]}, {}, InvalidInputError, "column 'T' holds '2', '5'"),
        ({"T": list("xyzx")}, {}, InvalidInputError, "column 'T' holds 'x', 'y', 'z'"),
        ({"CD4/CD8": [1, 0, 1, 0]}, {}, InvalidInputError, "must not contain '/': CD4/CD8"),
        ({"index": [0, 1, 2, 3]}, {}, InvalidInputError, "No gate was found"),
        ({"T": [1, 0, 1, 0]}, {"gates": ["T", "B"]}, MissingKeyError, "No table has the .* B"),
        ({"T": [1, 0]}, {"event_column": "e"}, MissingKeyError, "no column 'e'; it has T"),
        (
            {"e": [0, 1, 1, 2], "T": [1, 0, 1, 0]},
            {"event_column": "e"},
            InvalidInputError,
            "'e' repeats 1 events",
        ),
        (
            {"e": [0, 1, 7], "T": [1, 0, 1]},
            {"event_column": "e"},
            InvalidInputError,
            "no row for 2 of the 4 events",
        ),
    ],
)
def test_a_table_that_does_not_fit_changes_nothing(
    tmp_path, adata, columns, options, error, message
):
    path = table(tmp_path / "g.csv", **columns)
    with pytest.raises(error, match=message):
        gates_from_csv(adata, path, **options)
    assert list(adata.obsm) == []


def test_a_file_that_is_no_table_or_no_file_is_named(tmp_path, adata):
    (tmp_path / "empty.csv").touch()
    for name in ("empty.csv", "none.csv"):
        with pytest.raises(InvalidInputError, match=f"Cannot read .*{name}"):
            gates_from_csv(adata, tmp_path / name)


def test_paths_must_say_which_sample_they_are_for(tmp_path, rng):
    adata = make(rng.normal(size=(2, 1)), ["a", "b"])
    path = table(tmp_path / "g.csv", T=[1])
    with pytest.raises(InvalidInputError, match="one path, but adata holds 2 samples"):
        gates_from_csv(adata, path)
    with pytest.raises(MissingKeyError, match="names the samples c"):
        gates_from_csv(adata, {"a": path, "c": path})
    with pytest.raises(InvalidInputError, match="path is empty"):
        gates_from_csv(adata, {})


def test_a_view_is_refused_rather_than_copied(tmp_path, adata):
    path = table(tmp_path / "g.csv", T=[1, 0, 0, 1])
    with pytest.raises(InvalidInputError, match="view of another AnnData"):
        gates_from_csv(adata[:2], path)


# Labels from gates


def gated(**gates: list[bool]) -> ad.AnnData:
    adata = make(np.zeros((len(next(iter(gates.values()))), 1)))
    adata.obsm["gates"] = pd.DataFrame(gates, index=adata.obs_names)
    return adata


def test_cells_in_no_gate_get_the_default_and_outside_the_parent_none():
    adata = gated(parent=[True, True, False, False], T=[True, False, True, False])
    labels_from_gates(adata, {"T": "T cell"}, within="parent")
    assert listed(adata.obs["cell_type"]) == ["T cell", "other", None, None]
    assert adata.obs["cell_type"].cat.categories.tolist() == ["T cell", "other"]
    labels_from_gates(adata, ["T"], default=None, key_added="strict")
    assert listed(adata.obs["strict"]) == ["T", None, "T", None]


def test_overlapping_gates_are_counted_or_ordered():
    adata = gated(cd19=[True, True, True, False], blast=[True, True, False, False])
    with pytest.raises(InvalidInputError, match=r"cd19 and blast \(2 cells\)"):
        labels_from_gates(adata, ["cd19", "blast"])
    assert "cell_type" not in adata.obs
    labels_from_gates(adata, ["blast", "cd19"], overlap="first")
    assert listed(adata.obs["cell_type"]) == ["blast", "blast", "cd19", "other"]
    labels_from_gates(adata, ["cd19", "blast"], overlap="first")
    assert listed(adata.obs["cell_type"]) == ["cd19", "cd19", "cd19", "other"]


def test_gates_of_one_label_may_overlap():
    adata = gated(cd4=[True, True, False], cd8=[False, True, True])
    labels_from_gates(adata, {"cd4": "T", "cd8": "T"})
    assert listed(adata.obs["cell_type"]) == ["T", "T", "T"]


def test_overlap_outside_the_parent_does_not_matter():
    adata = gated(p=[True, False], x=[True, True], y=[False, True])
    labels_from_gates(adata, ["x", "y"], within="p")
    assert listed(adata.obs["cell_type"]) == ["x", None]


@given(
    st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=30),
    st.permutations(["x", "y"]),
)
def test_the_first_gate_wins_for_every_cell(rows, order):
    parent, x, y = (list(column) for column in zip(*rows, strict=True))
    adata = gated(parent=parent, x=x, y=y)
    labels_from_gates(adata, order, within="parent", overlap="first")
    for label, inside, *member in zip(listed(adata.obs["cell_type"]), parent, x, y, strict=True):
        found = [g for g in order if member["xy".index(g)]]
        assert label == (found[0] if found else "other") if inside else label is None


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((["B"],), {}, MissingKeyError, "no gate 'B'; it has T, n"),
        ((["T"],), {"within": "B"}, MissingKeyError, "no gate 'B'"),
        ((["T"],), {"gates_key": "expert"}, MissingKeyError, "no 'expert'; it has gates, X"),
        ((["T"],), {"gates_key": "X"}, InvalidInputError, "is a ndarray; expected a DataFrame"),
        ((["n"],), {}, InvalidInputError, "is int64; expected bool"),
        ((["T"],), {"overlap": "last"}, InvalidInputError, "overlap must be"),
        (([],), {}, InvalidInputError, "gates is empty"),
        (("T",), {}, InvalidInputError, "a list or a mapping"),
    ],
)
def test_gates_that_cannot_label_change_nothing(arguments, options, error, message):
    adata = gated(T=[True, False])
    adata.obsm["gates"]["n"] = [1, 2]
    adata.obsm["X"] = np.zeros((2, 2))
    with pytest.raises(error, match=message):
        labels_from_gates(adata, *arguments, **options)
    assert "cell_type" not in adata.obs


# Labels from a channel


def test_codes_become_labels_and_the_channel_no_marker():
    adata = make([[0.5, 1], [0.1, 2], [0.2, 0], [0.3, 1]])
    labels_from_channel(adata, "FL2-A", {2: "B", 1: "T", 5: "NK"}, unlabelled=[0])
    assert listed(adata.obs["cell_type"]) == ["T", "B", None, "T"]
    assert adata.obs["cell_type"].cat.categories.tolist() == ["B", "T", "NK"]
    assert adata.var["kind"].tolist() == ["fluorescence", "other"]


def test_codes_are_read_from_the_raw_layer_of_transformed_data(tmp_path):
    adata = make([[1, 2], [1, 1]])
    adata.layers["raw"] = adata.X.copy()
    adata.X = np.arcsinh(adata.X / 5)
    adata.var["transform"] = "arcsinh(cofactor=5)"
    adata.write_h5ad(tmp_path / "a.h5ad")
    back = ad.read_h5ad(tmp_path / "a.h5ad")
    labels_from_channel(back, "FL2-A", {2: "B", 1: "T"})
    assert listed(back.obs["cell_type"]) == ["B", "T"]
    assert back.var["kind"].tolist() == ["fluorescence", "other"]
    del back.layers["raw"]
    with pytest.raises(ProcessingStateError, match="no layers"):
        labels_from_channel(back, "FL2-A", {2: "B", 1: "T"})


@pytest.mark.parametrize(
    ("channel", "names", "error", "message"),
    [
        ("FL2-A", {1: "T"}, InvalidInputError, r"without a name: 2 \(2 cells\), 3.5 \(1 cells\)"),
        ("FL9-A", {1: "T"}, MissingKeyError, "0 channels are called 'FL9-A'.* FL1-A, FL2-A"),
        ("FL2-A", {}, InvalidInputError, "names is empty"),
    ],
)
def test_codes_that_cannot_be_named_change_nothing(channel, names, error, message):
    adata = make([[0, 1], [0, 2], [0, 3.5], [0, 2]])
    with pytest.raises(error, match=message):
        labels_from_channel(adata, channel, names)
    assert "cell_type" not in adata.obs
    assert set(adata.var["kind"]) == {"fluorescence"}


# Exported gates


@given(
    values=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30),
    data=st.data(),
)
def test_exported_events_find_their_equals_one_to_one(tmp_path_factory, values, data):
    adata = make(np.array(values, dtype="f4"))
    inside = np.array(
        data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    )
    inside[0] = True
    path = tmp_path_factory.mktemp("f") / "gate.fcs"
    write_fcs(adata[inside].copy(), path)
    order = data.draw(st.permutations(range(len(values))))
    shuffled = adata[order].copy()
    gates_from_exports(shuffled, {"gate": path})
    found = shuffled.obsm["gates"]["gate"].to_numpy()
    expected = adata[inside].X
    assert found.sum() == inside.sum()
    assert np.array_equal(np.sort(shuffled.X[found], axis=0), np.sort(expected, axis=0))
    # Equal events: the first ones are taken, in the order of the data.
    for row in np.flatnonzero(found):
        twins = (shuffled.X[:row] == shuffled.X[row]).all(axis=1)
        assert found[:row][twins].all()


def test_gates_of_several_samples_are_matched_each_in_its_own(tmp_path, rng):
    adata = make(rng.normal(size=(20, 3)), ["a", "b"] * 10)
    paths = {}
    for sample in "ab":
        part = adata[adata.obs["sample"] == sample][2:5].copy()
        write_fcs(part, tmp_path / f"{sample}.fcs")
        paths[sample] = tmp_path / f"{sample}.fcs"
    gates_from_exports(adata, {"T": paths, "B": {"a": paths["a"]}})
    gates = adata.obsm["gates"]
    assert np.flatnonzero(gates["T"]).tolist() == [4, 5, 6, 7, 8, 9]
    assert gates["T"].dtype == bool
    assert gates["B"].isna().tolist() == [False, True] * 10


def test_other_order_and_number_of_channels_do_not_matter(tmp_path, rng):
    adata = make(rng.normal(size=(9, 3)))
    adata.var["marker"] = ["CD3", "", "CD19"]
    export = adata[[1, 4]][:, [2, 0]].copy()
    # Some software drops the marker names.
    export.var["marker"] = ["", "CD3"]
    write_fcs(export, tmp_path / "T.fcs")
    gates_from_exports(adata, {"T": tmp_path / "T.fcs"})
    assert np.flatnonzero(adata.obsm["gates"]["T"]).tolist() == [1, 4]


def test_time_is_compared_in_the_unit_it_was_read_in(tmp_path):
    source = make([[7, 0], [7, 50], [7, 100]])
    source.var["channel"] = source.var_names = ["FL1-A", "Time"]
    source.uns["fcs"] = pack_fcs_record(["a"], [{"TIMESTEP": "0.01"}], [3], [None])
    write_fcs(source, tmp_path / "a.fcs")
    write_fcs(source[[1]].copy(), tmp_path / "T.fcs")
    for in_seconds in (True, False):
        adata = read_fcs(tmp_path / "a.fcs", scale_time=in_seconds)
        gates_from_exports(adata, {"T": tmp_path / "T.fcs"})
        assert adata.obsm["gates"]["T"].tolist() == [False, True, False]


def test_exported_events_without_equal_are_counted_and_nothing_changes(tmp_path, rng):
    adata = make(rng.normal(size=(9, 2)))
    write_fcs(adata[:5].copy(), tmp_path / "T.fcs")
    rest = adata[3:].copy()
    with pytest.raises(InvalidInputError, match=r"3 of the 5 events in T\.fcs are not among the 6"):
        gates_from_exports(rest, {"T": tmp_path / "T.fcs"})
    rest.var["channel"] = ["X", "Y"]
    with pytest.raises(InvalidInputError, match="shares no channel"):
        gates_from_exports(rest, {"T": tmp_path / "T.fcs"})
    with pytest.raises(InvalidInputError, match="exports is empty"):
        gates_from_exports(rest, {})
    with pytest.raises(FcsError, match="No such file"):
        gates_from_exports(rest, {"T": tmp_path / "none.fcs"})
    assert list(rest.obsm) == []


def test_an_export_without_events_is_an_empty_gate(tmp_path, adata):
    content = (
        "FCS3.0    " + "".join(f"{n:>8d}" for n in (58, 199, 0, 0, 0, 0))
        + "/$BYTEORD/1,2,3,4/$DATATYPE/F/$MODE/L/$NEXTDATA/0/$PAR/1/$TOT/0/$BEGINDATA/0/$ENDDATA/0"
        + "/$P1N/FL1-A/$P1B/32/$P1E/0,0/$P1R/1024/"
    )  # fmt: skip
    (tmp_path / "T.fcs").write_text(content.ljust(300))
    gates_from_exports(adata, {"T": tmp_path / "T.fcs"})
    assert not adata.obsm["gates"]["T"].any()


def test_every_error_is_one_that_callers_can_catch_at_once(tmp_path, adata):
    for call in (
        lambda: gates_from_csv(adata, tmp_path / "none.csv"),
        lambda: labels_from_gates(adata, ["T"]),
        lambda: labels_from_channel(adata, "none", {1: "T"}),
        lambda: gates_from_exports(adata, {"T": tmp_path / "none.fcs"}),
    ):
        with pytest.raises(FcmError):
            call()


# Public data


@pytest.mark.real_data
def test_the_expert_gates_of_the_leukaemia_sample_have_their_published_sizes(tmp_path):
    folder = data_home("all494")
    adata = read_fcs(folder / "494.fcs")
    gates_from_csv(adata, folder / "494_labels.csv")
    gates = adata.obsm["gates"]
    assert gates.sum().to_dict() == {
        "allevents": 83_411, "syto": 80_447, "singlets": 78_409, "intact": 77_546,
        "erythropoiesis": 6_932, "cd19": 38_383, "cd20": 4_122, "blast": 34_174,
    }  # fmt: skip
    labels_from_gates(adata, ["blast"], within="intact")
    counts = adata.obs["cell_type"].value_counts(dropna=False)
    assert (counts["blast"], counts.sum() - counts[["blast", "other"]].sum()) == (34_174, 5_865)
    write_fcs(adata[gates["blast"].to_numpy()].copy(), tmp_path / "blast.fcs")
    gates_from_exports(adata, {"blast": tmp_path / "blast.fcs"}, key_added="exported")
    assert adata.obsm["exported"]["blast"].equals(gates["blast"])
