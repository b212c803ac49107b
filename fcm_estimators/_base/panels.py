"""Classifiers for data that lack a marker of the training."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self, TypeVar

import numpy as np
import pandas as pd
from anndata import AnnData

from fcm_estimators._base.reading import fitted_net, require_fitted
from fcm_estimators._base.running import with_net
from fcm_estimators._cells.samples import model_names
from fcm_estimators._cells.store import CellStore, open_store
from fcm_estimators._checks import listed, same_antigen
from fcm_estimators._fitting.performance import Performance
from fcm_estimators._types import Entries
from fcm_estimators.exceptions import InvalidInputError, MarkerMismatchError
from fcm_estimators.io.kinds import kind_of_name
from fcm_estimators.nn import SetModule

Model = TypeVar("Model", bound=Any)


@dataclass(frozen=True, eq=False)
class Decided:
    """What was determined with held-out patients, for one panel.

    Attributes
    ----------
    threshold : float or None
    temperature : float
    usual_excess : ndarray of shape (C,)
    performance : Performance or None
    novelty_threshold, novelty_usual : float
    """

    threshold: float | None
    temperature: float
    usual_excess: np.ndarray
    performance: Performance | None
    novelty_threshold: float
    novelty_usual: float

    def adopt(self, model: Any) -> None:
        """Let a model decide in this way."""
        model.threshold_, model.temperature_ = self.threshold, self.temperature
        model.usual_excess_, model.performance_ = self.usual_excess, self.performance
        model.novelty_ = replace(
            model.novelty_, threshold=self.novelty_threshold, usual=self.novelty_usual
        )

    def to_dict(self) -> Entries:
        """Lists and numbers, for the saved model."""
        finite = np.isfinite(self.novelty_threshold)
        return {
            **vars(self),
            "performance": None if self.performance is None else self.performance.to_dict(),
            "novelty_threshold": self.novelty_threshold if finite else None,
        }

    @classmethod
    def from_dict(cls, saved: Entries) -> Self:
        """Undo :meth:`to_dict`."""
        found, limit = saved["performance"], saved["novelty_threshold"]
        return cls(
            threshold=saved["threshold"],
            temperature=float(saved["temperature"]),
            usual_excess=np.array(saved["usual_excess"], dtype=float),
            performance=None if found is None else Performance.from_dict(found),
            novelty_threshold=float("inf") if limit is None else float(limit),
            novelty_usual=float(saved["novelty_usual"]),
        )


def hideable(markers: Sequence[str]) -> list[int]:
    """Positions of the markers that a panel may lack: all but scatter, which every file has."""
    return [i for i, name in enumerate(markers) if kind_of_name(str(name)) != "scatter"]


def missing_markers(model: Any, names: Iterable[object]) -> list[str]:
    """Markers of a model that some data lack.

    Empty if one of them is there under another spelling: that marker is not missing.
    """
    present = model_names(names, model.marker_aliases)
    missing = [marker for marker in model.markers_ if marker not in set(present)]
    free = [name for name in present if name not in set(model.markers_)]
    misspelt = any(same_antigen(name, marker) for marker in missing for name in free)
    return [] if misspelt else missing


def model_without(model: Model, markers: Iterable[str]) -> Model:
    """A copy of a fitted classifier that does not read some markers.

    Raises
    ------
    MarkerMismatchError
        A marker is not one of the model, is scatter, or more than half would be missing.
    InvalidInputError
        The model was not trained to do without markers.
    """
    names = [str(name) for name in markers]
    net = fitted_net(model)
    if not isinstance(net, SetModule) or net.stand_in is None:
        raise InvalidInputError(
            "This model needs all its markers. Fit it with missing_markers='mask' to do without "
            f"{listed(names)}."
        )
    able = [model.markers_[i] for i in hideable(model.markers_)]
    wrong = [name for name in names if name not in able]
    if wrong or len(names) > max(1, len(able) // 2) or not names:
        raise MarkerMismatchError(
            f"The model was trained to do without at most {max(1, len(able) // 2)} of "
            f"{listed(able)}, not without {listed(names)}."
        )
    hidden = [model.markers_.index(name) for name in names]
    kept = [name for name in model.markers_ if name not in names]
    other = with_net(model, net.without(hidden))
    other.members_ = [member.without(hidden) for member in model.members_]
    other.missing_markers, other.missing_markers_ = "error", names
    other.markers_, other.n_features_in_ = kept, len(kept)
    if hasattr(model, "feature_names_in_"):
        other.feature_names_in_ = np.array(kept, dtype=object)
    other.preprocessing_ = {k: v for k, v in model.preprocessing_.items() if k in kept}
    other.reference_ = model.reference_.without(hidden)
    other.novelty_ = model.novelty_.without(hidden)
    other.performance_, other.decided_without_ = None, {}
    if len(names) == 1 and names[0] in model.decided_without_:
        model.decided_without_[names[0]].adopt(other)
    return other


def with_aliases(model: Model, aliases: Mapping[str, str] | None) -> Model:
    """A fitted model that also knows the names of markers in some files; it shares its weights.

    Raises
    ------
    InvalidInputError
        A name is given to something that is no marker of the model.
    """
    if not aliases:
        return model
    if strangers := sorted(set(aliases.values()) - set(model.markers_)):
        raise InvalidInputError(
            f"marker_aliases={dict(aliases)!r}: the model has no marker {listed(strangers)}; its "
            f"markers are {listed(model.markers_)}."
        )
    other = copy.copy(model)
    other.marker_aliases = {**(model.marker_aliases or {}), **aliases}
    return other


def suited_to(model: Model, data: Any, *, quiet: bool = False) -> Model:
    """The model for the markers that some data have; the model itself if none is missing.

    Parameters
    ----------
    model : estimator
        Only a classifier with ``missing_markers="mask"`` can do without markers.
    data : AnnData, DataFrame, CellStore, path of a store, or anything else
        Anything else has no names, so nothing can be missing.
    quiet : bool, default False
        Whether the warning is left to a later step.
    """
    if getattr(model, "missing_markers", "error") == "error":
        return model
    require_fitted(model)
    missing = missing_markers(model, _names(data, model.markers_))
    if not missing:
        return model
    other = model_without(model, missing)
    if not quiet:
        warn_of_missing(other, stacklevel=4)
    return other


def _names(data: Any, otherwise: Sequence[str]) -> Sequence[Any]:
    """Names of the columns of some data."""
    if isinstance(data, (AnnData, CellStore)):
        return list(data.var_names)
    if isinstance(data, pd.DataFrame):
        return list(data.columns)
    if isinstance(data, (str, os.PathLike)):
        with open_store(data) as store:
            return list(store.var_names)
    return otherwise


def warn_of_missing(model: Any, stacklevel: int) -> None:
    """Warn that a model reads fewer markers than in training."""
    if model.performance_ is None:
        known = "How good it is without them is not known, so residual disease is not stated."
    else:
        scores = [f"{c} {f1:.3f}" for c, f1 in model.performance_.classes["f1"].items()]
        known = f"Its F1 on held-out patients without it: {listed(scores)}."
    warnings.warn(
        f"The data lack {listed(model.missing_markers_)}; the model does without. {known}",
        UserWarning,
        stacklevel=stacklevel,
    )
