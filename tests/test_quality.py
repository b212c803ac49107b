"""Quality flags, distance from training, calibration."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata, wasserstein_distance

from fcm_estimators import ReluFormerClassifier
from fcm_estimators._fitting.calibration import best_temperature
from fcm_estimators._fitting.reference import Reference
from fcm_estimators._ranks import mean_ranks, rank_keys
from fcm_estimators.datasets import fetch_all494, fetch_multicenter_cytof, simulate_cohort
from fcm_estimators.exceptions import InvalidInputError, MissingKeyError
from fcm_estimators.metrics import classification_table, mrd_table, reliability_table, summarize
from fcm_estimators.preprocessing import ArcsinhTransform
from fcm_estimators.quality import flag_quality, quality_table
from tests.helpers import MARKERS, packed, toy_cohort

QUICK = {"n_layers": 1, "hidden_dim": 8, "max_epochs": 2, "steps_per_epoch": 5, "n_members": 0}


@pytest.fixture
def raw():
    return simulate_cohort(2, 10_000, random_state=0)


def column(adata, name):
    return adata.X[:, adata.var_names.get_loc(name)]


# -- flags --------------------------------------------------------------------------------------


def test_a_clean_sample_has_few_flags_and_keeps_everything(raw):
    before = raw.X.copy()
    flag_quality(raw)
    table = quality_table(raw)
    assert table.index.tolist() == raw.obs["sample"].cat.categories.tolist()
    assert (table["n_qc_time"] == 0).all()
    assert table["n_qc_dead"].isna().all()
    assert (table["n_qc_any"] < 0.15 * table["n_cells"]).all()
    assert raw.n_obs == 20_000
    np.testing.assert_array_equal(raw.X, before)


def test_doublets_are_found_and_single_cells_are_not(raw):
    flag_quality(raw)
    doublet = (raw.obs["population"] == "doublet").to_numpy()
    flagged = raw.obs["qc_doublet"].to_numpy()
    assert flagged[doublet].mean() > 0.9
    assert flagged[~doublet].mean() < 0.02


def test_area_over_height_comes_before_width(raw):
    raw = raw.copy()
    raw.var.loc["FSC-W", "channel"] = "FSC-H"
    ratio = np.ones(raw.n_obs, dtype=np.float32) + 0.01 * np.sin(np.arange(raw.n_obs))
    ratio[::100] = 2
    raw.X[:, raw.var_names.get_loc("FSC-W")] = column(raw, "FSC-A") / ratio
    flag_quality(raw)
    np.testing.assert_array_equal(raw.obs["qc_doublet"].to_numpy(), ratio == 2)


def test_saturated_and_vanished_events_are_at_the_margin(raw):
    flag_quality(raw)
    before = raw.obs["qc_margin"].to_numpy().copy()
    free = np.flatnonzero(~before)[:3]
    raw.X[free[0], raw.var_names.get_loc("CD10")] = 262_143
    raw.X[free[1], raw.var_names.get_loc("SSC-A")] = -5
    raw.X[free[2], raw.var_names.get_loc("CD10")] = -50  # fluorescence may be negative
    flag_quality(raw)
    assert raw.obs["qc_margin"].to_numpy()[free].tolist() == [True, True, False]
    assert raw.obs["qc_margin"].sum() == before.sum() + 2


def test_the_range_of_floats_is_no_bound(raw):
    """Where values exceed it, only a pile of equal largest values is saturation."""
    raw = raw.copy()
    position = raw.var_names.get_loc("CD10")
    flag_quality(raw)
    before = int(raw.obs["qc_margin"].sum())
    free = np.flatnonzero(~raw.obs["qc_margin"].to_numpy())[:30]
    top = raw.var["range"].iloc[position]
    for n_equal, added in ((9, 0), (10, 10)):
        changed = raw.copy()
        changed.X[free[10:20], position] = np.linspace(1.1, 2, 10) * top
        changed.X[free[:n_equal], position] = 3 * top
        at_end = (raw.X[:, position] >= top - 1).sum()
        flag_quality(changed)
        assert changed.obs["qc_margin"].sum() == before - at_end + added


@pytest.mark.parametrize("what", ["clog", "drift", "backwards"])
def test_unstable_stretches_are_flagged_wherever_their_rows_are(raw, what):
    one = raw[raw.obs["sample"] == raw.obs["sample"].iloc[0]].copy()
    inside = (one.obs["event"] >= 4000) & (one.obs["event"] < 5000)
    time = one.X[:, one.var_names.get_loc("Time")]
    if what == "clog":
        time[inside] = time[4000] + 20 * (time[inside] - time[4000])
        time[5000:] += time[4999] - time[5000]
    elif what == "drift":
        one.X[inside, one.var_names.get_loc("CD45")] *= 30
    else:
        time[4200] = time[4000] - 50
    shuffled = one[np.random.default_rng(0).permutation(one.n_obs)].copy()
    flag_quality(shuffled)
    found = shuffled.obs["qc_time"]
    inside = (shuffled.obs["event"] >= 4000) & (shuffled.obs["event"] < 5000)
    if what == "backwards":
        assert 0 < found.sum() <= 1000
        assert found[inside].any()
    else:
        assert found[inside].mean() > 0.95
    assert found[~inside].mean() < 0.06


def _one(raw):
    one = raw[raw.obs["sample"] == raw.obs["sample"].iloc[0]].copy()
    return one, one.X[:, one.var_names.get_loc("Time")]


def _reason(adata):
    return dict(zip(adata.uns["qc"]["checks"], adata.uns["qc"]["reason"], strict=True))["time"]


@pytest.mark.parametrize("what", ["shuffled", "pooled", "by population", "shuffled halves"])
def test_events_that_are_not_in_order_of_acquisition_are_not_judged_by_time(raw, what):
    one, _ = _one(raw)
    n = one.n_obs
    if what == "shuffled":
        order = np.random.default_rng(0).permutation(n)
    elif what == "pooled":  # a few hundred events of each of many files
        order = np.argsort(np.arange(n) % (n // 300), kind="stable")
    elif what == "by population":
        population = np.random.default_rng(0).choice(12, n, p=np.arange(1, 13) / 78)
        order = np.argsort(population, kind="stable")
    else:
        rng = np.random.default_rng(0)
        order = np.concatenate([rng.permutation(n // 2), n // 2 + rng.permutation(n - n // 2)])
    one.X[:] = one.X[order]
    flag_quality(one)
    assert "qc_time" not in one.obs
    assert "not in order of acquisition" in _reason(one)
    both = raw.copy()
    both.X[: one.n_obs] = one.X
    flag_quality(both)
    assert _reason(both).startswith(str(one.obs["sample"].iloc[0]))


@pytest.mark.parametrize("n_wraps", [0, 1, 2])
@pytest.mark.parametrize("start", [0.0, 0.4, 0.9])
def test_a_clock_that_wraps_around_runs_on(raw, n_wraps, start):
    one, time = _one(raw)
    span = np.ptp(time)
    if n_wraps:
        period = span / n_wraps
        time[:] = np.mod(time - time.min() + start * period, period)
    flag_quality(one)
    assert one.obs["qc_time"].mean() == 0


def test_a_clock_that_jitters_or_is_set_back_once_is_no_shuffling(raw):
    one, time = _one(raw)
    step = np.median(np.diff(time))
    time += np.random.default_rng(0).uniform(-3, 3, len(time)) * step
    flag_quality(one)
    assert one.obs["qc_time"].mean() < 0.06
    one, time = _one(raw)
    time[5000:] -= 0.3 * np.ptp(time)
    flag_quality(one)
    flagged = one.obs["qc_time"].to_numpy()
    assert 0 < flagged.sum() <= 1500
    assert flagged[4400:5600].any()


def test_dead_cells_are_found_only_where_they_are_apart(raw):
    rng = np.random.default_rng(0)
    dead = rng.random(raw.n_obs) < 0.1
    raw.var["marker"] = raw.var["marker"].astype(str)
    raw.var.loc["CD38", "marker"] = "Zombie NIR"
    dye = raw.var_names.get_loc("CD38")
    raw.X[:, dye] = 150 * np.sinh(np.where(dead, 5, 1) + 0.4 * rng.normal(size=raw.n_obs))
    flag_quality(raw)
    assert raw.uns["qc"]["viability"] == "CD38"
    assert (raw.obs["qc_dead"].to_numpy() == dead).mean() > 0.999
    raw.X[:, dye] = 150 * np.sinh(1 + 0.4 * rng.normal(size=raw.n_obs))
    flag_quality(raw)
    assert not raw.obs["qc_dead"].any()


def test_what_cannot_be_judged_is_missing_and_the_reason_is_written(raw, tmp_path):
    few = raw[:, ["SSC-A", "CD10", "CD45"]].copy()
    flag_quality(few)
    assert [c for c in few.obs if c.startswith("qc_")] == ["qc_margin"]
    reasons = dict(zip(few.uns["qc"]["checks"], few.uns["qc"]["reason"], strict=True))
    assert reasons == {
        "time": "no Time channel",
        "margin": "",
        "doublet": "neither FSC-A with FSC-H nor FSC-W",
        "dead": "no marker with the name of a viability dye",
    }
    assert quality_table(few)["n_qc_time"].isna().all()
    few.write_h5ad(tmp_path / "few.h5ad")


def test_flags_of_one_sample_do_not_depend_on_the_others(raw):
    flag_quality(raw)
    first = (raw.obs["sample"] == raw.obs["sample"].iloc[0]).to_numpy()
    one = raw[first].copy()
    flag_quality(one)
    for name in ("qc_time", "qc_margin", "qc_doublet"):
        np.testing.assert_array_equal(one.obs[name], raw.obs[name][first])


def test_bad_input_of_the_flags(raw):
    with pytest.raises(MissingKeyError, match="flag_quality first"):
        quality_table(raw)
    with pytest.raises(MissingKeyError, match="tube"):
        flag_quality(raw, sample_key="tube")
    with pytest.raises(MissingKeyError, match="CD3"):
        flag_quality(raw, viability="CD3")
    with pytest.raises(InvalidInputError, match="view"):
        flag_quality(raw[:10])
    raw.X[3, raw.var_names.get_loc("CD10")] = np.nan
    with pytest.raises(InvalidInputError, match="CD10"):
        flag_quality(raw)
    assert "qc" not in raw.uns
    assert not raw.obs.filter(like="qc_").columns.any()


@pytest.mark.real_data
def test_flags_agree_with_the_expert_on_real_doublets():
    raw = fetch_all494()
    flag_quality(raw)
    singlets, doublet = raw.obsm["gates"]["singlets"], raw.obs["qc_doublet"]
    assert doublet[singlets].mean() < 0.02
    assert doublet[~singlets].mean() > 0.5
    assert quality_table(raw)["n_qc_time"].item() == 0


def test_tables_count_flags(raw):
    flag_quality(raw)
    flags = raw.obs.filter(like="qc_")
    blast = raw.obs["cell_type"] == "blast"
    intact = raw.obsm["gates"]["intact"]
    by_sample = {"groups": raw.obs["sample"], "flags": flags}
    mrd = mrd_table(blast, denominator=intact, denominator_name="intact", **by_sample)
    expected = (flags["qc_margin"] & intact).groupby(raw.obs["sample"], observed=True).sum()
    assert mrd["n_qc_margin"].tolist() == expected.tolist()
    assert (mrd["n_positive_qc_margin"] <= mrd["n_qc_margin"]).all()
    table = classification_table(
        raw.obs["cell_type"], raw.obs["cell_type"], pos_label="blast", **by_sample
    )
    counts = quality_table(raw)
    assert table["n_qc_doublet"].tolist() == counts["n_qc_doublet"].tolist()
    assert summarize(table)["f1_mean"] == 1
    with pytest.raises(InvalidInputError, match="DataFrame"):
        mrd_table(blast, denominator=intact, denominator_name="intact", flags=blast)


# -- distance from training ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted():
    return ReluFormerClassifier(
        sample_key="sample", label_key="cell_type", patient_key="patient", **QUICK
    ).fit(toy_cohort())


def test_distance_is_that_of_a_known_shift(fitted):
    new = toy_cohort(2, seed=0)  # the first two samples of training
    moved = new.copy()
    scale = fitted.net_.module_.input_scale.numpy()
    moved.X[:, 1] -= 2 * scale[1]
    before, after = fitted.check_sample(new), fitted.check_sample(moved)
    assert before.index.names == ["sample", "marker"]
    assert not before["far"].any()
    difference = (after["shift"] - before["shift"]).unstack()
    np.testing.assert_allclose(difference["CD19"], -2, rtol=1e-4)
    np.testing.assert_allclose(difference.drop(columns="CD19"), 0, atol=1e-6)
    assert after["far"].unstack()["CD19"].all()
    assert (after["distance"] >= after["shift"].abs() - 1e-9).all()


@given(st.integers(0, 2**31 - 1), st.integers(2, 5))
def test_the_farthest_training_sample_is_that_of_leaving_each_one_out(seed, n_samples):
    rng = np.random.default_rng(seed)
    blocks = [
        rng.normal(rng.normal(size=2), size=(rng.integers(5, 40), 2)) for _ in range(n_samples)
    ]
    scale = np.array([0.5, 2.0])
    left_out = []
    for i, block in enumerate(blocks):
        others = Reference.of(packed(*blocks[:i], *blocks[i + 1 :]), scale)
        left_out.append(others.compare(np.array(["new"]), [block])["distance"].to_numpy())
    together = Reference.of(packed(*blocks), scale)
    np.testing.assert_allclose(together.farthest, np.max(left_out, axis=0), rtol=1e-9)
    assert (Reference.of(packed(blocks[0]), scale).farthest == 0).all()


def test_distance_is_how_far_cells_have_to_move_and_shift_how_far_to_one_side():
    rng = np.random.default_rng(0)
    first = rng.normal(size=(4000, 2))
    wider = rng.normal([0.0, 1.0], [3.0, 1.5], size=(4000, 2))
    scale = np.array([0.5, 2.0])
    table = Reference.of(packed(first), scale).compare(np.array(["new"]), [wider])
    moved = [wasserstein_distance(a, b) for a, b in zip(first.T, wider.T, strict=True)]
    np.testing.assert_allclose(table["distance"], moved / scale, rtol=0.05)
    np.testing.assert_allclose(table["shift"], (wider - first).mean(0) / scale, atol=0.05)


def test_samples_are_compared_with_the_mean_of_the_training_samples():
    block = np.random.default_rng(0).normal(size=(50, 2))
    reference = Reference.of(packed(block, np.tile(block, (9, 1)), block + 6), np.ones(2))
    table = reference.compare(np.array(["new"]), [block])
    np.testing.assert_allclose(table["shift"], -2, atol=0.2)


@pytest.mark.parametrize("farthest", [0.0, 0.1, 0.4])
def test_a_sample_is_far_beyond_the_training_samples_and_a_quarter_of_an_sd(farthest):
    block = np.random.default_rng(0).normal(size=(200, 1))
    one = Reference.of(packed(np.repeat(block, 2, axis=1)), np.full(2, 2.0))
    reference = replace(one, farthest=np.array([farthest, 9.0]))
    limit = max(1.5 * farthest, 0.25)
    for sign in (1, -1):
        near, beyond = (
            reference.compare(np.array(["new"]), [np.repeat(block + sign * 2 * d, 2, axis=1)])
            for d in (0.99 * limit, 1.01 * limit)
        )
        assert near["far"].tolist() == [False, False]
        # It is the marker that is far: the other has had farther training samples.
        assert beyond["far"].tolist() == [True, False]


@pytest.mark.filterwarnings("ignore:.*many cells that are unlike any in training")
def test_annotate_warns_of_far_samples_and_only_of_those(fitted, tmp_path):
    new = toy_cohort(2, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted.annotate(new, copy=True)
    second = (new.obs["sample"] == "s1").to_numpy()
    new.X[second, 2] += 5
    with pytest.warns(UserWarning, match=r"1 of 2 sample.*s1 \(farthest in CD34"):
        fitted.annotate(new, copy=True)
    new.write_h5ad(tmp_path / "new.h5ad")
    with pytest.warns(UserWarning, match=r"1 of 2 sample.*s1 \(farthest in CD34"):
        fitted.annotate(tmp_path / "new.h5ad")


def test_saved_models_know_their_training_samples(fitted, tmp_path):
    fitted.save(tmp_path / "model")
    loaded = ReluFormerClassifier.load(tmp_path / "model")
    new = toy_cohort(2, seed=5)
    pd.testing.assert_frame_equal(loaded.check_sample(new), fitted.check_sample(new))


@pytest.mark.real_data
def test_samples_of_another_batch_are_far_and_of_the_same_are_not():
    cohort = ArcsinhTransform(cofactor=5.0).fit_transform(fetch_multicenter_cytof())
    number = cohort.obs["sample"].astype(str).str.removeprefix("sample").astype(int)
    clf = ReluFormerClassifier(
        sample_key="sample", label_key="cell_type", max_epochs=1, steps_per_epoch=1, random_state=0
    ).fit(cohort[number.isin([1, 2, 3, 4, 7, 8])])
    far = clf.check_sample(cohort[~number.isin([1, 2, 3, 4, 7, 8])])["far"].unstack().sum(axis=1)
    far.index = far.index.astype(str).str.removeprefix("sample").astype(int)
    assert (far[[5, 6]] == 0).all()
    assert (far.drop([5, 6]) >= 2).all()


# -- calibration --------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [1.0, 1.5, 3.0])
def test_temperature_is_recovered(factor):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(40_000, 3)) * 2
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    codes = (rng.random((len(logits), 1)) > shares.cumsum(1)).sum(1)
    sample = np.repeat(np.arange(5), [4_000, 16_000, 5_000, 5_000, 10_000])
    assert best_temperature(logits * factor, codes, sample) == pytest.approx(factor, rel=0.06)


def test_cells_told_apart_without_error_do_not_make_probabilities_extreme():
    logits = np.array([[3.0, -3], [-3, 3]])
    assert best_temperature(logits, np.array([0, 1]), np.arange(2)) == 1


def test_one_hard_sample_among_few_shows_nothing():
    rng = np.random.default_rng(0)
    logits = 6 * rng.choice([-1.0, 1.0], (4000, 1)) * np.array([[1.0, -1.0]])
    codes = (logits[:, 0] < 0).astype(int)
    sample = np.repeat(np.arange(4), 1000)
    codes[:300] = 1 - codes[:300]  # nearly a third of the first sample is wrong, with confidence
    assert best_temperature(logits[:1000], codes[:1000], sample[:1000]) > 3
    assert best_temperature(logits, codes, sample) == 1


@pytest.mark.parametrize(("augmentation", "n_days"), [(1.0, 16), (0.0, 1)])
def test_probabilities_are_fitted_to_held_out_cells_as_on_several_days(
    monkeypatch, augmentation, n_days
):
    seen = {}

    def spy(logits, codes, sample):
        seen.update(logits=logits, codes=codes, sample=sample)
        return 2.0

    monkeypatch.setattr("fcm_estimators._base.deciding.best_temperature", spy)
    monkeypatch.setattr("fcm_estimators._base.deciding.counts_are_right", lambda *_: True)
    data = toy_cohort(8)
    clf = ReluFormerClassifier(
        label_key="cell_type", sample_key="sample", augmentation=augmentation, **QUICK
    ).fit(data)
    held_out = data.obs["sample"].isin(clf.validation_samples_)
    assert len(seen["codes"]) == n_days * held_out.sum() > 0
    days = seen["logits"].reshape(n_days, -1, 2)
    assert all(not np.allclose(days[0], day, rtol=1e-3) for day in days[1:])
    assert clf.temperature_ == 2
    # What the net says now is what it said then.
    if n_days == 1:
        clf.temperature_ = 1.0
        now = np.diff(np.log(clf.predict_proba(data)[held_out.to_numpy()]), axis=1)
        np.testing.assert_allclose(now, np.diff(days[0], axis=1), rtol=1e-3, atol=1e-4)


def test_probabilities_are_calibrated_and_decisions_stay(fitted, tmp_path):
    new = toy_cohort(2, seed=9)
    assert 1 <= fitted.temperature_ <= 10
    fitted.save(tmp_path / "m")
    loaded = ReluFormerClassifier.load(tmp_path / "m")
    assert loaded.temperature_ == fitted.temperature_
    np.testing.assert_array_equal(loaded.predict_proba(new), fitted.predict_proba(new))
    single = ReluFormerClassifier(label_key="cell_type", **QUICK).fit(toy_cohort(1))
    assert single.temperature_ == 1  # nothing is held out


def test_reliability_of_known_probabilities():
    rng = np.random.default_rng(1)
    p = rng.random(50_000)
    truth = np.where(rng.random(len(p)) < p, "blast", "other")
    shares = pd.DataFrame({"blast": p, "other": 1 - p})
    table = reliability_table(truth, shares, pos_label="blast")
    assert len(table) == 10
    assert table["gap"].abs().max() < 0.03
    assert table["n_cells"].sum() == len(p)
    assert table.attrs["expected_calibration_error"] < 0.01
    overconfident = shares.assign(blast=p > 0.5, other=p <= 0.5).astype(float)
    worse = reliability_table(truth, overconfident)
    assert worse.attrs["expected_calibration_error"] == pytest.approx(0.25, abs=0.01)


def test_reliability_leaves_out_unknown_cells_and_refuses_nonsense():
    shares = pd.DataFrame({"0": [0.9, 0.2, np.nan], "1": [0.1, 0.8, np.nan]})
    table = reliability_table([0, np.nan, 1], shares, pos_label=0)
    assert table["n_cells"].tolist() == [1]
    assert table["observed"].tolist() == [1]
    with pytest.raises(InvalidInputError, match="no column"):
        reliability_table([0, 1, 1], shares, pos_label=2)
    with pytest.raises(InvalidInputError, match="No cell"):
        reliability_table([np.nan] * 3, shares)
    with pytest.raises(InvalidInputError, match="DataFrame"):
        reliability_table([0], shares.to_numpy())
    with pytest.raises(InvalidInputError, match="0 to 1"):
        reliability_table(["0"] * 3, shares * 3)
    with pytest.raises(InvalidInputError, match="n_bins"):
        reliability_table(["0"] * 3, shares, n_bins=0)


def test_toy_markers_are_those_of_the_reference(fitted):
    assert fitted.check_sample(toy_cohort(1)).loc["s0"].index.tolist() == MARKERS


@pytest.mark.parametrize("kind", ["fluorescence", "integers", "narrow", "few values", "wild"])
def test_ranks_by_keys_are_ranks(kind):
    rng = np.random.default_rng(0)
    values = {
        "fluorescence": 100 * np.sinh(rng.normal(2, 3, 20_000)),
        "integers": rng.integers(0, 1 << 18, 20_000),
        "narrow": 100_000 + rng.normal(size=20_000),
        "few values": rng.choice([-3.0, -0.0, 0.0, 5.0], 20_000),
        "wild": np.r_[rng.normal(size=19_999), 1e30],
    }[kind].astype(np.float32)[:, None]
    (keys,) = rank_keys(values, np.array([0]))
    error = mean_ranks(keys)[keys] - rankdata(values) / (len(values) + 1)
    assert np.abs(error).max() < 0.005
