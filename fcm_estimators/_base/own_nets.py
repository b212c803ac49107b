"""Nets that the user gives: made, checked before training, and recognised when they are loaded."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fcm_estimators._base.files import to_json
from fcm_estimators._types import Entries
from fcm_estimators.exceptions import InvalidInputError, ModelFormatError, listed
from fcm_estimators.nn import SetModule, streamed
from fcm_estimators.nn.own import OwnModule
from fcm_estimators.nn.reluformer import ScaledModule

PREFIX = "module__"
# Parameters of the ReluFormer; a net of the user has its own.
_OF_RELUFORMER = ("n_layers", "n_heads", "hidden_dim")
# Cells of the two samples that a net is tried on, and the tolerance between ways to run it.
_FIRST, _SECOND, _TOLERANCE = 24, 40, 1e-4


def parameters_of_net(params: Mapping[str, Any]) -> Entries:
    """Parameters ``module__...`` of an estimator, without the prefix."""
    return {k.removeprefix(PREFIX): v for k, v in params.items() if k.startswith(PREFIX)}


def require_own_net_possible(estimator: Any) -> None:
    """Check the parameters of a classifier that has to do with a net of the user.

    Raises
    ------
    InvalidInputError
        A parameter has no effect or no meaning with this net, or cannot be saved.
    """
    module, params = estimator.module, estimator.get_params(deep=False)
    own = parameters_of_net(params)
    if module is None:
        if own:
            raise InvalidInputError(
                f"{listed(PREFIX + name for name in own)}: parameters of a net, but module is "
                "None. Pass the class of the net as module, or drop them."
            )
        return
    if not issubclass(module, nn.Module):
        raise InvalidInputError(
            f"module={module.__name__} is not derived from torch.nn.Module. Pass a class of nets "
            "that is made with (n_markers, n_outputs, **parameters)."
        )
    defaults = inspect.signature(type(estimator)).parameters
    set_here = [name for name in _OF_RELUFORMER if params[name] != defaults[name].default]
    if set_here:
        raise InvalidInputError(
            f"{listed(set_here)}: parameters of the ReluFormer, which {module.__name__} replaces. "
            f"Pass parameters of your net as {PREFIX}..., e.g. {PREFIX}{set_here[0]}="
            f"{params[set_here[0]]!r}."
        )
    if estimator.missing_markers == "mask":
        raise InvalidInputError(
            "missing_markers='mask' needs the ReluFormer of this package; with module= use "
            "missing_markers='error'."
        )
    if estimator.head_diversity and not issubclass(module, SetModule):
        raise InvalidInputError(
            f"head_diversity needs the heads of a SetModule; {module.__name__} has none. Use "
            "head_diversity=0."
        )
    for name, value in own.items():
        try:
            to_json(value)
        except TypeError as error:
            raise InvalidInputError(
                f"{PREFIX}{name}={value!r} cannot be saved with a model. Pass numbers, text or "
                f"lists, and let {module.__name__} look up what they name."
            ) from error


def make_own_net(
    module: type[nn.Module], n_markers: int, n_outputs: int, params: Entries
) -> ScaledModule:
    """A net of the user with initial weights, within the scale of the package.

    Raises
    ------
    InvalidInputError
        The class does not take these parameters.
    """
    try:
        net = module(n_markers, n_outputs, **params)
    except TypeError as error:
        given = "".join(f", {name}={value!r}" for name, value in params.items())
        raise InvalidInputError(
            f"{module.__name__}({n_markers}, {n_outputs}{given}) failed: {error}. A net is made "
            "with (n_markers, n_outputs, **parameters)."
        ) from error
    return net if isinstance(net, ScaledModule) else OwnModule(n_markers, net)


@torch.no_grad()
def require_sound(net: ScaledModule, n_outputs: int) -> None:
    """Try a net on two small samples before it is trained.

    Raises
    ------
    InvalidInputError
        It has outputs of another shape; a sample changes what another sample gets; a cell of
        weight 0 changes what other cells get; or a SetModule gives other outputs when its layers
        are streamed.
    """
    for dtype in (torch.float32, torch.float64):
        tried = copy.deepcopy(net).eval().to("cpu", dtype)
        n_cells = _FIRST + _SECOND
        x, offsets = _cells(tried, n_cells), [0, _FIRST, n_cells]
        try:
            outputs = tried(x, offsets)
        except (TypeError, RuntimeError, ValueError, IndexError) as error:
            raise InvalidInputError(
                f"{net.name}.forward(x, offsets) failed on {n_cells} cells of 2 samples, with "
                f"offsets={offsets} and x of {dtype}: {error}"
            ) from error
        if not isinstance(outputs, Tensor) or outputs.shape != (n_cells, n_outputs):
            found = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise InvalidInputError(
                f"{net.name}.forward gave {found} for {n_cells} cells; expected one row per cell "
                f"and one logit per class, ({n_cells}, {n_outputs})."
            )
        apart = torch.cat([tried(x[:_FIRST]), tried(x[_FIRST:])])
        if not _alike(outputs, apart):
            raise InvalidInputError(
                f"{net.name} gives other outputs for a sample alone than beside another sample, or "
                "random ones. Sample s is rows offsets[s] to offsets[s + 1]; treat each by itself, "
                "and draw nothing at random in eval mode."
            )
        if not isinstance(net, OwnModule) or net.takes_weights:
            weight = torch.cat([x.new_ones(_FIRST), x.new_zeros(_SECOND)])
            unseen = tried(x, [0, n_cells], context_weight=weight)
            if not _alike(unseen[:_FIRST], outputs[:_FIRST]):
                raise InvalidInputError(
                    f"{net.name} takes context_weight, but cells of weight 0 change the outputs of "
                    "other cells. They may only read their sample; weight every mean over cells."
                )
        if isinstance(tried, SetModule):
            _require_streams(tried, x, offsets, outputs)


def _require_streams(net: SetModule, x: Tensor, offsets: list[int], outputs: Tensor) -> None:
    try:
        same = _alike(streamed(net, x, offsets, chunk_size=16).outputs, outputs)
    except (TypeError, RuntimeError, ValueError, IndexError, AttributeError):
        same = False
    if not same:
        raise InvalidInputError(
            f"{net.name} is a SetModule, whose layers are streamed, but streaming does not give "
            "the outputs of its forward. A SetModule changes only read_out; derive a net with "
            "other layers from torch.nn.Module instead."
        )


def with_module(params: Entries, module: type[nn.Module] | None, path: object) -> Entries:
    """Parameters of a saved model with the class of its net, which the caller gives.

    Raises
    ------
    InvalidInputError
        The model has a net of the user and no class is given, or the other way round.
    """
    saved = params.get("module") if isinstance(params, dict) else None
    if saved is not None and module is None:
        raise InvalidInputError(
            f"The model in {path} was fitted with module={saved}. Nothing is imported by a name "
            f"that a file says: load it with ReluFormerClassifier.load(path, module={saved}), "
            "where this is the class."
        )
    if saved is None and module is not None:
        raise InvalidInputError(
            f"The model in {path} has the net of this package; load it without module=."
        )
    return params if module is None else {**params, "module": module}


@torch.no_grad()
def recognised_by(net: ScaledModule) -> list[list[float]]:
    """Outputs for fixed cells, by which a net is recognised when it is loaded."""
    tried = copy.deepcopy(net).eval().to("cpu", torch.float64)
    found: list[list[float]] = tried(_cells(tried, _FIRST)).tolist()
    return found


def require_recognised(net: ScaledModule, saved: Any, path: object) -> None:
    """Check that a loaded net computes what it computed when it was saved.

    Raises
    ------
    ModelFormatError
        The class has the same weights, but computes something else.
    """
    now = torch.tensor(recognised_by(net), dtype=torch.float64)
    try:
        before = torch.tensor(saved, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        before = torch.empty(0)
    if now.shape != before.shape or not _alike(now, before):
        raise ModelFormatError(
            f"{net.name} has the weights of the model in {path}, but does not give the outputs "
            "that it gave when the model was saved. Pass the class, in the version, that the model "
            "was fitted with."
        )


def _cells(net: ScaledModule, n_cells: int) -> Tensor:
    """Fixed cells, within 2 SD of the training mean."""
    n_markers = len(net.input_mean)
    wave = torch.arange(1, n_cells * n_markers + 1, dtype=torch.float64).square().sin()
    z = 2 * wave.view(n_cells, n_markers).to(net.input_mean)
    return net.input_mean + z * net.input_scale


def _alike(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=_TOLERANCE, atol=_TOLERANCE)
