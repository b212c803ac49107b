"""FCS files in and out.

:func:`read_fcs` assembles one AnnData from one or many files, :func:`write_fcs` puts the events of
one sample back into an FCS file, with the classes and probabilities of a classifier as parameters.
"""

from __future__ import annotations

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
