"""Plot of a gate in its plane: predicted outline, expert's outline and gradients."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.patches import Polygon

from explainers.plotting._field import gradient_unit, plane_units
from explainers.plotting.style import arrow_scale, draw_arrows, new_axes, raw_ticks
from fcm_estimators.colours import HUES
from fcm_estimators.exceptions import InvalidInputError, require_key
from fcm_estimators.gating import GatingTree, PolygonGate
from fcm_estimators.gating.pictures import outline_in_data, outline_in_frame, picture_limits
from fcm_estimators.preprocessing.ticks import marker_column


@dataclass
class GateDisplay:
    """Density of the cells in the parent of a gate, with outlines and arrows.

    Arrows are drawn for the cells with the longest gradients of the explained output (the
    coordinate of a vertex, or the size of the gate). An arrow shows the change of the cell in this
    plane that would raise the output. It shows the sensitivity of the model, not a path of cells.

    Attributes
    ----------
    cells : DataFrame
        ``x``, ``y`` of the cells inside the parent.
    outlines : dict of str to ndarray of shape (V, 2)
        "predicted" and, if given, "expert", in the units of the data.
    arrows : DataFrame
        ``x``, ``y``, ``dx``, ``dy`` of the cells with the longest gradients; empty without
        gradients.
    gate, x, y : str
        Name and markers of the gate.
    explained : str
        Explained output.
    unit : str
        Unit of a gradient.
    step : float
        Length along the horizontal axis of a gradient of 1: the SD of the marker, or 1.
    """

    cells: pd.DataFrame
    outlines: dict[str, np.ndarray]
    arrows: pd.DataFrame
    gate: str
    x: str
    y: str
    explained: str
    unit: str
    step: float
    _adata: AnnData = field(repr=False)

    @classmethod
    def from_tree(
        cls,
        adata: AnnData,
        tree: GatingTree,
        gate: str,
        *,
        expert: GatingTree | None = None,
        key: str | None = None,
        n_arrows: int = 60,
    ) -> Self:
        """Collect the numbers.

        Parameters
        ----------
        adata : AnnData
            Cells of one sample.
        tree : GatingTree
            Gates of the sample, for example those of ``predict_gates``.
        gate : str
            Gate with a polygon.
        expert : GatingTree, optional
            Gates of the expert, with a polygon of the same name in the same plane.
        key : str, optional
            ``key_added`` of a GradientExplainer, whose layer gives the arrows.
        n_arrows : int, default 60
            Number of arrows. They belong to the cells with the longest gradients in the plane,
            among those inside the parent.

        Raises
        ------
        MissingKeyError, InvalidInputError
            The gate, marker or layer is missing; the gate has no polygon; or the expert's gate is
            in another plane.
        """
        # Trees from files of other software name channels, the others markers.
        tree = tree.on_markers(adata)
        polygon = _polygon(tree, gate)
        parents = tree.apply(adata)
        inside = np.ones(adata.n_obs, dtype=bool)
        if polygon.parent:
            inside = parents[polygon.parent].to_numpy()
        columns = [marker_column(adata, m) for m in polygon.markers]
        places = np.asarray(adata.X[:, columns], dtype=np.float64)
        outlines = {"predicted": outline_in_data(adata, polygon)}
        if expert is not None:
            other = _polygon(expert.on_markers(adata), gate)
            if other.markers != polygon.markers:
                raise InvalidInputError(
                    f"The expert's gate {gate!r} is in the plane {other.markers}, but the gate in "
                    f"tree is in {polygon.markers}."
                )
            outlines["expert"] = outline_in_data(adata, other)
        arrows, explained = pd.DataFrame(columns=["x", "y", "dx", "dy"], dtype=float), ""
        unit, along = "", 1.0
        if key is not None:
            require_key(key, adata.layers.keys(), "the layer")
            explained = str(adata.uns.get(key, {}).get("explained", ""))
            step = np.asarray(adata.layers[key][:, columns], dtype=np.float64)
            steps = plane_units(adata, key, polygon.markers)
            step *= steps
            unit, along = gradient_unit(adata, key), float(steps[0])
            length = np.where(inside, np.nan_to_num(np.hypot(*step.T)), 0.0)
            chosen = np.argsort(-length)[:n_arrows]
            chosen = chosen[length[chosen] > 0]
            arrows = pd.DataFrame(
                np.column_stack([places[chosen], step[chosen]]), columns=["x", "y", "dx", "dy"]
            )
        cells = pd.DataFrame(places[inside], columns=["x", "y"])
        return cls(cells, outlines, arrows, gate, *polygon.markers, explained, unit, along, adata)

    def plot(self, ax: Axes | None = None, *, arrow_length: float = 1.0) -> Self:
        """Draw the plot.

        Parameters
        ----------
        ax : matplotlib Axes, optional
        arrow_length : float, default 1.0
            Factor on the length of the arrows. At 1 the longest has an eighth of the width of the
            plot.
        """
        ax = new_axes(ax)
        low, high = self._limits()
        ax.hexbin(
            self.cells["x"],
            self.cells["y"],
            gridsize=90,
            norm=LogNorm(),
            cmap="Greys",
            mincnt=1,
            linewidths=0,
            rasterized=True,
        )
        styles = {"expert": (HUES[1], "--"), "predicted": (HUES[0], "-")}
        for name, outline in self.outlines.items():
            hue, line = styles[name]
            outline = outline_in_frame(self._adata, (self.x, self.y), outline)
            ax.add_patch(
                Polygon(outline, fill=False, edgecolor=hue, linestyle=line, linewidth=2, label=name)
            )
        ax.set_xlim(low[0], high[0])
        ax.set_ylim(low[1], high[1])
        if len(self.arrows):
            self._draw_arrows(ax, arrow_length * float(high[0] - low[0]) / 8)
        ax.set_xlabel(self.x)
        ax.set_ylabel(self.y)
        title = f"gate {self.gate}"
        ax.set_title(
            f"{title}\narrows: {self.explained}" if self.explained else title, fontsize="medium"
        )
        raw_ticks(ax.xaxis, self._adata, self.x)
        raw_ticks(ax.yaxis, self._adata, self.y)
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize="small")
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def _limits(self) -> tuple[np.ndarray, np.ndarray]:
        """Limits of the axes. Outlines are drawn as far as there are cells."""
        corners = np.concatenate(
            [
                outline_in_frame(self._adata, (self.x, self.y), outline)
                for outline in self.outlines.values()
            ]
        )
        cells = self.cells.to_numpy() if len(self.cells) else corners
        return picture_limits(cells, corners)

    def _draw_arrows(self, ax: Axes, width: float) -> None:
        longest = float(np.hypot(self.arrows["dx"], self.arrows["dy"]).max())
        factor = width / longest
        self.quiver_ = draw_arrows(ax, self.arrows, factor, color=HUES[2], width=0.004)
        self.scale_ = arrow_scale(ax, self.quiver_, factor * self.step, self.x, self.unit)

    def frame(self) -> pd.DataFrame:
        """Return the outlines as a table: ``outline``, ``x``, ``y``."""
        parts = [
            pd.DataFrame(outline, columns=["x", "y"]).assign(outline=name)
            for name, outline in self.outlines.items()
        ]
        return pd.concat(parts, ignore_index=True)[["outline", "x", "y"]]


def _polygon(tree: GatingTree, gate: str) -> PolygonGate:
    found = tree[gate]
    if not isinstance(found, PolygonGate):
        names = ", ".join(g.name for g in tree if isinstance(g, PolygonGate))
        raise InvalidInputError(f"Gate {gate!r} has no polygon; gates with a polygon are {names}.")
    return found
