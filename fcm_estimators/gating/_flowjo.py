"""Read FlowJo 10 workspaces (.wsp): samples, their matrices and scales, and their populations.

A workspace is read once and in time linear in its gates. What cannot be read keeps its reason,
and only those who ask for it are told. Gates stand in a workspace in raw units. They are drawn on
the scale of the axis, so polygons are converted to it. This does what FlowKit does; where they
differ, FlowKit takes the axis of the raw channel for compensated values, too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from xml.etree.ElementTree import Element

import numpy as np
import pandas as pd

from fcm_estimators._checks import listed
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.gating._nodes import (
    Imported,
    Node,
    Unreadable,
    import_nodes,
    only_matrix,
    unique_names,
)
from fcm_estimators.gating._shape_gates import Place, boolean_gate, drawn_gates
from fcm_estimators.gating._xml import (
    Axis,
    Shape,
    attribute,
    child,
    children,
    number,
    parse,
    shape_of,
    tag,
    unreadable,
)
from fcm_estimators.gating.coordinates import is_time, same_matrix
from fcm_estimators.gating.gates import State
from fcm_estimators.preprocessing import Scale
from fcm_estimators.preprocessing.exchange_scales import (
    FlowJoBiex,
    FlowJoLinear,
    FlowJoLog,
    ParametrizedArcsinh,
    Seconds,
)
from fcm_estimators.preprocessing.scales import Identity, Linear, Logicle

_BOOLEANS = {"AndNode": "and", "OrNode": "or", "NotNode": "not"}
# FlowJo shows ellipses in a space of 256 x 256 and gates with polygons of this many vertices.
_DISPLAY, _ELLIPSE_VERTICES = 256.0, 128
# Units of the biexponential axis.
_BIEX_TOP = 4096.0


@dataclass
class Matrix:
    """Spillover matrix of a sample; ``problem`` says why its values cannot be used, or is ""."""

    name: str
    prefix: str
    suffix: str
    channel_of: dict[str, str] = field(default_factory=dict)
    values: pd.DataFrame | None = None
    problem: str = ""


@dataclass
class WorkspaceSample:
    """One sample of a workspace.

    Attributes
    ----------
    name, number : str
        Name that FlowJo shows, and id in the workspace.
    uri, file_name : str
        Where its file was, and the ``$FIL`` of the file; "" if unknown.
    channels : dict
        Spelling of channels in the workspace -> ``$PnN``.
    """

    name: str
    number: str
    uri: str
    file_name: str
    channels: dict[str, str]
    matrices: list[Matrix]
    scales: dict[str, Scale | str]
    populations: Element | None

    @property
    def path(self) -> str:
        """Path in the URI, with "/" between folders."""
        return unquote(self.uri.removeprefix("file:")).replace("\\", "/")


@functools.lru_cache(maxsize=4)
def _workspace(path: Path, modified: int, size: int) -> tuple[WorkspaceSample, ...]:
    root = parse(path)
    if tag(root) != "Workspace":
        raise unreadable(path, f"it is no workspace, its first element is {tag(root)!r}")
    version = attribute(root, "flowJoVersion") or ""
    if not version.partition(".")[0].isdigit() or int(version.partition(".")[0]) < 10:
        raise unreadable(path, f"its flowJoVersion is {version!r}; version 10 or later is read")
    elements = children(child(root, "SampleList"), "Sample")
    nodes = [(each, child(each, "SampleNode")) for each in elements]
    return tuple(_sample(each, node) for each, node in nodes if node is not None)


def workspace(path: str | PathLike[str]) -> tuple[WorkspaceSample, ...]:
    """Samples of a workspace; a file that did not change is read once in each process."""
    path = Path(path).resolve()
    try:
        status = path.stat()
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read: {error.strerror}.") from error
    return _workspace(path, status.st_mtime_ns, status.st_size)


def import_sample(
    sample: WorkspaceSample, file: str, wanted: Any, unreadable_gates: Unreadable
) -> Imported:
    """Gates of one sample; arguments as :meth:`GatingTree.from_flowjo`."""
    reader = _Populations(sample)
    gates = import_nodes(reader.nodes, file, wanted, unreadable_gates)
    used = {m for gate in gates if (m := reader.matrix_of.get(gate.name)) is not None}
    matrices = {sample.matrices[i].name: sample.matrices[i].values for i in used}
    return Imported(gates, only_matrix(matrices))


def names_of(sample: WorkspaceSample, file: str) -> list[str]:
    """Names of all populations of a sample, also of those that cannot be read."""
    return unique_names(_Populations(sample).nodes, file)


# Samples


def _sample(element: Element, node: Element) -> WorkspaceSample:
    data = child(element, "DataSet")
    keywords = {
        (attribute(each, "name") or "").strip().upper(): attribute(each, "value") or ""
        for each in children(child(element, "Keywords"), "Keyword")
    }
    names = [v.strip() for k, v in keywords.items() if k.startswith("$P") and k.endswith("N")]
    return WorkspaceSample(
        name=attribute(node, "name") or "",
        number=attribute(node, "sampleID") or "",
        uri="" if data is None else attribute(data, "uri") or "",
        file_name=keywords.get("$FIL", "").strip(),
        channels={name.replace("/", "_"): name for name in names},
        matrices=[_matrix(each) for each in children(element, "spilloverMatrix")],
        scales=_scales(child(element, "Transformations")),
        populations=child(node, "Subpopulations"),
    )


def _matrix(element: Element) -> Matrix:
    prefix, suffix = (attribute(element, name) or "" for name in ("prefix", "suffix"))
    matrix = Matrix(attribute(element, "name") or "", prefix, suffix)
    parameters = children(child(element, "parameters"), "parameter")
    names = [attribute(each, "name") or "" for each in parameters]
    for each, name in zip(parameters, names, strict=True):
        infix = attribute(each, "userProvidedCompInfix") or name
        for text in (infix, f"{prefix}{infix}{suffix}", f"{prefix}{name}{suffix}"):
            if text != name or not (prefix or suffix):
                matrix.channel_of[text] = name
    try:
        matrix.values = _coefficients(element, names)
    except InvalidInputError as error:
        matrix.problem = str(error)
    return matrix


def _coefficients(element: Element, names: list[str]) -> pd.DataFrame:
    rows = {}
    for each in children(element, "spillover"):
        rows[attribute(each, "parameter") or ""] = {
            attribute(c, "parameter") or "": number(c, "value", "a coefficient")
            for c in children(each, "coefficient")
        }
    detectors = {detector for row in rows.values() for detector in row}
    if sorted(rows) != sorted(names) or detectors != set(names):
        spectral = attribute(element, "spectral") == "1"
        raise InvalidInputError(
            f"{'unmixes' if spectral else 'has'} {len(rows)} signals in {len(detectors)} detectors;"
            " only square matrices, with a detector for each signal, are supported"
        )
    algorithm = attribute(element, "weightOptAlgorithmType")
    if attribute(element, "spectral") == "1" and algorithm not in (None, "", "OLS"):
        raise InvalidInputError(f"is spectral with weights ({algorithm}), which is not supported")
    values = [[rows[fluorochrome][detector] for detector in names] for fluorochrome in names]
    return pd.DataFrame(values, index=names, columns=names)


def _scales(element: Element | None) -> dict[str, Scale | str]:
    """Scale of each channel, or the reason why it cannot be read."""
    found: dict[str, Scale | str] = {}
    for each in element if element is not None else ():
        parameter = child(each, "parameter")
        name = None if parameter is None else attribute(parameter, "name")
        if name is None:
            continue
        try:
            found[name] = _scale(each)
        except InvalidInputError as error:
            found[name] = str(error).rstrip(".")
    return found


def _scale(element: Element) -> Scale:
    kind = tag(element)

    def of(name: str) -> float:
        return number(element, name, f"a scale ({kind})")

    if kind == "linear":
        low, high = of("minRange"), of("maxRange")
        return Linear(T=high) if low == 0 else FlowJoLinear(low=low, high=high)
    if kind == "log":
        return FlowJoLog(offset=of("offset"), decades=of("decades"))
    if kind == "logicle":
        return Logicle(T=of("T"), W=of("W"), M=of("M"), A=of("A"))
    if kind == "fasinh":
        return ParametrizedArcsinh(T=of("T"), M=of("M"), A=of("A"))
    if kind == "biex":
        length = attribute(element, "length")
        if length not in (None, "256"):
            raise InvalidInputError(f"its scale is biex of length {length}; 256 is supported")
        return FlowJoBiex(
            negative=of("neg"), width=of("width"), positive=of("pos"), max_value=of("maxRange")
        )
    raise InvalidInputError(f"its scale is {kind!r}, which FlowJo does not document")


# Populations


class _Populations:
    """Nodes of one sample.

    Attributes
    ----------
    matrix_of : dict
        Position of the matrix that a gate, by name, uses.
    """

    def __init__(self, sample: WorkspaceSample) -> None:
        self.sample = sample
        self.nodes: list[Node] = []
        self.matrix_of: dict[str, int] = {}
        self._children: dict[int | None, list[int]] = {}
        self._booleans: list[tuple[int, Element, str]] = []
        todo: list[tuple[Element | None, int | None]] = [(sample.populations, None)]
        while todo:
            element, parent = todo.pop()
            for each in element if element is not None else ():
                if (added := self._add(each, parent)) is not None:
                    todo.append((child(each, "Subpopulations"), added))
        for position, element, operation in self._booleans:
            self._add_operands(position, element, operation)

    def _add(self, element: Element, parent: int | None) -> int | None:
        """Add a node for an element; None if it is no population."""
        kind, name = tag(element), attribute(element, "name")
        if name is None or kind in ("Statistic", "Graph", "Layout", "Table"):
            return None
        node = Node(name, parent)
        position = len(self.nodes)
        self.nodes.append(node)
        self._children.setdefault(parent, []).append(position)
        if kind in _BOOLEANS:
            self._booleans.append((position, element, _BOOLEANS[kind]))
        elif kind == "Population":
            node.make, node.problem = self._maker(element)
        else:
            node.problem = f"it is a {kind}, which is not supported"
        return position

    def _maker(self, element: Element) -> tuple[Callable[..., Any] | None, str]:
        shapes = [each for gate in children(element, "Gate") for each in gate if tag(each)]
        if len(shapes) != 1:
            return None, f"it has {len(shapes)} shapes; expected one"
        try:
            shape = shape_of(shapes[0])
        except InvalidInputError as error:
            return None, str(error).rstrip(".")
        outside = (attribute(shapes[0], "eventsInside") or "1").strip() in ("0", "false")

        def make(name: str, parent: str, _: list[str]) -> Any:
            places = [self._place(axis) for axis in shape.axes]
            used = {m for _, m in places if m is not None}
            drawn = _in_display(shape, places)
            gates = drawn_gates(name, parent, drawn, [p for p, _ in places], outside)
            for position in used:
                self.matrix_of |= {gate.name: position for gate in gates}
            return gates

        return make, ""

    def _place(self, axis: Axis) -> tuple[Place, int | None]:
        """Channel, compensation and scale of an axis, and the position of its matrix."""
        sample = self.sample
        written = axis.channel or ""
        matrix = self._matrix_for(written)
        channel = written if matrix is None else sample.matrices[matrix].channel_of[written]
        if matrix is not None and sample.matrices[matrix].values is None:
            found = sample.matrices[matrix]
            raise InvalidInputError(f"its matrix {found.name!r} {found.problem}")
        scale = sample.scales.get(written, sample.scales.get(channel, Identity()))
        if isinstance(scale, str):
            raise InvalidInputError(f"{scale} (channel {written!r})")
        state: State = "none" if matrix is None else "spillover"
        channel = sample.channels.get(channel, channel)
        return Place(channel, state, scale, is_time(channel)), matrix

    def _matrix_for(self, name: str) -> int | None:
        """Position of the matrix whose compensated channels have this name."""
        matrices = self.sample.matrices
        found = [i for i, matrix in enumerate(matrices) if name in matrix.channel_of]
        if not found:
            return None
        first = matrices[found[0]].values
        for other in found[1:]:
            values = matrices[other].values
            if first is None or values is None or not same_matrix(first, values):
                raise InvalidInputError(
                    f"{name!r} may be compensated with any of the matrices "
                    f"{listed([matrices[i].name for i in found])}, which differ"
                )
        return found[0]

    def _add_operands(self, position: int, element: Element, operation: str) -> None:
        node = self.nodes[position]
        texts = [
            attribute(each, "name") or ""
            for each in children(child(element, "Dependents"), "Dependent")
        ]
        try:
            node.operands = [self._found(text, node.parent) for text in texts]
        except InvalidInputError as error:
            node.problem = str(error).rstrip(".")
            return
        if not texts:
            node.problem = "it combines no gates"
            return

        def make(name: str, parent: str, operands: list[str]) -> Any:
            return [boolean_gate(name, parent, operation, [(o, False) for o in operands])]

        node.make = make

    def _found(self, text: str, parent: int | None) -> int:
        """Node that a path means: names with "/" between them, and perhaps in them."""
        text = text.replace("\\/", "/").strip("/")
        # Paths begin at the sample; those of other programs may begin beside the gate.
        for start in dict.fromkeys((None, parent)):
            found = self._matches(text, start)
            if len(found) == 1:
                return found[0]
            if found:
                raise InvalidInputError(f"it refers to {text!r}, as which several gates are known")
        raise InvalidInputError(f"it refers to {text!r}, which is not in the sample")

    def _matches(self, text: str, parent: int | None) -> list[int]:
        found = []
        for i in self._children.get(parent, []):
            name = self.nodes[i].name
            if text == name:
                found.append(i)
            elif text.startswith(name + "/"):
                found += self._matches(text[len(name) + 1 :], i)
        return found


def _in_display(shape: Shape, places: list[tuple[Place, int | None]]) -> Shape:
    """Shape in the units of its scales, with ellipses as polygons."""
    scales = [Seconds() if place.seconds else place.scale for place, _ in places]
    if shape.foci is not None and shape.edge is not None:
        outline = _ellipse(shape.foci / _DISPLAY, shape.edge / _DISPLAY)
        for i, (place, _) in enumerate(places):
            if isinstance(place.scale, FlowJoBiex):
                outline[:, i] *= _BIEX_TOP
            elif isinstance(place.scale, Identity):
                raise InvalidInputError(
                    f"it is an ellipse, and the scale of {place.channel!r} is not in the workspace"
                )
            if place.seconds:
                outline[:, i] = place.scale.inverse(outline[:, i])
        return replace(shape, kind="PolygonGate", vertices=outline)
    if shape.vertices is not None:
        if not np.isfinite(shape.vertices).all():
            raise InvalidInputError("it has vertices that are not finite")
        columns = [scale.transform(shape.vertices[:, i]) for i, scale in enumerate(scales[:2])]
        return replace(shape, vertices=np.column_stack(columns))
    axes = [
        replace(axis, low=_limit(scale, axis.low), high=_limit(scale, axis.high))
        for axis, scale in zip(shape.axes, scales, strict=True)
    ]
    return replace(shape, axes=axes)


def _limit(scale: Scale, value: float) -> float:
    return value if np.isinf(value) else float(scale.transform([value])[0])


def _ellipse(foci: np.ndarray, edge: np.ndarray) -> np.ndarray:
    """Vertices of an ellipse from its foci and points on its edge, in display space."""
    if foci.shape != (2, 2) or len(edge) < 4:
        raise InvalidInputError("it is an ellipse without two foci and four points on its edge")
    centre = (foci[0] + foci[1]) / 2.0
    across = foci[1] - foci[0]
    turn = np.pi / 2 if across[0] == 0 and across[1] != 0 else 0.0
    if across[0] != 0:
        turn = float(np.arctan(across[1] / across[0]))
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    # The longest distance to a point on the edge is half of the major axis; the minor axis of
    # FlowJo's points is less reliable than the foci.
    major = float(np.abs((edge - centre) @ rotation).max())
    focal = float(((foci[0] - centre) @ rotation)[0])
    minor = float(np.sqrt(np.abs(focal**2 - major**2)))
    angles = np.array([2 * np.pi * (i / _ELLIPSE_VERTICES) for i in range(_ELLIPSE_VERTICES)])
    outline = np.column_stack([major * np.cos(angles), minor * np.sin(angles)])
    vertices: np.ndarray = outline @ np.linalg.inv(rotation) + centre
    return vertices
