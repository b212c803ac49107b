"""Read which preprocessing was applied to data, and repeat it on raw data."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from anndata import AnnData

from fcm_estimators._checks import listed
from fcm_estimators.exceptions import ProcessingStateError
from fcm_estimators.io.cells import copied
from fcm_estimators.preprocessing import _state
from fcm_estimators.preprocessing._compensation import Compensation
from fcm_estimators.preprocessing.scales import parse_transform

# Transform as text, and whether the marker is compensated.
MarkerState = tuple[str, bool]


def recorded_states(
    X: object, markers: list[str], aliases: Mapping[str, str] | None = None
) -> dict[str, MarkerState]:
    """Recorded transform and compensation of each marker; empty if nothing is recorded.

    Parameters
    ----------
    X : AnnData or anything else
    markers : list of str
        Names after ``aliases``. All must be in the data.
    aliases : mapping, optional
        Name in the data -> name in ``markers``.
    """
    if not isinstance(X, AnnData) or "transform" not in X.var:
        return {}
    names = [(aliases or {}).get(name, name) for name in X.var_names]
    transforms, flags = _state.recorded_transforms(X), _state.recorded_compensation(X)
    return {
        m: (str(transforms.iloc[names.index(m)]), bool(flags.iloc[names.index(m)])) for m in markers
    }


def described(state: MarkerState) -> str:
    """Describe the state of a marker in words."""
    return f"in transform {state[0]!r}, {'' if state[1] else 'not '}compensated"


def require_states(
    present: Mapping[str, MarkerState], wanted: Mapping[str, MarkerState], what: str
) -> None:
    """Raise ProcessingStateError if the recorded state differs from that in training."""
    for marker, state in wanted.items():
        if marker in present and present[marker] != state:
            raise ProcessingStateError(
                f"Marker {marker!r} is {described(present[marker])}, but {what} was trained on "
                f"values that were {described(state)}. Preprocess the data as in training, with "
                "model.prepare(raw)."
            )


def bring_to(adata: AnnData, states: Mapping[str, MarkerState], *, copy: bool = True) -> AnnData:
    """Preprocess raw data to the recorded state of other data.

    Parameters
    ----------
    adata : AnnData
        Raw or compensated data. Markers that are already in the wanted state do not change.
    states : mapping of marker to (transform, compensated)
    copy : bool, default True
        Change a copy; else ``adata`` itself, also if there is an error.

    Returns
    -------
    AnnData

    Raises
    ------
    InvalidInputError, MarkerMismatchError
        If ``adata`` is not a dense AnnData in memory, or a marker is missing.
    ProcessingStateError
        If the data have no record of the state or no spillover matrix, or a marker is transformed
        in another way, or compensated although it should not be.
    """
    _state.check_adata(adata)
    _state.require_markers(adata, list(states))
    present = recorded_states(adata, list(states))
    if states and not present:
        raise ProcessingStateError(
            "adata.var has no column 'transform', so it is unknown whether the values are raw. "
            "Read them with read_fcs, or add that column ('none' for raw values)."
        )
    todo = {m: s for m, s in states.items() if present[m] != s}
    spilled = [m for m, s in todo.items() if s[1] and not present[m][1]]
    wrong = [
        m
        for m in todo
        if present[m][0] != _state.UNTRANSFORMED or (present[m][1] and not states[m][1])
    ]
    if wrong:
        raise ProcessingStateError(
            f"{listed(wrong)} cannot be brought to the state of the training data: {wrong[0]!r} "
            f"is {described(present[wrong[0]])}, but should be {described(states[wrong[0]])}. "
            "Read the raw files again."
        )
    out = copied(adata) if copy else adata
    if spilled:
        Compensation().fit(out).transform_in_place(out)
        states_now = recorded_states(out, spilled)
        if left := [m for m in spilled if not states_now[m][1]]:
            raise ProcessingStateError(
                f"The spillover matrix of the data does not cover {left}, which were compensated "
                "in training. Compensate with a matrix that does: Compensation(spillover=...)."
            )
    new = {m: s[0] for m, s in todo.items() if s[0] != _state.UNTRANSFORMED}
    if new:
        scales = [parse_transform(text) for text in new.values()]

        def transform(values: np.ndarray) -> np.ndarray:
            for column, scale in zip(values.T, scales, strict=True):
                column[:] = scale.transform(column)
            return values

        _state.process(out, list(new), [(slice(None), transform)], transforms=new)
    return out
