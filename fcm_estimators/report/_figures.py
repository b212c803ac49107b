"""Plotly figures of a report: gates on their planes, heatmaps of explanations."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from fcm_estimators._types import Entries
from fcm_estimators.exceptions import FcmError
from fcm_estimators.gating import GatingTree, PolygonGate
from fcm_estimators.report._cells import axis_of
from fcm_estimators.report._sample import Annotated

_BINS = 150
_FONT = {"family": "system-ui, sans-serif", "size": 13}
# Colour and dash of outlines.
_LINES = {
    "predicted": ("#D55E00", "solid"),
    "expert": ("#0072B2", "dash"),
    "hull of the expert's cells": ("#0072B2", "dash"),
}


@dataclass(frozen=True)
class Dots:
    """Single cells of a figure: their name in the legend, colour, and rows."""

    name: str
    colour: str
    rows: np.ndarray


def line_of(name: str) -> dict[str, str]:
    """Colour and dash of an outline."""
    colour, dash = _LINES[name]
    return {"colour": colour, "dash": dash}


def planes(sample: Annotated) -> list[Entries]:
    """Name, parent, markers and outlines, in the units of ``X``, of each polygon gate."""
    predicted = _tree(sample, sample.keys.gates.record)
    if predicted is not None:
        run = sample.record(sample.keys.gates.record)
        predicted = predicted.on_axes(sample.names_in_data(run))
    drawn = _tree(sample, sample.keys.expert_gates)
    tree = predicted or drawn
    found = []
    for gate in [] if tree is None else tree:
        if not isinstance(gate, PolygonGate) or not set(gate.markers) <= set(
            sample.adata.var_names
        ):
            continue
        outlines = {} if predicted is None else _outline(sample, gate, "predicted")
        outlines |= _expert_outline(sample, gate, drawn)
        if outlines:
            found.append(
                {
                    "gate": gate.name,
                    "parent": gate.parent,
                    "x": gate.x,
                    "y": gate.y,
                    "outlines": outlines,
                }
            )
    return found


def _tree(sample: Annotated, key: str) -> GatingTree | None:
    if key not in sample.adata.uns:
        return None
    try:
        entry = sample.adata.uns[key]
        # Without sample_key, a model gives its only sample another name.
        named = {str(name) for name in entry.get("gates", entry)["sample"]}
        name = sample.name if len(named) > 1 else named.pop()
        return GatingTree.from_adata(sample.adata, key=key, sample=name)
    except (FcmError, KeyError, TypeError, IndexError, AttributeError):
        return None  # the key holds something else


def _outline(sample: Annotated, gate: Any, name: str) -> dict[str, np.ndarray]:
    """Outline in the units of the data; empty if gate and data differ in preprocessing."""
    from fcm_estimators.gating.pictures import outline_in_data, outline_in_frame

    try:
        outline = outline_in_data(sample.adata, gate)
        return {name: outline_in_frame(sample.adata, gate.markers, outline)}
    except FcmError:
        return {}


def _expert_outline(
    sample: Annotated, gate: PolygonGate, drawn: GatingTree | None
) -> dict[str, np.ndarray]:
    """Polygon of the expert, else a hull of the expert's cells, else empty."""
    if drawn is not None and gate.name in drawn.gates:
        of_expert = drawn[gate.name]
        if isinstance(of_expert, PolygonGate) and of_expert.markers == gate.markers:
            found = _outline(sample, of_expert, "expert")
            if found:
                return found
    membership = sample.expert_membership
    if membership is None or gate.name not in membership:
        return {}
    try:
        hull = GatingTree.from_labels(
            sample.adata, membership, {gate.name: ("", gate.x, gate.y)}, trim=3.0
        )[gate.name]
    except FcmError:
        return {}  # too few cells inside
    return _outline(sample, hull, "hull of the expert's cells")


def gate_figure(sample: Annotated, plane: Entries, dots: Sequence[Dots] = ()) -> Entries:
    """Plotly figure of the density of the parent's cells, with the outlines, and dots over it."""
    inside = np.ones(sample.adata.n_obs, dtype=bool)
    parent = plane["parent"]
    for table in (sample.predicted_membership, sample.expert_membership):
        if parent and table is not None and parent in table:
            inside = table[parent].to_numpy()
            break
    return plane_figure(
        sample,
        (plane["x"], plane["y"]),
        inside,
        title=_title(plane, int(inside.sum())),
        outlines=plane["outlines"],
        dots=dots,
    )


def plane_figure(
    sample: Annotated,
    markers: tuple[str, str],
    inside: np.ndarray,
    *,
    title: str,
    outlines: Mapping[str, np.ndarray] | None = None,
    dots: Sequence[Dots] = (),
) -> Entries:
    """Plotly figure of the density of some cells, with outlines and single cells over it.

    Parameters
    ----------
    sample : Annotated
    markers : (str, str)
        Of the axes.
    inside : ndarray of bool of shape (n_cells,)
        Cells whose density is drawn.
    title : str
        HTML.
    outlines : mapping of str to ndarray of shape (V, 2), optional
        In the units of the data.
    dots : sequence of Dots
        Drawn one over the other.
    """
    import plotly.graph_objects as go

    from fcm_estimators.gating.pictures import picture_limits

    values = np.column_stack([sample.values(marker) for marker in markers])
    cells = values[inside]
    drawn = [values[d.rows] for d in dots]
    corners = np.concatenate([*(outlines or {}).values(), *drawn, cells[:0]])
    figure = go.Figure()
    spans = np.column_stack(picture_limits(cells if len(cells) else corners, corners)).tolist()
    counts, *edges = np.histogram2d(cells[:, 0], cells[:, 1], bins=_BINS, range=spans)
    shown = np.where(counts > 0, np.log10(np.maximum(counts, 1)), np.nan).T.astype(np.float32)
    centres = [(e[:-1] + e[1:]) / 2 for e in edges]
    figure.add_heatmap(
        x=centres[0],
        y=centres[1],
        z=shown,
        colorscale=[[0, "#d9d9d9"], [1, "#000000"]],
        showscale=False,
        hoverinfo="skip",
    )
    for d, points in zip(dots, drawn, strict=True):
        figure.add_scatter(
            x=points[:, 0].astype(np.float32),
            y=points[:, 1].astype(np.float32),
            mode="markers",
            name=escaped(d.name),
            marker={"color": d.colour, "size": 4, "opacity": 0.8},
            hoverinfo="skip",
        )
    for name, outline in (outlines or {}).items():
        colour, dash = _LINES[name]
        closed = np.vstack([outline, outline[:1]])
        figure.add_scatter(
            x=closed[:, 0],
            y=closed[:, 1],
            mode="lines",
            name=name,
            line={"color": colour, "dash": dash, "width": 2.5},
        )
    figure.update_layout(
        template="none",
        title={"text": title, "font": {"size": 14}, "y": 0.97, "yanchor": "top"},
        font=_FONT,
        height=400,
        # With dots and outlines the legend has a line more.
        margin={"l": 64, "r": 12, "t": 112 if dots and outlines else 84, "b": 48},
        legend={"orientation": "h", "y": 1.0, "yanchor": "bottom", "itemsizing": "constant"},
        showlegend=True,
    )
    for axis, marker, (low, high) in zip(("xaxis", "yaxis"), markers, spans, strict=True):
        ticks = axis_of(sample, marker, low, high).get("ticks")
        figure.update_layout(
            {
                axis: {
                    "title": escaped(marker),
                    "range": [low, high],
                    "zeroline": False,
                    "showgrid": False,
                    "showline": True,
                    **({} if ticks is None else {"tickvals": ticks[0], "ticktext": ticks[1]}),
                }
            }
        )
    return _as_dict(figure)


def _title(plane: Entries, n_cells: int) -> str:
    where = escaped(plane["parent"]) if plane["parent"] else "all"
    return f"{escaped(plane['gate'])}<br><sup>{n_cells:,} cells, {where}</sup>"


def gradient_figure(summary: pd.DataFrame, explained: str, unit: str) -> Entries:
    """Mean signed gradient per class and marker."""
    import plotly.graph_objects as go

    table = summary.pivot(index="population", columns="marker", values="mean")
    table = table[list(dict.fromkeys(summary["marker"]))]
    low, high = (
        summary.pivot(index="population", columns="marker", values=c)[table.columns]
        for c in ("ci_low", "ci_high")
    )
    size = float(np.abs(table.to_numpy()).max()) or 1.0
    figure = go.Figure(
        go.Heatmap(
            z=table.to_numpy(),
            x=[escaped(c) for c in table.columns],
            y=[escaped(i) for i in table.index],
            text=_texts(table),
            texttemplate="%{text}",
            customdata=np.dstack([low.to_numpy(), high.to_numpy()]),
            hovertemplate=(
                "%{y}, %{x}: %{z:.3g}<br>95 %% interval %{customdata[0]:.3g} to "
                "%{customdata[1]:.3g}<extra></extra>"
            ).replace("%%", "%"),
            colorscale="RdBu_r",
            zmid=0,
            zmin=-size,
            zmax=size,
            colorbar={"title": {"text": unit, "side": "right"}},
        )
    )
    return _heatmap(figure, f"Mean gradient of {escaped(explained)}", len(table))


def attention_figure(table: pd.DataFrame) -> Entries:
    """Received attention per class and head."""
    import plotly.graph_objects as go

    figure = go.Figure(
        go.Heatmap(
            z=table.to_numpy(dtype=np.float64),
            x=[escaped(c) for c in table.columns],
            y=[escaped(i) for i in table.index],
            text=_texts(table),
            texttemplate="%{text}",
            hovertemplate="%{y}, %{x}: %{z:.3g} times uniform<extra></extra>",
            colorscale="Blues",
            zmin=0,
            colorbar={"title": {"text": "times uniform", "side": "right"}},
        )
    )
    return _heatmap(figure, "Received attention", len(table))


def _texts(table: pd.DataFrame) -> list[list[str]]:
    return [[f"{v:.2g}" for v in row] for row in table.to_numpy(dtype=np.float64)]


def _heatmap(figure: Any, title: str, n_rows: int) -> Entries:
    figure.update_layout(
        template="none",
        title={"text": title, "font": {"size": 14}},
        font=_FONT,
        height=150 + 42 * n_rows,
        margin={"l": 110, "r": 12, "t": 48, "b": 80},
    )
    figure.update_yaxes(autorange="reversed", ticks="")
    figure.update_xaxes(ticks="")
    return _as_dict(figure)


def _as_dict(figure: Any) -> Entries:
    found: Entries = json.loads(figure.to_json())
    return found


def escaped(text: object) -> str:
    """Escape HTML, which Plotly would interpret in names."""
    return str(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
