"""Split of the samples into training and validation."""

from __future__ import annotations

import logging

import numpy as np
from sklearn.model_selection import GroupKFold, GroupShuffleSplit

from fcm_estimators._cells.samples import Samples

logger = logging.getLogger("fcm_estimators")

# With fewer samples than this there is no validation.
_MIN_SAMPLES = 5
# Number of random splits; the split that keeps most classes is chosen.
_CANDIDATES = 100


def split_patients(
    samples: Samples, fraction: float | None, seed: int, present: np.ndarray
) -> tuple[list[int], list[int]]:
    """Positions of training and of validation samples. No patient is in both.

    Parameters
    ----------
    samples : Samples
    fraction : float or None
        Share of the patients that is held out. None, fewer than 5 samples, or fewer than 2
        patients: no patient is held out. In the last two cases the log says so.
    seed : int
    present : bool ndarray of shape (S, C)
        Whether each sample has cells of each class. The split keeps every class in training, and
        in validation too, as far as possible.
    """
    everything = list(range(len(samples.names)))
    patients = samples.patients.astype(str)
    n_patients = len(np.unique(patients))
    if fraction is None:
        return everything, []
    if len(everything) < _MIN_SAMPLES or n_patients < 2:
        logger.info(
            "%d sample(s) of %d patient(s): there is no validation split and no early stopping. "
            "The weights after the last epoch are kept.",
            len(everything),
            n_patients,
        )
        return everything, []
    n_valid = min(max(1, round(fraction * n_patients)), n_patients - 1)
    splits = GroupShuffleSplit(_CANDIDATES, test_size=n_valid, random_state=seed % 2**32)

    def missing(split: tuple[np.ndarray, np.ndarray]) -> int:
        """Penalty for missing classes. One missing in training counts more than all others."""
        in_train, in_valid = (int((present.any(0) & ~present[part].any(0)).sum()) for part in split)
        return int(in_train * present.shape[1] + in_valid)

    train, valid = min(splits.split(everything, groups=patients), key=missing)
    return train.tolist(), valid.tolist()


def patient_folds(
    samples: Samples, n_folds: int, seed: int, present: np.ndarray
) -> list[list[int]]:
    """Positions of the samples of each fold. All samples of a patient are in one fold.

    Parameters
    ----------
    samples : Samples
    n_folds : int
        At most; with fewer patients, each patient is a fold.
    seed : int
    present : bool ndarray of shape (S, C)
        Whether each sample has cells of each class. As far as possible, the samples outside of a
        fold have every class.

    Returns
    -------
    list of list of int
        Empty if there are fewer than 2 folds or 2 patients.
    """
    everything = np.arange(len(samples.names))
    patients = samples.patients.astype(str)
    n_folds = min(n_folds, len(np.unique(patients)))
    if n_folds < 2:
        return []

    def folds(candidate: int) -> list[np.ndarray]:
        splits = GroupKFold(n_folds, shuffle=True, random_state=(seed + candidate) % 2**32)
        return [test for _, test in splits.split(everything, groups=patients)]

    def missing(found: list[np.ndarray]) -> int:
        rest = (np.delete(present, fold, axis=0).any(0) for fold in found)
        return sum(int((present.any(0) & ~seen).sum()) for seen in rest)

    best = min((folds(candidate) for candidate in range(_CANDIDATES)), key=missing)
    return [fold.tolist() for fold in best]
