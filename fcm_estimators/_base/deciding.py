"""Threshold, calibration and performance of a classifier, from held-out patients."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import numpy as np
from scipy.special import logit
from torch import Tensor

from fcm_estimators._base.held_out import HeldOut, Judged
from fcm_estimators._base.members import usual_excess
from fcm_estimators._base.panels import Decided
from fcm_estimators._cells.rows import as_tensor
from fcm_estimators._fitting.augmentation import Augmentation
from fcm_estimators._fitting.calibration import (
    best_f1_threshold,
    best_temperature,
    called,
    counts_are_right,
    false_positive_threshold,
)
from fcm_estimators._fitting.novelty import Novelty
from fcm_estimators._fitting.performance import Performance
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.nn.reluformer import ScaledModule


def code_of(label: Hashable, classes: np.ndarray) -> int | None:
    """Position of a label in the classes; None for no label."""
    return None if label is None else classes.tolist().index(label)


@dataclass(frozen=True)
class Rules:
    """Parameters of a classifier that say how its decisions are determined.

    Parameters
    ----------
    classes : ndarray of shape (C,)
    pos_label : label or None
    threshold : "f1" or float
    false_positive_rate : float or None
    augmentation : Augmentation or None
        Distortions of the held-out samples for the temperature.
    seed : int
    """

    classes: np.ndarray
    pos_label: Hashable
    threshold: str | float
    false_positive_rate: float | None
    augmentation: Augmentation | None
    seed: int

    def decided(
        self, held_out: HeldOut, net: ScaledModule, novelty: Novelty, n_days: int
    ) -> Decided:
        """What held-out patients determine, for all markers or without some.

        Parameters
        ----------
        held_out : HeldOut
        net : ScaledModule
            The net itself.
        novelty : Novelty
        n_days : int
            Distortions of the held-out samples for the temperature.
        """
        samples = held_out.samples
        strange = novelty_of(novelty, net, as_tensor(samples.x)) > novelty.threshold
        usual = max(float(strange[i:j].mean()) for i, j in samples.spans())
        judged = held_out.judged() if held_out.has_labels else None
        threshold = self._threshold(judged)
        if judged is None:
            ones = np.ones(len(self.classes))
            return Decided(threshold, 1.0, ones, None, novelty.threshold, usual)
        predicted = called(judged.logits, threshold, self._positive)
        days = held_out.judged_on_other_days(self.augmentation, self.seed, n_days)
        performance = Performance.of(
            self.classes[judged.codes],
            self.classes[predicted],
            judged.sample,
            samples.patients.astype(str)[judged.sample],
            self.classes.tolist(),
            self.pos_label,
        )
        return Decided(
            threshold,
            _temperature(judged, days),
            usual_excess(judged.logits, predicted, judged.codes, judged.sample),
            performance,
            novelty.threshold,
            usual,
        )

    @property
    def _positive(self) -> int:
        return code_of(self.pos_label, self.classes) or 0

    def _threshold(self, judged: Judged | None) -> float | None:
        """Log-odds of the positive class from which a cell is positive."""
        if self.pos_label is None:
            return None
        rate = self.false_positive_rate
        if rate is not None and judged is None:
            raise InvalidInputError(
                "false_positive_rate needs held-out patients, and there are none. Pass samples of "
                "2 or more patients with n_members, or a number as threshold."
            )
        if rate is None and self.threshold != "f1":
            return float(logit(self.threshold))
        if judged is None:
            return 0.0
        z = judged.logits
        log_odds = np.subtract(z[:, self._positive], z[:, 1 - self._positive], dtype=np.float64)
        positive = judged.codes == self._positive
        if rate is not None:
            return false_positive_threshold(log_odds, positive, rate)
        return best_f1_threshold(log_odds, positive, judged.sample)


def _temperature(judged: Judged, days: Judged) -> float:
    """The best temperature on distorted cells, if the counts of undistorted cells stay right."""
    found = best_temperature(days.logits, days.codes, days.sample)
    kept = counts_are_right(judged.logits, judged.codes, judged.sample, found)
    return found if kept else 1.0


def novelty_of(novelty: Novelty, net: ScaledModule, x: Tensor) -> np.ndarray:
    """Novelty of cells in the units of the data."""
    return novelty.score(net.standardise(x.to(net.input_mean))).numpy(force=True)
