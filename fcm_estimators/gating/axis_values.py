"""Values of cells on the axes of gates, compensated as each axis was."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable

import flowutils
import numpy as np
import pandas as pd
from anndata import AnnData

from fcm_estimators._checks import listed, rows_by_sample
from fcm_estimators.exceptions import InvalidInputError, ProcessingStateError
from fcm_estimators.gating._kinds import DrawnGate, Gate
from fcm_estimators.gating.coordinates import (
    checked_matrix,
    column_of,
    matrices_of_files,
    other_compensation,
    require_column,
    require_transforms,
    same_matrix,
    time_steps,
)
from fcm_estimators.gating.gates import BooleanGate, State, axis_states
from fcm_estimators.gating.ratios import ratio_of
from fcm_estimators.io.kinds import is_compensated
from fcm_estimators.io.record import (
    INSTRUMENT_KEY,
    UNS_KEY,
    amplifiers,
    recorded_matrix,
)
from fcm_estimators.preprocessing import parse_transform
from fcm_estimators.preprocessing.exchange_scales import Seconds
from fcm_estimators.preprocessing.scales import Identity

# An axis: marker, compensation, transform.
_Axis = tuple[str, State, str]


class AxisValues:
    """Coordinates of cells in the units of gates.

    Every axis gets the values on which it was drawn: raw ones, or ones compensated with the matrix
    of the gates or of the file. They are those of ``X`` if ``X`` has that state, else they are
    computed from raw values, in float64.

    Parameters
    ----------
    adata : AnnData
    gates : iterable of gates, optional
        Gates that will be asked for. Axes of several gates are computed once.
    spillover : DataFrame, optional
        Matrix of axes with the compensation "spillover". Default: that of each sample's file.
    """

    def __init__(
        self, adata: AnnData, gates: Iterable[Gate] = (), spillover: pd.DataFrame | None = None
    ) -> None:
        self.adata = adata
        self.spillover = None if spillover is None else checked_matrix(spillover)
        drawn = [gate for gate in gates if not isinstance(gate, BooleanGate)]
        self._uses = Counter(axis for gate in drawn for axis in axes_of(gate))
        self._columns: dict[_Axis, np.ndarray] = {}
        self._raw: dict[tuple[int, bool], np.ndarray] = {}
        self._amplifiers = amplifiers(adata)
        self._compensated: dict[State, tuple[list[int], np.ndarray]] = {}
        self._matrices: dict[State, dict[str, pd.DataFrame | None] | None] = {}
        self._detected: dict[State, set[int]] = {}
        self._agree: dict[State, bool] = {}

    def __call__(self, gate: DrawnGate, rows: np.ndarray) -> np.ndarray:
        """Coordinates of some cells, float64 of shape (n, number of axes).

        Raises
        ------
        ProcessingStateError
            Values with the compensation of an axis can be neither found nor computed, or the gate
            has a transform and the data do not record theirs.
        """
        return np.column_stack([self._axis(gate, axis, rows) for axis in axes_of(gate)])

    def _axis(self, gate: DrawnGate, axis: _Axis, rows: np.ndarray) -> np.ndarray:
        if axis in self._columns:
            return np.asarray(self._columns[axis][rows])
        if self._uses[axis] > 1:
            try:
                self._columns[axis] = self._computed(gate, axis, np.arange(self.adata.n_obs))
            except InvalidInputError:  # a cell outside of the parent may be off the scale
                self._uses[axis] = 0
            else:
                return np.asarray(self._columns[axis][rows])
        return self._computed(gate, axis, rows)

    def _computed(self, gate: DrawnGate, axis: _Axis, rows: np.ndarray) -> np.ndarray:
        marker, state, transform = axis
        require_transforms(self.adata, gate, transform)
        of_gate = parse_transform(transform)
        ratio = ratio_of(marker, lambda name: column_of(self.adata, name) is not None)
        if ratio is not None and column_of(self.adata, marker) is None:
            x, y = (self._linear(gate, name, state, rows) for name in (ratio.x, ratio.y))
            values = ratio.of(x, y)
            known = np.isfinite(values)
            values[known] = of_gate.transform(values[known])
            return values
        column = require_column(self.adata, marker)
        if "transform" not in self.adata.var:
            return self._as_stored(column, rows)
        of_data = parse_transform(str(self.adata.var["transform"].iloc[column]))
        if of_gate == of_data and self._has_state(gate, marker, column, state):
            return self._as_stored(column, rows)
        linear = self._linear(gate, marker, state, rows)
        if isinstance(of_gate, Seconds):
            return self._in_seconds(linear, rows)
        return linear if isinstance(of_gate, Identity) else of_gate.transform(linear)

    def _linear(self, gate: DrawnGate, marker: str, state: State, rows: np.ndarray) -> np.ndarray:
        """Values of one marker on the linear scale, with the compensation of the axis."""
        column = require_column(self.adata, marker)
        if self._has_state(gate, marker, column, state):
            of_data = parse_transform(str(self.adata.var["transform"].iloc[column]))
            stored = self._as_stored(column, rows)
            return stored if isinstance(of_data, Identity) else of_data.inverse(stored)
        if state != "none" and column in self._detectors(state):
            return np.asarray(self._compensate(gate, marker, state, column)[rows])
        raw = self._raw_column(column)
        if raw is None or (state != "none" and not self._matrix(state)):
            raise other_compensation(gate, marker, self._is_compensated(column))
        return np.asarray(raw[rows])

    # States

    def _is_compensated(self, column: int) -> bool:
        var = self.adata.var
        return "compensated" in var and bool(var["compensated"].iloc[column])

    def _is_fluorescence(self, column: int) -> bool:
        var = self.adata.var
        return "kind" in var and str(var["kind"].iloc[column]) == "fluorescence"

    def _has_state(self, gate: DrawnGate, marker: str, column: int, state: State) -> bool:
        """Whether X has the compensation of an axis; a warning if that cannot be told."""
        if "compensated" not in self.adata.var:
            return True
        compensated = self._is_compensated(column)
        matrices = self._matrix(state)
        if state == "none" or (matrices and column not in self._detectors(state)):
            return not compensated
        if compensated:
            return self._same_as_recorded(gate, marker, state)
        if matrices:
            return False
        # There is no matrix, which "fcs" allows, or no record of one.
        return (state == "fcs" and matrices == {}) or not self._is_fluorescence(column)

    def _same_as_recorded(self, gate: DrawnGate, marker: str, state: State) -> bool:
        if state not in self._agree:
            self._agree[state] = self._compared(gate, marker, state)
        return self._agree[state]

    def _compared(self, gate: DrawnGate, marker: str, state: State) -> bool:
        """Whether X is recorded as compensated with the matrices of a state."""
        unknown = False
        for sample, matrix in (self._matrix(state) or {}).items():
            recorded = recorded_matrix(self.adata, sample)
            unknown |= recorded is None
            if recorded is not None and matrix is not None and not same_matrix(recorded, matrix):
                return False
        if unknown and state == "spillover" and self.spillover is not None:
            if self._raw_available(state):
                return False
            warnings.warn(
                f"Gate {gate.name!r} was drawn on values compensated with a matrix of its own, and "
                f"it is not recorded with which matrix {marker!r} was compensated. It is taken to "
                "be the same. Apply the gates to raw data to be sure.",
                UserWarning,
                stacklevel=2,
            )
        return True

    # Matrices

    def _matrix(self, state: State) -> dict[str, pd.DataFrame | None] | None:
        """Matrix of each sample for a state; empty if there is none, None if that is unknown."""
        if state not in self._matrices:
            if state == "spillover" and self.spillover is not None:
                self._matrices[state] = dict.fromkeys(self._samples(), self.spillover)
            else:
                self._matrices[state] = matrices_of_files(self.adata)
        return self._matrices[state]

    def _detectors(self, state: State) -> set[int]:
        """Columns of the detectors of the matrices of a state."""
        if state not in self._detected:
            matrices = [m for m in (self._matrix(state) or {}).values() if m is not None]
            names = {str(name) for matrix in matrices for name in matrix.columns}
            columns = {column_of(self.adata, name) for name in names}
            self._detected[state] = {column for column in columns if column is not None}
        return self._detected[state]

    def _raw_available(self, state: State) -> bool:
        columns = self._detectors(state)
        return bool(columns) and all(self._raw_column(column) is not None for column in columns)

    def _compensate(self, gate: DrawnGate, marker: str, state: State, column: int) -> np.ndarray:
        """Column of a detector, compensated from raw values with the matrix of a state."""
        if state not in self._compensated:
            columns = sorted(self._detectors(state))
            values = np.empty((self.adata.n_obs, len(columns)))
            matrices = self._matrix(state) or {}
            for sample, rows in self._samples().items():
                values[rows] = self._compensated_sample(
                    gate, marker, matrices.get(sample), columns, rows, state
                )
            self._compensated[state] = columns, values
        columns, values = self._compensated[state]
        return values[:, columns.index(column)]

    def _compensated_sample(
        self,
        gate: DrawnGate,
        marker: str,
        matrix: pd.DataFrame | None,
        columns: list[int],
        rows: np.ndarray,
        state: State,
    ) -> np.ndarray:
        raw = self._raw_block(gate, marker, columns, rows)
        if matrix is None:
            if state == "spillover":
                raise other_compensation(gate, marker, compensated=False)
            return raw  # "fcs" of a file without matrix: as it is
        matrix = checked_matrix(matrix)
        places = [column_of(self.adata, str(name)) for name in matrix.columns]
        if absent := [n for n, place in zip(matrix.columns, places, strict=True) if place is None]:
            raise ProcessingStateError(
                f"Gate {gate.name!r} is on compensated values of {marker!r}, but the data lack the "
                f"channels {listed(absent)} of its matrix. Apply gates before removing channels."
            )
        order = [columns.index(place) for place in places if place is not None]
        out = raw.copy()
        out[:, order] = flowutils.compensate.compensate(raw[:, order], matrix.to_numpy())
        return out

    def _raw_block(
        self, gate: DrawnGate, marker: str, columns: list[int], rows: np.ndarray
    ) -> np.ndarray:
        parts = [self._raw_column(column) for column in columns]
        lost = [self.adata.var_names[c] for c, p in zip(columns, parts, strict=True) if p is None]
        if lost:
            raise ProcessingStateError(
                f"Gate {gate.name!r} was drawn on values of {marker!r} compensated with another "
                f"matrix than the data, and the raw values of {listed(lost)} are not kept. Apply "
                'the gates to data as read_fcs returns them, or keep layers["raw"].'
            )
        return np.column_stack([part[rows] for part in parts if part is not None])

    # Values

    def _as_stored(self, column: int, rows: np.ndarray) -> np.ndarray:
        """Values of X; raw integers with the precision of the file."""
        if self._amplified(column) and not self._is_compensated(column):
            raw = self._raw_column(column, of_x=True)
            if raw is not None and str(self.adata.var["transform"].iloc[column]) == "none":
                return np.asarray(raw[rows])
        return np.asarray(self.adata.X[rows, column], dtype=np.float64).ravel()

    def _by_instrument(self, column: int) -> bool:
        """Whether even the values of the file are compensated."""
        var = self.adata.var
        channel = str(var["channel"].iloc[column] if "channel" in var else var.index[column])
        known = self.adata.uns.get(UNS_KEY, {}).get(INSTRUMENT_KEY, [])
        return is_compensated(channel) or channel in [str(name) for name in known]

    def _raw_column(self, column: int, *, of_x: bool = False) -> np.ndarray | None:
        """Linear values before compensation, float64 of shape (N,); None if they are lost.

        They are those of the layer "raw", or else of X; with ``of_x`` always of X.
        """
        key = (column, of_x)
        if key in self._raw:
            return self._raw[key]
        adata = self.adata
        if "raw" in adata.layers and not of_x:
            values = np.asarray(adata.layers["raw"][:, column], dtype=np.float64).ravel()
        elif self._is_compensated(column) and not self._by_instrument(column):
            return None
        else:
            transform = adata.var["transform"].iloc[column] if "transform" in adata.var else "none"
            values = np.asarray(adata.X[:, column], dtype=np.float64).ravel()
            if str(transform) != "none":
                return parse_transform(str(transform)).inverse(values)
        self._raw[key] = self._as_decoded(column, values)
        return self._raw[key]

    def _amplified(self, column: int) -> dict[str, tuple[float, float, float, float]]:
        """How the integers of a column were decoded, by sample; empty if they are the values."""
        if "channel" not in self.adata.var or "transform" not in self.adata.var:
            return {}
        channel = str(self.adata.var["channel"].iloc[column])
        return {row[0]: row[2:] for row in self._amplifiers if row[1] == channel}

    def _as_decoded(self, column: int, values: np.ndarray) -> np.ndarray:
        """Decode integers again in float64: gates are often drawn exactly at their values."""
        known = self._amplified(column)
        if not known:
            return values
        values = values.copy()
        for sample, rows in self._samples().items():
            if sample in known:
                values[rows] = _decoded(values[rows], *known[sample])
        return values

    def _samples(self) -> dict[str, np.ndarray]:
        return rows_by_sample(self.adata, "sample" if "sample" in self.adata.obs else None)

    def _in_seconds(self, ticks: np.ndarray, rows: np.ndarray) -> np.ndarray:
        steps = time_steps(self.adata)
        if "sample" not in self.adata.obs:
            return ticks * next(iter(steps.values()))
        samples = self.adata.obs["sample"].astype(str).to_numpy()[rows]
        return ticks * pd.Series(samples).map(steps).to_numpy(dtype=np.float64)


def axes_of(gate: DrawnGate) -> list[_Axis]:
    """Marker, compensation and transform of each axis."""
    states = axis_states(gate.compensation, len(gate.markers))
    return list(zip(gate.markers, states, gate.transforms, strict=True))


def _decoded(
    values: np.ndarray, decades: float, log_zero: float, top: float, gain: float
) -> np.ndarray:
    """Values that integers stand for, in float64 and in the order of operations of FlowIO."""
    with np.errstate(divide="ignore", invalid="ignore"):
        if decades > 0:
            stored = np.rint(np.log10(values * gain / log_zero) * top / decades)
            exact = 10 ** (decades * stored / top) * log_zero
        else:
            exact = np.rint(values * gain)
        exact = exact if gain == 1 else exact / gain
        same = np.abs(exact - values) <= np.spacing(np.abs(values).astype(np.float32))
    # Values that somebody changed are no integers of the file.
    return np.where(same, exact, values)
