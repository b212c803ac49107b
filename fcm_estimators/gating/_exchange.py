"""Draw gates on FlowJo's scales again on scales that Gating-ML has."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pandas as pd
from anndata import AnnData

from fcm_estimators._checks import listed
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.gating._channels import moved
from fcm_estimators.gating._kinds import Gate
from fcm_estimators.gating._shapes import EllipsoidGate, RectangleGate
from fcm_estimators.gating.gates import BooleanGate, PolygonGate
from fcm_estimators.preprocessing import Scale, parse_transform
from fcm_estimators.preprocessing.exchange_scales import (
    FlowJoBiex,
    FlowJoLinear,
    FlowJoLog,
    ParametrizedLinear,
    ParametrizedLog,
)
from fcm_estimators.preprocessing.scales import Linear, Logicle

if TYPE_CHECKING:
    from fcm_estimators.gating._tree_files import TreeFiles

_Tree = TypeVar("_Tree", bound="TreeFiles")

# Largest share of the cells that may change sides of a gate.
LARGEST_CHANGE = 1e-3
# An edge is divided until it bends by less than this share of the extent of the outline.
_BEND, _MOST_ROUNDS = 2e-5, 12
# Beyond all values, in units of the top of the axis.
_FAR = 100.0


def on_exchange_scales(tree: _Tree, adata: AnnData | None) -> tuple[_Tree, pd.DataFrame]:
    """Tree on scales of Gating-ML; arguments as :meth:`GatingTree.on_exchange_scales`."""
    drawn = type(tree)([_on_new_scales(gate) for gate in tree], spillover=tree.spillover)
    if adata is None:
        return drawn, pd.DataFrame(columns=["inside", "changed", "fraction"])
    before, after = tree.apply(adata), drawn.apply(adata)
    changed = (before != after[before.columns]).sum()
    report = pd.DataFrame({"inside": before.sum(), "changed": changed})
    report["fraction"] = changed / max(1, adata.n_obs)
    report.index.name = "gate"
    worst = report[report["fraction"] > LARGEST_CHANGE]
    if len(worst):
        told = ", ".join(
            f"{name!r} ({int(row['changed'])} of {adata.n_obs})" for name, row in worst.iterrows()
        )
        raise InvalidInputError(
            f"On scales of Gating-ML, more than {LARGEST_CHANGE:.1%} of the cells change sides of "
            f"{told}. Leave those gates out, or write the events with write_fcs."
        )
    return drawn, report


def with_exchange_scales(tree: _Tree, adata: AnnData | None) -> _Tree:
    """Tree on scales of Gating-ML; a warning says which gates were drawn again."""
    drawn, report = on_exchange_scales(tree, None)
    pairs = zip(tree, drawn, strict=True)
    again = [gate.name for gate, new in pairs if new is not gate]
    if not again:
        return tree
    told = "Pass the data as channels=adata to count the cells that change sides."
    if adata is not None:
        drawn, report = on_exchange_scales(tree, adata)
        most = report["changed"].idxmax()
        told = (
            f"At most {int(report['changed'].max())} of {adata.n_obs} cells change sides of a "
            f"gate ({most!r})."
        )
    warnings.warn(
        f"Gating-ML does not have FlowJo's scales, so gates {listed(again)} were drawn on the "
        f"closest ones it has. {told}",
        UserWarning,
        stacklevel=3,
    )
    return drawn


def _target(scale: Scale, *, at_bottom: bool) -> Scale | None:
    """Closest scale of Gating-ML; None if it has this one.

    ``at_bottom``: the gate has cells at the lower end of a logarithmic axis, where FlowJo shows
    those without a logarithm.
    """
    if isinstance(scale, FlowJoBiex):
        decades = max(scale.positive, 1.0)
        width = min(float(np.log10(-scale.width)) / 2, decades / 2)
        below = min(max(scale.negative, 0.0), decades - 2 * width)
        return Logicle(T=scale.max_value, W=width, M=decades, A=below)
    if isinstance(scale, FlowJoLinear):
        ends = scale.high, -scale.low
        return ParametrizedLinear(T=ends[0], A=ends[1]) if ends[1] >= 0 else Linear(T=ends[0])
    if isinstance(scale, FlowJoLog):
        top = scale.offset * 10**scale.decades
        if at_bottom:
            return Logicle(T=top, W=0.5, M=max(scale.decades, 1.0), A=0.0)
        return ParametrizedLog(T=top, M=scale.decades)
    if isinstance(scale, ParametrizedLog) and scale.floor > 1e-100:
        return ParametrizedLog(T=scale.T, M=scale.M)
    return None


def _ends(scale: Scale) -> tuple[float, float]:
    """Where a scale puts all values that are beyond its ends."""
    if isinstance(scale, FlowJoBiex):
        return 0.0, 4096.0
    return (0.0, np.inf) if isinstance(scale, FlowJoLog) else (-np.inf, np.inf)


def _on_new_scales(gate: Gate) -> Gate:
    if isinstance(gate, BooleanGate):
        return gate
    scales = [parse_transform(text) for text in gate.transforms]
    new = [_target(scale, at_bottom=_at_bottom(gate, i)) for i, scale in enumerate(scales)]
    if all(scale is None for scale in new):
        return gate
    if isinstance(gate, PolygonGate):
        return _polygon(gate, scales, [n or s for n, s in zip(new, scales, strict=True)])
    if isinstance(gate, EllipsoidGate):
        raise InvalidInputError(
            f"Gate {gate.name!r} is an ellipsoid on {gate.transforms}, which is none on other "
            "scales. Draw it as a polygon."
        )
    for i, (scale, target) in enumerate(zip(scales, new, strict=True)):
        if target is not None:
            gate = _rectangle(gate, i, scale, target)
    return gate


def _at_bottom(gate: PolygonGate | RectangleGate | EllipsoidGate, axis: int) -> bool:
    """Whether a gate has cells at the lower end of an axis from 0."""
    if isinstance(gate, PolygonGate):
        return bool(gate.vertices[:, axis].min() <= 0)
    return isinstance(gate, RectangleGate) and bool(gate.low[axis] <= 0)


def _rectangle(gate: RectangleGate, axis: int, scale: Scale, target: Scale) -> RectangleGate:
    """Box with one axis on another scale; ranges stay the same on any increasing scale."""
    bottom, top = _ends(scale)
    low, high = gate.low.copy(), gate.high.copy()
    low[axis] = -np.inf if low[axis] <= bottom else low[axis]
    high[axis] = np.inf if high[axis] > top else high[axis]

    def to_new(values: np.ndarray) -> np.ndarray:
        # The table of the scale is not exact; limits that people type have few digits.
        return target.transform([float(f"{raw:.12g}") for raw in scale.inverse(values)])

    changed = moved(replace(gate, low=low, high=high), axis, to_new, str(target))
    return changed  # type: ignore[return-value]


def _polygon(gate: PolygonGate, scales: list[Scale], targets: list[Scale]) -> PolygonGate:
    """Polygon whose edges follow those of a gate on other scales."""

    def to_new(points: np.ndarray) -> np.ndarray:
        columns = [
            points[:, i] if scale == target else target.transform(scale.inverse(points[:, i]))
            for i, (scale, target) in enumerate(zip(scales, targets, strict=True))
        ]
        return np.column_stack(columns)

    vertices = gate.vertices.copy()
    for i, scale in enumerate(scales):
        if scale != targets[i]:
            vertices[:, i] = np.clip(vertices[:, i], *_ends(scale))
    dense = _divided(vertices, to_new)
    outline = _opened(gate, dense, to_new(dense), scales, targets)
    return replace(gate, vertices=outline, transform_x=str(targets[0]), transform_y=str(targets[1]))


def _divided(vertices: np.ndarray, to_new: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Outline with more vertices where its edges bend on the new scales."""
    places = to_new(vertices)
    extent = np.maximum(places.max(0) - places.min(0), 1e-12)
    outline = vertices
    for _ in range(_MOST_ROUNDS):
        following = np.roll(outline, -1, axis=0)
        middle = (outline + following) / 2
        places = to_new(outline)
        straight = (places + np.roll(places, -1, axis=0)) / 2
        bends = (np.abs(to_new(middle) - straight) / extent).max(1) > _BEND
        if not bends.any():
            break
        at = np.flatnonzero(bends)
        outline = np.insert(outline, at + 1, middle[at], axis=0)
    return outline


def _opened(
    gate: PolygonGate,
    dense: np.ndarray,
    places: np.ndarray,
    scales: list[Scale],
    targets: list[Scale],
) -> np.ndarray:
    """Outline that is open where the cells at the end of a scale are inside.

    FlowJo's scales put all values beyond an end onto it. If these cells are inside, an edge along
    the end is moved far beyond it.
    """
    following = np.roll(dense, -1, axis=0)
    side = np.full(len(dense), -1)
    far: list[tuple[int, float]] = []
    for axis, (scale, target) in enumerate(zip(scales, targets, strict=True)):
        if scale == target:
            continue
        top = float(scale.inverse([min(1.0, _ends(scale)[1])])[0])
        if isinstance(scale, FlowJoBiex):
            top = scale.max_value
        for end, direction in zip(_ends(scale), (-1.0, 1.0), strict=True):
            on_end = (dense[:, axis] == end) & (following[:, axis] == end)
            if not np.isfinite(end) or not on_end.any():
                continue
            middle = (dense[on_end] + following[on_end]) / 2
            if gate.contains(middle).mean() > 0.5:
                side[on_end] = len(far)
                far.append((axis, float(target.transform([direction * _FAR * abs(top)])[0])))
    if not far:
        return places
    out: list[np.ndarray] = []
    for i, place in enumerate(places):
        before, after = int(side[i - 1]), int(side[i])
        moved_before, moved_after = _shifted(place, before, far), _shifted(place, after, far)
        if before < 0:
            out.append(place)
        else:
            out.append(moved_before)
            if after >= 0 and after != before:
                out.append(_shifted(moved_before, after, far))
        if after >= 0 and after != before:
            out.append(moved_after)
        elif after < 0 <= before:
            out.append(place)
    return np.array(out)


def _shifted(place: np.ndarray, side: int, far: list[tuple[int, float]]) -> np.ndarray:
    out = place.copy()
    if side >= 0:
        out[far[side][0]] = far[side][1]
    return out
