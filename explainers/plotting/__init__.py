"""Pictures of explanations, as Displays in scikit-learn's manner.

``Display.from_...(...)`` gathers the numbers, ``.plot(ax=)`` draws them and returns the Display,
whose ``figure_`` and ``axes_`` (or ``ax_``) can be changed further, and ``.frame()`` gives what was
drawn as a table.
"""

from __future__ import annotations

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
