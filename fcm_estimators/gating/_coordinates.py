"""Where cells lie on the axes of a gate."""

from __future__ import annotations

from typing import Any

import numpy as np
from anndata import AnnData

from fcm_estimators._exceptions import MarkerMismatchError, ProcessingStateError
from fcm_estimators._validation import listed
from fcm_estimators.gating._gates import PolygonGate
from fcm_estimators.preprocessing import Scale, parse_transform


def axis_values(
    adata: AnnData, gate: PolygonGate, marker: str, transform: str, rows: np.ndarray
) -> np.ndarray:
    """Values of one marker of some cells in the units of a gate, float64.

    Raises
    ------
    ProcessingStateError
        Compensation differs, or the state of the data is not recorded and the gate needs it.
    """
    column = int(adata.var_names.get_loc(marker))
    values = np.asarray(adata.X[rows, column], dtype=np.float64).ravel()
    mine, theirs = _scales(adata, gate, marker, transform)
    return values if mine == theirs else mine.transform(theirs.inverse(values))


def data_values(
    adata: AnnData, gate: PolygonGate, marker: str, transform: str, values: np.ndarray
) -> np.ndarray:
    """Values in the units of a gate in those of the data; the inverse of :func:`axis_values`."""
    mine, theirs = _scales(adata, gate, marker, transform)
    return values if mine == theirs else theirs.transform(mine.inverse(values))


def _scales(adata: AnnData, gate: PolygonGate, marker: str, transform: str) -> tuple[Scale, Scale]:
    """Scale of the gate and of the data; equal scales compare equal, however they are written."""
    mine = parse_transform(transform)
    column = int(adata.var_names.get_loc(marker))
    if "transform" not in adata.var:
        if transform == "none":
            return mine, mine
        raise ProcessingStateError(
            f"Gate {gate.name!r} is in {transform}, but adata.var has no column 'transform', so "
            "the units of the data are unknown. Use read_fcs and the preprocessing, or write that "
            "column ('none' for raw values)."
        )
    _require_same_compensation(adata, gate, marker, column)
    return mine, parse_transform(str(adata.var["transform"].iloc[column]))


def _require_same_compensation(adata: AnnData, gate: PolygonGate, marker: str, column: int) -> None:
    """Refuse fluorescence whose compensation is not the gate's; scatter has none."""
    if "compensated" not in adata.var or "kind" not in adata.var:
        return
    if str(adata.var["kind"].iloc[column]) != "fluorescence":
        return
    compensated = bool(adata.var["compensated"].iloc[column])
    if compensated != (gate.compensation == "spillover"):
        found, wanted = (
            ("compensated", "not compensated")
            if compensated
            else ("not compensated", "compensated")
        )
        raise ProcessingStateError(
            f"Gate {gate.name!r} was drawn on {wanted} values, but marker {marker!r} is {found}. "
            + (
                "Apply preprocessing.Compensation first."
                if not compensated
                else "Give the values before compensation."
            )
        )


def plane_of(adata: AnnData, x: str, y: str) -> tuple[np.ndarray, dict[str, Any]]:
    """Values of two markers as they are, and their state as PolygonGate's arguments."""
    missing = [m for m in (x, y) if m not in adata.var_names]
    if missing:
        raise MarkerMismatchError(
            f"Markers {listed(missing)} are not in the data; there is {listed(adata.var_names)}."
        )
    columns = [int(adata.var_names.get_loc(m)) for m in (x, y)]
    values = np.asarray(adata.X[:, columns], dtype=np.float64)
    texts = ["none", "none"]
    if "transform" in adata.var:
        texts = adata.var["transform"].iloc[columns].astype(str).tolist()
    compensated = "compensated" in adata.var and bool(adata.var["compensated"].iloc[columns].any())
    return values, {
        "transform_x": texts[0],
        "transform_y": texts[1],
        "compensation": "spillover" if compensated else "none",
    }
