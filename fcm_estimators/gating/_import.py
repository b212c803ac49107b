"""Read gates from Gating-ML 2.0 files and FlowJo workspaces, through FlowKit."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from fcm_estimators._checks import listed
from fcm_estimators._types import Entries
from fcm_estimators.exceptions import InvalidInputError, MissingKeyError
from fcm_estimators.gating._gatingml_names import flowkit, names_by_id
from fcm_estimators.gating._kinds import DrawnGate, Gate
from fcm_estimators.gating._shapes import EllipsoidGate, RectangleGate
from fcm_estimators.gating.gates import ROOT, BooleanGate, PolygonGate
from fcm_estimators.preprocessing import Scale
from fcm_estimators.preprocessing.exchange_scales import (
    FlowJoBiex,
    Hyperlog,
    ParametrizedArcsinh,
    ParametrizedLinear,
    ParametrizedLog,
)
from fcm_estimators.preprocessing.scales import Linear, Logicle

# FlowKit's name and path of a gate; Names maps them to our name.
Key = tuple[str, tuple[str, ...]]
Names = dict[Key, str]

# Channels whose names begin so are never compensated.
_NEVER_COMPENSATED = ("fsc", "ssc", "time")


class Imported(NamedTuple):
    """Gates of a file.

    Attributes
    ----------
    gates : list of gate
    spillover : DataFrame or None
        Matrix that the file gives for its compensated gates, with channels as labels.
    """

    gates: list[Gate]
    spillover: pd.DataFrame | None


def read_gatingml(path: str | PathLike[str], wanted: Iterable[str] | None) -> Imported:
    """Gates of a Gating-ML file; arguments as :meth:`GatingTree.from_gatingml`."""
    _refuse_entities(Path(path))
    strategy = _parse(path, flowkit().parse_gating_xml)
    own_names = _parse(path, names_by_id)
    return _import(strategy, dict(strategy.transformations), Path(path).name, wanted, own_names)


def read_flowjo(
    path: str | PathLike[str], sample: str | None, wanted: Iterable[str] | None
) -> Imported:
    """Gates of one sample of a workspace; arguments as :meth:`GatingTree.from_flowjo`."""
    samples = _workspace(path)
    if sample is None and len(samples) == 1:
        sample = next(iter(samples))
    if sample not in samples:
        raise MissingKeyError(
            f"{Path(path).name} has the samples {listed(samples)}; sample={sample!r} is not one of "
            "them."
        )
    strategy = samples[sample]["gating_strategy"]
    return _import(strategy, dict(strategy.transformations), Path(path).name, wanted)


def flowjo_samples(path: str | PathLike[str]) -> list[str]:
    """Names of the samples of a workspace."""
    return [str(name) for name in _workspace(path)]


def _workspace(path: str | PathLike[str]) -> Entries:
    _refuse_entities(Path(path))
    found = _parse(path, flowkit().parse_wsp)
    samples: Entries = found["samples"]
    return samples


def _parse(path: str | PathLike[str], parser: Callable[[str], Any]) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return parser(str(path))
    except Exception as error:  # FlowKit and lxml do not say which errors a bad file raises
        raise InvalidInputError(
            f"{Path(path).name} cannot be read: {type(error).__name__}: {error}. Export it again, "
            "as Gating-ML 2.0 or as a FlowJo 10 workspace."
        ) from error


def _refuse_entities(path: Path) -> None:
    """Refuse a document type: with one, XML can read other files and use the network."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read: {error.strerror}.") from error
    if b"<!DOCTYPE" in content.replace(b"\0", b"") or b"<!ENTITY" in content.replace(b"\0", b""):
        raise InvalidInputError(
            f"{path.name} was not read, because it declares a document type or entities, which "
            "gates never need. Remove the declaration if you trust the file."
        )


def _import(
    strategy: Any,
    transforms: Mapping[str, Any],
    file: str,
    wanted: Iterable[str] | None,
    own_names: Mapping[str, str] | None = None,
) -> Imported:
    """Convert all gates of FlowKit's strategy, or the wanted ones and those they need."""
    tables = _Tables(strategy, transforms)
    names = _unique_names(strategy, own_names or {})
    chosen = set(names) if wanted is None else _needed(strategy, names, wanted)
    gates, problems = [], []
    for key in names:
        gate = _owner(strategy, key)
        if key not in chosen or (gate.gate_type == "QuadrantGate" and key[0] not in gate.quadrants):
            continue
        try:
            gates.append(_convert(gate, key, names, tables))
        except InvalidInputError as error:
            problems.append(str(error))
    if problems:
        raise InvalidInputError(
            f"{file} has gates that cannot be imported: {' '.join(problems)} To import only the "
            "others, name them with gates=[...]."
        )
    return Imported(gates, tables.spillover())


def _owner(strategy: Any, key: Key) -> Any:
    """FlowKit's gate of a name and path; for a quadrant, the QuadrantGate that contains it."""
    name, path = key
    if len(path) > 1:
        try:
            parent = strategy.get_gate(path[-1], gate_path=path[:-1])
        except flowkit().exceptions.QuadrantReferenceError:
            parent = None  # the parent is a quadrant itself
        if parent is not None and parent.gate_type == "QuadrantGate" and name in parent.quadrants:
            return parent
    return strategy.get_gate(name, gate_path=path)


def _unique_names(strategy: Any, own_names: Mapping[str, str]) -> Names:
    """Name of each gate; gates that share a name get their ancestors' names in front."""
    keys = strategy.get_gate_ids()

    def short(name: str) -> str:
        # FlowJo allows "/" in names; h5ad does not.
        return own_names.get(name, name).replace("/", "|")

    short_names = [short(name) for name, _ in keys]
    names = {}
    for (gate_id, path), name in zip(keys, short_names, strict=True):
        if short_names.count(name) > 1:
            name = " > ".join([*map(short, path[1:]), name])
        names[gate_id, path] = name
    return names


def _needed(strategy: Any, names: Names, wanted: Iterable[str]) -> set[Key]:
    """Find the wanted gates, their parents and their operands."""
    by_name = {name: key for key, name in names.items()}
    missing = [name for name in wanted if name not in by_name]
    if missing:
        raise MissingKeyError(
            f"Gates {listed(missing)} are not in the file; it has {listed(by_name)}."
        )
    todo: list[Key] = [by_name[name] for name in wanted]
    found: set[Key] = set()
    while todo:
        key = todo.pop()
        if key in found:
            continue
        found.add(key)
        if len(key[1]) > 1:
            todo.append((key[1][-1], key[1][:-1]))
        gate = _owner(strategy, key)
        if gate.gate_type == "BooleanGate":
            todo += [(ref["ref"], tuple(ref["path"])) for ref in gate.gate_refs]
    return found & set(names)


class _Tables:
    """Transforms and matrices of a file."""

    def __init__(self, strategy: Any, transforms: Mapping[str, Any]) -> None:
        self.transforms = transforms
        self.matrices = dict(strategy.comp_matrices)
        self.used: set[str] = set()

    def scale(self, reference: str | None) -> str:
        if reference is None:
            return "none"
        if reference not in self.transforms:
            raise InvalidInputError(f"its axis refers to a missing transform, {reference!r}")
        return str(_scale(self.transforms[reference]))

    def channel(self, name: str, reference: str | None) -> str:
        """Channel of a dimension, which may be named by its fluorochrome in the matrix."""
        matrix = self.matrices.get(reference)
        if matrix is not None and name in matrix.fluorochromes and name not in matrix.detectors:
            return str(matrix.detectors[list(matrix.fluorochromes).index(name)])
        # FlowJo writes "Comp-" before the names of compensated channels.
        return name.removeprefix("Comp-") if reference not in (None, "uncompensated") else name

    def compensation(
        self, dimensions: list[tuple[str, str | None]]
    ) -> Literal["none", "spillover", "fcs"]:
        references = {
            reference
            for name, reference in dimensions
            if not name.lower().startswith(_NEVER_COMPENSATED)
        }
        references = {None if r == "uncompensated" else r for r in references}
        if len(references) > 1:
            raise InvalidInputError(
                "its axes are compensated in different ways "
                f"({listed(sorted(map(str, references)))})"
            )
        reference = references.pop() if references else None
        if reference is None:
            return "none"
        if reference == "FCS":
            return "fcs"
        self.used.add(reference)
        return "spillover"

    def spillover(self) -> pd.DataFrame | None:
        if not self.used:
            return None
        if len(self.used) > 1:
            raise InvalidInputError(
                f"The gates use the matrices {listed(sorted(self.used))}, but data can be "
                "compensated with only one. Import the gates of each matrix with gates=[...]."
            )
        matrix = self.matrices.get(next(iter(self.used)))
        if matrix is None:
            raise InvalidInputError(
                f"The gates refer to the matrix {listed(self.used)}, which the file does not have."
            )
        return pd.DataFrame(
            np.asarray(matrix.matrix), index=list(matrix.detectors), columns=list(matrix.detectors)
        )


def _scale(transform: Any) -> Scale:
    kind = type(transform).__name__
    p = {k.removeprefix("param_"): v for k, v in vars(transform).items() if k != "dimensions"}
    if kind == "LogicleTransform":
        return Logicle(T=p["t"], W=p["w"], M=p["m"], A=p["a"])
    if kind == "HyperlogTransform":
        return Hyperlog(T=p["t"], W=p["w"], M=p["m"], A=p["a"])
    if kind == "AsinhTransform":
        return ParametrizedArcsinh(T=p["t"], M=p["m"], A=p["a"])
    if kind == "LinearTransform":
        return Linear(T=p["t"]) if p["a"] == 0 else ParametrizedLinear(T=p["t"], A=p["a"])
    if kind == "LogTransform":
        return ParametrizedLog(T=p["t"], M=p["m"])
    if kind == "WSPLogTransform":
        top = p["offset"] * 10 ** p["decades"]
        return ParametrizedLog(T=top, M=p["decades"], floor=p["offset"])
    if kind == "WSPBiexTransform":
        return FlowJoBiex(
            negative=p["negative"],
            width=p["width"],
            positive=p["positive"],
            max_value=p["max_value"],
        )
    raise InvalidInputError(f"its axis has a {kind}, which is not supported")


def _convert(gate: Any, key: Key, names: Names, tables: _Tables) -> Gate:
    name, path = names[key], key[1]
    try:
        parent = _parent(path, names, gate, key[0])
        if gate.gate_type == "BooleanGate":
            refs = [
                (names[r["ref"], tuple(r["path"])], bool(r["complement"])) for r in gate.gate_refs
            ]
            return BooleanGate(
                name,
                gate.type,
                tuple(ref for ref, _ in refs),
                parent,
                tuple(ref for ref, outside in refs if outside),
            )
        if gate.gate_type == "QuadrantGate":
            return _quadrant(gate, key[0], name, parent, tables)
        return _drawn(gate, name, parent, tables)
    except InvalidInputError as error:
        reason = str(error).removeprefix(f"Gate {name!r}: ").rstrip(".")
        raise InvalidInputError(f"Gate {name!r}: {reason}.") from error


def _parent(path: tuple[str, ...], names: Names, gate: Any, own: str) -> str:
    """Name of the parent; for a quadrant, the parent of its QuadrantGate."""
    if gate.gate_type == "QuadrantGate" and own in gate.quadrants:
        path = path[:-1]
    return names[path[-1], path[:-1]] if len(path) > 1 else ROOT


def _drawn(gate: Any, name: str, parent: str, tables: _Tables) -> DrawnGate:
    if getattr(gate, "use_complement", False):
        raise InvalidInputError("it takes the cells outside of its outline, which is not supported")
    if any(type(d).__name__ == "RatioDimension" for d in gate.dimensions):
        raise InvalidInputError("it has a ratio of two channels on an axis, which is not supported")
    references = [(d.id, d.compensation_ref) for d in gate.dimensions]
    compensation = tables.compensation(references)
    markers = tuple(tables.channel(*r) for r in references)
    scales = tuple(tables.scale(d.transformation_ref) for d in gate.dimensions)
    if gate.gate_type == "PolygonGate":
        (x, y), vertices = markers, np.array(gate.vertices, dtype=np.float64)
        return PolygonGate(name, x, y, vertices, parent, scales[0], scales[1], compensation)
    if gate.gate_type == "EllipsoidGate":
        return EllipsoidGate(
            name,
            markers,
            np.array(gate.coordinates),
            np.array(gate.covariance_matrix),
            gate.distance_square,
            parent,
            scales,
            compensation,
        )
    if gate.gate_type == "RectangleGate":
        low = [-np.inf if d.min is None else d.min for d in gate.dimensions]
        high = [np.inf if d.max is None else d.max for d in gate.dimensions]
        return RectangleGate(
            name, markers, np.array(low), np.array(high), parent, scales, compensation
        )
    raise InvalidInputError(f"gates of kind {gate.gate_type} are not supported")


def _quadrant(gate: Any, own: str, name: str, parent: str, tables: _Tables) -> RectangleGate:
    dividers = {d.id: d for d in gate.dimensions}
    quadrant = gate.quadrants[own]
    ranges = [quadrant.get_divider_range(reference) for reference in quadrant.divider_refs]
    used = [dividers[reference] for reference in quadrant.divider_refs]
    references = [(d.dimension_ref, d.compensation_ref) for d in used]
    return RectangleGate(
        name,
        tuple(tables.channel(*r) for r in references),
        np.array([-np.inf if low is None else low for low, _ in ranges]),
        np.array([np.inf if high is None else high for _, high in ranges]),
        parent,
        tuple(tables.scale(d.transformation_ref) for d in used),
        tables.compensation(references),
    )
