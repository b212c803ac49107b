"""Gates that are given to a run over many files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import anndata as ad

from fcm_estimators._base.files import model_checksum
from fcm_estimators._base.panels import with_aliases
from fcm_estimators._files import checksum
from fcm_estimators.cohort.files import PathName
from fcm_estimators.cohort.jobs import Job, cached_model, is_model, require_unchanged
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.gating import GatingTree
from fcm_estimators.gating.records import tree_records
from fcm_estimators.keys import EXPERT_GATES
from fcm_estimators.labels.source import LabelSource
from fcm_estimators.models import load_model


def add_gates(adata: ad.AnnData, job: Job, model: Any) -> None:
    """Write the membership of gates to ``obsm["gates"]``."""
    if isinstance(job.gates, GatingTree):
        adata.obsm[EXPERT_GATES] = job.gates.apply(adata)
        return
    path = Path(str(job.gates))
    if is_model(path):
        regressor = cached_model(str(path), job.gates_checksum)
        # The aliases of the run are of markers of its model; this one may not have all of them.
        known = {a: b for a, b in job.marker_aliases.items() if b in regressor.markers_}
        regressor = with_aliases(regressor, known)
        ready = adata if regressor.is_prepared(adata) else regressor.prepare(adata)
        adata.obsm[EXPERT_GATES] = regressor.predict_membership(ready)
        return
    source = LabelSource(gates=str(path), only=job.only, event_column=job.event_column)
    subset = getattr(model, "subset_key", None)
    is_gate = isinstance(subset, str) and subset not in adata.obs
    within = None if model.within_ is None else model.within_.gate
    needed = (job.denominator, subset if is_gate else None, within)
    source.add_gates(adata, [gate for gate in needed if gate])
    if path.is_file():
        require_unchanged(path, job.gates_checksum)


def gate_names(gates: GatingTree | PathName) -> list[str]:
    """Names of the gates of a tree, of a saved model of gates, or of a file."""
    if isinstance(gates, GatingTree):
        return list(gates.gates)
    if is_model(Path(gates)):
        return list(load_model(gates).tree_.gates)
    return LabelSource(gates=str(gates)).gate_names()


def gates_checksum(gates: GatingTree | PathName) -> str:
    """Checksum of what was given as gates; InvalidInputError if it does not exist."""
    if isinstance(gates, GatingTree):
        text = json.dumps(tree_records(gates), sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()
    if not Path(gates).exists():
        raise InvalidInputError(f"gates: {gates} does not exist.")
    return model_checksum(gates) if is_model(Path(gates)) else checksum(Path(gates))
