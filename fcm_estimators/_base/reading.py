"""Reading a user's data: samples to fit, samples to predict, cells to annotate."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Hashable
from typing import Any, Protocol, cast

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from sklearn.utils.validation import validate_data

from fcm_estimators._base.clipping import clipped_values, warn_of_clipped
from fcm_estimators._base.running import net_for
from fcm_estimators._cells.rows import SampleCells, cells_in_memory, cells_in_store, sample_rows
from fcm_estimators._cells.samples import CellData, PerCell, Samples, Source, read_samples
from fcm_estimators._cells.store import CellStore
from fcm_estimators._cells.within import Within
from fcm_estimators._checks import listed
from fcm_estimators._fitting.net import PackedNet
from fcm_estimators.exceptions import InvalidInputError, MarkerMismatchError, NotFittedError
from fcm_estimators.io.kinds import kind_of_name
from fcm_estimators.nn.reluformer import ScaledModule, SetModule
from fcm_estimators.preprocessing.recorded import MarkerState, recorded_states, require_states

# Transformed values (logicle, arcsinh, scaled scatter) are below this number.
_LARGEST_TRANSFORMED = 1e4
_FEW_VALUES = 1e-3


class ReadsSamples(Protocol):
    """Parameters and fitted attributes that determine how an estimator reads data."""

    sample_key: str | int | None
    patient_key: str | int | None
    subset_key: str | None
    markers: list[str] | None
    marker_aliases: dict[str, str] | None
    layer: str | None
    markers_: list[str]
    preprocessing_: dict[str, MarkerState]
    within_: Within | None
    fitted_with_groups_: bool
    net_: PackedNet


class Fitted(Protocol):
    """A fitted estimator."""

    net_: PackedNet


def require_fitted(estimator: Fitted) -> None:
    """Raise NotFittedError before ``fit`` or ``load``."""
    if not hasattr(estimator, "net_"):
        raise NotFittedError(
            f"This {type(estimator).__name__} is not fitted yet. Call fit(...) or load(path) first."
        )


def fitted_net(estimator: Fitted) -> ScaledModule:
    """The trained net of a fitted estimator."""
    require_fitted(estimator)
    return cast(ScaledModule, estimator.net_.module_)


def layered_net(estimator: Fitted, what: str) -> SetModule:
    """The trained net of a fitted estimator, for what needs its layers.

    Parameters
    ----------
    estimator : fitted estimator
    what : str
        What needs the layers; the error begins with it.

    Raises
    ------
    InvalidInputError
        The model was fitted with ``module``, and its net is no SetModule.
    """
    net = fitted_net(estimator)
    if not isinstance(net, SetModule):
        raise InvalidInputError(
            f"{what} needs a net with the layers of a SetModule; this is {net.name}. Use "
            "GradientExplainer(..., mode='set')."
        )
    return net


def read_to_fit(
    estimator: Any, X: CellData, groups: PerCell, *, continued: bool, label_key: Hashable = None
) -> Samples:
    """Read the samples for ``fit``, and set the attributes that describe the features.

    Parameters
    ----------
    estimator : ReadsSamples
    X, groups
        As for ``fit``.
    continued : bool
        Whether training continues from a fitted net. The data then need the same markers in the
        same state.
    label_key : optional
        Column of the labels. If they were made inside a gate, only its cells are read.
    """
    within = None if label_key is None else Within.recorded(X, label_key)
    if continued and within != estimator.within_:
        was, now = (w.gate if w else "none" for w in (estimator.within_, within))
        raise InvalidInputError(
            f"warm_start continues a training inside the gate {was!r}, but the labels were made "
            f"inside the gate {now!r}. Label the data inside the same gate, or train a new model."
        )
    estimator.within_ = within
    named = _has_names(X)
    if not named:
        X = validate_data(estimator, X, dtype=[np.float64, np.float32], ensure_all_finite=False)
    markers = estimator.markers_ if continued else estimator.markers
    samples = read_samples(X, _source(estimator), markers=markers, groups=groups)
    _warn_of_unused_samples(X, estimator.sample_key, groups)
    _warn_of_raw_values(samples)
    estimator.markers_ = list(samples.markers)
    if continued:
        require_state(estimator, X)
    else:
        estimator.preprocessing_ = _recorded(estimator, X)
    estimator.fitted_with_groups_ = groups is not None
    if named:
        estimator.n_features_in_ = len(estimator.markers_)
        estimator.feature_names_in_ = np.array(estimator.markers_, dtype=object)
    return samples


def read_to_predict(estimator: ReadsSamples, X: CellData, groups: PerCell = None) -> Samples:
    """Read the samples for prediction. Markers are matched by name.

    Raises
    ------
    NotFittedError
        The estimator is not fitted.
    MarkerMismatchError, MissingKeyError
        A marker or a column is missing.
    InvalidInputError
        A value is not finite, or the data are invalid in another way.
    ProcessingStateError
        The preprocessing differs from that of the training data.
    """
    require_fitted(estimator)
    if estimator.fitted_with_groups_ and groups is None:
        raise InvalidInputError(
            "This model was fitted with groups=..., so prediction needs the sample id of each "
            "cell. Pass groups=..., or fit with sample_key=... to read the ids from a column."
        )
    if not _has_names(X):
        X = validate_data(
            estimator, X, dtype=[np.float64, np.float32], ensure_all_finite=False, reset=False
        )
    # Only the split of the training data needs patients; new data may lack them.
    source = dataclasses.replace(_source(estimator), patient_key=None)
    try:
        samples = read_samples(X, source, markers=estimator.markers_, groups=groups)
    except MarkerMismatchError as error:
        if getattr(estimator, "missing_markers", "error") == "error":
            raise
        raise MarkerMismatchError(
            f"{error} If the data lack a marker, explain them with the model without it: "
            "clf.without([...])."
        ) from error
    require_state(estimator, X)
    _warn_of_clipped(estimator, cells_in_memory(samples, torch.device("cpu")))
    return samples


def _warn_of_clipped(estimator: ReadsSamples, cells: list[SampleCells]) -> None:
    found = clipped_values(fitted_net(estimator), estimator.markers_, cells)
    warn_of_clipped(found, len(cells), stacklevel=5)


def read_cells(estimator: ReadsSamples, data: AnnData | CellStore) -> list[SampleCells]:
    """Read and check the cells of each sample that the fitted net is to process.

    Raises
    ------
    As :func:`read_to_predict`.
    """
    net = fitted_net(estimator)
    if isinstance(data, CellStore):
        return _read_store(estimator, data)
    return cells_in_memory(read_to_predict(estimator, data), net.input_mean.device)


def _read_store(estimator: ReadsSamples, store: CellStore) -> list[SampleCells]:
    if estimator.fitted_with_groups_:
        raise InvalidInputError(
            "This model was fitted with groups=..., which a store does not hold. Fit with "
            "sample_key=... to read the sample ids from a column."
        )
    columns = store.columns(estimator.markers_, estimator.marker_aliases)
    require_state(estimator, AnnData(np.zeros((0, len(store.var)), np.float32), var=store.var))
    net = net_for(fitted_net(estimator), store.values(estimator.layer).dtype)
    within = estimator.within_
    chosen = None if within is None else within.among(store.table(key) for key in within.keys)
    rows = sample_rows(store, estimator.sample_key, estimator.subset_key, chosen)
    cells = cells_in_store(
        store, rows, estimator.markers_, columns, estimator.layer, net.input_mean
    )
    _warn_of_clipped(estimator, cells)
    return cells


def require_state(estimator: ReadsSamples, X: CellData) -> None:
    """Raise ProcessingStateError if data record another state than the training data."""
    require_states(
        _recorded(estimator, X), estimator.preprocessing_, f"this {type(estimator).__name__}"
    )


def _recorded(estimator: ReadsSamples, X: CellData) -> dict[str, MarkerState]:
    """Recorded transform and compensation of each marker; empty if a layer is read."""
    if estimator.layer is not None:
        return {}
    return recorded_states(X, estimator.markers_, estimator.marker_aliases)


def _source(estimator: ReadsSamples) -> Source:
    return Source(
        sample_key=estimator.sample_key,
        patient_key=estimator.patient_key,
        subset_key=estimator.subset_key,
        # The label column of a table is not a marker.
        label_key=getattr(estimator, "label_key", None),
        layer=estimator.layer,
        aliases=estimator.marker_aliases,
        within=estimator.within_,
    )


def _has_names(X: CellData) -> bool:
    return isinstance(X, (AnnData, pd.DataFrame))


def _warn_of_raw_values(samples: Samples) -> None:
    """Warn of markers whose values look untransformed. Scatter may be linear."""
    # A few wild values tell nothing of the scale.
    many = (samples.x > _LARGEST_TRANSFORMED).mean(axis=0) > _FEW_VALUES
    raw = [
        f"{marker} (up to {samples.x[:, i].max():,.0f})"
        for i, marker in enumerate(samples.markers)
        if many[i] and kind_of_name(str(marker)) != "scatter"
    ]
    if raw:
        warnings.warn(
            f"{len(raw)} of {len(samples.markers)} markers look untransformed: {listed(raw, 5)}. "
            "The model would be trained on raw values, where bright cells set the scale. "
            "Transform them first (fcm_estimators.preprocessing.standard_steps).",
            UserWarning,
            stacklevel=7,
        )


def _warn_of_unused_samples(X: CellData, sample_key: Hashable, groups: PerCell) -> None:
    """Warn if the data name several samples but are read as one."""
    if sample_key is None and groups is None and isinstance(X, AnnData) and "sample" in X.obs:
        n_samples = X.obs["sample"].nunique()
        if n_samples > 1:
            warnings.warn(
                f"adata.obs['sample'] names {n_samples} samples, but neither sample_key nor "
                "groups was given, so all cells are read as one sample. Pass "
                "sample_key='sample' to read several samples.",
                UserWarning,
                stacklevel=7,
            )
