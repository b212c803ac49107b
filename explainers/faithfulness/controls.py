"""Nets that learnt nothing, as controls of checks that ask whether something was learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.base import clone

from explainers._twins import with_estimator
from fcm_estimators.classifier import ReluFormerClassifier
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.inference import SetEstimator, fitted_net, read_labels

__all__ = ["Twins", "twins"]

Explainer = TypeVar("Explainer", bound=Any)

# At least so many controls, and at least one of each kind.
_FEWEST_TWINS = 5
# What was learnt exceeds the mean of the controls by this many SD of a further control.
_BEYOND = 3.0


@dataclass(frozen=True)
class Twins:
    """Controls of a model, from :func:`twins`.

    Attributes
    ----------
    untrained : list of fitted estimators
        The model with new weights and the same scale.
    permuted : list of fitted estimators
        Models of the same kind, trained on labels, or on membership of gates, that were shuffled
        within each sample.
    """

    untrained: Sequence[SetEstimator]
    permuted: Sequence[SetEstimator]

    def __post_init__(self) -> None:
        n_all = len(self.untrained) + len(self.permuted)
        if not self.untrained or not self.permuted or n_all < _FEWEST_TWINS:
            raise InvalidInputError(
                f"{len(self.untrained)} untrained and {len(self.permuted)} label-permuted twins: a "
                f"check of learning needs {_FEWEST_TWINS} or more, some of either kind."
            )

    def explainers(self, explainer: Explainer) -> list[Explainer]:
        """The same explainer for each twin."""
        return [with_estimator(explainer, twin) for twin in (*self.untrained, *self.permuted)]


def twins(
    estimator: ReluFormerClassifier,
    train: AnnData,
    *,
    y: Any = None,
    n_untrained: int = 5,
    n_permuted: int = 3,
    random_state: int = 0,
) -> Twins:
    """Make controls: nets with new weights, and nets trained on shuffled labels.

    Each label-permuted twin is a training of its own, without members. For a PolygonRegressor, fit
    the twins yourself and pass them to :class:`Twins`.

    Parameters
    ----------
    estimator : ReluFormerClassifier
        Fitted.
    train : AnnData
        Its training data.
    y : array-like of shape (n_train_cells,), optional
        Labels of ``train``. Default: its column ``label_key``.
    n_untrained : int, default 5
    n_permuted : int, default 3
    random_state : int, default 0

    Returns
    -------
    Twins

    Raises
    ------
    InvalidInputError
        There are fewer than five twins, or none of one kind; or the estimator has no classes.

    References
    ----------
    Adebayo et al., *Sanity checks for saliency maps*, arXiv 1810.03292.
    """
    fitted_net(estimator)
    if not isinstance(estimator, ReluFormerClassifier):
        raise InvalidInputError(
            f"twins needs a ReluFormerClassifier, got {type(estimator).__name__}. Fit twins on "
            "shuffled membership yourself, and pass them to Twins(untrained, permuted)."
        )
    return Twins(
        [estimator.untrained_twin(random_state + i) for i in range(n_untrained)],
        [permuted_twin(estimator, train, y, random_state + i) for i in range(n_permuted)],
    )


def permuted_twin(
    estimator: ReluFormerClassifier, train: AnnData, y: Any, random_state: int
) -> ReluFormerClassifier:
    """The estimator trained on labels that are shuffled within each sample, with another seed."""
    labels = np.array(read_labels(train, y, estimator.label_key, train.n_obs), dtype=object)
    sample = np.zeros(train.n_obs)
    if estimator.sample_key is not None:
        sample = train.obs[estimator.sample_key].astype(str).to_numpy()
    rng = np.random.default_rng(random_state)
    for name in pd.unique(sample):
        rows = np.flatnonzero(sample == name)
        labels[rows] = labels[rng.permutation(rows)]
    # Another seed, because equal initial weights alone would make the two models similar.
    seed = int(np.random.SeedSequence([random_state, 1]).generate_state(1)[0])
    made = clone(estimator).set_params(
        random_state=seed, n_members=0, validation_fraction=None, warm_start=False
    )
    fitted: ReluFormerClassifier = made.fit(train, labels)
    return fitted


def beyond_twins(effect: float, of_twins: np.ndarray) -> bool:
    """Whether an effect is above those of all twins, and clearly above their mean.

    It has to exceed the mean by three times the SD that a further twin is expected to have.
    """
    spread = of_twins.std(ddof=1) * np.sqrt(1 + 1 / len(of_twins))
    return bool(effect > max(of_twins.max(), of_twins.mean() + _BEYOND * spread))


def logarithms(effect: float, of_twins: np.ndarray) -> tuple[float, np.ndarray]:
    """Logarithms of effects that are ratios; an effect of 0 becomes small."""
    values = np.log(np.maximum(np.append(of_twins, effect), 1e-3))
    return float(values[-1]), values[:-1]


def farthest(samples_x: np.ndarray, spans: Sequence[tuple[int, int]]) -> np.ndarray:
    """Distance of each cell from the mean of its sample, in SD of the sample, shape (N,)."""
    parts = [samples_x[start:stop].astype(np.float64) for start, stop in spans]
    return np.concatenate(
        [np.linalg.norm((x - x.mean(0)) / np.maximum(x.std(0), 1e-12), axis=1) for x in parts]
    )
