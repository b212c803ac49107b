"""Checkpoints: the state of training after each epoch, in a directory."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from skorch import NeuralNet
from skorch.callbacks import Callback, EarlyStopping, LRScheduler

from fcm_estimators._files import write_whole
from fcm_estimators._fitting.draws import SampleDraws
from fcm_estimators._types import Entries
from fcm_estimators._version import __version__
from fcm_estimators.exceptions import InvalidInputError, ModelFormatError

_STATE = "training.json"
_FORMAT = "fcm-estimators training"


class Checkpoint(Callback):  # type: ignore[misc]  # skorch has no types
    """Write the state of training after each epoch, and resume from a state in the directory.

    List this callback after those whose state it saves, so that their state is up to date.

    Parameters
    ----------
    folder : Path
    identity : dict
        Entries that are equal if and only if two trainings are the same.
    """

    def __init__(self, folder: Path, identity: Entries) -> None:
        self.folder, self.identity = folder, identity

    def n_epochs_done(self) -> int:
        """Number of epochs of an earlier run of the same training; 0 without one.

        Raises
        ------
        InvalidInputError
            The directory holds another training.
        ModelFormatError
            The directory is damaged.
        """
        self.restored_ = self._read()
        return 0 if self.restored_ is None else len(self.restored_[0]["history"])

    def on_train_begin(self, net: NeuralNet, **kwargs: object) -> None:
        """Restore the state of the earlier run."""
        if self.restored_ is None:
            return
        state, tensors = self.restored_
        self.restored_ = None
        net.module_.load_state_dict(_with_prefix(tensors, "module"))
        for row in state["history"]:
            net.history.append({**row, "batches": []})
        slots: dict[int, dict[str, torch.Tensor]] = {}
        for name, value in _with_prefix(tensors, "optimizer").items():
            slot, key = name.split(".")
            slots.setdefault(int(slot), {})[key] = value
        groups = net.optimizer_.state_dict()["param_groups"]
        net.optimizer_.load_state_dict({"state": slots, "param_groups": groups})
        scheduler = _callback_of(net, LRScheduler).lr_scheduler_
        rates = [base * scheduler.lr_lambdas[0](state["n_steps"]) for base in scheduler.base_lrs]
        scheduler.last_epoch, scheduler._last_lr = state["n_steps"], rates  # noqa: SLF001  torch offers no other way
        for group, rate in zip(net.optimizer_.param_groups, rates, strict=True):
            group["lr"] = rate
        for callback in (c for _, c in net.callbacks_):
            if hasattr(callback, "best_score_") and callback.name in state["best_scores"]:
                callback.best_score_ = state["best_scores"][callback.name]
        stop = _callback_of(net, EarlyStopping)
        if stop is not None:
            stop.misses_, stop.best_epoch_ = state["misses"], state["best_epoch"]
            stop.dynamic_threshold_ = state["dynamic_threshold"]
            stop.best_model_weights_ = _with_prefix(tensors, "best") or None

    def on_epoch_end(self, net: NeuralNet, **kwargs: object) -> None:
        """Write the state, then remove the previous one."""
        scheduler = _callback_of(net, LRScheduler).lr_scheduler_
        tensors = {f"module.{k}": v for k, v in net.module_.state_dict().items()}
        for slot, values in net.optimizer_.state_dict()["state"].items():
            tensors.update({f"optimizer.{slot}.{k}": torch.as_tensor(v) for k, v in values.items()})
        state: Entries = {
            "format": _FORMAT,
            "identity": self.identity,
            "n_steps": scheduler.last_epoch,
            "history": [
                {k: _plain(v) for k, v in row.items() if k != "batches"} for row in net.history
            ],
            "best_scores": {
                c.name: float(c.best_score_) for _, c in net.callbacks_ if hasattr(c, "best_score_")
            },
        }
        stop = _callback_of(net, EarlyStopping)
        if stop is not None:
            best = stop.best_model_weights_ or {}
            tensors.update({f"best.{k}": v for k, v in best.items()})
            state |= {
                "misses": int(stop.misses_),
                "best_epoch": int(stop.best_epoch_),
                "dynamic_threshold": float(stop.dynamic_threshold_),
            }
        content = save_tensors({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
        state["tensors"] = f"epoch-{len(net.history)}.safetensors"
        state["sha256"] = hashlib.sha256(content).hexdigest()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_whole(self.folder / state["tensors"], content)
        write_whole(self.folder / _STATE, json.dumps(state, indent=1).encode())
        for old in self.folder.glob("epoch-*.safetensors"):
            if old.name != state["tensors"]:
                old.unlink()

    def _read(self) -> tuple[Entries, dict[str, torch.Tensor]] | None:
        path = self.folder / _STATE
        if not path.exists():
            return None
        try:
            state = json.loads(path.read_bytes())
            if state["format"] != _FORMAT:
                raise ValueError(f"its format is {state['format']!r}")
            name = str(state["tensors"])
            if Path(name).name != name:
                raise ValueError(f"it names {name!r}, which is not a file in its directory")
            content = (self.folder / name).read_bytes()
            if hashlib.sha256(content).hexdigest() != state["sha256"]:
                raise ValueError(f"{name} does not have the recorded checksum")
            tensors = load_tensors(content)
            identity = state["identity"]
            len(state["history"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise ModelFormatError(
                f"The training in {self.folder} cannot be continued: {error}. Remove that "
                "directory to start again."
            ) from error
        if identity != self.identity:
            differing = sorted(
                k for k in {*identity, *self.identity} if identity.get(k) != self.identity.get(k)
            )
            raise InvalidInputError(
                f"The training in {self.folder} is another one: {', '.join(differing)} differ(s). "
                "Remove that directory, or pass another one as checkpoint."
            )
        return state, tensors

    def __getstate__(self) -> Entries:
        return {"folder": self.folder, "identity": self.identity}


def training_identity(
    params: Entries, class_name: str, draws: SampleDraws, module: torch.nn.Module
) -> Entries:
    """Entries that identify a training: parameters, data, initial weights and version.

    Parameters
    ----------
    params : dict
        Parameters of the estimator that change the result.
    class_name : str
    draws : SampleDraws
    module : Module
        The net before training.
    """
    data = hashlib.sha256(repr(list(draws.offsets)).encode())
    inputs, target = draws[0]
    for name, value in [*sorted(vars(draws).items()), *sorted(inputs.items()), ("first", target)]:
        if isinstance(value, np.ndarray | torch.Tensor):
            data.update(name.encode() + np.ascontiguousarray(value).tobytes())
    weights = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        weights.update(name.encode() + tensor.detach().cpu().numpy().tobytes())
    return {
        **{name: repr(value) for name, value in params.items()},
        "class": class_name,
        "data": data.hexdigest(),
        "first weights": weights.hexdigest(),
        "version": __version__,
    }


def _with_prefix(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(f"{prefix}."): value
        for name, value in tensors.items()
        if name.startswith(f"{prefix}.")
    }


def _callback_of(net: NeuralNet, kind: type) -> Any:
    return next((c for _, c in net.callbacks_ if isinstance(c, kind)), None)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic | torch.Tensor) else value
