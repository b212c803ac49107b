"""Check of correctness: whether contributions add up to the change of the output."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from explainers._gradient_plan import Integrated
from explainers._maths.outputs import ClassOutput
from explainers.faithfulness._common import (
    as_tensor,
    explained,
    input_mean,
    input_scale,
    net_of,
    read,
    require_explainer,
)
from explainers.gradient import GradientExplainer
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.nn import SetModule

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from explainers.plotting import AgreementDisplay

# A larger gap fails the check.
_LARGEST_GAP = 0.05


@dataclass(frozen=True)
class Completeness:
    """Result of :func:`completeness`.

    Attributes
    ----------
    explained : ndarray
        Sum of the contributions, per cell (mode "own") or per sample (mode "set").
    change : ndarray
        Expected sum: the output minus the output at the training mean.
    unit : {"cell", "sample"}
    """

    explained: np.ndarray
    change: np.ndarray
    unit: str

    @property
    def gap(self) -> float:
        """Mean absolute difference, relative to the mean absolute change."""
        difference = np.abs(self.explained - self.change).mean()
        return float(difference / np.abs(self.change).mean())

    @property
    def correct(self) -> bool:
        """Whether the gap is below 5 %."""
        return bool(self.gap < _LARGEST_GAP)

    def frame(self) -> pd.DataFrame:
        """Return one row per cell or sample: ``explained``, ``change``."""
        return pd.DataFrame({"explained": self.explained, "change": self.change})

    def plot(self, ax: Axes | None = None) -> AgreementDisplay:
        """Draw explained against actual change; return the Display."""
        from explainers.plotting import AgreementDisplay

        return AgreementDisplay.from_completeness(self).plot(ax=ax)


def completeness(
    explainer: GradientExplainer, adata: AnnData, *, n_steps: int = 64
) -> Completeness:
    """Compare the sum of gradients along a path with the change of the output.

    The path is the straight line from the training mean to the cells, on which all cells of a
    sample move together. Gradient times step adds up to the change of the output: for each cell in
    mode "own", where the contexts stay those of the sample, and for the sum over the sample in
    mode "set".

    Parameters
    ----------
    explainer : GradientExplainer
        Mode "own" or "set".
    adata : AnnData
        Whole samples.
    n_steps : int, default 64
        Number of steps of the midpoint rule.

    Returns
    -------
    Completeness

    Raises
    ------
    InvalidInputError
        The explainer is of another kind, or has mode "context", whose contributions do not add
        up to a change.

    References
    ----------
    Sundararajan et al., *Axiomatic attribution for deep networks*, arXiv 1703.01365.
    """
    require_explainer(explainer, GradientExplainer, what="completeness")
    if explainer.plan().mode == "context":
        raise InvalidInputError(
            "mode='context' is the difference of 'set' and 'own', and its contributions do not add "
            "up to a change. Use mode 'own' or 'set'."
        )
    if isinstance(explainer.plan().method, Integrated):
        explainer = copy.copy(explainer)
        explainer.method = "plain"
    samples = read(explainer, adata)
    mean, scale = input_mean(explainer), input_scale(explainer)
    step = samples.x - mean
    total = np.zeros(len(step))
    for k in range(n_steps):
        points = (mean + (k + 0.5) / n_steps * step).astype(samples.x.dtype)
        total += (explained(explainer, samples, points) * step / scale).sum(1) / n_steps
    change = _change(explainer, samples)
    if explainer.plan().mode == "own":
        return Completeness(total, change, "cell")
    return Completeness(np.add.reduceat(total, samples.offsets[:-1]), change, "sample")


def _change(explainer: GradientExplainer, samples: Any) -> np.ndarray:
    """Output of each cell, or its sum in each sample, minus that at the training mean."""
    output = explainer.plan().output
    module = net_of(explainer, samples)
    parts = []
    with torch.no_grad():
        for start, stop in samples.spans():
            x = as_tensor(explainer, samples.x[start:stop])
            baseline = module.input_mean.expand_as(x)
            if explainer.plan().mode == "own" and isinstance(output, ClassOutput):
                contexts = cast(SetModule, module).contexts(x)
                parts.append(output(module(x)) - output(module(baseline, contexts=contexts)))
            else:
                everything = torch.ones(len(x), dtype=torch.bool, device=x.device)
                before, after = (output.total(module, c, everything) for c in (baseline, x))
                parts.append((after - before).reshape(1))
    return torch.cat(parts).double().cpu().numpy()
