"""Two markers: where the cells are, what they are called, and where the gradient points."""

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

# Points of one picture; a random choice of more cells looks the same.
_SHOWN = 100_000


@dataclass
class GradientFieldDisplay:
    """Density of two markers, cells coloured by class, mean gradient as arrows.

    An arrow is the mean over the cells of a class in one square of the plane, in the plane: where
    the model's output rises if those cells had other values of these two markers. It is not where
    cells go. Gradients per training SD are drawn as steps in SD, so the two markers weigh alike
    whatever their units.

    Attributes
    ----------
    cells : DataFrame
        ``x``, ``y``, ``group`` of the cells shown.
    arrows : DataFrame
        ``x``, ``y`` (mean of the cells), ``dx``, ``dy`` (mean gradient), ``group``, ``n_cells``.
    x, y : str
        Markers.
    explained : str
        What the gradient is of.
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
        """Gather the picture from explained cells.

        Parameters
        ----------
        adata : AnnData
            Explained by a GradientExplainer.
        x, y : str
            Markers.
        key : str, default "gradient"
            The explainer's ``key_added``.
        color : str, default "reluformer"
            Column of ``obs``.
        n_bins : int, default 16
            Squares per axis that have an arrow each.
        min_cells : int, default 10
            Cells of a class below which its square has no arrow.
        random_state : int, default 0
            Of the choice among more than 100,000 cells.

        Raises
        ------
        MissingKeyError, InvalidInputError
            Not explained, no such column or marker; the message names what there is.
        """
        require_key(key, adata.layers.keys(), "the layer")
        require_key(color, adata.obs.columns, "the obs column")
        columns = [marker_column(adata, x), marker_column(adata, y)]
        values = np.asarray(_values(adata, key)[:, columns], dtype=np.float64)
        gradient = np.asarray(adata.layers[key][:, columns], dtype=np.float64)
        gradient *= plane_units(adata, key, (x, y))
        for marker, column in zip((x, y), gradient.T, strict=True):
            if np.isnan(column).all():
                known = adata.var_names[~np.isnan(adata.layers[key]).all(0)]
                raise InvalidInputError(
                    f"The model does not use marker {marker!r}; explained are {', '.join(known)}."
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
        if len(table) > _SHOWN:
            chosen = table.sample(_SHOWN, random_state=random_state)
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
        """Draw the picture.

        Parameters
        ----------
        ax : matplotlib Axes, optional
        arrow_length : float, default 1.0
            Factor on the arrows; at 1 the 95th percentile is as long as a square is wide.
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
    """The matrix whose gradient was taken."""
    layer = adata.uns.get(key, {}).get("layer")
    return adata.X if layer is None else adata.layers[layer]


def plane_units(adata: AnnData, key: str, markers: Sequence[str]) -> np.ndarray:
    """What turns a gradient into a step along the axes, per marker.

    A gradient per training SD is a step in SD; a gradient per unit of the layer is one in units.
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
