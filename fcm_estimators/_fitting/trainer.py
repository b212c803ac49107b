"""The skorch net as it is trained: schedule, callbacks, history."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

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
from torch import nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from fcm_estimators._fitting.net import PackedNet, accelerated_net


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
