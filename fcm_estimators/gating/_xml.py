"""Read the XML of Gating-ML and of FlowJo, whose gates have the same elements."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import numpy as np

from fcm_estimators.exceptions import InvalidInputError


def read_bytes(path: Path) -> bytes:
    """Content of a file; InvalidInputError if it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read: {error.strerror}.") from error


def parse(path: Path) -> Element:
    """Root of an XML file; InvalidInputError if it is none."""
    try:
        parser = ElementTree.XMLParser(target=_WithoutDocumentType())  # noqa: S314  see there
        parser.feed(read_bytes(path))
        root: Element = parser.close()
    except _DocumentTypeError as error:
        raise _refused(path) from error
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise unreadable(path, f"it is no XML ({error})") from error
    return root


class _DocumentTypeError(Exception):
    """The document declares a type."""


class _WithoutDocumentType(ElementTree.TreeBuilder):
    """Builder that stops at a document type: with one, entities could grow without bounds."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        """Refuse the declaration."""
        raise _DocumentTypeError


def _refused(path: Path) -> InvalidInputError:
    return InvalidInputError(
        f"{path.name} was not read, because it declares a document type or entities, which gates "
        "never need. Remove the declaration if you trust the file."
    )


def unreadable(path: Path, reason: str) -> InvalidInputError:
    """Error for a whole file."""
    return InvalidInputError(
        f"{path.name} cannot be read: {reason}. Export it again, as Gating-ML 2.0 or as a FlowJo "
        "10 workspace."
    )


def tag(element: Element) -> str:
    """Name of an element without its namespace; "" for comments."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def attribute(element: Element, name: str) -> str | None:
    """Attribute of any namespace."""
    found = element.get(name)
    if found is not None:
        return found
    ending = "}" + name
    return next((v for k, v in element.attrib.items() if k.endswith(ending)), None)


def children(element: Element | None, *names: str) -> list[Element]:
    """Children with one of some names, of any namespace; of no element, none."""
    return [] if element is None else [child for child in element if tag(child) in names]


def child(element: Element | None, name: str) -> Element | None:
    """First child of a name."""
    return next(iter(children(element, name)), None)


def number(element: Element | None, name: str, what: str) -> float:
    """Attribute that must be a number; ``what`` names the element in the message."""
    text = None if element is None else attribute(element, name)
    try:
        return float(text or "")
    except ValueError:
        raise InvalidInputError(f"{what} has {name}={text!r}, which is no number") from None


def values_of(element: Element | None, name: str) -> list[float]:
    """Values of the children of a name, such as the coordinates of a vertex."""
    return [number(each, "value", f"a {name}") for each in children(element, name)]


@dataclass
class Axis:
    """One axis of a gate, as it stands in the file.

    ``channel`` is None for a ratio, whose transform is ``ratio``. ``divider`` is the id of an axis
    of quadrants, ``cuts`` are the values that divide it.
    """

    channel: str | None
    ratio: str | None = None
    compensation: str | None = None
    transform: str | None = None
    low: float = -np.inf
    high: float = np.inf
    divider: str = ""
    cuts: list[float] = field(default_factory=list)


@dataclass
class Shape:
    """Geometry of a gate, as it stands in the file: only what its ``kind`` has is filled."""

    kind: str
    axes: list[Axis]
    vertices: np.ndarray | None = None
    centre: np.ndarray | None = None
    covariance: np.ndarray | None = None
    distance_square: float = 1.0
    foci: np.ndarray | None = None
    edge: np.ndarray | None = None


def shape_of(element: Element) -> Shape:
    """Geometry of a gate element; InvalidInputError with the reason if it is incomplete."""
    kind = tag(element)
    shape = Shape(kind, [_axis(each) for each in children(element, "dimension")])
    if kind == "RectangleGate":
        return shape
    if kind == "PolygonGate":
        shape.vertices = _points(children(element, "vertex"))
        return shape
    if kind == "EllipsoidGate" and child(element, "foci") is not None:
        shape.foci = _points(children(child(element, "foci"), "vertex"))
        shape.edge = _points(children(child(element, "edge"), "vertex"))
        return shape
    if kind == "EllipsoidGate":
        shape.centre = np.array(values_of(child(element, "mean"), "coordinate"))
        rows = children(child(element, "covarianceMatrix"), "row")
        shape.covariance = np.array([values_of(row, "entry") for row in rows])
        shape.distance_square = number(child(element, "distanceSquare"), "value", "it")
        return shape
    raise InvalidInputError(f"it is a {kind}, which is not supported")


def _points(elements: list[Element]) -> np.ndarray:
    points = [values_of(each, "coordinate") for each in elements]
    if any(len(point) != 2 for point in points):
        raise InvalidInputError("it has a vertex without two coordinates")
    return np.array(points, dtype=np.float64).reshape(-1, 2)


def _axis(element: Element) -> Axis:
    limits = {
        side: number(element, name, "its axis")
        for side, name in (("low", "min"), ("high", "max"))
        if attribute(element, name) is not None
    }
    return axis_of(element, **limits)


def axis_of(element: Element, **values: float) -> Axis:
    """Channel, compensation and transform of a ``dimension`` or ``divider`` element."""
    plain, made = child(element, "fcs-dimension"), child(element, "new-dimension")
    channel = None if plain is None else attribute(plain, "name")
    ratio = None if made is None else attribute(made, "transformation-ref")
    if channel is None and ratio is None:
        raise InvalidInputError("it has an axis without a channel")
    return Axis(
        channel,
        ratio,
        attribute(element, "compensation-ref"),
        attribute(element, "transformation-ref"),
        **values,  # type: ignore[arg-type]
    )


def elements_of(root: Element, name: str) -> Iterator[Element]:
    """All elements of a name below another."""
    return (each for each in root.iter() if tag(each) == name)
