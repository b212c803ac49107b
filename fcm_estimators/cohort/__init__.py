"""Process many files at once, on the cores of one machine or on a Dask cluster.

:func:`read_files` assembles training data, :func:`annotate_files` applies a model. A cluster needs
the extra ``cohort``: ``pip install "fcm-estimators[cohort]"``.
"""

from __future__ import annotations

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
