"""Checked settings of an influence explanation, and its computation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from explainers._gradient_plan import differentiable, sample_seed
from explainers._maths.influence import probe_gradient, weight_gradient
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
from fcm_estimators.nn.own import OwnModule
from fcm_estimators.nn.sources import Rows, Stored
from fcm_estimators.nn.streaming import Stream


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
        net = fitted_net(estimator)
        if isinstance(net, OwnModule) and not net.takes_weights:
            raise InvalidInputError(
                f"Influence needs a net that takes weights of cells; this is {net.name}. Give its "
                "forward a parameter context_weight and train it again, or use "
                "GradientExplainer(..., mode='set')."
            )
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
        targets = self.targets(cells, chosen)
        n_cells = len(targets)
        total: Rows | None = None
        for found in self._gradients(cells, targets):
            if self.output is None:
                total = total or _rows(cells, fitted_net(self.estimator).input_mean)
                for i, j in _spans(n_cells):
                    square = found.get(i, j).square() / self.probes.n_probes
                    total.put(i, total.get(i, j) + square)
            else:
                total = found
        for start, stop in _spans(n_cells):
            if total is None:
                yield start, stop, np.full(stop - start, np.nan)
                continue
            values = total.get(start, stop)[:, 0]
            # The derivative says what one cell more would change; hidden is 1 % of the cells.
            values = values.sqrt() if self.output is None else -values
            yield start, stop, n_cells / 100 * values.numpy(force=True)

    def of_groups(self, cells: SampleCells, chosen: np.ndarray, group: np.ndarray) -> np.ndarray:
        """Change of the target, to first order, if one group of cells after the other is hidden.

        Parameters
        ----------
        cells : SampleCells
        chosen : bool ndarray of shape (n,)
        group : ndarray of int of shape (n,)

        Returns
        -------
        ndarray of shape (G,)
            For any change the root mean square over targets and classes. What cells of a group do
            to an output may cancel, so this is less than the sum over cells. NaN without targets.
        """
        sums = [
            np.bincount(group, _values(found, len(group)))
            for found in self._gradients(cells, self.targets(cells, chosen))
        ]
        if not sums:
            return np.full(group.max() + 1, np.nan)
        return -sums[0] if self.output is not None else np.sqrt(np.square(sums).mean(0))

    def _gradients(self, cells: SampleCells, targets: np.ndarray) -> Iterator[Rows]:
        """Derivatives by the weight of each cell: of the target, or of each probe of all outputs.

        There are none without target cells.
        """
        net = net_for(fitted_net(self.estimator), cells.glance.dtype)
        mask = torch.from_numpy(targets).to(net.input_mean.device)
        if not targets.any() and not isinstance(self.output, VertexOutput):
            return

        def new_stream() -> Stream:
            return stream(net, cells, keep_layers=True)

        if self.output is None:
            seed = sample_seed(self.probes.random_state, cells.name)
            generator = torch.Generator().manual_seed(seed)
            for _ in range(self.probes.n_probes):
                found = _rows(cells, net.input_mean)
                with differentiable():
                    probe_gradient(new_stream(), mask, generator, found)
                yield found
        else:
            found = _rows(cells, net.input_mean)
            with differentiable():
                weight_gradient(new_stream(), self.output, mask, found)
            yield found

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
                value = self.output.coordinate(found.module, found.contexts)
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


def _rows(cells: SampleCells, like: Tensor) -> Rows:
    """Rows of zeros, one number per cell."""
    n_cells = len(cells.rows)
    return FileRows(n_cells, 1, like) if cells.in_file else Stored(like.new_zeros(n_cells, 1))


def _values(found: Rows, n_cells: int) -> np.ndarray:
    parts = [found.get(i, j)[:, 0].numpy(force=True) for i, j in _spans(n_cells)]
    return np.concatenate(parts).astype(np.float64)


def _spans(n_cells: int, block: int = 1 << 18) -> Iterator[tuple[int, int]]:
    return ((i, min(i + block, n_cells)) for i in range(0, n_cells, block))
