"""Checked settings of an influence explanation, and its computation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from explainers._gradient_plan import differentiable, sample_seed
from explainers._maths.influence import probed_change, weight_gradient
from explainers._maths.outputs import ClassOutput, Output, SizeOutput, VertexOutput
from explainers.targets import AnyChange, output_of
from fcm_estimators.classifier import ReluFormerClassifier
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.inference import (
    FileRows,
    SampleCells,
    SetEstimator,
    by_block,
    fitted_net,
    net_for,
    stream,
)
from fcm_estimators.nn.sources import Rows, Stored


@dataclass(frozen=True)
class InfluencePlan:
    """Model and target of an influence explanation.

    Attributes
    ----------
    estimator : SetEstimator
    output : Output or None
        None: any change.
    probes : AnyChange
        Number and seed of the probes for any change.
    label : int or None
        The targets are the cells that the model gives this class; None: they are given.
    """

    estimator: SetEstimator
    output: Output | None
    probes: AnyChange
    label: int | None

    @classmethod
    def of(cls, estimator: SetEstimator, target: Any, of: Any) -> InfluencePlan:
        """Check the settings of an explainer.

        Raises
        ------
        InvalidInputError, MissingKeyError
            The target does not exist, or has no target cells although ``of`` names some.
        """
        any_change = isinstance(target, AnyChange)
        if any_change and not isinstance(estimator, ReluFormerClassifier):
            raise InvalidInputError(
                f"target={target!r} is for classifiers. Name a Vertex or the GateSize of a gate."
            )
        output = None if any_change else output_of(estimator, target)
        if isinstance(output, VertexOutput) and of is not None:
            raise InvalidInputError(
                "A vertex belongs to the whole sample and has no target cells. Use of=None."
            )
        label = None
        if isinstance(of, str) and isinstance(estimator, ReluFormerClassifier):
            names = [str(c) for c in estimator.classes_]
            label = names.index(of) if of in names else None
        return cls(estimator, output, target if any_change else AnyChange(), label)

    @property
    def name(self) -> str:
        """What is explained, in words."""
        return "any change of the outputs" if self.output is None else self.output.name

    def targets(self, cells: SampleCells, chosen: np.ndarray) -> np.ndarray:
        """The targets among the cells of a sample; ``chosen`` unless a class is named."""
        if self.label is None:
            return chosen
        net, model = fitted_net(self.estimator), cast(ReluFormerClassifier, self.estimator)
        blocks = by_block(stream(net, cells).outputs())
        return np.concatenate([model.decide(logits) == self.label for _, _, logits in blocks])

    def blocks(
        self, cells: SampleCells, chosen: np.ndarray
    ) -> Iterator[tuple[int, int, np.ndarray]]:
        """Influence of the cells of one sample, block by block.

        Yields
        ------
        start, stop and influence, of shape (stop - start,), of each block; NaN without targets
        """
        net = net_for(fitted_net(self.estimator), cells.glance.dtype)
        targets = self.targets(cells, chosen)
        n_cells = len(targets)

        def rows() -> Rows:
            if cells.in_file:
                return FileRows(n_cells, 1, net.input_mean)
            return Stored(net.input_mean.new_zeros(n_cells, 1))

        into, mask = rows(), torch.from_numpy(targets).to(net.input_mean.device)
        has_targets = targets.any() or isinstance(self.output, VertexOutput)
        with differentiable():
            if not has_targets:
                pass
            elif self.output is None:
                seed = sample_seed(self.probes.random_state, cells.name)
                generator = torch.Generator().manual_seed(seed)
                into = probed_change(
                    lambda: stream(net, cells, keep_layers=True),
                    mask,
                    rows,
                    self.probes.n_probes,
                    generator,
                )
            else:
                weight_gradient(stream(net, cells, keep_layers=True), self.output, mask, into)
        # The derivative says what one cell more would change; hidden is 1 % of the cells.
        factor = n_cells / 100 * (1 if self.output is None else -1)
        chunks = ((i, j, into.get(i, j)[:, 0]) for i, j in _spans(n_cells))
        for start, stop, values in by_block(chunks):
            yield start, stop, factor * values if has_targets else np.full(stop - start, np.nan)

    def values(self, cells: SampleCells, hidden: np.ndarray | None = None) -> tuple[Tensor, Tensor]:
        """Explained output and raw outputs of all cells of a sample, with some cells hidden.

        Parameters
        ----------
        cells : SampleCells
        hidden : bool ndarray of shape (n,), optional
            Cells that are left out of the contexts; they are still scored.

        Returns
        -------
        output : Tensor of shape (n,)
            A vertex has the same value for all cells.
        outputs : Tensor of shape (n, C)
        """
        net = net_for(fitted_net(self.estimator), cells.glance.dtype)
        weight = None
        if hidden is not None:
            weight = torch.from_numpy(~hidden).to(net.input_mean)
        found = stream(net, cells, weight=weight)
        with torch.no_grad():
            outputs = torch.cat([part.clone() for _, _, part in found.outputs()])
            if isinstance(self.output, VertexOutput):
                value = self.output.coordinate(net, found.contexts)
                return value.expand(len(outputs)), outputs
            if self.output is None:
                return torch.zeros(len(outputs)), outputs
            return self.output(outputs), outputs

    def state(
        self, cells: SampleCells, targets: np.ndarray, hidden: np.ndarray | None = None
    ) -> Tensor:
        """Target with some cells hidden; for any change, the centred outputs of the targets."""
        value, outputs = self.values(cells, hidden)
        if self.output is None:
            centred = outputs - outputs.mean(1, keepdim=True)
            return centred[torch.from_numpy(targets).to(outputs.device)].double()
        chosen = value.double()
        if not isinstance(self.output, VertexOutput):
            chosen = chosen[torch.from_numpy(targets).to(outputs.device)]
        return chosen.sum() if isinstance(self.output, SizeOutput) else chosen.mean()

    def change(self, before: Tensor, after: Tensor) -> float:
        """Change between two states."""
        difference = after - before
        return float(difference.square().mean().sqrt() if self.output is None else difference)

    def counted(self, value: Tensor, outputs: Tensor) -> np.ndarray:
        """Value of each cell for exact changes: a share counts the calls themselves."""
        output = self.output
        if isinstance(output, ClassOutput) and output.kind == "share":
            model = cast(ReluFormerClassifier, self.estimator)
            calls = model.decide(outputs.numpy(force=True)) == output.positive
            return np.asarray(calls, dtype=np.float64)
        return np.asarray(value.double().numpy(force=True))


def _spans(n_cells: int, block: int = 1 << 18) -> Iterator[tuple[int, int]]:
    return ((i, min(i + block, n_cells)) for i in range(0, n_cells, block))
