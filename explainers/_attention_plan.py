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
    net_for,
    stream,
)
from fcm_estimators.nn.streaming import Stream
from fcm_estimators.polygon_regressor import PolygonRegressor


class Received(NamedTuple):
    """Received attention of one layer.

    Attributes
    ----------
    relative : ndarray of shape (n_cells, n_heads)
        Relative to uniform attention within the sample: the mean over its cells is 1. NaN for
        cells not analysed; 0 for a head that gives no attention at all.
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
    net_layer : int
        Layer from 0. For the query of a gate it is the number of layers.
    cells : object
        The user's choice of the cells that are queries.
    gate : int
        Position of the gate whose query is read, -1 for cells as queries.
    described : str
        Description of the queries.
    """

    estimator: SetEstimator
    net_layer: int
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
        n_layers = len(fitted_net(estimator).layers)
        if isinstance(queries, GateQuery):
            gate = _gate_position(estimator, queries.gate)
            if net_layer != -1:
                raise InvalidInputError(
                    f"The query of gate {queries.gate!r} attends after the last layer. Leave out "
                    f"net_layer={net_layer!r}."
                )
            return cls(estimator, n_layers, None, gate, f"gate {queries.gate}")
        if not isinstance(net_layer, (int, np.integer)) or not -n_layers <= net_layer < n_layers:
            raise InvalidInputError(
                f"net_layer={net_layer!r}: the model has the layers {listed(range(n_layers))}. "
                "Negative numbers count from the last."
            )
        described = "all cells"
        if queries is not None:
            described = str(queries) if isinstance(queries, (str, int)) else "mask"
        return cls(estimator, int(net_layer) % n_layers, queries, -1, described)

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
            Share of the attention that no cell receives; NaN without queries.
        blocks : iterator of start, stop and ndarray of shape (stop - start, H)
            Received attention relative to uniform attention.
        """
        sample_stream = stream(fitted_net(self.estimator), cells, keep_layers=True)
        if self.gate >= 0:
            reader = gate_query(sample_stream, self.gate)
        else:
            mask = torch.from_numpy(queries).to(sample_stream.module.input_mean.device)
            reader = query_mean(sample_stream, self.net_layer, mask)
        given, chunks = relative_attention(sample_stream, self.net_layer, reader)
        absorbed = 1 - given.cpu().numpy()
        if self.gate < 0 and not queries.any():
            absorbed = np.full_like(absorbed, np.nan)
        return absorbed, by_block(chunks)

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
        return pd.DataFrame(shares, index=index, columns=head_names(self.estimator))


def head_names(estimator: SetEstimator) -> list[str]:
    """Names of the heads of a fitted model."""
    return [f"head{h}" for h in range(fitted_net(estimator).n_heads)]


def _gate_position(estimator: SetEstimator, gate: str) -> int:
    if not isinstance(estimator, PolygonRegressor):
        raise InvalidInputError(
            f"GateQuery({gate!r}): a {type(estimator).__name__} has no gates. Use queries=None."
        )
    require_key(gate, estimator.gates_, "the gate with a polygon")
    return estimator.gates_.index(gate)
