"""Checks of explanations, and that broken explanations fail them."""

import copy

import numpy as np
import pytest
import torch

from explainers import AttentionExplainer, GradientExplainer, Integrated, faithfulness
from explainers.attention import Received
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
ATTENTION = {
    "deletion": lambda make, data, train: faithfulness.deletion(make(), data),
    "ablation": lambda make, data, train: faithfulness.head_ablation(make(), data, "cell_type"),
    "seeds": lambda make, data, train: faithfulness.seed_agreement([make(), make(1)], data),
}


def gradients(base, clf):
    return lambda **kwargs: base(clf, target="blast", **kwargs)


def attentions(base, models):
    return lambda seed=0: base(models[seed], net_layer=0)


@pytest.mark.parametrize("metric", [*SIGNED, *UNSIGNED])
def test_gradients_of_the_model_pass(metric, clf, cohort, train):
    result = (SIGNED | UNSIGNED)[metric](gradients(GradientExplainer, clf), cohort, train)
    assert result.holds, result.frame()
    assert len(result.frame())


@pytest.mark.parametrize("metric", [*SIGNED, *UNSIGNED])
@pytest.mark.parametrize("kind", [Shuffled, Constant])
def test_no_shuffled_or_constant_gradient_passes(metric, kind, clf, cohort, train):
    make = gradients(broken(kind, _BrokenGradient), clf)
    assert not (SIGNED | UNSIGNED)[metric](make, cohort, train).holds


@pytest.mark.parametrize("metric", SIGNED)
def test_no_negated_gradient_passes_a_signed_check(metric, clf, cohort, train):
    make = gradients(broken(Negated, _BrokenGradient), clf)
    assert not SIGNED[metric](make, cohort, train).holds


@pytest.mark.parametrize("metric", [*UNSIGNED, *ATTENTION])
def test_attention_of_the_model_passes(metric, models, cohort, train):
    result = (UNSIGNED | ATTENTION)[metric](attentions(AttentionExplainer, models), cohort, train)
    assert result.holds, result.frame()
    assert len(result.frame())


@pytest.mark.parametrize("metric", [*UNSIGNED, *ATTENTION])
@pytest.mark.parametrize("kind", [Shuffled, Constant])
def test_no_shuffled_or_constant_attention_passes(metric, kind, models, cohort, train):
    make = attentions(broken(kind, _BrokenAttention), models)
    assert not (UNSIGNED | ATTENTION)[metric](make, cohort, train).holds


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


def test_ablation_is_what_the_net_says_without_the_head(clf, cohort):
    result = faithfulness.head_ablation(
        AttentionExplainer(clf, net_layer=1), cohort, "cell_type", n_random=2
    )
    module = clf.net_.module_
    name = cohort.obs["sample"].unique()[0]
    # One sample by hand: the head's context says nothing.
    data = cohort[cohort.obs["sample"] == name].copy()
    alone = faithfulness.head_ablation(
        AttentionExplainer(clf, net_layer=1), data, "cell_type", n_random=2
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
    explainer = AttentionExplainer(clf)
    result = faithfulness.head_ablation(explainer, cohort, "cell_type", n_random=2)
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


def test_a_model_agrees_with_itself(clf, cohort):
    same = faithfulness.seed_agreement([AttentionExplainer(clf)] * 2, cohort)
    assert same.agreement.tolist() == [1.0]
    assert same.holds
    with pytest.raises(InvalidInputError, match="two or more"):
        faithfulness.seed_agreement([AttentionExplainer(clf)], cohort)


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (
            lambda clf, data: faithfulness.completeness(AttentionExplainer(clf), data),
            InvalidInputError,
            "completeness needs a GradientExplainer, got AttentionExplainer",
        ),
        (
            lambda clf, data: faithfulness.head_ablation(
                GradientExplainer(clf, target="blast"), data, "cell_type"
            ),
            InvalidInputError,
            "head_ablation needs a AttentionExplainer, got GradientExplainer",
        ),
        (
            lambda clf, data: faithfulness.deletion(clf, data),
            InvalidInputError,
            "deletion needs a GradientExplainer or AttentionExplainer, got ReluFormerClassifier",
        ),
        (
            lambda clf, data: faithfulness.seed_agreement([clf, clf], data),
            InvalidInputError,
            "seed_agreement needs a AttentionExplainer, got ReluFormerClassifier",
        ),
        (
            lambda clf, data: faithfulness.head_ablation(AttentionExplainer(clf), data, "lineage"),
            MissingKeyError,
            r"population 'lineage' was not found; there is 'sample', .*'cell_type'",
        ),
        (
            lambda clf, data: faithfulness.deletion(GradientExplainer(clf, target="NK"), data),
            InvalidInputError,
            "target='NK' is not among the classes 'T', 'blast', 'myeloid'",
        ),
    ],
)
def test_what_cannot_be_checked_is_said(call, error, says, clf, cohort):
    with pytest.raises(error, match=says):
        call(clf, cohort)


def test_checks_leave_no_trace(clf, cohort):
    before = cohort.copy()
    state, numpy_state = torch.get_rng_state(), np.random.mtrand._rand.get_state()[1].copy()
    grads = [copy.deepcopy(p.grad) for p in clf.net_.module_.parameters()]
    for explainer in (GradientExplainer(clf, target="blast"), AttentionExplainer(clf)):
        with torch.no_grad():
            faithfulness.parameter_randomisation(explainer, cohort, n_repeats=1, n_untrained=2)
            faithfulness.sensitivity(explainer, cohort, n_draws=1)
            faithfulness.deletion(explainer, cohort, n_points=3, n_random=2)
    assert (torch.get_rng_state() == state).all()
    np.testing.assert_array_equal(np.random.mtrand._rand.get_state()[1], numpy_state)
    for old, parameter in zip(grads, clf.net_.module_.parameters(), strict=True):
        assert (parameter.grad is None) if old is None else bool((parameter.grad == old).all())
    assert not clf.net_.module_.training
    np.testing.assert_array_equal(cohort.X, before.X)
    assert list(cohort.obs) == list(before.obs)
