"""Fitted estimators as a directory: weights as safetensors, everything else as JSON.

Nothing is pickled, so loading a model never runs code that came with it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from fcm_estimators._files import write_whole
from fcm_estimators._version import __version__
from fcm_estimators.exceptions import ModelFormatError

FORMAT = "fcm-estimators model"
FORMAT_VERSION = 1
_WEIGHTS, _DESCRIPTION = "model.safetensors", "model.json"


def write_model(
    path: str | os.PathLike,
    tensors: dict[str, Tensor],
    state: dict[str, Any],
    texts: Mapping[str, str],
) -> None:
    """Write weights, description and texts; each file appears whole or not at all.

    Parameters
    ----------
    path : path
        Directory, made where it does not exist. A model in it is replaced.
    tensors : dict of Tensor
    state : dict
        JSON-safe description of the estimator.
    texts : mapping of file name to str
        For people; not read again.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    weights = save_tensors({k: v.detach().cpu().contiguous() for k, v in tensors.items()})
    description = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "package_version": __version__,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        **state,
    }
    text = json.dumps(description, indent=1, sort_keys=True).encode()
    write_whole(folder / _WEIGHTS, weights)
    write_whole(folder / _DESCRIPTION, text)
    for name, content in texts.items():
        write_whole(folder / name, content.encode())


def read_model(
    path: str | os.PathLike, class_name: str
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read weights and description, checked for completeness and version.

    Raises
    ------
    ModelFormatError
        No model there; a file is missing, cut short or altered; the format is newer; or the
        model is of another class.
    """
    folder = Path(path)
    text = _read(folder / _DESCRIPTION, folder)
    try:
        description = json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelFormatError(
            f"{_DESCRIPTION} in {folder} is not valid JSON ({error}); the file is damaged. Copy "
            "the model directory again."
        ) from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise ModelFormatError(
            f"{_DESCRIPTION} in {folder} does not describe a model of this package; expected "
            f"format {FORMAT!r}."
        )
    version = description.get("format_version")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise ModelFormatError(
            f"The model in {folder} has format version {version!r} (written by fcm-estimators "
            f"{description.get('package_version')}); this is {__version__}, which reads up to "
            f"{FORMAT_VERSION}. Update the package."
        )
    if description.get("class") != class_name:
        raise ModelFormatError(
            f"The model in {folder} is a {description.get('class')}; load it with "
            f"{description.get('class')}.load, not {class_name}.load."
        )
    weights = _read(folder / _WEIGHTS, folder)
    if hashlib.sha256(weights).hexdigest() != description.get("weights_sha256"):
        raise ModelFormatError(
            f"{_WEIGHTS} in {folder} ({len(weights)} bytes) does not have the checksum that "
            f"{_DESCRIPTION} names; it is cut short or of another model. Copy the directory again."
        )
    try:
        return load_tensors(weights), description
    except SafetensorError as error:
        raise ModelFormatError(f"{_WEIGHTS} in {folder} cannot be read: {error}") from error


def _read(path: Path, folder: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        found = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else "no such directory"
        raise ModelFormatError(
            f"No model at {folder}: {path.name} cannot be read ({error.strerror}); found {found}. "
            f"A model directory holds {_WEIGHTS} and {_DESCRIPTION}, as save() writes them."
        ) from error


def to_json(value: Any) -> Any:
    """Turn numpy values into JSON ones; raises TypeError for what JSON cannot hold."""
    if isinstance(value, np.ndarray):
        return [to_json(v) for v in value.tolist()]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (list, tuple)):
        return [to_json(v) for v in value]
    if isinstance(value, dict):
        # Pairs, because JSON keys are text and class labels need not be.
        return {"pairs": [[to_json(k), to_json(v)] for k, v in value.items()]}
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(f"{type(value).__name__} has no JSON form")


def from_json(value: Any) -> Any:
    """Undo :func:`to_json`, arrays staying lists."""
    if isinstance(value, dict):
        return {from_json(k): from_json(v) for k, v in value["pairs"]}
    if isinstance(value, list):
        return [from_json(v) for v in value]
    return value
