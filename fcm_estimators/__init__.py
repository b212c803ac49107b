"""Whole-sample transformers for flow cytometry, with scikit-learn's interface on AnnData."""

from __future__ import annotations

import lazy_loader as _lazy

from fcm_estimators._shadowing import warn_of_foreign_explainers as _warn
from fcm_estimators._version import __version__

# Public names load on first use (SPEC 1): importing the package imports neither torch nor
# matplotlib, so command lines and workers start fast.
__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
__all__ += ["__version__"]

# The top-level package `explainers` comes with this one.
_warn()
