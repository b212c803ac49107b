"""Write Gating-ML 2.0."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import numpy as np
import pandas as pd
from anndata import AnnData

from fcm_estimators._checks import listed
from fcm_estimators._files import write_whole
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.gating._channels import Channels
from fcm_estimators.gating._gatingml_names import ids_for
from fcm_estimators.gating._kinds import DrawnGate, Gate
from fcm_estimators.gating._shapes import EllipsoidGate, RectangleGate
from fcm_estimators.gating.gates import ROOT, BooleanGate, PolygonGate, State, axis_states
from fcm_estimators.gating.ratios import Ratio
from fcm_estimators.preprocessing import Scale, parse_transform
from fcm_estimators.preprocessing.exchange_scales import (
    Hyperlog,
    ParametrizedArcsinh,
    ParametrizedLinear,
    ParametrizedLog,
    Seconds,
)
from fcm_estimators.preprocessing.scales import Arcsinh, Identity, Linear, Logicle

_SPACES = {
    name: f"http://www.isac-net.org/std/Gating-ML/v2.0/{ending}"
    for name, ending in (
        ("gating", "gating"),
        ("transforms", "transformations"),
        ("data-type", "datatypes"),
    )
}
_MATRIX = "spillover"
# Limits that Cytobank shows; no gate is cut off at them.
_SHOWN = (-262144.0, 1048576.0)


def write_gatingml(
    tree: Any,
    path: str | PathLike[str],
    channels: AnnData | Mapping[str, str] | None,
    *,
    cytobank: bool,
) -> None:
    """Write a tree; arguments as :meth:`GatingTree.to_gatingml`."""
    document = _Document(Channels(channels), tree.spillover)
    gates = [document.channels.in_file_units(gate) for gate in tree]
    if cytobank:
        _write_cytobank(document, gates)
    else:
        ids = ids_for([gate.name for gate in gates])
        for gate in gates:
            element = document.gate(gate, ids[gate.name], ids)
            if gate.parent != ROOT:
                element.set(_in("gating", "parent_id"), ids[gate.parent])
            if ids[gate.name] != gate.name:
                info = Element(_in("data-type", "custom_info"))
                SubElement(info, "gate_name").text = gate.name
                element.insert(0, info)
    for prefix, uri in _SPACES.items():
        ElementTree.register_namespace(prefix, uri)
    root = document.root()
    ElementTree.indent(root)
    write_whole(Path(path), ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))


class _Document:
    """Elements of a file: scales and matrices in the order of their use, then gates."""

    def __init__(self, channels: Channels, spillover: pd.DataFrame | None) -> None:
        self.channels = channels
        self.spillover = spillover
        self.gates: list[Element] = []
        self._transforms: dict[str, Element] = {}
        self._uses_matrix = False

    def root(self) -> Element:
        root = Element(_in("gating", "Gating-ML"))
        root.extend(self._transforms.values())
        if self._uses_matrix and self.spillover is not None:
            root.append(self._matrix(self.spillover))
        root.extend(self.gates)
        return root

    def gate(self, gate: Gate, gate_id: str, ids: Mapping[str, str]) -> Element:
        """Add the element of a gate."""
        if isinstance(gate, BooleanGate):
            element = Element(_in("gating", "BooleanGate"))
            references = SubElement(element, _in("gating", gate.operation))
            for operand in gate.operands:
                each = SubElement(references, _in("gating", "gateReference"))
                each.set(_in("gating", "ref"), ids[operand])
                if operand in gate.complements:
                    each.set(_in("gating", "use-as-complement"), "true")
        else:
            element = Element(_in("gating", type(gate).__name__))
            self._draw(element, gate)
        element.set(_in("gating", "id"), gate_id)
        self.gates.append(element)
        return element

    def _draw(self, element: Element, gate: DrawnGate) -> None:
        states = axis_states(gate.compensation, len(gate.markers))
        factors = []
        for i, marker in enumerate(gate.markers):
            axis, factor = self._axis(gate, marker, states[i], gate.transforms[i])
            factors.append(factor)
            if isinstance(gate, RectangleGate):
                for name, value in (("min", gate.low[i]), ("max", gate.high[i])):
                    if np.isfinite(value):
                        axis.set(_in("gating", name), _text(value * factor))
            element.append(axis)
        if isinstance(gate, PolygonGate):
            for vertex in gate.vertices * np.array(factors):
                _values(SubElement(element, _in("gating", "vertex")), "coordinate", vertex)
        elif isinstance(gate, EllipsoidGate):
            mean = SubElement(element, _in("gating", "mean"))
            _values(mean, "coordinate", gate.centre * np.array(factors))
            matrix = SubElement(element, _in("gating", "covarianceMatrix"))
            for row in gate.covariance * np.outer(factors, factors):
                _values(SubElement(matrix, _in("gating", "row")), "entry", row)
            distance = SubElement(element, _in("gating", "distanceSquare"))
            distance.set(_in("data-type", "value"), _text(gate.distance_square))

    def _axis(
        self, gate: DrawnGate, marker: str, state: State, transform: str
    ) -> tuple[Element, float]:
        """Element of an axis, and the factor from our units to its units."""
        axis = Element(_in("gating", "dimension"))
        ratio = self.channels.ratio(marker)
        names = [ratio.x, ratio.y] if ratio else [self.channels.of(marker)]
        axis.set(_in("gating", "compensation-ref"), self._reference(state, names))
        scale, factor = _element_of_scale(gate, parse_transform(transform))
        if scale is not None:
            axis.set(_in("gating", "transformation-ref"), self._transform(transform, scale))
        if ratio is None:
            channel = SubElement(axis, _in("data-type", "fcs-dimension"))
            channel.set(_in("data-type", "name"), names[0])
        else:
            made = SubElement(axis, _in("data-type", "new-dimension"))
            reference = self._transform(str(ratio), _element_of_ratio(ratio))
            made.set(_in("data-type", "transformation-ref"), reference)
        return axis, factor

    def _reference(self, state: State, names: Sequence[str]) -> str:
        if state == "none":
            return "uncompensated"
        if state == "fcs" or self.spillover is None:
            return "FCS"
        detectors = {self.channels.of_detector(str(name)) for name in self.spillover.columns}
        if not detectors & set(names):
            return "uncompensated"
        self._uses_matrix = True
        return _MATRIX

    def _transform(self, text: str, element: Element) -> str:
        """Id of a transformation, which is added once."""
        if text not in self._transforms:
            whole = Element(_in("transforms", "transformation"))
            # Ids must begin with a letter and contain no brackets.
            reference = "".join(c if c.isalnum() or c in "_.-" else "_" for c in text)
            taken = {e.get(_in("transforms", "id")) for e in self._transforms.values()}
            while reference in taken:
                reference += "_"
            whole.set(_in("transforms", "id"), reference)
            whole.append(element)
            self._transforms[text] = whole
        return str(self._transforms[text].get(_in("transforms", "id")))

    def _matrix(self, spillover: pd.DataFrame) -> Element:
        element = Element(_in("transforms", "spectrumMatrix"))
        element.set(_in("transforms", "id"), _MATRIX)
        names = [self.channels.of_detector(str(name)) for name in spillover.columns]
        for part in ("fluorochromes", "detectors"):
            group = SubElement(element, _in("transforms", part))
            for name in names:
                each = SubElement(group, _in("data-type", "fcs-dimension"))
                each.set(_in("data-type", "name"), name)
        for row in spillover.to_numpy():
            spectrum = SubElement(element, _in("transforms", "spectrum"))
            for value in row:
                each = SubElement(spectrum, _in("transforms", "coefficient"))
                each.set(_in("transforms", "value"), _text(value))
        return element


def _in(space: str, name: str) -> str:
    return f"{{{_SPACES[space]}}}{name}"


def _text(value: float) -> str:
    return repr(float(value))


def _values(parent: Element, name: str, values: Iterable[float]) -> None:
    for value in values:
        SubElement(parent, _in("gating", name)).set(_in("data-type", "value"), _text(value))


def _element_of_ratio(ratio: Ratio) -> Element:
    element = Element(_in("transforms", "fratio"))
    for name in "ABC":
        element.set(_in("transforms", name), _text(getattr(ratio, name)))
    for name in (ratio.x, ratio.y):
        SubElement(element, _in("data-type", "fcs-dimension")).set(_in("data-type", "name"), name)
    return element


def _element_of_scale(gate: DrawnGate, scale: Scale) -> tuple[Element | None, float]:
    """Transformation of Gating-ML, and the factor from our units to its units."""
    factor = 1.0
    if isinstance(scale, Identity | Seconds):
        return None, factor
    if isinstance(scale, Linear):
        name, parameters = "flin", {"T": scale.T, "A": 0.0}
    elif isinstance(scale, ParametrizedLinear):
        name, parameters = "flin", {"T": scale.T, "A": scale.A}
    elif isinstance(scale, Logicle | Hyperlog):
        name = scale.name
        parameters = {"T": scale.T, "W": scale.W, "M": scale.M, "A": scale.A}
    elif isinstance(scale, ParametrizedArcsinh):
        name, parameters = "fasinh", {"T": scale.T, "M": scale.M, "A": scale.A}
    elif isinstance(scale, Arcsinh):
        # A = 0, no negative decades; M is chosen so that sinh(M ln 10) / T = 1 / cofactor.
        top = max(262144.0, 10 * scale.cofactor)
        decades = float(np.arcsinh(top / scale.cofactor) / np.log(10))
        name, parameters = "fasinh", {"T": top, "M": decades, "A": 0.0}
        factor = 1.0 / (decades * float(np.log(10)))
    elif isinstance(scale, ParametrizedLog) and scale.floor <= 1e-100:
        name, parameters = "flog", {"T": scale.T, "M": scale.M}
    else:
        raise InvalidInputError(
            f"Gate {gate.name!r}: Gating-ML has no scale like {scale}. Draw the gates on scales "
            "that it has first: tree, changed = tree.on_exchange_scales(adata)."
        )
    element = Element(_in("transforms", name))
    for key, value in parameters.items():
        element.set(_in("transforms", key), _text(value))
    return element, factor


# Cytobank


def _write_cytobank(document: _Document, gates: Sequence[Gate]) -> None:
    """Add gates without parents, and the intersection of gates that each population is."""
    others = [
        gate.name
        for gate in gates
        if isinstance(gate, BooleanGate) and (gate.operation != "and" or gate.complements)
    ]
    if others:
        raise InvalidInputError(
            f"Gates {listed(others)} are boolean gates other than 'and', which Cytobank's form "
            "does not have. Write them without cytobank=True, or leave them out."
        )
    sets: dict[str, list[str]] = {}
    for number, gate in enumerate(gates, start=1):
        above = sets[gate.parent] if gate.parent != ROOT else []
        if isinstance(gate, BooleanGate):
            own = [reference for operand in gate.operands for reference in sets[operand]]
        else:
            coded = base64.b64encode(gate.name.encode(), b"_-").decode().replace("=", ".")
            own = [f"Gate_{number}_{coded}"]
            element = document.gate(gate, own[0], {})
            element.insert(0, _cytobank_info(gate, number, "gate_id", _definition(gate)))
        sets[gate.name] = list(dict.fromkeys([*above, *own]))
    for number, gate in enumerate(gates, start=1):
        references = sets[gate.name]
        # "and" needs two; a population with one gate is written as that gate twice.
        pair = references if len(references) > 1 else references * 2
        population = BooleanGate("population", "and", tuple(pair))
        ids = {reference: reference for reference in references}
        element = document.gate(population, f"GateSet_{number}", ids)
        element.insert(0, _cytobank_info(gate, number, "gate_set_id", {"gates": references}))


def _cytobank_info(gate: Gate, number: int, kind: str, definition: Mapping[str, Any]) -> Element:
    info = Element(_in("data-type", "custom_info"))
    cytobank = SubElement(info, "cytobank")
    texts = {"name": gate.name, "id": str(number), kind: str(number), "fcs_file_filename": ""}
    for name, text in {**texts, "definition": json.dumps(definition)}.items():
        SubElement(cytobank, name).text = text
    return info


def _definition(gate: DrawnGate) -> dict[str, Any]:
    """Axes as Cytobank describes them: kind of scale, its argument, and limits."""
    axes = []
    for text in gate.transforms:
        scale = parse_transform(text)
        flag, argument = 1, 1.0
        if isinstance(scale, ParametrizedLog):
            flag = 2
        elif isinstance(scale, Arcsinh):
            flag, argument = 4, scale.cofactor
        elif not isinstance(scale, Identity | Seconds | Linear | ParametrizedLinear):
            slope = float(np.diff(scale.transform([0.0, 1.0]))[0])
            top = float(scale.transform([262144.0])[0] - scale.transform([26214.4])[0])
            # The cofactor of the arcsinh scale with as many units for a decade as for 0 to 1.
            flag, argument = 4, top / np.log(10) / slope
        shown = {"flag": flag, "argument": f"{argument:g}", "min": _SHOWN[0], "max": _SHOWN[1]}
        axes.append({**shown, "bins": 256, "size": 256})
    return {"scale": axes[0] if len(axes) == 1 else dict(zip("xyz", axes, strict=False))}
