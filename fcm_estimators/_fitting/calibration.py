"""Temperature and decision thresholds from held-out patients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torch.nn.functional import cross_entropy

_GRID = np.round(np.arange(-12, 12.05, 0.05), 2)  # log-odds
# Differences in F1 that are nothing, and the standard errors beyond which one is clear.
_NEGLIGIBLE, _CLEAR = 1e-3, 2
# Held-out cells that are no better than chance would make the temperature extreme.
_HIGHEST = math.log(10)

# Sums of probabilities may differ from true numbers by this factor, if these are large enough.
_RIGHT_COUNT, _FEWEST_COUNTED = 1.5, 20
# Powers of ten of a probability; the last has all smaller ones.
_DECADES = 8


def best_temperature(logits: np.ndarray, codes: np.ndarray, sample: np.ndarray) -> float:
    """Temperature that calibrates the probabilities of held-out cells.

    Logits are divided by the temperature. The best temperature of a sample minimises its
    cross-entropy (Guo et al., ICML 2017). The result is the median over samples, so a single
    difficult patient does not determine it. It is at least 1: a few easy patients do not justify
    more confidence.

    Parameters
    ----------
    logits : ndarray of shape (n, C)
    codes : ndarray of int of shape (n,)
        Class of each cell.
    sample : ndarray of int of shape (n,)
        Sample of each cell.

    Returns
    -------
    float
        From 1 to 10.
    """
    found = []
    for s in np.unique(sample):
        inside = sample == s
        z, y = torch.from_numpy(logits[inside]).double(), torch.from_numpy(codes[inside])

        def loss(log_temperature: float, z: Tensor = z, y: Tensor = y) -> float:
            return float(cross_entropy(z / math.exp(log_temperature), y))

        best = minimize_scalar(loss, bounds=(0.0, _HIGHEST), method="bounded")
        found.append(best.x if best.fun < loss(0.0) else 0.0)
    return float(np.exp(np.median(found)))


def counts_are_right(
    logits: np.ndarray, codes: np.ndarray, sample: np.ndarray, temperature: float
) -> bool:
    """Whether sums of calibrated probabilities are near the true numbers of held-out cells.

    Parameters
    ----------
    logits, codes, sample
        As for :func:`best_temperature`.
    temperature : float

    Returns
    -------
    bool
        True if, for each class and each power of ten of its probability, the sum of the
        probabilities differs from the number of cells of the class by at most a factor of 1.5. A
        power of ten counts only if one of both is 20 or more.
    """
    n_classes = logits.shape[1]
    expected, true = np.zeros((2, n_classes, _DECADES))
    for s in np.unique(sample):
        inside = sample == s
        z = torch.from_numpy(logits[inside].astype(np.float64))
        shift = mean_keeping_shift(partial(iter, [z]), temperature)
        p = calibrated(z, temperature, shift).numpy()
        decade = np.ceil(-np.log10(np.maximum(p, 1e-300))).astype(int).clip(1, _DECADES) - 1
        for c in range(n_classes):
            expected[c] += np.bincount(decade[:, c], p[:, c], _DECADES)
            true[c] += np.bincount(decade[:, c], codes[inside] == c, _DECADES)
    larger, smaller = np.maximum(expected, true), np.minimum(expected, true)
    return bool((larger <= _RIGHT_COUNT * smaller)[larger >= _FEWEST_COUNTED].all())


def called(logits: np.ndarray, threshold: float | None, positive: int) -> np.ndarray:
    """Class codes that follow from logits before calibration.

    Parameters
    ----------
    logits : ndarray of shape (n, C)
    threshold : float or None
        Log-odds of the positive one of two classes from which a cell is positive. None: the most
        probable class.
    positive : int
        Code of the positive class.
    """
    if threshold is None:
        return np.asarray(logits.argmax(1))
    log_odds = np.subtract(logits[:, positive], logits[:, 1 - positive], dtype=np.float64)
    return np.where(log_odds >= threshold, positive, 1 - positive)


def best_f1_threshold(log_odds: np.ndarray, positive: np.ndarray, sample: np.ndarray) -> float:
    """Threshold of log-odds nearest to 0 whose mean F1 is not clearly below the best mean F1.

    The mean is over samples. A difference is clear if it exceeds both 0.001 and twice its standard
    error over samples. A few held-out samples seldom show that another threshold is better than
    even odds. If they do not, even odds are kept, which suit a calibrated model: nets that were
    trained without the samples have seen less than the net that the threshold is for.

    Parameters
    ----------
    log_odds : ndarray of shape (n,)
    positive : bool ndarray of shape (n,)
    sample : ndarray of int of shape (n,)

    Returns
    -------
    float
        0 if no sample has positive cells.
    """
    scores = []
    for s in np.unique(sample):
        inside = sample == s
        truth = positive[inside]
        if not truth.any():
            continue
        values = log_odds[inside]
        reached = np.searchsorted(_GRID, values, side="right")
        scores.append(2 * _n_reaching(reached[truth]) / (_n_reaching(reached) + truth.sum()))
    if not scores:
        return 0.0
    table = np.array(scores)
    mean = table.mean(0)
    best = int(mean.argmax())
    loss = table[:, [best]] - table
    error = loss.std(0, ddof=1) / np.sqrt(len(table)) if len(table) > 1 else np.zeros(len(_GRID))
    allowed = _GRID[loss.mean(0) <= np.maximum(_CLEAR * error, _NEGLIGIBLE)]
    return float(allowed[np.abs(allowed).argmin()])


def _n_reaching(reached: np.ndarray) -> np.ndarray:
    """Number of cells that reach each grid value.

    ``reached`` holds the number of grid values that each cell reaches.
    """
    counts = np.bincount(reached, minlength=len(_GRID) + 1)
    return counts[::-1].cumsum()[::-1][1:]


def false_positive_threshold(log_odds: np.ndarray, positive: np.ndarray, rate: float) -> float:
    """Smallest threshold of log-odds that at most a share ``rate`` of negative cells reaches.

    Parameters
    ----------
    log_odds : ndarray of float64 of shape (n,)
        Decisions have to compare log-odds of the same precision with the threshold.
    positive : bool ndarray of shape (n,)
    rate : float

    Returns
    -------
    float
    """
    negatives = np.sort(log_odds[~positive])
    allowed = int(np.floor(rate * len(negatives)))
    # The highest cell that must stay negative, and all ties with it, lie below the threshold.
    return float(np.nextafter(negatives[len(negatives) - allowed - 1], np.inf))


# Steps and accuracy of the search for the shift, and its largest step.
_MOST_STEPS, _ACCURACY, _LARGEST_STEP = 25, 1e-4, 4.0
# Fewer expected cells than this are no cells.
_LEAST_EXPECTED = 1e-6


@torch.no_grad()
def mean_keeping_shift(blocks: Callable[[], Iterable[Tensor]], temperature: float) -> Tensor:
    """Shift of tempered logits that keeps the mean probability of every class in a sample.

    A temperature above 1 moves all probabilities towards 1 / C, and so adds to the expected number
    of cells of a rare class. The shift ``b`` undoes that: the mean of ``softmax(z / T + b)`` over
    the cells is the mean of ``softmax(z)``. It is unique up to a constant, because it minimises
    the convex function ``sum_i logsumexp(z_i / T + b) - sum_i softmax(z_i) b``. Newton's method
    solves for the logarithms of the expected numbers, which are nearly linear in ``b`` for rare
    classes.

    Parameters
    ----------
    blocks : callable
        Returns the logits of the sample's cells, shape (n, C) in blocks, each time it is called.
    temperature : float

    Returns
    -------
    Tensor of shape (C,), float64
        0 for the most frequent class. All 0 if the temperature is 1.
    """
    if temperature == 1:
        some = next(iter(blocks()), torch.zeros(0, 0))
        return torch.zeros(some.shape[1], dtype=torch.float64, device=some.device)
    wanted, _ = _expected_cells(blocks, 1.0, None)
    shift = torch.zeros_like(wanted)
    if len(wanted) == 0:
        return shift
    wanted = wanted.clamp_min(_LEAST_EXPECTED)
    free = torch.arange(len(wanted)) != wanted.argmax().cpu()
    for _ in range(_MOST_STEPS):
        expected, products = _expected_cells(blocks, temperature, shift)
        expected = expected.clamp_min(_LEAST_EXPECTED / 1e3)
        missing = torch.log(wanted / expected)[free]
        if bool((missing.abs() <= _ACCURACY).all()):
            break
        slopes = (torch.diag(expected) - products)[free][:, free] / expected[free].unsqueeze(1)
        # Where all cells are certain, no finite shift moves the mean.
        slopes += 1e-6 * torch.eye(len(slopes), dtype=slopes.dtype, device=slopes.device)
        step = torch.linalg.solve(slopes, missing)
        shift[free] += step.clamp(-_LARGEST_STEP, _LARGEST_STEP)
    return shift


def calibrated(logits: Tensor, temperature: float, shift: Tensor) -> Tensor:
    """Probabilities ``softmax(z / T + b)``, shape (n, C)."""
    # Columns of cells are several times as fast as rows of a few classes.
    return torch.softmax((logits / temperature + shift.to(logits)).T, 0).T


def _expected_cells(
    blocks: Callable[[], Iterable[Tensor]], temperature: float, shift: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Sums over cells of the probabilities, (C,), and of their products, (C, C); float64."""
    expected, products = torch.zeros(0, dtype=torch.float64), torch.zeros(0, dtype=torch.float64)
    for z in blocks():
        p = torch.softmax(z if shift is None else z / temperature + shift.to(z), 1)
        if not len(expected):
            expected = torch.zeros(z.shape[1], dtype=torch.float64, device=z.device)
            products = torch.zeros(2 * (z.shape[1],), dtype=torch.float64, device=z.device)
        expected += p.sum(0, dtype=torch.float64)
        products += p.T @ p
    return expected, products
