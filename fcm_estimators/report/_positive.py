"""The positive cells over those cells of the same sample that resemble them most."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from fcm_estimators._types import Entries
from fcm_estimators.colours import HUES, colours, known_colours
from fcm_estimators.report._figures import Dots, escaped, gate_figure, plane_figure
from fcm_estimators.report._sample import Annotated
from fcm_estimators.report._sentences import counted
from fcm_estimators.report._tables import Residual

# Markers on which leukaemic and normal precursors of B cells are told apart, and their planes.
_PRECURSOR_PLANES = (("CD45", "CD10"), ("CD20", "CD10"))
# Cells of a kind that are drawn, positive cells whose neighbours are searched, neighbours of each.
_DRAWN, _ASKED, _NEIGHBOURS = 2_000, 400, 5
# Cells among which neighbours are searched.
_SEARCHED = 200_000
# Cells that are drawn if none is positive.
_LIKEST = 500
# Their colours; the second if the positive cells have the first.
_NEAR_HUES = (HUES[1], HUES[2])


@dataclass(frozen=True)
class PositiveCells:
    """Pictures of the positive cells.

    Attributes
    ----------
    figures : list of dict
        Plotly figures, all with ticks in raw values.
    names : list of str
        What each shows.
    caption : str
        What is drawn, and why on these markers.
    """

    figures: list[Entries]
    names: list[str]
    caption: str


def positive_cells(
    sample: Annotated, residual: Residual, planes: list[Entries]
) -> PositiveCells | None:
    """Draw the positive cells of the denominator over their nearest other cells.

    Parameters
    ----------
    sample : Annotated
    residual : Residual
    planes : list of dict
        Of :func:`planes`, where the denominator gate is looked for.

    Returns
    -------
    PositiveCells or None
        None if the model's markers are fewer than two, or there is nothing to draw.
    """
    markers = sample.markers
    others = np.flatnonzero(residual.inside & sample.analysed & ~residual.called)
    positive = np.flatnonzero(residual.called)
    if len(markers) < 2 or not len(others):
        return None
    name = str(sample.positive_class)
    hue = _hue(sample, name)
    near_hue = next(h for h in _NEAR_HUES if h.lower() != hue.lower())
    where = "analysed" if residual.gate is None else f"in {residual.gate}"
    shown = f"called {name} and their neighbours" if len(positive) else f"most like {name}"
    if len(positive):
        near = _nearest(sample, positive, others)
        over = positive
        dots = [
            Dots(f"nearest, not called ({len(near):,})", near_hue, near),
            Dots(f"{name} ({len(positive):,})", hue, _some(positive)),
        ]
        drawn = f" ({_DRAWN:,} of them drawn)" if len(positive) > _DRAWN else ""
        text = (
            f"The {counted(len(positive), 'cell')} called {name}{drawn} over the "
            f"{counted(len(near), 'cell')} {where} that were not called and are most like them: "
            f"the {_NEIGHBOURS} nearest of each"
            f"{f' of {_ASKED} called cells' if len(positive) > _ASKED else ''}, by all markers of "
            "the model. Normal precursors, if the sample has any, are among these, and so are "
            "positive cells that were missed."
        )
    else:
        over = _likest(sample, others)
        if not len(over):
            return None
        near = np.setdiff1d(others, over)
        dots = [Dots(f"most like {name}, not called ({len(over):,})", near_hue, over)]
        text = (
            f"No cell {where} was called {name}. Drawn are the {counted(len(over), 'cell')} that "
            "the model finds most like one."
        )
    pairs, why = _chosen_planes(sample, over, near)
    background = np.zeros(sample.adata.n_obs, dtype=bool)
    background[others] = True
    found = PositiveCells([], [], f"{text} In grey: all others {where}. {why}".strip())
    for plane in planes:
        if plane["gate"] == residual.gate:
            found.figures.append(gate_figure(sample, plane, dots[-1:]))
            found.names.append(f"Denominator gate {residual.gate} with the cells {shown}")
    for x, y in pairs:
        title = f"{escaped(y)} and {escaped(x)}"
        found.figures.append(plane_figure(sample, (x, y), background, title=title, dots=dots))
        found.names.append(f"Cells {shown} on {x} and {y}")
    return found


def _nearest(sample: Annotated, positive: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Rows of the other cells that are nearest to positive cells, in SD of each marker."""
    from sklearn.neighbors import NearestNeighbors

    values = _values(sample)
    asked, searched = _some(positive, _ASKED), _some(others, _SEARCHED)
    deviation = values[searched].std(axis=0)
    scaled = values / np.where(deviation > 0, deviation, 1.0)
    index = NearestNeighbors(n_neighbors=min(_NEIGHBOURS, len(searched))).fit(scaled[searched])
    found: np.ndarray = index.kneighbors(scaled[asked], return_distance=False)
    return np.asarray(searched[np.unique(found)])


def _likest(sample: Annotated, others: np.ndarray) -> np.ndarray:
    """Rows of the cells with the highest probability of the positive class."""
    shares = sample.adata.obsm.get(sample.keys.classes.probabilities)
    table = pd.DataFrame() if shares is None else pd.DataFrame(shares)
    if sample.positive_class not in table:
        return others[:0]
    order = np.argsort(-table[sample.positive_class].to_numpy()[others], kind="stable")
    return np.sort(others[order[:_LIKEST]])


def _chosen_planes(
    sample: Annotated, over: np.ndarray, near: np.ndarray
) -> tuple[list[tuple[str, str]], str]:
    """Planes, and why they were chosen."""
    from sklearn.metrics import roc_auc_score

    if {marker for plane in _PRECURSOR_PLANES for marker in plane} <= set(sample.markers):
        why = (
            "CD10, CD20 and CD45 are drawn because the panel has them: normal B-cell precursors "
            "lose CD10 and gain CD20 and CD45 as they mature, and a leukaemia often lies beside "
            "this path."
        )
        return list(_PRECURSOR_PLANES), why
    if not len(near):
        return [(sample.markers[0], sample.markers[1])], ""
    rows = np.concatenate([over, near])
    truth = np.arange(len(rows)) < len(over)
    areas = np.array([roc_auc_score(truth, column) for column in _values(sample)[rows].T])
    apart = np.maximum(areas, 1 - areas)
    best = [int(i) for i in np.argsort(-apart, kind="stable")[:3]]
    names = [sample.markers[i] for i in best]
    listed = ", ".join(f"{n} ({apart[i]:.2f})" for n, i in zip(names, best, strict=True))
    why = (
        f"The markers are those on which the two groups differ most in this sample, with the area "
        f"under the ROC curve: {listed}."
    )
    return [(x, names[0]) for x in names[1:]], why


def _values(sample: Annotated) -> np.ndarray:
    return np.column_stack([sample.values(marker) for marker in sample.markers])


def _some(rows: np.ndarray, most: int = _DRAWN) -> np.ndarray:
    """At most so many of the rows, at random."""
    if len(rows) <= most:
        return rows
    return np.sort(np.random.default_rng(0).permutation(rows)[:most])


def _hue(sample: Annotated, name: str) -> str:
    label = sample.keys.classes.label
    return str(colours([name], known_colours(sample.adata, label))[name])
