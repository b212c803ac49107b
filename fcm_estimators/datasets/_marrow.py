"""Cells of a simulated paediatric B-ALL bone marrow, before they are measured.

A cell is a point with 10 coordinates, :data:`COLUMNS`. Scatter is the natural logarithm of the
fraction of the instrument's range; fluorescence is in logicle units (:data:`LOGICLE`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fcm_estimators.preprocessing.scales import Linear, Logicle

SCATTER = ("FSC-A", "FSC-W", "SSC-A")
FLUORESCENCE = {
    "CD20": "FITC-A",
    "CD10": "PE-A",
    "CD45": "PerCP-A",
    "CD34": "PE-Cy7-A",
    "Syto 41": "PacificBlue-A",
    "CD19": "APC-A",
    "CD38": "Alexa700-A",
}
COLUMNS = (*SCATTER, *FLUORESCENCE)
N_SCATTER = len(SCATTER)
LOGICLE = Logicle()
LINEAR = Linear()

POPULATIONS = (
    "debris",
    "dead",
    "granulocyte",
    "monocyte",
    "T/NK",
    "mature B",
    "haematogone",
    "erythroid",
    "plasma cell",
    "blast",
    "doublet",
)
BLAST = POPULATIONS.index("blast")
DOUBLET = POPULATIONS.index("doublet")
HAEMATOGONE = POPULATIONS.index("haematogone")

# Median scatter (fraction of the range) and fluorescence (logicle), in the order of COLUMNS.
_MEDIANS = {
    "debris": (0.04, 0.21, 0.07, 0.28, 0.25, 0.38, 0.20, 0.40, 0.25, 0.28),
    "dead": (0.10, 0.23, 0.26, 0.36, 0.36, 0.48, 0.27, 0.80, 0.35, 0.36),
    "granulocyte": (0.60, 0.25, 0.80, 0.31, 0.48, 0.68, 0.22, 0.745, 0.40, 0.46),
    "monocyte": (0.58, 0.25, 0.34, 0.33, 0.25, 0.79, 0.22, 0.75, 0.26, 0.60),
    "T/NK": (0.28, 0.232, 0.10, 0.28, 0.20, 0.83, 0.18, 0.715, 0.20, 0.45),
    "mature B": (0.27, 0.231, 0.095, 0.69, 0.20, 0.79, 0.18, 0.72, 0.63, 0.40),
    "erythroid": (0.22, 0.230, 0.15, 0.28, 0.24, 0.33, 0.16, 0.80, 0.23, 0.24),
    "plasma cell": (0.42, 0.24, 0.20, 0.28, 0.22, 0.60, 0.18, 0.73, 0.57, 0.90),
}
# Spread of log scatter and logicle fluorescence, without the noise of the detectors.
_SPREADS = {
    "debris": (0.45, 0.10, 0.45, 0.08, 0.10, 0.13, 0.08, 0.07, 0.08, 0.12),
    "dead": (0.35, 0.10, 0.50, 0.11, 0.14, 0.15, 0.12, 0.05, 0.11, 0.15),
    "granulocyte": (0.20, 0.06, 0.40, 0.04, 0.09, 0.04, 0.06, 0.035, 0.06, 0.07),
    "monocyte": (0.18, 0.05, 0.20, 0.05, 0.07, 0.03, 0.06, 0.035, 0.06, 0.06),
    "T/NK": (0.20, 0.03, 0.28, 0.04, 0.06, 0.025, 0.05, 0.03, 0.05, 0.12),
    "mature B": (0.22, 0.03, 0.28, 0.04, 0.07, 0.027, 0.05, 0.03, 0.04, 0.10),
    "haematogone": (0.20, 0.035, 0.30, 0.06, 0.05, 0.04, 0.06, 0.035, 0.045, 0.04),
    "erythroid": (0.35, 0.05, 0.40, 0.05, 0.07, 0.09, 0.06, 0.05, 0.05, 0.09),
    "plasma cell": (0.25, 0.04, 0.30, 0.06, 0.07, 0.08, 0.05, 0.035, 0.07, 0.03),
    "blast": (0.24, 0.035, 0.32, 0.06, 0.05, 0.045, 0.07, 0.035, 0.055, 0.055),
}
# Spread of a population's mean between samples.
_INDIVIDUAL = 0.012
# Share of a population's variance that all markers have in common, because big cells are bright.
_COMMON = 0.3

# B-cell precursors mature along a curve from CD34+ CD10bright CD45dim to CD20+ CD45bright.
_MATURATION = np.array([0.0, 0.3, 0.7, 1.0])
_MATURATION_MEDIANS = (
    (0.29, 0.232, 0.110, 0.26, 0.84, 0.58, 0.58, 0.735, 0.54, 0.74),
    (0.26, 0.231, 0.100, 0.32, 0.77, 0.66, 0.24, 0.720, 0.60, 0.72),
    (0.25, 0.231, 0.095, 0.54, 0.64, 0.72, 0.18, 0.715, 0.63, 0.66),
    (0.26, 0.231, 0.095, 0.68, 0.42, 0.77, 0.18, 0.715, 0.63, 0.54),
)

# Difference between blasts and the precursor they resemble: mean and spread over patients.
_ABERRATION = np.array([0.15, 0.01, 0.30, 0.04, 0.07, -0.06, 0.0, -0.01, 0.03, -0.14])
_ABERRATION_SPREAD = np.array([0.12, 0.01, 0.15, 0.10, 0.07, 0.08, 0.0, 0.02, 0.04, 0.08])
_BLAST_LIMITS = (0.15, 0.95)
# Smallest distance of a patient's blasts from normal precursors, so that an expert who sees the
# whole sample can separate them in the planes of these markers.
_GATED = [COLUMNS.index(name) for name in ("CD20", "CD10", "CD45", "CD38")]
_LEAST_DISTANCE = 4.5


def _latent(rows: tuple[tuple[float, ...], ...]) -> np.ndarray:
    values = np.array(rows, dtype=np.float64)
    values[:, :N_SCATTER] = np.log(values[:, :N_SCATTER])
    return values


_NORMAL = {name: _latent((row,))[0] for name, row in _MEDIANS.items()}
_PRECURSORS = _latent(_MATURATION_MEDIANS)


@dataclass(frozen=True)
class Phenotype:
    """Normal distribution of the cells of a population.

    Attributes
    ----------
    mean : ndarray of float64, shape (10,)
        In the units of COLUMNS.
    factor : ndarray of float64, shape (10, 10 or 11)
        The covariance is ``factor @ factor.T``.
    """

    mean: np.ndarray
    factor: np.ndarray


def draw_blast_phenotype(rng: np.random.Generator) -> Phenotype:
    """Draw one patient's blasts: a shifted B-cell precursor with its own marker correlations."""
    spread = np.array(_SPREADS["blast"])
    mean = _draw_blast_mean(rng)
    while distance_from_precursors(mean) < _LEAST_DISTANCE:
        mean = _draw_blast_mean(rng)
    loadings = rng.normal(0.0, 0.45, size=(len(COLUMNS), 2))
    own = np.sqrt(np.clip(1.0 - (loadings**2).sum(axis=1), 0.3, None))
    return Phenotype(mean, spread[:, None] * np.hstack([np.diag(own), loadings]))


def _draw_blast_mean(rng: np.random.Generator) -> np.ndarray:
    mean: np.ndarray = precursor_means(rng.uniform(0.0, 0.5, size=1))[0]
    # The whole clone keeps or loses CD34, independently of its stage.
    mean[COLUMNS.index("CD34")] = rng.normal(0.52, 0.06) if rng.random() < 0.65 else 0.22
    mean += rng.normal(_ABERRATION, _ABERRATION_SPREAD)
    mean[N_SCATTER:] = np.clip(mean[N_SCATTER:], *_BLAST_LIMITS)
    return mean


def distance_from_precursors(mean: np.ndarray) -> float:
    """Distance of a blast mean from the maturation curve in the gated markers, in spreads."""
    curve = precursor_means(np.linspace(0.0, 1.0, 101))
    apart = ((mean - curve) / np.array(_SPREADS["blast"]))[:, _GATED]
    return float(np.sqrt((apart**2).sum(axis=1).min()))


def precursor_means(maturation: np.ndarray) -> np.ndarray:
    """Mean of normal B-cell precursors of each maturation (0 to 1), shape (n, 10)."""
    return np.column_stack([np.interp(maturation, _MATURATION, col) for col in _PRECURSORS.T])


def draw_cells(codes: np.ndarray, blasts: Phenotype, rng: np.random.Generator) -> np.ndarray:
    """Draw single cells of one sample.

    Parameters
    ----------
    codes : ndarray of int, shape (N,)
        Population of every cell, as its position in POPULATIONS; no doublets.
    blasts : Phenotype
        The patient's blasts.
    rng : Generator
        Source of randomness.

    Returns
    -------
    ndarray of float32, shape (N, 10)
        Row i is a cell of population ``codes[i]``, in the units of COLUMNS.
    """
    # The means of populations and their maturation differ a little between samples.
    individual = rng.normal(0.0, _INDIVIDUAL, size=(len(POPULATIONS), len(COLUMNS)))
    early, late = 1.0 + 2.0 * rng.random(2)
    order = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[order], np.arange(len(POPULATIONS) + 1))
    blocks = np.empty((len(codes), len(COLUMNS)), dtype=np.float32)
    for code, name in enumerate(POPULATIONS[:DOUBLET]):
        block = blocks[starts[code] : starts[code + 1]]
        phenotype = blasts if code == BLAST else _normal_phenotype(name)
        noise = rng.standard_normal((len(block), phenotype.factor.shape[1]), dtype=np.float32)
        np.matmul(noise, phenotype.factor.T.astype(np.float32), out=block)
        if code == HAEMATOGONE:
            block += precursor_means(rng.beta(early, late, size=len(block))).astype(np.float32)
        block += (phenotype.mean + individual[code]).astype(np.float32)
    cells = np.empty_like(blocks)
    cells[order] = blocks
    return cells


def _normal_phenotype(name: str) -> Phenotype:
    spread = np.array(_SPREADS[name])
    common = np.full((len(COLUMNS), 1), np.sqrt(_COMMON))
    own = np.diag(np.full(len(COLUMNS), np.sqrt(1.0 - _COMMON)))
    # Haematogones have no single mean; each cell's place on the curve is added later.
    mean = _NORMAL.get(name, np.zeros(len(COLUMNS)))
    return Phenotype(mean, spread[:, None] * np.hstack([own, common]))
