"""Scales of gates from other software: Gating-ML 2.0 and FlowJo."""

from __future__ import annotations

from dataclasses import dataclass
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
    """``log10(max(x, floor) / T) / M + 1``: ``flog`` of Gating-ML, logarithmic axis of FlowJo.

    Parameters
    ----------
    T : float, default 262144
        Top of the raw scale, positive.
    M : float, default 4.5
        Decades, positive.
    floor : float, default 1e-100
        Smallest raw value, positive; lower values are set to it. FlowJo uses the lower end of
        the axis.

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
        """FlowKit checks the parameters when it makes the table."""

    def _table(self) -> Any:
        try:
            import flowkit
        except ImportError as error:
            raise InvalidInputError(
                "FlowJo's biexponential axes require FlowKit: pip install 'fcm-estimators[gating]'."
            ) from error
        return flowkit.transforms.WSPBiexTransform(
            negative=self.negative,
            width=self.width,
            positive=self.positive,
            max_value=self.max_value,
        )

    def _forward(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(self._table().apply(x.ravel())).reshape(x.shape)

    def _backward(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(self._table().inverse(y.ravel())).reshape(y.shape)
