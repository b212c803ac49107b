"""Settings of a run over many files, and the model that it applies."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad

from fcm_estimators._base.files import model_checksum
from fcm_estimators._files import checksum
from fcm_estimators._types import Entries
from fcm_estimators._version import __version__
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.models import load_model

if TYPE_CHECKING:
    from fcm_estimators.gating import GatingTree


@dataclass(frozen=True)
class Job:
    """Settings for annotating each file."""

    model: str
    model_checksum: str
    gates: GatingTree | str | None
    gates_checksum: str
    only: list[str]
    event_column: str | None
    marker_aliases: Entries
    out: str
    key_added: str
    denominator: str | None
    limit_of_blank: float | None
    protocol: Entries
    errors: Entries | None
    also: Callable[[Any, ad.AnnData, Path], Entries] | None
    resume: bool

    def fingerprint(self) -> Entries:
        """Settings that must be equal for an earlier result to be kept."""
        irrelevant = ("model", "gates", "out", "resume", "also")
        wanted = {k: v for k, v in vars(self).items() if k not in irrelevant}
        return {**wanted, "also": repr(self.also), "version": __version__}


@functools.lru_cache(maxsize=2)
def cached_model(path: str, checksum: str) -> Any:
    """Load a model once per process; the checksum distinguishes models saved at the same path."""
    model = load_model(path)
    if model_checksum(path) != checksum:
        raise InvalidInputError(f"The model in {path} was replaced meanwhile. Run again.")
    return model


def require_unchanged(path: Path, expected: str) -> None:
    """Raise InvalidInputError if a file is not what its checksum was taken of."""
    if checksum(path) != expected:
        raise InvalidInputError(
            f"{path.name} changed while it was read, so nothing was written. Annotate it again "
            "when it is complete."
        )


def is_model(path: Path) -> bool:
    """Whether a path is the directory of a saved model, not of tables of gates."""
    return (path / "model.json").exists()
