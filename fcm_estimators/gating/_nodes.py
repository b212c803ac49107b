"""Gates of a file before they are gates: a tree of nodes, each read or with its reason why not."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
import shapely
from flowutils.gating import points_in_polygon

from fcm_estimators._checks import listed
from fcm_estimators.exceptions import InvalidInputError, MissingKeyError
from fcm_estimators.gating._kinds import Gate
from fcm_estimators.gating.coordinates import same_matrix
from fcm_estimators.gating.gates import ROOT, BooleanGate, PolygonGate

Unreadable = Literal["error", "skip"]


@dataclass
class Node:
    """A population of a file.

    Attributes
    ----------
    name : str
        As in the file.
    parent : int or None
        Position of the parent among the nodes.
    make : callable or None
        Makes the gates from the name of the population and of its parent and the names of the
        operands: the population itself and any gates that it is composed of. None if the reader
        already knows the ``problem``.
    operands : list of int
        Positions of the nodes that it combines.
    problem : str
        Why it cannot be read, or "".
    """

    name: str
    parent: int | None
    make: Callable[[str, str, list[str]], list[Gate]] | None = None
    operands: list[int] = field(default_factory=list)
    problem: str = ""


class Imported(NamedTuple):
    """Gates of a file, and the matrix that it gives for its compensated gates."""

    gates: list[Gate]
    spillover: pd.DataFrame | None


def import_nodes(
    nodes: Sequence[Node],
    file: str,
    wanted: Iterable[str] | None,
    unreadable: Unreadable,
) -> list[Gate]:
    """Gates of all nodes, or of the wanted ones and those that they need.

    Raises
    ------
    InvalidInputError
        Gates cannot be read, and ``unreadable`` is "error".
    MissingKeyError
        A wanted gate is not in the file.
    """
    if unreadable not in ("error", "skip"):
        raise InvalidInputError(f'unreadable must be "error" or "skip", got {unreadable!r}.')
    names = unique_names(nodes, file)
    chosen = range(len(nodes)) if wanted is None else _needed(nodes, names, wanted, file)
    made: dict[int, list[Gate]] = {}
    problems: dict[int, str] = {}
    for i in _in_order(nodes, chosen):
        node = nodes[i]
        needs = [*([] if node.parent is None else [node.parent]), *node.operands]
        lost = [names[n] for n in needs if n in problems]
        if node.problem or node.make is None:
            problems[i] = node.problem or "it cannot be read"
        elif lost:
            problems[i] = f"it needs {listed(lost)}"
        else:
            parent = ROOT if node.parent is None else names[node.parent]
            try:
                made[i] = node.make(names[i], parent, [names[n] for n in node.operands])
            except InvalidInputError as error:
                problems[i] = str(error).removeprefix(f"Gate {names[i]!r}: ").rstrip(".")
    if problems:
        told = " ".join(f"Gate {names[i]!r}: {problems[i]}." for i in sorted(problems))
        if unreadable == "error":
            raise InvalidInputError(
                f"{file} has gates that cannot be imported: {told} To import only the others, name "
                'them with gates=[...] (or leave these out with unreadable="skip").'
            )
        warnings.warn(
            f"{file}: {len(problems)} of {len(nodes)} gates cannot be imported and were left out: "
            f"{told}",
            UserWarning,
            stacklevel=3,
        )
    taken = set(names)
    return [gate for i in sorted(made) for gate in _told_apart(made[i], names[i], taken)]


def _told_apart(gates: list[Gate], own: str, taken: set[str]) -> list[Gate]:
    """Give gates that a population is composed of names that no population has."""
    new: dict[str, str] = {}
    for gate in gates:
        if gate.name != own:
            name = gate.name
            while name in taken:
                name += "'"
            taken.add(name)
            new[gate.name] = name
    return [
        replace(gate, operands=tuple(new.get(o, o) for o in gate.operands))
        if isinstance(gate, BooleanGate) and gate.name == own and new
        else replace(gate, name=new.get(gate.name, gate.name))
        for gate in gates
    ]


def only_matrix(used: dict[str, pd.DataFrame | None]) -> pd.DataFrame | None:
    """Matrix of the imported gates; None if they need none.

    Raises
    ------
    InvalidInputError
        They use matrices that differ.
    """
    matrices = [matrix for matrix in used.values() if matrix is not None]
    if any(not same_matrix(matrices[0], other) for other in matrices[1:]):
        raise InvalidInputError(
            f"The gates use the matrices {listed(sorted(used))}, which differ, but data can be "
            "compensated with only one. Import the gates of each matrix with gates=[...]."
        )
    return matrices[0] if matrices else None


def unique_names(nodes: Sequence[Node], file: str) -> list[str]:
    """Name of each node; those that share one get their ancestors' names in front.

    A name that is still not unique, as of two siblings, gets a number, also in front of the names
    of its children, and a warning says so.
    """
    # FlowJo allows "/" in names; h5ad does not.
    short = [node.name.replace("/", "|").strip() or "unnamed" for node in nodes]
    counts = Counter(short)
    beside: dict[int | None, set[str]] = {}
    for node, name in zip(nodes, short, strict=True):
        beside.setdefault(node.parent, set()).add(name)
    labels, numbered = [], set()
    seen: set[tuple[int | None, str]] = set()
    for i, node in enumerate(nodes):
        label = short[i]
        if (node.parent, label) in seen:
            label = _numbered(label, beside[node.parent])
            numbered.add(i)
        seen.add((node.parent, short[i]))
        labels.append(label)
    names = []
    for i, node in enumerate(nodes):
        path, at = [labels[i]], node.parent
        while counts[short[i]] > 1 and at is not None:
            path.append(labels[at])
            at = nodes[at].parent
        names.append(" > ".join(reversed(path)))
    taken, given = set(names), set()
    for i, name in enumerate(names):
        if name in given:
            names[i] = _numbered(name, taken)
            numbered.add(i)
        given.add(names[i])
    told = [f"{names[i]!r} ({nodes[i].name!r})" for i in sorted(numbered)]
    if numbered:
        warnings.warn(
            f"{file} has several gates of one name. The first keeps it; the others are called "
            f"{', '.join(told[:20])}{' and more' if len(told) > 20 else ''}. "
            "Rename them in the software that drew them.",
            UserWarning,
            stacklevel=4,
        )
    return names


def _numbered(name: str, taken: set[str]) -> str:
    """Name with the next number that is free; it is then taken."""
    number = 2
    while f"{name} ({number})" in taken:
        number += 1
    taken.add(f"{name} ({number})")
    return f"{name} ({number})"


def _needed(nodes: Sequence[Node], names: list[str], wanted: Iterable[str], file: str) -> list[int]:
    """Positions of the wanted nodes, their parents and their operands."""
    by_name = {name: i for i, name in enumerate(names)}
    wanted = [wanted] if isinstance(wanted, str) else list(wanted)
    found = [by_name.get(name, by_name.get(name.replace("/", "|"))) for name in wanted]
    if missing := [name for name, i in zip(wanted, found, strict=True) if i is None]:
        raise MissingKeyError(
            f"Gates {listed(missing)} are not in the file {file}; it has {listed(names, 100)}."
        )
    todo = [i for i in found if i is not None]
    chosen: set[int] = set()
    while todo:
        i = todo.pop()
        if i not in chosen:
            chosen.add(i)
            parent = nodes[i].parent
            todo += [*([] if parent is None else [parent]), *nodes[i].operands]
    return sorted(chosen)


def _in_order(nodes: Sequence[Node], chosen: Iterable[int]) -> list[int]:
    """Sort so that nodes come after their parents and operands; in a circle, as they are."""
    order: list[int] = []
    state: dict[int, bool] = {}
    for start in chosen:
        stack = [start]
        while stack:
            i = stack[-1]
            if i in state:
                stack.pop()
                if not state[i]:
                    state[i] = True
                    order.append(i)
                continue
            state[i] = False
            parent = nodes[i].parent
            needs = [*([] if parent is None else [parent]), *nodes[i].operands]
            stack += [n for n in needs if n not in state]
    return order


def polygons(name: str, parent: str, vertices: np.ndarray, axes: dict[str, object]) -> list[Gate]:
    """Polygon, or several and their union for an outline that crosses itself.

    The parts are the faces of the outline that lie inside by the even-odd rule, which FlowKit and
    the compliance data of Gating-ML have.
    """
    try:
        return [PolygonGate(name=name, parent=parent, vertices=vertices, **axes)]  # type: ignore[arg-type]
    except InvalidInputError:
        if len(vertices) < 3 or not np.isfinite(vertices).all():
            raise
        faces = _faces_inside(vertices)
        if not faces:
            raise
    if len(faces) == 1:
        return [PolygonGate(name=name, parent=parent, vertices=faces[0], **axes)]  # type: ignore[arg-type]
    labels = tuple(f"{name} (part {i})" for i in range(1, len(faces) + 1))
    parts: list[Gate] = [
        PolygonGate(name=label, parent=parent, vertices=face, **axes)  # type: ignore[arg-type]
        for label, face in zip(labels, faces, strict=True)
    ]
    return [*parts, BooleanGate(name, "or", labels, parent)]


def _faces_inside(vertices: np.ndarray) -> list[np.ndarray]:
    ring = shapely.LineString(np.vstack([vertices, vertices[:1]]))
    faces = shapely.get_parts(shapely.polygonize([shapely.unary_union(ring)]))
    inside = []
    for face in faces:
        point = np.array([shapely.point_on_surface(face).coords[0]])
        if face.area > 0 and points_in_polygon(np.ascontiguousarray(vertices), point)[0]:
            inside += [np.array(part.exterior.coords)[:-1] for part in _without_holes(face)]
    return inside


def _without_holes(face: shapely.Polygon) -> list[shapely.Polygon]:
    """Parts of a face, which is cut through each of its holes."""
    if not face.interiors:
        return [face]
    left, bottom, right, top = face.bounds
    cut = shapely.point_on_surface(shapely.Polygon(face.interiors[0])).x
    halves = [shapely.box(left, bottom, cut, top), shapely.box(cut, bottom, right, top)]
    parts = [part for half in halves for part in shapely.get_parts(face.intersection(half))]
    return [p for part in parts if part.area > 0 for p in _without_holes(part)]


def inverted(gates: list[Gate], name: str, parent: str) -> list[Gate]:
    """The cells outside of a gate and inside its parent."""
    outline = f"{name} (outline)"
    renamed = [replace(gate, name=outline) if gate.name == name else gate for gate in gates]
    return [*renamed, BooleanGate(name, "not", (outline,), parent)]
