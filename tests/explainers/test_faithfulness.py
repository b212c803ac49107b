"""Checks of explanations, and that broken explanations fail them."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from explainers import (
    AnyChange,
    AttentionExplainer,
    GradientExplainer,
    InfluenceExplainer,
    Integrated,
    Share,
    faithfulness,
    specialisation,
)
from explainers.attention import Received
from explainers.faithfulness._removal import _shift_without
from explainers.faithfulness.controls import beyond_twins
from fcm_estimators import ReluFormerClassifier
from fcm_estimators.exceptions import InvalidInputError, MissingKeyError
from fcm_estimators.nn.relu_attention import AttentionContext
from tests.helpers import toy_cohort


@pytest.fixture(scope="module")
def train():
    return toy_cohort(6, 300, classes=("blast", "T", "myeloid"))


@pytest.fixture(scope="module")
def cohort():
    return toy_cohort(4, 300, seed=1, classes=("blast", "T", "myeloid"))


@pytest.fixture(scope="module")
def models(train):
    return [
        ReluFormerClassifier(
            n_members=0,
            sample_key="sample",
            label_key="cell_type",
            n_layers=2,
            hidden_dim=16,
            max_epochs=12,
            steps_per_epoch=20,
            cells_per_sample=200,
            random_state=seed,
        ).fit(train)
        for seed in (0, 1)
    ]


@pytest.fixture(scope="module")
def clf(models):
    return models[0]


@pytest.fixture(scope="module")
def twins(clf, train):
    return faithfulness.twins(clf, train)


class Shuffled:
    """Every entry of every explanation somewhere else."""

    rng = np.random.default_rng(0)

    def change(self, values):
        return self.rng.permutation(values.ravel()).reshape(values.shape)


class Negated:
    def change(self, values):
        return -values


class Constant:
    def change(self, values):
        return np.ones_like(values)


class _BrokenPlan:
    """A plan whose result is changed."""

    def __init__(self, plan, change):
        self._plan, self._change = plan, change

    def __getattr__(self, name):
        return getattr(self._plan, name)

    def of_samples(self, *args):
        found = self._plan.of_samples(*args)
        if isinstance(found, Received):
            return Received(self._change(found.relative), found.absorbed)
        return self._change(found)


class _BrokenGradient(GradientExplainer):
    def plan(self):
        return _BrokenPlan(super().plan(), self.change)


class _BrokenAttention(AttentionExplainer):
    def plan(self):
        return _BrokenPlan(super().plan(), self.change)


def broken(kind, base):
    return type(f"{kind.__name__}{base.__name__}", (kind, base), {})


SIGNED = {
    "completeness, own": lambda make, data, train: faithfulness.completeness(
        make(mode="own"), data
    ),
    "completeness, set": lambda make, data, train: faithfulness.completeness(
        make(mode="set"), data
    ),
    "deletion, own": lambda make, data, train: faithfulness.deletion(make(mode="own"), data),
    "deletion, set": lambda make, data, train: faithfulness.deletion(make(mode="set"), data),
    "deletion, context": lambda make, data, train: faithfulness.deletion(
        make(mode="context"), data
    ),
    "deletion, integrated": lambda make, data, train: faithfulness.deletion(
        make(mode="own", method=Integrated(16)), data
    ),
}
UNSIGNED = {
    "parameters": lambda make, data, train: faithfulness.parameter_randomisation(make(), data),
    "labels": lambda make, data, train: faithfulness.label_randomisation(make(), train, data),
    "sensitivity": lambda make, data, train: faithfulness.sensitivity(make(), data),
}
LEARNING = {
    "deletion": lambda make, data, twins: faithfulness.attention_deletion(
        make(), data, twins=twins
    ),
    "ablation": lambda make, data, twins: faithfulness.head_ablation(
        make(), data, "cell_type", twins=twins
    ),
    "seeds": lambda make, data, twins: faithfulness.seed_agreement(
        [make(), make(1)], data, twins=twins
    ),
}


def passes(result):
    """The verdict of a check of either kind."""
    return result.correct if hasattr(result, "correct") else result.holds


def gradients(base, clf):
    return lambda **kwargs: base(clf, target="blast", **kwargs)


def attentions(base, models):
    return lambda seed=0: base(models[seed], net_layer=0)


@pytest.mark.parametrize("metric", [*SIGNED, *UNSIGNED])
def test_gradients_of_the_model_pass(metric, clf, cohort, train):
    result = (SIGNED | UNSIGNED)[metric](gradients(GradientExplainer, clf), cohort, train)
    assert passes(result), result.frame()
    assert len(result.frame())


@pytest.mark.parametrize("metric", [*SIGNED, *UNSIGNED])
@pytest.mark.parametrize("kind", [Shuffled, Constant])
def test_no_shuffled_or_constant_gradient_passes(metric, kind, clf, cohort, train):
    make = gradients(broken(kind, _BrokenGradient), clf)
    assert not passes((SIGNED | UNSIGNED)[metric](make, cohort, train))


@pytest.mark.parametrize("metric", SIGNED)
def test_no_negated_gradient_passes_a_signed_check(metric, clf, cohort, train):
    make = gradients(broken(Negated, _BrokenGradient), clf)
    assert not passes(SIGNED[metric](make, cohort, train))


@pytest.mark.parametrize("metric", UNSIGNED)
def test_attention_of_the_model_passes(metric, models, cohort, train):
    result = UNSIGNED[metric](attentions(AttentionExplainer, models), cohort, train)
    assert passes(result), result.frame()
    assert len(result.frame())


@pytest.mark.parametrize("metric", UNSIGNED)
@pytest.mark.parametrize("kind", [Shuffled, Constant])
def test_no_shuffled_or_constant_attention_passes(metric, kind, models, cohort, train):
    make = attentions(broken(kind, _BrokenAttention), models)
    assert not passes(UNSIGNED[metric](make, cohort, train))


@pytest.mark.parametrize("metric", LEARNING)
@pytest.mark.parametrize("kind", [Shuffled, Constant])
def test_no_shuffled_or_constant_attention_was_learnt(metric, kind, models, cohort, twins):
    make = attentions(broken(kind, _BrokenAttention), models)
    assert not LEARNING[metric](make, cohort, twins).holds


# -- nets that learnt nothing ---------------------------------------------------------------------


def learnt_nothing(clf, train, kind):
    """Two nets that learnt nothing of the labels, not among the twins of the fixture."""
    if kind == "untrained":
        return [clf.untrained_twin(100 + i) for i in range(2)]
    return list(faithfulness.twins(clf, train, n_permuted=4, random_state=100).permuted[:2])


@pytest.mark.parametrize("kind", ["untrained", "label-permuted"])
def test_no_check_of_learning_holds_for_a_net_that_learnt_nothing(kind, clf, cohort, train, twins):
    nets = learnt_nothing(clf, train, kind)
    for layer in (0, 1):
        make = attentions(
            lambda model, net_layer, at=layer: AttentionExplainer(model, net_layer=at), nets
        )
        for name, check in LEARNING.items():
            result = check(make, cohort, twins)
            assert not result.holds, (name, layer, result.twins)
        found = specialisation(
            make(), cohort, "cell_type", label_key="sample", twins=twins, n_permutations=20
        )
        assert not found.holds


class _Borrowed:
    """An explanation of one net that is presented as that of another."""

    lender = None

    def plan(self):
        return dataclasses.replace(super().plan(), estimator=self.lender)


@pytest.mark.parametrize("kind", ["untrained", "label-permuted"])
def test_no_check_holds_for_an_explanation_of_another_net(kind, clf, cohort, train, twins):
    lender, other = learnt_nothing(clf, train, kind)

    def borrowed(base, net=lender):
        return type(f"Borrowed{base.__name__}", (_Borrowed, base), {"lender": net})

    for name, check in {**SIGNED, "sensitivity": UNSIGNED["sensitivity"]}.items():
        make = gradients(borrowed(GradientExplainer), clf)
        assert not check(make, cohort, train).correct, name
    sets = GradientExplainer(clf, target="blast", mode="set")
    assert faithfulness.sensitivity(sets, cohort).correct
    attention = borrowed(AttentionExplainer)(clf, net_layer=0)
    assert not faithfulness.sensitivity(attention, cohort).correct
    for name, check in LEARNING.items():
        pair = [borrowed(AttentionExplainer, net) for net in (lender, other)]

        def make(seed=0, pair=pair):
            return pair[seed](clf, net_layer=0)

        assert not check(make, cohort, twins).holds, name
    influence = borrowed(InfluenceExplainer)(clf, "blast")
    assert not faithfulness.removal(_Explained(influence, clf), cohort, n_groups=20).correct


class _Explained(InfluenceExplainer):
    """Influence computed by a borrowed explainer, held against the changes of the model."""

    def __init__(self, borrowed, clf):
        super().__init__(clf, borrowed.target)
        self.borrowed = borrowed

    def of_groups(self, X, samples, group):
        return self.borrowed.of_groups(X, samples, group)


@pytest.mark.parametrize(
    ("target", "of"),
    [("blast", None), ("blast", "blast"), (Share("blast"), None), (AnyChange(8), None)],
)
def test_influence_is_what_hiding_groups_changes(target, of, clf, cohort):
    explainer = InfluenceExplainer(clf, target, of=of)
    result = faithfulness.removal(explainer, cohort, n_groups=20)
    trivial = max(result.distance, result.shift, result.size)
    assert result.correct, (result.agreement, result.twins, trivial)
    assert result.agreement > trivial
    assert len(result.frame()) == 4 * 20
    twin = InfluenceExplainer(clf.untrained_twin(7), target, of=None)
    assert faithfulness.removal(twin, cohort, n_groups=20).agreement > 0.9  # true of any net


def test_the_shift_of_a_group_is_how_far_the_mean_moves_without_it():
    rng = np.random.default_rng(0)
    x, group = rng.normal(size=(50, 3)), rng.integers(4, size=50)
    z = (x - x.mean(0)) / x.std(0)
    moved = [np.linalg.norm(z[group != g].mean(0)) for g in range(4)]
    np.testing.assert_allclose(_shift_without(x, group), moved, rtol=1e-9)
    constant = np.column_stack([x, np.full(50, 0.1)]).astype(np.float32)  # moves nothing
    np.testing.assert_allclose(_shift_without(constant, group), moved, rtol=1e-5)


def test_twins_are_of_both_kinds_and_five_or_more(clf, train, twins):
    assert len(twins.untrained) == 5
    assert len(twins.permuted) == 3
    assert all(not twin.members_ for twin in twins.permuted)
    before = train.obs.copy()
    for n_untrained, n_permuted in ((5, 0), (0, 5), (2, 1)):
        with pytest.raises(InvalidInputError, match="5 or more, some of either kind"):
            faithfulness.Twins(twins.untrained[:n_untrained], twins.permuted[:n_permuted])
    assert train.obs.equals(before)


@given(st.floats(-5, 5), st.lists(st.floats(-1, 1), min_size=5, max_size=9))
def test_beyond_twins_is_above_all_and_clearly_above_the_mean(effect, values):
    values = np.array(values)
    found = beyond_twins(effect, values)
    spread = values.std(ddof=1) * np.sqrt(1 + 1 / len(values))
    assert found == (effect > values.max() and effect > values.mean() + 3 * spread)


# -- each check by itself -------------------------------------------------------------------------


def test_completeness_sums_what_the_integrated_gradient_holds(clf, cohort):
    plain = GradientExplainer(clf, target="blast", mode="own")
    whole = GradientExplainer(clf, target="blast", mode="own", method=Integrated(20))
    result = faithfulness.completeness(plain, cohort, n_steps=20)
    np.testing.assert_allclose(
        result.explained, whole.attribute(cohort).sum(1), rtol=1e-3, atol=1e-3
    )
    assert result.unit == "cell"
    assert len(result.change) == cohort.n_obs
    per_sample = faithfulness.completeness(
        GradientExplainer(clf, target="blast", mode="set"), cohort, n_steps=4
    )
    assert per_sample.unit == "sample"
    assert len(per_sample.change) == 4


def test_completeness_has_no_meaning_for_the_context_part(clf, cohort):
    with pytest.raises(InvalidInputError, match="'own' or 'set'"):
        faithfulness.completeness(GradientExplainer(clf, target="blast", mode="context"), cohort)


@pytest.mark.parametrize("mode", ["own", "set", "context"])
def test_deletion_starts_at_the_output_and_ends_where_all_is_gone(mode, clf, cohort):
    explainer = GradientExplainer(clf, target="blast", mode=mode)
    result = faithfulness.deletion(explainer, cohort, n_points=3, n_random=2)
    output = clf.decision_function(cohort)[:, list(clf.classes_).index("blast")]
    per_sample = [output[cohort.obs["sample"] == s].mean() for s in cohort.obs["sample"].unique()]
    assert result.curve[0] == pytest.approx(np.mean(per_sample), rel=1e-4)
    curves = [result.curve, result.reversed, result.distance, *result.random]
    np.testing.assert_allclose([c[0] for c in curves], result.curve[0], rtol=1e-5)
    np.testing.assert_allclose([c[-1] for c in curves], result.curve[-1], rtol=1e-4)
    assert result.area(result.curve) > result.area(result.reversed)


def test_the_cascade_counts_parameters_and_leaves_the_model_alone(clf, cohort):
    before = {k: v.clone() for k, v in clf.net_.module_.state_dict().items()}
    result = faithfulness.parameter_randomisation(
        AttentionExplainer(clf, net_layer=0), cohort, n_repeats=1, n_untrained=2
    )
    assert result.stages == ["nothing", "output", "layer 1", "layer 0"]
    assert result.n_parameters == sum(p.numel() for p in clf.net_.module_.parameters())
    assert result.changed[0] == 0
    assert result.changed[1] == sum(p.numel() for p in clf.net_.module_.output.parameters())
    assert (np.diff(result.changed) > 0).all()
    # What comes after the explained layer does not matter to its attention.
    np.testing.assert_allclose(result.similarity[0, :3], 1, atol=1e-3)
    assert result.similarity[0, 3] < 0.9
    for name, value in clf.net_.module_.state_dict().items():
        assert (value == before[name]).all()


def test_labels_are_shuffled_within_samples_and_given_back(clf, cohort, train):
    before = train.copy()
    clf_small = copy.deepcopy(clf).set_params(max_epochs=1)
    explainer = GradientExplainer(clf_small, target="blast")
    by_column = faithfulness.label_randomisation(explainer, train, cohort, n_untrained=2)
    given = faithfulness.label_randomisation(
        explainer, train, cohort, y=train.obs["cell_type"].to_numpy(), n_untrained=2
    )
    assert by_column.similarity == pytest.approx(given.similarity)
    assert train.obs.equals(before.obs)
    np.testing.assert_array_equal(train.X, before.X)


def test_ablation_is_what_the_net_says_without_the_head(clf, cohort, twins):
    result = faithfulness.head_ablation(
        AttentionExplainer(clf, net_layer=1), cohort, "cell_type", twins=twins, n_random=2
    )
    module = clf.net_.module_
    name = cohort.obs["sample"].unique()[0]
    # One sample by hand: the head's context says nothing.
    data = cohort[cohort.obs["sample"] == name].copy()
    alone = faithfulness.head_ablation(
        AttentionExplainer(clf, net_layer=1), data, "cell_type", twins=twins, n_random=2
    )
    x = torch.from_numpy(data.X)
    with torch.no_grad():
        contexts = module.contexts(x)
        values = contexts[1].key_value.clone()
        values[:, 2] = 0
        without = module(x, contexts=[contexts[0], AttentionContext(values, contexts[1].key)])
        full = module(x)
    change = without - without.mean(1, keepdim=True) - full + full.mean(1, keepdim=True)
    change = change.abs().mean(1).numpy()
    table = alone.effects.set_index(["head", "population"])
    for population in ("blast", "T", "myeloid"):
        rows = (data.obs["cell_type"] == population).to_numpy()
        row = table.loc[("head2", population)]
        assert row["change"] == pytest.approx(change[rows].mean(), rel=1e-3, abs=1e-5)
        assert row["n_cells"] == rows.sum()
    assert len(result.effects) == 4 * 3


def test_hiding_cells_from_the_only_head_is_leaving_them_out_of_the_context(train, cohort):
    clf = ReluFormerClassifier(
        n_members=0,
        sample_key="sample",
        label_key="cell_type",
        n_layers=1,
        n_heads=1,
        hidden_dim=8,
        max_epochs=2,
        steps_per_epoch=10,
        random_state=0,
    ).fit(train)
    explainer = AttentionExplainer(clf, net_layer=-1)
    twins = faithfulness.twins(clf, train, n_untrained=4, n_permuted=1)
    result = faithfulness.head_ablation(explainer, cohort, "cell_type", twins=twins, n_random=2)
    assigned = explainer.attribute(cohort).relative[:, 0] > 1
    assert result.hidden["n_cells"].tolist() == [assigned.sum()]
    changes = []
    for name in cohort.obs["sample"].unique():
        rows = (cohort.obs["sample"] == name).to_numpy()
        x, kept = torch.from_numpy(cohort.X[rows]), torch.from_numpy(~assigned[rows])
        with torch.no_grad():
            change = clf.net_.module_(x, context_weight=kept.float()) - clf.net_.module_(x)
        changes.append((change - change.mean(1, keepdim=True)).abs().numpy())
    assert result.hidden["change"][0] == pytest.approx(np.concatenate(changes).mean(), rel=1e-3)


def test_sensitivity_grows_with_the_noise(clf, cohort):
    result = faithfulness.sensitivity(
        GradientExplainer(clf, target="blast"), cohort, noise=(0.01, 0.3)
    )
    assert result.change[:, 0].max() < result.change[:, 1].min()
    with pytest.raises(InvalidInputError, match="rising"):
        faithfulness.sensitivity(GradientExplainer(clf, target="blast"), cohort, noise=(0.3, 0.1))


def test_a_model_agrees_with_itself(clf, cohort, twins):
    same = faithfulness.seed_agreement(
        [AttentionExplainer(clf, net_layer=-1)] * 2, cohort, twins=twins
    )
    assert same.agreement.tolist() == [1.0]
    assert same.holds
    with pytest.raises(InvalidInputError, match="two or more"):
        faithfulness.seed_agreement([AttentionExplainer(clf, net_layer=-1)], cohort, twins=twins)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (
            lambda clf, data, twins: faithfulness.completeness(
                AttentionExplainer(clf, net_layer=-1), data
            ),
            InvalidInputError,
            "completeness needs a GradientExplainer, got AttentionExplainer",
        ),
        (
            lambda clf, data, twins: faithfulness.head_ablation(
                GradientExplainer(clf, target="blast"), data, "cell_type", twins=twins
            ),
            InvalidInputError,
            "head_ablation needs a AttentionExplainer, got GradientExplainer",
        ),
        (
            lambda clf, data, twins: faithfulness.deletion(clf, data),
            InvalidInputError,
            "deletion needs a GradientExplainer, got ReluFormerClassifier",
        ),
        (
            lambda clf, data, twins: faithfulness.seed_agreement([clf, clf], data, twins=twins),
            InvalidInputError,
            "seed_agreement needs a AttentionExplainer, got ReluFormerClassifier",
        ),
        (
            lambda clf, data, twins: faithfulness.head_ablation(
                AttentionExplainer(clf, net_layer=-1), data, "lineage", twins=twins
            ),
            MissingKeyError,
            r"population 'lineage' was not found; there is 'sample', .*'cell_type'",
        ),
        (
            lambda clf, data, twins: faithfulness.deletion(
                GradientExplainer(clf, target="NK"), data
            ),
            InvalidInputError,
            "target='NK' is not among the classes 'T', 'blast', 'myeloid'",
        ),
    ],
)
def test_what_cannot_be_checked_is_said(call, error, says, clf, cohort, twins):
    with pytest.raises(error, match=says):
        call(clf, cohort, twins)


def test_checks_leave_no_trace(clf, cohort, twins):
    before = cohort.copy()
    state, numpy_state = torch.get_rng_state(), np.random.mtrand._rand.get_state()[1].copy()
    grads = [copy.deepcopy(p.grad) for p in clf.net_.module_.parameters()]
    for explainer in (
        GradientExplainer(clf, target="blast"),
        AttentionExplainer(clf, net_layer=-1),
    ):
        with torch.no_grad():
            faithfulness.parameter_randomisation(explainer, cohort, n_repeats=1, n_untrained=2)
            faithfulness.sensitivity(explainer, cohort, n_draws=1)
            if isinstance(explainer, GradientExplainer):
                faithfulness.deletion(explainer, cohort, n_points=3, n_random=2)
            else:
                faithfulness.attention_deletion(
                    explainer, cohort, twins=twins, n_points=3, n_random=2
                )
    assert (torch.get_rng_state() == state).all()
    np.testing.assert_array_equal(np.random.mtrand._rand.get_state()[1], numpy_state)
    for old, parameter in zip(grads, clf.net_.module_.parameters(), strict=True):
        assert (parameter.grad is None) if old is None else bool((parameter.grad == old).all())
    assert not clf.net_.module_.training
    np.testing.assert_array_equal(cohort.X, before.X)
    assert list(cohort.obs) == list(before.obs)
