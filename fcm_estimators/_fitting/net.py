"""The skorch net inside the estimators: loss with inputs, schedule, callbacks."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import pandas as pd
import torch
from skorch import NeuralNet
from skorch.callbacks import (
    Callback,
    EarlyStopping,
    EpochTimer,
    GradientNormClipping,
    LRScheduler,
    PassthroughScoring,
)
from skorch.utils import to_tensor
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from tqdm.auto import tqdm

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


class CellLoss(nn.Module):
    """Cross-entropy of labelled cells, each sample with equal weight; Brier score in validation.

    The Brier score is bounded: a few cells that are wrong with great confidence, which longer
    training makes more confident still, do not decide which epoch is best.

    The log odds ratio of the draw is added to the logits, so the logits themselves learn the
    sample's own class probabilities (case-control correction).

    Parameters
    ----------
    class_weight : Tensor of shape (C,)
    """

    class_weight: Tensor

    def __init__(self, class_weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("class_weight", class_weight)

    def forward(self, logits: Tensor, y: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """Mean over samples of the weighted mean over their labelled cells."""
        weight = self.class_weight[y.clamp(min=0)] * (y >= 0)
        logits = logits + inputs["log_odds_ratio"]
        if self.training:
            loss = nn.functional.cross_entropy(logits, y, reduction="none", ignore_index=-1)
        else:
            truth = nn.functional.one_hot(y.clamp(min=0), logits.shape[1])
            loss = (torch.softmax(logits, 1) - truth).square().sum(1)
        sample = inputs["sample"]
        per_sample = torch.zeros(int(sample[-1]) + 1, dtype=logits.dtype, device=logits.device)
        total = per_sample.index_add(0, sample, loss * weight)
        norm = per_sample.index_add(0, sample, weight)
        counts = norm > 0
        return (total[counts] / norm[counts]).sum() / counts.sum().clamp(min=1)


class TellEpoch(Callback):
    """Tell the training draws which epoch it is, so that each epoch draws anew, and the loss."""

    def on_epoch_begin(self, net: NeuralNet, dataset_train: Any = None, **kwargs: Any) -> None:
        """Set the epoch, counted from 1."""
        dataset_train.epoch = net.history[-1, "epoch"]
        net.criterion_.progress = (net.history[-1, "epoch"] - 1) / max(net.max_epochs - 1, 1)


class ProgressBar(Callback):
    """A bar over epochs with the losses beside it."""

    def on_train_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        """Open the bar."""
        done = len(net.history)
        self.bar_ = tqdm(total=net.max_epochs, initial=done, desc="training", unit="epoch")

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Advance by one epoch."""
        row = net.history[-1]
        self.bar_.set_postfix(
            {k: f"{row[k]:.4f}" for k in ("train_loss", "valid_loss") if k in row}
        )
        self.bar_.update()

    def on_train_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Close the bar."""
        self.bar_.close()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != "bar_"}


class LearningRate(Callback):
    """Write the learning rate of the epoch's last step into the history."""

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Record it."""
        net.history.record("learning_rate", net.optimizer_.param_groups[0]["lr"])


@dataclass(frozen=True)
class WarmUpCosine:
    """Factor on the learning rate: linear rise over the first tenth, then cosine to zero."""

    n_steps: int

    def __call__(self, step: int) -> float:
        n_rise = max(1, round(0.1 * self.n_steps))
        if step < n_rise:
            return (step + 1) / n_rise
        done = min(1.0, (step - n_rise) / max(1, self.n_steps - n_rise))
        return 0.5 * (1 + math.cos(math.pi * done))


def make_net(
    module: nn.Module,
    criterion: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    max_epochs: int,
    steps_per_epoch: int,
    device: str,
    patience: int | None,
    verbose: int,
    head_diversity: float = 0.0,
    head_evenness: float = 0.0,
    checkpoint: Callback | None = None,
    accelerate: bool = False,
) -> PackedNet:
    """Compose the skorch net.

    Parameters
    ----------
    module, criterion : nn.Module
        Ready instances.
    learning_rate, weight_decay : float
        Of AdamW; the rate is the highest of the schedule.
    max_epochs, steps_per_epoch : int
    device : str
    patience : int or None
        Epochs without a better validation loss before training stops; the best epoch is
        restored. None: no validation.
    verbose : int
        1 shows a progress bar.
    head_diversity, head_evenness : float, default 0
        Of :class:`PackedNet`.
    checkpoint : Callback, optional
        Called after all whose state it keeps.
    accelerate : bool, default False
        Train through Hugging Face Accelerate.
    """
    # A process takes one of so many batches.
    n_processes = int(os.environ.get("WORLD_SIZE", 1)) if accelerate else 1
    schedule = WarmUpCosine(max_epochs * math.ceil(steps_per_epoch / n_processes))
    callbacks: list[tuple[str, Callback]] = [
        ("timer", EpochTimer()),
        ("tell_epoch", TellEpoch()),
        ("clip", GradientNormClipping(1.0)),
        ("schedule", LRScheduler("LambdaLR", lr_lambda=schedule, step_every="batch")),
        ("train_loss", PassthroughScoring("train_loss", on_train=True)),
        ("learning_rate", LearningRate()),
    ]
    if patience is not None:
        callbacks += [
            ("valid_loss", PassthroughScoring("valid_loss")),
            ("stop", EarlyStopping(patience=patience, threshold=0, load_best=True, sink=_quiet)),
        ]
    if checkpoint is not None:
        callbacks.append(("checkpoint", checkpoint))
    if verbose:
        callbacks.append(("bar", ProgressBar()))
    make = accelerated_net if accelerate else PackedNet
    return make(
        module,
        criterion=criterion,
        optimizer=torch.optim.AdamW,
        lr=learning_rate,
        optimizer__weight_decay=weight_decay,
        max_epochs=max_epochs,
        batch_size=None,
        iterator_train=DataLoader,
        iterator_valid=DataLoader,
        train_split=None,
        callbacks=callbacks,
        device=device,
        verbose=0,
        head_diversity=head_diversity,
        head_evenness=head_evenness,
    )


def _quiet(*args: Any, **kwargs: Any) -> None:
    """Sink for messages."""


def stopped_early(net: NeuralNet) -> bool:
    """Whether training ended because the validation loss no longer fell."""
    stop = dict(net.callbacks_).get("stop")
    return stop is not None and stop.misses_ == stop.patience


def history_frame(net: NeuralNet) -> pd.DataFrame:
    """A row per epoch: epoch, train_loss, valid_loss, learning_rate, seconds."""
    wanted = {"dur": "seconds"}
    rows = [
        {
            wanted.get(k, k): row[k]
            for k in row
            if k != "batches" and not k.endswith(("_best", "_count"))
        }
        for row in net.history
    ]
    names = ["epoch", "train_loss", "valid_loss", "learning_rate", "seconds"]
    frame = pd.DataFrame(rows)
    return frame[[name for name in names if name in frame]]
