"""Errors that a user's input can cause.

Every message says what was found, what was expected and what to do. Each class also derives from
the built-in (or scikit-learn) error that a caller would expect, so ``except ValueError`` works.
"""

from __future__ import annotations

from collections.abc import Iterable

from sklearn.exceptions import NotFittedError as _SklearnNotFittedError

__all__ = [
    "DataUnavailableError",
    "FcmError",
    "FcsError",
    "InvalidInputError",
    "MarkerMismatchError",
    "MissingKeyError",
    "ModelFormatError",
    "NotFittedError",
    "PanelMismatchError",
    "ProcessingStateError",
]


class FcmError(Exception):
    """Base class of all errors raised for a user's input."""


class InvalidInputError(FcmError, ValueError):
    """A value, shape, type or label that cannot be used."""


class MissingKeyError(FcmError, KeyError):
    """A column, layer or key that the data do not have; the message lists those present."""

    def __str__(self) -> str:
        # KeyError would show repr(message) instead of the message.
        return str(self.args[0]) if self.args else ""


class MarkerMismatchError(FcmError, ValueError):
    """Markers that a model needs are not in the data."""


class PanelMismatchError(FcmError, ValueError):
    """Files of one cohort have different panels and no ``join`` was chosen."""


class FcsError(FcmError, ValueError):
    """A file that cannot be read as FCS."""


class ProcessingStateError(FcmError, ValueError):
    """Data that are compensated or transformed where raw data are needed, or the reverse."""


class ModelFormatError(FcmError, ValueError):
    """A model directory that is incomplete, corrupt or of another format version."""


class DataUnavailableError(FcmError, OSError):
    """A public data set that is not in the local folders and cannot be downloaded."""


# scikit-learn has no types, so mypy sees its classes as Any.
class NotFittedError(FcmError, _SklearnNotFittedError):  # type: ignore[misc]
    """An estimator that was used before ``fit``."""


def listed(names: Iterable[object], limit: int = 20) -> str:
    """Join names for a message; at most ``limit`` of them are listed."""
    names = [str(name) for name in names]
    shown = ", ".join(repr(name) for name in names[:limit])
    rest = len(names) - limit
    return (shown or "none") + (f" and {rest} more" if rest > 0 else "")


def require_key(key: object, present: Iterable[object], what: str) -> None:
    """Raise MissingKeyError unless ``key`` is in ``present``; ``what`` is the kind of key."""
    present = list(present)
    if key not in present:
        raise MissingKeyError(f"{what} {key!r} was not found; available: {listed(present)}.")
