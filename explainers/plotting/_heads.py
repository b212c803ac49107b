"""Plots of an embedding coloured by assigned head and by the attention of each head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
from anndata import AnnData

from explainers._populations import embedding_of
from explainers.plotting.style import categories, colours
from fcm_estimators.exceptions import require_key
from fcm_estimators.keys import AttentionKeys

# Largest number of points in one plot.
_MAX_POINTS = 100_000
# Received attention above this quantile is drawn in one colour.
_CEILING_QUANTILE = 0.99


@dataclass
class AttentionHeadsDisplay:
    """Embedding with one panel for the assigned heads and one for each head.

    If a head attends to cells, this does not mean that the model needs them: see
    ``explainers.faithfulness.head_ablation``.

    Attributes
    ----------
    cells : DataFrame
        ``x``, ``y``, ``head`` (Categorical), and one column of received attention per head,
        1 = uniform.
    basis : str
    layer : int
    """

    cells: pd.DataFrame
    basis: str
    layer: int

    @classmethod
    def from_adata(
        cls,
        adata: AnnData,
        *,
        basis: str = "umap",
        key: str = AttentionKeys.key,
        random_state: int = 0,
    ) -> Self:
        """Collect the numbers from explained cells.

        Parameters
        ----------
        adata : AnnData
            Data with the results of an AttentionExplainer and ``obsm[f"X_{basis}"]``.
        basis : str, default "umap"
        key : str, default "attention"
            The explainer's ``key_added``.
        random_state : int, default 0
            Seed of the choice among more than 100,000 cells, and of the order of drawing.

        Raises
        ------
        MissingKeyError
            The attention or the embedding is missing. The message lists the alternatives.
        """
        keys = AttentionKeys(key)
        require_key(keys.head, adata.obs.columns, "the obs column")  # needs a net_layer
        places = embedding_of(adata, basis)[:, :2]
        layer = int(adata.uns[keys.record]["net_layer"])
        received = adata.obsm[keys.received(layer)]
        table = pd.DataFrame({"x": places[:, 0], "y": places[:, 1]}, index=adata.obs_names)
        table["head"] = adata.obs[keys.head]
        table = pd.concat([table, received], axis=1).dropna()
        # Random order, so that no group is drawn on top of the others.
        shown = table.sample(min(len(table), _MAX_POINTS), random_state=random_state)
        return cls(shown, basis, layer)

    @property
    def heads(self) -> list[str]:
        """Names of the heads."""
        return [c for c in self.cells.columns if c not in ("x", "y", "head")]

    def plot(self, axes: Any = None, *, n_columns: int = 3) -> Self:
        """Draw the panels.

        Parameters
        ----------
        axes : sequence of matplotlib Axes, optional
            One more than the number of heads.
        n_columns : int, default 3
        """
        n = 1 + len(self.heads)
        if axes is None:
            import matplotlib.pyplot as plt

            n_rows = -(-n // n_columns)
            _, grid = plt.subplots(
                n_rows,
                n_columns,
                figsize=(3.6 * n_columns, 3.2 * n_rows),
                layout="constrained",
                squeeze=False,
            )
            axes = grid.ravel()
            for spare in axes[n:]:
                spare.set_visible(False)
        size = float(np.clip(30_000 / max(len(self.cells), 1), 0.2, 8))
        style = {"s": size, "linewidths": 0, "rasterized": True}
        self._draw_assigned(axes[0], style)
        for ax, head in zip(axes[1:n], self.heads, strict=True):
            values = self.cells[head].to_numpy()
            top = max(2.0, float(np.quantile(values, _CEILING_QUANTILE)))
            order = np.argsort(values)
            points = ax.scatter(
                self.cells["x"].to_numpy()[order],
                self.cells["y"].to_numpy()[order],
                c=values[order],
                cmap="viridis",
                vmin=0,
                vmax=top,
                **style,
            )
            ax.figure.colorbar(
                points, ax=ax, label="received attention (1 = uniform)", extend="max"
            )
            ax.set_title(f"{head}, layer {self.layer}", fontsize="medium")
        for ax in axes[:n]:
            ax.set(xticks=[], yticks=[], xlabel=f"{self.basis} 1", ylabel=f"{self.basis} 2")
        self.axes_, self.figure_ = axes[:n], axes[0].figure
        return self

    def _draw_assigned(self, ax: Any, style: dict[str, Any]) -> None:
        hues = colours(categories(self.cells["head"]))
        ax.scatter(
            self.cells["x"],
            self.cells["y"],
            c=[hues[h] for h in self.cells["head"]],
            **style,
        )
        for name, hue in hues.items():
            share = (self.cells["head"] == name).mean()
            ax.scatter([], [], color=hue, s=20, label=f"{name} ({share:.0%})")
        ax.legend(
            frameon=False,
            fontsize="small",
            loc="upper left",
            bbox_to_anchor=(1, 1),
            handletextpad=0.1,
        )
        ax.set_title("head that attends most to the cell", fontsize="medium")

    def frame(self) -> pd.DataFrame:
        """Return the plotted cells, with position, head and received attention."""
        return self.cells.copy()
