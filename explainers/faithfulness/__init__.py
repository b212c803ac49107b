"""Checks that an explanation says something about the model: each can fail, and says by what.

Every function takes a fitted explainer and cells the model has not seen, and returns a small
object with ``holds`` (did the explanation pass), ``frame()`` (the numbers) and ``plot()``.
An explanation that is shuffled or the same for every cell passes none of them.
"""

from __future__ import annotations

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
