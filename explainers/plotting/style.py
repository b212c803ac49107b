"""Places of cells, arrows, and axes in raw units, for all plots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.quiver import Quiver, QuiverKey
from matplotlib.ticker import FixedLocator, FuncFormatter

from explainers._populations import embedding_of
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.preprocessing.ticks import decades, marker_column, recorded_scale, short

# Largest number of points in one plot; a random subset of more cells looks the same.
MAX_POINTS = 100_000


def new_axes(ax: Axes | None, size: tuple[float, float] = (5.0, 4.2)) -> Axes:
    """Axes to draw on; in a new figure if none are given."""
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=size, layout="constrained")[1]


def present(values: pd.Series, hues: Mapping[Any, str]) -> dict[Any, str]:
    """Colours of the categories that have cells, in their order."""
    found = set(values.dropna())
    return {name: hue for name, hue in hues.items() if name in found}


def places(
    adata: AnnData, x: str | None, y: str | None, basis: str
) -> tuple[pd.DataFrame, tuple[str, str]]:
    """Where cells are drawn: on the plane of two markers, or else on an embedding.

    Returns
    -------
    places : DataFrame
        ``x`` and ``y`` of each cell, indexed by its name.
    names : (str, str)
        Names of the axes.

    Raises
    ------
    InvalidInputError
        Only one marker is given, or a marker is missing.
    MissingKeyError
        The embedding is missing.
    """
    if (x is None) != (y is None):
        raise InvalidInputError(
            f"x={x!r}, y={y!r}: a plane has two markers. Give both, or neither for the embedding "
            f"{basis!r}."
        )
    if x is None or y is None:
        values, names = embedding_of(adata, basis)[:, :2], (f"{basis} 1", f"{basis} 2")
    else:
        columns = [marker_column(adata, marker) for marker in (x, y)]
        values, names = np.asarray(adata.X[:, columns], dtype=np.float64), (x, y)
    return pd.DataFrame(values, index=adata.obs_names, columns=["x", "y"]), names


def shown_cells(table: pd.DataFrame, random_state: int) -> pd.DataFrame:
    """Cells in random order, so that none is always on top; at most 100,000."""
    return table.sample(min(len(table), MAX_POINTS), random_state=random_state)


def name_axes(ax: Axes, adata: AnnData, names: tuple[str, str]) -> None:
    """Name the axes; markers get ticks with raw values, embeddings none."""
    ax.set(xlabel=names[0], ylabel=names[1])
    if names[0] not in adata.var_names:
        ax.set(xticks=[], yticks=[])
        return
    raw_ticks(ax.xaxis, adata, names[0])
    raw_ticks(ax.yaxis, adata, names[1])


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


def arrow_scale(ax: Axes, quiver: Quiver, factor: float, name: str, unit: str) -> QuiverKey | None:
    """Draw an arrow of a round length with its value at the bottom, and return it.

    There is room made for it: the vertical axis begins lower.

    Parameters
    ----------
    ax : matplotlib Axes
    quiver : Quiver
        Result of :func:`draw_arrows`.
    factor : float
        Length in data units of a gradient of 1 along the horizontal axis.
    name : str
        Marker of the horizontal axis.
    unit : str
        Unit of the gradient.
    """
    low, high = ax.get_xlim()
    wanted = abs(high - low) / 10
    if factor <= 0 or wanted <= 0:
        return None
    bottom, top = ax.get_ylim()
    ax.set_ylim(bottom - 0.08 * (top - bottom), top)
    power = 10.0 ** np.floor(np.log10(wanted / factor))
    value = float(
        max(step * power for step in (1, 2, 5) if step == 1 or step * power * factor <= wanted)
    )
    return ax.quiverkey(
        quiver,
        0.03 + value * factor / abs(high - low) / 2,  # the middle of the arrow
        0.04,
        value * factor,
        f"{value:g} {unit} along {name}",
        labelpos="E",
        color="black",
        fontproperties={"size": "small"},
    )


def raw_ticks(axis: Any, adata: AnnData, marker: str) -> None:
    """Label an axis of transformed values with the corresponding raw values."""
    scale = recorded_scale(adata, marker)
    if scale is None:
        return
    low, high = sorted(axis.get_view_interval())
    # A label is about a third of an inch wide and half as high.
    figure, box, wide = axis.axes.figure, axis.axes.get_position(), axis.axis_name == "x"
    inches = box.width * figure.get_figwidth() if wide else box.height * figure.get_figheight()
    kept = decades(scale, low, high, apart=(0.32 if wide else 0.16) / max(inches, 0.5))
    if len(kept) >= 2:
        axis.set_major_locator(FixedLocator([place for place, _ in kept]))
        names = {round(place, 9): short(raw) for place, raw in kept}
        axis.set_major_formatter(FuncFormatter(lambda y, _: names.get(round(y, 9), "")))
    else:
        axis.set_major_formatter(
            FuncFormatter(lambda y, _: short(float(scale.inverse(np.array([y]))[0])))
        )
    axis.set_view_interval(low, high, ignore=True)
