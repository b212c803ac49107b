"""One annotated sample, and where in its AnnData the report finds things."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from fcm_estimators._cells import keys as _keys
from fcm_estimators._checks import listed
from fcm_estimators.exceptions import InvalidInputError, MissingKeyError
from fcm_estimators.quality import CHECKS


@dataclass(frozen=True)
class Keys:
    """Names under which estimators and explainers wrote their results."""

    classes: str
    gates: str
    expert_gates: str
    gradient: str
    attention: str


@dataclass(frozen=True)
class Annotated:
    """Cells of one sample with what was written about them.

    Attributes
    ----------
    adata : AnnData
        In memory, one sample.
    name : str
        The sample's.
    keys : Keys
    """

    adata: AnnData
    name: str
    keys: Keys

    @property
    def has_classes(self) -> bool:
        """Whether a classifier annotated it."""
        return self.keys.classes in self.adata.obs

    @property
    def has_gates(self) -> bool:
        """Whether a gating model annotated it."""
        return self.keys.gates in self.adata.uns

    def record(self, key: str) -> dict[str, Any]:
        """Run record, empty where there is none."""
        found = self.adata.uns.get(key, {})
        if not isinstance(found, Mapping):
            raise InvalidInputError(
                f"uns[{key!r}] holds {type(found).__name__} and no run record; the file was "
                "changed after it was annotated. Annotate it again."
            )
        return dict(found)

    @property
    def run(self) -> dict[str, Any]:
        """Run record of the classifier, else of the gating model."""
        return self.record(self.keys.classes if self.has_classes else self.keys.gates)

    @property
    def params(self) -> dict[str, Any]:
        """Parameters of the model."""
        return json_table(self.run.get("params", "{}"), "params")

    @property
    def predicted(self) -> pd.Series:
        """Class of each cell, as Categorical of text."""
        values = self.adata.obs[self.keys.classes]
        if not isinstance(values.dtype, pd.CategoricalDtype):
            values = values.astype(str).astype("category")
        return values.cat.rename_categories(str)

    @property
    def analysed(self) -> np.ndarray:
        """Cells that the model read."""
        if self.has_classes:
            return (self.predicted != _keys.NOT_ANALYSED).to_numpy(dtype=bool)
        member = self.adata.obsm.get(f"{self.keys.gates}_membership")
        if member is None:
            return np.ones(self.adata.n_obs, dtype=bool)
        return ~pd.DataFrame(member).isna().any(axis=1).to_numpy()

    @property
    def positive_class(self) -> str | None:
        """Name of the positive class, if there is one."""
        found = self.run.get("pos_label", self.params.get("pos_label"))
        return None if found is None or not self.has_classes else str(found)

    @property
    def expert_labels(self) -> pd.Series | None:
        """Labels that the model was trained on, where these data have them."""
        key = self.params.get("label_key")
        if not self.has_classes or not isinstance(key, str) or key not in self.adata.obs:
            return None
        values = self.adata.obs[key]
        return values.astype(object).where(values.notna(), None)

    @property
    def markers(self) -> list[str]:
        """Markers of the model that the data have."""
        names = [str(m) for m in self.run.get("markers", [])]
        aliases = self.params.get("marker_aliases") or {}
        present = {str(aliases.get(v, v)): str(v) for v in self.adata.var_names}
        return [present[m] for m in names if m in present]

    @property
    def quality(self) -> list[str]:
        """Columns of quality flags."""
        return [c for c in (f"qc_{check}" for check in CHECKS) if c in self.adata.obs]

    def values(self, marker: str) -> np.ndarray:
        """Values of a marker, float64 of shape (n_cells,)."""
        column = self.adata.X[:, self.adata.var_names.get_loc(marker)]
        dense = column.toarray() if hasattr(column, "toarray") else column
        return np.asarray(dense, dtype=np.float64).ravel()

    def membership(self, key: str) -> pd.DataFrame | None:
        """Cells inside gates, missing counted as outside."""
        table = self.adata.obsm.get(key)
        if table is None or not hasattr(table, "columns"):
            return None
        frame = pd.DataFrame(table).astype("boolean").fillna(False)
        return frame.astype(bool)

    @property
    def predicted_membership(self) -> pd.DataFrame | None:
        """Cells inside the predicted gates."""
        return self.membership(f"{self.keys.gates}_membership")

    @property
    def expert_membership(self) -> pd.DataFrame | None:
        """Cells inside the expert's gates."""
        return self.membership(self.keys.expert_gates)


def json_table(text: Any, name: str) -> dict[str, Any]:
    """What a run record holds as JSON; InvalidInputError for anything else."""
    try:
        found = json.loads(str(text))
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(
            f"The run record's {name!r} is not valid JSON ({error}); the file was changed after "
            "it was annotated. Annotate it again."
        ) from error
    if not isinstance(found, dict):
        raise InvalidInputError(
            f"The run record's {name!r} holds {type(found).__name__} and no table. Annotate again."
        )
    return found


def samples_in(
    adata: AnnData, key: str = "reluformer", gates_key: str = "predicted_gates"
) -> list[str]:
    """Names of the samples that a model annotated, by first appearance."""
    return list(dict.fromkeys(_names(adata, key, gates_key)))


def _names(adata: AnnData, key: str, gates_key: str) -> np.ndarray:
    """Sample of each cell, as text.

    Raises
    ------
    InvalidInputError, MissingKeyError
        Not an AnnData; nothing that a model wrote.
    """
    if not isinstance(adata, AnnData):
        raise InvalidInputError(
            f"A report needs an AnnData, got {type(adata).__name__}. Read the file first: "
            "fcm_estimators.cohort.read_file(path)."
        )
    if key not in adata.obs and gates_key not in adata.uns:
        raise MissingKeyError(
            f"Neither obs[{key!r}] nor uns[{gates_key!r}] was found: there is nothing to report. "
            "Annotate the sample first: model.annotate(adata), or fcm annotate."
        )
    run = adata.uns.get(key if key in adata.obs else gates_key, {})
    column = str(run.get("sample_key", "sample")) if hasattr(run, "get") else "sample"
    if column in adata.obs:
        return adata.obs[column].astype(str).to_numpy()
    return np.full(adata.n_obs, "all")


def one_sample(adata: AnnData, sample: str | None, keys: Keys) -> Annotated:
    """Cells of one sample in memory; ``adata`` is left as it is.

    Raises
    ------
    InvalidInputError
        Not an AnnData, no cells, or several samples and none chosen.
    MissingKeyError
        No such sample, or nothing that a model wrote.
    """
    names = _names(adata, keys.classes, keys.gates)
    present = list(dict.fromkeys(names))
    if not present:
        raise InvalidInputError("There are no cells to report on. Check the filter applied before.")
    if sample is None and len(present) > 1:
        raise InvalidInputError(
            f"A report is about one sample, and there are {len(present)}: {listed(present)}. "
            "Choose one with sample=..."
        )
    chosen = present[0] if sample is None else str(sample)
    if chosen not in present:
        raise MissingKeyError(f"Sample {chosen!r} was not found; there is {listed(present)}.")
    part = adata[names == chosen]
    return Annotated(part.to_memory() if adata.isbacked else part.copy(), chosen, keys)
