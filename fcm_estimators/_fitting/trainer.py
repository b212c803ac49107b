"""Training of the skorch net: schedule, callbacks and history."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
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

from fcm_estimators._fitting.checkpoint import Checkpoint
from fcm_estimators._fitting.draws import SampleDraws
from fcm_estimators._fitting.net import PackedNet, accelerated_net
from fcm_estimators._types import Entries
from fcm_estimators.exceptions import InvalidInputError

# Value of ``device`` for Hugging Face Accelerate, which uses all GPUs of ``accelerate launch``.
ACCELERATE = "accelerate"
# Epochs without a better validation loss before training stops.
_PATIENCE = 20
# Weight decay of AdamW.
_WEIGHT_DECAY = 1e-2


class SetEpoch(Callback):  # type: ignore[misc]  # skorch has no types
    """Set the epoch of the draws, so that they differ, its seed, and the progress of the loss."""

    def on_epoch_begin(self, net: NeuralNet, dataset_train: Any = None, **kwargs: object) -> None:
        """Set the epoch, counted from 1, the seed of torch (for dropout), and the progress."""
        dataset_train.epoch = net.history[-1, "epoch"]
        seed = np.random.SeedSequence([dataset_train.seed, dataset_train.epoch])
        torch.manual_seed(int(seed.generate_state(1)[0]))
        net.criterion_.progress = (net.history[-1, "epoch"] - 1) / max(net.max_epochs - 1, 1)


class ProgressBar(Callback):  # type: ignore[misc]  # skorch has no types
    """Progress bar over epochs with the losses."""

    def on_train_begin(self, net: NeuralNet, **kwargs: object) -> None:
        """Open the bar."""
        done = len(net.history)
        self.bar_ = tqdm(total=net.max_epochs, initial=done, desc="training", unit="epoch")

    def on_epoch_end(self, net: NeuralNet, **kwargs: object) -> None:
        """Advance by one epoch."""
        row = net.history[-1]
        self.bar_.set_postfix(
            {k: f"{row[k]:.4f}" for k in ("train_loss", "valid_loss") if k in row}
        )
        self.bar_.update()

    def on_train_end(self, net: NeuralNet, **kwargs: object) -> None:
        """Close the bar."""
        self.bar_.close()

    def __getstate__(self) -> Entries:
        return {k: v for k, v in vars(self).items() if k != "bar_"}


class LearningRate(Callback):  # type: ignore[misc]  # skorch has no types
    """Record the learning rate of the last step of each epoch in the history."""

    def on_epoch_end(self, net: NeuralNet, **kwargs: object) -> None:
        """Record the rate."""
        net.history.record("learning_rate", net.optimizer_.param_groups[0]["lr"])


@dataclass(frozen=True)
class WarmUpCosine:
    """Factor on the learning rate: linear rise over the first tenth of steps, then a cosine."""

    n_steps: int

    def __call__(self, step: int) -> float:
        n_rise = max(1, round(0.1 * self.n_steps))
        if step < n_rise:
            return (step + 1) / n_rise
        done = min(1.0, (step - n_rise) / max(1, self.n_steps - n_rise))
        return 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class TrainingPlan:
    """Settings of a training.

    Parameters
    ----------
    device : str
        "auto", "accelerate", or a device of torch.
    learning_rate : float
        Highest rate of the schedule.
    max_epochs, steps_per_epoch : int
    head_diversity, head_evenness : float
        As in :class:`PackedNet`.
    verbose : int
        1 shows a progress bar.
    """

    device: str
    learning_rate: float = 1e-3
    max_epochs: int = 1
    steps_per_epoch: int = 1
    head_diversity: float = 0.0
    head_evenness: float = 0.0
    verbose: int = 0


def make_net(
    module: nn.Module,
    criterion: nn.Module,
    plan: TrainingPlan,
    *,
    patience: int | None = None,
    checkpoint: Callback | None = None,
    further: Sequence[Callback] = (),
    trained: bool = True,
) -> PackedNet:
    """Make the skorch net that trains a module.

    Parameters
    ----------
    module, criterion : nn.Module
        Instances.
    plan : TrainingPlan
    patience : int, optional
        Epochs without a better validation loss before training stops and the best epoch is
        restored. Default: no validation.
    checkpoint : Callback, optional
        Callback that saves the state of the other callbacks. It is called after them.
    further : sequence of Callback
        Callbacks of the user, called after the others.
    trained : bool, default True
        False for a net that only predicts.
    """
    accelerate = plan.device == ACCELERATE
    # Each process takes one batch in n_processes.
    n_processes = int(os.environ.get("WORLD_SIZE", 1)) if accelerate else 1
    n_steps = plan.max_epochs * math.ceil(plan.steps_per_epoch / n_processes)
    schedule = WarmUpCosine(n_steps)
    callbacks: list[Any] = [
        ("timer", EpochTimer()),
        ("set_epoch", SetEpoch()),
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
    if plan.verbose:
        callbacks.append(("bar", ProgressBar()))
    callbacks += further
    make = accelerated_net if accelerate else PackedNet
    optimizer: Entries = {"optimizer": NoOptimizer}
    if trained:
        optimizer = {"optimizer": torch.optim.AdamW, "optimizer__weight_decay": _WEIGHT_DECAY}
    net: PackedNet = make(
        module,
        criterion=criterion,
        lr=plan.learning_rate,
        max_epochs=plan.max_epochs,
        batch_size=None,
        iterator_train=DataLoader,
        iterator_valid=DataLoader,
        train_split=None,
        callbacks=callbacks,
        device=resolve_device(plan.device),
        verbose=0,
        head_diversity=plan.head_diversity,
        head_evenness=plan.head_evenness,
        **optimizer,
    )
    net.initialize()
    return net


class NoOptimizer:
    """Stands in for the optimizer of a net that is not trained.

    An optimizer of torch loads its compiler, which takes longer than a prediction.
    """

    def __init__(self, params: object, lr: float) -> None:
        pass


def ready_net(module: nn.Module, device: str) -> PackedNet:
    """Net of a trained module, on a device."""
    plan = TrainingPlan(device="auto" if device == ACCELERATE else device)
    return make_net(module.eval(), nn.Identity(), plan, trained=False)


def train_net(
    module: nn.Module,
    criterion: nn.Module,
    plan: TrainingPlan,
    train: SampleDraws,
    valid: SampleDraws | None,
    checkpoint: Checkpoint | None,
    callbacks: Sequence[Callback] = (),
) -> tuple[PackedNet, pd.DataFrame]:
    """Train a module on draws; return the net and its history (:func:`history_frame`).

    Raises
    ------
    KeyboardInterrupt
        The training was interrupted. skorch would return a partly trained net without an error.
    """
    patience = None if valid is None else _PATIENCE
    done = 0 if checkpoint is None else checkpoint.n_epochs_done()
    net = make_net(
        module, criterion, plan, patience=patience, checkpoint=checkpoint, further=callbacks
    )
    if valid is not None:
        net.train_split = lambda data, y=None: (data, valid)
    # The loader draws from the global generator of torch, whose state must not change.
    with torch.random.fork_rng():
        net.partial_fit(train, epochs=plan.max_epochs - done)
    if len(net.history) < plan.max_epochs and not stopped_early(net):
        raise KeyboardInterrupt
    # The split refers to the validation cells, which the fitted model must not hold.
    net.train_split = None
    history = history_frame(net)
    if plan.device == ACCELERATE or callbacks:
        # The fitted model must not hold the state of distributed training, nor the user's loggers.
        net = ready_net(module, plan.device)
    module.eval()
    return net, history


def resolve_device(device: str) -> str:
    """Name of a torch device. ``"auto"`` is CUDA if a CUDA device exists, else the CPU."""
    if device in ("auto", ACCELERATE):
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise InvalidInputError(
            f"device={device!r} is not a device; use 'auto', 'accelerate', 'cpu', 'cuda' or "
            "'cuda:0'."
        ) from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise InvalidInputError(f"device={device!r}, but no CUDA device was found; use 'auto'.")
    return device


def _quiet(*args: object, **kwargs: object) -> None:
    """Discard messages."""


def stopped_early(net: NeuralNet) -> bool:
    """Whether an early stopping, ours or one of the user, ended the training."""
    stops = [c for _, c in net.callbacks_ if isinstance(c, EarlyStopping)]
    return any(stop.misses_ == stop.patience for stop in stops)


def history_frame(net: NeuralNet) -> pd.DataFrame:
    """Table with one row per epoch: epoch, train_loss, valid_loss, learning_rate, seconds."""
    names = ["epoch", "train_loss", "valid_loss", "learning_rate", "dur"]
    frame = pd.DataFrame([{k: row[k] for k in names if k in row} for row in net.history])
    return frame.rename(columns={"dur": "seconds"})
