"""Read Gating-ML 2.0 files: scales, matrices and gates, each by itself."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any
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
from fcm_estimators.gating._samples import Candidate, matches
from fcm_estimators.gating._shape_gates import Place, boolean_gate, drawn_gates, in_seconds
from fcm_estimators.gating._xml import (
    Axis,
    Shape,
    attribute,
    axis_of,
    child,
    children,
    elements_of,
    number,
    parse,
    shape_of,
    tag,
    unreadable,
)
from fcm_estimators.gating.coordinates import is_time
from fcm_estimators.gating.gates import State
from fcm_estimators.gating.ratios import Ratio
from fcm_estimators.preprocessing import Scale
from fcm_estimators.preprocessing.exchange_scales import (
    Hyperlog,
    ParametrizedArcsinh,
    ParametrizedLinear,
    ParametrizedLog,
)
from fcm_estimators.preprocessing.scales import Identity, Linear, Logicle

_VERSION = "/v2.0/"
_GATES = ("RectangleGate", "PolygonGate", "EllipsoidGate", "QuadrantGate", "BooleanGate")


@dataclass
class _Transform:
    """A transformation of the file; ``problem`` says why it cannot be used, or is ""."""

    scale: Scale | None = None
    ratio: Ratio | None = None
    low: float = -np.inf
    high: float = np.inf
    problem: str = ""


@dataclass
class _Matrix:
    channel_of: dict[str, str] = field(default_factory=dict)
    values: pd.DataFrame | None = None
    problem: str = ""


@dataclass
class _Info:
    """What programs write beside a gate: its name, and at Cytobank the file it is for."""

    name: str = ""
    file: str = ""
    number: str = ""
    is_population: bool = False


def read_gatingml(
    path: str | PathLike[str],
    wanted: Iterable[str] | None,
    sample: str | None = None,
    unreadable_gates: Unreadable = "error",
) -> Imported:
    """Gates of a Gating-ML file; arguments as :meth:`GatingTree.from_gatingml`."""
    path = Path(path)
    document = _document(path)
    reader = _Gates(document, path, sample)
    gates = import_nodes(reader.nodes, path.name, wanted, unreadable_gates)
    used = {m for gate in gates if (m := reader.matrix_of.get(gate.name)) is not None}
    return Imported(gates, only_matrix({name: document.matrices[name].values for name in used}))


def gate_names(path: str | PathLike[str]) -> list[str]:
    """Names of all gates of a file, also of those that cannot be read."""
    path = Path(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # told when the gates are read
        return unique_names(_Gates(_document(path), path, None).nodes, path.name)


@dataclass(frozen=True)
class _Document:
    elements: list[Element]
    transforms: dict[str, _Transform]
    matrices: dict[str, _Matrix]


def _document(path: Path) -> _Document:
    try:
        status = path.stat()
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read: {error.strerror}.") from error
    return _parsed(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=4)
def _parsed(path: Path, modified: int, size: int) -> _Document:
    root = parse(path)
    if tag(root) != "Gating-ML":
        hint = "; read it with from_flowjo" if tag(root) == "Workspace" else ""
        raise unreadable(path, f"it is no Gating-ML, its first element is {tag(root)!r}{hint}")
    if _VERSION not in root.tag:
        raise unreadable(path, f"it is no Gating-ML 2.0, but {root.tag!r}")
    gates = children(root, *_GATES)
    hidden = [e for e in root if tag(e) not in _GATES and any(tag(g) in _GATES for g in e.iter())]
    if hidden or not gates:
        reason = f"gates are inside of {tag(hidden[0])!r}" if hidden else "it has no gates"
        raise unreadable(path, reason)
    transforms = {attribute(e, "id") or "": _transform(e) for e in children(root, "transformation")}
    matrices = {attribute(e, "id") or "": _matrix(e) for e in children(root, "spectrumMatrix")}
    return _Document(gates, transforms, matrices)


def _transform(element: Element) -> _Transform:
    found = _Transform()
    try:
        for side, name in (("low", "boundMin"), ("high", "boundMax")):
            if attribute(element, name) is not None:
                setattr(found, side, number(element, name, "a transformation"))
        inner = [each for each in element if tag(each)]
        if len(inner) != 1:
            raise InvalidInputError(f"has {len(inner)} scales; expected one")
        found.scale, found.ratio = _scale(inner[0])
    except InvalidInputError as error:
        found.problem = str(error).rstrip(".")
    return found


def _scale(element: Element) -> tuple[Scale | None, Ratio | None]:
    kind = tag(element)

    def of(*names: str) -> dict[str, float]:
        return {name: number(element, name, f"a scale ({kind})") for name in names}

    if kind == "fratio":
        names = [attribute(each, "name") or "" for each in children(element, "fcs-dimension")]
        if len(names) != 2:
            raise InvalidInputError(f"is a ratio of {len(names)} channels; expected two")
        return None, Ratio(names[0], names[1], **of("A", "B", "C"))
    if kind == "flin":
        linear = of("T", "A")
        return Linear(T=linear["T"]) if linear["A"] == 0 else ParametrizedLinear(**linear), None
    scales: dict[str, Callable[[], Scale]] = {
        "flog": lambda: ParametrizedLog(**of("T", "M")),
        "fasinh": lambda: ParametrizedArcsinh(**of("T", "M", "A")),
        "logicle": lambda: Logicle(**of("T", "W", "M", "A")),
        "hyperlog": lambda: Hyperlog(**of("T", "W", "M", "A")),
    }
    if kind not in scales:
        raise InvalidInputError(f"is {kind!r}, which is not supported")
    return scales[kind](), None


def _matrix(element: Element) -> _Matrix:
    def names(part: str) -> list[str]:
        found = children(child(element, part), "fcs-dimension")
        return [attribute(each, "name") or "" for each in found]

    matrix = _Matrix()
    fluorochromes, detectors = names("fluorochromes"), names("detectors")
    try:
        rows = [
            [number(c, "value", "a coefficient") for c in children(row, "coefficient")]
            for row in children(element, "spectrum")
        ]
        if len(fluorochromes) != len(detectors) or any(len(r) != len(detectors) for r in rows):
            raise InvalidInputError(
                f"unmixes {len(fluorochromes)} signals in {len(detectors)} detectors; only square "
                "matrices are supported"
            )
        matrix.values = pd.DataFrame(np.array(rows), index=detectors, columns=detectors)
    except (InvalidInputError, ValueError) as error:
        matrix.problem = str(error).rstrip(".")
    matrix.channel_of = dict(zip(fluorochromes, detectors, strict=False))
    matrix.channel_of |= {name: name for name in detectors}
    return matrix


def _info(element: Element) -> _Info:
    custom = child(element, "custom_info")
    if custom is None:
        return _Info()

    def text(name: str) -> str:
        return next((e.text or "" for e in elements_of(custom, name)), "").strip()

    cytobank = child(custom, "cytobank") is not None
    return _Info(
        name=text("gate_name") or (text("name") if cytobank else ""),
        file=text("fcs_file_filename") if cytobank else "",
        number=text("gate_id") if cytobank else "",
        is_population=cytobank and bool(text("gate_set_id")),
    )


class _Gates:
    """Nodes of a file.

    Attributes
    ----------
    matrix_of : dict
        Id of the matrix that a gate, by name, uses.
    """

    def __init__(self, document: _Document, path: Path, sample: str | None) -> None:
        self.document = document
        self.matrix_of: dict[str, str] = {}
        self.nodes: list[Node] = []
        infos = [_info(element) for element in document.elements]
        chosen = _for_sample(document.elements, infos, path, sample)
        populations = {info.name for info in infos if info.is_population}
        parents: list[str | None] = []
        self._position: dict[str, int] = {}
        for element, info, drawn in chosen:
            gate_id = attribute(element, "id") or ""
            name = info.name or gate_id
            if name in populations and not info.is_population:
                name = f"{name} (gate)"
            if tag(element) == "QuadrantGate":
                self._add_quadrants(element, parents)
                continue
            self._add(gate_id, name, parents, attribute(element, "parent_id"))
            if tag(element) != "BooleanGate":
                self._draw(drawn)
        for element, *_ in chosen:
            if tag(element) == "BooleanGate":
                self._combine(self.nodes[self._position[attribute(element, "id") or ""]], element)
        for node, parent in zip(self.nodes, parents, strict=True):
            if parent is not None and parent not in self._position:
                node.problem = node.problem or f"its parent {parent!r} is not in the file"
            elif parent is not None:
                node.parent = self._position[parent]

    def _add(self, gate_id: str, name: str, parents: list[str | None], parent: str | None) -> None:
        if gate_id in self._position:
            raise InvalidInputError(f"The id {gate_id!r} occurs more than once in the file.")
        self._position[gate_id] = len(self.nodes)
        self.nodes.append(Node(name, None))
        parents.append(parent)

    def _draw(self, element: Element) -> None:
        node = self.nodes[-1]
        try:
            shape = shape_of(element)
        except InvalidInputError as error:
            node.problem = str(error).rstrip(".")
            return
        node.make = self._maker(shape)

    def _maker(self, shape: Shape) -> Callable[..., Any]:
        def make(name: str, parent: str, _: list[str]) -> Any:
            found = [self._place(axis) for axis in shape.axes]
            places = [place for place, _, _ in found]
            bounded = _extended(shape, [transform for _, transform, _ in found])
            gates = drawn_gates(name, parent, in_seconds(bounded, places), places)
            for place in found:
                if place[2] is not None:
                    self.matrix_of |= {gate.name: place[2] for gate in gates}
            return gates

        return make

    def _place(self, axis: Axis) -> tuple[Place, _Transform, str | None]:
        """Where an axis lies, its transformation, and the id of its matrix."""
        transform = self._transform(axis.transform) if axis.transform else _Transform(Identity())
        if transform.scale is None:
            raise InvalidInputError(f"its axis is on {axis.transform!r}, which is a ratio")
        state, matrix = self._state(axis.compensation)
        if axis.ratio is not None:
            ratio = self._transform(axis.ratio).ratio
            if ratio is None:
                raise InvalidInputError(f"its axis {axis.ratio!r} is no ratio of two channels")
            x, y = (self._channel(name, matrix) for name in (ratio.x, ratio.y))
            ratio = ratio._replace(x=x, y=y)
            return Place(str(ratio), state, transform.scale), transform, matrix
        channel = self._channel(axis.channel or "", matrix)
        if matrix is not None and (axis.channel not in self.document.matrices[matrix].channel_of):
            state, matrix = "none", None
        return Place(channel, state, transform.scale, is_time(channel)), transform, matrix

    def _transform(self, reference: str) -> _Transform:
        found = self.document.transforms.get(reference)
        if found is None:
            raise InvalidInputError(f"its axis refers to a missing transform, {reference!r}")
        if found.problem:
            raise InvalidInputError(f"its transform {reference!r} {found.problem}")
        return found

    def _state(self, reference: str | None) -> tuple[State, str | None]:
        if reference in (None, "uncompensated"):
            return "none", None
        if reference == "FCS":
            return "fcs", None
        matrix = self.document.matrices.get(str(reference))
        if matrix is None:
            raise InvalidInputError(
                f"it refers to the matrix {reference!r}, which the file does not have"
            )
        if matrix.problem:
            raise InvalidInputError(f"its matrix {reference!r} {matrix.problem}")
        return "spillover", str(reference)

    def _channel(self, name: str, matrix: str | None) -> str:
        known = {} if matrix is None else self.document.matrices[matrix].channel_of
        return known.get(name, name)

    def _combine(self, node: Node, element: Element) -> None:
        """Let a node combine the gates to which a BooleanGate refers."""
        parts = children(element, "and", "or", "not")
        references = children(parts[0], "gateReference") if parts else []
        ids = [attribute(each, "ref") or "" for each in references]
        if missing := [gate_id for gate_id in ids if gate_id not in self._position]:
            node.problem = f"it refers to {listed(missing)}, which are no gates of the file"
            return
        if not ids:
            node.problem = "it combines no gates"
            return
        outside = [
            (attribute(each, "use-as-complement") or "").strip() in ("true", "1")
            for each in references
        ]
        operation = tag(parts[0])

        def make(name: str, parent: str, operands: list[str]) -> Any:
            pairs = list(zip(operands, outside, strict=True))
            return [boolean_gate(name, parent, operation, pairs)]

        node.operands, node.make = [self._position[gate_id] for gate_id in ids], make

    def _add_quadrants(self, element: Element, parents: list[str | None]) -> None:
        """Add a box for each quadrant."""
        problem, dividers = "", {}
        try:
            for each in children(element, "divider"):
                axis = axis_of(each)
                axis.cuts = sorted(float(v.text or "nan") for v in children(each, "value"))
                dividers[attribute(each, "id") or ""] = axis
        except (InvalidInputError, ValueError) as error:
            problem = str(error).rstrip(".")
        for quadrant in children(element, "Quadrant"):
            gate_id = attribute(quadrant, "id") or ""
            name = _info(quadrant).name or gate_id
            self._add(gate_id, name, parents, attribute(element, "parent_id"))
            node = self.nodes[-1]
            node.problem = problem
            try:
                axes = [_quarter(each, dividers) for each in children(quadrant, "position")]
                node.make = self._maker(Shape("RectangleGate", axes))
            except InvalidInputError as error:
                node.problem = problem or str(error).rstrip(".")


def _quarter(position: Element, dividers: dict[str, Axis]) -> Axis:
    """Range of a quadrant on one divider."""
    reference = attribute(position, "divider_ref")
    axis = dividers.get(reference or "")
    if axis is None:
        raise InvalidInputError(f"it refers to a missing divider, {reference!r}")
    place = number(position, "location", "a position")
    low = max((cut for cut in axis.cuts if cut <= place), default=-np.inf)
    high = min((cut for cut in axis.cuts if cut > place), default=np.inf)
    return replace(axis, low=low, high=high)


def _extended(shape: Shape, transforms: list[_Transform]) -> Shape:
    """Shape that has the events beyond the bounds of its scales where the standard puts them.

    A bounded scale moves events beyond a bound onto it. A range that contains the bound is
    therefore open on this side; other shapes must not reach the bounds.
    """
    axes = list(shape.axes)
    for i, (axis, transform) in enumerate(zip(axes, transforms, strict=True)):
        low, high = transform.low, transform.high
        if shape.kind == "RectangleGate":
            open_low = -np.inf if axis.low <= low else axis.low
            open_high = np.inf if axis.high > high else axis.high
            axes[i] = replace(axis, low=open_low, high=open_high)
        elif np.isfinite([low, high]).any() and not _within(shape, i, low, high):
            raise InvalidInputError(
                f"it reaches the bounds of its scale ({low:g} to {high:g}), which is supported for "
                "ranges and rectangles only"
            )
    return replace(shape, axes=axes)


def _within(shape: Shape, axis: int, low: float, high: float) -> bool:
    """Whether all vertices of a polygon lie between the bounds of an axis."""
    if shape.vertices is None:
        return False
    values = shape.vertices[:, axis]
    return bool((values > low).all() and (values < high).all())


def _for_sample(
    elements: list[Element], infos: list[_Info], path: Path, sample: str | None
) -> list[tuple[Element, _Info, Element]]:
    """Gates with the element that has their shape: Cytobank tailors shapes to single files."""
    tailored: dict[str, list[tuple[str, Element]]] = {}
    for element, info in zip(elements, infos, strict=True):
        if info.file:
            tailored.setdefault(info.number, []).append((info.file, element))
    general = {info.number for info in infos if info.number and not info.file}
    chosen, told = [], []
    for element, info in zip(elements, infos, strict=True):
        if info.file and info.number in general:
            continue
        shapes = tailored.get(info.number, []) if info.number else []
        names = [Candidate(file) for file, _ in shapes]
        of_sample = matches(names, sample) if sample is not None and names else []
        if shapes and sample is None:
            told.append(info.name or attribute(element, "id"))
        chosen.append((element, info, shapes[of_sample[0]][1] if of_sample else element))
    if told:
        files = sorted({file for group in tailored.values() for file, _ in group})
        warnings.warn(
            f"{path.name}: the gates {listed(told)} are drawn differently for the files "
            f"{listed(files)}. Name the file with sample=...; without it, the general gate is "
            "read, or that of the first file.",
            UserWarning,
            stacklevel=4,
        )
    return chosen
