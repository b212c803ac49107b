"""Check of correctness: whether influence is what hiding groups of cells really changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.cluster import MiniBatchKMeans

from explainers._twins import of_untrained
from explainers.faithfulness._common import correlation, read, require_explainer
from explainers.faithfulness.controls import farthest
from explainers.influence import InfluenceExplainer
from fcm_estimators.inference import Samples

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from explainers.plotting import AgreementDisplay

# Least rank correlation of the predicted with the actual change; the others must be below half.
_LEAST_AGREEMENT, _MOST_OF_TWINS = 0.9, 0.5


@dataclass(frozen=True)
class Removal:
    """Result of :func:`removal`.

    Attributes
    ----------
    predicted, actual : ndarray of shape (G,)
        Change of the target for each group of cells of each sample: the sum of the influence of its
        cells (for AnyChange the root mean square of the sums of its probes), and if it is really
        hidden.
    share : ndarray of shape (G,)
        Share of the sample's cells in the group.
    sample : ndarray of int of shape (G,)
    agreement : float
        Rank correlation of predicted and actual change, mean over samples.
    twins : ndarray
        Rank correlation of the influence in untrained twins with the actual change in the model.
        For AnyChange not a control, since large and distant groups change any net most.
    distance, shift, size : float
        Rank correlation with the size of the actual change of what needs no model: the distances
        of a group's cells from the mean of the sample, summed; how far the mean of the sample
        moves without the group; the number of its cells.
    signed : bool
        Whether the target has a direction.
    """

    predicted: np.ndarray
    actual: np.ndarray
    share: np.ndarray
    sample: np.ndarray
    agreement: float
    twins: np.ndarray
    distance: float
    shift: float
    size: float
    signed: bool

    @property
    def correct(self) -> bool:
        """Whether the influence ranks the groups as hiding them does.

        The rank correlation must be 0.9 or more, above those of distance, shift and size, and for
        targets with a direction that of untrained twins must be below 0.5 on average.
        """
        better = self.agreement > max(self.distance, self.shift, self.size)
        specific = not self.signed or self.twins.mean() < _MOST_OF_TWINS
        return bool(self.agreement >= _LEAST_AGREEMENT and better and specific)

    def frame(self) -> pd.DataFrame:
        """Return one row per group: ``sample``, ``share``, ``predicted``, ``actual``."""
        columns = ("sample", "share", "predicted", "actual")
        return pd.DataFrame({name: getattr(self, name) for name in columns})

    def plot(self, ax: Axes | None = None) -> AgreementDisplay:
        """Draw predicted against actual change; return the Display."""
        from explainers.plotting import AgreementDisplay

        return AgreementDisplay.from_removal(self).plot(ax=ax)


def removal(
    explainer: InfluenceExplainer,
    adata: AnnData,
    *,
    n_groups: int = 60,
    n_untrained: int = 5,
    random_state: int = 0,
) -> Removal:
    """Hide groups of similar cells, and compare the change with what influence predicts.

    The groups are clusters of markers (k-means) in each sample. The check is true of any net,
    trained or not, and no evidence of learning.

    Parameters
    ----------
    explainer : InfluenceExplainer
    adata : AnnData
        Whole samples.
    n_groups : int, default 60
        Groups per sample; there is one prediction for each.
    n_untrained : int, default 5
        Number of untrained twins.
    random_state : int, default 0

    Returns
    -------
    Removal
    """
    require_explainer(explainer, InfluenceExplainer, what="removal")
    samples = read(explainer, adata)
    far = farthest(samples.x, list(samples.spans()))
    group = clusters_of(samples, n_groups, random_state)
    signed = explainer.plan().output is not None
    predicted = {"predicted": explainer} | {
        f"twin{i}": of_untrained(explainer, random_state + i) for i in range(n_untrained)
    }
    columns = {name: list(e.of_groups(adata, samples, group)) for name, e in predicted.items()}
    columns["actual"] = list(explainer.changes_without(adata, samples, group))
    tables = []
    for s, (start, stop) in enumerate(samples.spans()):
        own = group[start:stop]
        n_cells = np.bincount(own)
        table = pd.DataFrame({name: found[s] for name, found in columns.items()})
        table["sample"], table["share"] = s, n_cells / len(own)
        table["distance"] = np.bincount(own, far[start:stop])
        table["shift"] = _shift_without(samples.x[start:stop], own)
        tables.append(table[n_cells > 0])
    table = pd.concat(tables, ignore_index=True).dropna()
    size = table["actual"].abs()

    def agreement(name: str, other: pd.Series) -> float:
        parts = table.groupby("sample").indices.values()
        return float(
            np.mean([correlation(table[name].to_numpy()[i], other.to_numpy()[i]) for i in parts])
        )

    return Removal(
        predicted=table["predicted"].to_numpy(),
        actual=table["actual"].to_numpy(),
        share=table["share"].to_numpy(),
        sample=table["sample"].to_numpy(),
        agreement=agreement("predicted", table["actual"]),
        twins=np.array([agreement(f"twin{i}", table["actual"]) for i in range(n_untrained)]),
        distance=agreement("distance", size),
        shift=agreement("shift", size),
        size=agreement("share", size),
        signed=signed,
    )


def _shift_without(x: np.ndarray, group: np.ndarray) -> np.ndarray:
    """How far the mean of a sample moves without each group, in SD of the sample, shape (G,)."""
    x = x.astype(np.float64)
    z = (x - x.mean(0)) / np.maximum(x.std(0), 1e-6)
    n_cells = np.bincount(group)
    sums = np.stack([np.bincount(group, column) for column in z.T], axis=1)
    return np.asarray(np.linalg.norm(sums, axis=1) / np.maximum(len(x) - n_cells, 1))


def clusters_of(samples: Samples, n_groups: int, seed: int) -> np.ndarray:
    """Cluster of each cell among those of its sample."""
    found = np.empty(len(samples.x), dtype=int)
    for start, stop in samples.spans():
        x = samples.x[start:stop]
        z = (x - x.mean(0)) / np.maximum(x.std(0), 1e-12)
        n = min(n_groups, len(x))
        found[start:stop] = MiniBatchKMeans(n, n_init=1, random_state=seed).fit_predict(z)
    return found
