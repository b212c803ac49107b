"""Scales of gates from other software: Gating-ML 2.0 and FlowJo."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
from flowutils import transforms as _flow
from numpy.typing import NDArray

from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.preprocessing.scales import Scale, register, require

_LN10 = float(np.log(10.0))


@register
@dataclass(frozen=True)
class ParametrizedLinear(Scale):
    """``(x + A) / (T + A)``: ``flin`` of Gating-ML.

    Parameters
    ----------
    T : float, default 262144
        Top of the raw scale, positive.
    A : float, default 0
        The raw value ``-A`` is at 0 on the scale; between 0 and ``T``.

    References
    ----------
    Spidlen et al., Gating-ML 2.0, Cytometry A 87A, 683-687 (2015).
    """

    name: ClassVar[str] = "flin"
    T: float = 262144.0
    A: float = 0.0

    def _check_parameters(self) -> None:
        require(self, "T must be positive and A not negative", self.T > 0 and self.A >= 0)

    def _forward(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        return (x + self.A) / (self.T + self.A)

    def _backward(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        return y * (self.T + self.A) - self.A


@register
@dataclass(frozen=True)
class ParametrizedArcsinh(Scale):
    """``(arcsinh(x sinh(M ln 10) / T) + A ln 10) / ((M + A) ln 10)``: ``fasinh`` of Gating-ML.

    Parameters
    ----------
    T : float, default 262144
        Top of the raw scale, positive.
    M : float, default 4.5
        Decades, positive.
    A : float, default 0
        Additional negative decades, between 0 and ``M``.

    References
    ----------
    Spidlen et al., Gating-ML 2.0, Cytometry A 87A, 683-687 (2015).
    """

    name: ClassVar[str] = "fasinh"
    T: float = 262144.0
    M: float = 4.5
    A: float = 0.0

    def _check_parameters(self) -> None:
        require(self, "T and M must be positive", self.T > 0 and self.M > 0)
        require(self, "A must be between 0 and M", 0 <= self.A <= self.M)

    def _forward(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        grown: NDArray[np.float64] = np.arcsinh(x * np.sinh(self.M * _LN10) / self.T)
        return (grown + self.A * _LN10) / ((self.M + self.A) * _LN10)

    def _backward(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        grown = y * (self.M + self.A) * _LN10 - self.A * _LN10
        raw: NDArray[np.float64] = np.sinh(grown) * self.T / np.sinh(self.M * _LN10)
        return raw


@register
@dataclass(frozen=True)
class ParametrizedLog(Scale):
    """``log10(max(x, floor) / T) / M + 1``: ``flog`` of Gating-ML.

    Parameters
    ----------
    T : float, default 262144
        Top of the raw scale, positive.
    M : float, default 4.5
        Decades, positive.
    floor : float, default 1e-100
        Smallest raw value, positive; lower values are set to it.

    References
    ----------
    Spidlen et al., Gating-ML 2.0, Cytometry A 87A, 683-687 (2015).
    """

    name: ClassVar[str] = "flog"
    T: float = 262144.0
    M: float = 4.5
    floor: float = 1e-100

    def _check_parameters(self) -> None:
        require(self, "T, M and floor must be positive", min(self.T, self.M, self.floor) > 0)

    def _forward(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        decades: NDArray[np.float64] = np.log10(np.maximum(x, self.floor) / self.T)
        return decades / self.M + 1

    def _backward(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.T * 10.0 ** ((y - 1) * self.M)


@register
@dataclass(frozen=True)
class Hyperlog(Scale):
    """Hyperlog scale of Gating-ML.

    Parameters
    ----------
    T : float, default 262144
        Top of the raw scale, positive.
    W : float, default 0.5
        Decades of the linear region, positive, at most ``M / 2``.
    M : float, default 4.5
        Decades of the whole scale, positive.
    A : float, default 0
        Additional negative decades, between ``-W`` and ``M - 2 W``.

    References
    ----------
    Bagwell, Cytometry A 64A, 34-42 (2005). Spidlen et al., Gating-ML 2.0, Cytometry A 87A,
    683-687 (2015).
    """

    name: ClassVar[str] = "hyperlog"
    T: float = 262144.0
    W: float = 0.5
    M: float = 4.5
    A: float = 0.0

    def _check_parameters(self) -> None:
        require(self, "T and M must be positive", self.T > 0 and self.M > 0)
        require(self, "W must be above 0 and at most M / 2", 0 < self.W <= self.M / 2)
        require(self, "A must be between -W and M - 2 W", -self.W <= self.A <= self.M - 2 * self.W)

    def _forward(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        y: NDArray[np.float64] = _flow.hyperlog(
            x.ravel(), None, t=self.T, m=self.M, w=self.W, a=self.A
        )
        return y.reshape(x.shape)

    def _backward(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        x: NDArray[np.float64]
        x = _flow.hyperlog_inverse(y.ravel(), None, t=self.T, m=self.M, w=self.W, a=self.A)
        return x.reshape(y.shape)


@register
@dataclass(frozen=True)
class FlowJoLinear(Scale):
    """``(x - low) / (high - low)``: linear axis of FlowJo that does not begin at 0.

    Parameters
    ----------
    low : float, default 0
    high : float, default 262144
        Ends of the axis, ``low`` below ``high``.
    """

    name: ClassVar[str] = "flowjo_linear"
    low: float = 0.0
    high: float = 262144.0

    def _check_parameters(self) -> None:
        require(self, "low must be below high", self.low < self.high)

    def _forward(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        return (x - self.low) / (self.high - self.low)

    def _backward(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        return y * (self.high - self.low) + self.low


@register
@dataclass(frozen=True)
class FlowJoLog(Scale):
    """``(log10(max(x, offset)) - log10(offset)) / decades``: logarithmic axis of FlowJo.

    Gates are often drawn exactly at values of the data, so the order of the operations matters: it
    is that of FlowKit.

    Parameters
    ----------
    offset : float, default 1
        Lower end of the axis, positive; lower values are set to it.
    decades : float, default 4.5
        Positive.
    """

    name: ClassVar[str] = "flowjo_log"
    offset: float = 1.0
    decades: float = 4.5

    def _check_parameters(self) -> None:
        require(self, "offset and decades must be positive", min(self.offset, self.decades) > 0)

    def _forward(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        grown: NDArray[np.float64] = np.log10(np.maximum(x, self.offset)) - np.log10(self.offset)
        return 1.0 / self.decades * grown

    def _backward(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        return self.offset * 10.0 ** (y * self.decades)


@register
@dataclass(frozen=True)
class Seconds(Scale):
    """Seconds of Time; the values of a file, which may be ticks, times its ``$TIMESTEP``.

    The scale itself changes no value. Gates find the ``$TIMESTEP`` in the record of the file.
    """

    name: ClassVar[str] = "seconds"

    def _check_parameters(self) -> None:
        """There are no parameters to check."""

    def _forward(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        return x.copy()

    def _backward(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        return y.copy()


@register
@dataclass(frozen=True)
class FlowJoBiex(Scale):
    """FlowJo's biexponential axis, from FlowKit's table; requires the extra ``gating``.

    Parameters
    ----------
    negative, width, positive : float
        Parameters of FlowJo's dialogue; defaults 0, -10, 4.41854.
    max_value : float, default 262144.000029
        Top of the raw scale.
    """

    name: ClassVar[str] = "flowjo_biex"
    negative: float = 0.0
    width: float = -10.0
    positive: float = 4.41854
    max_value: float = 262144.000029

    def _check_parameters(self) -> None:
        # Between -1 and 0 the table turns round, and 0 has no table.
        require(self, "width must be at most -1", self.width <= -1)
        top = min(self.positive, self.max_value)
        require(self, "positive and max_value must be positive", top > 0)

    def _forward(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(_biex_table(self).apply(x.ravel())).reshape(x.shape)

    def _backward(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(_biex_table(self).inverse(y.ravel())).reshape(y.shape)


@lru_cache(maxsize=256)
def _biex_table(scale: FlowJoBiex) -> Any:
    """FlowKit's table of an axis; the axes of a workspace are few, its gates many."""
    try:
        import flowkit
    except ImportError as error:
        raise InvalidInputError(
            "FlowJo's biexponential axes require FlowKit: pip install 'fcm-estimators[gating]'."
        ) from error
    try:
        with np.errstate(divide="raise", invalid="raise"):
            return flowkit.transforms.WSPBiexTransform(
                negative=scale.negative,
                width=scale.width,
                positive=scale.positive,
                max_value=scale.max_value,
            )
    except (ValueError, ArithmeticError, IndexError) as error:
        raise InvalidInputError(f"{scale} is no scale that can be read: {error}.") from error
