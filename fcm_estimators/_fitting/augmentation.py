"""Random distortions of whole samples, like those of another instrument, stain or day.

Each draw of a training sample gets one distortion, the same for all its cells. The net therefore
has to estimate the distortion from the sample itself to recognise populations.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from fcm_estimators._cells.samples import Samples
from fcm_estimators._fitting.scale import MarkerScale

# Knots of the monotone warp in training SD. Beyond them the end slopes continue.
_KNOTS = np.array([-1.5, -0.75, 0.0, 0.75, 1.5, 2.25])


@dataclass(frozen=True)
class Augmentation:
    """Sizes of the distortions, in training SD of a marker.

    Some draws stay as measured, because a net that sees only distorted samples learns coarser
    boundaries.

    Parameters
    ----------
    probability : float
        Share of the draws that are distorted.
    shift : float
        SD of the additive shift per sample and marker.
    scale : float
        SD of the logarithm of the multiplicative change per sample and marker.
    warp : float
        SD of the logarithm of the local slopes of a monotone, piecewise linear warp.
    mixing : float
        SD of the share of each other marker that is added to a marker.
    composition : float
        Probability that a draw changes the shares of the classes.
    composition_spread : float
        SD of the logarithm of the factor on each class's share.
    dilution : float
        Probability that a draw makes one class rare, down to 1e-4 of its share. A sample with
        much residual disease then resembles one with little.
    """

    probability: float = 0.5
    shift: float = 0.5
    scale: float = 0.15
    warp: float = 0.2
    mixing: float = 0.02
    composition: float = 1 / 3
    composition_spread: float = 0.6
    dilution: float = 0.3

    def scaled(self, strength: float) -> Augmentation:
        """Return distortions that are ``strength`` times as large."""
        return replace(
            self,
            shift=self.shift * strength,
            scale=self.scale * strength,
            warp=self.warp * strength,
            mixing=self.mixing * strength,
            composition_spread=self.composition_spread * strength,
        )

    def distort(self, z: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Distort one sample, or leave it with probability ``1 - probability``.

        Parameters
        ----------
        z : ndarray of shape (n, M)
            Cells in training SD around the training mean.
        rng : numpy.random.Generator

        Returns
        -------
        ndarray of shape (n, M), dtype of ``z``
        """
        if rng.random() >= self.probability:
            return z
        n_markers = z.shape[1]
        slopes = np.exp(self.warp * rng.normal(size=(len(_KNOTS) + 1, n_markers)))
        gain = np.exp(self.scale * rng.normal(size=n_markers))
        offset = self.shift * rng.normal(size=n_markers)
        leak = self.mixing * rng.normal(size=(n_markers, n_markers))
        np.fill_diagonal(leak, 0)
        # A warp through the origin: each knot changes the slope for the values above it.
        warped = slopes[0] * z
        for knot, change in zip(_KNOTS, np.diff(slopes, axis=0), strict=True):
            warped += change * (np.maximum(z - knot, 0) - max(-knot, 0))
        moved = gain * (warped + warped @ leak) + offset
        return np.asarray(moved, dtype=z.dtype)

    def class_factors(self, n_groups: int, rng: np.random.Generator) -> np.ndarray | None:
        """Factors on the shares of the classes for one draw; None leaves the shares unchanged.

        Parameters
        ----------
        n_groups : int
            Number of classes, where unlabelled cells count as one class.
        rng : numpy.random.Generator

        Returns
        -------
        ndarray of shape (n_groups,) or None
        """
        chance = rng.random()
        if chance < self.composition:
            return np.exp(self.composition_spread * rng.normal(size=n_groups))
        if chance < self.composition + self.dilution:
            factors = np.ones(n_groups)
            factors[rng.integers(n_groups)] = 10 ** rng.uniform(-4, 0)
            return factors
        return None


def distorted_samples(
    samples: Samples,
    scale: MarkerScale,
    augmentation: Augmentation,
    rng: np.random.Generator,
) -> Samples:
    """Samples as if measured on another day; each sample gets its own distortion.

    Parameters
    ----------
    samples : Samples
    scale : MarkerScale
    augmentation : Augmentation
    rng : numpy Generator
    """
    always = replace(augmentation, probability=1.0)
    z = scale.standardised(samples.x)
    parts = [always.distort(z[start:stop], rng) for start, stop in samples.spans()]
    x = scale.restored(np.concatenate(parts)).astype(samples.x.dtype, copy=False)
    return replace(samples, x=x)
