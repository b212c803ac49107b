"""Annotate an FCS file that is larger than memory: by block, into the h5ad of its result."""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import anndata as ad
import pandas as pd

from fcm_estimators._cells.h5ad import write_h5ad_by_block
from fcm_estimators._cells.store import BLOCK, CellStore, open_store
from fcm_estimators.exceptions import MissingKeyError, ProcessingStateError
from fcm_estimators.io.opened import OpenedFcs
from fcm_estimators.io.record import FILE_KEY, UNS_KEY
from fcm_estimators.keys import QualityKeys
from fcm_estimators.quality import flags_by_block

logger = logging.getLogger("fcm_estimators")


def annotate_by_block(
    model: Any, opened: OpenedFcs, path: Path, key: str, require_unchanged: Callable[[], None]
) -> pd.DataFrame | None:
    """Annotate the only sample of an FCS file in a new h5ad file.

    The file is that which the result in memory would be written to.

    Parameters
    ----------
    model : fitted estimator
    opened : OpenedFcs
    path : Path
        Of the new file.
    key : str
        The ``key_added`` of ``annotate``.
    require_unchanged : callable
        Called when all events are read; raises an error if the FCS file changed.

    Returns
    -------
    DataFrame or None
        :func:`~fcm_estimators.quality.quality_table`; None if the events cannot be judged.
    """
    blocks = opened.blocks(BLOCK)
    first = next(blocks)
    ready = (_ready(model, block) for block in chain([first], blocks))
    write_h5ad_by_block(ready, sum(opened.n_events), path)
    require_unchanged()
    with open_store(path) as store:
        quality = _quality(store, first, opened)
    model.annotate(path, key_added=key)
    return quality


def _ready(model: Any, block: ad.AnnData) -> ad.AnnData:
    """A block as the model reads it."""
    if isinstance(model.sample_key, str) and model.sample_key not in block.obs:
        block.obs[model.sample_key] = block.obs["sample"]
    # It was for finding the sample in a workspace; who guesses the name could confirm it.
    block.uns[UNS_KEY].pop(FILE_KEY, None)
    return block if model.is_prepared(block) else model.prepare(block, copy=False)


def _quality(store: CellStore, first: ad.AnnData, opened: OpenedFcs) -> pd.DataFrame | None:
    """Flag events and count the flags; None where there is nothing to judge."""
    try:
        values = store.matrix("raw" if "raw" in store.root["layers"] else None)
        flags, table, record = flags_by_block(first, values)
    except (ProcessingStateError, MissingKeyError) as error:
        logger.info("%s: no quality flags. %s", opened.segments[0].path, error)
        return None
    for name, flagged in flags.items():
        store.add_column(name, bool, False)[:] = flagged
    store.add_records({QualityKeys.key: record})
    return table
