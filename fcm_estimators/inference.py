"""Access to the net of a fitted model, for explainers and other tools.

:func:`read_samples` reads samples in the same way as the model. For results, and for stores of any
size, use :func:`open_data` and :func:`read_cells`. :func:`stream` sends the cells of a sample
through the net. ``untrained_twin`` of an estimator and :func:`with_net` make controls.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from fcm_estimators._base.estimator import SetEstimator
from fcm_estimators._base.reading import fitted_net, layered_net, read_cells
from fcm_estimators._base.reading import read_to_predict as read_samples
from fcm_estimators._base.running import net_for, with_net
from fcm_estimators._base.running import stream_through as stream
from fcm_estimators._cells.results import Writable, require_writable, run_record
from fcm_estimators._cells.results import opened as open_data
from fcm_estimators._cells.rows import FileRows, SampleCells, by_block, cells_in_memory
from fcm_estimators._cells.samples import CellData, PerCell, Samples, model_names, read_labels
from fcm_estimators._cells.store import CellStore
from fcm_estimators._checks import as_flags, marker_positions
from fcm_estimators._fitting.gate_targets import soft_gates
from fcm_estimators._fitting.threads import own_threads

__all__ = [
    "CellData",
    "CellStore",
    "FileRows",
    "PerCell",
    "SampleCells",
    "Samples",
    "SetEstimator",
    "Writable",
    "as_flags",
    "by_block",
    "cells_in_memory",
    "fitted_net",
    "layered_net",
    "marker_columns",
    "net_for",
    "open_data",
    "own_threads",
    "read_cells",
    "read_labels",
    "read_samples",
    "require_writable",
    "run_record",
    "soft_gates",
    "stream",
    "with_net",
]


def marker_columns(estimator: SetEstimator, var_names: Iterable[object]) -> np.ndarray:
    """Column in some data of each marker of a fitted model.

    Parameters
    ----------
    estimator : ReluFormerClassifier or PolygonRegressor
    var_names : iterable of str
        Names of the columns. The ``marker_aliases`` of the model apply.

    Returns
    -------
    ndarray of int of shape (M,)

    Raises
    ------
    MarkerMismatchError
        A marker is missing.
    """
    return marker_positions(estimator.markers_, model_names(var_names, estimator.marker_aliases))
