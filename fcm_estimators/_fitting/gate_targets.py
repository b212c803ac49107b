"""The expert's gates as training targets: membership of cells, and points in planes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from fcm_estimators._checks import listed, nullable_flags
from fcm_estimators._fitting.gate_draws import DRAWN, Probes
from fcm_estimators._fitting.gate_loss import MIN_INSIDE, OUTSIDE_PARENT
from fcm_estimators.exceptions import InvalidInputError, MissingKeyError
from fcm_estimators.gating import BooleanGate, GatingTree, PolygonGate
from fcm_estimators.gating.coordinates import data_values
from fcm_estimators.gating.gates import ROOT
from fcm_estimators.nn.soft_gates import SoftGate

# Points in the plane of each expert polygon, and their margin as a share of its extent.
_PROBES_PER_GATE = 400
_PROBE_MARGIN = 0.5
_SQUARE = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0))


def as_template(gates: object) -> GatingTree:
    """Tree of the gates to learn, from a tree or from planes.

    Parameters
    ----------
    gates : GatingTree, or mapping of gate to (parent, x, y) or to BooleanGate
        Only the planes and parents of a tree are used, not its polygons.

    Raises
    ------
    InvalidInputError
        ``gates`` has another type or no polygon, or GatingTree refuses it.
    """
    if isinstance(gates, GatingTree):
        tree = GatingTree([_as_polygon(gate) for gate in gates])
    elif isinstance(gates, Mapping):
        tree = GatingTree([_from_plan(name, plan) for name, plan in gates.items()])
    else:
        raise InvalidInputError(
            f"gates is a {type(gates).__name__}; expected a GatingTree, or a mapping of gate to "
            "(parent, x marker, y marker) or to a BooleanGate."
        )
    if not polygons_of(tree):
        raise InvalidInputError("gates holds no polygon, so there is nothing to learn.")
    return tree


def _as_polygon(gate: Any) -> PolygonGate | BooleanGate:
    """Polygon gate in the plane of a rectangle or an ellipse."""
    if isinstance(gate, (PolygonGate, BooleanGate)):
        return gate
    if len(gate.markers) != 2:
        raise InvalidInputError(
            f"Gate {gate.name!r} has {len(gate.markers)} marker(s) ({listed(gate.markers)}); only "
            "gates on two markers can be learnt as polygons. Leave it out, or name two markers for "
            "it in a dict of gates."
        )
    x, y = gate.markers
    return PolygonGate(gate.name, x, y, np.array(_SQUARE), gate.parent)


def _from_plan(name: str, plan: Any) -> PolygonGate | BooleanGate:
    if isinstance(plan, BooleanGate):
        if plan.name != name:
            raise InvalidInputError(f"gates[{name!r}] is a BooleanGate named {plan.name!r}.")
        return plan
    if isinstance(plan, str) or len(plan) != 3:
        raise InvalidInputError(f"gates[{name!r}] is {plan!r}; expected (parent, x, y).")
    parent, x, y = plan
    return PolygonGate(name, x, y, np.array(_SQUARE), parent or ROOT)


def polygons_of(tree: GatingTree) -> list[PolygonGate]:
    """Polygon gates of a tree, parents first."""
    return [gate for gate in tree if isinstance(gate, PolygonGate)]


def read_membership(
    data: Any, y: Any, key: str | None, tree: GatingTree, aliases: Mapping[str, str] | None
) -> np.ndarray:
    """The expert's membership of all rows.

    Parameters
    ----------
    data : AnnData, DataFrame or array of shape (n_rows, ...)
    y : DataFrame or array of shape (n_rows, n_gates), or None
        Membership. The columns of an array are those of ``tree.gates``. None: read
        ``data.obsm[key]``.
    key : str or None
    tree : GatingTree
    aliases : mapping or None
        Name in the data -> name in the tree.

    Returns
    -------
    ndarray of int8, shape (n_rows, number of all gates)
        1 inside, 0 outside, -1 unknown; columns as ``tree.gates``. A gate without a column is
        unknown. Boolean gates are derived from their operands if these are known.

    Raises
    ------
    InvalidInputError
        The table has the wrong shape, holds other values than True and False, or has cells inside
        a gate that are outside of its parent.
    """
    n_rows = data.shape[0]
    out = np.full((n_rows, len(tree)), -1, dtype=np.int8)
    table = _table(data, y, key, tree)
    if table is None:
        return out
    if len(table) != n_rows:
        raise InvalidInputError(f"Gate membership has {len(table)} rows for {n_rows} cells.")
    named = {(aliases or {}).get(str(c), str(c)): table[c] for c in table}
    for position, name in enumerate(tree.gates):
        if name in named:
            out[:, position] = _codes(name, named[name])
    derive_booleans(tree, out)
    _refuse_contradictions(tree, out)
    return out


def _table(data: Any, y: Any, key: str | None, tree: GatingTree) -> pd.DataFrame | None:
    if y is None:
        if key is None or not isinstance(data, AnnData) or key not in data.obsm:
            return None
        y = data.obsm[key]
    if isinstance(y, pd.DataFrame):
        return y
    y = np.asarray(y)
    if y.ndim != 2 or y.shape[1] != len(tree):
        raise InvalidInputError(
            f"Gate membership of shape {y.shape}: an array needs a column for each of the "
            f"{len(tree)} gates {listed(tree.gates)}; or pass a DataFrame with named columns."
        )
    return pd.DataFrame(y, columns=list(tree.gates))


def _codes(name: str, column: pd.Series) -> np.ndarray:
    flags = nullable_flags(column, f"Membership in gate {name!r}")
    return np.where(flags.isna(), -1, flags.to_numpy(dtype=bool, na_value=False)).astype(np.int8)


def _by_gate(tree: GatingTree, member: np.ndarray) -> dict[str, np.ndarray]:
    """Views of the columns of a membership array, by gate."""
    return {name: member[:, i] for i, name in enumerate(tree.gates)}


def derive_booleans(tree: GatingTree, member: np.ndarray) -> None:
    """Fill unknown entries of boolean gates from operands and parent, in place."""
    column = _by_gate(tree, member)
    for name, gate in tree.gates.items():
        if not isinstance(gate, BooleanGate):
            continue
        needed = [column[o] for o in gate.operands]
        if gate.parent != ROOT:
            needed.append(column[gate.parent])
        known = np.logical_and.reduce([c >= 0 for c in needed]) & (column[name] < 0)
        inside = gate.combine([column[o] == 1 for o in gate.operands])
        if gate.parent != ROOT:
            inside = inside & (column[gate.parent] == 1)
        column[name][known] = inside[known]


def _refuse_contradictions(tree: GatingTree, member: np.ndarray) -> None:
    column = _by_gate(tree, member)
    found = []
    for name, gate in tree.gates.items():
        if gate.parent == ROOT:
            continue
        n_wrong = int(((column[name] == 1) & (column[gate.parent] == 0)).sum())
        if n_wrong:
            found.append(f"{n_wrong} of {name!r} are outside of its parent {gate.parent!r}")
    if found:
        raise InvalidInputError(
            f"The membership columns contradict the tree: {'; '.join(found)}. A gate holds only "
            "cells of its parent. Name another parent, or correct the columns."
        )


def within_parents(tree: GatingTree, member: np.ndarray) -> np.ndarray:
    """Membership in the polygons: 1, 0, -1 unknown, -2 for cells outside of the parent."""
    names = list(tree.gates)
    polygons = polygons_of(tree)
    out = member[:, [names.index(g.name) for g in polygons]].copy()
    for i, gate in enumerate(polygons):
        if gate.parent != ROOT:
            parent = member[:, names.index(gate.parent)]
            out[parent < 0, i] = -1
            out[parent == 0, i] = OUTSIDE_PARENT
    return out


def soft_gates(tree: GatingTree) -> list[SoftGate]:
    """The gates of a tree in the form of the nets; polygons as in :func:`polygons_of`."""
    place = {name: i for i, name in enumerate(tree.gates)}
    polygons = [gate.name for gate in polygons_of(tree)]
    found = []
    for gate in tree:
        parent = place[gate.parent] if gate.parent != ROOT else -1
        if isinstance(gate, BooleanGate):
            found.append(
                SoftGate(
                    parent,
                    operation=gate.operation,
                    operands=tuple(place[o] for o in gate.operands),
                    complements=tuple(o in gate.complements for o in gate.operands),
                )
            )
        else:
            found.append(SoftGate(parent, polygon=polygons.index(gate.name)))
    return found


def strata(member: np.ndarray) -> np.ndarray:
    """Stratum of each cell for drawing: number of its last polygon from 1, 0 for none."""
    inside = member == 1
    last = inside.shape[1] - inside[:, ::-1].argmax(1)
    return np.where(inside.any(1), last, 0).astype(np.int64)


def expert_trees(
    data: Any,
    key: str | None,
    tree: GatingTree,
    aliases: Mapping[str, str] | None,
    taught: Collection[str],
) -> dict[str, GatingTree]:
    """The expert's polygons of each sample in ``data.uns[key]``.

    Gates that the tree lacks, and gates with another plane or parent, are left out.

    Parameters
    ----------
    data : AnnData, DataFrame or array
    key : str or None
    tree : GatingTree
    aliases : mapping or None
        Name in the data -> name in the tree.
    taught : collection of str
        Gates with membership per cell, which need no polygon.

    Raises
    ------
    InvalidInputError
        A gate has no membership per cell, and its polygon has another plane or parent.
    """
    if key is None or not isinstance(data, AnnData) or key not in data.uns:
        return {}
    entry = data.uns[key]
    samples = pd.unique(np.array([str(name) for name in entry.get("gates", entry)["sample"]]))
    found = {}
    for sample in samples:
        known = GatingTree.from_adata(data, key=key, sample=sample).on_markers(data)
        known = known.renamed(aliases or {})
        gates = []
        for gate in polygons_of(known):
            wanted = tree.gates.get(gate.name)
            if not isinstance(wanted, PolygonGate):
                continue
            given, drawn = ((g.parent, g.x, g.y) for g in (wanted, gate))
            if given == drawn:
                gates.append(replace(gate, parent=ROOT))
            elif gate.name not in taught:
                raise InvalidInputError(
                    f"The expert's polygon of gate {gate.name!r} in sample {str(sample)!r} has "
                    f"(parent, x, y) = {drawn}, but gates= has {given}. Correct one of them, or "
                    f"give the membership per cell in obsm[{key!r}]."
                )
        found[str(sample)] = GatingTree(gates)
    return found


def fill_from_polygons(tree: GatingTree, member: np.ndarray, drawn: pd.DataFrame) -> None:
    """Fill unknown membership of one sample from its polygons, parents first, in place.

    Parameters
    ----------
    tree : GatingTree
    member : int8 ndarray of shape (n, number of all gates)
    drawn : DataFrame of bool, shape (n, gates with a polygon)
        Cells inside each polygon, regardless of its parent.
    """
    column = _by_gate(tree, member)
    for name, gate in tree.gates.items():
        if name in drawn:
            unknown = column[name] < 0
            inside = drawn[name].to_numpy(dtype=bool)
            if gate.parent != ROOT:
                # If the parent is unknown, the child is unknown too.
                unknown &= column[gate.parent] >= 0
                inside = inside & (column[gate.parent] == 1)
            column[name][unknown] = inside[unknown]
        elif isinstance(gate, BooleanGate):
            derive_booleans(tree, member)


def sample_probes(
    data: AnnData, tree: GatingTree, expert: GatingTree, rng: np.random.Generator
) -> Probes:
    """Points around the expert's polygons of one sample, in the units of ``data``."""
    order = [g.name for g in polygons_of(tree)]
    gates, places, inside = [], [], []
    for gate in polygons_of(expert):
        low, high = gate.vertices.min(0), gate.vertices.max(0)
        margin = _PROBE_MARGIN * (high - low)
        points = rng.uniform(low - margin, high + margin, size=(_PROBES_PER_GATE, 2))
        gates.append(np.full(len(points), order.index(gate.name)))
        places.append(
            np.column_stack(
                [
                    data_values(data, gate, gate.x, gate.transform_x, points[:, 0]),
                    data_values(data, gate, gate.y, gate.transform_y, points[:, 1]),
                ]
            )
        )
        inside.append(gate.contains(points))
    number = np.concatenate(gates)
    stratum = np.full(len(number), DRAWN)
    return Probes(number, np.concatenate(places), np.concatenate(inside), stratum)


def require_taught(tree: GatingTree, member: np.ndarray, key: str | None) -> None:
    """Raise an error unless each polygon has at least 20 cells inside.

    Parameters
    ----------
    tree : GatingTree
    member : ndarray of shape (n, number of polygons)
    key : str or None
        Key of the membership, for the message.

    Raises
    ------
    MissingKeyError
        There is no membership at all.
    InvalidInputError
        A gate has too few cells inside.
    """
    names = [g.name for g in polygons_of(tree)]
    if (member < 0).all():
        raise MissingKeyError(
            f"No membership for any of the gates {listed(names)} in obsm[{key!r}] or "
            f"uns[{key!r}]. Pass y=DataFrame with a True/False column per gate, or name the key "
            "with gates_key=...."
        )
    for i, name in enumerate(names):
        n_inside = int((member[:, i] == 1).sum())
        if n_inside < MIN_INSIDE:
            raise InvalidInputError(
                f"Gate {name!r} has {n_inside} cell(s) inside in all training samples together; "
                f"{MIN_INSIDE} or more are needed. Check the column's name (gate_aliases) and its "
                "parent."
            )
