"""Heatmaps of gradients, of influence between populations, and of heads per population."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from explainers.plotting.style import new_axes
from fcm_estimators.exceptions import InvalidInputError

if TYPE_CHECKING:
    from explainers._specialisation import Specialisation
    from explainers.faithfulness import HeadAblation

# Share of the darkest colour from which text is white.
_DARK = 0.6


@dataclass
class GradientSummaryDisplay:
    """Mean signed gradient of each marker in each population, with its interval.

    Each field shows the mean. It is in brackets if the interval includes zero, so that the sign is
    unknown.

    Attributes
    ----------
    summary : DataFrame
        Result of ``GradientExplainer.summary``.
    """

    summary: pd.DataFrame

    @classmethod
    def from_summary(cls, summary: pd.DataFrame) -> Self:
        """Take the table.

        Parameters
        ----------
        summary : DataFrame
            Result of ``GradientExplainer.summary``. Use ``units="sd"`` to compare markers.

        Raises
        ------
        InvalidInputError
            The table lacks a column.
        """
        needed = ["population", "marker", "mean", "ci_low", "ci_high"]
        missing = [name for name in needed if name not in summary]
        if missing:
            raise InvalidInputError(
                f"The table lacks {missing}. Pass the result of GradientExplainer.summary."
            )
        return cls(summary)

    def plot(self, ax: Axes | None = None) -> Self:
        """Draw the heatmap."""
        # Keep the order of the table, because unstack sorts.
        order = [list(dict.fromkeys(self.summary[name])) for name in ("population", "marker")]
        table = self.frame()
        mean = table["mean"].unstack("marker").loc[order[0], order[1]]
        has_sign = ((table["ci_low"] > 0) | (table["ci_high"] < 0)).unstack("marker")
        has_sign = has_sign.loc[order[0], order[1]]
        values, known = mean.to_numpy(dtype=float), has_sign.to_numpy(dtype=bool)
        ax = new_axes(ax, (1.6 + 0.75 * values.shape[1], 1.2 + 0.55 * values.shape[0]))
        top = float(np.abs(values).max()) or 1.0
        image = ax.imshow(values, cmap="PuOr_r", vmin=-top, vmax=top, aspect="auto")
        text = [
            [f"{v:.2g}" if k else f"({v:.2g})" for v, k in zip(*rows, strict=True)]
            for rows in zip(values, known, strict=True)
        ]
        _write_text(ax, text, np.abs(values) / top)
        _label_axes(ax, mean)
        ax.figure.colorbar(image, ax=ax, label="mean gradient; (): interval includes 0")
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def frame(self) -> pd.DataFrame:
        """Return mean and interval, indexed by population and marker."""
        return self.summary.set_index(["population", "marker"])[["mean", "ci_low", "ci_high"]]


@dataclass
class InfluenceMatrixDisplay:
    """What happens to each population if another one is hidden, exactly.

    The colour and the first number of a field are the change of the target of the population of
    the column if that of the row is hidden. It is in brackets if the interval over samples includes
    zero, or there is none because there is one sample. Below it, for classifiers, is the share of
    the cells that switch class.

    Attributes
    ----------
    between : DataFrame
        Result of ``InfluenceExplainer.between``.
    name : str
        Label of the colour.
    """

    between: pd.DataFrame
    name: str

    @classmethod
    def from_between(cls, between: pd.DataFrame, *, name: str = "change of the target") -> Self:
        """Take the table.

        Parameters
        ----------
        between : DataFrame
            Result of ``InfluenceExplainer.between``.
        name : str, default "change of the target"
            Label of the colour, such as "change of the log-odds of blast".

        Raises
        ------
        InvalidInputError
            The table lacks a column.
        """
        needed = ["hidden", "target", "change", "ci_low", "ci_high", "switched", "share_hidden"]
        missing = [column for column in needed if column not in between]
        if missing:
            raise InvalidInputError(
                f"The table lacks {missing}. Pass the result of InfluenceExplainer.between."
            )
        return cls(between, name)

    def plot(self, ax: Axes | None = None) -> Self:
        """Draw the heatmap; fields without cells are empty."""
        rows, columns = (list(dict.fromkeys(self.between[n])) for n in ("hidden", "target"))
        index = self.between.set_index(["hidden", "target"])
        change = index["change"].unstack().loc[rows, columns].astype(float)
        text = [[_change_text(index.loc[(row, column)]) for column in columns] for row in rows]
        values = change.to_numpy()
        known = np.abs(values[~np.isnan(values)])
        top = (float(known.max()) if len(known) else 0.0) or 1.0
        ax = new_axes(ax, (2.8 + 0.8 * len(columns), 1.6 + 0.6 * len(rows)))
        image = ax.imshow(values, cmap="PuOr_r", vmin=-top, vmax=top, aspect="auto")
        _write_text(ax, text, np.abs(np.nan_to_num(values)) / top)
        share = self.between.groupby("hidden")["share_hidden"].mean()
        change.index = [f"{row} ({share[row]:.1%})" for row in rows]
        _label_axes(ax, change)
        ax.set(xlabel="target cells", ylabel="hidden (share of the sample)")
        ax.set_title(
            "change (in brackets: no interval, or it includes 0)\nshare that switches class",
            fontsize="small",
        )
        ax.figure.colorbar(image, ax=ax, label=self.name)
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def frame(self) -> pd.DataFrame:
        """Return the table."""
        return self.between.copy()


def _change_text(pair: pd.Series) -> str:
    if np.isnan(pair["change"]):
        return ""
    has_sign = pair["ci_low"] > 0 or pair["ci_high"] < 0
    text = f"{pair['change']:.2g}" if has_sign else f"({pair['change']:.2g})"
    return text if np.isnan(pair["switched"]) else f"{text}\n{pair['switched']:.1%}"


@dataclass
class HeadMatrixDisplay:
    """Populations that each head attends to, and effects of the head on them.

    Attributes
    ----------
    table : DataFrame
        ``head``, ``population``, ``value`` (the colour) and ``label`` (the text in the field).
    name : str
        Label of the colour.
    caption : str
        Meaning of the text.
    """

    table: pd.DataFrame
    name: str
    caption: str

    @classmethod
    def from_head_ablation(cls, result: HeadAblation) -> Self:
        """Attention as colour, and change of the logits without the head as text."""
        effects = result.effects
        numbers = zip(effects["change"], effects["switched"], strict=True)
        text = [f"{change:.2f}\n{switched:.1%}" for change, switched in numbers]
        return cls(
            _fields(effects, "attention", text),
            "received attention (1 = uniform)",
            "without the head: change of the logits, share of cells that switch class",
        )

    @classmethod
    def from_specialisation(cls, result: Specialisation) -> Self:
        """Log odds ratio of assigned head and population as colour, number of cells as text."""
        table = result.enrichment
        numbers = zip(table["n_cells"], table["share_of_head"], strict=True)
        text = [f"{n_cells:,}\n{share:.0%}" for n_cells, share in numbers]
        return cls(
            _fields(table, "log_odds", text),
            "log odds ratio",
            "cells, and their share of the head's cells",
        )

    def plot(self, ax: Axes | None = None) -> Self:
        """Draw the matrix."""
        order = [list(dict.fromkeys(self.table[name])) for name in ("head", "population")]
        index = self.table.set_index(["head", "population"])
        value = index["value"].unstack().loc[order[0], order[1]].astype(float)
        label = index["label"].unstack().loc[order[0], order[1]]
        ax = new_axes(ax, (2.2 + 1.0 * value.shape[1], 1.4 + 0.6 * value.shape[0]))
        if (value.to_numpy() < 0).any():
            top = float(np.nanmax(np.abs(value.to_numpy())))
            limits: dict[str, Any] = {"cmap": "PuOr_r", "vmin": -top, "vmax": top}
            depth = np.abs(value.to_numpy()) / top
        else:
            top = max(2.0, float(np.nanmax(value.to_numpy())))
            limits = {"cmap": "Purples", "vmin": 0, "vmax": top}
            depth = value.to_numpy() / top
        image = ax.imshow(value, aspect="auto", **limits)
        _write_text(ax, label.to_numpy().tolist(), depth)
        _label_axes(ax, value)
        ax.set_title(self.caption, fontsize="small")
        ax.figure.colorbar(image, ax=ax, label=self.name)
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def frame(self) -> pd.DataFrame:
        """Return the plotted table."""
        return self.table.copy()


def _fields(table: pd.DataFrame, value: str, text: list[str]) -> pd.DataFrame:
    """Table of a HeadMatrixDisplay: colour from a column, and the text of each field."""
    found = table[["head", "population", value]].rename(columns={value: "value"})
    return found.assign(label=text)


def _write_text(ax: Axes, text: list[list[str]], depth: np.ndarray) -> None:
    """Write text into each field, in white on dark fields."""
    for i, row in enumerate(text):
        for j, entry in enumerate(row):
            hue = "white" if depth[i, j] > _DARK else "black"
            ax.text(j, i, entry, ha="center", va="center", color=hue, fontsize="x-small")


def _label_axes(ax: Axes, table: pd.DataFrame) -> None:
    ax.set_xticks(range(table.shape[1]), [str(c) for c in table.columns], rotation=40, ha="right")
    ax.set_yticks(range(table.shape[0]), [str(r) for r in table.index])
