"""Picture of a comparison of methods."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from fcm_estimators.metrics._comparison import MethodComparison

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_POINT, _RING, _BOX = "#0072B2", "#D55E00", "#EEEEEE"


@dataclass
class MethodComparisonDisplay:
    """Pairs of fractions, and their ratio over their mean.

    Attributes
    ----------
    comparison : MethodComparison

    Examples
    --------
    >>> import pandas as pd
    >>> from fcm_estimators.metrics import MethodComparisonDisplay, method_comparison
    >>> manual = pd.DataFrame({"fraction": [0, 1e-3, 2e-2, 3e-4, 0.1], "lloq": 1e-4})
    >>> found = method_comparison(manual, manual, cut_off=2e-4)
    >>> display = MethodComparisonDisplay(found).plot()
    >>> len(display.axes_)
    2
    """

    comparison: MethodComparison

    def plot(self, axes: Any = None) -> Self:
        """Draw on two axes; in a new figure if none are given.

        Pairs with a fraction below its LLOQ lie in the grey boxes, at the left or below; their
        place in it says nothing. Pairs on different sides of the cut-off have a ring. Sets
        ``axes_`` and ``figure_``.
        """
        if axes is None:
            import matplotlib.pyplot as plt

            axes = plt.subplots(1, 2, figsize=(9.5, 4.4), layout="constrained")[1]
        pairs, difference = axes
        self._draw_pairs(pairs)
        self._draw_differences(difference)
        self.axes_, self.figure_ = (pairs, difference), pairs.figure
        return self

    def _draw_pairs(self, ax: Axes) -> None:
        table = self.comparison.pairs
        edge = float(max(table["manual_lloq"].max(), table["automatic_lloq"].max()))
        low, high = edge / 10, 10 ** np.ceil(np.log10(max(table["manual"].max(), 10 * edge)))
        ax.axvspan(low, edge, color=_BOX, lw=0)
        ax.axhspan(low, edge, color=_BOX, lw=0)
        # Spread in the boxes by two irrational steps, so that points neither cover each other nor
        # seem to lie along a line.
        x, y = (
            self._placed(name, edge, step)
            for name, step in (("manual", 0.618), ("automatic", 0.414))
        )
        ax.scatter(x, y, s=14, color=_POINT, alpha=0.7, zorder=3)
        ring = table["discordant"].to_numpy()
        ax.scatter(
            x[ring],
            y[ring],
            s=60,
            facecolors="none",
            edgecolors=_RING,
            zorder=4,
            label=f"discordant at the cut-off ({ring.sum()})",
        )
        ends = np.array([edge, high])
        ax.plot(ends, ends, color="#888888", lw=1, ls=":", label="equal")
        line = self.comparison.passing_bablok
        if line is not None:
            fitted = 10 ** (line.intercept + line.slope * np.log10(ends))
            text = f"Passing-Bablok, slope {line.slope:.2f} "
            text += f"({line.slope_low:.2f}-{line.slope_high:.2f})"
            ax.plot(ends, fitted, color=_POINT, lw=1.2, label=text)
        for draw in (ax.axvline, ax.axhline):
            draw(self.comparison.cut_off, color=_RING, lw=0.8, ls="--")
        ax.set(xscale="log", yscale="log", xlim=(low, high), ylim=(low, high))
        ax.set(xlabel="fraction, manual", ylabel="fraction, automatic")
        ax.text(low * 1.1, edge * 0.95, "below LLOQ", fontsize="x-small", va="top", color="#666666")
        _legend(ax)

    def _placed(self, name: str, edge: float, step: float) -> np.ndarray:
        """Fractions of a method; those below their LLOQ somewhere in the box."""
        table = self.comparison.pairs
        below = (table[name] < table[f"{name}_lloq"]).to_numpy()
        spread = np.arange(1, len(table) + 1) * step % 1
        return np.where(below, edge * 10 ** -(0.15 + 0.7 * spread), table[name].to_numpy())

    def _draw_differences(self, ax: Axes) -> None:
        used = self.comparison.pairs[self.comparison.pairs["quantified"]]
        mean = np.sqrt(used["manual"] * used["automatic"])
        ax.scatter(mean, used["log10_ratio"], s=14, color=_POINT, alpha=0.7, zorder=3)
        found = self.comparison.bland_altman
        ax.axhline(0, color="#888888", lw=1, ls=":")
        if found is not None:
            for value, low, high, name in (
                (found.bias, found.bias_low, found.bias_high, "bias"),
                (found.lower, found.lower_low, found.lower_high, "limits of agreement"),
                (found.upper, found.upper_low, found.upper_high, None),
            ):
                ax.axhspan(low, high, color=_POINT, alpha=0.12, lw=0)
                label = None if name is None else f"{name} {value:+.2f}"
                if name == "limits of agreement":
                    label = f"limits of agreement {found.lower:+.2f} to {found.upper:+.2f}"
                ax.axhline(
                    value, color=_POINT, lw=1, ls="-" if name == "bias" else "--", label=label
                )
            _legend(ax)
        if len(used):
            ax.set_xscale("log")
        ax.set(xlabel="geometric mean of both", ylabel="log10 (automatic / manual)")
        left = len(self.comparison.pairs) - len(used)
        ax.set_title(f"{len(used)} pairs; {left} below LLOQ not drawn", fontsize="small")


def _legend(ax: Axes) -> None:
    """Below the axes, where it covers no pair."""
    below = (0.5, -0.14)
    ax.legend(frameon=False, fontsize="x-small", loc="upper center", bbox_to_anchor=below)
