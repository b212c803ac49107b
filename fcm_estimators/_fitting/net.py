"""The skorch net inside the estimators: packed samples in, loss with inputs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, cast

import torch
from skorch import NeuralNet
from skorch.callbacks import (
    Callback,
)
from skorch.utils import to_tensor
from torch import Tensor
from torch.utils.data import Subset

from fcm_estimators._fitting.draws import SampleDraws
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.nn import LayerTrace, ReluFormerLayer, SetModule, streamed
from fcm_estimators.nn.relu_attention import (
    head_overlap,
    head_unevenness,
    received_attention,
)

# Cells of a batch from which on no graph of the whole batch is kept: 5 kB a cell.
_ONE_GRAPH = 65_536


class PackedNet(NeuralNet):
    """skorch net for packed samples.

    Batches are ``(inputs, y)`` with one row per cell, as SampleDraws makes them; the criterion is
    called with the output, ``y`` and the inputs.

    Parameters
    ----------
    head_diversity : float, default 0
        Weight of the overlap of the heads' attention in the training loss.
    head_evenness : float, default 0
        Weight, beside that overlap, of how unevenly the heads look at the cells together.
    *args, **kwargs
        Of NeuralNet.
    """

    # Whether batches of more cells than _ONE_GRAPH go through the net by chunk.
    streams_large_batches = True

    def __init__(
        self,
        *args: Any,
        head_diversity: float = 0.0,
        head_evenness: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.head_diversity, self.head_evenness = head_diversity, head_evenness

    @property
    def input_device(self) -> Any:
        """Where batches have to be."""
        return self.device

    def infer(self, x: dict[str, Tensor], **fit_params: Any) -> Tensor:
        """Outputs of every cell of a packed batch."""
        # Limits are counted where the batch was made, so a GPU is not waited for.
        offsets = [0, *torch.bincount(x["sample"]).cumsum(0).tolist()]
        cells = to_tensor(x["x"], device=self.input_device)
        weight = to_tensor(x["context_weight"], device=self.input_device)
        self.penalty_: Tensor | float = 0.0
        if self.head_diversity == 0 or not self.module_.training:
            if len(cells) <= _ONE_GRAPH or not self.streams_large_batches:
                return self.module_(cells, offsets, context_weight=weight)
            parameters = list(self.module_.parameters())
            return streamed(
                self.module_, cells, offsets, context_weight=weight, parameters=parameters
            ).outputs
        steps = list(self.module_.trace(cells, offsets, context_weight=weight))
        self.penalty_ = _head_penalty(self.module_, steps, offsets, weight, self.head_evenness)
        return self.module_.read_out(cells, steps[-1].output, offsets, context_weight=weight)

    def get_loss(
        self, y_pred: Tensor, y_true: Tensor, X: Any = None, training: bool = False
    ) -> Tensor:
        """Loss of a packed batch."""
        inputs = to_tensor(X, device=self.input_device)
        loss = self.criterion_(y_pred, to_tensor(y_true, device=self.input_device), inputs)
        # Not kept: its graph would make the fitted net large and impossible to copy.
        penalty, self.penalty_ = self.penalty_, 0.0
        return loss + self.head_diversity * penalty

    @property
    def _default_callbacks(self) -> list[tuple[str, Callback]]:
        # skorch's own print; what is wanted is passed explicitly.
        return []


def accelerated_net(*args: Any, device: str, **kwargs: Any) -> PackedNet:
    """Net that trains on the devices of ``accelerate launch``, or on the one there is.

    Raises
    ------
    InvalidInputError
        The package accelerate is not installed.
    """
    try:
        from accelerate import Accelerator
        from skorch.hf import AccelerateMixin
    except ImportError as error:
        raise InvalidInputError(
            "accelerate=True needs the package accelerate: install fcm-estimators[gpus]."
        ) from error

    class AcceleratedNet(AccelerateMixin, PackedNet):
        """Each process takes every n-th batch; what they measure is averaged."""

        streams_large_batches = False

        @property
        def input_device(self) -> Any:
            return self.accelerator.device

        def get_iterator(self, dataset: SampleDraws, training: bool = False) -> Any:
            """Batches of this process; all processes have equally many."""
            n, rank = self.accelerator.num_processes, self.accelerator.process_index
            length = len(dataset)
            own = [step % length for step in range(rank, n * math.ceil(length / n), n)]
            return NeuralNet.get_iterator(self, Subset(dataset, own), training=training)

        def _initialize_accelerator(self) -> AcceleratedNet:
            # A loss without parameters is nothing to distribute.
            criteria: list[str] = self._criteria  # type: ignore[has-type]
            self._criteria = []
            try:
                super()._initialize_accelerator()
            finally:
                self._criteria = criteria
            self.criterion_.to(self.accelerator.device)
            return self

        def validation_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
            """Loss over all processes, so that all stop at the same epoch."""
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
    """Overlap and unevenness, mean over layers; only cells of the context look and are seen."""
    total = weight.new_zeros(())
    for layer, step in zip(cast(Iterable[ReluFormerLayer], module.layers), steps, strict=True):
        given = received_attention(
            step.q, step.k, step.context, offsets, layer.n_heads, layer.eps, queries=weight > 0
        )
        total = total + head_overlap(given * weight.unsqueeze(1), offsets)
        if evenness:
            # Or heads may keep apart by looking at few cells, and leave most to none.
            total = total + evenness * head_unevenness(given, offsets, weight)
    return total / len(steps)
