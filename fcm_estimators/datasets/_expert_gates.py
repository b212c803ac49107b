"""Polygons that an expert would draw on every simulated sample, and the cells inside."""

from __future__ import annotations

import functools

import numpy as np
import pandas as pd
from flowutils.gating import points_in_polygon

from fcm_estimators.datasets._instrument import Shift
from fcm_estimators.datasets._marrow import COLUMNS, LINEAR, LOGICLE, N_SCATTER
from fcm_estimators.preprocessing import Scale

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

# Vertices for a sample without shift, in Gating-ML units.
_POLYGONS = {
    "syto": [(0.60, 0.0), (1.0, 0.0), (1.0, 1.0), (0.62, 1.0), (0.60, 0.3)],
    "singlets": [(0.18, -0.02), (0.275, -0.02), (0.30, 0.4), (0.315, 1.0), (0.18, 1.0)],
    "intact": [(0.13, -0.02), (1.0, -0.02), (1.0, 1.0), (0.24, 1.0), (0.14, 0.2)],
    "cd19": [(0.46, -0.02), (1.0, -0.02), (1.0, 0.6), (0.56, 0.45), (0.46, 0.3)],
}
# An edge on the border of the plot is moved beyond it, so that saturated events stay inside.
_BORDER = 1.05
_JITTER = 0.006
# Width of the blast gates in standard deviations: the expert's preference first, then narrower.
_BLAST_RADII = (3.2, 2.9, 2.6, 2.3, 2.0)
_TAIL = 0.01
_DIM_BLASTS = 0.005
_LARGEST_ADAPTATION = 0.08
_ALL = slice(None)
# Table of coordinates; its ends are beyond all events that a detector reports.
_TABLE_COFACTOR = 500.0
_TABLE_ENDS = (-8.0, 8.0)
_TABLE_SIZE = 200_001
_BLAST_VERTICES = 10


def draw_polygons(
    blasts: np.ndarray,
    precursors: np.ndarray,
    tolerated: float,
    shift: Shift,
    rng: np.random.Generator,
) -> list[np.ndarray]:
    """Draw the gates of one sample, moved by the sample's shift.

    Parameters
    ----------
    blasts, precursors : ndarray of float32, shape (B, 10)
        Compensated values of some blasts of this patient and of some normal precursors, measured
        like the sample. The expert knows the blasts from the diagnosis and looks for the same
        phenotype, also in a sample without blasts.
    tolerated : float
        Largest share of the normal precursors that the expert accepts inside the blast gates. If
        it is exceeded, the gates are narrowed.
    shift : Shift
        Shift of this sample.
    rng : Generator
        Source of randomness of the expert's hand.

    Returns
    -------
    list of ndarray of float64, shape (V, 2)
        Vertices in the order of PLANES, in Gating-ML units of compensated values.
    """
    polygons = []
    for name, _, x, y in PLANES[: -len(_BLAST_PLANES)]:
        vertices = np.array(_POLYGONS[name])
        columns = [COLUMNS.index(x), COLUMNS.index(y)]
        moved = np.column_stack([shift.on_axis(c, vertices[:, i]) for i, c in enumerate(columns)])
        if name == "cd19":
            # The expert starts the gate lower for a patient whose blasts are dim.
            lower = np.quantile(_axis(blasts, x), _DIM_BLASTS) - moved[0, 0]
            moved[vertices[:, 0] < 1.0, 0] += np.clip(lower, -_LARGEST_ADAPTATION, 0.0)
        moved += _JITTER * rng.standard_normal(moved.shape)
        polygons.append(np.where(vertices >= 1.0, _BORDER, moved))
    return polygons + _blast_polygons(blasts, precursors, tolerated, rng)


def _blast_polygons(
    blasts: np.ndarray, precursors: np.ndarray, tolerated: float, rng: np.random.Generator
) -> list[np.ndarray]:
    """Draw rounded polygons around the blasts, as wide as normal precursors allow."""
    shapes, normal = [], []
    for _, _, x, y in PLANES[-len(_BLAST_PLANES) :]:
        points = np.column_stack([_axis(blasts, x), _axis(blasts, y)])
        normal.append(np.column_stack([_axis(precursors, x), _axis(precursors, y)]))
        # The tails are clipped: a few events there would determine the width.
        central = np.clip(points, *np.quantile(points, [_TAIL, 1.0 - _TAIL], axis=0))
        angle = 2.0 * np.pi * (np.arange(_BLAST_VERTICES) + rng.random()) / _BLAST_VERTICES
        uneven = rng.uniform(0.93, 1.07, size=(_BLAST_VERTICES, 1))
        circle = uneven * np.column_stack([np.cos(angle), np.sin(angle)])
        shapes.append((np.median(points, axis=0), circle @ np.linalg.cholesky(np.cov(central.T)).T))
    for radius in _BLAST_RADII:
        polygons = [centre + radius * outline for centre, outline in shapes]
        taken = np.logical_and.reduce(
            [points_in_polygon(p, n) for p, n in zip(polygons, normal, strict=True)]
        )
        if taken.mean() <= tolerated:
            break
    return polygons


def compensate(raw: np.ndarray, spillover: np.ndarray) -> np.ndarray:
    """Compensate a copy of raw values; float32, columns as in COLUMNS."""
    linear = raw.copy()
    linear[:, N_SCATTER:] = raw[:, N_SCATTER:] @ np.linalg.inv(spillover).astype(np.float32)
    return linear


def apply_polygons(linear: np.ndarray, polygons: list[np.ndarray]) -> np.ndarray:
    """Membership of the events of one sample, each gate applied inside its parent.

    Parameters
    ----------
    linear : ndarray of float32, shape (N, 10)
        Compensated values, columns as in COLUMNS.
    polygons : list of ndarray
        As :func:`draw_polygons` returns them.

    Returns
    -------
    ndarray of bool, shape (N, 8)
        Columns as in GATES; "blast" is the cells inside all three blast gates.
    """
    rows = {"": np.arange(len(linear))}
    axes: dict[tuple[str, str], np.ndarray] = {}
    for (name, parent, x, y), vertices in zip(PLANES, polygons, strict=True):
        for marker in (x, y):
            if (parent, marker) not in axes:
                events = linear[rows[parent], COLUMNS.index(marker)]
                axes[parent, marker] = _looked_up(events, _scale(marker))
        points = np.column_stack([axes[parent, x], axes[parent, y]])
        rows[name] = rows[parent][points_in_polygon(vertices, points)]
    inside = np.zeros((len(linear), len(GATES)), dtype=bool)
    for position, (name, *_) in enumerate(PLANES):
        inside[rows[name], position] = True
    first, second, third = (inside[:, GATES.index(name)] for name in _BLAST_PLANES)
    inside[:, GATES.index("blast")] = first & second & third
    return inside


def _axis(linear: np.ndarray, marker: str, rows: np.ndarray | slice = _ALL) -> np.ndarray:
    """Coordinates of some events on a marker's axis, float64."""
    return _scale(marker).transform(linear[rows, COLUMNS.index(marker)])


def _looked_up(events: np.ndarray, scale: Scale) -> np.ndarray:
    """Look up coordinates of float32 events in a table; the error is below that of float32.

    The nodes are equally spaced in the arcsinh of the value, which is almost linear in the
    coordinate; between them, values are interpolated. This is five times as fast as the logicle
    function.
    """
    if scale is LINEAR:
        return scale.transform(events)
    nodes, steps = _table()
    place = np.arcsinh(events * np.float64(1 / _TABLE_COFACTOR))
    place -= _TABLE_ENDS[0]
    place *= (_TABLE_SIZE - 1) / (_TABLE_ENDS[1] - _TABLE_ENDS[0])
    np.clip(place, 0, _TABLE_SIZE - 1.001, out=place)
    node = place.astype(np.int32)
    place -= node
    place *= steps[node]
    place += nodes[node]
    return place


@functools.cache
def _table() -> tuple[np.ndarray, np.ndarray]:
    """Coordinates at the nodes, and the difference to the next node."""
    places = np.linspace(*_TABLE_ENDS, _TABLE_SIZE)
    nodes = LOGICLE.transform(_TABLE_COFACTOR * np.sinh(places))
    return nodes, np.diff(nodes, append=nodes[-1])


def _scale(marker: str) -> Scale:
    return LINEAR if COLUMNS.index(marker) < N_SCATTER else LOGICLE


def pack_polygons(samples: list[str], polygons: list[list[np.ndarray]]) -> dict[str, np.ndarray]:
    """Make parallel arrays for ``uns["gates"]``, with one entry per sample and plane."""
    flat = [vertices for of_sample in polygons for vertices in of_sample]
    table = pd.DataFrame(
        [(sample, *plane) for sample in samples for plane in PLANES],
        columns=["sample", "name", "parent", "x", "y"],
    )
    table["transform_x"] = [str(_scale(x)) for x in table["x"]]
    table["transform_y"] = [str(_scale(y)) for y in table["y"]]
    table["compensation"] = "spillover"
    arrays = {str(name): np.asarray(column, dtype=object) for name, column in table.items()}
    arrays["vertex_offsets"] = np.cumsum([0, *map(len, flat)], dtype=np.int64)
    arrays["vertices"] = np.concatenate(flat)
    return arrays
