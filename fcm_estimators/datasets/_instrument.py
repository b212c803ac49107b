"""The simulated cytometer: shift of samples, spillover, detector noise and saturation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from fcm_estimators.datasets._marrow import (
    COLUMNS,
    FLUORESCENCE,
    LOGICLE,
    N_SCATTER,
)

RANGE = 262144.0
_TOP = RANGE - 1.0

# Signal of the row's fluorochrome in the column's detector; typical values of this panel.
_SPILLOVER = np.array(
    [
        [1.000, 0.170, 0.030, 0.001, 0.001, 0.000, 0.000],
        [0.012, 1.000, 0.200, 0.012, 0.000, 0.001, 0.001],
        [0.000, 0.001, 1.000, 0.030, 0.000, 0.010, 0.050],
        [0.002, 0.015, 0.006, 1.000, 0.000, 0.001, 0.030],
        [0.002, 0.001, 0.001, 0.000, 1.000, 0.000, 0.000],
        [0.000, 0.000, 0.015, 0.001, 0.000, 1.000, 0.600],
        [0.000, 0.000, 0.001, 0.002, 0.001, 0.003, 1.000],
    ]
)
_SPILLOVER_SPREAD = 0.1

# Spread between samples for a shift of strength 1. Offsets are the log gain of scatter and logicle
# units of fluorescence. Scales stretch fluorescence around the negative populations.
_OFFSET = np.array([0.06, 0.015, 0.08, *[0.04] * len(FLUORESCENCE)])
_SCALE = np.array([0.0, 0.0, 0.0, *[0.05] * len(FLUORESCENCE)])
_PIVOT = 0.2

# 1,500 events per second; a tick is 0.01 s.
_EVENTS_PER_TICK = 15.0
# Noise of a detector: SD of the electronics, and variance of the photons per unit of signal.
_ELECTRONIC_SD = 30.0
_PHOTON_VARIANCE = 10.0


@dataclass(frozen=True)
class Shift:
    """Effect of instrument, stain and day on a sample, for every column of COLUMNS.

    Attributes
    ----------
    offset : ndarray of float64, shape (10,)
        Added to the cells: log gain of scatter, logicle units of fluorescence.
    scale : ndarray of float64, shape (10,)
        Stretch of fluorescence around 0.2 logicle units; 1 for scatter.
    """

    offset: np.ndarray
    scale: np.ndarray

    @classmethod
    def draw(cls, strength: float, rng: np.random.Generator) -> Shift:
        """Draw a shift; strength 0 gives none."""
        n = len(COLUMNS)
        return cls(
            strength * _OFFSET * rng.standard_normal(n),
            np.exp(strength * _SCALE * rng.standard_normal(n)),
        )

    def then(self, other: Shift) -> Shift:
        """Combine this shift with another one that follows."""
        return Shift(self.offset * other.scale + other.offset, self.scale * other.scale)

    def apply(self, cells: np.ndarray) -> None:
        """Shift cells of shape (N, 10) in place."""
        pivot = np.where(np.arange(len(COLUMNS)) < N_SCATTER, 0.0, _PIVOT)
        cells *= self.scale.astype(cells.dtype)
        cells += (self.offset + pivot * (1.0 - self.scale)).astype(cells.dtype)

    def on_axis(self, column: int, values: np.ndarray) -> np.ndarray:
        """Shift values on an axis on which gates are drawn (``x / T`` or logicle)."""
        if column < N_SCATTER:
            moved: np.ndarray = values * np.exp(self.offset[column])
        else:
            stretched = (values - _PIVOT) * self.scale[column]
            moved = _PIVOT + stretched + self.offset[column]
        return moved


def draw_spillover(rng: np.random.Generator) -> pd.DataFrame:
    """Draw a sample's spillover matrix, labelled by channel."""
    factors = np.exp(_SPILLOVER_SPREAD * rng.standard_normal(_SPILLOVER.shape))
    np.fill_diagonal(factors, 1.0)
    channels = list(FLUORESCENCE.values())
    return pd.DataFrame(_SPILLOVER * factors, index=channels, columns=channels)


def draw_times(n_events: int, rng: np.random.Generator) -> np.ndarray:
    """Draw ascending arrival times in units of 0.01 s, float32, shape (n_events,)."""
    rate = max(_EVENTS_PER_TICK, 1.1 * n_events / RANGE)
    arrival = np.cumsum(rng.standard_exponential(n_events)) / rate
    return np.minimum(arrival, _TOP).astype(np.float32)


def measure(
    cells: np.ndarray,
    n_doublets: int,
    shift: Shift,
    spillover: np.ndarray,
    rng: np.random.Generator,
) -> np.ndarray:
    """Measure the events of one sample.

    Parameters
    ----------
    cells : ndarray of float32, shape (N + n_doublets, 10)
        Cells from :func:`~fcm_estimators.datasets._marrow.draw_cells`. The last 2 * n_doublets
        pass the laser in pairs. The array is overwritten.
    n_doublets : int
        Number of pairs.
    shift : Shift
        Shift of this sample.
    spillover : ndarray, shape (7, 7)
        Row = fluorochrome, column = detector.
    rng : Generator
        Source of randomness.

    Returns
    -------
    ndarray of float32, shape (N, 10)
        Raw linear values up to 262,143, also negative ones; not compensated.
    """
    shift.apply(cells)
    raw = np.empty_like(cells)
    raw[:, :N_SCATTER] = np.exp(cells[:, :N_SCATTER]) * np.float32(RANGE)
    raw[:, N_SCATTER:] = LOGICLE.inverse(cells[:, N_SCATTER:])
    if n_doublets:
        first, second = np.split(raw[len(raw) - 2 * n_doublets :], 2)
        together = first + second
        # Two cells pass one after the other: the pulse is longer than one, but shorter than both.
        together[:, 1] *= rng.uniform(0.6, 0.95, size=n_doublets).astype(np.float32)
        raw = np.concatenate([raw[: len(raw) - 2 * n_doublets], together])
    signal = raw[:, N_SCATTER:] @ spillover.astype(np.float32)
    variance = _ELECTRONIC_SD**2 + _PHOTON_VARIANCE * np.maximum(signal, 0)
    noise = rng.standard_normal(signal.shape, dtype=np.float32)
    raw[:, N_SCATTER:] = signal + noise * np.sqrt(variance)
    np.minimum(raw, np.float32(_TOP), out=raw)
    return raw
