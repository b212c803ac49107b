"""Targets of an explanation: log-odds or share of a class, a vertex or the size of a gate."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from explainers._maths.outputs import ClassOutput, Output, SizeOutput, VertexOutput
from fcm_estimators.classifier import ReluFormerClassifier
from fcm_estimators.exceptions import InvalidInputError, listed, require_key
from fcm_estimators.gating import PolygonGate
from fcm_estimators.inference import SetEstimator, fitted_net, soft_gates
from fcm_estimators.polygon_regressor import PolygonRegressor

__all__ = ["AnyChange", "GateSize", "LogOdds", "Probability", "Share", "Vertex"]


@dataclass(frozen=True)
class LogOdds:
    """Log-odds of a class, against the rest or against one other class.

    Parameters
    ----------
    label : label
        Class of the classifier.
    versus : label, optional
        Class to compare with; the target is the difference of the two logits. Default: all other
        classes together.

    Examples
    --------
    >>> from explainers import LogOdds
    >>> LogOdds("CD4 T", versus="CD8 T")
    LogOdds(label='CD4 T', versus='CD8 T')
    """

    label: Hashable
    versus: Hashable = None


@dataclass(frozen=True)
class Probability:
    """Probability of a class. Its gradient vanishes for cells with a probability near 0 or 1.

    This is the probability before calibration, on which predictions are based; ``predict_proba``
    is calibrated.

    Parameters
    ----------
    label : label
        Class of the classifier.

    Examples
    --------
    >>> from explainers import Probability
    >>> Probability("blast")
    Probability(label='blast')
    """

    label: Hashable


@dataclass(frozen=True)
class Share:
    """Share of the cells that the model calls a class, made smooth.

    Log-odds can move although no call changes. A cell counts by ``sigmoid(log-odds - threshold)``
    with the threshold of the model, so cells near the threshold count most. Where cells are hidden
    exactly (:meth:`InfluenceExplainer.hide`), the calls themselves are counted.

    Parameters
    ----------
    label : label
        Class of the classifier.

    Examples
    --------
    >>> from explainers import Share
    >>> Share("blast")
    Share(label='blast')
    """

    label: Hashable


@dataclass(frozen=True)
class AnyChange:
    """Any change of any output: root mean square over targets and classes, never negative.

    Parameters
    ----------
    n_probes : int, default 64
        Random directions in the space of the outputs; each costs as much as one scalar target.
        Fewer are less exact: on one marrow the rank correlation with the changes of hidden groups
        was 0.98 with 64 and 0.92 with 16.
    random_state : int, default 0

    Examples
    --------
    >>> from explainers import AnyChange
    >>> AnyChange(n_probes=4).n_probes
    4
    """

    n_probes: int = 64
    random_state: int = 0


@dataclass(frozen=True)
class Vertex:
    """One coordinate of one vertex of a gate's polygon.

    The coordinate is that of the net, before vertices at the end of an axis are moved beyond it.

    Parameters
    ----------
    gate : str
        Gate of a PolygonRegressor that has a polygon.
    number : int
        Number of the vertex, as in ``predict``.
    axis : {"x", "y"}
        Coordinate, in the units of the marker.

    Examples
    --------
    >>> from explainers import Vertex
    >>> Vertex("CD19", 3, "x")
    Vertex(gate='CD19', number=3, axis='x')
    """

    gate: str
    number: int
    axis: Literal["x", "y"]


@dataclass(frozen=True)
class GateSize:
    """Soft number of the cells in a gate and its parents.

    Parameters
    ----------
    gate : str
        Gate of a PolygonRegressor; it may be boolean.

    Examples
    --------
    >>> from explainers import GateSize
    >>> GateSize("CD19")
    GateSize(gate='CD19')
    """

    gate: str


ClassTarget = LogOdds | Probability | Share
GateTarget = Vertex | GateSize
Target = ClassTarget | GateTarget


def output_of(estimator: SetEstimator, target: Any) -> Output:
    """The function of a net's outputs that a target describes.

    Parameters
    ----------
    estimator : ReluFormerClassifier or PolygonRegressor
    target : Target, label or None
        A label means its log-odds, None the log-odds of the positive class.

    Raises
    ------
    InvalidInputError, MissingKeyError
        The class, gate, vertex or axis does not exist, or the estimator does not have such a
        target. The message lists the alternatives.
    """
    if isinstance(estimator, ReluFormerClassifier):
        if isinstance(target, GateTarget):
            raise InvalidInputError(
                f"{target} is about a gate, but a {type(estimator).__name__} has classes: "
                f"{listed(estimator.classes_)}. Name one as target."
            )
        return _of_class(estimator, target)
    if not isinstance(estimator, PolygonRegressor) or not isinstance(target, GateTarget):
        gates = listed(getattr(estimator, "gates_", []))
        raise InvalidInputError(
            f"target={target!r}: a {type(estimator).__name__} has gates and no classes. Use "
            f"Vertex(gate, number, axis) or GateSize(gate); gates with a polygon are {gates}."
        )
    require_key(target.gate, estimator.tree_.gates, "the gate")
    return (
        _of_size(estimator, target)
        if isinstance(target, GateSize)
        else _of_vertex(estimator, target)
    )


def _of_class(estimator: ReluFormerClassifier, target: Any) -> ClassOutput:
    classes = estimator.classes_
    if not isinstance(target, ClassTarget):
        label = estimator.pos_label_ if target is None else target
        if label is None:
            raise InvalidInputError(
                f"The model has no positive class; name one as target: {listed(classes)}."
            )
        target = LogOdds(label)
    versus = target.versus if isinstance(target, LogOdds) else None
    for what, label in (("target", target.label), ("versus", versus)):
        if label is not None and label not in classes:
            raise InvalidInputError(f"{what}={label!r} is not among the classes {listed(classes)}.")
    if versus is not None and versus == target.label:
        raise InvalidInputError(f"target and versus are both {versus!r}; name two classes.")
    column = {label: i for i, label in enumerate(classes.tolist())}
    if isinstance(target, Share):
        threshold = estimator.threshold_ or 0.0
        if estimator.pos_label_ is not None and target.label != estimator.pos_label_:
            threshold = -threshold
        name = f"share called {target.label}"
        return ClassOutput(column[target.label], None, "share", name, threshold)
    if isinstance(target, Probability):
        return ClassOutput(column[target.label], None, "probability", f"P({target.label})")
    negative = None if versus is None else column[versus]
    against = "the rest" if versus is None else str(versus)
    name = f"log-odds of {target.label} against {against}"
    return ClassOutput(column[target.label], negative, "log_odds", name)


def _of_size(estimator: PolygonRegressor, target: GateSize) -> SizeOutput:
    place = list(estimator.tree_.gates).index(target.gate)
    return SizeOutput(soft_gates(estimator.tree_), place, f"size of {target.gate}")


def _of_vertex(estimator: PolygonRegressor, target: Vertex) -> VertexOutput:
    gate, number = target.gate, target.number
    polygon = estimator.tree_[gate]
    if not isinstance(polygon, PolygonGate):
        raise InvalidInputError(
            f"Gate {gate!r} combines others and has no vertices. Gates with a polygon are "
            f"{listed(estimator.gates_)}."
        )
    n_vertices = fitted_net(estimator).get_buffer("gates.log_radius").shape[1]
    if not isinstance(number, (int, np.integer)) or not 0 <= number < n_vertices:
        raise InvalidInputError(
            f"Vertex {number!r}: the polygons have the vertices 0 to {n_vertices - 1}."
        )
    if target.axis not in ("x", "y"):
        raise InvalidInputError(f"axis={target.axis!r} is neither 'x' nor 'y'.")
    marker = polygon.x if target.axis == "x" else polygon.y
    return VertexOutput(
        estimator.gates_.index(gate),
        int(number),
        "xy".index(target.axis),
        f"{marker} of vertex {number} of {gate}",
    )
