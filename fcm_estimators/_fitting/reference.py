"""Distribution of the training samples, and the distance of other samples from it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd

from fcm_estimators._cells.rows import even_slice
from fcm_estimators._cells.samples import Samples
from fcm_estimators._checks import listed
from fcm_estimators._types import Entries

# Quantiles at which samples are compared.
_LEVELS = (np.arange(100) + 0.5) / 100
# A marker is far from training if its distance exceeds this many times that of the farthest
# training sample, and also this many SD. The values were chosen on left-out pairs of samples of
# one CyTOF batch: one pair is far, by a marker that moved by 1.2 SD, and so are all samples of the
# other batch.
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
        Largest distance of a training sample from the mean of the others, in SD. 0 if there is
        only one sample.
    """

    markers: list[str]
    quantiles: np.ndarray
    scale: np.ndarray
    farthest: np.ndarray

    @classmethod
    def of(cls, samples: Samples, scale: np.ndarray) -> Self:
        """Reference from some samples."""
        each = np.stack([_quantiles(x) for x in subsamples(samples)])
        others = (each.sum(0) - each) / max(len(each) - 1, 1)
        distances = np.abs(each - others).mean(1) / scale
        farthest = distances.max(0) if len(each) > 1 else np.zeros(len(scale))
        return cls(list(samples.markers), each.mean(0), np.array(scale, dtype=float), farthest)

    def without(self, markers: Sequence[int]) -> Reference:
        """The reference of the other markers."""
        kept = [i for i in range(len(self.markers)) if i not in set(markers)]
        names = [self.markers[i] for i in kept]
        return Reference(names, self.quantiles[:, kept], self.scale[kept], self.farthest[kept])

    def compare(self, names: np.ndarray, cells: list[np.ndarray]) -> pd.DataFrame:
        """Table with one row per sample and marker, as ``check_sample`` returns it.

        Parameters
        ----------
        names : ndarray of S names
            Samples.
        cells : list of S ndarray of shape (n, M)
            Some cells of each sample.
        """
        rows = []
        for x in cells:
            difference = _quantiles(x) - self.quantiles
            distance = np.abs(difference).mean(0) / self.scale
            rows.append(
                pd.DataFrame(
                    {
                        "distance": distance,
                        "shift": difference.mean(0) / self.scale,
                        "farthest_training": self.farthest,
                        "far": (distance > _BEYOND_TRAINING * self.farthest)
                        & (distance > _LEAST_DISTANCE),
                    },
                    index=pd.Index(self.markers, name="marker"),
                )
            )
        return pd.concat(rows, keys=names, names=["sample"])

    def warn(self, names: np.ndarray, cells: list[np.ndarray], stacklevel: int = 3) -> pd.DataFrame:
        """Warn of samples that are far from training; return the table of :meth:`compare`."""
        table = self.compare(names, cells)
        far = table[table["far"]]
        if far.empty:
            return table
        worst = far["distance"].groupby(level="sample", sort=False).idxmax()
        found = [
            f"{sample} (farthest in {marker}: {far.loc[(sample, marker), 'distance']:.1f} SD)"
            for sample, marker in worst
        ]
        warnings.warn(
            f"{len(found)} of {len(names)} sample(s) are more than {_BEYOND_TRAINING} times as far "
            "from the training samples as the farthest of these is from the others: "
            f"{listed(found, 5)}. Their predictions may be wrong; see "
            "check_sample(...).",
            UserWarning,
            stacklevel=stacklevel,
        )
        return table

    def to_dict(self) -> Entries:
        """Return the arrays as lists, for the saved model."""
        return {
            "quantiles": self.quantiles.tolist(),
            "scale": self.scale.tolist(),
            "farthest": self.farthest.tolist(),
        }

    @classmethod
    def from_dict(cls, markers: list[str], saved: Entries) -> Self:
        """Undo :meth:`to_dict`."""
        arrays = [np.array(saved[k], dtype=float) for k in ("quantiles", "scale", "farthest")]
        shapes = [(len(_LEVELS), len(markers)), (len(markers),), (len(markers),)]
        if [a.shape for a in arrays] != shapes:
            raise ValueError(f"the reference has the shapes {[a.shape for a in arrays]}")
        return cls(markers, *arrays)


def subsamples(samples: Samples) -> list[np.ndarray]:
    """Some cells of each sample, evenly spaced."""
    blocks = (samples.x[start:stop] for start, stop in samples.spans())
    return [block[even_slice(len(block))] for block in blocks]


def _quantiles(x: np.ndarray) -> np.ndarray:
    found: np.ndarray = np.quantile(x, _LEVELS, axis=0)
    return np.asarray(found, dtype=np.float64)
