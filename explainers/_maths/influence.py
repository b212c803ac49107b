"""Influence of cells through the contexts of one sample: derivatives with respect to their weight.

Cells reach each other only through the contexts, which are weighted means over cells. The
derivative of an output with respect to the weight of a cell is therefore, to first order, what the
output loses if the cell is not there (Koh and Liang, *Understanding black-box predictions via
influence functions*, arXiv 1703.04730, for training points; here for the cells of a sample).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from explainers._maths.outputs import Output, VertexOutput
from fcm_estimators.nn.relu_attention import AttentionContext
from fcm_estimators.nn.sources import Rows
from fcm_estimators.nn.streaming import Stream


def weight_gradient(stream: Stream, output: Output, cells: Tensor, into: Rows) -> None:
    """Add the gradient of the mean output with respect to the weight of each cell.

    Parameters
    ----------
    stream : Stream
        Stream of one sample that keeps its layers. It cannot be used again.
    output : Output
    cells : bool Tensor of shape (N,)
        The targets T, over which the mean is taken. A size is a sum over T, a vertex has no T.
    into : Rows of zeros, shape (N, 1)
    """
    if isinstance(output, VertexOutput):
        pooled = AttentionContext(*(p.clone().requires_grad_() for p in stream.contexts[-1]))
        value = output.coordinate(stream.module, [*stream.contexts[:-1], pooled])
        stream.backward(None, torch.autograd.grad(value, list(pooled)), into_weight=into)
        return
    n_targets = max(int(cells.sum()), 1) if output.is_mean else 1

    def of_outputs(start: int, stop: int, outputs: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = outputs.requires_grad_()
            total = output(leaf)[cells[start:stop]].sum() / n_targets
        return torch.autograd.grad(total, leaf)[0]

    stream.backward(of_outputs, into_weight=into)


def probe_gradient(stream: Stream, cells: Tensor, generator: torch.Generator, into: Rows) -> None:
    """Add the gradient of a random combination of the outputs with respect to each cell's weight.

    ``E[(d(r · z)/dw_j)^2] = |dz/dw_j|^2`` for probes r of independent signs (Hutchinson), and the
    same for the sum over a group of cells. The outputs z are logits minus their mean over classes,
    which softmax ignores; r is scaled so that the mean square is over targets and classes.

    Parameters
    ----------
    stream : Stream
        Stream of one sample that keeps its layers. It cannot be used again.
    cells : bool Tensor of shape (N,)
        The targets.
    generator : torch.Generator
        Draws r.
    into : Rows of zeros, shape (N, 1)
    """
    n_targets = max(int(cells.sum()), 1)

    def signs(start: int, stop: int, outputs: Tensor) -> Tensor:
        shape, scale = outputs.shape, math.sqrt(n_targets * outputs.shape[1])
        drawn = torch.randint(2, shape, generator=generator, dtype=torch.float64) * 2 - 1
        drawn = drawn.to(outputs) * cells[start:stop].unsqueeze(1)
        return (drawn - drawn.mean(1, keepdim=True)) / scale

    stream.backward(signs, into_weight=into)
