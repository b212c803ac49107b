"""Samples of held-out patients, and nets that were not trained on them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from fcm_estimators._base.running import outputs_of
from fcm_estimators._cells.samples import Samples
from fcm_estimators._fitting.augmentation import Augmentation, distorted_samples
from fcm_estimators._fitting.class_targets import codes_of
from fcm_estimators._fitting.scale import MarkerScale
from fcm_estimators.nn.reluformer import ScaledModule, SetModule

# Number of cells in each sample of a distorted copy of the held-out samples.
_CELLS_PER_COPY = 10_000


@dataclass(frozen=True)
class Judged:
    """Labelled cells of held-out patients with the logits of a net that did not see the patient.

    Attributes
    ----------
    logits : ndarray of shape (n, C)
    codes : ndarray of int of shape (n,)
        Class of each cell.
    sample : ndarray of int of shape (n,)
        Position of the sample among all samples of the fit.
    """

    logits: np.ndarray
    codes: np.ndarray
    sample: np.ndarray


@dataclass(frozen=True)
class HeldOut:
    """Held-out samples, in groups with a net each.

    Parameters
    ----------
    samples : Samples
        All samples of the fit.
    codes : ndarray of int of shape (N,)
        Class of each cell of the samples, -1 without a label.
    groups : sequence of (ScaledModule, list of int)
        A net, and the positions of samples that it was not trained on.
    """

    samples: Samples
    codes: np.ndarray
    groups: Sequence[tuple[ScaledModule, list[int]]]

    @property
    def positions(self) -> list[int]:
        """Positions of all held-out samples."""
        return [s for _, chosen in self.groups for s in chosen]

    @property
    def has_labels(self) -> bool:
        """Whether there is a labelled cell in any of the samples."""
        return bool((codes_of(self.samples, self.codes, self.positions) >= 0).any())

    def without(self, marker: int) -> HeldOut:
        """The same samples and nets without a marker."""
        x = np.delete(self.samples.x, marker, axis=1)
        names = [name for i, name in enumerate(self.samples.markers) if i != marker]
        samples = replace(self.samples, x=x, markers=names)
        groups = [(cast(SetModule, net).without([marker]), chosen) for net, chosen in self.groups]
        return replace(self, samples=samples, groups=groups)

    def judged(self) -> Judged:
        """Cells as they were measured."""
        parts = []
        for net, chosen in self.groups:
            part = self.samples.take(chosen)
            codes = codes_of(self.samples, self.codes, chosen)
            known = codes >= 0
            sample = np.array(chosen)[part.sample_of_cell]
            parts.append(Judged(outputs_of(net, part)[known], codes[known], sample[known]))
        return _joined(parts)

    def judged_on_other_days(
        self, augmentation: Augmentation | None, seed: int, n_days: int = 16
    ) -> Judged:
        """Some cells with the distortions of training, as if measured on several other days.

        A few patients of one batch do not represent the next batch. Without distortions, the
        cells are as they were measured.
        """
        n_copies = 1 if augmentation is None else n_days
        return _joined(
            [part for copy in range(n_copies) for part in self._copy(augmentation, seed, copy)]
        )

    def _copy(self, augmentation: Augmentation | None, seed: int, copy: int) -> Iterator[Judged]:
        rng = np.random.default_rng([seed, copy])
        for net, chosen in self.groups:
            part, rows = self.samples.take(chosen).thinned(_CELLS_PER_COPY)
            codes = codes_of(self.samples, self.codes, chosen)[rows]
            if augmentation is not None:
                part = distorted_samples(part, MarkerScale.in_net(net), augmentation, rng)
            known = codes >= 0
            sample = np.array(chosen)[part.sample_of_cell]
            yield Judged(outputs_of(net, part)[known], codes[known], sample[known])


def _joined(parts: Sequence[Judged]) -> Judged:
    columns = zip(*((p.logits, p.codes, p.sample) for p in parts), strict=True)
    return Judged(*(np.concatenate(column) for column in columns))
