"""Conditional information against known answers, and specialisation with its floors."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from explainers import AttentionExplainer, faithfulness, specialisation
from explainers._maths.information import conditional_information, enrichment, permuted_information
from explainers.faithfulness import Twins
from fcm_estimators import ReluFormerClassifier
from fcm_estimators.exceptions import InvalidInputError, MissingKeyError
from tests.helpers import toy_cohort

seeds = st.integers(0, 2**31 - 1)


def entropy(codes):
    p = np.bincount(codes) / len(codes)
    return -(p[p > 0] * np.log2(p[p > 0])).sum()


@given(seeds)
def test_information_with_itself_is_entropy_and_with_a_constant_is_zero(seed):
    a = np.random.default_rng(seed).integers(0, 4, 200)
    zero = np.zeros(200, dtype=int)
    assert conditional_information(a, a, zero) == pytest.approx(entropy(a))
    assert conditional_information(a, zero, zero) == pytest.approx(0, abs=1e-12)
    assert conditional_information(a, a, a) == pytest.approx(0, abs=1e-12)


@given(seeds)
def test_information_is_symmetric_and_obeys_the_chain_rule(seed):
    rng = np.random.default_rng(seed)
    a, b, c = (rng.integers(0, 3, 300) for _ in range(3))
    zero = np.zeros(300, dtype=int)
    assert conditional_information(a, b, c) == pytest.approx(conditional_information(b, a, c))
    joint = b * 3 + c
    chain = conditional_information(a, c, zero) + conditional_information(a, b, c)
    assert conditional_information(a, joint, zero) == pytest.approx(chain)


def test_what_the_label_explains_does_not_count():
    label = np.repeat([0, 1], 500)
    head = label.copy()
    population = label + np.tile([0, 2], 500)
    zero = np.zeros(1000, dtype=int)
    assert conditional_information(head, population, zero) == pytest.approx(1)
    assert conditional_information(head, population, label) == pytest.approx(0, abs=1e-12)


def test_permutation_keeps_strata_and_destroys_the_link():
    rng = np.random.default_rng(0)
    strata = np.repeat([0, 1], 500)
    a = rng.integers(0, 3, 1000)
    linked = permuted_information(a, a, strata, strata, 50, 0)
    assert linked.max() < 0.1 < conditional_information(a, a, strata)
    # Labels that only differ between strata survive a shuffle within them.
    same = permuted_information(strata, strata, strata, np.zeros(1000, int), 5, 0)
    np.testing.assert_allclose(same, 1)


def test_enrichment_counts_and_log_odds():
    head = pd.Categorical(["h0"] * 40 + ["h1"] * 60, categories=["h0", "h1", "none"])
    population = np.array(["T"] * 30 + ["B"] * 10 + ["T"] * 10 + ["B"] * 50, dtype=object)
    table = enrichment(head, population).set_index(["head", "population"])
    assert table.loc[("h0", "T"), "n_cells"] == 30
    assert table.loc[("h0", "T"), "share_of_head"] == 0.75
    want = np.log(30.5 * 50.5 / (10.5 * 10.5))
    assert table.loc[("h0", "T"), "log_odds"] == pytest.approx(want)
    assert table["n_cells"].sum() == 100


@given(seeds)
def test_shares_of_a_head_add_up_and_log_odds_are_those_of_either_side(seed):
    rng = np.random.default_rng(seed)
    names = ["h0", "h1", "none"]
    head = pd.Categorical(rng.choice(names, 60, p=[0.6, 0.4, 0]), categories=names)
    population = rng.choice(["B", "T"], 60, p=[0.2, 0.8]).astype(object)
    table = enrichment(head, population)
    used = table["head"] != "none"
    np.testing.assert_allclose(table[used].groupby("head", observed=True)["share_of_head"].sum(), 1)
    assert (table.loc[~used, ["n_cells", "share_of_head"]] == 0).all(axis=None)
    # With two heads and two populations, what one has more of the other has less of.
    log_odds = table[used].pivot(index="head", columns="population", values="log_odds").to_numpy()
    np.testing.assert_allclose(log_odds, -log_odds[::-1], atol=1e-12)
    np.testing.assert_allclose(log_odds, -log_odds[:, ::-1], atol=1e-12)
    more = np.mean(population[head == "h0"] == "B") - np.mean(population[head == "h1"] == "B")
    assert abs(more) < 0.1 or np.sign(log_odds[0, 0]) == np.sign(more)


@pytest.fixture(scope="module")
def result():
    data = toy_cohort(4, 200, classes=("B", "T", "blast"))
    data.obs["binary"] = np.where(data.obs["cell_type"] == "blast", "blast", "other")
    clf = ReluFormerClassifier(
        n_members=0,
        sample_key="sample",
        label_key="binary",
        hidden_dim=16,
        n_layers=2,
        max_epochs=4,
        steps_per_epoch=10,
        random_state=0,
    ).fit(data)
    before = {k: v.clone() for k, v in clf.net_.module_.state_dict().items()}
    out = specialisation(
        AttentionExplainer(clf, net_layer=0),
        data,
        "cell_type",
        label_key="binary",
        twins=faithfulness.twins(clf, data, n_untrained=4, n_permuted=2),
        n_permutations=20,
    )
    assert all((before[k] == v).all() for k, v in clf.net_.module_.state_dict().items())
    return out, data, clf


def test_specialisation_stands_beside_its_floors(result):
    out, data, _ = result
    assert out.n_cells == data.n_obs
    assert 0 <= out.information <= np.log2(5)
    assert len(set(out.untrained)) == 4
    assert len(set(out.label_permuted)) == 2
    assert out.kmeans > out.permuted.max()
    assert 0 <= out.distance < out.kmeans
    assert out.p_value == (1 + (out.permuted >= out.information).sum()) / 21
    assert out.enrichment["n_cells"].sum() == data.n_obs
    assert out.frame().groupby("source").size().to_dict() == {
        "model": 1,
        "k-means": 1,
        "distance": 1,
        "untrained": 4,
        "label-permuted": 2,
        "permuted": 20,
    }


def test_specialisation_names_what_is_missing(result):
    _, data, clf = result
    options = {"label_key": "binary", "twins": Twins([clf] * 4, [clf])}
    with pytest.raises(MissingKeyError, match="'lineage' was not found"):
        specialisation(AttentionExplainer(clf, net_layer=-1), data, "lineage", **options)
    data = data.copy()
    data.obs["same"] = "x"
    with pytest.raises(InvalidInputError, match="two or more are needed"):
        specialisation(AttentionExplainer(clf, net_layer=-1), data, "same", **options)
