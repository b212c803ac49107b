"""Coordinates of cells on the axes of a gate."""

from __future__ import annotations

import numpy as np
from anndata import AnnData

from fcm_estimators._checks import listed
from fcm_estimators._types import Entries
from fcm_estimators.exceptions import MarkerMismatchError, ProcessingStateError
from fcm_estimators.gating._kinds import DrawnGate
from fcm_estimators.io.record import UNS_KEY, get_spillover
from fcm_estimators.preprocessing import Scale, parse_transform


def column_of(adata: AnnData, marker: str) -> int | None:
    """Column of a marker, or of the only channel ($PnN) of that name; None without either."""
    if marker in adata.var_names:
        return int(adata.var_names.get_loc(marker))
    if "channel" in adata.var:
        found = np.flatnonzero(adata.var["channel"].astype(str).to_numpy() == marker)
        return int(found[0]) if len(found) == 1 else None
    return None


def coordinates_of(adata: AnnData, gate: DrawnGate, rows: np.ndarray) -> np.ndarray:
    """Coordinates of some cells in the units of a gate, float64 of shape (n, number of axes)."""
    return np.column_stack(
        [
            axis_values(adata, gate, marker, transform, rows)
            for marker, transform in zip(gate.markers, gate.transforms, strict=True)
        ]
    )


def axis_values(
    adata: AnnData, gate: DrawnGate, marker: str, transform: str, rows: np.ndarray
) -> np.ndarray:
    """Values of one marker of some cells in the units of a gate, float64 of shape (n,).

    Raises
    ------
    ProcessingStateError
        Data and gate differ in compensation, or the gate has a transform and the data do not
        record theirs.
    """
    column = _column(adata, marker)
    values = np.asarray(adata.X[rows, column], dtype=np.float64).ravel()
    of_gate, of_data = _scales(adata, gate, marker, transform)
    return values if of_gate == of_data else of_gate.transform(of_data.inverse(values))


def data_values(
    adata: AnnData, gate: DrawnGate, marker: str, transform: str, values: np.ndarray
) -> np.ndarray:
    """Convert values from the units of a gate to those of the data; undoes :func:`axis_values`."""
    of_gate, of_data = _scales(adata, gate, marker, transform)
    return values if of_gate == of_data else of_data.transform(of_gate.inverse(values))


def _column(adata: AnnData, marker: str) -> int:
    column = column_of(adata, marker)
    if column is None:
        raise MarkerMismatchError(f"Marker {marker!r} is not in the data.")
    return column


def _scales(adata: AnnData, gate: DrawnGate, marker: str, transform: str) -> tuple[Scale, Scale]:
    """Scale of the gate and scale of the data; they compare by value, not by their text."""
    of_gate = parse_transform(transform)
    column = _column(adata, marker)
    if "transform" not in adata.var:
        if transform == "none":
            return of_gate, of_gate
        raise ProcessingStateError(
            f"Gate {gate.name!r} is in {transform}, but adata.var has no column 'transform', so "
            "the units of the data are unknown. Use read_fcs and the preprocessing, or write that "
            "column ('none' for raw values)."
        )
    _require_same_compensation(adata, gate, marker, column)
    return of_gate, parse_transform(str(adata.var["transform"].iloc[column]))


def _require_same_compensation(adata: AnnData, gate: DrawnGate, marker: str, column: int) -> None:
    """Raise if a fluorescence marker and the gate differ in compensation; scatter has none."""
    if "compensated" not in adata.var or "kind" not in adata.var:
        return
    if str(adata.var["kind"].iloc[column]) != "fluorescence":
        return
    compensated = bool(adata.var["compensated"].iloc[column])
    if gate.compensation == "fcs" and not compensated and _files_have_no_matrix(adata):
        return
    if compensated != (gate.compensation != "none"):
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
                else "Use the values before compensation."
            )
        )


def _files_have_no_matrix(adata: AnnData) -> bool:
    """Whether the record says that no sample's FCS file has a spillover matrix."""
    if UNS_KEY not in adata.uns or "sample" not in adata.obs:
        return False
    return all(get_spillover(adata, str(s)) is None for s in adata.obs["sample"].unique())


def plane_of(adata: AnnData, x: str, y: str) -> tuple[np.ndarray, Entries]:
    """Values of two markers, shape (N, 2), and their state as arguments of PolygonGate."""
    missing = [m for m in (x, y) if column_of(adata, m) is None]
    if missing:
        raise MarkerMismatchError(
            f"Markers {listed(missing)} are not in the data; there is {listed(adata.var_names)}."
        )
    columns = [_column(adata, m) for m in (x, y)]
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
