"""Read and write FCS files.

:func:`read_fcs` makes one AnnData of one or many files. :func:`write_fcs` writes the events of one
sample to an FCS file, with the classes and probabilities of a classifier as parameters.
"""

from __future__ import annotations

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
