"""Names of cells, and an AnnData around them; for large files these cost as much as the events."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from threading import Lock

import anndata as ad
import numpy as np
import pandas as pd

# Cells whose names are made at once. A power of ten: their names differ in the last digits only,
# and adding those to one text is cheaper than a text for each number.
_BLOCK = 1000
_PLAIN = np.array([str(event) for event in range(_BLOCK)], dtype=object)
_PADDED = np.array([name.zfill(len(_PLAIN[-1])) for name in _PLAIN], dtype=object)
# The setting of AnnData is one for all threads.
_setting = Lock()


def cell_names(samples: Sequence[str], n_events: Sequence[int], first: int = 0) -> np.ndarray:
    """``"{sample}:{event}"`` of all cells, events counted from `first` in each sample.

    Parameters
    ----------
    samples : sequence of str, length S
    n_events : sequence of int, length S
    first : int, default 0

    Returns
    -------
    ndarray of str objects, shape (N,)

    Examples
    --------
    >>> from fcm_estimators.io.cells import cell_names
    >>> cell_names(["a", "b"], [2, 1]).tolist()
    ['a:0', 'a:1', 'b:0']
    """
    names = np.empty(sum(n_events), dtype=object)
    row = 0
    for sample, count in zip(samples, n_events, strict=True):
        stop = first + count
        for start in range(first - first % _BLOCK, stop, _BLOCK):
            begin, end = max(start, first), min(start + _BLOCK, stop)
            endings = (_PADDED if start else _PLAIN)[begin - start : end - start]
            names[row + begin - first : row + end - first] = (
                f"{sample}:{start // _BLOCK or ''}" + endings
            )
        row += count
    return names


def cell_table(samples: Sequence[str], n_events: Sequence[int], first: int = 0) -> pd.DataFrame:
    """One row per cell: ``sample``, ``event``, and the name of the cell as the index.

    Parameters
    ----------
    samples : sequence of str, length S
        Unique names.
    n_events : sequence of int, length S
    first : int, default 0
        Number of the first event.

    Returns
    -------
    DataFrame
        ``sample`` is Categorical in the order of `samples`, ``event`` int64.
    """
    kind = np.min_scalar_type(-len(samples))
    codes = np.repeat(np.arange(len(samples), dtype=kind), n_events)
    events = [np.arange(first, first + n, dtype=np.int64) for n in n_events]
    return pd.DataFrame(
        {
            "sample": pd.Categorical.from_codes(codes, categories=pd.Index(samples)),
            "event": events[0] if len(events) == 1 else np.concatenate(events),
        },
        index=pd.Index(cell_names(samples, n_events, first), dtype=object),
        copy=False,
    )


def assembled(x: np.ndarray, obs: pd.DataFrame, var: pd.DataFrame) -> ad.AnnData:
    """An AnnData of events whose names are known to be unique.

    AnnData looks for repeated names and for names that are not text. That costs more than the
    events, and names of unique samples cannot repeat. It is made with one name for all cells, kept
    once, and is then given theirs.

    Parameters
    ----------
    x : ndarray of float32, shape (N, M)
    obs, var : DataFrame
        With unique indices.
    """
    codes = np.zeros(len(obs), dtype=np.int8)
    one_name = pd.CategoricalIndex(pd.Categorical.from_codes(codes, categories=pd.Index(["cell"])))
    renamed = obs.copy(deep=False)
    renamed.index = one_name
    with names_not_compared():
        adata = ad.AnnData(X=x, obs=renamed, var=var)
        adata.obs_names = obs.index
    return adata


def copied(adata: ad.AnnData) -> ad.AnnData:
    """A copy, without another search for repeated names."""
    with names_not_compared():
        return adata.copy()


@contextmanager
def names_not_compared() -> Iterator[None]:
    """Let AnnData not look for repeated names of cells."""
    with _setting, ad.settings.override(check_uniqueness=False):
        yield
