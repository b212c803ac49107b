"""Load a saved model of whichever class it is."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from fcm_estimators.exceptions import ModelFormatError

if TYPE_CHECKING:
    from fcm_estimators.classifier import ReluFormerClassifier
    from fcm_estimators.polygon_regressor import PolygonRegressor

__all__ = ["load_model"]


def load_model(
    path: str | os.PathLike, *, device: str = "auto"
) -> ReluFormerClassifier | PolygonRegressor:
    """Load a classifier or a polygon regressor that ``save`` wrote.

    Parameters
    ----------
    path : path
        The directory.
    device : str, default "auto"
        Where to put the net.

    Returns
    -------
    ReluFormerClassifier or PolygonRegressor

    Raises
    ------
    ModelFormatError
        No model there, a damaged or newer one, or one of an unknown class.
    """
    from fcm_estimators.classifier import ReluFormerClassifier
    from fcm_estimators.polygon_regressor import PolygonRegressor

    known = {c.__name__: c for c in (ReluFormerClassifier, PolygonRegressor)}
    name = ReluFormerClassifier.__name__
    try:
        found = json.loads((Path(path) / "model.json").read_bytes()).get("class")
    except (OSError, ValueError, AttributeError, RecursionError):
        pass  # the class's own load says what is wrong
    else:
        if not isinstance(found, str) or found not in known:
            raise ModelFormatError(
                f"The model in {path} is of class {found!r}; this version knows {sorted(known)}. "
                "Update the package, or copy the directory again."
            )
        name = found
    return known[name].load(path, device=device)
