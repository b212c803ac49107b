"""Parameters that both estimators have, and the plans of a training that follow from them."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from sklearn.utils._param_validation import Interval
from skorch.callbacks import Callback

from fcm_estimators._fitting.augmentation import Augmentation
from fcm_estimators._fitting.checkpoint import Checkpoint, training_identity
from fcm_estimators._fitting.draws import DrawPlan, SampleDraws
from fcm_estimators._fitting.trainer import ACCELERATE, TrainingPlan
from fcm_estimators._types import Entries
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.nn.reluformer import ScaledModule

# For scikit-learn's validation of parameters.
CONSTRAINTS: Entries = {
    "sample_key": [str, Integral, None],
    "patient_key": [str, Integral, None],
    "subset_key": [str, None],
    "markers": ["array-like", None],
    "marker_aliases": [dict, None],
    "layer": [str, None],
    "n_layers": [Interval(Integral, 1, None, closed="left")],
    "n_heads": [Interval(Integral, 1, None, closed="left")],
    "hidden_dim": [Interval(Integral, 1, None, closed="left")],
    "max_epochs": [Interval(Integral, 1, None, closed="left")],
    "steps_per_epoch": [Interval(Integral, 1, None, closed="left")],
    "cells_per_sample": [Interval(Integral, 1, None, closed="left")],
    "augmentation": [Interval(Real, 0, None, closed="left")],
    "learning_rate": [Interval(Real, 0, None, closed="neither")],
    "head_diversity": [Interval(Real, 0, None, closed="left")],
    "head_evenness": [Interval(Real, 0, None, closed="left")],
    "validation_fraction": [Interval(Real, 0, 1, closed="neither"), None],
    "warm_start": ["boolean"],
    "device": [str],
    "random_state": ["random_state"],
    "verbose": ["verbose"],
}

# Upper limits of one training step. A step with many cells per sample has fewer samples.
_SAMPLES_PER_STEP, _CELLS_PER_STEP = 4, 65_536


class TrainingParameters(Protocol):
    """Parameters of an estimator that its training depends on."""

    max_epochs: int
    steps_per_epoch: int
    cells_per_sample: int
    augmentation: float
    learning_rate: float
    head_diversity: float
    head_evenness: float
    device: str
    random_state: Any
    verbose: int

    def get_params(self, deep: bool = True) -> Entries:
        """Return all parameters, as scikit-learn defines it."""


def augmentation_of(estimator: TrainingParameters) -> Augmentation | None:
    """Distortions of the training samples; None where they are switched off."""
    strength = estimator.augmentation
    return Augmentation().scaled(strength) if strength else None


def draw_plan(
    estimator: TrainingParameters,
    n_validation_samples: int,
    min_fraction: float,
    may_hide: Sequence[int] = (),
) -> DrawPlan:
    """Plan of the draws of training or validation.

    Parameters
    ----------
    estimator : TrainingParameters
    n_validation_samples : int
        Validation draws each of them four times per epoch. 0: the plan is for training.
    min_fraction : float
        ``min_class_fraction`` of the plan.
    may_hide : sequence of int
        Markers that may be hidden in training draws.
    """
    cells = estimator.cells_per_sample
    size = int(np.clip(_CELLS_PER_STEP // cells, 1, _SAMPLES_PER_STEP))
    n_steps = estimator.steps_per_epoch
    if n_validation_samples:
        n_steps = -(-_SAMPLES_PER_STEP * n_validation_samples // size)
    augmentation = augmentation_of(estimator)
    hidden = () if n_validation_samples else tuple(may_hide)
    return DrawPlan(n_steps, size, cells, min_fraction, augmentation, hidden)


def training_plan(estimator: TrainingParameters) -> TrainingPlan:
    """Plan of the training of the net."""
    return TrainingPlan(
        learning_rate=estimator.learning_rate,
        max_epochs=estimator.max_epochs,
        steps_per_epoch=estimator.steps_per_epoch,
        device=estimator.device,
        head_diversity=estimator.head_diversity,
        head_evenness=estimator.head_evenness,
        verbose=int(estimator.verbose),
    )


def checked_callbacks(callbacks: Any, checkpoint: Path | None) -> list[Callback]:
    """Callbacks of skorch that the user gave to ``fit``.

    Raises
    ------
    InvalidInputError
        They are not callbacks of skorch, or there is a checkpoint, which cannot restore them.
    """
    found = [] if callbacks is None else list(callbacks)
    wrong = [c for c in found if not isinstance(c, Callback)]
    if wrong:
        raise InvalidInputError(
            f"callbacks={wrong!r}: expected callbacks of skorch, e.g. "
            "skorch.callbacks.TensorBoard(writer)."
        )
    if found and checkpoint is not None:
        raise InvalidInputError(
            "callbacks and checkpoint do not go together, because a resumed training cannot "
            "restore what callbacks hold; drop one."
        )
    return found


def checkpoint_in(
    folder: Path, estimator: TrainingParameters, draws: SampleDraws, module: ScaledModule
) -> Checkpoint:
    """Checkpoint of a training in a directory.

    Parameters
    ----------
    folder : Path
    estimator : TrainingParameters
    draws : SampleDraws
        Training draws.
    module : ScaledModule
        The net before training.

    Raises
    ------
    InvalidInputError
        ``device="accelerate"``, or ``random_state`` is not an integer.
    """
    if estimator.device == ACCELERATE:
        raise InvalidInputError("checkpoint and device='accelerate' do not go together; drop one.")
    if not isinstance(estimator.random_state, Integral):
        raise InvalidInputError(
            f"checkpoint needs an integer as random_state, got {estimator.random_state!r}: a "
            "resumed training has to draw the same cells."
        )
    params = estimator.get_params(deep=False)
    for irrelevant in ("device", "verbose"):
        del params[irrelevant]
    name = type(estimator).__name__
    return Checkpoint(folder, training_identity(params, name, draws, module))
