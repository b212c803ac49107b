"""Checked settings of an attention explanation, and its computation."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from explainers._maths.attention import gate_query, query_mean, relative_attention
from fcm_estimators.exceptions import InvalidInputError, listed, require_key
from fcm_estimators.inference import (
    SampleCells,
    Samples,
    SetEstimator,
    by_block,
    cells_in_memory,
    fitted_net,
    layered_net,
    net_for,
    stream,
)
from fcm_estimators.nn.streaming import Stream
from fcm_estimators.polygon_regressor import PolygonRegressor


class Received(NamedTuple):
    """Received attention.

    Attributes
    ----------
    relative : ndarray of shape (n_cells, n_heads)
        Of one layer, or of all layers, head after head. Relative to uniform attention within the
        sample: the mean over its cells is 1. NaN for cells not analysed; 0 for a head that gives no
        attention at all.
    absorbed : DataFrame
        One row per sample, one column per head: share of the attention that no cell receives. It
        is the attention of queries with (almost) no positive features.
    """

    relative: np.ndarray
    absorbed: pd.DataFrame


@dataclass(frozen=True)
class GateQuery:
    """The learned query of a gate, which attends to cells after the last layer.

    Parameters
    ----------
    gate : str
        Gate of a PolygonRegressor that has a polygon.

    Examples
    --------
    >>> from explainers import GateQuery
    >>> GateQuery("CD19")
    GateQuery(gate='CD19')
    """

    gate: str


@dataclass(frozen=True)
class AttentionPlan:
    """Model and attention to explain.

    Attributes
    ----------
    estimator : SetEstimator
    net_layer : int or None
        Layer from 0; None for all. For the query of a gate it is the number of layers.
    cells : object
        The user's choice of the cells that are queries.
    gate : int
        Position of the gate whose query is read, -1 for cells as queries.
    described : str
        Description of the queries.
    """

    estimator: SetEstimator
    net_layer: int | None
    cells: Any
    gate: int
    described: str

    @classmethod
    def of(cls, estimator: SetEstimator, net_layer: Any, queries: Any) -> AttentionPlan:
        """Check the settings of an explainer.

        Raises
        ------
        InvalidInputError, MissingKeyError
            The layer or the gate does not exist, or a layer is given with the query of a gate.
        """
        n_layers = len(layered_net(estimator, "Attention").layers)
        if isinstance(queries, GateQuery):
            gate = _gate_position(estimator, queries.gate)
            if net_layer is not None:
                raise InvalidInputError(
                    f"The query of gate {queries.gate!r} attends after the last layer. Leave out "
                    f"net_layer={net_layer!r}."
                )
            return cls(estimator, n_layers, None, gate, f"gate {queries.gate}")
        known = isinstance(net_layer, (int, np.integer)) and -n_layers <= net_layer < n_layers
        if net_layer is not None and not known:
            raise InvalidInputError(
                f"net_layer={net_layer!r}: the model has the layers {listed(range(n_layers))}. "
                "Negative numbers count from the last; None means all."
            )
        described = "all cells"
        if queries is not None:
            described = str(queries) if isinstance(queries, (str, int)) else "mask"
        layer = None if net_layer is None else int(net_layer) % n_layers
        return cls(estimator, layer, queries, -1, described)

    @property
    def layers(self) -> list[int]:
        """The layers whose attention is read."""
        n_layers = len(layered_net(self.estimator, "Attention").layers)
        return list(range(n_layers)) if self.net_layer is None else [self.net_layer]

    @property
    def columns(self) -> list[str]:
        """Names of the heads, with their layers if there are several."""
        names = head_names(self.estimator)
        if self.net_layer is not None:
            return names
        return [f"layer{layer}_{name}" for layer in self.layers for name in names]

    def require_layer(self, what: str) -> int:
        """The one layer that is read.

        Raises
        ------
        InvalidInputError
            No layer was chosen.
        """
        if self.net_layer is None:
            raise InvalidInputError(
                f"{what}: heads of different layers have nothing to do with each other, so this "
                f"is about one layer. Choose it with net_layer=0 to {self.layers[-1]}."
            )
        return self.net_layer

    def require_cells_as_queries(self) -> None:
        """Raise InvalidInputError if the query of a gate was chosen."""
        if self.gate >= 0:
            raise InvalidInputError(
                f"queries={self.described!r}: the query of a gate is no cell, so it has neither "
                "attention between populations nor a rollout. Use attribute, or queries=None."
            )

    def streams(self, samples: Samples) -> Iterator[tuple[int, int, Stream]]:
        """Start and stop of the rows of each sample, and its stream through the net."""
        net = net_for(fitted_net(self.estimator), samples.x.dtype)
        cells = cells_in_memory(samples, net.input_mean.device)
        for (start, stop), part in zip(samples.spans(), cells, strict=True):
            yield start, stop, stream(net, part, keep_layers=True)

    def blocks(
        self, cells: SampleCells, queries: np.ndarray
    ) -> tuple[np.ndarray, Iterator[tuple[int, int, np.ndarray]]]:
        """Attention that the cells of one sample receive.

        Parameters
        ----------
        cells : SampleCells
        queries : bool ndarray of shape (n,)
            The cells that are queries; ignored for the query of a gate.

        Returns
        -------
        absorbed : ndarray of shape (H,)
            Share of the attention that no cell receives; NaN without queries. H is the number of
            :attr:`columns`.
        blocks : iterator of start, stop and ndarray of shape (stop - start, H)
            Received attention relative to uniform attention.
        """
        sample_stream = stream(fitted_net(self.estimator), cells, keep_layers=True)
        shares, parts = [], []
        for layer in self.layers:
            if self.gate >= 0:
                reader = gate_query(sample_stream, self.gate)
            else:
                mask = torch.from_numpy(queries).to(sample_stream.module.input_mean.device)
                reader = query_mean(sample_stream, layer, mask)
            given, chunks = relative_attention(sample_stream, layer, reader)
            shares.append(1 - given.cpu().numpy())
            parts.append(by_block(chunks))
        absorbed = np.concatenate(shares)
        if self.gate < 0 and not queries.any():
            absorbed = np.full_like(absorbed, np.nan)
        return absorbed, (
            (found[0][0], found[0][1], np.concatenate([values for _, _, values in found], axis=1))
            for found in zip(*parts, strict=True)
        )

    def of_samples(self, samples: Samples, queries: np.ndarray) -> Received:
        """Received attention of each cell, in the order of ``samples.x``."""
        net, parts, absorbed = fitted_net(self.estimator), [], []
        cells = cells_in_memory(samples, net.input_mean.device)
        for (start, stop), part in zip(samples.spans(), cells, strict=True):
            share, blocks = self.blocks(part, queries[start:stop])
            absorbed.append(share)
            parts += [values.astype(samples.x.dtype) for _, _, values in blocks]
        return Received(
            np.concatenate(parts), self.absorbed_table(absorbed, samples.names.tolist())
        )

    def absorbed_table(self, shares: list[np.ndarray], samples: list[Hashable]) -> pd.DataFrame:
        """Table with one row per sample and one column per head."""
        index = pd.Index(np.array(samples, dtype=object), name="sample")
        return pd.DataFrame(shares, index=index, columns=self.columns)


def head_names(estimator: SetEstimator) -> list[str]:
    """Names of the heads of a fitted model."""
    return [f"head{h}" for h in range(layered_net(estimator, "Attention").n_heads)]


def _gate_position(estimator: SetEstimator, gate: str) -> int:
    if not isinstance(estimator, PolygonRegressor):
        raise InvalidInputError(
            f"GateQuery({gate!r}): a {type(estimator).__name__} has no gates. Use queries=None."
        )
    require_key(gate, estimator.gates_, "the gate with a polygon")
    return estimator.gates_.index(gate)
