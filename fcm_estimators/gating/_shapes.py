"""Rectangles and ellipsoids in any number of markers, which other software draws."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.gating.gates import ROOT, States, require_gate, states_of


@dataclass(frozen=True, eq=False)
class RectangleGate:
    """Range, rectangle or box; lower limits are inside, upper limits are outside.

    Parameters
    ----------
    name : str
    markers : sequence of D str
        One for a range, two for a rectangle, more for a box.
    low, high : sequence of D numbers
        Limits in the units of the transforms. Use -inf or inf for an open side.
    parent : str, default ""
    transforms : sequence of D str, optional
        Scale of each axis, as in ``adata.var["transform"]``. Default: "none".
    compensation : {"none", "spillover", "fcs"} or tuple of these, default "none"
        As in :class:`PolygonGate`.

    Raises
    ------
    InvalidInputError
        Lengths differ, a marker occurs twice, a lower limit is not below its upper limit, a limit
        is NaN, or a scale is unknown.

    References
    ----------
    Spidlen et al., Gating-ML 2.0, Cytometry A 87A, 683-687 (2015): which limits
    are inside.

    Examples
    --------
    >>> from fcm_estimators.gating import RectangleGate
    >>> RectangleGate("bright", ("CD19",), (0.5,), (float("inf"),)).contains([[0.5], [0.4]])
    array([ True, False])
    """

    name: str
    markers: tuple[str, ...]
    low: np.ndarray
    high: np.ndarray
    parent: str = ROOT
    transforms: tuple[str, ...] = ()
    compensation: States = "none"

    def __post_init__(self) -> None:
        _set_axes(self)
        low, high = (np.array(v, dtype=np.float64) for v in (self.low, self.high))
        if low.shape != (len(self.markers),) or high.shape != low.shape:
            raise InvalidInputError(
                f"Gate {self.name!r}: {len(self.markers)} marker(s), but limits of shapes "
                f"{low.shape} and {high.shape}; expected one lower and one upper limit per marker."
            )
        if not (low < high).all():
            raise InvalidInputError(
                f"Gate {self.name!r}: lower limits {low.tolist()} must be below the upper limits "
                f"{high.tolist()}."
            )
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)

    def contains(self, points: ArrayLike) -> np.ndarray:
        """Return whether points, shape (N, D), lie inside, as bool of shape (N,)."""
        values = _checked_points(points, len(self.markers))
        return np.asarray(np.all((values >= self.low) & (values < self.high), axis=1))


@dataclass(frozen=True, eq=False)
class EllipsoidGate:
    """Cells within a Mahalanobis distance of a centre; an ellipse in two markers.

    Parameters
    ----------
    name : str
    markers : sequence of D str
        Two or more.
    centre : array-like of shape (D,)
        In the units of the transforms.
    covariance : array-like of shape (D, D)
        Symmetric, positive definite.
    distance_square : float, default 1.0
        Largest squared Mahalanobis distance.
    parent : str, default ""
    transforms : sequence of D str, optional
        Default: "none".
    compensation : {"none", "spillover", "fcs"} or tuple of these, default "none"
        As in :class:`PolygonGate`.

    Raises
    ------
    InvalidInputError
        Shapes do not fit, the covariance is not symmetric and positive definite, the centre is not
        finite, ``distance_square`` is not positive, or a scale is unknown.

    Examples
    --------
    >>> from fcm_estimators.gating import EllipsoidGate
    >>> gate = EllipsoidGate("round", ("CD19", "CD10"), (0, 0), [[4, 0], [0, 1]])
    >>> gate.contains([[1.9, 0], [0, 1.1]])
    array([ True, False])
    """

    name: str
    markers: tuple[str, ...]
    centre: np.ndarray
    covariance: np.ndarray
    distance_square: float = 1.0
    parent: str = ROOT
    transforms: tuple[str, ...] = ()
    compensation: States = "none"

    def __post_init__(self) -> None:
        _set_axes(self)
        n = len(self.markers)
        centre = np.array(self.centre, dtype=np.float64)
        covariance = np.array(self.covariance, dtype=np.float64)
        if n < 2 or centre.shape != (n,) or covariance.shape != (n, n):
            raise InvalidInputError(
                f"Gate {self.name!r}: {n} marker(s), a centre of shape {centre.shape} and a "
                f"covariance of shape {covariance.shape}; expected D >= 2, (D,) and (D, D)."
            )
        symmetric = np.isfinite(covariance).all() and np.allclose(covariance, covariance.T)
        if not symmetric or np.linalg.eigvalsh(covariance).min() <= 0:
            raise InvalidInputError(
                f"Gate {self.name!r}: the covariance {covariance.tolist()} is not symmetric and "
                "positive definite."
            )
        if not np.isfinite(centre).all() or not self.distance_square > 0:
            raise InvalidInputError(
                f"Gate {self.name!r}: centre {centre.tolist()} must be finite and distance_square "
                f"{self.distance_square} positive."
            )
        object.__setattr__(self, "centre", centre)
        object.__setattr__(self, "covariance", covariance)
        object.__setattr__(self, "distance_square", float(self.distance_square))

    def contains(self, points: ArrayLike) -> np.ndarray:
        """Return whether points, shape (N, D), lie inside, as bool of shape (N,)."""
        centred = _checked_points(points, len(self.markers)) - self.centre
        distance = np.einsum("ni,ij,nj->n", centred, np.linalg.inv(self.covariance), centred)
        return np.asarray(distance <= self.distance_square)


def _set_axes(gate: RectangleGate | EllipsoidGate) -> None:
    """Check and store the markers and transforms of the axes."""
    if isinstance(gate.markers, str) or isinstance(gate.transforms, str):
        raise InvalidInputError(f"Gate {gate.name!r}: markers and transforms must be sequences.")
    markers = tuple(gate.markers)
    transforms = tuple(gate.transforms) or ("none",) * len(markers)
    require_gate(gate.name, markers, transforms)
    compensation = states_of(gate.name, gate.compensation, len(markers))
    object.__setattr__(gate, "compensation", compensation)
    object.__setattr__(gate, "markers", markers)
    object.__setattr__(gate, "transforms", transforms)


def _checked_points(points: ArrayLike, n_axes: int) -> np.ndarray:
    values = np.asarray(points, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] != n_axes:
        raise InvalidInputError(f"points have shape {values.shape}; expected (N, {n_axes}).")
    return values
