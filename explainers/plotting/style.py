"""Colours, arrows, and axes in raw units, for all plots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.quiver import Quiver
from matplotlib.ticker import FixedLocator, FuncFormatter

from fcm_estimators.preprocessing.ticks import decades, recorded_scale, short

# Colours of Okabe and Ito, which colour-blind people can distinguish.
HUES = ("#D55E00", "#0072B2", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#F0E442", "#000000")
GREY = "#BBBBBB"
# Names of groups that are not populations.
_BACKGROUND = ("other", "none", "not analysed", "rest")


def new_axes(ax: Axes | None, size: tuple[float, float] = (5.0, 4.2)) -> Axes:
    """Axes to draw on; in a new figure if none are given."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=size, layout="constrained")[1]


def colours(names: Sequence[Any]) -> dict[Any, Any]:
    """Colour for each name; grey for groups that are not populations.

    More than eight names get evenly spaced colours, which are harder to distinguish.
    """
    named = [name for name in names if not _is_background(name)]
    if len(named) > len(HUES):
        import matplotlib as mpl

        spaced = mpl.colormaps["turbo"](np.linspace(0.05, 0.95, len(named)))
        palette = dict(zip(named, spaced, strict=True))
    else:
        palette = dict(zip(named, HUES, strict=False))
    return {name: palette.get(name, GREY) for name in names}


def _is_background(name: Any) -> bool:
    return str(name) in _BACKGROUND or str(name).startswith("not ")


def categories(values: pd.Series) -> list[Any]:
    """Categories in their order, without categories that have no cell."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        return list(values.cat.remove_unused_categories().cat.categories)
    return sorted(values.dropna().unique())


def draw_arrows(ax: Axes, table: pd.DataFrame, factor: float, **style: Any) -> Quiver:
    """Draw the arrows ``dx``, ``dy`` at ``x``, ``y``, in data units and scaled by a factor.

    The angle drawn is the angle in the plane of the values. The limits of the axes must not
    change afterwards.
    """
    return ax.quiver(
        table["x"],
        table["y"],
        table["dx"] * factor,
        table["dy"] * factor,
        angles="xy",
        scale_units="xy",
        scale=1,
        zorder=3,
        **style,
    )


def raw_ticks(axis: Any, adata: AnnData, marker: str) -> None:
    """Label an axis of transformed values with the corresponding raw values."""
    scale = recorded_scale(adata, marker)
    if scale is None:
        return
    low, high = sorted(axis.get_view_interval())
    kept = decades(scale, low, high)
    if len(kept) >= 2:
        axis.set_major_locator(FixedLocator([place for place, _ in kept]))
        names = {round(place, 9): short(raw) for place, raw in kept}
        axis.set_major_formatter(FuncFormatter(lambda y, _: names.get(round(y, 9), "")))
    else:
        axis.set_major_formatter(
            FuncFormatter(lambda y, _: short(float(scale.inverse(np.array([y]))[0])))
        )
    axis.set_view_interval(low, high, ignore=True)
