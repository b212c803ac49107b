"""Channels of markers, and units of the file, for software that reads FCS files itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from anndata import AnnData

from fcm_estimators._checks import listed, require_key
from fcm_estimators.exceptions import InvalidInputError, MarkerMismatchError
from fcm_estimators.gating._kinds import DrawnGate, Gate
from fcm_estimators.gating._shapes import EllipsoidGate, RectangleGate
from fcm_estimators.gating.coordinates import column_of, is_time, time_steps
from fcm_estimators.gating.gates import BooleanGate, PolygonGate
from fcm_estimators.gating.ratios import Ratio, ratio_of
from fcm_estimators.preprocessing import parse_transform
from fcm_estimators.preprocessing.exchange_scales import Seconds


class Channels:
    """Channel ($PnN) of each marker.

    Parameters
    ----------
    given : AnnData, mapping of marker to channel, or None
        As ``channels`` of :meth:`GatingTree.to_gatingml`.
    """

    def __init__(self, given: AnnData | Mapping[str, str] | None) -> None:
        self.adata = given if isinstance(given, AnnData) else None
        self._known: Mapping[str, str] = {} if given is None or self.adata is not None else given
        if self.adata is not None:
            require_key("channel", self.adata.var, "the column of adata.var")

    def of(self, marker: str) -> str:
        """Channel of the marker of an axis; without data or an entry, the name of the marker.

        Raises
        ------
        MarkerMismatchError
            The data lack the marker.
        """
        if self.adata is not None and column_of(self.adata, marker) is None:
            raise MarkerMismatchError(
                f"A gate is on {marker!r}, which the data of channels= lack; they have "
                f"{listed(self.adata.var_names)}. Pass the data of these gates, or a mapping of "
                "marker to channel."
            )
        return self.of_detector(marker)

    def of_detector(self, name: str) -> str:
        """Channel of a detector of a matrix; one that the data lack keeps its name."""
        if self.adata is None:
            return self._known.get(name, name)
        column = column_of(self.adata, name)
        return name if column is None else str(self.adata.var["channel"].iloc[column])

    def ratio(self, marker: str) -> Ratio | None:
        """Ratio of channels that an axis shows; None for a marker."""

        def known(name: str) -> bool:
            adata = self.adata
            return name in self._known if adata is None else column_of(adata, name) is not None

        found = ratio_of(marker, known)
        return None if found is None else found._replace(x=self.of(found.x), y=self.of(found.y))

    def in_file_units(self, gate: Gate) -> Gate:
        """Gate with Time in seconds, which is what other software gates.

        Raises
        ------
        InvalidInputError
            Time is not in seconds and ``$TIMESTEP`` is not known, or differs among the samples, or
            edges would bend.
        """
        if isinstance(gate, BooleanGate):
            return gate
        for axis, marker in enumerate(gate.markers):
            scale = parse_transform(gate.transforms[axis])
            if isinstance(scale, Seconds) or self.ratio(marker) is not None:
                continue
            if is_time(self.of(marker)):
                gate = self._in_seconds(gate, axis)
        return gate

    def _in_seconds(self, gate: DrawnGate, axis: int) -> DrawnGate:
        if self.adata is None:
            raise InvalidInputError(
                f"Gate {gate.name!r} is on Time in units of the data; other software gates "
                "seconds. Pass the data as channels=adata: they have the $TIMESTEP."
            )
        steps = set(time_steps(self.adata).values())
        if len(steps) > 1:
            raise InvalidInputError(
                f"Gate {gate.name!r} is on Time, and the samples of channels= differ in $TIMESTEP. "
                "Pass the data of the sample of these gates."
            )
        step, scale = steps.pop(), parse_transform(gate.transforms[axis])
        low, middle, high = scale.inverse([0.0, 0.5, 1.0])
        if not isinstance(gate, RectangleGate) and not np.isclose(middle - low, high - middle):
            raise InvalidInputError(
                f"Gate {gate.name!r} is drawn on {scale} of Time, and its edges would bend in "
                "seconds. Draw it on a linear scale."
            )
        return moved(gate, axis, lambda values: scale.inverse(values) * step, str(Seconds()))


def moved(gate: DrawnGate, axis: int, to_new: Any, transform: str) -> DrawnGate:
    """Gate with one axis in other units; an ellipsoid only by an affine function."""
    texts = [*gate.transforms]
    texts[axis] = transform
    if isinstance(gate, PolygonGate):
        vertices = gate.vertices.copy()
        vertices[:, axis] = to_new(vertices[:, axis])
        return replace(gate, vertices=vertices, transform_x=texts[0], transform_y=texts[1])
    if isinstance(gate, RectangleGate):
        limits = {}
        for name in ("low", "high"):
            values = getattr(gate, name).copy()
            if np.isfinite(values[axis]):
                values[axis] = to_new(values[axis : axis + 1])[0]
            limits[name] = values
        return replace(gate, **limits, transforms=tuple(texts))
    return _moved_ellipsoid(gate, axis, to_new, tuple(texts))


def _moved_ellipsoid(
    gate: EllipsoidGate, axis: int, to_new: Any, texts: tuple[str, ...]
) -> EllipsoidGate:
    origin, unit = to_new(np.array([0.0, 1.0]))
    factors = np.ones(len(texts))
    factors[axis] = unit - origin
    centre = gate.centre * factors
    centre[axis] += origin
    covariance = gate.covariance * np.outer(factors, factors)
    return replace(gate, centre=centre, covariance=covariance, transforms=texts)
