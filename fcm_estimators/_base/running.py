"""Using a net: its outputs, streams of cells through it, and estimators with another net."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from fcm_estimators._cells.rows import FileRows, SampleCells, cells_in_memory
from fcm_estimators._cells.samples import Samples
from fcm_estimators._cells.store import BLOCK
from fcm_estimators._fitting.net import PackedNet
from fcm_estimators._fitting.trainer import ready_net
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.nn.own import OwnModule, WholeStream
from fcm_estimators.nn.reluformer import ScaledModule, SetModule
from fcm_estimators.nn.sources import Rows, Stored
from fcm_estimators.nn.streaming import Stream

Net = TypeVar("Net", bound=ScaledModule)

# Intermediate values of more bytes are kept in a temporary file, which takes hardly longer.
_MOST_BYTES = 64 << 20


def net_for(net: Net, dtype: np.dtype) -> Net:
    """The net in the precision of the data; a cast copy if the precision differs."""
    wanted = torch.float64 if dtype == np.float64 else torch.float32
    return net if net.input_mean.dtype == wanted else copy.deepcopy(net).to(wanted)


def stream_through(
    net: ScaledModule,
    cells: SampleCells,
    *,
    weight: Tensor | None = None,
    keep_layers: bool = False,
) -> Stream:
    """Stream of the cells of one sample through a net, in the precision of the cells.

    Where they would need much memory, and for cells in a store, intermediate values are kept in a
    temporary file. ``weight``, of shape (N,), is the weight of each cell in the contexts. A net
    that is no SetModule gets all cells at once.
    """
    cast = net_for(net, cells.glance.dtype)
    if isinstance(cast, OwnModule):
        return WholeStream(cast, cells.source, weight=weight)
    if not isinstance(cast, SetModule):
        raise TypeError(f"{cast.name} is neither a SetModule nor an OwnModule")
    n_kept = len(cast.layers) if keep_layers else 1
    n_bytes = len(cells.rows) * cast.hidden_dim * cells.glance.itemsize * n_kept
    in_memory = n_bytes <= _MOST_BYTES or cast.input_mean.device.type != "cpu"
    store = Stored.new if in_memory and not cells.in_file else FileRows
    return Stream(cast, cells.source, weight=weight, keep_layers=keep_layers, store=store)


@dataclass(frozen=True)
class KeptOutputs:
    """Outputs of all cells of a sample, which can be read many times.

    Attributes
    ----------
    rows : Rows
    n_cells : int
    """

    rows: Rows
    n_cells: int

    def spans(self) -> Iterator[tuple[int, int, Tensor]]:
        """Yield start, stop and outputs of each block."""
        for start in range(0, self.n_cells, BLOCK):
            stop = min(start + BLOCK, self.n_cells)
            yield start, stop, self.rows.get(start, stop)

    def blocks(self) -> Iterator[Tensor]:
        """Yield the outputs of each block."""
        return (outputs for _, _, outputs in self.spans())


def kept_outputs(net: ScaledModule, cells: SampleCells) -> KeptOutputs:
    """Outputs of the cells of one sample; those of cells in a store are in a temporary file."""
    store = FileRows if cells.in_file else Stored.new
    rows: Rows | None = None
    for start, _, outputs in stream_through(net, cells).outputs():
        _require_finite_outputs(outputs, cells.name)
        if rows is None:
            rows = store(len(cells.rows), outputs.shape[1], outputs)
        rows.put(start, outputs)
    return KeptOutputs(rows or Stored(torch.empty(0, 0)), len(cells.rows))


def outputs_of(net: ScaledModule, samples: Samples) -> np.ndarray:
    """Outputs of all cells, sample by sample, in the dtype of ``samples.x``."""
    cast = net_for(net, samples.x.dtype)
    parts = []
    for cells in cells_in_memory(samples, net.input_mean.device):
        for _, _, outputs in stream_through(cast, cells).outputs():
            _require_finite_outputs(outputs, cells.name)
            parts.append(outputs.cpu().numpy())
    return np.concatenate(parts)


def _require_finite_outputs(outputs: Tensor, sample: Hashable) -> None:
    if not bool(outputs.isfinite().all()):
        raise InvalidInputError(
            f"The net gives values that are not finite (NaN or infinity) for sample {sample}: its "
            "weights are damaged, or they overflow in the precision of the data. Train again."
        )


def new_module(make: Callable[[], ScaledModule], seed: int) -> ScaledModule:
    """A module with initial weights. The caller's random state does not change."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


class HasNet(Protocol):
    """A fitted estimator."""

    device: str
    net_: PackedNet


Estimator = TypeVar("Estimator", bound=HasNet)


def with_net(estimator: Estimator, net: ScaledModule) -> Estimator:
    """A copy of a fitted estimator with another net. The original does not change."""
    other = copy.copy(estimator)
    # Members and calibration belong to the net that they were made for.
    if hasattr(other, "members_"):
        vars(other).update(members_=[], temperature_=1.0)
    other.net_ = ready_net(net, other.device)
    return other
