"""Which cells the answer depends on: what would change if they were not there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.pipeline import Pipeline

from explainers._influence_plan import InfluencePlan
from explainers._maths.outputs import SizeOutput
from explainers._maths.summary import mean_interval
from explainers._model import OfModel
from explainers._populations import chosen_cells, population_labels, target_cells
from explainers.summary import influence_summary
from explainers.targets import AnyChange, Target
from fcm_estimators import __version__
from fcm_estimators.classifier import ReluFormerClassifier
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.inference import (
    CellData,
    CellStore,
    PerCell,
    SampleCells,
    Samples,
    Writable,
    cells_in_memory,
    fitted_net,
    open_data,
    own_threads,
    read_cells,
    read_samples,
    run_record,
)
from fcm_estimators.keys import InfluenceKeys
from fcm_estimators.polygon_regressor import PolygonRegressor


class InfluenceExplainer(OfModel):
    """Influence of each cell on an output: what would change if such cells were not there.

    A cell reaches other cells only through its weight in the contexts. The influence of cell j is
    ``-N/100 dF/dw_j``: to first order, the change of the target F if 1 % of the cells, all like
    j, are hidden from the contexts. A positive value means that F would rise without them. Hidden
    cells are still scored themselves, so this is the effect on how cells are read, not the effect
    of counting fewer cells. The values of a sample sum to 0.

    First order is right for cells and for small groups, up to about 2 % of a sample. For whole
    populations use :meth:`hide` and :meth:`between`, which hide them exactly.

    Influence describes the model, not biology. It is exact for any net, trained or not: see
    ``explainers.faithfulness.removal``.

    Parameters
    ----------
    estimator : ReluFormerClassifier, PolygonRegressor, or a Pipeline that ends in one
        Fitted.
    target : label, LogOdds, Probability, Share, AnyChange, Vertex or GateSize, default None
        Output to explain: its mean over the target cells; a vertex as it is; the size of a gate,
        without the cell's own membership. A label means its log-odds against the rest, None the
        log-odds of the positive class. ``AnyChange()`` is unsigned, over all outputs.
    of : class of the model, bool array, obs column, cell name or number, default None
        The target cells. The name of a class means the cells that the model gives this class; it
        must not also be a column. None: all cells.
    key_added : str, default "influence"

    References
    ----------
    Koh, Liang, *Understanding black-box predictions via influence functions*, arXiv 1703.04730
    (the idea, for training points).

    Examples
    --------
    >>> from explainers import InfluenceExplainer
    >>> from fcm_estimators import ReluFormerClassifier
    >>> from fcm_estimators.datasets import simulate_cohort
    >>> from fcm_estimators.preprocessing import LogicleTransform
    >>> raw = simulate_cohort(n_samples=2, n_cells=200, random_state=0)
    >>> adata = LogicleTransform().fit_transform(raw)
    >>> clf = ReluFormerClassifier(
    ...     sample_key="sample", label_key="cell_type", pos_label="blast", max_epochs=1
    ... ).fit(adata)
    >>> InfluenceExplainer(clf).explain(adata)
    >>> adata.obs["influence"].shape
    (400,)
    """

    def __init__(
        self,
        estimator: ReluFormerClassifier | PolygonRegressor | Pipeline,
        target: Target | AnyChange | Any = None,
        *,
        of: Any = None,
        key_added: str = InfluenceKeys.key,
    ) -> None:
        self._take(estimator)
        self.target = target
        self.of = of
        self.key_added = key_added

    def plan(self) -> InfluencePlan:
        """Check the settings and return them.

        Raises
        ------
        NotFittedError
            The estimator is not fitted.
        InvalidInputError, MissingKeyError
            A class, gate or vertex is unknown, or a vertex is given target cells; or the net of
            the user (``ReluFormerClassifier(module=...)``) takes no weights of cells.
        """
        fitted_net(self.estimator)
        return InfluencePlan.of(self.estimator, self.target, self.of)

    @own_threads()
    def attribute(self, X: CellData, *, groups: PerCell = None) -> np.ndarray:
        """Influence of each cell, as an array.

        Parameters
        ----------
        X : AnnData, DataFrame or array of shape (n_cells, n_columns)
            Whole samples, as for ``predict``.
        groups : array-like of shape (n_cells,), optional
            Sample ids, for a model fitted with ``groups``.

        Returns
        -------
        ndarray of shape (n_cells,)
            NaN for cells not analysed, and in samples without target cells.

        Raises
        ------
        As :meth:`plan` and ``predict``; InvalidInputError, MissingKeyError
            The selection of cells is unknown.
        """
        samples = read_samples(self.estimator, self.ready(X), groups)
        return samples.scatter(self.of_samples(X, samples), np.nan)

    def of_samples(self, X: CellData, samples: Samples) -> np.ndarray:
        """Influence of each cell, in the order of ``samples.x``; ``X`` names the target cells."""
        plan = self.plan()
        chosen = self._chosen(plan, X, samples)
        parts = [
            values
            for part, mask in zip(self._parts(samples), _by_sample(chosen, samples), strict=True)
            for _, _, values in plan.blocks(part, mask)
        ]
        return np.concatenate(parts)

    def changes_without(
        self, X: CellData, samples: Samples, group: np.ndarray
    ) -> Iterator[list[float]]:
        """Change of the target in each sample if one group of its cells after the other is hidden.

        Parameters
        ----------
        X, samples
            As for :meth:`of_samples`.
        group : ndarray of int of shape (N,)
            Group of each cell, counted from 0 in each sample.

        Yields
        ------
        list of float
            One number per group. For AnyChange the root mean square over targets and classes.
        """
        plan = self.plan()
        for part, mask, own in self._with_groups(plan, X, samples, group):
            targets = plan.targets(part, mask)
            before = plan.state(part, targets)
            yield [
                plan.change(before, plan.state(part, targets, own == g))
                for g in range(own.max() + 1)
            ]

    def of_groups(self, X: CellData, samples: Samples, group: np.ndarray) -> Iterator[list[float]]:
        """What :meth:`changes_without` computes exactly, to first order from the influence.

        The influence of the cells is summed over the group; for AnyChange probe by probe, because
        what cells do to an output may cancel.
        """
        plan = self.plan()
        for part, mask, own in self._with_groups(plan, X, samples, group):
            yield plan.of_groups(part, mask, own).tolist()

    @own_threads()
    def explain(self, data: Writable) -> None:
        """Write the influence of each cell into an AnnData, or into a store on disk.

        Sets the following fields, where ``key`` is ``key_added``:

        ``adata.obs[key]`` : float32
            Influence; NaN for cells not analysed, and in samples without target cells.
        ``adata.uns[key]`` : dict
            Explained output, target cells, parameters, version.

        Parameters
        ----------
        data : AnnData or path
            Whole samples; a path as for :meth:`ReluFormerClassifier.annotate`, with one temporary
            file per layer of the net.

        Raises
        ------
        As :meth:`attribute`; InvalidInputError
            ``data`` is a view; the key is unusable; for a store, ``of`` is neither a class nor a
            column of ``obs``.
        FileNotFoundError
            The path does not exist.
        """
        plan, keys = self.plan(), InfluenceKeys(self.key_added)
        with open_data(data, keys) as (source, sink):
            parts = read_cells(self.estimator, self.ready(source))
            chosen = chosen_cells(source, self._named_cells(plan, source))
            field = sink.numbers(keys.values)
            for part in parts:
                for start, stop, values in plan.blocks(part, part.pick(chosen)):
                    field.write(part.rows[start:stop], values)
            of = "all cells" if self.of is None else "mask"
            record = run_record(
                {"target": self.target, "of": self.of, "key_added": self.key_added},
                version=__version__,
                explained=plan.name,
                signed=plan.output is not None,
                of=self.of if isinstance(self.of, str) else of,
                unit="change of the target per 1 % of such cells hidden",
                sample_key=self.estimator.sample_key,
            )
            sink.commit(keys, record)

    @own_threads()
    def hide(self, X: CellData, cells: Any, *, groups: PerCell = None) -> pd.DataFrame:
        """Hide some cells exactly, and tell how the target changes. One prediction per sample.

        Parameters
        ----------
        X, groups
            As for :meth:`attribute`.
        cells : bool array, obs column, cell name or number
            The cells to hide from the contexts. They are still scored.

        Returns
        -------
        DataFrame
            Index ``sample``: ``n_hidden``; ``before`` and ``without``, the target with and
            without them; ``change``; ``switched``, the share of target cells whose class changes
            (NaN for gates). NaN where all or none of the cells are hidden, or without targets.

        Raises
        ------
        As :meth:`attribute`; InvalidInputError
            The target is AnyChange, whose change has no direction.
        """
        plan = self._with_direction()
        samples = read_samples(self.estimator, self.ready(X), groups)
        hidden = target_cells(X, cells, samples.n_rows)[samples.rows]
        chosen = self._chosen(plan, X, samples)
        rows = []
        for part, mask, away in zip(
            self._parts(samples),
            _by_sample(chosen, samples),
            _by_sample(hidden, samples),
            strict=True,
        ):
            targets = plan.targets(part, mask)[None]
            found = _exact(plan, part, away[None], targets)[0, 0]
            rows.append((int(away.sum()), *found))
        columns = ["n_hidden", "before", "without", "change", "switched"]
        return pd.DataFrame(rows, pd.Index(samples.names, name="sample"), columns)

    @own_threads()
    def between(self, adata: AnnData, population: str, *, confidence: float = 0.95) -> pd.DataFrame:
        """Hide each population exactly, and tell what this does to the cells of each population.

        There is one prediction per population and sample.

        Parameters
        ----------
        adata : AnnData
            Whole samples.
        population : str
            Column of ``obs`` or of ``obsm["gates"]``; it replaces ``of``. Cells without a
            population are neither hidden nor targets.
        confidence : float, default 0.95

        Returns
        -------
        DataFrame
            One row per pair: ``hidden``, ``target`` (populations), ``change`` of the target if the
            first population is hidden, mean over samples, with ``ci_low`` and ``ci_high`` (Student
            interval over samples; NaN for fewer than two), ``switched`` (share of the target
            cells whose class changes; NaN for gates), ``share_hidden`` (share of the cells that is
            hidden) and ``n_samples`` with cells of both populations and other cells.

        Raises
        ------
        As :meth:`attribute`; MissingKeyError
            The population is unknown.
        """
        plan = self._with_direction()
        samples = read_samples(self.estimator, self.ready(adata))
        labels = population_labels(adata, population)[samples.rows]
        names = [name for name in pd.unique(labels) if not pd.isna(name)]
        tables, shares = [], []
        for part, own in zip(self._parts(samples), _by_sample(labels, samples), strict=True):
            masks = np.stack([own == name for name in names])
            tables.append(_exact(plan, part, masks, masks)[..., 2:])
            shares.append(masks.mean(1))
        change, switched = np.moveaxis(np.stack(tables), -1, 0)
        known = ~np.isnan(change)
        share = np.stack(shares)
        rows = []
        for h, hidden in enumerate(names):
            for c, target in enumerate(names):
                use = known[:, h, c]
                low, high = mean_interval(change[use, h, c], confidence)
                rows.append(
                    {
                        "hidden": hidden,
                        "target": target,
                        "change": change[use, h, c].mean() if use.any() else np.nan,
                        "ci_low": low,
                        "ci_high": high,
                        "switched": switched[use, h, c].mean() if use.any() else np.nan,
                        "share_hidden": share[use, h].mean() if use.any() else np.nan,
                        "n_samples": int(use.sum()),
                    }
                )
        return pd.DataFrame(rows)

    def summary(self, adata: AnnData, by: str, *, confidence: float = 0.95) -> pd.DataFrame:
        """Influence summed over called classes, gates or any column.

        Calls :func:`explainers.influence_summary` on the results of this explainer.
        """
        return influence_summary(adata, by, key=self.key_added, confidence=confidence)

    def _with_direction(self) -> InfluencePlan:
        plan = self.plan()
        if plan.output is None:
            raise InvalidInputError(
                "AnyChange has no direction, so it is for single cells. Name a class, a Share or a "
                "gate as target to hide populations."
            )
        return plan

    def _chosen(self, plan: InfluencePlan, X: CellData, samples: Samples) -> np.ndarray:
        mask: np.ndarray = target_cells(X, self._named_cells(plan, X), samples.n_rows)
        return np.asarray(mask[samples.rows])

    def _with_groups(
        self, plan: InfluencePlan, X: CellData, samples: Samples, group: np.ndarray
    ) -> Iterator[tuple[SampleCells, np.ndarray, np.ndarray]]:
        """Yield cells, target cells and groups of each sample."""
        chosen = self._chosen(plan, X, samples)
        return zip(
            self._parts(samples),
            _by_sample(chosen, samples),
            _by_sample(group, samples),
            strict=True,
        )

    def _named_cells(self, plan: InfluencePlan, data: CellData | CellStore) -> Any:
        """The choice of target cells, None if it is a class of the model."""
        if plan.label is None:
            return self.of
        columns = data.obs.columns if isinstance(data, AnnData) else ()
        if self.of in (data.root["obs"] if isinstance(data, CellStore) else columns):
            raise InvalidInputError(
                f"of={self.of!r} is a class of the model and a column of obs. Pass a mask of the "
                "cells, or rename the column."
            )
        return None

    def _parts(self, samples: Samples) -> list[SampleCells]:
        return cells_in_memory(samples, fitted_net(self.estimator).input_mean.device)


def _by_sample(values: np.ndarray, samples: Samples) -> list[np.ndarray]:
    return [values[start:stop] for start, stop in samples.spans()]


def _exact(
    plan: InfluencePlan, cells: SampleCells, hidden: np.ndarray, targets: np.ndarray
) -> np.ndarray:
    """Effect on groups of targets of hiding groups of cells of one sample.

    Parameters
    ----------
    plan : InfluencePlan
    cells : SampleCells
    hidden : bool ndarray of shape (H, n)
    targets : bool ndarray of shape (T, n)

    Returns
    -------
    ndarray of shape (H, T, 4)
        Target before, without, change, share of switched calls.
    """
    found = np.full((len(hidden), len(targets), 4), np.nan)
    value, outputs = plan.values(cells)
    model = plan.estimator
    before = plan.counted(value, outputs)
    calls = None
    if isinstance(model, ReluFormerClassifier):
        calls = model.decide(outputs.numpy(force=True))
    for h, away in enumerate(hidden):
        if not away.any() or away.all():
            continue
        value, outputs = plan.values(cells, away)
        after = plan.counted(value, outputs)
        switched = np.full(len(away), np.nan)
        if isinstance(model, ReluFormerClassifier):
            switched = (model.decide(outputs.numpy(force=True)) != calls).astype(float)
        for c, chosen in enumerate(targets):
            if chosen.any():
                total = np.sum if isinstance(plan.output, SizeOutput) else np.mean
                pair = [float(total(v[chosen])) for v in (before, after)]
                found[h, c] = (*pair, pair[1] - pair[0], switched[chosen].mean())
    return found
