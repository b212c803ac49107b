"""The skorch net of the estimators, for packed samples."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, cast

import torch
from skorch import NeuralNet
from skorch.callbacks import Callback
from skorch.utils import to_tensor
from torch import Tensor
from torch.utils.data import Subset

from fcm_estimators._fitting.draws import SampleDraws
from fcm_estimators._types import Entries
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.nn import SetModule, streamed
from fcm_estimators.nn.relu_attention import (
    head_overlap,
    head_unevenness,
    received_attention,
)
from fcm_estimators.nn.reluformer import LayerTrace, ReluFormerLayer

# Largest batch, in cells, whose graph is kept in memory as a whole. The graph takes 5 kB per cell.
_ONE_GRAPH = 65_536


class PackedNet(NeuralNet):  # type: ignore[misc]  # skorch has no types
    """skorch net for packed samples.

    Batches are ``(inputs, y)`` with one row per cell, in the form of SampleDraws. The criterion is
    called with the output, ``y`` and the inputs.

    Parameters
    ----------
    head_diversity : float, default 0
        Weight of the overlap of the heads' attention in the training loss.
    head_evenness : float, default 0
        Weight, relative to that overlap, of the unevenness of the attention of all heads together.
    *args, **kwargs
        Passed to NeuralNet.
    """

    # Whether batches of more than _ONE_GRAPH cells go through the net by chunk.
    streams_large_batches = True

    def __init__(
        self,
        *args: Any,
        head_diversity: float = 0.0,
        head_evenness: float = 0.0,
        **kwargs: object,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.head_diversity, self.head_evenness = head_diversity, head_evenness

    @property
    def input_device(self) -> Any:
        """Device that batches must be on."""
        return self.device

    def infer(self, x: dict[str, Tensor], **fit_params: object) -> Tensor:
        """Outputs of all cells of a packed batch."""
        # The CPU computes the offsets, so there is no need to wait for a GPU.
        offsets = [0, *torch.bincount(x["sample"]).cumsum(0).tolist()]
        cells = to_tensor(x["x"], device=self.input_device)
        weight = to_tensor(x["context_weight"], device=self.input_device)
        self.penalty_: Tensor | float = 0.0
        if self.head_diversity == 0 or not self.module_.training:
            streams = self.streams_large_batches and isinstance(self.module_, SetModule)
            if len(cells) <= _ONE_GRAPH or not streams:
                outputs: Tensor = self.module_(cells, offsets, context_weight=weight)
                return outputs
            parameters = list(self.module_.parameters())
            return streamed(
                self.module_, cells, offsets, context_weight=weight, parameters=parameters
            ).outputs
        steps = list(self.module_.trace(cells, offsets, context_weight=weight))
        self.penalty_ = _head_penalty(self.module_, steps, offsets, weight, self.head_evenness)
        encoded = steps[-1].output
        read: Tensor = self.module_.read_out(cells, encoded, offsets, context_weight=weight)
        return read

    def get_loss(
        self, y_pred: Tensor, y_true: Tensor, X: object = None, training: bool = False
    ) -> Tensor:
        """Loss of a packed batch."""
        inputs = to_tensor(X, device=self.input_device)
        loss: Tensor = self.criterion_(y_pred, to_tensor(y_true, device=self.input_device), inputs)
        # The penalty is dropped, because its graph would make the fitted net large and uncopyable.
        penalty, self.penalty_ = self.penalty_, 0.0
        return loss + self.head_diversity * penalty

    @property
    def _default_callbacks(self) -> list[tuple[str, Callback]]:
        # The defaults of skorch print. All callbacks are passed explicitly instead.
        return []


def accelerated_net(*args: Any, device: str, **kwargs: Any) -> PackedNet:
    """Net that trains on the devices of ``accelerate launch``, or on one device without it.

    Raises
    ------
    InvalidInputError
        The package accelerate is not installed, or ``head_diversity`` is used with several
        processes.
    """
    try:
        from accelerate import Accelerator
        from skorch.hf import AccelerateMixin
    except ImportError as error:
        raise InvalidInputError(
            "device='accelerate' needs the package accelerate: install fcm-estimators[gpus]."
        ) from error

    class AcceleratedNet(AccelerateMixin, PackedNet):  # type: ignore[misc]  # skorch has no types
        """Net for one of n processes, which takes every n-th batch; losses are averaged."""

        streams_large_batches = False

        @property
        def input_device(self) -> Any:
            return self.accelerator.device

        def get_iterator(self, dataset: SampleDraws, training: bool = False) -> Any:
            """Batches of this process. All processes have the same number of batches."""
            n, rank = self.accelerator.num_processes, self.accelerator.process_index
            length = len(dataset)
            steps = [step % length for step in range(rank, n * math.ceil(length / n), n)]
            return NeuralNet.get_iterator(self, Subset(dataset, steps), training=training)

        def _initialize_accelerator(self) -> AcceleratedNet:
            # A loss without parameters must not be distributed.
            criteria: list[str] = self._criteria  # type: ignore[has-type]
            self._criteria = []
            try:
                super()._initialize_accelerator()
            finally:
                self._criteria = criteria
            self.criterion_.to(self.accelerator.device)
            return self

        def validation_step(self, batch: object, **fit_params: object) -> Entries:
            """Mean loss over all processes, so that all stop at the same epoch."""
            step = super().validation_step(batch, **fit_params)
            return {**step, "loss": self.accelerator.reduce(step["loss"], reduction="mean")}

    accelerator = Accelerator(cpu=device == "cpu")
    if kwargs.get("head_diversity") and accelerator.num_processes > 1:
        raise InvalidInputError(
            "head_diversity does not work with accelerate in several processes; set it to 0."
        )
    return AcceleratedNet(*args, accelerator=accelerator, **kwargs)


def _head_penalty(
    module: SetModule,
    steps: list[LayerTrace],
    offsets: list[int],
    weight: Tensor,
    evenness: float,
) -> Tensor:
    """Overlap and unevenness, mean over layers. Queries and keys are the cells of the context."""
    total = weight.new_zeros(())
    for layer, step in zip(cast(Iterable[ReluFormerLayer], module.layers), steps, strict=True):
        received = received_attention(
            step.q, step.k, step.context, offsets, layer.n_heads, layer.eps, queries=weight > 0
        )
        total = total + head_overlap(received * weight.unsqueeze(1), offsets)
        if evenness:
            # Otherwise heads may differ by attending to few cells, and no head attends to the rest.
            total = total + evenness * head_unevenness(received, offsets, weight)
    return total / len(steps)
