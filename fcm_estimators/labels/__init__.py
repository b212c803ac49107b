"""Labels of cells: from a table of gates, from a channel of the FCS file, or from exported gates.

Gate membership goes into ``obsm["gates"]``, one column per gate; :func:`labels_from_gates` turns
it into one class per cell. What is not known stays unlabelled (missing), never negative.
"""

from __future__ import annotations

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
