"""Checks of whether an explanation describes the model.

Each function takes a fitted explainer and cells that the model has not seen. It returns an object
with ``holds`` (whether the explanation passes), ``frame()`` (the numbers) and ``plot()``. An
explanation that is shuffled, or the same for each cell, passes no check.
"""

from __future__ import annotations

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
