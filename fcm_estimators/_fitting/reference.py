"""How the training samples were distributed, and how far another sample is from them."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np
import pandas as pd

from fcm_estimators._cells.samples import Samples
from fcm_estimators._checks import listed

# Cells of a sample that are compared, evenly spaced; quantiles at which they are.
GLANCE = 50_000
_LEVELS = (np.arange(100) + 0.5) / 100
# A marker is far from training beyond this many times the farthest training sample, and beyond
# this many SD. Chosen on pairs of samples of one CyTOF batch that were left out: one pair is far,
# by a marker that has moved by 1.2 SD, and all samples of the other batch are.
_BEYOND_TRAINING = 1.5
_LEAST_DISTANCE = 0.25


@dataclass(frozen=True)
class Reference:
    """Distribution of every marker in the training samples.

    Parameters
    ----------
    markers : list of M str
    quantiles : ndarray of shape (100, M)
        Mean over training samples of each sample's quantiles.
    scale : ndarray of shape (M,)
        SD within training samples.
    farthest : ndarray of shape (M,)
        Largest distance of a training sample from the mean of the others, in SD; 0 for one sample.
    """

    markers: list[str]
    quantiles: np.ndarray
    scale: np.ndarray
    farthest: np.ndarray

    @classmethod
    def of(cls, samples: Samples, scale: np.ndarray) -> Self:
        """Distribution of some samples."""
        each = np.stack([_quantiles(x) for x in glances(samples)])
        others = (each.sum(0) - each) / max(len(each) - 1, 1)
        distances = np.abs(each - others).mean(1) / scale
        farthest = distances.max(0) if len(each) > 1 else np.zeros(len(scale))
        return cls(list(samples.markers), each.mean(0), np.array(scale, dtype=float), farthest)

    def compare(self, names: np.ndarray, glances: list[np.ndarray]) -> pd.DataFrame:
        """Row per sample and marker; see ``SetEstimator.check_sample``."""
        rows = []
        for x in glances:
            found = _quantiles(x)
            distance = np.abs(found - self.quantiles).mean(0) / self.scale
            rows.append(
                pd.DataFrame(
                    {
                        "distance": distance,
                        "shift": (found - self.quantiles).mean(0) / self.scale,
                        "farthest_training": self.farthest,
                        "far": (distance > _BEYOND_TRAINING * self.farthest)
                        & (distance > _LEAST_DISTANCE),
                    },
                    index=pd.Index(self.markers, name="marker"),
                )
            )
        return pd.concat(rows, keys=names, names=["sample"])

    def warn(
        self, names: np.ndarray, glances: list[np.ndarray], stacklevel: int = 3
    ) -> pd.DataFrame:
        """Warn of samples that are far from training; returns :meth:`compare`."""
        table = self.compare(names, glances)
        far = table[table["far"]]
        if far.empty:
            return table
        worst = far["distance"].groupby(level="sample", sort=False).idxmax()
        said = [
            f"{sample} (farthest in {marker}: {far.loc[(sample, marker), 'distance']:.1f} SD)"
            for sample, marker in worst
        ]
        warnings.warn(
            f"{len(said)} of {len(names)} sample(s) are farther from the training samples than "
            f"these are from each other: {listed(said, 5)}. Predictions may be wrong there; see "
            "check_sample(...).",
            UserWarning,
            stacklevel=stacklevel,
        )
        return table

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, for the saved model."""
        return {
            "quantiles": self.quantiles.tolist(),
            "scale": self.scale.tolist(),
            "farthest": self.farthest.tolist(),
        }

    @classmethod
    def from_dict(cls, markers: list[str], saved: dict[str, Any]) -> Self:
        """Undo :meth:`to_dict`."""
        arrays = [np.array(saved[k], dtype=float) for k in ("quantiles", "scale", "farthest")]
        shapes = [(len(_LEVELS), len(markers)), (len(markers),), (len(markers),)]
        if [a.shape for a in arrays] != shapes:
            raise ValueError(f"the reference has the shapes {[a.shape for a in arrays]}")
        return cls(markers, *arrays)


def evenly(n_cells: int) -> slice:
    """At most :data:`GLANCE` of the cells, evenly spaced."""
    return slice(None, None, -(-n_cells // GLANCE))


def glances(samples: Samples) -> list[np.ndarray]:
    """Some cells of every sample, evenly spaced."""
    blocks = (samples.x[start:stop] for start, stop in pairwise(samples.offsets))
    return [block[evenly(len(block))] for block in blocks]


def _quantiles(x: np.ndarray) -> np.ndarray:
    return np.quantile(x, _LEVELS, axis=0).astype(np.float64)
