"""Novelty of a cell: how far it is from all labelled cells that the model was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Self

import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from fcm_estimators._fitting.augmentation import Augmentation
from fcm_estimators._types import Entries

# Number of centroids, and of training cells that they summarise.
_N_CENTROIDS, _N_CELLS = 150, 20_000
# A rare class has at least this share of those cells, as far as it has cells.
_MIN_CLASS_FRACTION = 0.02
# A centroid stands for at least this many cells, so that it is nobody's measurement.
_FEWEST_PER_CENTROID = 20
# Candidates for the squared bandwidth, in units of the variance within a centroid.
_MULTIPLES = (1.0, 5.0, 10.0, 20.0, 40.0, 80.0)
# The multiple if there is nothing to choose it with: best on left-out CyTOF populations.
_DEFAULT_MULTIPLE = 20.0
# Distortions of each sample for that choice.
_N_DAYS = 8
# Classes that are left out in turn to choose the multiple, the largest first.
_N_LEFT_OUT = 6
# Share of the known cells of held-out patients above the threshold.
FALSE_ALARMS = 0.01
# Rows whose distances to all centroids stay in the cache.
_ROWS = 1 << 10


@dataclass(frozen=True)
class LabelledCells:
    """Labelled cells of training samples, in standardised marker space.

    Parameters
    ----------
    z : ndarray of shape (n, M)
        Cells in SD within training samples. They are not standardised per sample: a shifted sample
        is strange as a whole.
    code : ndarray of int of shape (n,)
        Class of each cell.
    sample : ndarray of int of shape (n,)
    """

    z: np.ndarray
    code: np.ndarray
    sample: np.ndarray

    def take(self, chosen: np.ndarray) -> LabelledCells:
        """Some of the cells."""
        return LabelledCells(self.z[chosen], self.code[chosen], self.sample[chosen])

    def on_other_days(
        self, augmentation: Augmentation | None, rng: np.random.Generator
    ) -> LabelledCells:
        """The cells of each sample in eight parts, each with a distortion of its own.

        A few patients of one batch do not represent the next batch.
        """
        if augmentation is None:
            return self
        always = replace(augmentation, probability=1.0)
        group = self.sample * _N_DAYS + _place_in_group(self.sample) % _N_DAYS
        z = self.z.copy()
        for number in np.unique(group):
            rows = group == number
            z[rows] = always.distort(self.z[rows], rng)
        return replace(self, z=z)

    def scale(self) -> np.ndarray:
        """SD of each marker within samples, shape (M,); each sample has equal weight."""
        variances = pd.DataFrame(self.z).groupby(self.sample).var(ddof=0).mean()
        found = np.sqrt(np.maximum(variances.to_numpy(dtype=np.float64), 1e-6))
        return np.asarray(found, dtype=np.float32)

    def thinned(self, rng: np.random.Generator) -> LabelledCells:
        """About 20,000 cells, the same number of each sample, and some of every class."""
        order = rng.permutation(len(self.z))
        per_sample = max(_N_CELLS // len(np.unique(self.sample)), 1)
        chosen = _place_in_group(self.sample[order]) < per_sample
        per_class = int(_MIN_CLASS_FRACTION * _N_CELLS)
        chosen |= _place_in_group(self.code[order]) < per_class
        return self.take(np.sort(order[chosen]))


def _place_in_group(group: np.ndarray) -> np.ndarray:
    """Number of earlier entries with the same value."""
    return pd.Series(group).groupby(group).cumcount().to_numpy()


@dataclass(frozen=True)
class Novelty:
    """Negative logarithm of a mixture density with equal, round components.

    The novelty of a cell is ``-log sum_m w_m exp(-d_m^2 / 2 h^2)`` with its distances ``d_m`` from
    centroids of the labelled training cells and the shares ``w_m`` of these cells. It is 0 at the
    centre of a single cluster, and grows with the squared distance.

    Parameters
    ----------
    centroids : Tensor of shape (K, M)
        In SD within training samples.
    log_weight : Tensor of shape (K,)
        Logarithm of the share of training cells of each centroid.
    bandwidth : float
        ``h^2``.
    threshold : float
        Novelty above which a cell is unlike any in training. Infinite: not determined.
    source : str
        Where the threshold comes from, in words.
    usual : float
        Largest share of cells above the threshold in a training sample. Cells without a label
        count too: debris, for example, is unlike the labelled cells.
    """

    centroids: Tensor = field(repr=False)
    log_weight: Tensor = field(repr=False)
    bandwidth: float
    threshold: float = float("inf")
    source: str = ""
    usual: float = 0.0

    @classmethod
    def of(cls, cells: LabelledCells, multiple: float, seed: int) -> Self:
        """Mixture of some labelled cells.

        Parameters
        ----------
        cells : LabelledCells
        multiple : float
            Squared bandwidth in units of the variance within a centroid, per marker.
        seed : int
        """
        from sklearn.cluster import MiniBatchKMeans  # slow to load, and prediction does not use it

        some = cells.thinned(np.random.default_rng(seed))
        n_centroids = max(1, min(_N_CENTROIDS, len(some.z) // _FEWEST_PER_CENTROID))
        clusters = MiniBatchKMeans(
            n_centroids, batch_size=2048, max_iter=50, n_init=1, random_state=seed % 2**32
        ).fit(some.z)
        size = np.bincount(clusters.labels_, minlength=n_centroids)
        kept = size >= min(_FEWEST_PER_CENTROID, size.max())
        within = np.square(some.z - clusters.cluster_centers_[clusters.labels_]).mean()
        return cls(
            torch.from_numpy(clusters.cluster_centers_[kept].astype(np.float32)),
            torch.from_numpy(np.log(size[kept] / size[kept].sum()).astype(np.float32)),
            float(multiple * max(within, 1e-6)),
        )

    @torch.no_grad()
    def score(self, z: Tensor) -> Tensor:
        """Novelty of cells.

        Parameters
        ----------
        z : Tensor of shape (n, M)
            Cells in SD within training samples, float32.

        Returns
        -------
        Tensor of shape (n,)
        """
        centroids = self.centroids.to(z)
        half = 0.5 / self.bandwidth
        constant = self.log_weight.to(z) - half * centroids.square().sum(1)
        towards = (2 * half) * centroids
        found, buffer = z.new_empty(len(z)), z.new_empty(len(centroids), _ROWS)
        for start in range(0, len(z), _ROWS):
            part = z[start : start + _ROWS]
            # A column per cell: sums over rows are faster than sums within them.
            into = buffer[:, : len(part)]
            terms = torch.addmm(constant[:, None], towards, part.T, out=into)
            largest = terms.amax(0)
            # Smaller terms add nothing, and processors are slow with the smallest of all numbers.
            terms.sub_(largest).clamp_min_(-80).exp_()
            log_density = terms.sum(0).log_() + largest
            found[start : start + _ROWS] = half * part.square().sum(1) - log_density
        return found

    def without(self, markers: Sequence[int]) -> Novelty:
        """The mixture of the other markers, without a threshold."""
        kept = [i for i in range(self.centroids.shape[1]) if i not in set(markers)]
        return replace(
            self, centroids=self.centroids[:, kept], threshold=float("inf"), source="", usual=0.0
        )

    def with_threshold(self, known: np.ndarray, source: str) -> Novelty:
        """The same mixture with the threshold that 1 % of some known cells exceed."""
        threshold = float(np.quantile(known, 1 - FALSE_ALARMS))
        return replace(self, threshold=threshold, source=source)

    def tensors(self) -> dict[str, Tensor]:
        """Tensors of the saved model."""
        return {"centroids": self.centroids, "log_weight": self.log_weight}

    def to_dict(self) -> Entries:
        """Entries of the saved model besides the tensors."""
        return {
            "bandwidth": self.bandwidth,
            "threshold": self.threshold if np.isfinite(self.threshold) else None,
            "source": self.source,
            "usual": self.usual,
        }

    @classmethod
    def restored(cls, saved: Entries, tensors: Mapping[str, Tensor]) -> Self:
        """Undo :meth:`tensors` and :meth:`to_dict`."""
        found = cls(tensors["centroids"], tensors["log_weight"], **saved)
        if found.centroids.ndim != 2 or found.log_weight.shape != found.centroids.shape[:1]:
            raise ValueError("the centroids of the novelty do not fit their weights")
        return found if saved["threshold"] is not None else replace(found, threshold=float("inf"))


@dataclass(frozen=True)
class NoveltyTest:
    """Cells of held-out patients, and mixtures of the others, for the threshold.

    Parameters
    ----------
    parts : list of (Novelty, Tensor)
    source : str
        What is held out, in words.
    """

    parts: list[tuple[Novelty, Tensor]]
    source: str

    def threshold_for(self, whole: Novelty, markers: Sequence[int] = ()) -> Novelty:
        """The whole mixture with its threshold, both without some markers.

        The threshold stays infinite if nothing was held out.
        """
        found = whole.without(markers) if markers else whole
        scores = []
        for mixture, z in self.parts:
            if markers:
                mixture = mixture.without(markers)
                z = z[:, [i for i in range(z.shape[1]) if i not in set(markers)]]
            scores.append(mixture.score(z).numpy())
        return found.with_threshold(np.concatenate(scores), self.source) if scores else found


def fit_novelty(
    cells: LabelledCells,
    folds: Sequence[Sequence[int]],
    augmentation: Augmentation | None,
    seed: int,
) -> tuple[Novelty, NoveltyTest]:
    """Mixture of all labelled cells; bandwidth and threshold from held-out patients.

    The bandwidth finds best, on average, the cells of a class that is left out of training, in
    held-out samples with the distortions of training. The samples of each fold are held out in
    turn for the threshold.

    Parameters
    ----------
    cells : LabelledCells
    folds : sequence of lists of int
        Samples of each group of patients. Fewer than two: half of the cells are held out instead,
        so the threshold does not know how patients differ.
    augmentation : Augmentation or None
        Distortions of training.
    seed : int
    """
    rng = np.random.default_rng(seed)
    held_out = [np.isin(cells.sample, list(fold)) for fold in folds]
    held_out = [mask for mask in held_out if mask.any() and not mask.all()]
    source = "held-out patients"
    if len(held_out) < 2:
        held_out, source = [rng.random(len(cells.z)) < 0.5], "held-out cells of the same samples"
        if held_out[0].all() or not held_out[0].any():
            return Novelty.of(cells, _DEFAULT_MULTIPLE, seed), NoveltyTest([], source)
    multiple = _best_multiple(cells, held_out[0], augmentation, seed)
    whole = Novelty.of(cells, multiple, seed)
    parts = []
    for mask in held_out:
        other = cells.take(mask).thinned(rng)
        # Fewer cells have fewer centroids, so the bandwidth of a part would be larger.
        part = replace(Novelty.of(cells.take(~mask), multiple, seed), bandwidth=whole.bandwidth)
        parts.append((part, torch.from_numpy(other.z)))
    test = NoveltyTest(parts, source)
    return test.threshold_for(whole), test


def _best_multiple(
    cells: LabelledCells, held_out: np.ndarray, augmentation: Augmentation | None, seed: int
) -> float:
    """The multiple with the highest mean area under the ROC curve for left-out classes."""
    rng = np.random.default_rng(seed)
    test = cells.take(held_out).thinned(rng).on_other_days(augmentation, rng)
    train = cells.take(~held_out)
    counts = np.bincount(test.code)
    largest = [c for c in np.argsort(-counts) if counts[c] >= _FEWEST_PER_CENTROID][:_N_LEFT_OUT]
    areas = []
    for c in largest:
        others, stranger = train.take(train.code != c), test.code == c
        if len(others.z) < _FEWEST_PER_CENTROID or stranger.all():
            continue
        # A class that was never seen has no part in the scale of the markers either.
        scale = others.scale()
        mixture = Novelty.of(replace(others, z=others.z / scale), 1.0, seed)
        z = torch.from_numpy(test.z / scale)
        row = []
        for multiple in _MULTIPLES:
            scaled = replace(mixture, bandwidth=mixture.bandwidth * multiple)
            row.append(roc_auc_score(stranger, scaled.score(z).numpy()))
        areas.append(row)
    return _MULTIPLES[int(np.mean(areas, axis=0).argmax())] if areas else _DEFAULT_MULTIPLE
