"""Coverage and width of the interval that knows classification errors, beside that of counting.

Run ``python benchmarks/interval.py``. Patients are drawn from distributions of false-positive rates
and sensitivities; some are unseen patients of a study, from which the errors are estimated, and the
next one is measured. The first case is what the interval assumes, the others are not. No net is
trained.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
from scipy.special import expit, logit

from fcm_estimators.metrics import ClassificationErrors
from fcm_estimators.metrics._counting import clopper_pearson

N_CELLS = 500_000
FRACTIONS = (0.0, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
REPEATS, WIDTHS = 400, 40
TAIL = 0.025

Rates = tuple[np.ndarray, np.ndarray]


def as_assumed(rng, n: int) -> Rates:
    """False positives about 16 per million, sensitivities about 0.8."""
    return np.exp(rng.normal(-11, 0.7, n)), expit(rng.normal(1.4, 0.5, n))


def heavy_tails(rng, n: int) -> Rates:
    """Some patients are very different: t distributions with 3 degrees of freedom."""
    return (
        np.exp(-11 + 0.5 * np.clip(rng.standard_t(3, n), -8, 8)),
        expit(1.4 + 0.35 * np.clip(rng.standard_t(3, n), -8, 8)),
    )


def two_kinds(rng, n: int) -> Rates:
    """One patient of five regenerates: tenfold false positives."""
    false, found = as_assumed(rng, n)
    return false * np.where(rng.random(n) < 0.2, 10, 1), found


def together(rng, n: int) -> Rates:
    """Where more is called, more is found and more is false."""
    both = rng.normal(size=n)
    return np.exp(-11 + 0.7 * both), expit(1.4 + 0.5 * both)


def flat(rng, n: int) -> Rates:
    """Sensitivities from 0.3 to 1, all alike."""
    return np.exp(rng.normal(-11, 0.7, n)), rng.uniform(0.3, 1, n)


CASES: dict[str, tuple[Callable[..., Rates], float]] = {
    "as assumed": (as_assumed, 0.0),
    "heavy tails": (heavy_tails, 0.0),
    "one in five regenerates": (two_kinds, 0.0),
    "errors go together": (together, 0.0),
    "flat sensitivity": (flat, 0.0),
    # The study had samples at diagnosis, whose cells are easier to find.
    "tested at diagnosis": (as_assumed, -1.0),
}


def study(rng, draw: Callable[..., Rates], n: int) -> ClassificationErrors:
    """Errors as n patients with 0.1 to 10 % of disease and n without it show them."""
    false, found = draw(rng, 2 * n)
    n_positive = np.round(N_CELLS * 10 ** rng.uniform(-3, -1, 2 * n)).astype(int)
    n_positive[:n] = 0
    table = pd.DataFrame({"n_cells": N_CELLS, "n_positive": n_positive})
    table["n_true_positives"] = rng.binomial(n_positive, found)
    table["n_false_positives"] = rng.binomial(N_CELLS - n_positive, np.minimum(false, 1))
    return ClassificationErrors.from_table(table)


def rows(case: str, n_patients: int) -> list[dict[str, object]]:
    """Coverage and median width for every true fraction."""
    draw, change = CASES[case]
    rng = np.random.default_rng(0)
    found = []
    for fraction in FRACTIONS:
        covered, counting, widths, narrow = 0, 0, [], []
        for repeat in range(REPEATS):
            errors = study(rng, draw, n_patients)
            p, s = (float(v[0]) for v in draw(rng, 1))
            s = float(expit(logit(min(s, 1 - 1e-9)) + change))
            k = int(rng.binomial(N_CELLS, min(fraction * s + (1 - fraction) * p, 1)))
            low, high = (float(end) for end in clopper_pearson(k, N_CELLS))
            above, below = errors.tails(fraction, k, N_CELLS)
            covered += above > TAIL and (below > TAIL or fraction <= high)
            counting += low <= fraction <= high
            if repeat < WIDTHS:
                widths.append(errors.interval(k, N_CELLS))
                narrow.append((low, high))
        total, count = np.array(widths), np.array(narrow)
        found.append(
            {
                "case": case,
                "patients": n_patients,
                "true fraction": f"{fraction:g}",
                "coverage": covered / REPEATS,
                "of counting": counting / REPEATS,
                "median low": f"{np.median(total[:, 0]):.2g}",
                "median high": f"{np.median(total[:, 1]):.2g}",
                "high / low": _fold(total),
                "of counting, high / low": _fold(count),
            }
        )
    return found


def _fold(ends: np.ndarray) -> str:
    low, high = np.median(ends, axis=0)
    return "reaches 0" if low == 0 else f"{high / low:.2g}"


def main() -> None:
    """Print a table per case."""
    for n_patients in (10, 30):
        for case in CASES:
            table = pd.DataFrame(rows(case, n_patients)).drop(columns=["case", "patients"])
            print(f"\n{case}, {n_patients} patients with and {n_patients} without disease")
            print(table.to_string(index=False))


if __name__ == "__main__":
    main()
