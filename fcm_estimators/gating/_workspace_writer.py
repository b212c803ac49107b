"""Write FlowJo workspaces through FlowKit, and keep only what comes back whole."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import numpy as np
from anndata import AnnData

from fcm_estimators._checks import listed
from fcm_estimators._files import replaced_when_complete
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.gating._channels import Channels, moved
from fcm_estimators.gating._gatingml_names import flowkit
from fcm_estimators.gating._kinds import DrawnGate
from fcm_estimators.gating._shapes import RectangleGate
from fcm_estimators.gating._workspaces import read_flowjo
from fcm_estimators.gating._xml import children, elements_of
from fcm_estimators.gating.gates import ROOT, BooleanGate, PolygonGate, axis_states
from fcm_estimators.io import read_fcs
from fcm_estimators.io.record import get_spillover
from fcm_estimators.preprocessing import Scale, parse_transform
from fcm_estimators.preprocessing.exchange_scales import FlowJoBiex, FlowJoLinear, Seconds
from fcm_estimators.preprocessing.scales import Identity, Linear, Logicle

if TYPE_CHECKING:
    from fcm_estimators.gating._tree_files import TreeFiles

_MATRIX = "Acquisition-defined"


def write_workspace(
    tree: TreeFiles,
    path: str | PathLike[str],
    fcs: str | PathLike[str],
    channels: AnnData | Mapping[str, str] | None,
) -> None:
    """Write a tree; arguments as :meth:`GatingTree.to_flowjo`."""
    fk = flowkit()
    adata = read_fcs(fcs)
    names = Channels(adata if channels is None else channels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # FlowKit warns of keywords of the file
        sample = fk.Sample(str(fcs))
    strategy = _strategy(fk, tree, names, adata)
    content = io.BytesIO()
    session = fk.Session(gating_strategy=strategy, fcs_samples=sample)
    try:
        session.export_wsp(content, "All Samples")
    except (NotImplementedError, ValueError, KeyError) as error:
        raise InvalidInputError(f"FlowKit does not write these gates: {error}") from error
    with replaced_when_complete(Path(path)) as temporary:
        temporary.write_bytes(_with_matrix_of_sample(content.getvalue()))
        found = read_flowjo(temporary, None, None)
        again = type(tree)(found.gates, spillover=found.spillover).apply(adata)
        _require_same(tree, again, adata)


def _require_same(tree: TreeFiles, again: Any, adata: AnnData) -> None:
    before = tree.apply(adata)
    other = {
        name: int((before[name] != again[name]).sum()) if name in again else -1 for name in before
    }
    if wrong := {name: n for name, n in other.items() if n}:
        told = ", ".join(
            f"{name!r} ({'lost' if n < 0 else f'{n} events'})" for name, n in wrong.items()
        )
        raise InvalidInputError(
            f"The workspace was not kept, because gates read from it differ: {told}. Use "
            "to_gatingml instead."
        )


def _strategy(fk: Any, tree: TreeFiles, names: Channels, adata: AnnData) -> Any:
    """FlowKit's form of a tree."""
    others = [gate.name for gate in tree if not isinstance(gate, PolygonGate | RectangleGate)]
    if others:
        raise InvalidInputError(
            f"FlowKit writes polygons, rectangles and ranges; gates {listed(others)} are none. Use "
            "to_gatingml instead."
        )
    strategy = fk.GatingStrategy()
    matrix = tree.spillover
    if matrix is None:
        matrix = get_spillover(adata, str(adata.obs["sample"].iloc[0]))
    drawn = [gate for gate in tree if not isinstance(gate, BooleanGate)]
    states = {s for gate in drawn for s in axis_states(gate.compensation, len(gate.markers))}
    if matrix is not None and states - {"none"}:
        detectors = [names.of_detector(str(name)) for name in matrix.columns]
        strategy.add_comp_matrix(_MATRIX, fk.Matrix(matrix.to_numpy(), detectors, detectors))
    paths: dict[str, tuple[str, ...]] = {ROOT: ()}
    for gate in tree:
        in_file = names.in_file_units(gate)
        paths[gate.name] = (*(paths[gate.parent] or ("root",)), gate.name)
        strategy.add_gate(_gate(fk, strategy, in_file, names), paths[gate.name][:-1])
    return strategy


def _gate(fk: Any, strategy: Any, gate: DrawnGate | BooleanGate, names: Channels) -> Any:
    if isinstance(gate, BooleanGate):  # refused before
        raise InvalidInputError(f"Gate {gate.name!r} is a boolean gate.")
    states = axis_states(gate.compensation, len(gate.markers))
    for i, text in enumerate(gate.transforms):
        if isinstance(scale := parse_transform(text), FlowJoLinear):
            # FlowKit reads the lower end of an axis with the other sign.
            gate = moved(gate, i, scale.inverse, str(Identity()))
    dimensions = []
    for i, marker in enumerate(gate.markers):
        channel, scale = names.of(marker), parse_transform(gate.transforms[i])
        reference = None
        if not isinstance(scale, Identity | Seconds):
            # A workspace has one scale for a channel.
            reference = f"{channel}: {scale}"
            if reference not in strategy.transformations:
                strategy.add_transform(reference, _transform(fk, gate, scale))
        limits = [
            None if np.isinf(v) else float(v)
            for v in ((gate.low[i], gate.high[i]) if isinstance(gate, RectangleGate) else ())
        ]
        compensation = _MATRIX if states[i] != "none" and strategy.comp_matrices else None
        dimensions.append(fk.Dimension(channel, compensation, reference, *limits))
    if isinstance(gate, RectangleGate):
        return fk.gates.RectangleGate(gate.name, dimensions)
    vertices = gate.vertices.tolist() if isinstance(gate, PolygonGate) else []
    return fk.gates.PolygonGate(gate.name, dimensions, vertices)


def _transform(fk: Any, gate: DrawnGate, scale: Scale) -> Any:
    t = fk.transforms
    if isinstance(scale, Linear):
        return t.LinearTransform(scale.T, 0.0)
    if isinstance(scale, Logicle):
        return t.LogicleTransform(scale.T, scale.W, scale.M, scale.A)
    if isinstance(scale, FlowJoBiex):
        return t.WSPBiexTransform(
            negative=scale.negative,
            width=scale.width,
            positive=scale.positive,
            max_value=scale.max_value,
        )
    raise InvalidInputError(
        f"Gate {gate.name!r}: FlowKit writes linear, logicle and biex axes, not {scale}."
    )


def _with_matrix_of_sample(content: bytes) -> bytes:
    """Add FlowKit's matrix to each sample, where FlowJo has it; FlowKit lists it apart."""
    root = ElementTree.fromstring(content)  # noqa: S314  FlowKit wrote it
    for matrices in children(root, "Matrices"):
        for sample in elements_of(root, "Sample"):
            for matrix in matrices:
                sample.insert(1, copy.deepcopy(matrix))
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))
