"""Scale of the markers: mean, SD, and the limits beyond which values are clipped."""

from __future__ import annotations

from typing import NamedTuple, Self

import numpy as np
import torch

from fcm_estimators._cells.samples import Samples
from fcm_estimators.nn.reluformer import ScaledModule

# A value counts as at most so many SD beyond these quantiles of a training sample.
_BEYOND = 8.0
_TAIL = 1e-4
# With fewer cells, the tails of a sample are unknown.
_FEWEST_CELLS = 100


class MarkerScale(NamedTuple):
    """What the net knows of the values of its training data.

    Attributes
    ----------
    mean, sd : ndarray of shape (M,), float32
        Mean and SD within training samples.
    lowest, highest : ndarray of shape (M,), float32
        Values beyond these limits count as the limit.
    """

    mean: np.ndarray
    sd: np.ndarray
    lowest: np.ndarray
    highest: np.ndarray

    @classmethod
    def in_net(cls, net: ScaledModule) -> Self:
        """The scale that a net holds."""
        parts = net.input_mean, net.input_scale, net.input_lowest, net.input_highest
        return cls(*(part.float().numpy(force=True) for part in parts))

    def put_into(self, net: ScaledModule) -> None:
        """Give a net this scale."""
        buffers = net.input_mean, net.input_scale, net.input_lowest, net.input_highest
        for buffer, values in zip(buffers, self, strict=True):
            buffer.copy_(torch.from_numpy(values))

    def standardised(self, x: np.ndarray) -> np.ndarray:
        """Values within the limits, in SD around the mean."""
        z: np.ndarray = (np.clip(x, self.lowest, self.highest) - self.mean) / self.sd
        return z

    def restored(self, z: np.ndarray) -> np.ndarray:
        """Undo :meth:`standardised` for values within the limits."""
        x: np.ndarray = z * self.sd + self.mean
        return x


def marker_scale(samples: Samples) -> MarkerScale:
    """Scale of each marker within samples; each sample has equal weight.

    The SD is that of cells around the mean of their sample, so shifts between samples do not
    increase it. A marker without spread gets SD 1.

    One event must not decide, so a value counts as at most 8 SD beyond the 0.01 % and 99.99 %
    quantiles of its sample; at least one event lies beyond each of them. This holds for mean and
    SD. The limits of the net are the outermost ones over the samples, 8 SD beyond the quantiles.
    Samples of fewer than 100 cells count as they are.
    """
    blocks = [samples.x[start:stop] for start, stop in samples.spans()]
    tails = [_tails(block) for block in blocks]
    bounded = [_bounded(block, *tail) for block, tail in zip(blocks, tails, strict=True)]
    mean = np.mean([block.mean(0, dtype=np.float64) for block in bounded], axis=0)
    variance = np.mean([block.var(0, dtype=np.float64) for block in bounded], axis=0)
    sd = np.sqrt(variance)
    flat = sd <= 1e-12 * np.maximum(1.0, np.abs(mean))
    sd = np.where(flat, 1.0, sd)
    low = np.min([low for low, _ in tails], axis=0) - _BEYOND * sd
    high = np.max([high for _, high in tails], axis=0) + _BEYOND * sd
    return MarkerScale(*(part.astype(np.float32) for part in (mean, sd, low, high)))


def _tails(block: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantiles of one sample, beyond each of which at least one event lies."""
    last = len(block) - 1
    if len(block) < _FEWEST_CELLS:
        return block.min(0), block.max(0)
    low, high = int(np.ceil(_TAIL * last)), int(np.floor((1 - _TAIL) * last))
    columns = [np.partition(column, [low, high])[[low, high]] for column in block.T]
    low_values, high_values = np.array(columns).T
    return low_values, high_values


def _bounded(block: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    if len(block) < _FEWEST_CELLS:
        return block
    beyond = _BEYOND * np.clip(block, low, high).std(0, dtype=np.float64)
    lowest, highest = (low - beyond).astype(block.dtype), (high + beyond).astype(block.dtype)
    if (block.min(0) >= lowest).all() and (block.max(0) <= highest).all():
        return block
    bounded: np.ndarray = np.clip(block, lowest, highest)
    return bounded
