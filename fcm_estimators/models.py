"""Load a saved model of any class."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from fcm_estimators.exceptions import ModelFormatError
from fcm_estimators.keys import ClassKeys, GateKeys

if TYPE_CHECKING:
    from fcm_estimators.classifier import ReluFormerClassifier
    from fcm_estimators.polygon_regressor import PolygonRegressor

__all__ = ["is_gating_model", "load_model", "result_keys"]


def load_model(
    path: str | os.PathLike[str], *, device: str = "auto"
) -> ReluFormerClassifier | PolygonRegressor:
    """Load a classifier or a polygon regressor from a directory that ``save`` wrote.

    Parameters
    ----------
    path : path
        Directory of the model.
    device : str, default "auto"
        Device of the net.

    Returns
    -------
    ReluFormerClassifier or PolygonRegressor

    Raises
    ------
    ModelFormatError
        There is no model in the directory, or the model is damaged, has a format that this
        version does not read, or is of an unknown class.
    """
    from fcm_estimators.classifier import ReluFormerClassifier
    from fcm_estimators.polygon_regressor import PolygonRegressor

    known = {c.__name__: c for c in (ReluFormerClassifier, PolygonRegressor)}
    name = ReluFormerClassifier.__name__
    try:
        found = json.loads((Path(path) / "model.json").read_bytes()).get("class")
    except (OSError, ValueError, AttributeError, RecursionError):
        pass  # load of the class raises the error
    else:
        if not isinstance(found, str) or found not in known:
            raise ModelFormatError(
                f"The model in {path} is of class {found!r}; this version knows {sorted(known)}. "
                "Update the package, or copy the directory again."
            )
        name = found
    return known[name].load(path, device=device)


def is_gating_model(model: ReluFormerClassifier | PolygonRegressor) -> bool:
    """Whether a model predicts gates; otherwise it predicts classes."""
    from fcm_estimators.polygon_regressor import PolygonRegressor

    return isinstance(model, PolygonRegressor)


def result_keys(
    model: ReluFormerClassifier | PolygonRegressor, key_added: str | None = None
) -> ClassKeys | GateKeys:
    """Names of the fields that a model writes.

    Parameters
    ----------
    model : ReluFormerClassifier or PolygonRegressor
    key_added : str, optional
        Default: that of the model's ``annotate``.
    """
    kind: type[ClassKeys] | type[GateKeys] = GateKeys if is_gating_model(model) else ClassKeys
    return kind() if key_added is None else kind(key_added)
