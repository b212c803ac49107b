"""Explanations of fitted estimators, written into AnnData for scanpy.

This top-level package belongs to the distribution ``fcm-estimators``: it is installed, versioned
and released with ``fcm_estimators``. Another distribution that installs a package of this name
cannot be in the same environment; the first use of a name from here warns of it.
"""

from __future__ import annotations

import lazy_loader as _lazy

from explainers import _owner
from fcm_estimators import __version__

_load, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
__all__ += ["__version__"]


def __getattr__(name: str) -> object:
    if not name.startswith("_"):
        _owner.warn_of_others()
    return _load(name)
