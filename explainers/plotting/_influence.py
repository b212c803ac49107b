"""Plot of the influence of cells, on a plane of two markers or on an embedding."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
import pandas as pd
from anndata import AnnData
from matplotlib.axes import Axes

from explainers.plotting.style import name_axes, new_axes, places, shown_cells
from fcm_estimators.exceptions import require_key
from fcm_estimators.keys import InfluenceKeys

# Influence beyond this quantile of its absolute value is drawn in one colour.
_CEILING_QUANTILE = 0.99


@dataclass
class InfluenceDisplay:
    """Cells coloured by their influence, on two markers or on an embedding.

    The colour is the change of the target if 1 % of the cells, all like this one, are hidden:
    orange where the target would rise without them, purple where it would fall. It is right for
    single cells and small groups. For populations see :class:`InfluenceMatrixDisplay`.

    Attributes
    ----------
    cells : DataFrame
        ``x``, ``y``, ``influence``.
    axes : (str, str)
        Names of the horizontal and vertical axis.
    explained, of : str
        Explained output, and its target cells.
    signed : bool
        False for ``AnyChange``, whose influence has no direction.
    """

    cells: pd.DataFrame
    axes: tuple[str, str]
    explained: str
    of: str
    signed: bool
    _adata: AnnData = field(repr=False)

    @classmethod
    def from_explanation(
        cls,
        adata: AnnData,
        x: str | None = None,
        y: str | None = None,
        *,
        basis: str = "umap",
        key: str = InfluenceKeys.key,
        random_state: int = 0,
    ) -> Self:
        """Collect the numbers from explained cells.

        Parameters
        ----------
        adata : AnnData
            Data with the results of an InfluenceExplainer.
        x, y : str, optional
            Markers of the plane; the ticks show raw values. Default: the embedding.
        basis : str, default "umap"
            Embedding ``obsm[f"X_{basis}"]``.
        key : str, default "influence"
            The explainer's ``key_added``.
        random_state : int, default 0
            Seed of the choice among more than 100,000 cells.

        Raises
        ------
        MissingKeyError, InvalidInputError
            The influence, the embedding or a marker is missing (the message lists the
            alternatives), or only one marker is given.
        """
        keys = InfluenceKeys(key)
        require_key(keys.record, adata.uns.keys(), "the run record of an InfluenceExplainer in uns")
        require_key(keys.values, adata.obs.columns, "the obs column")
        table, names = places(adata, x, y, basis)
        table["influence"] = adata.obs[keys.values]
        record = adata.uns[keys.record]
        return cls(
            shown_cells(table.dropna(), random_state),
            names,
            str(record["explained"]),
            str(record["of"]),
            bool(record["signed"]),
            adata,
        )

    def plot(self, ax: Axes | None = None) -> Self:
        """Draw the cells, those of the largest influence on top."""
        ax = new_axes(ax, (5.4, 4.2))
        cells = self.cells.sort_values("influence", key=np.abs)
        values = cells["influence"].to_numpy()
        top = float(np.quantile(np.abs(values), _CEILING_QUANTILE)) if len(values) else 0.0
        top = top or 1.0
        style: dict[str, Any] = {"cmap": "viridis", "vmin": 0, "vmax": top}
        if self.signed:
            style = {"cmap": "PuOr_r", "vmin": -top, "vmax": top}
        size = float(np.clip(40_000 / max(len(cells), 1), 0.3, 8))
        points = ax.scatter(
            cells["x"], cells["y"], c=values, s=size, linewidths=0, rasterized=True, **style
        )
        ax.figure.colorbar(
            points,
            ax=ax,
            label="change per 1 % of such cells hidden",
            extend="both" if self.signed else "max",
        )
        ax.set_title(f"influence on {self.explained}\n(targets: {self.of})", fontsize="medium")
        name_axes(ax, self._adata, self.axes)
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def frame(self) -> pd.DataFrame:
        """Return the plotted cells, with position and influence."""
        return self.cells.copy()
