"""Fitted attributes that both estimators have, as the entries of a saved model."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, Protocol

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fcm_estimators._cells.within import Within
from fcm_estimators._fitting.reference import Reference
from fcm_estimators._types import Entries
from fcm_estimators.nn.own import OwnModule
from fcm_estimators.nn.reluformer import ScaledModule
from fcm_estimators.preprocessing.recorded import MarkerState

_LIMITS = ("input_lowest", "input_highest")


class FittedAttributes(Protocol):
    """Attributes that every fitted estimator has, apart from its net."""

    markers_: list[str]
    n_features_in_: int
    fitted_with_groups_: bool
    validation_samples_: list[Hashable]
    training_: list[Entries]
    history_: pd.DataFrame
    reference_: Reference
    preprocessing_: dict[str, MarkerState]
    within_: Within | None


def fitted_entries(estimator: FittedAttributes) -> Entries:
    """Entries of the saved model."""
    return {
        "markers": estimator.markers_,
        "n_features_in": estimator.n_features_in_,
        "named": hasattr(estimator, "feature_names_in_"),
        "with_groups": estimator.fitted_with_groups_,
        "validation_samples": [str(name) for name in estimator.validation_samples_],
        "training": estimator.training_,
        "history": estimator.history_.to_dict("list"),
        "reference": estimator.reference_.to_dict(),
        "states": {k: list(v) for k, v in estimator.preprocessing_.items()},
        "within": None if estimator.within_ is None else vars(estimator.within_),
    }


def restore_fitted(estimator: Any, entries: Entries) -> None:
    """Set the fitted attributes of an estimator from the entries of a saved model."""
    estimator.markers_ = list(entries["markers"])
    estimator.n_features_in_ = int(entries["n_features_in"])
    if entries["named"]:
        estimator.feature_names_in_ = np.array(estimator.markers_, dtype=object)
    estimator.fitted_with_groups_ = bool(entries["with_groups"])
    estimator.validation_samples_ = entries["validation_samples"]
    estimator.training_ = [dict(entry) for entry in entries["training"]]
    estimator.history_ = pd.DataFrame(entries["history"])
    estimator.reference_ = Reference.from_dict(estimator.markers_, entries["reference"])
    within = entries["within"]
    estimator.within_ = None if within is None else Within(**within)
    estimator.preprocessing_ = {k: (str(v[0]), bool(v[1])) for k, v in entries["states"].items()}


def with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors whose names begin with ``prefix.``, without it."""
    start = f"{prefix}."
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}


def module_with_weights(
    make: Callable[[], ScaledModule], n_layers: int, tensors: dict[str, Tensor]
) -> ScaledModule:
    """A net with saved weights.

    A saved description may ask for a net of any size. Memory is allocated only if the weights
    have the shapes of that net.

    Parameters
    ----------
    make : callable
        Makes the net with initial weights.
    n_layers : int
        Layers that ``make`` gives the net.
    tensors : dict of Tensor

    Raises
    ------
    ValueError
        The weights belong to another net.
    """
    if n_layers > len(tensors):
        raise ValueError(f"{n_layers} layers, but only {len(tensors)} tensors")
    with torch.device("meta"):
        wanted = make().state_dict()
    found = {name: tensor.shape for name, tensor in tensors.items()}
    if found != {name: tensor.shape for name, tensor in wanted.items()}:
        raise ValueError("the weights are those of another net")
    module = make()
    module.load_state_dict(tensors)
    # Only the limits of inputs may be infinite, and a buffer (a mask) of a net of the user.
    own = {name for name, _ in module.named_buffers()} if isinstance(module, OwnModule) else set()
    for name, tensor in tensors.items():
        if name in own and name.startswith("net."):
            continue
        bad = tensor.isnan() if name in _LIMITS else ~tensor.isfinite()
        if bad.any():
            raise ValueError(f"{name} holds NaN or infinite numbers")
    return module
