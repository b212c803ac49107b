"""Checked settings of a gradient explanation, and its computation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from explainers._maths.gradients import (
    integrated,
    own_gradient,
    set_gradient,
    smoothed,
    stream_gradient,
    stream_own_gradient,
)
from explainers._maths.outputs import ClassOutput, Output, VertexOutput
from explainers.targets import output_of
from fcm_estimators.exceptions import InvalidInputError, listed
from fcm_estimators.inference import (
    FileRows,
    SampleCells,
    Samples,
    SetEstimator,
    by_block,
    cells_in_memory,
    fitted_net,
    layered_net,
    net_for,
    stream,
)
from fcm_estimators.nn import SetModule
from fcm_estimators.nn.reluformer import ScaledModule
from fcm_estimators.nn.sources import Rows, Stored
from fcm_estimators.nn.streaming import Stream, streamed_contexts

MODES = ("own", "set", "context")
UNITS = ("layer", "sd")


@dataclass(frozen=True)
class Plain:
    """Gradient at the cells as measured."""


@dataclass(frozen=True)
class Smooth:
    """SmoothGrad: mean gradient over copies of the sample with Gaussian noise.

    Parameters
    ----------
    noise : float, default 0.2
        SD of the noise, in training SD of each marker.
    n_draws : int, default 16
    random_state : int, default 0

    References
    ----------
    Smilkov et al., *SmoothGrad*, arXiv 1706.03825.

    Examples
    --------
    >>> from explainers import Smooth
    >>> Smooth(noise=0.1).n_draws
    16
    """

    noise: float = 0.2
    n_draws: int = 16
    random_state: int = 0


@dataclass(frozen=True)
class Integrated:
    """Integrated gradients: contributions along the straight path from the training mean.

    All cells of a sample move together. Contributions are in output units. In mode "set" they add
    up to the change of the summed output. In mode "own" the contexts stay those of the sample.

    Parameters
    ----------
    n_steps : int, default 64
        Number of steps of the midpoint rule.

    References
    ----------
    Sundararajan et al., *Axiomatic attribution for deep networks*, arXiv 1703.01365.

    Examples
    --------
    >>> from explainers import Integrated
    >>> Integrated().n_steps
    64
    """

    n_steps: int = 64


Method = Plain | Smooth | Integrated
_BY_NAME: dict[str, Method] = {"plain": Plain(), "smooth": Smooth(), "integrated": Integrated()}


@dataclass(frozen=True)
class GradientPlan:
    """Model, target and method of a gradient explanation.

    Attributes
    ----------
    estimator : SetEstimator
    output : Output
    mode : {"own", "set", "context"}
    method : Plain, Smooth or Integrated
    units : {"layer", "sd"}
    """

    estimator: SetEstimator
    output: Output
    mode: str
    method: Method
    units: str

    @classmethod
    def of(
        cls, estimator: SetEstimator, target: Any, mode: str | None, method: Any, units: str
    ) -> GradientPlan:
        """Check the settings of an explainer.

        Raises
        ------
        InvalidInputError, MissingKeyError
            A setting is unknown, or a combination has no meaning. The message lists the
            alternatives.
        """
        output = output_of(estimator, target)
        of_gates = not isinstance(output, ClassOutput)
        layered = isinstance(fitted_net(estimator), SetModule)
        chosen = mode or ("set" if of_gates or not layered else "own")
        found = _BY_NAME.get(method) if isinstance(method, str) else method
        if not isinstance(found, Method):
            raise InvalidInputError(
                f"method={method!r} is not among {listed(_BY_NAME)}, nor a Smooth(...) or "
                "Integrated(...)."
            )
        for name, value, known in (("mode", chosen, MODES), ("units", units, UNITS)):
            if value not in known:
                raise InvalidInputError(f"{name}={value!r} is not among {listed(known)}.")
        if chosen != "set":
            layered_net(estimator, f"mode={chosen!r}")
        if of_gates and chosen != "set":
            raise InvalidInputError(
                f"mode={mode!r}: a gate belongs to the whole sample, so it has mode 'set' only."
            )
        if isinstance(found, Integrated) and units == "sd":
            raise InvalidInputError(
                "Integrated gradients are contributions in output units, not per unit of a "
                "marker. Use units='layer'."
            )
        return cls(estimator, output, chosen, found, units)

    def require_targets(self, cells: Any) -> None:
        """Raise InvalidInputError if target cells are given for an output without them."""
        if isinstance(self.output, VertexOutput) and cells is not None:
            raise InvalidInputError(
                "A vertex belongs to the whole sample and has no target cells. Use cells=None."
            )

    def blocks(
        self, cells: SampleCells, targets: np.ndarray
    ) -> Iterator[tuple[int, int, np.ndarray]]:
        """Gradient of one sample, block by block.

        Parameters
        ----------
        cells : SampleCells
        targets : bool ndarray of shape (n,)
            The targets T among the cells of the sample.

        Yields
        ------
        start, stop and gradient, of shape (stop - start, M), of each block
        """
        net = net_for(fitted_net(self.estimator), cells.glance.dtype)
        mask = torch.from_numpy(targets).to(net.input_mean.device)
        if isinstance(self.method, Plain):
            sample_stream = stream(net, cells, keep_layers=self.mode != "own")
            blocks = by_block(self._by_chunk(sample_stream, mask, cells.in_file))
        else:
            x = cells.source.read(0, cells.source.n_cells)
            blocks = by_block([(0, len(x), self._at_points(net, cells.name, x, x, mask))])
        for start, stop, values in blocks:
            yield start, stop, self._scaled(values)

    def of_samples(
        self, samples: Samples, targets: np.ndarray, points: np.ndarray | None = None
    ) -> np.ndarray:
        """Gradient of each cell, in the order of ``samples.x``, of shape (N, M).

        Parameters
        ----------
        samples : Samples
        targets : bool ndarray of shape (N,)
        points : ndarray of shape (N, M), optional
            Points to take the gradient at, instead of the cells. In mode "own" the contexts stay
            those of the samples.
        """
        net = net_for(fitted_net(self.estimator), samples.x.dtype)
        device, parts = net.input_mean.device, []
        with differentiable():
            cells_of = zip(samples.spans(), cells_in_memory(samples, device), strict=True)
            for (start, stop), cells in cells_of:
                chosen = targets[start:stop]
                if points is None:
                    parts += [values for _, _, values in self.blocks(cells, chosen)]
                    continue
                x, at = (torch.from_numpy(a[start:stop]).to(device) for a in (samples.x, points))
                mask = torch.from_numpy(chosen).to(device)
                values = self._at_points(net, cells.name, x, at, mask).cpu().numpy()
                parts.append(self._scaled(values))
        return np.concatenate(parts)

    def _scaled(self, values: np.ndarray) -> np.ndarray:
        """Gradients in the chosen units."""
        if self.units == "layer":
            return values
        scale: np.ndarray = fitted_net(self.estimator).input_scale.numpy(force=True)
        return np.asarray(values * scale)

    def _by_chunk(
        self, sample_stream: Stream, targets: Tensor, in_file: bool
    ) -> Iterator[tuple[int, int, Tensor]]:
        """Plain gradient of one sample, chunk by chunk."""
        net, n_cells = sample_stream.module, sample_stream.source.n_cells
        if self.mode == "own":
            yield from stream_own_gradient(sample_stream, cast(ClassOutput, self.output), targets)
            return
        width = len(net.input_mean)
        into: Rows = Stored(net.input_mean.new_zeros(0 if in_file else n_cells, width))
        if in_file:
            into = FileRows(n_cells, width, net.input_mean)
        for start, stop, values in stream_gradient(sample_stream, self.output, targets, into):
            if self.mode == "context":
                x, output = sample_stream.source.read(start, stop), cast(ClassOutput, self.output)
                own = own_gradient(net, sample_stream.contexts, x, output, targets[start:stop])
                values = values - own
            yield start, stop, values

    def _at_points(
        self, net: ScaledModule, name: Any, x: Tensor, at: Tensor, targets: Tensor
    ) -> Tensor:
        """Gradient of one sample at some points; mode "own" uses the contexts of the sample."""
        output, layered = cast(ClassOutput, self.output), cast(SetModule, net)
        with torch.no_grad():
            contexts = [] if self.mode == "set" else streamed_contexts(layered, x)
        own = partial(own_gradient, layered, contexts, output=output, cells=targets)
        whole = partial(set_gradient, net, output=self.output, cells=targets)

        def gradient(point: Tensor) -> Tensor:
            if self.mode == "own":
                return own(point)
            return whole(point) - own(point) if self.mode == "context" else whole(point)

        if isinstance(self.method, Integrated):
            return integrated(gradient, at, net.input_mean.expand_as(at), self.method.n_steps)
        if isinstance(self.method, Smooth):
            spread = self.method.noise * net.input_scale
            seed = sample_seed(self.method.random_state, name)
            generator = torch.Generator().manual_seed(seed)
            return smoothed(gradient, at, spread, self.method.n_draws, generator)
        return gradient(at)


@contextmanager
def differentiable() -> Iterator[None]:
    """Allow gradients in any mode of torch that the caller uses."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def sample_seed(random_state: int, sample: Any) -> int:
    """Seed for one sample, which does not depend on other samples."""
    # Python's own hash changes between runs.
    stable = int.from_bytes(sha256(str(sample).encode()).digest()[:8], "big")
    return int(np.random.SeedSequence([random_state, stable]).generate_state(1)[0])
