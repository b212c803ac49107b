"""Public data by checksum, and the laws of the simulated cohort."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pooch
import pytest
from flowutils.gating import points_in_polygon
from hypothesis import given, settings
from hypothesis import strategies as st

from fcm_estimators.datasets import (
    fetch_all494,
    fetch_flowjo_example,
    fetch_multicenter_cytof,
    simulate_cohort,
)
from fcm_estimators.exceptions import DataUnavailableError, InvalidInputError
from fcm_estimators.io import read_fcs, write_fcs
from fcm_estimators.io.record import get_spillover
from fcm_estimators.preprocessing import Compensation, LinearTransform, LogicleTransform

PARENTS = {
    "singlets": "syto",
    "intact": "singlets",
    "cd19": "intact",
    "blast_cd45_cd10": "cd19",
    "blast_cd20_cd10": "cd19",
    "blast_cd38_cd10": "cd19",
    "blast": "cd19",
}
PLANES = ["syto", *[name for name in PARENTS if name != "blast"]]


@pytest.fixture(scope="module")
def cohort() -> ad.AnnData:
    return simulate_cohort(n_samples=8, n_cells=3000, random_state=1)


def on_gating_scales(raw: ad.AnnData) -> ad.AnnData:
    return LinearTransform().fit_transform(
        LogicleTransform().fit_transform(Compensation().fit_transform(raw))
    )


def assert_same(a: ad.AnnData, b: ad.AnnData) -> None:
    np.testing.assert_array_equal(a.X, b.X)
    pd.testing.assert_frame_equal(a.obs, b.obs)
    pd.testing.assert_frame_equal(a.var, b.var)
    pd.testing.assert_frame_equal(a.obsm["gates"], b.obsm["gates"])
    for key in ("fcs", "gates", "simulation"):
        assert_same_entries(a.uns[key], b.uns[key])


def assert_same_entries(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for key, value in a.items():
        if isinstance(value, dict):
            assert_same_entries(value, b[key])
        else:
            np.testing.assert_array_equal(np.asarray(value), np.asarray(b[key]))


def test_equal_seeds_give_equal_cohorts_and_other_seeds_other_ones():
    first = simulate_cohort(2, 200, random_state=5)
    assert_same(first, simulate_cohort(2, 200, random_state=5))
    assert not np.array_equal(first.X, simulate_cohort(2, 200, random_state=6).X)


def test_no_seed_gives_a_different_cohort_each_time():
    first, second = (simulate_cohort(1, 50, random_state=None) for _ in range(2))
    assert not np.array_equal(first.X, second.X)


def test_numpys_global_random_state_is_neither_read_nor_moved():
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    simulate_cohort(1, 50)
    np.testing.assert_array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_a_longer_cohort_begins_with_the_samples_of_a_shorter_one():
    short = simulate_cohort(3, (100, 400), n_batches=1, random_state=2)
    long = simulate_cohort(9, (100, 400), n_batches=1, random_state=2)
    np.testing.assert_array_equal(long.X[: short.n_obs], short.X)
    assert long.obs_names[: short.n_obs].equals(short.obs_names)
    assert (long.obsm["gates"].iloc[: short.n_obs] == short.obsm["gates"]).all(axis=None)


def test_the_layout_is_that_of_read_fcs(cohort, tmp_path):
    first = cohort[cohort.obs["sample"] == "patient1_d0"].copy()
    write_fcs(first, tmp_path / "patient1_d0.fcs")
    again = read_fcs(tmp_path / "patient1_d0.fcs")
    assert again.obs_names.equals(first.obs_names)
    np.testing.assert_array_equal(again.X, first.X)
    pd.testing.assert_frame_equal(again.var, first.var, check_index_type=False)
    assert list(again.obs.columns) == ["sample", "event"]
    pd.testing.assert_frame_equal(
        get_spillover(again, "patient1_d0"), get_spillover(first, "patient1_d0")
    )


@pytest.mark.real_data
def test_the_markers_are_those_of_the_real_sample(cohort):
    real = fetch_all494()[:, cohort.var_names]
    pd.testing.assert_frame_equal(real.var, cohort.var, check_index_type=False)
    assert cohort.X.dtype == real.X.dtype


def test_values_are_finite_raw_values_of_the_instrument(cohort):
    assert cohort.X.dtype == np.float32
    assert np.isfinite(cohort.X).all()
    assert cohort.X.max() == 262143.0
    markers = cohort.var["kind"] == "fluorescence"
    assert cohort.X[:, markers].min() < 0
    assert cohort.X[:, markers].min() > -5000
    assert cohort.X[:, ~markers].min() >= 0


def test_some_granulocytes_saturate_side_scatter_and_no_blast_does(cohort):
    saturated = cohort[:, "SSC-A"].X.ravel() == 262143.0
    population = cohort.obs["population"]
    assert 0.1 < saturated[population == "granulocyte"].mean() < 0.6
    assert saturated[population == "blast"].mean() < 0.001


def test_time_never_runs_backwards_within_a_sample(cohort):
    time = pd.Series(cohort[:, "Time"].X.ravel(), index=cohort.obs_names)
    assert time.groupby(cohort.obs["sample"], observed=True).is_monotonic_increasing.all()


def test_every_population_occurs_and_blast_is_the_only_one_called_blast(cohort):
    table = pd.crosstab(cohort.obs["population"], cohort.obs["cell_type"])
    assert len(table) == 11
    assert (table.sum(axis=1) > 0).all()
    assert table.loc["blast", "other"] == 0
    assert table.drop(index="blast")["blast"].sum() == 0


@settings(max_examples=15)
@given(
    fraction=st.one_of(st.just(0.0), st.floats(1e-5, 0.95)),
    n_cells=st.integers(1, 3000),
    seed=st.integers(0, 1000),
)
def test_blasts_are_the_asked_fraction_to_the_nearest_cells(fraction, n_cells, seed):
    adata = simulate_cohort(1, n_cells, blast_fraction=fraction, random_state=seed)
    n_blasts = np.count_nonzero(adata.obs["cell_type"] == "blast")
    assert adata.n_obs == n_cells
    assert abs(n_blasts - fraction * n_cells) < 1
    assert adata.uns["simulation"]["n_blasts"].tolist() == [n_blasts]
    assert adata.uns["simulation"]["blast_fraction"].tolist() == [n_blasts / n_cells]


def test_a_fraction_below_one_cell_holds_on_average():
    adata = simulate_cohort(400, 10, blast_fraction=0.03, random_state=0)
    # 4 standard errors of the mean of 400 Bernoulli(0.3).
    assert abs(adata.uns["simulation"]["n_blasts"].mean() - 0.3) < 0.092


def test_every_sample_gets_its_own_asked_fraction():
    asked = [0.0, 0.5, 0.0, 0.1, 0.95]
    adata = simulate_cohort(5, 1000, blast_fraction=asked)
    found = (adata.obs["cell_type"] == "blast").groupby(adata.obs["sample"], observed=True).mean()
    np.testing.assert_allclose(found, asked)


def test_default_fractions_fall_over_the_visits_from_diagnosis_to_few_or_none():
    adata = simulate_cohort(120, 1, random_state=3)
    table = pd.DataFrame(
        {key: adata.uns["simulation"][key] for key in ("patient", "target_blast_fraction")}
    )
    by_patient = table.groupby("patient", sort=False)["target_blast_fraction"]
    assert by_patient.is_monotonic_decreasing.all()
    assert by_patient.first().between(0.2, 0.95).all()
    later = table["target_blast_fraction"].drop(by_patient.head(1).index)
    assert 0.1 < (later == 0).mean() < 0.7
    positive = np.log10(later[later > 0])
    assert positive.min() >= -5
    assert positive.min() < -4
    assert positive.max() > -1.5


def test_samples_belong_to_patients_visits_and_batches_as_asked():
    adata = simulate_cohort(7, 20, n_patients=3, n_batches=2)
    assert adata.uns["simulation"]["sample"].tolist() == [
        "patient1_d0",
        "patient1_d15",
        "patient1_d33",
        "patient2_d0",
        "patient2_d15",
        "patient3_d0",
        "patient3_d15",
    ]
    assert list(adata.obs["sample"].cat.categories) == adata.uns["simulation"]["sample"].tolist()
    batches = adata.obs.groupby("patient", observed=True)["batch"].unique()
    assert [b.tolist() for b in batches] == [["batch1"], ["batch2"], ["batch1"]]
    many = simulate_cohort(6, 20, n_patients=1).uns["simulation"]["timepoint"].tolist()
    assert many == ["d0", "d15", "d33", "d78", "d106", "d134"]


def test_numbers_of_cells_cover_the_asked_range():
    sizes = simulate_cohort(30, (50, 500)).obs["sample"].value_counts()
    assert sizes.between(50, 500).all()
    assert sizes.min() < 150
    assert sizes.max() > 250


def test_regenerating_marrow_has_more_haematogones_than_a_diagnosis():
    adata = simulate_cohort(40, 500, random_state=0)
    normal = adata[adata.obs["cell_type"] == "other"].obs
    share = (
        (normal["population"] == "haematogone").groupby(normal["timepoint"], observed=True).mean()
    )
    assert share["d78"] > 3 * share["d0"]


def test_without_shift_every_sample_is_measured_alike():
    record = simulate_cohort(4, 20, shift=0.0, n_patients=2, n_batches=2).uns["simulation"]
    assert not record["offset"].any()
    assert (record["scale"] == 1).all()


def test_the_spread_of_the_shifts_is_proportional_to_their_strength():
    one, two = (
        simulate_cohort(40, 1, shift=s, random_state=4).uns["simulation"] for s in (1.0, 2.0)
    )
    np.testing.assert_allclose(two["offset"], 2 * one["offset"])
    np.testing.assert_allclose(np.log(two["scale"]), 2 * np.log(one["scale"]))


def test_the_shift_moves_negative_and_positive_cells_as_recorded():
    still, moved = (
        simulate_cohort(1, 4000, shift=s, blast_fraction=0.0, random_state=8) for s in (0.0, 1.0)
    )
    record = moved.uns["simulation"]
    medians = {}
    for name, raw in (("still", still), ("moved", moved)):
        frame = on_gating_scales(raw).to_df()
        medians[name] = frame[(raw.obs["population"] == "T/NK").to_numpy()].median()
    for column, marker in enumerate(record["markers"]):
        offset, scale = record["offset"][0, column], record["scale"][0, column]
        start = medians["still"][marker]
        if marker in ("FSC-A", "FSC-W", "SSC-A"):
            expected = start * np.exp(offset)
        else:
            expected = 0.2 + scale * (start - 0.2) + offset
        assert medians["moved"][marker] == pytest.approx(expected, abs=0.02)


def test_batches_have_a_shift_in_common():
    adata = simulate_cohort(80, 1, n_batches=2, random_state=0)
    table = pd.DataFrame(adata.uns["simulation"]["offset"]).groupby(
        adata.uns["simulation"]["batch"]
    )
    between = (table.mean().loc["batch2"] - table.mean().loc["batch1"]).abs()
    error = table.std().mean() * np.sqrt(2 / 40)
    assert (between > 4 * error).sum() >= 5


def test_spillover_differs_between_samples_and_is_labelled_with_their_channels(cohort):
    first, second = (get_spillover(cohort, s) for s in ("patient1_d0", "patient1_d15"))
    markers = cohort.var[cohort.var["kind"] == "fluorescence"]
    assert list(first.columns) == list(markers["channel"])
    assert (np.diag(first) == 1).all()
    assert not np.allclose(first, second)


def test_compensation_takes_the_leak_of_one_fluorochrome_into_the_next_away():
    # CD20 (FITC) of mature B cells leaks into CD10 (PE), which they hardly have.
    raw = simulate_cohort(1, 30_000, shift=0.0, blast_fraction=0.0, random_state=0)
    mature = (raw.obs["population"] == "mature B").to_numpy()

    def slope(adata):
        x, y = adata[mature].to_df()[["CD20", "CD10"]].to_numpy(dtype=np.float64).T
        return np.polyfit(x, y, 1)[0]

    leak = get_spillover(raw, "patient1_d0").loc["FITC-A", "PE-A"]
    assert slope(raw) == pytest.approx(leak, abs=0.02)
    assert slope(Compensation().fit_transform(raw)) == pytest.approx(0.0, abs=0.02)


def test_bright_fluorochromes_spread_the_channels_they_leak_into():
    raw = simulate_cohort(1, 30_000, shift=0.0, blast_fraction=0.0, random_state=0)
    linear = Compensation().fit_transform(raw).to_df()["CD38"]
    spread = linear.groupby(raw.obs["population"], observed=True).agg(
        lambda v: v.quantile(0.25) - v.quantile(0.02)
    )
    assert spread["mature B"] > 1.5 * spread["erythroid"]


def test_every_gate_lies_inside_its_parent_and_blast_is_in_all_three_planes(cohort):
    gates = cohort.obsm["gates"]
    assert list(gates.columns) == [*PLANES, "blast"]
    assert all(pd.api.types.is_bool_dtype(gates[name]) for name in gates)
    for child, parent in PARENTS.items():
        assert not (gates[child] & ~gates[parent]).any()
    planes = gates[["blast_cd45_cd10", "blast_cd20_cd10", "blast_cd38_cd10"]]
    np.testing.assert_array_equal(gates["blast"], planes.all(axis=1))


def test_stored_polygons_give_the_stored_membership_on_preprocessed_data(cohort):
    record, gates = cohort.uns["gates"], cohort.obsm["gates"]
    prepared = on_gating_scales(cohort)
    samples = cohort.obs["sample"].to_numpy()
    disagreeing = 0
    for i, (sample, name, parent) in enumerate(
        zip(record["sample"], record["name"], record["parent"], strict=True)
    ):
        for axis in "xy":
            stored = prepared.var["transform"][record[axis][i]]
            assert record[f"transform_{axis}"][i] == stored
        vertices = record["vertices"][record["vertex_offsets"][i] : record["vertex_offsets"][i + 1]]
        assert len(vertices) >= 4
        rows = samples == sample
        points = prepared[rows, [record["x"][i], record["y"][i]]].X.astype(np.float64)
        inside = points_in_polygon(vertices, points)
        if parent:
            inside &= gates.loc[rows, parent].to_numpy()
        disagreeing += np.count_nonzero(inside != gates.loc[rows, name].to_numpy())
    assert record["name"][:7].tolist() == PLANES
    # Values on an edge may be rounded to the other side.
    assert disagreeing <= 3


def test_expert_gates_find_the_populations_that_they_are_drawn_for(cohort):
    gates, population = cohort.obsm["gates"], cohort.obs["population"]
    inside = gates.groupby(population, observed=True).mean()
    assert inside.loc["debris", "syto"] < 0.05
    assert inside.loc["doublet", "singlets"] < 0.3
    assert inside.loc["dead", "intact"] < 0.3
    assert inside.loc[["T/NK", "granulocyte", "monocyte"], "intact"].min() > 0.95
    assert inside.loc[["mature B", "haematogone"], "cd19"].min() > 0.95
    assert inside.loc[["T/NK", "granulocyte", "monocyte"], "cd19"].max() < 0.1
    assert inside.loc["blast", "blast"] > 0.8
    assert inside.drop(index="blast")["blast"].max() < 0.05


def test_blast_gates_are_drawn_also_where_a_sample_has_no_blasts():
    adata = simulate_cohort(2, 500, blast_fraction=[0.5, 0.0], shift=0.0)
    record = adata.uns["gates"]
    centres = {
        sample: record["vertices"][
            record["vertex_offsets"][i] : record["vertex_offsets"][i + 1]
        ].mean(0)
        for i, (sample, name) in enumerate(zip(record["sample"], record["name"], strict=True))
        if name == "blast_cd45_cd10"
    }
    first, second = centres.values()
    np.testing.assert_allclose(first, second, atol=0.05)
    assert not (adata.obs["cell_type"] == "blast")[500:].any()


def test_patients_blasts_differ_from_each_other_more_than_visits_do():
    adata = on_gating_scales(simulate_cohort(12, 1000, blast_fraction=0.3, shift=0.0))
    frame = adata.to_df()[["CD10", "CD45", "CD34", "CD38", "CD20"]]
    blasts = (adata.obs["cell_type"] == "blast").to_numpy()
    medians = frame[blasts].groupby(adata.obs["sample"][blasts], observed=True).median()
    patient = medians.index.str.split("_").str[0]
    within = medians.groupby(patient).std().mean().mean()
    between = medians.groupby(patient).mean().std().mean()
    assert between > 3 * within


# anndata announces a new default format; the old one is as good here.
@pytest.mark.filterwarnings("ignore:Writing zarr v2:UserWarning")
@pytest.mark.parametrize("form", ["h5ad", "zarr"])
def test_a_cohort_survives_saving(form, tmp_path):
    adata = simulate_cohort(2, 100)
    path = tmp_path / f"cohort.{form}"
    if form == "h5ad":
        adata.write_h5ad(path)
        again = ad.read_h5ad(path)
    else:
        adata.write_zarr(path)
        again = ad.read_zarr(path)
    np.testing.assert_array_equal(again.X, adata.X)
    assert again.obs_names.equals(adata.obs_names)
    for column in adata.obs:
        assert again.obs[column].astype(str).equals(adata.obs[column].astype(str))
    np.testing.assert_array_equal(again.obsm["gates"], adata.obsm["gates"])
    for key in ("fcs", "gates", "simulation"):
        assert_same_entries(again.uns[key], adata.uns[key])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_samples": 0}, "n_samples must be an integer of at least 1, got 0"),
        ({"n_samples": 2.5}, "n_samples must be an integer"),
        ({"n_cells": 0}, "n_cells must be an integer of at least 1, got 0"),
        ({"n_cells": (10, 5)}, "the lowest number must come first"),
        ({"n_cells": (1, 2, 3)}, "lowest, highest"),
        ({"n_patients": 5}, "n_patients is 5, but there are only 2 samples"),
        ({"n_batches": 2}, "n_batches is 2, but there are only 1 patients"),
        ({"blast_fraction": 1.0}, "from 0 to 0.95, got 1.0"),
        ({"blast_fraction": [0.1, np.nan]}, "from 0 to 0.95, got nan"),
        ({"blast_fraction": [0.1] * 3}, "one for each of the 2 samples"),
        ({"blast_fraction": "many"}, "blast_fraction must be numeric"),
        ({"shift": -1}, "shift must be from 0 to 3.0, got -1"),
        ({"shift": np.inf}, "shift must be from 0 to 3.0, got inf"),
        ({"shift": np.nan}, "shift must be from 0 to 3.0, got nan"),
        ({"random_state": -1}, "random_state must be an integer"),
        ({"random_state": "seed"}, "random_state must be an integer"),
    ],
)
def test_unusable_arguments_are_named(arguments, message):
    with pytest.raises(InvalidInputError, match=message):
        simulate_cohort(**{"n_samples": 2, "n_cells": 10} | arguments)


@pytest.fixture
def data_home(tmp_path, monkeypatch):
    monkeypatch.setenv("FCM_DATA_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise ConnectionError("no network in this test")

    monkeypatch.setattr(pooch, "retrieve", refuse)


def test_without_local_file_and_network_the_error_says_where_to_put_it(data_home, no_network):
    with pytest.raises(DataUnavailableError) as error:
        fetch_all494()
    message = str(error.value)
    assert str(data_home / "all494") in message
    assert "https://raw.githubusercontent.com/" in message
    assert "FCM_DATA_HOME" in message


def test_a_damaged_local_file_is_neither_used_nor_replaced(data_home, no_network):
    path = data_home / "multicenter_cytof" / "sample3.csv"
    path.parent.mkdir()
    path.write_text("1,2,3\n")
    with pytest.raises(DataUnavailableError, match=r"sample3\.csv has SHA-256 .*, expected 748f"):
        fetch_multicenter_cytof([3])
    assert path.read_text() == "1,2,3\n"


def test_a_download_with_another_checksum_is_not_kept(data_home, monkeypatch):
    def other_file(url, output_file, pooch_, **kwargs):
        with open(output_file, "w") as file:  # noqa: PTH123
            file.write("something else")

    real = pooch.retrieve
    monkeypatch.setattr(pooch, "retrieve", lambda *a, **k: real(*a, **k, downloader=other_file))
    with pytest.raises(DataUnavailableError, match="hash of downloaded file"):
        fetch_all494()
    assert not list((data_home / "all494").iterdir())


def test_without_data_home_the_users_cache_is_searched(tmp_path, monkeypatch, no_network):
    monkeypatch.delenv("FCM_DATA_HOME", raising=False)
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / name)
    with pytest.raises(DataUnavailableError, match="fcm-estimators"):
        fetch_all494()


def test_every_download_is_pinned_to_a_commit_and_a_checksum(data_home, monkeypatch):
    asked = []

    def note(url, known_hash, **kwargs):
        asked.append((url, known_hash))
        raise ConnectionError

    monkeypatch.setattr(pooch, "retrieve", note)
    for fetch in (fetch_all494, fetch_flowjo_example, fetch_multicenter_cytof):
        with pytest.raises(DataUnavailableError):
            fetch()
    assert len(asked) == 3
    for url, known_hash in asked:
        assert len(url.split("/")[5]) == 40
        assert len(known_hash.removeprefix("sha256:")) == 64


@pytest.mark.parametrize("samples", [[0], [17], [], [1, 1], ["1"], 5])
def test_unknown_cytof_samples_are_refused(samples):
    with pytest.raises(InvalidInputError, match="different numbers from 1 to 16"):
        fetch_multicenter_cytof(samples)


@pytest.mark.real_data
def test_all494_is_the_published_sample():
    adata = fetch_all494()
    assert adata.shape == (83_411, 12)
    assert list(adata.obs["sample"].cat.categories) == ["494"]
    assert (adata.obs["cell_type"] == "blast").sum() == 34_174
    counts = adata.obsm["gates"].sum()
    assert counts.to_dict() == {
        "allevents": 83_411,
        "syto": 80_447,
        "singlets": 78_409,
        "intact": 77_546,
        "erythropoiesis": 6_932,
        "cd19": 38_383,
        "cd20": 4_122,
        "blast": 34_174,
    }
    assert get_spillover(adata, "494").shape == (8, 8)
    assert not adata.var["compensated"].any()
    assert (adata.var["transform"] == "none").all()
    intact = adata.obsm["gates"]["intact"].to_numpy()
    side_scatter = adata[:, "SSC-A"].X.ravel()
    assert np.mean(side_scatter[intact] == side_scatter.max()) == pytest.approx(0.20, abs=0.01)


@pytest.mark.real_data
def test_cytof_is_16_samples_in_two_batches():
    adata = fetch_multicenter_cytof()
    sizes = adata.obs["sample"].value_counts(sort=False)
    assert sizes.index.tolist() == [f"sample{i}" for i in range(1, 17)]
    assert (sizes.min(), sizes.max()) == (28_637, 77_094)
    batches = adata.obs.groupby("sample", observed=True)["batch"].first().astype(str).tolist()
    assert batches == ["batch1"] * 8 + ["batch2"] * 8
    assert adata.obs_names.is_unique
    assert adata.X.dtype == np.float32
    assert (adata.X >= 0).all()
    gates, label = adata.obsm["gates"], adata.obs["cell_type"]
    assert (gates["T"] == label.isin(["CD4 T", "CD8 T"])).all()
    assert (gates["B"] == (label == "B")).all()
    assert (gates["Mono"] == (label == "monocyte")).all()
    frame = adata.to_df()
    means = frame.groupby(label, observed=True).mean()
    # What var["note"] says of the unnamed columns.
    assert means["c5"].idxmax() == "CD8 T"
    assert means["c7"].idxmax() == "CD4 T"
    assert means["c0"].idxmax() == means["c1"].idxmax() == "B"
    assert means["c3"].idxmax() == "monocyte"


@pytest.mark.real_data
def test_chosen_cytof_samples_come_in_the_asked_order_and_survive_saving(tmp_path):
    adata = fetch_multicenter_cytof([15, 2])
    assert adata.obs["sample"].cat.categories.tolist() == ["sample15", "sample2"]
    assert (adata.obs["sample"] == "sample15").sum() == 28_637
    adata.write_h5ad(tmp_path / "cytof.h5ad")
    again = ad.read_h5ad(tmp_path / "cytof.h5ad")
    np.testing.assert_array_equal(again.X, adata.X)
    assert (again.var["note"] == adata.var["note"]).all()


def test_coordinates_from_the_table_are_those_of_the_function():
    from fcm_estimators.datasets import _expert_gates as gates

    rng = np.random.default_rng(0)
    events = np.concatenate(
        [rng.uniform(-50_000, 262_143, 100_000), rng.normal(0, 100, 100_000), [0, 262_143]]
    ).astype(np.float32)
    exact = gates.LOGICLE.transform(events)
    np.testing.assert_allclose(gates._looked_up(events, gates.LOGICLE), exact, rtol=0, atol=1e-9)
    scatter = gates._looked_up(events, gates.LINEAR)
    np.testing.assert_array_equal(scatter, gates.LINEAR.transform(events))
