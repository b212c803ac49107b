"""Plots of explanations, as Displays like those of scikit-learn.

``Display.from_...(...)`` collects the numbers. ``.plot(ax=)`` draws them and returns the Display,
whose ``figure_`` and ``axes_`` (or ``ax_``) can be changed. ``.frame()`` returns the plotted
numbers as a table.
"""

from __future__ import annotations

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
