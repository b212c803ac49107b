"""Plot of cells, their classes and their gradient in the plane of two markers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm

from explainers.plotting.style import categories, colours, draw_arrows, new_axes, raw_ticks
from fcm_estimators.exceptions import InvalidInputError, require_key
from fcm_estimators.keys import ClassKeys, GradientKeys
from fcm_estimators.preprocessing.ticks import marker_column

# Largest number of points in one plot; a random subset of more cells looks the same.
_MAX_POINTS = 100_000


@dataclass
class GradientFieldDisplay:
    """Density of two markers, cells coloured by class, and mean gradients as arrows.

    An arrow is the mean gradient of the cells of a class in one square of the plane. It shows the
    change of these two markers that would raise the output of the model. It does not show a
    movement of cells. Gradients per training SD are drawn as steps in SD, so both markers have the
    same weight in any units.

    Attributes
    ----------
    cells : DataFrame
        ``x``, ``y``, ``group`` of the cells shown.
    arrows : DataFrame
        ``x``, ``y`` (mean of the cells), ``dx``, ``dy`` (mean gradient), ``group``, ``n_cells``.
    x, y : str
        Markers.
    explained : str
        Explained output.
    """

    cells: pd.DataFrame
    arrows: pd.DataFrame
    x: str
    y: str
    explained: str
    _adata: AnnData = field(repr=False)

    @classmethod
    def from_adata(
        cls,
        adata: AnnData,
        x: str,
        y: str,
        *,
        key: str = GradientKeys.key,
        color: str = ClassKeys.key,
        n_bins: int = 16,
        min_cells: int = 10,
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
        n_bins : int, default 16
            Number of squares per axis.
        min_cells : int, default 10
            Smallest number of cells of a class in a square for which an arrow is drawn.
        random_state : int, default 0
            Seed of the choice among more than 100,000 cells.

        Raises
        ------
        MissingKeyError, InvalidInputError
            The gradient, the column or the marker is missing. The message lists the alternatives.
        """
        require_key(key, adata.layers.keys(), "the layer")
        require_key(color, adata.obs.columns, "the obs column")
        columns = [marker_column(adata, x), marker_column(adata, y)]
        values = np.asarray(_values(adata, key)[:, columns], dtype=np.float64)
        gradient = np.asarray(adata.layers[key][:, columns], dtype=np.float64)
        gradient *= plane_units(adata, key, (x, y))
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
        chosen = table
        if len(table) > _MAX_POINTS:
            chosen = table.sample(_MAX_POINTS, random_state=random_state)
        order = [name for name in categories(adata.obs[color]) if name in set(table["group"])]
        cells = chosen[["x", "y", "group"]].reset_index(drop=True)
        cells["group"] = pd.Categorical(cells["group"], categories=order)
        record = adata.uns.get(key, {})
        return cls(
            cells,
            _binned(table, n_bins, min_cells),
            x,
            y,
            str(record.get("explained", "")),
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
        hues = colours(list(self.cells["group"].cat.categories))
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
        self._draw_arrows(ax, hues, arrow_length)
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

    def _draw_arrows(self, ax: Axes, hues: dict[Any, Any], arrow_length: float) -> None:
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
            color=[hues[g] for g in table["group"]],
            width=0.005,
            edgecolor="black",
            linewidth=0.5,
        )

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
