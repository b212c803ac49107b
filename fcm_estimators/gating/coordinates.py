"""Where cells lie on the axes of a gate: channels, units and scales."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData

from fcm_estimators._checks import listed, rows_by_sample
from fcm_estimators._types import Entries
from fcm_estimators.exceptions import (
    InvalidInputError,
    MarkerMismatchError,
    ProcessingStateError,
)
from fcm_estimators.gating._kinds import DrawnGate
from fcm_estimators.gating.gates import State, axis_states
from fcm_estimators.gating.ratios import ratio_of
from fcm_estimators.io.record import UNS_KEY, get_keywords, get_spillover
from fcm_estimators.preprocessing import Compensation, Scale, parse_transform
from fcm_estimators.preprocessing.exchange_scales import Seconds

# Compensation checks a matrix when it is fitted, which needs no cells.
_NO_CELLS = AnnData(np.zeros((0, 1), dtype=np.float32))


def column_of(adata: AnnData, marker: str) -> int | None:
    """Column of a marker, or of the only channel ($PnN) of that name; None without either.

    FlowJo writes "_" for "/" in the names of channels, so "FITC_GFP-A" is also the channel
    "FITC/GFP-A", if there is no other.
    """
    if marker in adata.var_names:
        return int(adata.var_names.get_loc(marker))
    if "channel" not in adata.var:
        return None
    channels = adata.var["channel"].astype(str)
    found = np.flatnonzero(channels.to_numpy() == marker)
    if not len(found):
        found = np.flatnonzero(channels.str.replace("/", "_").to_numpy() == marker)
    return int(found[0]) if len(found) == 1 else None


def absent_markers(adata: AnnData, marker: str) -> list[str]:
    """What the data lack of an axis: nothing, its marker, or channels of its ratio."""
    if column_of(adata, marker) is not None:
        return []
    ratio = ratio_of(marker, lambda name: column_of(adata, name) is not None)
    names = [marker] if ratio is None else [ratio.x, ratio.y]
    return [name for name in names if column_of(adata, name) is None]


def on_data(adata: AnnData, marker: str) -> str:
    """Name of an axis by the markers of the data; what they lack keeps its name."""
    column = column_of(adata, marker)
    if column is not None:
        return str(adata.var_names[column])
    ratio = ratio_of(marker, lambda name: column_of(adata, name) is not None)
    if ratio is None:
        return marker
    return str(ratio._replace(x=on_data(adata, ratio.x), y=on_data(adata, ratio.y)))


def is_time(name: str) -> bool:
    """Whether ``$TIMESTEP`` is the unit of a channel, which programs tell by its name."""
    return name.strip().lower() == "time"


def time_steps(adata: AnnData) -> dict[str, float]:
    """Seconds per unit of Time of each sample; 1 if Time is in seconds or the file has no step.

    Raises
    ------
    ProcessingStateError
        The data have no record of their files, or a ``$TIMESTEP`` is not a positive number.
    """
    if UNS_KEY not in adata.uns:
        raise ProcessingStateError(
            'Time of the gates is in seconds, but adata.uns has no "fcs" record, so $TIMESTEP is '
            "unknown. Read the data with read_fcs."
        )
    samples = list(rows_by_sample(adata, "sample")) if "sample" in adata.obs else []
    samples = samples or [str(name) for name in adata.uns[UNS_KEY]["sample"]]
    if adata.uns[UNS_KEY].get("time_scaled", False):
        return dict.fromkeys(samples, 1.0)
    steps = {}
    for sample in samples:
        text = get_keywords(adata, sample).get("TIMESTEP", "").strip() or "1"
        try:
            steps[sample] = float(text.replace(",", "."))
        except ValueError:
            steps[sample] = float("nan")
        if not steps[sample] > 0:
            raise ProcessingStateError(
                f"Time of the gates is in seconds, but $TIMESTEP of sample {sample!r} is {text!r}; "
                "expected a positive number."
            )
    return steps


def data_values(
    adata: AnnData, gate: DrawnGate, marker: str, transform: str, values: np.ndarray
) -> np.ndarray:
    """Convert values of one axis from the units of a gate to those of the data.

    Raises
    ------
    ProcessingStateError
        Data and gate differ in compensation, or the gate has a transform and the data do not
        record theirs, or Time is in seconds and the samples differ in ``$TIMESTEP``.
    """
    of_gate, of_data = _scales(adata, gate, marker, transform)
    if of_gate == of_data:
        return values
    raw = of_gate.inverse(values)
    if isinstance(of_gate, Seconds):
        steps = set(time_steps(adata).values())
        if len(steps) > 1:
            raise ProcessingStateError(
                f"Gate {gate.name!r} is in seconds, and the samples differ in $TIMESTEP. Use one "
                "sample at a time."
            )
        raw = raw / steps.pop()
    return of_data.transform(raw)


def require_column(adata: AnnData, marker: str) -> int:
    """Column of a marker; MarkerMismatchError if there is none."""
    column = column_of(adata, marker)
    if column is None:
        raise MarkerMismatchError(f"Marker {marker!r} is not in the data.")
    return column


def require_transforms(adata: AnnData, gate: DrawnGate, transform: str) -> None:
    """Raise ProcessingStateError if the gate has a transform and the data record none."""
    if "transform" not in adata.var and transform != "none":
        raise ProcessingStateError(
            f"Gate {gate.name!r} is in {transform}, but adata.var has no column 'transform', so "
            "the units of the data are unknown. Use read_fcs and the preprocessing, or write that "
            "column ('none' for raw values)."
        )


def _scales(adata: AnnData, gate: DrawnGate, marker: str, transform: str) -> tuple[Scale, Scale]:
    """Scale of the gate and scale of the data; they compare by value, not by their text."""
    of_gate = parse_transform(transform)
    column = require_column(adata, marker)
    require_transforms(adata, gate, transform)
    if "transform" not in adata.var:
        return of_gate, of_gate
    state = axis_states(gate.compensation, len(gate.markers))[gate.markers.index(marker)]
    _require_same_compensation(adata, gate, marker, column, state)
    return of_gate, parse_transform(str(adata.var["transform"].iloc[column]))


def _require_same_compensation(
    adata: AnnData, gate: DrawnGate, marker: str, column: int, state: State
) -> None:
    """Raise if a fluorescence marker and the gate differ in compensation; scatter has none."""
    if "compensated" not in adata.var or "kind" not in adata.var:
        return
    if str(adata.var["kind"].iloc[column]) != "fluorescence":
        return
    compensated = bool(adata.var["compensated"].iloc[column])
    if state == "fcs" and not compensated and matrices_of_files(adata) == {}:
        return
    if compensated != (state != "none"):
        raise other_compensation(gate, marker, compensated)


def other_compensation(gate: DrawnGate, marker: str, compensated: bool) -> ProcessingStateError:
    """Error for a gate on values that are compensated where the data are not, or the reverse."""
    found, wanted = (
        ("compensated", "not compensated") if compensated else ("not compensated", "compensated")
    )
    return ProcessingStateError(
        f"Gate {gate.name!r} was drawn on {wanted} values, but marker {marker!r} is {found}. "
        + (
            "Apply preprocessing.Compensation first."
            if not compensated
            else 'Use the values before compensation, or keep them in layers["raw"].'
        )
    )


def matrices_of_files(adata: AnnData) -> dict[str, pd.DataFrame | None] | None:
    """Spillover of the file of each sample; empty if no file has one, None without a record."""
    if UNS_KEY not in adata.uns or "sample" not in adata.obs:
        return None
    found = {s: get_spillover(adata, s) for s in rows_by_sample(adata, "sample")}
    return found if any(matrix is not None for matrix in found.values()) else {}


def plane_of(adata: AnnData, x: str, y: str) -> tuple[np.ndarray, Entries]:
    """Values of two markers, shape (N, 2), and their state as arguments of PolygonGate."""
    missing = [m for m in (x, y) if column_of(adata, m) is None]
    if missing:
        raise MarkerMismatchError(
            f"Markers {listed(missing)} are not in the data; there is {listed(adata.var_names)}."
        )
    columns = [require_column(adata, m) for m in (x, y)]
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


def same_matrix(one: pd.DataFrame, other: pd.DataFrame) -> bool:
    """Whether two matrices compensate alike; channels that only one has must not spill."""
    names = list(dict.fromkeys([*map(plain_name, one.columns), *map(plain_name, other.columns)]))
    grown = []
    for matrix in (one, other):
        labels = [plain_name(name) for name in matrix.columns]
        square = pd.DataFrame(np.eye(len(names)), index=names, columns=names)
        square.loc[labels, labels] = matrix.loc[matrix.columns].to_numpy(dtype=np.float64)
        grown.append(square.to_numpy())
    return bool(np.allclose(grown[0], grown[1], rtol=0, atol=1e-6))


def plain_name(name: object) -> str:
    """Name of a channel as FlowJo spells it, with "_" for "/"."""
    return str(name).replace("/", "_")


def checked_matrix(matrix: pd.DataFrame) -> pd.DataFrame:
    """Matrix of a tree with its rows in the order of its columns.

    Raises
    ------
    InvalidInputError
        It is not a square, labelled, invertible DataFrame of finite numbers.
    """
    try:
        checked = Compensation(spillover=matrix).fit(_NO_CELLS).spillover_
    except InvalidInputError as error:
        raise InvalidInputError(f"The matrix of the gates: {error}") from error
    return matrix if checked is None else checked
