"""Scales of markers, and their text form in ``var["transform"]``.

A scale is a small immutable object. The transformers apply it and record ``str(scale)``;
:func:`parse_transform` makes the scale of this text where raw units are needed (gates, axis ticks).
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import ClassVar

import numpy as np
from flowutils import transforms as _flow
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import PPoly, make_interp_spline

from fcm_estimators.exceptions import InvalidInputError


@dataclass(frozen=True)
class Scale(ABC):
    """Base class of all scales: strictly increasing functions of raw linear values.

    Parameters are rounded to 12 significant digits, the precision of the text form, so that
    ``parse_transform(str(scale)) == scale`` holds exactly.

    Attributes
    ----------
    name : str
        Name in the text form.

    Examples
    --------
    >>> from fcm_estimators.preprocessing.scales import Arcsinh, Scale
    >>> isinstance(Arcsinh(cofactor=5), Scale)
    True
    """

    name: ClassVar[str]

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            try:
                number = float(format(float(value), ".12g"))
            except (TypeError, ValueError):
                number = float("nan")
            if not np.isfinite(number):
                raise InvalidInputError(
                    f"{self.name}: {field.name} is {value!r}; expected a finite number."
                )
            object.__setattr__(self, field.name, number)
        self._check_parameters()

    def __str__(self) -> str:
        parameters = [f"{f.name}={format(getattr(self, f.name), '.12g')}" for f in fields(self)]
        return f"{self.name}({','.join(parameters)})" if parameters else self.name

    def transform(self, x: ArrayLike) -> NDArray[np.float64]:
        """Map raw linear values to this scale.

        Parameters
        ----------
        x : array-like
            Raw linear values of any shape.

        Returns
        -------
        ndarray of float64, shape of ``x``

        Raises
        ------
        InvalidInputError
            If a value is NaN or infinite, or too large for the scale.
        """
        values = self._finite(x)
        return self._check_result(values, self._forward(values))

    def inverse(self, y: ArrayLike) -> NDArray[np.float64]:
        """Map values on this scale back to raw linear values.

        Parameters
        ----------
        y : array-like
            Values on this scale, of any shape.

        Returns
        -------
        ndarray of float64, shape of ``y``

        Raises
        ------
        InvalidInputError
            If a value is NaN or infinite, or its raw value exceeds the range of float64.
        """
        values = self._finite(y)
        with np.errstate(over="ignore"):
            return self._check_result(values, self._backward(values))

    def _finite(self, x: ArrayLike) -> NDArray[np.float64]:
        try:
            values = np.asarray(x, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise InvalidInputError(f"{self}: expected real numbers, got {x!r:.80}.") from error
        n_bad = values.size - np.count_nonzero(np.isfinite(values))
        if n_bad:
            raise InvalidInputError(
                f"{self}: {n_bad} of {values.size} values are NaN or infinite. "
                "Remove or repair these events first."
            )
        return values

    def _check_result(
        self, values: NDArray[np.float64], result: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        bad = ~np.isfinite(result)
        if bad.any():
            raise InvalidInputError(
                f"{self}: {np.count_nonzero(bad)} of {values.size} values (such as "
                f"{values[bad][0]:g}) are beyond the range of the scale."
            )
        return result

    @abstractmethod
    def _check_parameters(self) -> None:
        """Raise InvalidInputError if the parameters do not define an increasing scale."""

    @abstractmethod
    def _forward(self, x: NDArray[np.float64]) -> NDArray[np.float64]: ...

    @abstractmethod
    def _backward(self, y: NDArray[np.float64]) -> NDArray[np.float64]: ...


@dataclass(frozen=True)
class Identity(Scale):
    """Raw linear values, unchanged; text form ``none``.

    Examples
    --------
    >>> from fcm_estimators.preprocessing.scales import Identity
    >>> str(Identity())
    'none'
    """

    name: ClassVar[str] = "none"

    def _check_parameters(self) -> None:
        """There are no parameters to check."""

    def _forward(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        return x.copy()

    def _backward(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        return y.copy()


@dataclass(frozen=True)
class Linear(Scale):
    """``x / T``: 0 to 1 over the instrument's range.

    Parameters
    ----------
    T : float, default 262144
        Top of the raw scale, positive.

    References
    ----------
    Spidlen et al., ISAC's Gating-ML 2.0 data exchange standard, Cytometry A 87A, 683-687 (2015):
    ``flin`` with A = 0.

    Examples
    --------
    >>> from fcm_estimators.preprocessing.scales import Linear
    >>> Linear(T=1000).transform([0, 500, 1000])
    array([0. , 0.5, 1. ])
    """

    name: ClassVar[str] = "linear"
    T: float = 262144.0

    def _check_parameters(self) -> None:
        require(self, "T must be positive", self.T > 0)

    def _forward(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        return x / self.T

    def _backward(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        return y * self.T


@dataclass(frozen=True)
class Arcsinh(Scale):
    """``arcsinh(x / cofactor)``: linear around 0, logarithmic beyond the cofactor.

    Parameters
    ----------
    cofactor : float, default 150
        In raw units, positive. 150 is usual for fluorescence, 5 for mass cytometry.

    References
    ----------
    Bendall et al., Science 332, 687-696 (2011), for the cofactor of 5 in mass cytometry.

    Examples
    --------
    >>> from fcm_estimators.preprocessing.scales import Arcsinh
    >>> Arcsinh(cofactor=5).transform([0, 5]).round(3)
    array([0.   , 0.881])
    """

    name: ClassVar[str] = "arcsinh"
    cofactor: float = 150.0

    def _check_parameters(self) -> None:
        require(self, "cofactor must be positive", self.cofactor > 0)

    def _forward(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.arcsinh(x / self.cofactor)

    def _backward(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        raw: NDArray[np.float64] = np.sinh(y) * self.cofactor
        return raw


@dataclass(frozen=True)
class Logicle(Scale):
    """Logicle scale: 1 at the raw value ``T``, linear around 0, logarithmic above.

    Parameters
    ----------
    T : float, default 262144
        Top of the raw scale, positive.
    W : float, default 0.5
        Decades of the linear region, between 0 and ``M / 2``.
    M : float, default 4.5
        Decades of the whole scale, positive.
    A : float, default 0
        Additional negative decades, between ``-W`` and ``M - 2 W``.

    References
    ----------
    Parks, Roederer, Moore, Cytometry A 69A, 541-551 (2006). Moore, Parks, Cytometry A 81A,
    273-277 (2012). Spidlen et al., Gating-ML 2.0, Cytometry A 87A, 683-687 (2015).

    Examples
    --------
    >>> from fcm_estimators.preprocessing.scales import Logicle
    >>> Logicle(T=262144, W=0.5).transform([0, 262144]).round(4)
    array([0.1111, 1.    ])
    """

    name: ClassVar[str] = "logicle"
    T: float = 262144.0
    W: float = 0.5
    M: float = 4.5
    A: float = 0.0

    def _check_parameters(self) -> None:
        require(self, "T and M must be positive", self.T > 0 and self.M > 0)
        require(self, "W must be between 0 and M / 2", 0 <= self.W <= self.M / 2)
        require(self, "A must be between -W and M - 2 W", -self.W <= self.A <= self.M - 2 * self.W)
        require(self, "M + A must be positive", self.M + self.A > 0)

    def _forward(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        values = x.ravel()
        spline = _logicle_spline(self)
        y: NDArray[np.float64] = spline(values)
        beyond = np.flatnonzero(~((values >= spline.x[0]) & (values <= spline.x[-1])))
        if len(beyond):
            y[beyond] = _logicle_solved(self, values[beyond])
        return y.reshape(x.shape)

    def _backward(self, y: NDArray[np.float64]) -> NDArray[np.float64]:
        x: NDArray[np.float64]
        x = _flow.logicle_inverse(y.ravel(), None, t=self.T, m=self.M, w=self.W, a=self.A)
        return x.reshape(y.shape)


def _logicle_solved(scale: Logicle, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Display values by the solver of flowutils; NaN where it does not converge."""
    y: NDArray[np.float64] = _flow.logicle(x, None, t=scale.T, m=scale.M, w=scale.W, a=scale.A)
    # There it returns -1, without a warning.
    suspects = np.flatnonzero(y == -1)
    if len(suspects):
        back = scale.inverse(y[suspects])
        y[suspects[~np.isclose(back, x[suspects], rtol=1e-6)]] = np.nan
    return y


# Knots of the spline, evenly spaced on the display scale.
_KNOTS = 4096


@lru_cache(maxsize=64)
def _logicle_spline(scale: Logicle) -> PPoly:
    """Display value of raw values from -T to 2 T, in less time than flowutils' solver takes.

    A spline of degree 5 through exact values. In between it differs from the solver by less than
    1e-12.
    """
    # Zero and T are knots, and exact: saturated events are at T, and a gate may end there.
    exact = np.array([0.0, scale.T])
    at_exact = _logicle_solved(scale, exact)
    low, high = _logicle_solved(scale, np.array([-scale.T, 2 * scale.T]))
    display = np.linspace(low, high, _KNOTS)
    display = display[np.abs(display[:, None] - at_exact).min(1) > 0.25 * (display[1] - display[0])]
    raw = np.concatenate([scale.inverse(display), exact])
    order = np.argsort(raw)
    spline = make_interp_spline(raw[order], np.concatenate([display, at_exact])[order], k=5)
    pieces = PPoly.from_spline(spline)
    pieces.c[-1, np.searchsorted(pieces.x, exact)] = at_exact  # without a rounding error
    return pieces


_SCALES: dict[str, type[Scale]] = {s.name: s for s in (Identity, Linear, Arcsinh, Logicle)}


def register(scale: type[Scale]) -> type[Scale]:
    """Add a scale to those of :func:`parse_transform`; a class decorator."""
    _SCALES[scale.name] = scale
    return scale


_TEXT_FORM = re.compile(r"(?P<name>\w+)(?:\((?P<parameters>[^()]+)\))?")


def parse_transform(text: str) -> Scale:
    """Make the scale that a text of ``var["transform"]`` describes.

    Parameters
    ----------
    text : str
        ``"none"``, ``"linear(T=262144)"``, ``"arcsinh(cofactor=150)"`` or
        ``"logicle(T=262144,W=0.5,M=4.5,A=0)"``, with every parameter given.

    Returns
    -------
    Scale
        A scale with ``.transform(x)`` and ``.inverse(y)``; its ``str()`` is the text.

    Raises
    ------
    InvalidInputError
        If the text names an unknown scale, or lacks a parameter or has an invalid one.

    Examples
    --------
    >>> from fcm_estimators.preprocessing import parse_transform
    >>> scale = parse_transform("arcsinh(cofactor=150)")
    >>> scale.inverse(scale.transform([300.0])).round(6)
    array([300.])
    """
    match = _TEXT_FORM.fullmatch(text) if isinstance(text, str) else None
    scale = _SCALES.get(match["name"]) if match else None
    if match is None or scale is None:
        raise InvalidInputError(f"{text!r} is not a transform; expected one of {_known_forms()}.")
    pairs = [part.partition("=") for part in (match["parameters"] or "").split(",") if part]
    parameters = {key.strip(): value for key, _, value in pairs}
    expected = {f.name for f in fields(scale)}
    if set(parameters) != expected or len(pairs) != len(expected):
        raise InvalidInputError(
            f"{text!r} has the parameters {[key for key, *_ in pairs]}; expected one of "
            f"{_known_forms()}."
        )
    return scale(**parameters)


def _known_forms() -> str:
    return ", ".join(f'"{scale()}"' for scale in _SCALES.values())


def require(scale: Scale, rule: str, holds: bool) -> None:
    """Raise InvalidInputError with the text of the rule, unless the rule holds."""
    if not holds:
        raise InvalidInputError(f"{rule}, got {scale}.")
