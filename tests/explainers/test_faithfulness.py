"""Checks of explanations, and that broken explanations fail them."""

import numpy as np
import pytest

from explainers import AttentionExplainer, GradientExplainer, faithfulness
from explainers.attention import Received
from fcm_estimators import ReluFormerClassifier
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


class _BrokenGradient(GradientExplainer):
    def _attribute(self, *args, **kwargs):
        return self.change(super()._attribute(*args, **kwargs))


class _BrokenAttention(AttentionExplainer):
    def _attribute(self, *args, **kwargs):
        received = super()._attribute(*args, **kwargs)
        return Received(self.change(received.relative), received.absorbed)


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
        make(mode="own", method="integrated", n_steps=16), data
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
    return lambda seed=0: base(models[seed], layer=0)


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
