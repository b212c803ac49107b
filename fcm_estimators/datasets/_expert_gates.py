"""Polygons as an expert would draw them on every simulated sample, and the cells inside."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from flowutils.gating import points_in_polygon

from fcm_estimators.datasets._instrument import Shift
from fcm_estimators.datasets._marrow import COLUMNS, LINEAR, LOGICLE, N_SCATTER, Phenotype

# name, parent, x, y
PLANES = (
    ("syto", "", "Syto 41", "FSC-A"),
    ("singlets", "syto", "FSC-W", "SSC-A"),
    ("intact", "singlets", "FSC-A", "SSC-A"),
    ("cd19", "intact", "CD19", "SSC-A"),
    ("blast_cd45_cd10", "cd19", "CD45", "CD10"),
    ("blast_cd20_cd10", "cd19", "CD20", "CD10"),
    ("blast_cd38_cd10", "cd19", "CD38", "CD10"),
)
GATES = (*(plane[0] for plane in PLANES), "blast")
_BLAST_PLANES = tuple(plane[0] for plane in PLANES if plane[1] == "cd19")

# An edge on the border of the plot is drawn beyond it, so that saturated events stay inside.
_BORDER = 1.05
_JITTER = 0.006
_BLAST_RADIUS = 2.8
_BLAST_VERTICES = 10


def draw_polygons(blasts: Phenotype, shift: Shift, rng: np.random.Generator) -> list[np.ndarray]:
    """
    Draw the gates of one sample, moved along with the sample's shift.

    Parameters
    ----------
    blasts : Phenotype
        The patient's blasts: the three blast gates lie around them, also where the sample has none.
    shift : Shift
        Of this sample.
    rng : Generator
        The expert's hand.

    Returns
    -------
    list of ndarray of float64, shape (V, 2)
        Vertices in the order of PLANES, in Gating-ML units of compensated values.
    """
    polygons = []
    for name, _, x, y in PLANES:
        columns = [COLUMNS.index(x), COLUMNS.index(y)]
        if name in _BLAST_PLANES:
            vertices = _around(blasts, columns, rng)
        else:
            vertices = np.array(_fixed_polygon(name, blasts))
        border = vertices >= 1.0
        moved = np.column_stack([shift.on_axis(c, vertices[:, i]) for i, c in enumerate(columns)])
        moved += _JITTER * rng.standard_normal(moved.shape)
        polygons.append(np.where(border, _BORDER, moved))
    return polygons


def _fixed_polygon(name: str, blasts: Phenotype) -> list[tuple[float, float]]:
    if name == "syto":
        return [(0.60, 0.0), (1.0, 0.0), (1.0, 1.0), (0.62, 1.0), (0.60, 0.3)]
    if name == "singlets":
        return [(0.18, -0.02), (0.275, -0.02), (0.30, 0.4), (0.315, 1.0), (0.18, 1.0)]
    if name == "intact":
        return [(0.13, -0.02), (1.0, -0.02), (1.0, 1.0), (0.24, 1.0), (0.14, 0.2)]
    cd19 = COLUMNS.index("CD19")
    # The expert starts the gate lower for a patient whose blasts are dim.
    spread = np.sqrt(blasts.plane_covariance([cd19])[0, 0])
    low = min(0.46, blasts.mean[cd19] - 2.8 * spread)
    return [(low, -0.02), (1.0, -0.02), (1.0, 0.6), (low + 0.1, 0.45), (low, 0.3)]


def _around(blasts: Phenotype, columns: list[int], rng: np.random.Generator) -> np.ndarray:
    """Rounded polygon around the blasts in a plane of fluorescence, with an uneven radius."""
    factor = np.linalg.cholesky(blasts.plane_covariance(columns))
    angle = 2.0 * np.pi * (np.arange(_BLAST_VERTICES) + rng.random()) / _BLAST_VERTICES
    radius = _BLAST_RADIUS * rng.uniform(0.93, 1.07, size=_BLAST_VERTICES)
    circle = np.column_stack([np.cos(angle), np.sin(angle)]) * radius[:, None]
    return blasts.mean[columns] + circle @ factor.T


def apply_polygons(
    raw: np.ndarray, spillover: np.ndarray, polygons: list[np.ndarray]
) -> np.ndarray:
    """
    Membership of the events of one sample, each gate applied inside its parent.

    Parameters
    ----------
    raw : ndarray of float32, shape (N, 10)
        Raw values, columns as COLUMNS.
    spillover : ndarray of float64, shape (7, 7)
        Of this sample.
    polygons : list of ndarray
        As :func:`draw_polygons` returns them.

    Returns
    -------
    ndarray of bool, shape (N, 8)
        Columns as GATES; "blast" is what lies inside all three blast gates.
    """
    linear = raw.copy()
    linear[:, N_SCATTER:] = raw[:, N_SCATTER:] @ np.linalg.inv(spillover).astype(np.float32)
    inside = np.zeros((len(raw), len(GATES)), dtype=bool)
    position = {name: i for i, name in enumerate(GATES)}
    for (name, parent, x, y), vertices in zip(PLANES, polygons, strict=True):
        rows = np.flatnonzero(inside[:, position[parent]]) if parent else np.arange(len(raw))
        points = np.column_stack([_axis(linear, rows, marker) for marker in (x, y)])
        inside[rows, position[name]] = points_in_polygon(vertices, points)
    inside[:, position["blast"]] = inside[:, [position[n] for n in _BLAST_PLANES]].all(axis=1)
    return inside


def _axis(linear: np.ndarray, rows: np.ndarray, marker: str) -> np.ndarray:
    column = COLUMNS.index(marker)
    return _scale(marker).transform(linear[rows, column])


def _scale(marker: str) -> Any:
    return LINEAR if COLUMNS.index(marker) < N_SCATTER else LOGICLE


def pack_polygons(samples: list[str], polygons: list[list[np.ndarray]]) -> dict[str, np.ndarray]:
    """Parallel arrays for ``uns["gates"]``, one entry per sample and plane."""
    flat = [vertices for of_sample in polygons for vertices in of_sample]
    table = pd.DataFrame(
        [(sample, *plane) for sample in samples for plane in PLANES],
        columns=["sample", "name", "parent", "x", "y"],
    )
    table["transform_x"] = [str(_scale(x)) for x in table["x"]]
    table["transform_y"] = [str(_scale(y)) for y in table["y"]]
    table["compensation"] = "spillover"
    arrays = {name: np.asarray(column, dtype=object) for name, column in table.items()}
    arrays["vertex_offsets"] = np.cumsum([0, *map(len, flat)], dtype=np.int64)
    arrays["vertices"] = np.concatenate(flat)
    return arrays
