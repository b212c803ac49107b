"""Write gates as Gating-ML 2.0, through FlowKit."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from fcm_estimators._files import write_whole
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.gating._gatingml_names import flowkit, ids_for, with_names
from fcm_estimators.gating._kinds import DrawnGate, Gate
from fcm_estimators.gating._shapes import RectangleGate
from fcm_estimators.gating.gates import ROOT, BooleanGate, PolygonGate
from fcm_estimators.preprocessing import Scale, parse_transform
from fcm_estimators.preprocessing.exchange_scales import (
    Hyperlog,
    ParametrizedArcsinh,
    ParametrizedLinear,
    ParametrizedLog,
)
from fcm_estimators.preprocessing.scales import Arcsinh, Identity, Linear, Logicle


def write_gatingml(
    gates: Iterable[Gate], path: str | PathLike[str], channels: Mapping[str, str]
) -> None:
    """Write gates that come after their parents; arguments as :meth:`GatingTree.to_gatingml`."""
    fk = flowkit()
    strategy = fk.GatingStrategy()
    gates = list(gates)
    ids = ids_for([gate.name for gate in gates])
    paths: dict[str, tuple[str, ...]] = {}
    for gate in gates:
        gate_path = (*paths[gate.parent], ids[gate.parent]) if gate.parent != ROOT else ("root",)
        paths[gate.name] = gate_path
        if isinstance(gate, BooleanGate):
            refs = [
                {"ref": ids[o], "path": paths[o], "complement": o in gate.complements}
                for o in gate.operands
            ]
            boolean = fk.gates.BooleanGate(ids[gate.name], gate.operation, refs)
            strategy.add_gate(boolean, gate_path)
            continue
        axes = [
            _Axis(fk, strategy, gate, channels.get(marker, marker), text)
            for marker, text in zip(gate.markers, gate.transforms, strict=True)
        ]
        strategy.add_gate(_flowkit_gate(fk, gate, ids[gate.name], axes), gate_path)
    exported = io.BytesIO()
    fk.export_gatingml(strategy, exported)
    names = {gate_id: name for name, gate_id in ids.items() if gate_id != name}
    content = with_names(exported.getvalue(), names) if names else exported.getvalue()
    write_whole(Path(path), content)


class _Axis:
    """One axis for Gating-ML: channel, transform, and factor from our units to Gating-ML's."""

    def __init__(self, fk: Any, strategy: Any, gate: DrawnGate, channel: str, text: str) -> None:
        self.channel = channel
        self.compensation = "uncompensated" if gate.compensation == "none" else "FCS"
        transform, self.factor = _flowkit_transform(fk, parse_transform(text))
        self.reference = None
        if transform is not None:
            # Ids must start with a letter and contain no brackets.
            self.reference = "".join(c if c.isalnum() or c in "_.-" else "_" for c in text)
            if self.reference not in strategy.transformations:
                strategy.add_transform(self.reference, transform)
        self.fk = fk

    def dimension(self, low: float | None = None, high: float | None = None) -> Any:
        limits = [None if v is None or np.isinf(v) else float(v) * self.factor for v in (low, high)]
        return self.fk.Dimension(self.channel, self.compensation, self.reference, *limits)


def _flowkit_transform(fk: Any, scale: Scale) -> tuple[Any, float]:
    """Transform of Gating-ML, and the factor from our units to its units."""
    t = fk.transforms
    if isinstance(scale, Identity):
        return None, 1.0
    if isinstance(scale, Linear):
        return t.LinearTransform(scale.T, 0.0), 1.0
    if isinstance(scale, ParametrizedLinear):
        return t.LinearTransform(scale.T, scale.A), 1.0
    if isinstance(scale, Logicle):
        return t.LogicleTransform(scale.T, scale.W, scale.M, scale.A), 1.0
    if isinstance(scale, Hyperlog):
        return t.HyperlogTransform(scale.T, scale.W, scale.M, scale.A), 1.0
    if isinstance(scale, ParametrizedArcsinh):
        return t.AsinhTransform(scale.T, scale.M, scale.A), 1.0
    if isinstance(scale, Arcsinh):
        # A = 0, no negative decades; M is chosen so that sinh(M ln 10) / T = 1 / cofactor.
        top = max(262144.0, 10 * scale.cofactor)
        decades = float(np.arcsinh(top / scale.cofactor) / np.log(10))
        return t.AsinhTransform(top, decades, 0.0), 1.0 / (decades * float(np.log(10)))
    if isinstance(scale, ParametrizedLog) and scale.floor <= 1e-100:
        return t.LogTransform(scale.T, scale.M), 1.0
    raise InvalidInputError(
        f"Gating-ML has no scale like {scale}. Apply the gates to the data and write the data with "
        "write_fcs instead."
    )


def _flowkit_gate(fk: Any, gate: DrawnGate, gate_id: str, axes: list[_Axis]) -> Any:
    factors = np.array([axis.factor for axis in axes])
    if isinstance(gate, PolygonGate):
        vertices = (gate.vertices * factors).tolist()
        return fk.gates.PolygonGate(gate_id, [axis.dimension() for axis in axes], vertices)
    if isinstance(gate, RectangleGate):
        dimensions = [
            axis.dimension(low, high)
            for axis, low, high in zip(axes, gate.low, gate.high, strict=True)
        ]
        return fk.gates.RectangleGate(gate_id, dimensions)
    return fk.gates.EllipsoidGate(
        gate_id,
        [axis.dimension() for axis in axes],
        (gate.centre * factors).tolist(),
        (gate.covariance * np.outer(factors, factors)).tolist(),
        gate.distance_square,
    )
