"""A polygon in the plane of two markers, and combinations of gates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import shapely
from flowutils.gating import points_in_polygon
from numpy.typing import ArrayLike

from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.preprocessing import parse_transform

ROOT = ""
COMPENSATIONS = ("none", "spillover", "fcs")
State = Literal["none", "spillover", "fcs"]
# One state for all axes, or one for each.
States = State | tuple[State, ...]
OPERATIONS = ("and", "or", "not")


@dataclass(frozen=True, eq=False)
class PolygonGate:
    """Polygon in the plane of two markers, applied to the cells inside its parent.

    Parameters
    ----------
    name : str
    x, y : str
        Markers, two different ones.
    vertices : array-like of shape (V, 2)
        Three or more, in order along the outline, in the units of the transforms. Do not repeat
        the first vertex at the end.
    parent : str, default ""
        Gate to whose cells this gate is applied; "" for all cells.
    transform_x, transform_y : str, default "none"
        Scale of the coordinates, as in ``adata.var["transform"]``, such as
        ``"logicle(T=262144,W=0.5,M=4.5,A=0)"``.
    compensation : {"none", "spillover", "fcs"} or tuple of these, default "none"
        Compensation of the fluorescence values on which the gate was drawn, of both axes or of
        each. "spillover": with the matrix of the tree, or with that of the FCS file if the tree has
        none. "fcs": with the matrix of the FCS file, if it has one.

    Raises
    ------
    InvalidInputError
        There are fewer than three vertices, a vertex is not finite, the polygon crosses itself or
        has no area, both axes have the same marker, or a scale is unknown.

    Examples
    --------
    >>> from fcm_estimators.gating import PolygonGate
    >>> gate = PolygonGate("square", "CD19", "CD10", [[0, 0], [1, 0], [1, 1], [0, 1]])
    >>> gate.contains([[0.5, 0.5], [2, 0.5]])
    array([ True, False])
    >>> gate.area
    1.0
    """

    name: str
    x: str
    y: str
    vertices: np.ndarray
    parent: str = ROOT
    transform_x: str = "none"
    transform_y: str = "none"
    compensation: States = "none"

    def __post_init__(self) -> None:
        require_gate(self.name, self.markers, self.transforms)
        object.__setattr__(self, "compensation", states_of(self.name, self.compensation, 2))
        vertices = np.array(self.vertices, dtype=np.float64)
        if vertices.ndim != 2 or vertices.shape[1:] != (2,) or len(vertices) < 3:
            raise InvalidInputError(
                f"Gate {self.name!r}: vertices have shape {vertices.shape}; expected (V, 2) with "
                "three or more vertices."
            )
        if not np.isfinite(vertices).all():
            raise InvalidInputError(f"Gate {self.name!r} has vertices that are not finite.")
        vertices.setflags(write=False)
        object.__setattr__(self, "vertices", vertices)
        shape = self._shape
        if not shape.is_valid or shape.area == 0:
            raise InvalidInputError(
                f"Gate {self.name!r}: {shapely.is_valid_reason(shape)}. The outline must not cross "
                "itself and must enclose an area. Order the vertices along the outline."
            )

    @property
    def markers(self) -> tuple[str, str]:
        """Markers of the two axes."""
        return self.x, self.y

    @property
    def transforms(self) -> tuple[str, str]:
        """Scales of the two axes."""
        return self.transform_x, self.transform_y

    @property
    def _shape(self) -> shapely.Polygon:
        return shapely.Polygon(self.vertices)

    def contains(self, points: ArrayLike) -> np.ndarray:
        """Return whether points lie inside.

        Parameters
        ----------
        points : array-like of shape (N, 2)
            In the units of the transforms.

        Returns
        -------
        ndarray of bool, shape (N,)
        """
        values = np.ascontiguousarray(points, dtype=np.float64)
        if values.ndim != 2 or values.shape[1:] != (2,):
            raise InvalidInputError(f"points have shape {values.shape}; expected (N, 2).")
        if len(values) == 0:
            return np.zeros(0, dtype=bool)
        return np.asarray(points_in_polygon(self.vertices, values), dtype=bool)

    @property
    def area(self) -> float:
        """Area in the units of the transforms."""
        return float(self._shape.area)

    @property
    def centroid(self) -> np.ndarray:
        """Centre of area, shape (2,)."""
        centre = self._shape.centroid
        return np.array([centre.x, centre.y])

    def iou(self, other: PolygonGate) -> float:
        """Intersection over union with another polygon in the same plane.

        Raises
        ------
        InvalidInputError
            The polygons differ in markers, transforms or compensation.
        """
        plane, other_plane = (
            (g.x, g.y, g.transform_x, g.transform_y, g.compensation) for g in (self, other)
        )
        if plane != other_plane:
            raise InvalidInputError(
                f"Gates {self.name!r} and {other.name!r} lie in different planes: {plane} and "
                f"{other_plane}."
            )
        both = self._shape.intersection(other._shape).area
        return float(both / (self.area + other.area - both))


@dataclass(frozen=True)
class BooleanGate:
    """Combination of the cells of other gates.

    Parameters
    ----------
    name : str
    operation : {"and", "or", "not"}
        "not" takes one operand, the others two or more.
    operands : tuple of str
        Names of gates.
    parent : str, default ""
        Gate to whose cells the combination is limited; "" for all cells.
    complements : tuple of str, default ()
        Operands that stand for the cells outside of them.

    Raises
    ------
    InvalidInputError
        The operation is unknown, the number of operands is wrong, or a complement is not an
        operand.

    Examples
    --------
    >>> from fcm_estimators.gating import BooleanGate
    >>> BooleanGate("blast", "and", ("blast_cd45_cd10", "blast_cd20_cd10"), parent="cd19").name
    'blast'
    """

    name: str
    operation: Literal["and", "or", "not"]
    operands: tuple[str, ...]
    parent: str = ROOT
    complements: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_gate(self.name, (), ())
        if self.operation not in OPERATIONS:
            raise InvalidInputError(
                f"Gate {self.name!r}: operation={self.operation!r} is not among {OPERATIONS}."
            )
        if isinstance(self.operands, str) or isinstance(self.complements, str):
            raise InvalidInputError(f"Gate {self.name!r}: operands must be a tuple of names.")
        object.__setattr__(self, "operands", tuple(self.operands))
        object.__setattr__(self, "complements", tuple(self.complements))
        unknown = [name for name in self.complements if name not in self.operands]
        if unknown:
            raise InvalidInputError(
                f"Gate {self.name!r}: complements {unknown} are not among its operands "
                f"{list(self.operands)}."
            )
        n = len(self.operands)
        if (n != 1) if self.operation == "not" else (n < 2):
            raise InvalidInputError(
                f"Gate {self.name!r}: {self.operation!r} of {n} gate(s); 'not' takes one, 'and' "
                "and 'or' take two or more."
            )

    def combine(self, members: list[np.ndarray]) -> np.ndarray:
        """Combine the members of the operands, each a bool array of shape (N,)."""
        taken = [
            ~inside if operand in self.complements else inside
            for operand, inside in zip(self.operands, members, strict=True)
        ]
        if self.operation == "not":
            return ~taken[0]
        combined = np.logical_and if self.operation == "and" else np.logical_or
        return np.asarray(combined.reduce(taken))


def require_gate(name: object, markers: tuple[str, ...], transforms: tuple[str, ...]) -> None:
    """Raise InvalidInputError if a name, a marker or a transform is not valid."""
    if not isinstance(name, str) or not name or "/" in name:
        raise InvalidInputError(
            f"A gate's name must be text of one or more characters without '/', got {name!r}."
        )
    if len(set(markers)) < len(markers):
        raise InvalidInputError(
            f"Gate {name!r} has a marker on more than one axis: {list(markers)}."
        )
    if len(transforms) != len(markers):
        raise InvalidInputError(
            f"Gate {name!r} has {len(markers)} axes but {len(transforms)} transforms."
        )
    for text in transforms:
        parse_transform(text)


def states_of(name: str, compensation: object, n_axes: int) -> States:
    """Check compensation, and return one state if all axes have the same.

    Raises
    ------
    InvalidInputError
        A state is unknown, or there are more or fewer than axes.
    """
    several = isinstance(compensation, list | tuple)
    states = tuple(compensation) if several else (compensation,) * n_axes  # type: ignore[arg-type]
    if len(states) != n_axes or any(state not in COMPENSATIONS for state in states):
        raise InvalidInputError(
            f"Gate {name!r}: compensation={compensation!r} is not among {COMPENSATIONS}, nor is it "
            f"one of them for each of its {n_axes} axes."
        )
    return states[0] if len(set(states)) == 1 else states  # type: ignore[return-value]


def axis_states(compensation: States, n_axes: int) -> tuple[State, ...]:
    """Compensation of each axis."""
    return (compensation,) * n_axes if isinstance(compensation, str) else compensation
