"""Random distortions of whole samples: what another instrument, stain or day does to them.

A draw of a training sample gets one distortion, the same for all its cells, so the net can only
recognise populations by reading the distortion off the sample itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

# Knots of the monotone warp in training SD; outside them the end slopes go on.
_KNOTS = np.array([-1.5, -0.75, 0.0, 0.75, 1.5, 2.25])


@dataclass(frozen=True)
class Augmentation:
    """Sizes of the distortions, in training SD of a marker.

    Part of the draws stay as measured: a net that only ever sees distorted samples draws its
    boundaries less finely.

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
        SD of the share of every other marker that leaks into a marker.
    composition : float
        Probability that a draw changes the shares of the classes.
    composition_spread : float
        SD of the logarithm of the factor on each class's share.
    dilution : float
        Probability that a draw makes one class rare, down to 1e-4 of its share: how a sample
        with little residual disease looks, made from one with much.
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
        """Return the same distortions, ``strength`` times as large."""
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
        # A warp through the origin: the slope of each stretch, times how much of it a cell has.
        warped = slopes[0] * z
        for knot, change in zip(_KNOTS, np.diff(slopes, axis=0), strict=True):
            warped += change * (np.maximum(z - knot, 0) - max(-knot, 0))
        out = gain * (warped + warped @ leak) + offset
        return out.astype(z.dtype, copy=False)

    def class_factors(self, n_groups: int, rng: np.random.Generator) -> np.ndarray | None:
        """Factor on the share of each class for this draw, or None to leave them.

        Parameters
        ----------
        n_groups : int
            Classes, unlabelled cells counted as one.
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
