"""Saved models: a directory with the weights as safetensors and everything else as JSON.

Nothing is pickled, so loading a model never runs code from its files.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from fcm_estimators._base.cards import Cards, as_markdown
from fcm_estimators._files import checksum, write_whole
from fcm_estimators._types import Entries
from fcm_estimators._version import __version__
from fcm_estimators.exceptions import ModelFormatError

FORMAT = "fcm-estimators model"
# Version 3 stores the members and the novelty of a classifier, version 4 the limits of the inputs
# and names the weights by their checksum, version 5 the gate inside which it was trained.
FORMAT_VERSION = 5
_DESCRIPTION = "model.json"


class SavedState(NamedTuple):
    """JSON-safe description of an estimator.

    Attributes
    ----------
    class_name : str
    params, fitted : dict
        Parameters and fitted attributes, as :func:`to_json` makes them.
    """

    class_name: str
    params: Entries
    fitted: Entries


def write_model(
    path: str | os.PathLike[str], tensors: dict[str, Tensor], state: SavedState, cards: Cards
) -> None:
    """Write weights, description and cards. Each file is written whole or not at all.

    The file of the weights is named by their checksum, and the description names it. A model is
    replaced at the moment when its description is, so an interrupted save leaves the old one.

    Parameters
    ----------
    path : path
        Directory. It is created if it does not exist, and a model in it is replaced.
    tensors : dict of Tensor
    state : SavedState
    cards : dict
        Text for people; :func:`read_model` does not read it.
    """
    folder = Path(path)
    folder.mkdir(parents=True, exist_ok=True)
    # Clones, because weights that are shared within a net are saved twice.
    weights = save_tensors({k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()})
    description = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "package_version": __version__,
        "weights_sha256": hashlib.sha256(weights).hexdigest(),
        "class": state.class_name,
        "params": state.params,
        "fitted": state.fitted,
    }
    text = json.dumps(description, indent=1, sort_keys=True).encode()
    file = folder / _weights_name(str(description["weights_sha256"]))
    replaced = _named_weights(folder)
    write_whole(file, weights)
    write_whole(folder / _DESCRIPTION, text)
    # Not those of others who save here at the same time.
    if replaced is not None and replaced != file:
        replaced.unlink(missing_ok=True)
    for name, sections in cards.items():
        file = folder / f"{name.upper().replace(' ', '_')}.md"
        write_whole(file, as_markdown(name, sections).encode())


def read_model(
    path: str | os.PathLike[str], class_name: str
) -> tuple[dict[str, Tensor], Entries, Entries]:
    """Read weights, parameters and fitted attributes; check that they are complete.

    Raises
    ------
    ModelFormatError
        There is no model in the directory; a file is missing, truncated or altered; the format is
        older or newer; or the model is of another class.
    """
    folder = Path(path)
    text = _read(folder / _DESCRIPTION, folder)
    try:
        description = json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ModelFormatError(
            f"{_DESCRIPTION} in {folder} is not valid JSON ({error}); the file is damaged. Copy "
            "the model directory again."
        ) from error
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise ModelFormatError(
            f"{_DESCRIPTION} in {folder} does not describe a model of this package; expected "
            f"format {FORMAT!r}."
        )
    _require_known_version(folder, description)
    if description.get("class") != class_name:
        raise ModelFormatError(
            f"The model in {folder} is a {description.get('class')}; load it with "
            f"{description.get('class')}.load, not {class_name}.load."
        )
    expected = str(description.get("weights_sha256"))
    if not re.fullmatch(r"[0-9a-f]{64}", expected):
        raise ModelFormatError(
            f"{_DESCRIPTION} in {folder} has no checksum of the weights; it is damaged. Copy the "
            "model directory again."
        )
    file = folder / _weights_name(expected)
    weights = _read(file, folder)
    if hashlib.sha256(weights).hexdigest() != expected:
        raise ModelFormatError(
            f"{file.name} in {folder} ({len(weights)} bytes) does not have the checksum in "
            f"{_DESCRIPTION}; it is truncated or belongs to another model. Copy the directory "
            "again."
        )
    try:
        tensors = load_tensors(weights)
    except SafetensorError as error:
        raise ModelFormatError(f"{file.name} in {folder} cannot be read: {error}") from error
    try:
        return tensors, from_json(description["params"]), from_json(description["fitted"])
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ModelFormatError(
            f"{_DESCRIPTION} in {folder} is incomplete or altered ({type(error).__name__}: "
            f"{error}). Copy the directory again, or train again."
        ) from error


def model_checksum(path: str | os.PathLike[str]) -> str:
    """SHA-256 that identifies a saved model; "" if there is none.

    The description holds the checksum of the weights, so cards and other files do not matter.
    """
    description = Path(path) / _DESCRIPTION
    return checksum(description) if description.is_file() else ""


def _named_weights(folder: Path) -> Path | None:
    """Weights of the model that is in the directory, if there is one."""
    try:
        sha256 = json.loads((folder / _DESCRIPTION).read_bytes())["weights_sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return folder / _weights_name(sha256) if re.fullmatch("[0-9a-f]{64}", str(sha256)) else None


def _weights_name(weights_sha256: str) -> str:
    return f"model-{weights_sha256[:16]}.safetensors"


def _require_known_version(folder: Path, description: Entries) -> None:
    version = description.get("format_version")
    if version == FORMAT_VERSION:
        return
    newer = not isinstance(version, int) or version > FORMAT_VERSION
    raise ModelFormatError(
        f"The model in {folder} has format version {version!r} (written by fcm-estimators "
        f"{description.get('package_version')}); this is {__version__}, which reads "
        f"{FORMAT_VERSION}. {'Update the package' if newer else 'Train the model again'}."
    )


def _read(path: Path, folder: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        found = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else "no such directory"
        raise ModelFormatError(
            f"No model at {folder}: {path.name} cannot be read ({error.strerror}); found {found}. "
            f"A model directory holds {_DESCRIPTION} and its weights; save() writes both."
        ) from error


def to_json(value: Any) -> Any:
    """Turn numpy values into JSON values; raise TypeError for other types."""
    if isinstance(value, np.ndarray):
        return [to_json(v) for v in value.tolist()]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (list, tuple)):
        return [to_json(v) for v in value]
    if isinstance(value, dict):
        # Pairs, because JSON keys are text and class labels may have other types.
        return {"pairs": [[to_json(k), to_json(v)] for k, v in value.items()]}
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(f"{type(value).__name__} has no JSON form")


def from_json(value: Any) -> Any:
    """Undo :func:`to_json`; arrays stay lists."""
    if isinstance(value, dict):
        return {from_json(k): from_json(v) for k, v in value["pairs"]}
    if isinstance(value, list):
        return [from_json(v) for v in value]
    return value
