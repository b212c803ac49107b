"""A gate in its plane: the expert's outline, the predicted one, and the cells that move it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.patches import Polygon

from explainers.plotting._field import plane_units
from explainers.plotting.style import HUES, draw_arrows, new_axes, raw_ticks
from fcm_estimators.exceptions import InvalidInputError, require_key
from fcm_estimators.gating import GatingTree, PolygonGate
from fcm_estimators.gating.pictures import outline_in_data, picture_limits
from fcm_estimators.preprocessing.ticks import marker_column


@dataclass
class GateDisplay:
    """Density of the cells in a gate's parent, its outline, the expert's, and arrows.

    Arrows belong to the cells whose markers move the explained output most (the coordinate of a
    vertex, the size of the gate): in which direction of this plane each cell would have to differ
    for the output to rise. They are the model's sensitivity, not a path of cells.

    Attributes
    ----------
    cells : DataFrame
        ``x``, ``y`` of the cells inside the parent.
    outlines : dict of str to ndarray of shape (V, 2)
        "predicted" and, where given, "expert", in the units of the data.
    arrows : DataFrame
        ``x``, ``y``, ``dx``, ``dy`` of the cells that matter most; empty without gradients.
    gate, x, y : str
        Name and markers.
    explained : str
        What the arrows are of.
    """

    cells: pd.DataFrame
    outlines: dict[str, np.ndarray]
    arrows: pd.DataFrame
    gate: str
    x: str
    y: str
    explained: str
    _adata: AnnData

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
        """Gather the picture.

        Parameters
        ----------
        adata : AnnData
            Cells of one sample.
        tree : GatingTree
            Its gates, such as those of ``predict_gates``.
        gate : str
            Gate with a polygon.
        expert : GatingTree, optional
            With a polygon of the same name in the same plane.
        key : str, optional
            Layer of gradients of a GradientExplainer (``key_added``) to draw arrows from.
        n_arrows : int, default 60
            Cells with the longest gradients in the plane, among those inside the parent.

        Raises
        ------
        MissingKeyError, InvalidInputError
            No such gate, marker or layer; a gate without polygon; an expert gate in another plane.
        """
        polygon = _polygon(tree, gate)
        parents = tree.apply(adata)
        inside = np.ones(adata.n_obs, dtype=bool)
        if polygon.parent:
            inside = parents[polygon.parent].to_numpy()
        columns = [marker_column(adata, m) for m in polygon.markers]
        places = np.asarray(adata.X[:, columns], dtype=np.float64)
        outlines = {"predicted": outline_in_data(adata, polygon)}
        if expert is not None:
            drawn = _polygon(expert, gate)
            if drawn.markers != polygon.markers:
                raise InvalidInputError(
                    f"The expert's gate {gate!r} lies in the plane {drawn.markers}, the tree's in "
                    f"{polygon.markers}."
                )
            outlines["expert"] = outline_in_data(adata, drawn)
        arrows, explained = pd.DataFrame(columns=["x", "y", "dx", "dy"], dtype=float), ""
        if key is not None:
            require_key(key, adata.layers.keys(), "the layer")
            explained = str(adata.uns.get(key, {}).get("explained", ""))
            step = np.asarray(adata.layers[key][:, columns], dtype=np.float64)
            step *= plane_units(adata, key, polygon.markers)
            length = np.where(inside, np.nan_to_num(np.hypot(*step.T)), 0.0)
            chosen = np.argsort(-length)[:n_arrows]
            chosen = chosen[length[chosen] > 0]
            arrows = pd.DataFrame(
                np.column_stack([places[chosen], step[chosen]]), columns=["x", "y", "dx", "dy"]
            )
        cells = pd.DataFrame(places[inside], columns=["x", "y"])
        return cls(cells, outlines, arrows, gate, *polygon.markers, explained, adata)

    def plot(self, ax: Axes | None = None, *, arrow_length: float = 1.0) -> Self:
        """Draw the picture.

        Parameters
        ----------
        ax : matplotlib Axes, optional
        arrow_length : float, default 1.0
            Factor on the arrows; at 1 the longest is an eighth of the picture's width.
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
            ax.add_patch(
                Polygon(outline, fill=False, edgecolor=hue, linestyle=line, linewidth=2, label=name)
            )
        if len(self.arrows):
            self._draw_arrows(ax, arrow_length * float(high[0] - low[0]) / 8)
        ax.set_xlim(low[0], high[0])
        ax.set_ylim(low[1], high[1])
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
        """Ends of the axes; outlines that go far beyond the cells run out of the picture."""
        corners = np.concatenate(list(self.outlines.values()))
        cells = self.cells.to_numpy() if len(self.cells) else corners
        return picture_limits(cells, corners)

    def _draw_arrows(self, ax: Axes, width: float) -> None:
        longest = float(np.hypot(self.arrows["dx"], self.arrows["dy"]).max())
        self.quiver_ = draw_arrows(ax, self.arrows, width / longest, color=HUES[2], width=0.004)

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
        known = ", ".join(g.name for g in tree if isinstance(g, PolygonGate))
        raise InvalidInputError(f"Gate {gate!r} has no polygon; those that have one are {known}.")
    return found
