"""Gates as parallel arrays, which ``adata.uns`` can hold in h5ad and zarr files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from anndata import AnnData

from fcm_estimators._checks import listed, require_key
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.gating._kinds import Gate
from fcm_estimators.gating._shapes import EllipsoidGate, RectangleGate
from fcm_estimators.gating.gates import BooleanGate, PolygonGate

if TYPE_CHECKING:
    from fcm_estimators.gating._tree import GatingTree

# Arrays of text. Gate names contain no "/", so "/" separates the names in one entry.
_TEXT = (
    "name",
    "parent",
    "x",
    "y",
    "transform_x",
    "transform_y",
    "compensation",
    "operation",
    "operands",
    "complements",
)


def gates_from_uns(adata: AnnData, key: str, sample: str) -> list[Gate]:
    """Gates of one sample; arguments as :meth:`GatingTree.from_adata`."""
    require_key(key, adata.uns, "the key in adata.uns")
    entry = adata.uns[key]
    entry = entry.get("gates", entry)
    samples = np.array([str(name) for name in entry["sample"]])
    require_key(sample, dict.fromkeys(samples), "the sample")
    offsets, vertices = np.asarray(entry["vertex_offsets"]), np.asarray(entry["vertices"])
    gates: list[Gate] = []
    for i in np.flatnonzero(samples == sample):
        text = {k: str(v[i]) for k, v in entry.items() if k in _TEXT}
        operation, *names = (text.pop(k, "") for k in ("operation", "operands", "complements"))
        if operation:
            operands, complements = (tuple(filter(None, n.split("/"))) for n in names)
            gates.append(
                BooleanGate(text["name"], operation, operands, text["parent"], complements)  # type: ignore[arg-type]
            )
        else:
            outline = vertices[offsets[i] : offsets[i + 1]]
            states: Any = tuple(text.pop("compensation", "none").split("/"))
            states = states[0] if len(states) == 1 else states
            gates.append(PolygonGate(**text, vertices=outline, compensation=states))
    return gates


def matrix_from_uns(adata: AnnData, key: str, sample: str) -> pd.DataFrame | None:
    """Matrix of the gates of one sample; None if they have none of their own."""
    entry = adata.uns[key]
    entry = entry.get("gates", entry)
    samples = [str(name) for name in entry.get("spillover_sample", [])]
    if sample not in samples:
        return None
    sizes = np.asarray(entry["spillover_size"], dtype=np.int64)
    i = samples.index(sample)
    size, first, start = int(sizes[i]), int(sizes[:i].sum()), int((sizes[:i] ** 2).sum())
    names = [str(name) for name in entry["spillover_channels"][first : first + size]]
    values = np.asarray(entry["spillover_values"])[start : start + size**2]
    return pd.DataFrame(values.reshape(size, size), index=names, columns=names)


def gates_to_uns(trees: Mapping[str, GatingTree]) -> dict[str, np.ndarray]:
    """Parallel arrays of the gates of several samples; see :meth:`GatingTree.to_uns`."""
    found = [(sample, gate) for sample, tree in trees.items() for gate in tree]
    others = [g.name for _, g in found if isinstance(g, RectangleGate | EllipsoidGate)]
    if others:
        raise InvalidInputError(
            f"Gates {listed(dict.fromkeys(others))} are not polygons; the arrays in uns hold "
            "polygons and boolean gates only. Keep the tree as Gating-ML (to_gatingml)."
        )
    out = {
        k: np.array([_as_text(getattr(gate, k, "")) for _, gate in found], dtype=object)
        for k in _TEXT
    }
    outlines = [getattr(gate, "vertices", np.empty((0, 2))) for _, gate in found]
    out["sample"] = np.array([str(sample) for sample, _ in found], dtype=object)
    out["vertex_offsets"] = np.cumsum([0, *map(len, outlines)], dtype=np.int64)
    out["vertices"] = np.concatenate([np.empty((0, 2)), *outlines])
    matrices = {s: t.spillover for s, t in trees.items() if t.spillover is not None}
    if matrices:
        names = [str(name) for matrix in matrices.values() for name in matrix.columns]
        out["spillover_sample"] = np.array([str(sample) for sample in matrices], dtype=object)
        out["spillover_size"] = np.array([len(m) for m in matrices.values()], dtype=np.int64)
        out["spillover_channels"] = np.array(names, dtype=object)
        out["spillover_values"] = np.concatenate([m.to_numpy().ravel() for m in matrices.values()])
    return out


def _as_text(value: str | tuple[str, ...]) -> str:
    return value if isinstance(value, str) else "/".join(value)
