"""Gates from the shapes of a file and the places of their axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from fcm_estimators._checks import listed
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.gating._kinds import Gate
from fcm_estimators.gating._nodes import inverted, polygons
from fcm_estimators.gating._shapes import EllipsoidGate, RectangleGate
from fcm_estimators.gating._xml import Shape
from fcm_estimators.gating.gates import BooleanGate, State
from fcm_estimators.preprocessing import Scale
from fcm_estimators.preprocessing.exchange_scales import Seconds

# Channels whose names begin so are never compensated.
_NEVER_COMPENSATED = ("fsc", "ssc", "time")


class Place(NamedTuple):
    """Axis of a gate: channel, compensation and scale, and whether the shape is in seconds."""

    channel: str
    state: State
    scale: Scale
    seconds: bool = False


def drawn_gates(
    name: str, parent: str, shape: Shape, places: Sequence[Place], outside: bool = False
) -> list[Gate]:
    """Gates of a shape in the units of the scales; the last has the name."""
    states = _states(places)
    scales = [Seconds() if place.seconds else place.scale for place in places]
    common: dict[str, Any] = {"compensation": states}
    markers = tuple(place.channel for place in places)
    if shape.kind == "PolygonGate":
        if len(places) != 2 or shape.vertices is None:
            raise InvalidInputError(f"it is a polygon in {len(places)} dimension(s)")
        axes = {"x": markers[0], "y": markers[1], **common}
        axes |= {"transform_x": str(scales[0]), "transform_y": str(scales[1])}
        gates = polygons(name, parent, shape.vertices, axes)
    else:
        if not places:
            raise InvalidInputError("it has no axis")
        common |= {"name": name, "parent": parent, "markers": markers}
        common["transforms"] = tuple(map(str, scales))
        if shape.kind == "RectangleGate":
            low, high = ([getattr(axis, side) for axis in shape.axes] for side in ("low", "high"))
            gates = [RectangleGate(low=np.array(low), high=np.array(high), **common)]
        else:
            gates = [
                EllipsoidGate(
                    centre=shape.centre,  # type: ignore[arg-type]
                    covariance=shape.covariance,  # type: ignore[arg-type]
                    distance_square=shape.distance_square,
                    **common,
                )
            ]
    return inverted(gates, name, parent) if outside else gates


def boolean_gate(
    name: str, parent: str, operation: str, references: Sequence[tuple[str, bool]]
) -> BooleanGate:
    """Combination of gates, each with whether its complement counts; of one gate, that gate."""
    unique = list(dict.fromkeys(references))
    operands = tuple(operand for operand, _ in unique)
    if len(set(operands)) < len(operands):
        raise InvalidInputError("it combines a gate with the complement of the same gate")
    if operation == "not" and len(operands) > 1:
        raise InvalidInputError(f"it is NOT of {listed(operands)}; NOT of one gate is defined")
    if operation != "not" and len(operands) == 1:
        operands *= 2
    complements = tuple(operand for operand, outside in unique if outside)
    return BooleanGate(name, operation, operands, parent, complements)  # type: ignore[arg-type]


def _states(places: Sequence[Place]) -> tuple[State, ...]:
    """Compensation of each axis; scatter and Time, which have none, take that of the others."""
    stained = [p.state for p in places if not p.channel.lower().startswith(_NEVER_COMPENSATED)]
    if len(set(stained)) > 1:
        return tuple(place.state for place in places)
    state: State = stained[0] if stained else "none"
    return (state,) * len(places)


def in_seconds(shape: Shape, places: Sequence[Place]) -> Shape:
    """Shape with its axes of Time in seconds instead of a scale, as gates of Time are kept.

    Raises
    ------
    InvalidInputError
        The scale is not linear, and the shape has edges that it would bend.
    """
    scales = [place.scale for place in places]
    axes = list(shape.axes)
    vertices = shape.vertices
    centre, covariance = shape.centre, shape.covariance
    for i, (place, scale) in enumerate(zip(places, scales, strict=True)):
        if not place.seconds:
            continue
        ends = scale.inverse([0.0, 0.5, 1.0])
        bent = not np.isclose(ends[1] - ends[0], ends[2] - ends[1])
        if bent and shape.kind != "RectangleGate":
            raise InvalidInputError(f"it is drawn on {scale} of {place.channel!r}, not in seconds")
        axes[i] = replace(
            axes[i],
            low=_raw_limit(scale, axes[i].low),
            high=_raw_limit(scale, axes[i].high),
        )
        if vertices is not None:
            vertices = vertices.copy()
            vertices[:, i] = scale.inverse(vertices[:, i])
        if centre is not None and covariance is not None:
            factors = np.ones(len(centre))
            factors[i] = ends[2] - ends[0]
            centre = centre.copy()
            centre[i] = scale.inverse([centre[i]])[0]
            covariance = covariance * np.outer(factors, factors)
    return replace(shape, axes=axes, vertices=vertices, centre=centre, covariance=covariance)


def _raw_limit(scale: Scale, value: float) -> float:
    return value if np.isinf(value) else float(scale.inverse([value])[0])
