"""Which cells each attention head attends to."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from sklearn.pipeline import Pipeline

from explainers._attention_plan import AttentionPlan, Received, head_names
from explainers._maths.attention import (
    assigned_heads,
    attention_matrix,
    population_attention,
    rollout,
)
from explainers._model import OfModel
from explainers._populations import chosen_cells, population_labels, target_cells
from fcm_estimators import __version__
from fcm_estimators.classifier import ReluFormerClassifier
from fcm_estimators.exceptions import InvalidInputError, listed
from fcm_estimators.inference import (
    CellData,
    PerCell,
    Writable,
    fitted_net,
    open_data,
    own_threads,
    read_cells,
    read_samples,
    run_record,
)
from fcm_estimators.keys import AttentionKeys
from fcm_estimators.polygon_regressor import PolygonRegressor

# Category of cells to which no head attends more than uniformly.
NO_HEAD = "none"
# Largest number of entries of an attention matrix per head.
LARGEST_MATRIX = 25_000_000


class AttentionExplainer(OfModel):
    """Attention that each cell receives from each head, and the head that attends most to it.

    If a head attends to a population, this does not prove that the model needs it. Later layers
    may ignore the values, and other heads may hold the same information. Head ablation and the
    other controls in ``explainers.faithfulness`` test this.

    Parameters
    ----------
    estimator : ReluFormerClassifier, PolygonRegressor, or a Pipeline that ends in one
        Fitted.
    net_layer : int, default None
        Layer of the net whose attention is read; negative ones count from the last. None: all
        layers, whose mean tells how much attention a cell receives. Heads, which are different
        ones in every layer, need a layer.
    queries : bool array, obs column, cell name or number, or GateQuery, default None
        The cells that attend to others. None: all cells of the sample. ``GateQuery(gate)``: the
        learned query of a gate, after the last layer. Its results are written like those of an
        additional layer.
    key_added : str, default "attention"

    References
    ----------
    arXiv 2307.14581 (attention-based visualisation); rollout: Abnar, Zuidema, arXiv 2005.00928.

    Examples
    --------
    >>> from explainers import AttentionExplainer
    >>> from fcm_estimators import ReluFormerClassifier
    >>> from fcm_estimators.datasets import simulate_cohort
    >>> from fcm_estimators.preprocessing import LogicleTransform
    >>> raw = simulate_cohort(n_samples=2, n_cells=200, random_state=0)
    >>> adata = LogicleTransform().fit_transform(raw)
    >>> clf = ReluFormerClassifier(
    ...     sample_key="sample", label_key="cell_type", pos_label="blast", max_epochs=1
    ... ).fit(adata)
    >>> AttentionExplainer(clf).explain(adata)
    >>> adata.obs["attention"].shape
    (400,)
    >>> AttentionExplainer(clf, net_layer=0).explain(adata)
    >>> adata.obsm["attention_layer0"].shape
    (400, 4)
    """

    def __init__(
        self,
        estimator: ReluFormerClassifier | PolygonRegressor | Pipeline,
        *,
        net_layer: int | None = None,
        queries: Any = None,
        key_added: str = AttentionKeys.key,
    ) -> None:
        self._take(estimator)
        self.net_layer = net_layer
        self.queries = queries
        self.key_added = key_added

    @property
    def heads(self) -> list[str]:
        """Names of the heads of one layer."""
        return head_names(self.estimator)

    def plan(self) -> AttentionPlan:
        """Check the settings and return them.

        Raises
        ------
        NotFittedError
            The estimator is not fitted.
        InvalidInputError, MissingKeyError
            The layer or the gate does not exist; or the model has a net of the user
            (``ReluFormerClassifier(module=...)``) that is no SetModule.
        """
        fitted_net(self.estimator)
        return AttentionPlan.of(self.estimator, self.net_layer, self.queries)

    @own_threads()
    def attribute(self, X: CellData, *, groups: PerCell = None) -> Received:
        """Received attention as arrays.

        Parameters
        ----------
        X : AnnData, DataFrame or array of shape (n_cells, n_columns)
            Whole samples, as for ``predict``.
        groups : array-like of shape (n_cells,), optional
            Sample ids, for a model fitted with ``groups``.

        Returns
        -------
        Received
            ``relative`` and ``absorbed``.

        Raises
        ------
        As :meth:`plan` and ``predict``; InvalidInputError, MissingKeyError
            The selection of queries is unknown.
        """
        plan = self.plan()
        samples = read_samples(self.estimator, self.ready(X), groups)
        chosen = target_cells(X, plan.cells, samples.n_rows)[samples.rows]
        relative, absorbed = plan.of_samples(samples, chosen)
        return Received(samples.scatter(relative, np.nan), absorbed)

    @own_threads()
    def explain(self, data: Writable) -> None:
        """Write received attention and the assigned head into an AnnData, or a store on disk.

        Sets the following fields, where ``key`` is ``key_added``. Without a layer:

        ``adata.obs[key]`` : float32
            Received attention, mean over all layers and heads, 1 = uniform. NaN for cells not
            analysed.

        With ``net_layer``, or the query of a gate:

        ``adata.obsm[f"{key}_layer{l}"]`` : DataFrame float32, one column per head
            Received attention, 1 = uniform.
        ``adata.obs[f"{key}_head"]`` : Categorical
            Head that attends most to the cell; "none" if no head attends to it more than
            uniformly; missing for cells not analysed.

        In both cases:

        ``adata.uns[key]`` : dict
            Layers, queries, share of absorbed attention per sample and head, version.

        Parameters
        ----------
        data : AnnData or path
            Whole samples; a path as for :meth:`ReluFormerClassifier.annotate`, with one temporary
            file per layer of the net.

        Raises
        ------
        As :meth:`attribute`; InvalidInputError
            ``data`` is a view; the key is unusable; for a store, ``queries`` is not a column of
            ``obs``.
        FileNotFoundError
            The path does not exist.
        """
        plan, keys, heads = self.plan(), AttentionKeys(self.key_added), self.heads
        with open_data(data, keys) as (source, sink):
            parts = read_cells(self.estimator, self.ready(source))
            chosen = chosen_cells(source, plan.cells)
            if plan.net_layer is None:
                mean = sink.numbers(keys.mean)
            else:
                received = sink.table(keys.received(plan.net_layer), heads)
                head = sink.categorical(keys.head, [*heads, NO_HEAD])
            absorbed = []
            for part in parts:
                share, blocks = plan.blocks(part, part.pick(chosen))
                absorbed.append(share)
                for start, stop, relative in blocks:
                    rows = part.rows[start:stop]
                    if plan.net_layer is None:
                        mean.write(rows, relative.mean(axis=1))
                        continue
                    assigned = assigned_heads(relative)
                    received.write(rows, relative)
                    # -1 means no head, which is the last category.
                    head.write(rows, np.where(assigned < 0, len(heads), assigned))
            table = plan.absorbed_table(absorbed, [part.name for part in parts])
            sink.commit(keys, self._record(plan, table))

    def _record(self, plan: AttentionPlan, absorbed: pd.DataFrame) -> dict[str, Any]:
        """Run record for ``uns``."""
        return run_record(
            {"net_layer": self.net_layer, "queries": plan.described, "key_added": self.key_added},
            version=__version__,
            net_layer=plan.net_layer,
            layers=np.array(plan.layers),
            sample_key=self.estimator.sample_key,
            queries=plan.described,
            absorbed=absorbed.to_numpy(),
            samples=[str(name) for name in absorbed.index],
        )

    @own_threads()
    def between(self, adata: AnnData, population: str) -> pd.DataFrame:
        """Attention from each population to each population, averaged over samples.

        Parameters
        ----------
        adata : AnnData
            Whole samples.
        population : str
            Column of ``obs`` or of ``obsm["gates"]``.

        Returns
        -------
        DataFrame
            One row per head, population of the ``queries`` and population of the ``keys``.
            ``attention`` is the share of the queries' attention that all cells of the second
            population receive together. ``enrichment`` is this share relative to the population's
            share of cells. ``n_samples`` counts the samples with cells of the first population;
            other samples are left out.
        """
        plan = self.plan()
        plan.require_cells_as_queries()
        layer = plan.require_layer("attention between populations")
        samples = read_samples(self.estimator, self.ready(adata))
        labels = population_labels(adata, population)[samples.rows]
        names = [name for name in pd.unique(labels) if not pd.isna(name)]
        shares, sizes = [], []
        for start, stop, stream in plan.streams(samples):
            masks = np.stack([labels[start:stop] == name for name in names])
            members = torch.from_numpy(masks).to(stream.module.input_mean.device)
            part = population_attention(stream, layer, members, members)
            shares.append(part.cpu().numpy())
            sizes.append(np.broadcast_to(masks.mean(1), part.shape))
        share, size = np.stack(shares), np.stack(sizes)
        with np.errstate(divide="ignore", invalid="ignore"):
            enrichment = np.where(size > 0, share / size, np.nan)
        index = pd.MultiIndex.from_product(
            [self.heads, names, names], names=["head", "queries", "keys"]
        )
        flat = pd.DataFrame(
            {
                "attention": _mean_known(share),
                "enrichment": _mean_known(enrichment),
                "n_samples": (~np.isnan(share)).sum(0).ravel(),
            },
            index=index,
        )
        return flat.reset_index()

    @own_threads()
    def matrix(self, X: CellData, *, groups: PerCell = None) -> np.ndarray:
        """Attention matrix of a small sample, each query to each cell.

        Everything else here is computed without it. It is for one sample, and for few queries or
        few cells: at most 25 million entries per head, as many as 5,000 x 5,000.

        Parameters
        ----------
        X, groups
            As for :meth:`attribute`; cells of one sample.

        Returns
        -------
        ndarray of shape (n_heads, n_queries, n_cells)
            Attention, in the dtype of X. Rows are the ``queries`` in their order, by default all
            cells. A row sums to 1 minus what no cell receives. NaN for cells not analysed.

        Raises
        ------
        As :meth:`attribute`; InvalidInputError
            No layer is chosen, the query is that of a gate, there is more than one sample, or the
            matrix is too large.
        """
        plan = self.plan()
        plan.require_cells_as_queries()
        layer = plan.require_layer("a matrix of attention")
        samples = read_samples(self.estimator, self.ready(X), groups)
        chosen = target_cells(X, self.queries, samples.n_rows)
        if len(samples.names) != 1:
            raise InvalidInputError(
                f"A matrix is that of one sample, and there are {len(samples.names)}: "
                f"{listed(samples.names)}. Pass the cells of one of them."
            )
        n_queries, n_cells = int(chosen.sum()), samples.n_rows
        if n_queries * n_cells > LARGEST_MATRIX:
            raise InvalidInputError(
                f"A matrix of {n_queries:,} queries x {n_cells:,} cells has "
                f"{n_queries * n_cells:,} entries per head; the limit is {LARGEST_MATRIX:,}. "
                "Choose fewer cells as queries=, or use attribute, which needs no matrix."
            )
        ((_, _, stream),) = plan.streams(samples)
        asked = torch.from_numpy(chosen[samples.rows]).to(stream.module.input_mean.device)
        found = attention_matrix(stream, layer, asked).cpu().numpy()
        out = np.full((len(found), n_queries, n_cells), np.nan, dtype=samples.x.dtype)
        place = np.cumsum(chosen) - 1
        analysed = place[samples.rows[chosen[samples.rows]]]
        out[:, analysed[:, None], samples.rows] = found
        return out

    @own_threads()
    def rollout(
        self,
        X: CellData,
        *,
        groups: PerCell = None,
        share: float | Literal["measured"] = "measured",
    ) -> np.ndarray:
        """Attention followed through all layers, from the queries to the input cells.

        In every layer a cell keeps a part of what it is and takes the rest from the cells that it
        attends to, in the mean over heads.

        Parameters
        ----------
        X, groups
            As for :meth:`attribute`.
        share : float from 0 to 1, or "measured", default "measured"
            Share that a cell takes from others. "measured": for each cell and layer, the length of
            the output of the attention relative to this and its residual (arXiv 2109.07152). 0.5 is
            the convention of Abnar and Zuidema, which says nothing of the model.

        Returns
        -------
        ndarray of shape (n_cells,)
            Relative to uniform within each sample (the mean is 1 minus the absorbed share); NaN
            for cells not analysed.

        Raises
        ------
        As :meth:`attribute`; InvalidInputError
            The query is that of a gate, or ``share`` is unknown.
        """
        plan = self.plan()
        plan.require_cells_as_queries()
        known = isinstance(share, (int, float)) and 0 <= share <= 1
        if share != "measured" and not known:
            raise InvalidInputError(f"share={share!r}: give 'measured' or a number from 0 to 1.")
        fixed = None if isinstance(share, str) else float(share)
        samples = read_samples(self.estimator, self.ready(X), groups)
        chosen = target_cells(X, self.queries, samples.n_rows)[samples.rows]
        parts = []
        for start, stop, stream in plan.streams(samples):
            mask = torch.from_numpy(chosen[start:stop])
            mass = rollout(stream, mask.to(stream.module.input_mean.device), fixed)
            parts.append((mass * len(mass)).cpu().numpy())
        return samples.scatter(np.concatenate(parts).astype(samples.x.dtype), np.nan)


def _mean_known(values: np.ndarray) -> np.ndarray:
    """Mean over samples (first axis) of the values that are not NaN, flattened."""
    known = ~np.isnan(values)
    total = np.where(known, values, 0).sum(0)
    count = known.sum(0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).ravel()
