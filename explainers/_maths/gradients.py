"""Gradients of the outputs of one sample, as functions of tensors.

The module does not change: gradients are taken with respect to a new input tensor, parameters
collect no gradients, and modes and generators keep their state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from explainers._maths.outputs import ClassOutput, Output, VertexOutput
from fcm_estimators.nn import SetModule
from fcm_estimators.nn.relu_attention import AttentionContext
from fcm_estimators.nn.reluformer import ScaledModule
from fcm_estimators.nn.sources import Rows
from fcm_estimators.nn.streaming import Stream

# Number of cells per chunk if cells are independent. It limits the memory of the graph.
_CHUNK = 16_384


def own_gradient(
    module: SetModule,
    contexts: Sequence[AttentionContext],
    x: Tensor,
    output: ClassOutput,
    cells: Tensor,
) -> Tensor:
    """``[j in T] df_j/dx_j`` with the contexts held fixed.

    Parameters
    ----------
    module : SetModule
    contexts : sequence of L AttentionContext
        Contexts of the sample as measured; ``x`` may have been moved.
    x : Tensor of shape (N, M)
        The cells of one sample.
    output : ClassOutput
    cells : bool Tensor of shape (N,)
        The targets T.

    Returns
    -------
    Tensor of shape (N, M)
    """
    out = torch.zeros_like(x)
    rows = cells.nonzero().squeeze(1)
    for chunk in torch.split(rows, _CHUNK):
        moved = x[chunk].detach().requires_grad_()
        total = output(module(moved, contexts=contexts)).sum()
        (out[chunk],) = torch.autograd.grad(total, moved)
    return out


def set_gradient(module: ScaledModule, x: Tensor, output: Output, cells: Tensor) -> Tensor:
    """``d(sum_{i in T} f_i)/dx_j``, including the contexts; shapes as in :func:`own_gradient`."""
    moved = x.detach().clone().requires_grad_()
    total = output.total(module, moved, cells)
    (gradient,) = torch.autograd.grad(total, moved)
    return gradient


def stream_gradient(
    stream: Stream, output: Output, cells: Tensor, into: Rows
) -> Iterator[tuple[int, int, Tensor]]:
    """The set gradient of cells that are read by chunk.

    Parameters
    ----------
    stream : Stream
        Stream of one sample that keeps its layers. It cannot be used again.
    output : Output
    cells : bool Tensor of shape (N,)
        The targets T.
    into : Rows of zeros, shape (N, M)
        Rows that the gradient is added to.

    Yields
    ------
    start, stop and gradient of each chunk
    """
    if isinstance(output, VertexOutput):
        pooled = AttentionContext(*(p.clone().requires_grad_() for p in stream.contexts[-1]))
        total = output.coordinate(stream.module, [*stream.contexts[:-1], pooled])
        stream.backward(None, torch.autograd.grad(total, list(pooled)), into=into)
    else:

        def of_outputs(start: int, stop: int, outputs: Tensor) -> Tensor:
            with torch.enable_grad():
                leaf = outputs.requires_grad_()
                total = output(leaf)[cells[start:stop]].sum()
            return torch.autograd.grad(total, leaf)[0]

        stream.backward(of_outputs, into=into)
    for start, stop, _ in stream.chunks():
        yield start, stop, into.get(start, stop)


def stream_own_gradient(
    stream: Stream, output: ClassOutput, cells: Tensor
) -> Iterator[tuple[int, int, Tensor]]:
    """The own gradient of cells that are read by chunk; as :func:`stream_gradient`."""
    for start, stop, _ in stream.chunks():
        x = stream.source.read(start, stop)
        values = own_gradient(stream.module, stream.contexts, x, output, cells[start:stop])
        yield start, stop, values


def smoothed(
    gradient: Callable[[Tensor], Tensor],
    x: Tensor,
    spread: Tensor,
    n_draws: int,
    generator: torch.Generator,
) -> Tensor:
    """Mean gradient over copies of the cells with Gaussian noise of SD ``spread``, shape (M,)."""
    total = torch.zeros_like(x, dtype=torch.float64)
    for _ in range(n_draws):
        # Double precision, so that the noise does not depend on the precision of the data.
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        total += gradient(x + (noise.to(x) * spread))
    return (total / n_draws).to(x.dtype)


def integrated(
    gradient: Callable[[Tensor], Tensor], x: Tensor, baseline: Tensor, n_steps: int
) -> Tensor:
    """Contributions ``(x - x0) * mean gradient`` on the straight path from ``x0`` to ``x``.

    The mean uses the midpoint rule. All cells of the sample move together, so the contributions
    of the set gradient add up to the change of the summed output (completeness).
    """
    total = torch.zeros_like(x, dtype=torch.float64)
    for step in range(n_steps):
        share = (step + 0.5) / n_steps
        total += gradient(baseline + share * (x - baseline))
    return ((x - baseline) * (total / n_steps)).to(x.dtype)
