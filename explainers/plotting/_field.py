"""Plot of cells, their classes and their gradient in the plane of two markers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm

from explainers.plotting.style import (
    arrow_scale,
    draw_arrows,
    new_axes,
    present,
    raw_ticks,
    shown_cells,
)
from fcm_estimators.colours import column_colours
from fcm_estimators.exceptions import InvalidInputError, require_key
from fcm_estimators.keys import ClassKeys, GradientKeys
from fcm_estimators.preprocessing.ticks import marker_column


@dataclass
class GradientFieldDisplay:
    """Density of two markers, cells coloured by class, and gradients as arrows.

    An arrow is the mean gradient of the cells of a class in one square of the plane, or the
    gradient of a single cell. It shows the change of these two markers that would raise the output
    of the model. It does not show a movement of cells. Gradients per training SD are drawn as steps
    in SD, so both markers have the same weight in any units. The arrow at the bottom has a stated
    length.

    Attributes
    ----------
    cells : DataFrame
        ``x``, ``y``, ``group`` of the cells shown.
    arrows : DataFrame
        ``x``, ``y`` (mean of the cells), ``dx``, ``dy`` (mean gradient as a step along the axes),
        ``group``, ``n_cells``.
    x, y : str
        Markers.
    explained : str
        Explained output.
    colours : dict of class to str
        Colour of each class, as in ``uns``.
    unit : str
        Unit of a gradient.
    step : float
        Length along the horizontal axis of a gradient of 1: the SD of the marker, or 1.
    """

    cells: pd.DataFrame
    arrows: pd.DataFrame
    x: str
    y: str
    explained: str
    colours: dict[Any, str]
    unit: str
    step: float
    _adata: AnnData = field(repr=False)

    @classmethod
    def from_explanation(
        cls,
        adata: AnnData,
        x: str,
        y: str,
        *,
        key: str = GradientKeys.key,
        color: str = ClassKeys.key,
        arrows: Literal["squares", "cells"] = "squares",
        n_bins: int = 16,
        min_cells: int = 10,
        n_arrows: int = 150,
        random_state: int = 0,
    ) -> Self:
        """Collect the numbers from explained cells.

        Parameters
        ----------
        adata : AnnData
            Data with the results of a GradientExplainer.
        x, y : str
            Markers.
        key : str, default "gradient"
            The explainer's ``key_added``.
        color : str, default "reluformer"
            Column of ``obs`` with the class.
        arrows : {"squares", "cells"}, default "squares"
            Mean gradient of the cells of a class in a square of the plane, or gradients of single
            cells.
        n_bins : int, default 16
            Number of squares per axis.
        min_cells : int, default 10
            Smallest number of cells of a class in a square for which an arrow is drawn.
        n_arrows : int, default 150
            Number of single cells with an arrow, as many of each class as there are, up to an
            equal part.
        random_state : int, default 0
            Seed of the choice of cells: of those with arrows, and among more than 100,000.

        Raises
        ------
        MissingKeyError, InvalidInputError
            The gradient, the column or the marker is missing (the message lists the alternatives),
            or ``arrows`` is unknown.
        """
        if arrows not in ("squares", "cells"):
            raise InvalidInputError(f"arrows={arrows!r}: choose 'squares' or 'cells'.")
        require_key(key, adata.layers.keys(), "the layer")
        require_key(color, adata.obs.columns, "the obs column")
        columns = [marker_column(adata, x), marker_column(adata, y)]
        values = np.asarray(_values(adata, key)[:, columns], dtype=np.float64)
        gradient = np.asarray(adata.layers[key][:, columns], dtype=np.float64)
        steps = plane_units(adata, key, (x, y))
        gradient *= steps
        for marker, column in zip((x, y), gradient.T, strict=True):
            if np.isnan(column).all():
                explained = adata.var_names[~np.isnan(adata.layers[key]).all(0)]
                raise InvalidInputError(
                    f"The model does not use marker {marker!r}; explained are "
                    f"{', '.join(explained)}."
                )
        table = pd.DataFrame(
            {
                "x": values[:, 0],
                "y": values[:, 1],
                "group": adata.obs[color].to_numpy(),
                "dx": gradient[:, 0],
                "dy": gradient[:, 1],
            }
        ).dropna()
        hues = present(table["group"], column_colours(adata, color))
        cells = shown_cells(table, random_state)[["x", "y", "group"]].reset_index(drop=True)
        cells["group"] = pd.Categorical(cells["group"], categories=list(hues))
        if arrows == "squares":
            drawn = _binned(table, n_bins, min_cells)
        else:
            drawn = _single(table, n_arrows, random_state)
        return cls(
            cells,
            drawn,
            x,
            y,
            str(adata.uns.get(key, {}).get("explained", "")),
            hues,
            gradient_unit(adata, key),
            float(steps[0]),
            adata,
        )

    def plot(self, ax: Axes | None = None, *, arrow_length: float = 1.0) -> Self:
        """Draw the plot.

        Parameters
        ----------
        ax : matplotlib Axes, optional
        arrow_length : float, default 1.0
            Factor on the length of the arrows. At 1 the 95th percentile has a twelfth of the
            smaller range of the two markers.
        """
        ax = new_axes(ax, (6.0, 5.2))
        hues = self.colours
        ax.hexbin(
            self.cells["x"],
            self.cells["y"],
            gridsize=80,
            norm=LogNorm(),
            cmap="Greys",
            mincnt=1,
            alpha=0.35,
            linewidths=0,
            rasterized=True,
        )
        size = float(np.clip(40_000 / max(len(self.cells), 1), 0.3, 8))
        ax.scatter(
            self.cells["x"],
            self.cells["y"],
            c=np.array([hues[g] for g in self.cells["group"]], dtype=object).tolist(),
            s=size,
            alpha=0.25,
            linewidths=0,
            rasterized=True,
        )
        self._draw_arrows(ax, arrow_length)
        ax.set_xlabel(self.x)
        ax.set_ylabel(self.y)
        ax.set_title(f"gradient of {self.explained}" if self.explained else "", fontsize="medium")
        raw_ticks(ax.xaxis, self._adata, self.x)
        raw_ticks(ax.yaxis, self._adata, self.y)
        for name, hue in hues.items():
            ax.scatter([], [], color=hue, s=20, label=str(name))
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize="small")
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _draw_arrows(self, ax: Axes, arrow_length: float) -> None:
        table = self.arrows
        if table.empty:
            return
        length = np.hypot(table["dx"], table["dy"])
        longest = float(np.quantile(length, 0.95))
        width = float(min(np.ptp(self.cells["x"]), np.ptp(self.cells["y"]))) / 12
        factor = arrow_length * width / longest if longest > 0 else 0.0
        self.quiver_ = draw_arrows(
            ax,
            table,
            factor,
            color=[self.colours[g] for g in table["group"]],
            width=0.005,
            edgecolor="black",
            linewidth=0.5 if (table["n_cells"] > 1).any() else 0.3,
        )
        self.scale_ = arrow_scale(ax, self.quiver_, factor * self.step, self.x, self.unit)

    def frame(self) -> pd.DataFrame:
        """Return the arrows as a table."""
        return self.arrows.copy()


def _values(adata: AnnData, key: str) -> Any:
    """The values at which the gradient was taken."""
    layer = adata.uns.get(key, {}).get("layer")
    return adata.X if layer is None else adata.layers[layer]


def plane_units(adata: AnnData, key: str, markers: Sequence[str]) -> np.ndarray:
    """Factors, one per marker, that turn a gradient into a step along the axes.

    A gradient per training SD is a step in SD. A gradient per unit of the layer is a step in these
    units.
    """
    record = adata.uns.get(key, {})
    if record.get("units") != "sd":
        return np.ones(len(markers))
    known = dict(zip(record["markers"], record["marker_sd"], strict=True))
    return np.array([known.get(marker, np.nan) for marker in markers])


def gradient_unit(adata: AnnData, key: str) -> str:
    """Unit of a gradient, as in "0.5 per SD"."""
    return "per SD" if adata.uns.get(key, {}).get("units") == "sd" else "per unit"


def _single(table: pd.DataFrame, n_arrows: int, random_state: int) -> pd.DataFrame:
    """Gradients of some cells of each class."""
    groups = table.sample(frac=1, random_state=random_state).groupby("group", observed=True)
    part = -(-n_arrows // max(groups.ngroups, 1))
    return groups.head(part).head(n_arrows).assign(n_cells=1).reset_index(drop=True)


def _binned(table: pd.DataFrame, n_bins: int, min_cells: int) -> pd.DataFrame:
    """Mean position and gradient per class and square."""
    squares = []
    for axis in ("x", "y"):
        low, high = np.quantile(table[axis], [0.002, 0.998]) if len(table) else (0.0, 1.0)
        edges = np.linspace(low, high, n_bins + 1)[1:-1]
        squares.append(np.searchsorted(edges, table[axis]))
    groups = [table["group"].astype(object), pd.Series(squares[0]), pd.Series(squares[1])]
    by = table.reset_index(drop=True).groupby(
        [pd.Series(np.asarray(g)) for g in groups], sort=True, observed=True
    )
    out = by[["x", "y", "dx", "dy"]].mean()
    out["n_cells"] = by.size()
    out = out[out["n_cells"] >= min_cells]
    out.index.names = ["group", None, None]
    return out.reset_index("group").reset_index(drop=True)
