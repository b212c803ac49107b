"""Errors that a user's input can cause.

Every message says what was found, what was expected and what to do. Each class also derives from
the built-in (or scikit-learn) error that a caller would expect, so ``except ValueError`` works.
"""

from __future__ import annotations

from sklearn.exceptions import NotFittedError as _SklearnNotFittedError


class FcmError(Exception):
    """Base class of all errors raised for a user's input."""


class InvalidInputError(FcmError, ValueError):
    """A value, shape, type or label that cannot be used."""


class MissingKeyError(FcmError, KeyError):
    """A column, layer or key that the data do not have; the message lists those present."""

    def __str__(self) -> str:
        # KeyError shows repr(message); a sentence should be shown as it is.
        return str(self.args[0]) if self.args else ""


class MarkerMismatchError(FcmError, ValueError):
    """Markers that a model needs are not in the data."""


class PanelMismatchError(FcmError, ValueError):
    """Files of one cohort have different panels and no ``join`` was chosen."""


class FcsError(FcmError, ValueError):
    """A file that is not readable as FCS."""


class ProcessingStateError(FcmError, ValueError):
    """Data were already compensated or transformed, or not yet, where the other is needed."""


class ModelFormatError(FcmError, ValueError):
    """A model directory that is incomplete, corrupt or written by a newer version."""


class DataUnavailableError(FcmError, OSError):
    """A public data set that is neither in the local folders nor downloadable."""


class NotFittedError(FcmError, _SklearnNotFittedError):
    """An estimator that was used before ``fit``."""
