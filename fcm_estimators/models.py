"""Load a saved model of any class."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fcm_estimators.exceptions import ModelFormatError
from fcm_estimators.keys import ClassKeys, GateKeys

if TYPE_CHECKING:
    from fcm_estimators.classifier import ReluFormerClassifier
    from fcm_estimators.polygon_regressor import PolygonRegressor

_CLASSIFIER = "ReluFormerClassifier"
_MODULES = {_CLASSIFIER: "classifier", "PolygonRegressor": "polygon_regressor"}

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
    name = _CLASSIFIER
    try:
        found = json.loads((Path(path) / "model.json").read_bytes()).get("class")
    except (OSError, ValueError, AttributeError, RecursionError):
        pass  # load of the class raises the error
    else:
        if not isinstance(found, str) or found not in _MODULES:
            raise ModelFormatError(
                f"The model in {path} is of class {found!r}; this version knows "
                f"{sorted(_MODULES)}. Update the package, or copy the directory again."
            )
        name = found
    # Only what is needed is loaded: the other class takes as long as a small file.
    kind = getattr(importlib.import_module(f"fcm_estimators.{_MODULES[name]}"), name)
    model: ReluFormerClassifier | PolygonRegressor = kind.load(path, device=device)
    return model


def is_gating_model(model: ReluFormerClassifier | PolygonRegressor) -> bool:
    """Whether a model predicts gates; otherwise it predicts classes."""
    # If its module is not loaded, nothing is of this class.
    module = sys.modules.get("fcm_estimators.polygon_regressor")
    return module is not None and isinstance(model, module.PolygonRegressor)


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
