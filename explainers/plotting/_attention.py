"""Plots of the attention that cells receive, on a plane of two markers or on an embedding."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import pandas as pd
from anndata import AnnData

from explainers.plotting.style import name_axes, places, present, shown_cells
from fcm_estimators.colours import column_colours
from fcm_estimators.exceptions import require_key
from fcm_estimators.keys import AttentionKeys

# Received attention above this quantile is drawn in one colour.
_CEILING_QUANTILE = 0.99
_UNIT = "received attention (1 = uniform)"


@dataclass
class AttentionDisplay:
    """Cells coloured by received attention, on two markers or on an embedding.

    For one layer, a panel for the assigned heads and one for each head; without a layer, one panel
    for the mean over all layers and heads.

    If a head attends to cells, this does not mean that the model needs them: see
    ``explainers.faithfulness.head_ablation``.

    Attributes
    ----------
    cells : DataFrame
        ``x``, ``y``; for a layer ``head`` (Categorical) and one column of received attention per
        head, else ``mean``. 1 = uniform.
    axes : (str, str)
        Names of the horizontal and vertical axis.
    layer : int or None
    colours : dict of str to str
        Colour of each assigned head, as in ``uns``.
    """

    cells: pd.DataFrame
    axes: tuple[str, str]
    layer: int | None
    colours: dict[str, str]
    _adata: AnnData = field(repr=False)

    @classmethod
    def from_explanation(
        cls,
        adata: AnnData,
        x: str | None = None,
        y: str | None = None,
        *,
        basis: str = "umap",
        key: str = AttentionKeys.key,
        random_state: int = 0,
    ) -> Self:
        """Collect the numbers from explained cells.

        Parameters
        ----------
        adata : AnnData
            Data with the results of an AttentionExplainer.
        x, y : str, optional
            Markers of the plane; the ticks show raw values. Default: the embedding.
        basis : str, default "umap"
            Embedding ``obsm[f"X_{basis}"]``.
        key : str, default "attention"
            The explainer's ``key_added``.
        random_state : int, default 0
            Seed of the choice among more than 100,000 cells, and of the order of drawing.

        Raises
        ------
        MissingKeyError, InvalidInputError
            The attention, the embedding or a marker is missing (the message lists the
            alternatives), or only one marker is given.
        """
        keys = AttentionKeys(key)
        require_key(keys.record, adata.uns.keys(), "the run record of an AttentionExplainer in uns")
        table, names = places(adata, x, y, basis)
        layer = adata.uns[keys.record].get("net_layer")
        if layer is None:
            require_key(keys.mean, adata.obs.columns, "the obs column")
            table["mean"] = adata.obs[keys.mean]
            return cls(shown_cells(table.dropna(), random_state), names, None, {}, adata)
        layer = int(layer)
        require_key(keys.head, adata.obs.columns, "the obs column")
        require_key(keys.received(layer), adata.obsm.keys(), "the obsm table")
        table["head"] = adata.obs[keys.head]
        table = pd.concat([table, adata.obsm[keys.received(layer)]], axis=1).dropna()
        hues = column_colours(adata, keys.head)
        return cls(shown_cells(table, random_state), names, layer, hues, adata)

    @property
    def heads(self) -> list[str]:
        """Names of the heads of the layer; none for the mean."""
        return [] if self.layer is None else list(self.cells.columns[3:])

    def plot(self, axes: Any = None, *, n_columns: int | None = None) -> Self:
        """Draw the panels.

        Parameters
        ----------
        axes : matplotlib Axes or sequence of them, optional
            One more than the number of heads; one for the mean.
        n_columns : int, optional
            Columns of the heads; the assignment is left of them, as high as all rows. Default: all
            heads in one row if there are fewer than 4, else two rows, and at most 4 columns.
        """
        n = 1 + len(self.heads)
        axes = _new_panels(len(self.heads), n_columns) if axes is None else np.ravel(axes)
        for spare in axes[n:]:
            spare.set_visible(False)
        if self.layer is None:
            self._draw_values(axes[0], "mean", "mean of all layers and heads")
        else:
            self._draw_assigned(axes[0])
            for ax, head in zip(axes[1:n], self.heads, strict=True):
                self._draw_values(ax, head, f"{head}, layer {self.layer}")
        for ax in axes[:n]:
            name_axes(ax, self._adata, self.axes)
        self.axes_, self.figure_ = axes[:n], axes[0].figure
        return self

    def _style(self) -> dict[str, Any]:
        size = float(np.clip(30_000 / max(len(self.cells), 1), 0.2, 8))
        return {"s": size, "linewidths": 0, "rasterized": True}

    def _draw_values(self, ax: Any, column: str, title: str) -> None:
        cells = self.cells.sort_values(column)
        values = cells[column].to_numpy()
        top = max(2.0, float(np.quantile(values, _CEILING_QUANTILE))) if len(values) else 2.0
        style = {"cmap": "viridis", "vmin": 0, "vmax": top, **self._style()}
        points = ax.scatter(cells["x"], cells["y"], c=values, **style)
        ax.figure.colorbar(points, ax=ax, label=_UNIT, extend="max")
        ax.set_title(title, fontsize="medium")

    def _draw_assigned(self, ax: Any) -> None:
        hues = present(self.cells["head"], self.colours)
        shown = [hues[head] for head in self.cells["head"]]
        ax.scatter(self.cells["x"], self.cells["y"], c=shown, **self._style())
        for name, hue in hues.items():
            share = (self.cells["head"] == name).mean()
            ax.scatter([], [], color=hue, s=20, label=f"{name} ({share:.0%})")
        ax.legend(
            title="head that attends most to the cell",
            frameon=False,
            fontsize="small",
            loc="lower center",
            bbox_to_anchor=(0.5, 1),
            ncols=3,
            columnspacing=1,
            handletextpad=0.1,
        )

    def frame(self) -> pd.DataFrame:
        """Return the plotted cells, with position and received attention."""
        return self.cells.copy()


def _new_panels(n_heads: int, n_columns: int | None) -> np.ndarray:
    """Axes of a new figure: one for the assignment or the mean, then one for each head."""
    import matplotlib.pyplot as plt

    if n_heads == 0:
        return np.array([plt.subplots(figsize=(4.0, 3.4), layout="constrained")[1]])
    if n_columns is None:
        n_columns = n_heads if n_heads < 4 else min(4, -(-n_heads // 2))
    n_rows = -(-n_heads // n_columns)
    places = np.arange(n_rows * n_columns).reshape(n_rows, n_columns).astype(object)
    places[places >= n_heads] = "."
    panels = np.column_stack([np.full(n_rows, "first", dtype=object), places])
    widths = [min(n_rows, 2)] + [1] * n_columns
    found = plt.subplot_mosaic(
        panels.tolist(),
        figsize=(3.5 * sum(widths), 3.3 * n_rows),
        width_ratios=widths,
        layout="constrained",
    )[1]
    return np.array([found["first"], *(found[head] for head in range(n_heads))])
