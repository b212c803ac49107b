"""Label cells from a table of gates, from a channel of the FCS file, or from exported gates.

Gate membership is written to ``obsm["gates"]``, one column per gate; :func:`labels_from_gates`
makes one class per cell of it. Cells with unknown membership stay unlabelled (missing).
"""

from __future__ import annotations

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
