"""Copies of an explainer for another model, as controls."""

from __future__ import annotations

import copy
from typing import Any, Protocol, TypeVar

from fcm_estimators.inference import SetEstimator


class _Explains(Protocol):
    estimator: Any


Explainer = TypeVar("Explainer", bound=_Explains)


def with_estimator(explainer: Explainer, estimator: SetEstimator) -> Explainer:
    """Return a copy of an explainer for another model."""
    other = copy.copy(explainer)
    other.estimator = estimator
    return other


def of_untrained(explainer: Explainer, seed: int) -> Explainer:
    """Return a copy of an explainer for an untrained model with new weights."""
    return with_estimator(explainer, explainer.estimator.untrained_twin(seed))
