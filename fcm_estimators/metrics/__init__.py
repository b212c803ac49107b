"""Metrics from arrays, as DataFrames with a row per sample; nothing is dropped silently."""

from __future__ import annotations

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
