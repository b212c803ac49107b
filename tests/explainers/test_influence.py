"""InfluenceExplainer against differences and exact removal, and what it writes."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

from explainers import (
    AnyChange,
    GateSize,
    InfluenceExplainer,
    LogOdds,
    Share,
    Vertex,
    influence_summary,
)
from fcm_estimators import PolygonRegressor, ReluFormerClassifier
from fcm_estimators.exceptions import InvalidInputError, MissingKeyError, NotFittedError
from fcm_estimators.inference import fitted_net, net_for, read_samples
from tests.helpers import toy_cohort
from tests.test_polygons import FAST, GATES, gated_cohort

QUICK = {"max_epochs": 3, "steps_per_epoch": 10, "hidden_dim": 16, "n_layers": 2, "n_members": 0}


def double(data):
    out = data.copy()
    out.X = out.X.astype(np.float64)
    return out


@pytest.fixture(scope="module")
def cohort():
    data = double(toy_cohort(3, 60, seed=3))
    data.obs["chosen"] = np.arange(data.n_obs) % 5 == 0
    return data


@pytest.fixture(scope="module")
def clf():
    model = ReluFormerClassifier(
        sample_key="sample", label_key="cell_type", pos_label="blast", **QUICK
    )
    return model.fit(toy_cohort(6, 200))


def derivative(clf, data, function):
    """dF/dw of each cell by autograd through the packed net, in float64."""
    net, samples = net_for(fitted_net(clf), np.dtype(np.float64)), read_samples(clf, data)
    weight = torch.ones(len(samples.x), dtype=torch.float64, requires_grad=True)
    outputs = net(torch.from_numpy(samples.x), samples.offsets, context_weight=weight)
    total = sum(function(outputs[i:j], slice(i, j)) for i, j in samples.spans())
    (found,) = torch.autograd.grad(total, weight)
    return found.numpy(), samples


@pytest.mark.parametrize("of", [None, "chosen"])
def test_influence_is_the_derivative_by_the_weight_in_the_contexts(clf, cohort, of):
    chosen = np.ones(cohort.n_obs, bool) if of is None else cohort.obs[of].to_numpy()

    def log_odds(z, rows):
        return (z[:, 0] - z[:, 1])[torch.tensor(chosen[rows])].mean()

    expected, samples = derivative(clf, cohort, log_odds)
    size = np.repeat(np.diff(samples.offsets), np.diff(samples.offsets))
    found = InfluenceExplainer(clf, of=of).attribute(cohort)
    np.testing.assert_allclose(found, -expected * size / 100, rtol=1e-9, atol=1e-14)


def test_the_influences_of_a_sample_add_up_to_0(clf, cohort):
    values = InfluenceExplainer(clf, "blast").attribute(cohort)
    total = pd.Series(values).groupby(cohort.obs["sample"].to_numpy()).sum()
    assert np.abs(total).max() < 1e-12 * np.abs(values).max() * cohort.n_obs
    assert np.abs(values).max() > 0


def test_a_sample_measured_twice_as_long_has_the_same_influences(clf, cohort):
    one = cohort[cohort.obs["sample"] == "s0"].copy()
    twice = ad.concat([one, one], index_unique="-")
    values = InfluenceExplainer(clf).attribute(one)
    np.testing.assert_allclose(InfluenceExplainer(clf).attribute(twice), np.tile(values, 2))


def test_hiding_is_leaving_the_cells_out_of_the_contexts(clf, cohort):
    """The cells that stay get the outputs that they get in the smaller sample."""
    explainer = InfluenceExplainer(clf, of="chosen")
    hidden = (np.arange(cohort.n_obs) % 3 == 0) & ~cohort.obs["chosen"].to_numpy()
    table = explainer.hide(cohort, hidden)
    small = cohort[~hidden].copy()
    inside = small.obs["chosen"].to_numpy()
    for name, data, keep in (
        ("without", small, inside),
        ("before", cohort, cohort.obs["chosen"].to_numpy()),
    ):
        p = clf.predict_proba(data)[keep]
        log_odds = pd.Series(np.log(p[:, 0] / p[:, 1])).groupby(data.obs["sample"].to_numpy()[keep])
        np.testing.assert_allclose(table[name], log_odds.mean(), rtol=1e-6)
    np.testing.assert_allclose(table["change"], table["without"] - table["before"])
    assert (table["n_hidden"] == 16).all()


def test_a_single_cell_is_as_influential_as_told(clf):
    data = double(toy_cohort(1, 2000, seed=8))
    explainer = InfluenceExplainer(clf)
    values = explainer.attribute(data)
    for cell in (int(values.argmax()), int(values.argmin()), 7):
        change = explainer.hide(data, cell)["change"].iloc[0]
        assert values[cell] * 100 / data.n_obs == pytest.approx(change, rel=0.01)


def test_the_targets_can_be_the_cells_that_are_called_a_class(clf, cohort):
    called = clf.predict(cohort) == "blast"
    assert called.any()
    np.testing.assert_array_equal(
        InfluenceExplainer(clf, of="blast").attribute(cohort),
        InfluenceExplainer(clf, of=called).attribute(cohort),
    )


def test_a_share_is_smooth_for_cells_and_counts_calls_if_cells_are_hidden(clf, cohort):
    def share(z, rows):
        return torch.sigmoid(z[:, 0] - z[:, 1] - clf.threshold_).mean()

    expected, _ = derivative(clf, cohort, share)
    explainer = InfluenceExplainer(clf, Share("blast"))
    np.testing.assert_allclose(explainer.attribute(cohort), -expected * 60 / 100, atol=1e-14)
    before = explainer.hide(cohort, "chosen")["before"]
    counted = pd.Series(clf.predict(cohort) == "blast").groupby(cohort.obs["sample"].to_numpy())
    np.testing.assert_allclose(before, counted.mean())
    other = InfluenceExplainer(clf, Share("other"))
    np.testing.assert_allclose(other.attribute(cohort), -explainer.attribute(cohort), atol=1e-14)


def test_any_change_is_the_length_of_the_derivative_of_all_outputs(clf):
    data = double(toy_cohort(1, 30, seed=4))
    net, samples = net_for(fitted_net(clf), np.dtype(np.float64)), read_samples(clf, data)

    def outputs(weight):
        z = net(torch.from_numpy(samples.x), context_weight=weight)
        return z - z.mean(1, keepdim=True)

    ones = torch.ones(30, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(outputs, ones)  # (n, C, n)
    expected = jacobian.square().mean((0, 1)).sqrt().numpy() * 30 / 100
    found = InfluenceExplainer(clf, AnyChange(n_probes=2000)).attribute(data)
    assert (found >= 0).all()
    np.testing.assert_allclose(found, expected, rtol=0.1)
    few = InfluenceExplainer(clf, AnyChange(n_probes=2))
    np.testing.assert_array_equal(few.attribute(data), few.attribute(data))
    other = InfluenceExplainer(clf, AnyChange(n_probes=2, random_state=1)).attribute(data)
    assert (few.attribute(data) != other).any()


def test_the_influence_of_a_group_is_the_sum_over_its_cells_unless_they_cancel(clf, cohort):
    samples = read_samples(clf, cohort)
    group = np.concatenate([np.arange(j - i) % 7 for i, j in samples.spans()])

    def summed_and_of_groups(explainer):
        values = explainer.of_samples(cohort, samples)
        found = explainer.of_groups(cohort, samples, group)
        for (i, j), of_groups in zip(samples.spans(), found, strict=True):
            yield np.bincount(group[i:j], values[i:j]) * 100 / (j - i), np.asarray(of_groups)

    for summed, of_groups in summed_and_of_groups(InfluenceExplainer(clf)):
        np.testing.assert_allclose(of_groups, summed, rtol=1e-9, atol=1e-14)
    for summed, of_groups in summed_and_of_groups(InfluenceExplainer(clf, AnyChange(5))):
        assert (of_groups <= summed * (1 + 1e-9)).all()
        assert (of_groups < 0.9 * summed).any()
    # All cells together change nothing: their influences add up to 0 in every output.
    everyone = np.zeros_like(group)
    for (total,) in InfluenceExplainer(clf, AnyChange(5)).of_groups(cohort, samples, everyone):
        assert total < 1e-9


def test_between_hides_each_population_from_each(clf, cohort):
    table = InfluenceExplainer(clf).between(cohort, "cell_type")
    assert len(table) == 4
    hidden = (cohort.obs["cell_type"] == "other").to_numpy()
    of = (cohort.obs["cell_type"] == "blast").to_numpy()
    one = InfluenceExplainer(clf, of=of).hide(cohort, hidden)
    row = table[(table["hidden"] == "other") & (table["target"] == "blast")].iloc[0]
    assert row["change"] == pytest.approx(one["change"].mean())
    assert row["switched"] == pytest.approx(one["switched"].mean())
    assert row["n_samples"] == 3
    assert row["share_hidden"] == pytest.approx(hidden.mean())
    half = 4.302652730 * one["change"].std() / np.sqrt(3)  # Student, two degrees of freedom
    assert row["ci_high"] - row["change"] == pytest.approx(half)
    assert row["change"] - row["ci_low"] == pytest.approx(half)


def test_influence_summed_over_populations_is_that_of_hiding_them_to_first_order(clf):
    data = double(toy_cohort(3, 1000, seed=8))
    data.obs["few"] = np.where(np.arange(data.n_obs) % 200 == 0, "few", "not few")
    explainer = InfluenceExplainer(clf)
    explainer.explain(data)
    table = explainer.summary(data, "few").set_index("population")
    pd.testing.assert_frame_equal(influence_summary(data, "few").set_index("population"), table)
    actual = explainer.hide(data, (data.obs["few"] == "few").to_numpy())["change"]
    assert table.loc["few", "change"] == pytest.approx(actual.mean(), rel=0.05)
    half = 4.302652730 * actual.std() / np.sqrt(3)  # Student, two degrees of freedom
    assert table.loc["few", "ci_high"] - table.loc["few", "change"] == pytest.approx(half, rel=0.1)
    assert table.loc["few", "share"] == pytest.approx(0.005)
    assert table["small"].to_dict() == {"few": True, "not few": False}
    assert table["n_cells"].to_dict() == {"few": 15, "not few": 2985}
    # 0.5 % of the sample are hidden, and the influence is per 1 %.
    assert table.loc["few", "influence"] * 0.5 == pytest.approx(table.loc["few", "change"])
    assert table["change"].sum() == pytest.approx(0, abs=1e-6 * abs(table["change"]).max() + 1e-7)
    clf.annotate(data)
    assert set(influence_summary(data, "reluformer")["population"]) == {"blast", "other"}


def test_values_without_direction_are_not_summed(clf, cohort):
    data = cohort.copy()
    InfluenceExplainer(clf, AnyChange(n_probes=2)).explain(data)
    table = influence_summary(data, "cell_type")
    assert (table["influence"] > 0).all()
    assert table[["change", "ci_low", "ci_high"]].isna().all(axis=None)
    with pytest.raises(MissingKeyError, match="'lineage' was not found"):
        influence_summary(data, "lineage")
    with pytest.raises(MissingKeyError, match="'why'"):
        influence_summary(data, "cell_type", key="why")


def test_a_store_gives_the_same_as_memory(clf, tmp_path):
    data = toy_cohort(3, 50, seed=2)
    data.obs["chosen"] = np.arange(data.n_obs) % 4 == 0
    data.write_h5ad(tmp_path / "data.h5ad")
    for of in (None, "chosen", "blast"):
        explainer = InfluenceExplainer(clf, of=of, key_added="why")
        explainer.explain(tmp_path / "data.h5ad")
        stored = ad.read_h5ad(tmp_path / "data.h5ad")
        explainer.explain(data)
        np.testing.assert_allclose(stored.obs["why"], data.obs["why"], rtol=1e-4, atol=1e-7)
        assert stored.obs["why"].dtype == np.float32
        assert stored.uns["why"]["explained"] == "log-odds of blast against the rest"
        assert stored.uns["why"]["of"] == ("all cells" if of is None else of)


def test_cells_not_analysed_and_samples_without_targets_have_none(cohort):
    data = cohort.copy()
    data.obs["live"] = np.arange(data.n_obs) % 2 == 0
    model = ReluFormerClassifier(
        sample_key="sample",
        label_key="cell_type",
        pos_label="blast",
        subset_key="live",
        **{**QUICK, "max_epochs": 1},
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(data)
    of = (data.obs["sample"] == "s1").to_numpy()
    values = InfluenceExplainer(model, of=of).attribute(data)
    known = ~np.isnan(values)
    np.testing.assert_array_equal(known, of & data.obs["live"].to_numpy())
    table = InfluenceExplainer(model, of=of).hide(data, np.arange(data.n_obs) % 3 == 0)
    np.testing.assert_array_equal(table["change"].isna(), [True, False, True])


@pytest.mark.parametrize("target", [Vertex("left", 2, "x"), GateSize("left")])
def test_gates(target):
    data = double(gated_cohort(4, 200))
    reg = PolygonRegressor(**{**FAST, "max_epochs": 3}).fit(data)
    one = data[data.obs["sample"] == "s1"].copy()
    explainer = InfluenceExplainer(reg, target)
    values = explainer.attribute(one)
    assert np.abs(values.sum()) < 1e-9 * np.abs(values).max() * len(values)
    cell = int(np.abs(values).argmax())
    change = explainer.hide(one, cell)["change"].iloc[0]
    assert values[cell] * 100 / one.n_obs == pytest.approx(change, rel=0.1)
    assert explainer.hide(one, cell)["switched"].isna().all()


def test_what_cannot_be_explained_is_told(clf, cohort):
    with pytest.raises(NotFittedError):
        InfluenceExplainer(ReluFormerClassifier()).attribute(cohort)
    with pytest.raises(InvalidInputError, match="'granulocyte' is not among the classes"):
        InfluenceExplainer(clf, LogOdds("granulocyte")).attribute(cohort)
    with pytest.raises(MissingKeyError, match="neither an obs column"):
        InfluenceExplainer(clf, of="granulocyte").attribute(cohort)
    both = cohort.copy()
    both.obs["blast"] = both.obs["chosen"]
    with pytest.raises(InvalidInputError, match="a class of the model and a column of obs"):
        InfluenceExplainer(clf, of="blast").attribute(both)
    with pytest.raises(InvalidInputError, match="a class of the model and a column of obs"):
        InfluenceExplainer(clf, of="blast").explain(both)
    with pytest.raises(InvalidInputError, match="no direction"):
        InfluenceExplainer(clf, AnyChange()).hide(cohort, "chosen")
    reg = PolygonRegressor(**{**FAST, "gates": GATES, "max_epochs": 1}).fit(gated_cohort(4, 100))
    with pytest.raises(InvalidInputError, match="no target cells"):
        InfluenceExplainer(reg, Vertex("left", 2, "x"), of="chosen").plan()
    with pytest.raises(InvalidInputError, match="is for classifiers"):
        InfluenceExplainer(reg, AnyChange()).plan()
