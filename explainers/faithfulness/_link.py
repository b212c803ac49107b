"""Whether an explanation is that of the model: held against what the model does."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import Tensor

from explainers._gradient_plan import Integrated
from explainers._maths.outputs import ClassOutput
from explainers.attention import AttentionExplainer
from explainers.faithfulness._common import (
    Explainer,
    as_tensor,
    correlation,
    input_scale,
    layers_of,
)
from explainers.gradient import GradientExplainer
from fcm_estimators.inference import Samples, fitted_net, net_for
from fcm_estimators.nn.relu_attention import received_attention
from fcm_estimators.nn.reluformer import ScaledModule, SetModule

# An explanation that agrees less with the model is not that of this model.
LEAST_LINK = 0.5
# Number and size of the random steps in each sample, in training SD.
_N_STEPS, _STEP = 12, 1e-3
# Cells that move in a step, so that steps differ in what they change.
_SHARE_MOVED = 0.1


def link_with_model(
    explainer: Explainer, samples: Samples, values: np.ndarray, random_state: int
) -> float:
    """Agreement of an explanation with the model, as :class:`Sensitivity` describes it.

    Parameters
    ----------
    explainer : GradientExplainer or AttentionExplainer
    samples : Samples
    values : ndarray of shape (N, K)
        Result of :func:`explained`.
    random_state : int
    """
    if isinstance(explainer, AttentionExplainer):
        return correlation(values.ravel(), _attention(explainer, samples).ravel())
    if isinstance(explainer.plan().method, Integrated):
        predicted, actual = _to_the_mean(explainer, samples, values)
        return float(1 - np.abs(predicted - actual).sum() / np.abs(actual).sum())
    predicted, actual = _along(explainer, samples, values, random_state)
    return correlation(predicted, actual)


def value_of(
    explainer: GradientExplainer, module: ScaledModule, x: Tensor, moved: Tensor
) -> Tensor:
    """Mean output of a sample of which the cells, the contexts or both have moved, by the mode."""
    output, mode = explainer.plan().output, explainer.plan().mode
    if isinstance(output, ClassOutput) and mode == "own":
        return output.mean(module, moved, cast(SetModule, module).contexts(x))
    if isinstance(output, ClassOutput) and mode == "context":
        return output.mean(module, x, cast(SetModule, module).contexts(moved))
    return output.mean(module, moved)


def _along(
    explainer: GradientExplainer, samples: Samples, values: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Change of the output for small random steps: by the gradients, and actual."""
    rng = np.random.default_rng(seed)
    module, scale = _double(explainer), input_scale(explainer)
    predicted, actual = [], []
    for start, stop in samples.spans():
        x = as_tensor(explainer, samples.x[start:stop]).double()
        for _ in range(_N_STEPS):
            step = rng.normal(size=x.shape) * (rng.random((len(x), 1)) < _SHARE_MOVED)
            predicted.append((values[start:stop] * step).sum())
            moved = as_tensor(explainer, _STEP * step * scale)
            with torch.no_grad():
                ends = [value_of(explainer, module, x, x + sign * moved) for sign in (1, -1)]
            actual.append(float(ends[0] - ends[1]) / (2 * _STEP))
    return np.array(predicted), np.array(actual)


def _to_the_mean(
    explainer: GradientExplainer, samples: Samples, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Change of the mean output of each sample from the training mean: by the sums, and actual."""
    module = _double(explainer)
    predicted, actual = [], []
    for start, stop in samples.spans():
        x = as_tensor(explainer, samples.x[start:stop]).double()
        with torch.no_grad():
            ends = [
                value_of(explainer, module, x, moved)
                for moved in (x, module.input_mean.expand_as(x))
            ]
        predicted.append(values[start:stop].sum() / len(x))
        actual.append(float(ends[0] - ends[1]))
    return np.array(predicted), np.array(actual)


def _double(explainer: Explainer) -> ScaledModule:
    return net_for(fitted_net(explainer.estimator), np.dtype(np.float64))


def _attention(explainer: AttentionExplainer, samples: Samples) -> np.ndarray:
    """Received attention, relative to uniform, straight from the queries and keys of the net."""
    module, layers = layers_of(explainer, samples), explainer.plan().layers
    parts = []
    for start, stop in samples.spans():
        x = as_tensor(explainer, samples.x[start:stop])
        with torch.no_grad():
            steps = list(module.trace(x))
            received = torch.cat(
                [
                    received_attention(
                        step.q, step.k, step.context, [0, len(x)], module.n_heads, module.eps
                    )
                    for step in (steps[layer] for layer in layers)
                ],
                1,
            )
            total = received.sum(0)
            relative = received * len(x) / torch.where(total > 0, total, 1.0)
        parts.append(relative.double().cpu().numpy())
    return np.concatenate(parts)
