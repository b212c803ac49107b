"""Nets that are not made of ReluFormer layers: a scale around any net, and streams through it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fcm_estimators.nn.reluformer import ScaledModule
from fcm_estimators.nn.sources import CellSource, Rows
from fcm_estimators.nn.streaming import Stream


class OwnModule(ScaledModule):
    """Any net for packed samples, with clipped and standardised inputs.

    Parameters
    ----------
    n_markers : int
        Markers M.
    net : nn.Module
        Called with standardised cells of shape (N, M) and the offsets of the samples. If its
        ``forward`` has a parameter ``context_weight``, it also gets the weight of each cell.
    """

    def __init__(self, n_markers: int, net: nn.Module) -> None:
        super().__init__(n_markers)
        self.net = net

    @property
    def name(self) -> str:
        """Name of the class of the net."""
        return type(self.net).__name__

    @property
    def takes_weights(self) -> bool:
        """Whether the net takes the weight of each cell."""
        return "context_weight" in inspect.signature(self.net.forward).parameters

    def copy_scale(self, other: ScaledModule) -> None:
        """Take over the scale of another net; the net's own buffers go with its weights."""
        for name, value in other.named_buffers(recurse=False):
            self.get_buffer(name).copy_(value)

    def forward(
        self,
        x: Tensor,
        offsets: Sequence[int] | None = None,
        *,
        context_weight: Tensor | None = None,
    ) -> Tensor:
        """Outputs of every cell, shape (N, n_outputs).

        Parameters
        ----------
        x : Tensor of shape (N, M)
            Cells in the caller's units, samples packed.
        offsets : sequence of S + 1 int, optional
            Row limits of the samples. Default: all rows are one sample.
        context_weight : Tensor of shape (N,), optional
            Weight of each cell in its sample. Default: 1 for all.

        Raises
        ------
        ValueError
            A weight is not 1, and the net takes no weights.
        """
        offsets = [0, len(x)] if offsets is None else offsets
        weights: dict[str, Tensor] = {}
        if self.takes_weights:
            ones = x.new_ones(len(x))
            weights["context_weight"] = ones if context_weight is None else context_weight
        elif context_weight is not None and bool((context_weight != 1).any()):
            raise ValueError(
                f"{self.name} takes no weights of cells; give its forward a parameter "
                "context_weight."
            )
        outputs: Tensor = self.net(self.standardise(x), offsets, **weights)
        return outputs


class WholeStream(Stream):
    """Cells of one sample that go through an :class:`OwnModule` in one piece.

    It has no contexts, and what is said of memory for :class:`Stream` does not hold.

    Parameters
    ----------
    module : OwnModule
    source : CellSource
        Cells of one sample.
    weight : Tensor of shape (N,), optional
    """

    def __init__(
        self, module: OwnModule, source: CellSource, *, weight: Tensor | None = None
    ) -> None:
        # Not that of Stream, which sends the cells through layers.
        self.own, self.source = module, source
        self.module: Any = module
        self._weights, self._rows = weight, max(source.n_cells, 1)
        self.contexts, self.layers = [], []

    @torch.no_grad()
    def outputs(self) -> Iterator[tuple[int, int, Tensor]]:
        """Yield start, stop and outputs of all cells together."""
        n_cells = self.source.n_cells
        yield 0, n_cells, self.own(self.source.read(0, n_cells), context_weight=self._weights)

    def backward(
        self,
        grad_outputs: Callable[[int, int, Tensor], Tensor] | None,
        grad_pooled: Sequence[Tensor | None] = (None, None),
        *,
        into: Rows | None = None,
        into_weight: Rows | None = None,
        parameters: Sequence[Tensor] = (),
    ) -> list[Tensor]:
        """Compute gradients as :meth:`Stream.backward` does, by autograd.

        Raises
        ------
        ValueError
            The outputs depend on the weights of cells, but not in a differentiable way.
        """
        n_cells = self.source.n_cells
        with torch.enable_grad():
            x = self.source.read(0, n_cells).detach().clone().requires_grad_()
            weight = x.new_ones(n_cells) if self._weights is None else self._weights.to(x)
            weight = weight.detach().clone().requires_grad_(into_weight is not None)
            outputs = self.own(x, context_weight=weight)
        grad = torch.zeros_like(outputs)
        if grad_outputs is not None:
            grad = grad_outputs(0, n_cells, outputs.detach().clone())
        wanted = [x, *([weight] if into_weight is not None else []), *parameters]
        found = list(torch.autograd.grad(outputs, wanted, grad, allow_unused=True))
        if into_weight is not None:
            of_weight = found.pop(1)
            if of_weight is None:
                self._require_unweighted(x.detach(), outputs.detach())
            else:
                into_weight.put(0, into_weight.get(0, n_cells) + of_weight.unsqueeze(1))
        if into is not None and found[0] is not None:
            into.put(0, into.get(0, n_cells) + found[0])
        of_parameters = zip(parameters, found[1:], strict=True)
        return [torch.zeros_like(p) if g is None else g for p, g in of_parameters]

    @torch.no_grad()
    def _require_unweighted(self, x: Tensor, outputs: Tensor) -> None:
        """Raise ValueError if hiding every second cell changes the outputs."""
        weight = x.new_ones(len(x))
        weight[::2] = 0
        if not torch.allclose(self.own(x, context_weight=weight), outputs):
            raise ValueError(
                f"The outputs of {self.own.name} depend on context_weight, but have no gradient "
                "with respect to it (e.g. context_weight > 0 has none). Multiply by the weights, "
                "so that influence can be computed."
            )
