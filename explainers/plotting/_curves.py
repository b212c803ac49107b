"""Plots of the faithfulness checks, with their controls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from explainers.plotting.style import new_axes
from fcm_estimators.colours import GREY, HUES

if TYPE_CHECKING:
    from explainers.faithfulness import (
        AttentionDeletion,
        Completeness,
        Deletion,
        LabelRandomisation,
        ParameterRandomisation,
        Removal,
        SeedAgreement,
        Sensitivity,
    )


@dataclass
class CurveDisplay:
    """Curves over the amount that was removed, randomised or added, and the band of a control.

    Attributes
    ----------
    curves : DataFrame
        ``curve``, ``x``, ``y``, and ``low``, ``high``: the range over repeats (equal to ``y``
        without repeats).
    x_name, y_name : str
        Labels of the axes.
    ticks : list of str
        Labels of the positions 0, 1, ... on the horizontal axis; empty for numbers.
    band : tuple of float or None
        Lower and upper limit of a control without a horizontal position.
    band_name : str
    """

    curves: pd.DataFrame
    x_name: str
    y_name: str
    ticks: list[str]
    band: tuple[float, float] | None = None
    band_name: str = ""

    @classmethod
    def from_deletion(cls, result: Deletion | AttentionDeletion) -> Self:
        """Output over the removed share, in each order."""
        curves = [
            _curve("explained order", result.share, result.curve[None]),
            _curve("reversed order", result.share, result.reversed[None]),
            _curve("far from the mean first", result.share, result.distance[None]),
            _curve("random order", result.share, result.random),
        ]
        return cls(pd.concat(curves), "removed share", result.name, [])

    @classmethod
    def from_parameter_randomisation(cls, result: ParameterRandomisation) -> Self:
        """Similarity over the stages of randomisation, with pairs of untrained nets."""
        share = result.changed / result.n_parameters
        ticks = [f"{s}\n({c:.0%})" for s, c in zip(result.stages, share, strict=True)]
        curve = _curve("explanation", np.arange(len(ticks)), result.similarity)
        band = (float(result.floor.min()), float(result.floor.max()))
        return cls(
            curve,
            "randomised down to (share of parameters changed)",
            "similarity to the explanation",
            ticks,
            band,
            "pairs of untrained nets",
        )

    @classmethod
    def from_sensitivity(cls, result: Sensitivity) -> Self:
        """Change of the explanation over the noise."""
        curve = _curve("explanation", result.noise, result.change)
        return cls(
            curve,
            "noise (training SD)",
            "change, relative to two cells",
            [],
            (1.0, 1.0),
            "another cell's",
        )

    def plot(self, ax: Axes | None = None) -> Self:
        """Draw the curves."""
        ax = new_axes(ax)
        if self.band is not None:
            low, high = self.band
            if high > low:
                ax.axhspan(low, high, color=GREY, alpha=0.4, label=self.band_name)
            else:
                ax.axhline(low, color=GREY, label=self.band_name)
        for hue, (name, curve) in zip(HUES, self.curves.groupby("curve", sort=False), strict=False):
            ax.plot(curve["x"], curve["y"], color=hue, marker="o", markersize=3, label=name)
            ax.fill_between(curve["x"], curve["low"], curve["high"], color=hue, alpha=0.2, lw=0)
        if self.ticks:
            ax.set_xticks(range(len(self.ticks)), self.ticks, fontsize="x-small")
        ax.set_xlabel(self.x_name)
        ax.set_ylabel(self.y_name)
        ax.legend(frameon=False, fontsize="small")
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def frame(self) -> pd.DataFrame:
        """Return the curves as a table."""
        return self.curves.reset_index(drop=True)


@dataclass
class FloorDisplay:
    """Some numbers together with the controls that they have to be above or below.

    Attributes
    ----------
    table : DataFrame
        ``compared`` and ``value``.
    name : str
        Label of the value.
    """

    table: pd.DataFrame
    name: str

    @classmethod
    def from_label_randomisation(cls, result: LabelRandomisation) -> Self:
        """Similarity after training on shuffled labels, with untrained nets."""
        return cls(_values(result.frame()), "similarity to the explanation")

    @classmethod
    def from_seed_agreement(cls, result: SeedAgreement) -> Self:
        """Agreement of the heads of each pair of models, with shuffled cells."""
        return cls(_values(result.frame()), "adjusted Rand index")

    def plot(self, ax: Axes | None = None) -> Self:
        """Draw one point per number."""
        names = list(dict.fromkeys(self.table["compared"]))
        ax = new_axes(ax, (4.5, 0.8 + 0.6 * len(names)))
        for i, name in enumerate(names):
            values = self.table.loc[self.table["compared"] == name, "value"]
            spread = np.linspace(-0.15, 0.15, len(values)) if len(values) > 1 else [0.0]
            ax.scatter(values, i + np.asarray(spread), s=18, color=HUES[i], alpha=0.7)
        ax.set_yticks(range(len(names)), names)
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.set_xlabel(self.name)
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def frame(self) -> pd.DataFrame:
        """Return the numbers."""
        return self.table.copy()


@dataclass
class AgreementDisplay:
    """What an explanation predicts against the actual change.

    Attributes
    ----------
    table : DataFrame
        ``explained``, ``change``.
    unit : str
        Meaning of a point: a cell, a sample or a hidden group.
    name : str
        What is held against the change.
    title : str
    """

    table: pd.DataFrame
    unit: str
    name: str
    title: str

    @classmethod
    def from_completeness(cls, result: Completeness) -> Self:
        """Collect the points."""
        title = f"mean gap {result.gap:.2%}"
        return cls(result.frame(), result.unit, "sum of the contributions", title)

    @classmethod
    def from_removal(cls, result: Removal) -> Self:
        """Change of the target without a group of cells, predicted and actual."""
        table = pd.DataFrame({"explained": result.predicted, "change": result.actual})
        title = f"rank correlation {result.agreement:.3f}"
        return cls(table, "hidden group", "sum of the influences", title)

    def plot(self, ax: Axes | None = None) -> Self:
        """Draw one point per cell, sample or group, and the diagonal."""
        ax = new_axes(ax, (4.4, 4.2))
        ax.axline((0, 0), slope=1, color=GREY, zorder=0)
        size = 3 if self.unit == "cell" else 25
        ax.scatter(
            self.table["change"],
            self.table["explained"],
            s=size,
            color=HUES[1],
            alpha=0.4,
            linewidths=0,
            rasterized=True,
        )
        ax.set_xlabel(f"change of the output, per {self.unit}")
        ax.set_ylabel(self.name)
        ax.set_title(self.title, fontsize="medium")
        self.ax_, self.figure_ = ax, ax.figure
        return self

    def frame(self) -> pd.DataFrame:
        """Return the points."""
        return self.table.copy()


def _curve(name: str, x: np.ndarray, repeats: np.ndarray) -> pd.DataFrame:
    """Mean and range over repeats, from an array of shape (R, P)."""
    return pd.DataFrame(
        {
            "curve": name,
            "x": x,
            "y": repeats.mean(0),
            "low": repeats.min(0),
            "high": repeats.max(0),
        }
    )


def _values(table: pd.DataFrame) -> pd.DataFrame:
    return table.set_axis(["compared", "value"], axis=1)
