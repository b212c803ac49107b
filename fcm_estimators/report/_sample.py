"""One annotated sample, and the keys under which its results are stored."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from anndata import AnnData

from fcm_estimators._cells.samples import data_names
from fcm_estimators._checks import listed
from fcm_estimators._types import Entries
from fcm_estimators.exceptions import InvalidInputError, MissingKeyError
from fcm_estimators.keys import (
    NOT_ANALYSED,
    AttentionKeys,
    ClassKeys,
    GateKeys,
    GradientKeys,
    QualityKeys,
)
from fcm_estimators.quality import CHECKS


@dataclass(frozen=True)
class Keys:
    """Keys under which estimators and explainers wrote their results."""

    classes: ClassKeys
    gates: GateKeys
    expert_gates: str
    gradient: GradientKeys
    attention: AttentionKeys


@dataclass(frozen=True)
class Annotated:
    """Cells of one sample with their annotation.

    Attributes
    ----------
    adata : AnnData
        One sample, in memory.
    name : str
        Name of the sample.
    keys : Keys
    """

    adata: AnnData
    name: str
    keys: Keys

    @property
    def has_classes(self) -> bool:
        """Whether a classifier annotated the sample."""
        return self.keys.classes.label in self.adata.obs

    @property
    def has_gates(self) -> bool:
        """Whether a gating model annotated the sample."""
        return self.keys.gates.record in self.adata.uns

    def record(self, key: str) -> Entries:
        """Run record under a key; empty if there is none."""
        found = self.adata.uns.get(key, {})
        if not isinstance(found, Mapping):
            raise InvalidInputError(
                f"uns[{key!r}] holds a {type(found).__name__} instead of a run record; the file "
                "was changed after it was annotated. Annotate it again."
            )
        return dict(found)

    @property
    def run(self) -> Entries:
        """Run record of the classifier, else of the gating model."""
        return self.record(self.keys.classes.record if self.has_classes else self.keys.gates.record)

    @property
    def params(self) -> Entries:
        """Parameters of the model."""
        return json_table(self.run.get("params", "{}"), "params")

    @property
    def predicted(self) -> pd.Series:
        """Class of each cell, as Categorical of text."""
        values = self.adata.obs[self.keys.classes.label]
        if not isinstance(values.dtype, pd.CategoricalDtype):
            values = values.astype(str).astype("category")
        renamed: pd.Series = values.cat.rename_categories(str)
        return renamed

    @property
    def analysed(self) -> np.ndarray:
        """Cells that the model analysed, bool of shape (n_cells,)."""
        if self.has_classes:
            return (self.predicted != NOT_ANALYSED).to_numpy(dtype=bool)
        membership = self.adata.obsm.get(self.keys.gates.membership)
        if membership is None:
            return np.ones(self.adata.n_obs, dtype=bool)
        return ~pd.DataFrame(membership).isna().any(axis=1).to_numpy()

    @property
    def unknown(self) -> np.ndarray | None:
        """Cells that are unlike any in training, bool; None if they were not judged."""
        found = self.adata.obs.get(self.keys.classes.unknown)
        return None if found is None else found.to_numpy(dtype=bool)

    @property
    def positive_class(self) -> str | None:
        """Name of the positive class, if there is one."""
        found = self.run.get("pos_label", self.params.get("pos_label"))
        return None if found is None or not self.has_classes else str(found)

    @property
    def expert_labels(self) -> pd.Series | None:
        """Labels under the key on which the model was trained, if the data have them."""
        key = self.params.get("label_key")
        if not self.has_classes or not isinstance(key, str) or key not in self.adata.obs:
            return None
        values: pd.Series = self.adata.obs[key]
        return values.astype(object).where(values.notna(), None)

    @property
    def markers(self) -> list[str]:
        """Markers that both the model and the data have."""
        names = [str(m) for m in self.run.get("markers", [])]
        present = self.names_in_data(self.run)
        return [present[m] for m in names if m in present]

    def names_in_data(self, run: Entries) -> dict[str, str]:
        """Name of each marker in the data, by its name in the model of a run record."""
        params = json_table(run.get("params", "{}"), "params")
        return data_names(self.adata.var_names, params.get("marker_aliases"))

    @property
    def quality(self) -> list[str]:
        """Columns of quality flags."""
        return [c for c in map(QualityKeys().flag, CHECKS) if c in self.adata.obs]

    def values(self, marker: str) -> np.ndarray:
        """Values of a marker, float64 of shape (n_cells,)."""
        column = self.adata.X[:, self.adata.var_names.get_loc(marker)]
        dense = column.toarray() if hasattr(column, "toarray") else column
        return np.asarray(dense, dtype=np.float64).ravel()

    def membership(self, key: str) -> pd.DataFrame | None:
        """Cells inside each gate; cells with missing values count as outside."""
        table = self.adata.obsm.get(key)
        if table is None or not hasattr(table, "columns"):
            return None
        frame = pd.DataFrame(table).astype("boolean").fillna(False)
        return frame.astype(bool)

    def n_unclear(self, key: str, gate: str) -> int:
        """Number of cells whose membership of a gate is missing."""
        return int(pd.DataFrame(self.adata.obsm[key])[gate].isna().sum())

    @property
    def predicted_membership(self) -> pd.DataFrame | None:
        """Cells inside the predicted gates."""
        return self.membership(self.keys.gates.membership)

    @property
    def expert_membership(self) -> pd.DataFrame | None:
        """Cells inside the expert's gates."""
        return self.membership(self.keys.expert_gates)


def json_table(text: object, name: str) -> Entries:
    """Parse a table that a run record holds as JSON; raise InvalidInputError if it is not one."""
    try:
        found = json.loads(str(text))
    except (ValueError, RecursionError) as error:
        raise InvalidInputError(
            f"The run record's {name!r} is not valid JSON ({error}); the file was changed after "
            "it was annotated. Annotate it again."
        ) from error
    if not isinstance(found, dict):
        raise InvalidInputError(
            f"The run record's {name!r} holds a {type(found).__name__}, no table. Annotate again."
        )
    return found


def samples_in(
    adata: AnnData, key: str = ClassKeys.key, gates_key: str = GateKeys.key
) -> list[str]:
    """Names of the samples that a model annotated, in order of first appearance."""
    return list(dict.fromkeys(_names(adata, ClassKeys(key), GateKeys(gates_key))))


def _names(adata: AnnData, classes: ClassKeys, gates: GateKeys) -> np.ndarray:
    """Sample of each cell, as text.

    Raises
    ------
    InvalidInputError, MissingKeyError
        ``adata`` is not an AnnData, or a model has not annotated it.
    """
    if not isinstance(adata, AnnData):
        raise InvalidInputError(
            f"A report needs an AnnData, got {type(adata).__name__}. Read the file first: "
            "fcm_estimators.cohort.read_file(path)."
        )
    if classes.label not in adata.obs and gates.record not in adata.uns:
        raise MissingKeyError(
            f"Neither obs[{classes.label!r}] nor uns[{gates.record!r}] was found, so there is "
            "nothing to report. Annotate the sample first: model.annotate(adata), or fcm annotate."
        )
    run = adata.uns.get(classes.record if classes.label in adata.obs else gates.record, {})
    column = str(run.get("sample_key", "sample")) if hasattr(run, "get") else "sample"
    if column in adata.obs:
        return np.asarray(adata.obs[column].astype(str))
    return np.full(adata.n_obs, "all")


def one_sample(adata: AnnData, sample: str | None, keys: Keys) -> Annotated:
    """Copy the cells of one sample into memory; ``adata`` is not changed.

    Raises
    ------
    InvalidInputError
        ``adata`` is not an AnnData or has no cells, or there are several samples and none is
        chosen.
    MissingKeyError
        The sample is not there, or a model has not annotated it.
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
