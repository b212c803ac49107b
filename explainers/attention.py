"""Which cells each attention head looks at."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from explainers._maths.attention import (
    gate_query,
    population_attention,
    query_sum,
    relative_attention,
    rollout,
)
from explainers._populations import population_labels, target_cells
from fcm_estimators._base.estimator import spans
from fcm_estimators._cells import keys as _keys
from fcm_estimators._cells.samples import Samples
from fcm_estimators._cells.store import by_block, open_store, write_rows
from fcm_estimators._checks import listed, require_key
from fcm_estimators._version import __version__
from fcm_estimators.classifier import ReluFormerClassifier
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.nn.sources import PackedCells
from fcm_estimators.nn.streaming import Stream
from fcm_estimators.polygon_regressor import PolygonRegressor

NO_HEAD = "none"


class Received(NamedTuple):
    """Received attention of one layer.

    Attributes
    ----------
    relative : ndarray of shape (n_cells, n_heads)
        Relative to uniform attention within the sample: mean 1 over its cells. NaN for cells not
        analysed; 0 where a head gives no attention at all.
    absorbed : DataFrame
        A row per sample, a column per head: share of the attention that went to nothing, which is
        that of queries (almost) without positive features.
    """

    relative: np.ndarray
    absorbed: pd.DataFrame


class AttentionExplainer:
    """Attention that each cell receives in each head, and the head that looks at it most.

    A head that looks at a population is no proof that the model needs it: values may be ignored
    downstream, and other heads may hold the same information. Head ablation and the other
    controls in ``explainers.faithfulness`` tell.

    Parameters
    ----------
    estimator : ReluFormerClassifier or PolygonRegressor
        Fitted.
    layer : int, default -1
        Layer whose attention is read; negative ones count from the last.
    queries : bool array, obs column, cell name or number, default None
        The cells that look. None: all of the sample.
    gate : str, default None
        Gate of a PolygonRegressor whose learned query looks, after the last layer, instead of
        cells; results are written as those of one more layer.
    key_added : str, default "attention"

    References
    ----------
    arXiv 2307.14581 (attention-based visualisation); rollout: Abnar, Zuidema, arXiv 2005.00928.

    Examples
    --------
    >>> from explainers import AttentionExplainer
    >>> from fcm_estimators import ReluFormerClassifier
    >>> from fcm_estimators.datasets import simulate_cohort
    >>> adata = simulate_cohort(n_samples=2, n_cells=200, random_state=0)
    >>> clf = ReluFormerClassifier(
    ...     sample_key="sample", label_key="cell_type", pos_label="blast", max_epochs=1
    ... ).fit(adata)
    >>> AttentionExplainer(clf, layer=-1).explain(adata)
    >>> adata.obsm["attention_layer3"].shape
    (400, 4)
    """

    def __init__(
        self,
        estimator: ReluFormerClassifier | PolygonRegressor,
        *,
        layer: int = -1,
        queries: Any = None,
        gate: str | None = None,
        key_added: str = "attention",
    ) -> None:
        self.estimator = estimator
        self.layer = layer
        self.queries = queries
        self.gate = gate
        self.key_added = key_added

    def attribute(self, X: Any, *, groups: Any = None) -> Received:
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
        NotFittedError
            The estimator is not fitted.
        InvalidInputError, MissingKeyError
            No such layer or selection of queries; and as ``predict``.
        """
        self._layer()
        samples = self.estimator._read_to_predict(X, groups)
        chosen = target_cells(X, self.queries, samples.n_rows)[samples.rows]
        relative, absorbed = self._attribute(samples, chosen)
        return Received(samples.scatter(relative, np.nan), absorbed)

    def explain(self, adata: AnnData) -> None:
        """Write received attention and the assigned head into an AnnData.

        Sets the following fields, ``key`` being ``key_added``:

        ``adata.obsm[f"{key}_layer{l}"]`` : DataFrame float32, a column per head
            Received attention, 1 = uniform.
        ``adata.obs[f"{key}_head"]`` : Categorical
            Head that gives the cell most, "none" where no head gives more than uniform; missing
            for cells not analysed.
        ``adata.uns[key]`` : dict
            Layer, queries, share of absorbed attention per sample and head, version.

        Parameters
        ----------
        adata : AnnData
            Whole samples.

        Raises
        ------
        As :meth:`attribute`, and InvalidInputError for a view or an unusable key.
        """
        _keys.require_writable(adata, self.key_added)
        layer = self._layer()
        found = self.attribute(adata)
        _keys.write_attention(
            adata,
            self.key_added,
            layer=layer,
            heads=self.heads,
            received=found.relative,
            assigned=assigned_heads(found.relative),
            none=NO_HEAD,
            run=self._run(found.absorbed),
        )

    def explain_store(self, path: str | os.PathLike) -> None:
        """Write received attention and the assigned head into an h5ad or zarr store of any size.

        The fields are those of :meth:`explain`; memory and temporary files as for
        :meth:`ReluFormerClassifier.annotate_store`, with a file per layer.

        Parameters
        ----------
        path : path
            An .h5ad file or a zarr directory.

        Raises
        ------
        FileNotFoundError
        InvalidInputError, MissingKeyError
            ``queries`` other than None or a column of ``obs``; and as :meth:`explain`.
        """
        layer, key = self._layer(), self.key_added
        _keys.require_key_name(key)
        with open_store(path) as store:
            samples = self.estimator._read_store(store)
            chosen = store.flags(self.queries)
            columns = store.add_table(f"{key}_layer{layer}", self.heads, np.float32, np.nan)
            head = store.add_categorical(f"{key}_head", [*self.heads, NO_HEAD], -1)
            absorbed = []
            for _, cells, stream in self.estimator._streams(samples, keep_layers=True):
                lost, chunks = self._relative(stream, torch.from_numpy(cells.pick(chosen)))
                absorbed.append(lost)
                for start, stop, relative in by_block(chunks):
                    rows = cells.rows[start:stop]
                    assigned = assigned_heads(relative)
                    write_rows(head, rows, np.where(assigned < 0, len(self.heads), assigned))
                    for column, values in zip(columns, relative.T, strict=True):
                        write_rows(column, rows, values)
            names = [name for name, _ in samples]
            store.add_record(key, self._run(self._absorbed(absorbed, names)))

    def _run(self, absorbed: pd.DataFrame) -> dict[str, Any]:
        """Record for ``uns``."""
        if self.gate is not None:
            queries = f"gate {self.gate}"
        elif self.queries is None:
            queries = "all cells"
        else:
            queries = str(self.queries) if isinstance(self.queries, (str, int)) else "mask"
        return _keys.record(
            {"layer": self.layer, "gate": self.gate, "key_added": self.key_added},
            version=__version__,
            layer=self._layer(),
            sample_key=self.estimator.sample_key,
            queries=queries,
            absorbed=absorbed.to_numpy(),
            samples=[str(name) for name in absorbed.index],
        )

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
            A row per head, ``queries`` and ``keys`` population: ``attention``, the share of the
            queries' attention that the population gets (its cells together), ``enrichment``, that
            share relative to the population's share of cells, and ``n_samples``. Samples without
            cells of the querying population do not count.
        """
        self._require_cells_that_look()
        layer = self._layer()
        samples = self.estimator._read_to_predict(adata, None)
        labels = population_labels(adata, population)[samples.rows]
        names = [name for name in pd.unique(labels) if not pd.isna(name)]
        shares, sizes = [], []
        for start, stop, stream in self._streams(samples):
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

    def rollout(self, X: Any, *, groups: Any = None) -> np.ndarray:
        """Attention followed through all layers, from the queries to the input cells.

        Parameters
        ----------
        X, groups
            As for :meth:`attribute`.

        Returns
        -------
        ndarray of shape (n_cells,)
            Relative to uniform within each sample (mean 1, less what was absorbed); NaN for cells
            not analysed.
        """
        self._require_cells_that_look()
        samples = self.estimator._read_to_predict(X, groups)
        chosen = target_cells(X, self.queries, samples.n_rows)[samples.rows]
        parts = []
        for start, stop, stream in self._streams(samples):
            mask = torch.from_numpy(chosen[start:stop])
            mass = rollout(stream, mask.to(stream.module.input_mean.device))
            parts.append((mass * len(mass)).cpu().numpy())
        return samples.scatter(np.concatenate(parts).astype(samples.x.dtype), np.nan)

    # -- inside -------------------------------------------------------------------------------

    @property
    def heads(self) -> list[str]:
        """Names of the heads, columns of what is written."""
        self.estimator._require_fitted()
        return [f"head{h}" for h in range(self.estimator.net_.module_.n_heads)]

    def _require_cells_that_look(self) -> None:
        if self.gate is not None:
            raise InvalidInputError(
                f"gate={self.gate!r}: a gate's query is no cell, so it has neither attention "
                "between populations nor a rollout; use attribute, or gate=None."
            )

    def _n_layers(self) -> int:
        self.estimator._require_fitted()
        return len(self.estimator.net_.module_.layers)

    def _gate(self) -> int:
        """Position of the gate that looks."""
        estimator = self.estimator
        if not isinstance(estimator, PolygonRegressor):
            raise InvalidInputError(
                f"gate={self.gate!r}: a {type(estimator).__name__} has no gates; leave gate=None."
            )
        require_key(self.gate, estimator.gates_, "the gate with a polygon")
        if self.layer != -1 or self.queries is not None:
            raise InvalidInputError(
                f"gate={self.gate!r} looks with its own query, after the last layer; leave layer "
                "and queries."
            )
        return estimator.gates_.index(str(self.gate))

    def _layer(self) -> int:
        n_layers = self._n_layers()
        if self.gate is not None:
            self._gate()
            return n_layers
        if not isinstance(self.layer, (int, np.integer)) or not -n_layers <= self.layer < n_layers:
            raise InvalidInputError(
                f"layer={self.layer!r}: the model has the layers {listed(range(n_layers))}; "
                "negative numbers count from the last."
            )
        return int(self.layer) % n_layers

    def _attribute(self, samples: Samples, chosen: np.ndarray) -> Received:
        """Received attention of each analysed cell from the chosen queries."""
        parts, absorbed = [], []
        for start, stop, stream in self._streams(samples):
            lost, chunks = self._relative(stream, torch.from_numpy(chosen[start:stop]))
            absorbed.append(lost)
            parts += [values.cpu().numpy().astype(samples.x.dtype) for _, _, values in chunks]
        return Received(np.concatenate(parts), self._absorbed(absorbed, samples.names))

    def _relative(
        self, stream: Stream, queries: torch.Tensor
    ) -> tuple[np.ndarray, Iterator[tuple[int, int, torch.Tensor]]]:
        """Absorbed share per head of one sample, and received attention chunk by chunk."""
        layer = self._layer()
        looked = self.gate is not None or bool(queries.any())
        if self.gate is not None:
            reader = gate_query(stream, self._gate())
        else:
            reader = query_sum(stream, layer, queries.to(stream.module.input_mean.device))
        given, chunks = relative_attention(stream, layer, reader)
        lost = 1 - given.cpu().numpy()
        return lost if looked else np.full_like(lost, np.nan), chunks

    def _absorbed(self, shares: list[np.ndarray], samples: Any) -> pd.DataFrame:
        index = pd.Index(samples, name="sample")
        return pd.DataFrame(shares, index=index).set_axis(self.heads, axis=1)

    def _streams(self, samples: Samples) -> Iterator[tuple[int, int, Stream]]:
        """Row limits of each sample and the sample on its way through the net."""
        module = self.estimator._module(samples.x.dtype)
        for start, stop in spans(samples):
            x = torch.from_numpy(samples.x[start:stop]).to(module.input_mean.device)
            yield start, stop, Stream(module, PackedCells(x), keep_layers=True)


def _mean_known(values: np.ndarray) -> np.ndarray:
    """Mean over samples (first axis) of what is not NaN, flattened."""
    known = ~np.isnan(values)
    total = np.where(known, values, 0).sum(0)
    count = known.sum(0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan).ravel()


def assigned_heads(relative: np.ndarray) -> np.ndarray:
    """Head that looks at each cell most: number, -1 for none, -2 for cells not analysed.

    Parameters
    ----------
    relative : ndarray of shape (n_cells, n_heads)
        Received attention relative to uniform.
    """
    missing = np.isnan(relative).any(1)
    filled = np.nan_to_num(relative)
    best = filled.argmax(1)
    best[filled.max(1) <= 1] = -1
    best[missing] = -2
    return best
