"""Rows of the table of a cohort: what an annotated file holds, counted."""

from __future__ import annotations

from typing import Any, Protocol

import anndata as ad
import numpy as np
import pandas as pd

from fcm_estimators._cells.records import (
    members_table,
    shares_against,
    shares_table,
    uncertain_samples,
    was_tested,
)
from fcm_estimators._cells.store import CellStore
from fcm_estimators._checks import listed, sample_codes
from fcm_estimators._types import Entries
from fcm_estimators.cohort.jobs import Job
from fcm_estimators.exceptions import MissingKeyError
from fcm_estimators.keys import EXPERT_GATES, ClassKeys, GateKeys, QualityKeys
from fcm_estimators.metrics import ClassificationErrors, mrd_table
from fcm_estimators.metrics import Protocol as Limits
from fcm_estimators.quality import CHECKS


class Annotated(Protocol):
    """A result, column by column."""

    def column(self, key: str) -> pd.Series | None:
        """Column of ``obs``; None if there is none."""

    def table_columns(self, key: str) -> list[str] | None:
        """Names of the columns of a table of ``obsm``; None if there is none."""

    def table_column(self, key: str, name: str) -> pd.Series:
        """Column of a table of ``obsm``."""

    def record(self, key: str) -> Entries:
        """Entry of ``uns``."""


class InMemory:
    """A result in memory."""

    def __init__(self, adata: ad.AnnData) -> None:
        self._adata = adata

    def column(self, key: str) -> pd.Series | None:
        """Column of ``obs``; None if there is none."""
        found: pd.Series | None = self._adata.obs.get(key)
        return found

    def table_columns(self, key: str) -> list[str] | None:
        """Names of the columns of a table of ``obsm``; None if there is none."""
        return list(self._adata.obsm[key]) if key in self._adata.obsm else None

    def table_column(self, key: str, name: str) -> pd.Series:
        """Column of a table of ``obsm``."""
        found: pd.Series = self._adata.obsm[key][name]
        return found

    def record(self, key: str) -> Entries:
        """Entry of ``uns``."""
        found: Entries = self._adata.uns[key]
        return found


class InStore:
    """A result in an open store."""

    def __init__(self, store: CellStore) -> None:
        self._store, self.table_columns = store, store.table_columns

    def column(self, key: str) -> pd.Series | None:
        """Column of ``obs``; None if there is none."""
        return self._store.column(key) if key in self._store.root["obs"] else None

    def table_column(self, key: str, name: str) -> pd.Series:
        """Column of a table of ``obsm``."""
        return pd.Series(ad.io.read_elem(self._store.root["obsm"][key][name]))

    def record(self, key: str) -> Entries:
        """Entry of ``uns``."""
        found: Entries = ad.io.read_elem(self._store.root["uns"][key])
        return found


def sample_rows(
    result: Annotated,
    model: Any,
    job: Job,
    keys: ClassKeys | GateKeys,
    quality: pd.DataFrame | None,
) -> list[Entries]:
    """Counts, flags and distance from training, a row per sample.

    Parameters
    ----------
    result : Annotated
    model : fitted estimator
    job : Job
    keys : ClassKeys or GateKeys
    quality : DataFrame or None
        :func:`~fcm_estimators.quality.quality_table`; None if events could not be judged.
    """
    counts = _counts(model, result, job, keys)
    distances = _distances(result.record(keys.record))
    sample = _required(result, "sample")
    ids = None if model.sample_key is None else _required(result, model.sample_key)
    if quality is None:
        columns = [f"n_{QualityKeys().flag(check)}" for check in (*CHECKS, "any")]
        quality = pd.DataFrame(index=counts.index, columns=["n_cells", *columns])
    rows = []
    for name in sample.unique():
        inside = (sample == name).to_numpy()
        known_as = distances.index[0][0] if ids is None else str(ids[inside].iloc[0])
        of_sample = distances.loc[known_as]
        rows.append(
            {
                "sample": str(name),
                "n_cells": int(inside.sum()),
                **_plain(counts.loc[name]),
                **_plain(quality.loc[name].drop("n_cells")),
                "farthest_marker": str(of_sample.idxmax()),
                "distance": float(of_sample.max()),
            }
        )
    return rows


def _required(result: Annotated, key: str) -> pd.Series:
    column = result.column(key)
    if column is None:
        raise MissingKeyError(f"The result has no obs column {key!r}. Annotate the file again.")
    return column


def _required_table(result: Annotated, key: str) -> list[str]:
    """Names of the columns of a table of the result."""
    columns = result.table_columns(key)
    if columns is None:
        raise MissingKeyError(f"The result has no obsm table {key!r}. Annotate the file again.")
    return columns


def _distances(record: Entries) -> pd.Series:
    """Distance from training by sample and marker, as ``annotate`` recorded it."""
    found = record["distance"]
    index = pd.MultiIndex.from_arrays([found["sample"], found["marker"]])
    return pd.Series(found["distance"], index=index)


def _counts(model: Any, result: Annotated, job: Job, keys: ClassKeys | GateKeys) -> pd.DataFrame:
    """Count cells per class or gate, and residual disease; one row per sample."""
    sample = _required(result, "sample")
    codes, names = sample_codes(sample, "sample")

    def counted(mask: np.ndarray) -> np.ndarray:
        return np.bincount(codes[mask], minlength=len(names))

    table = pd.DataFrame(index=names.rename(None))
    if isinstance(keys, GateKeys):
        analysed, gates = np.ones(len(sample), dtype=bool), dict[str, np.ndarray]()
        for gate in _required_table(result, keys.membership):
            member = result.table_column(keys.membership, gate)
            analysed &= member.notna().to_numpy()
            gates[f"n_{gate}"] = counted(member.fillna(False).to_numpy(dtype=bool))
        return table.assign(n_analysed=counted(analysed), **gates)
    predicted, record = _required(result, keys.label), result.record(keys.record)
    classes, analysed = _required_table(result, keys.probabilities), np.ones(len(sample), bool)
    for name in classes:
        analysed &= result.table_column(keys.probabilities, name).notna().to_numpy()
    table["n_analysed"] = counted(analysed)
    for name in classes:
        table[f"n_{name}"] = counted((predicted == name).to_numpy() & analysed)
    # Those cells that keep a class are counted there too.
    table["n_unknown"] = counted(_required(result, keys.unknown).to_numpy())
    limits = shares_table(record)
    if limits is not None:
        of_classes = table[[f"n_{name}" for name in limits.index]].set_axis(limits.index, axis=1)
        table["outside_training"] = _outside_training(of_classes, limits)
    missing = list(record["missing_markers"])
    if missing:
        table["missing_markers"] = ", ".join(missing)
    if model.pos_label_ is None:
        return table
    inside, gate = analysed, "analysed"
    if job.denominator is not None:
        gate = job.denominator
        known = result.table_columns(EXPERT_GATES) or []
        if gate not in known:
            gate = gate.replace("/", "|")  # as importers of gates write it
        if gate not in known:
            raise MissingKeyError(
                f"denominator={job.denominator!r} is not among the gates {listed(known)}. Pass "
                "gates=..., or no denominator."
            )
        inside = result.table_column(EXPERT_GATES, gate).fillna(False).to_numpy(dtype=bool)
    positive = (predicted == str(model.pos_label_)).to_numpy() & analysed
    mrd = mrd_table(
        positive,
        denominator=inside,
        denominator_name=gate,
        groups=sample,
        limit_of_blank=job.limit_of_blank,
        uncertain=uncertain_samples(record),
        tested=was_tested(record),
        protocol=Limits.from_dict(job.protocol),
        errors=None if job.errors is None else ClassificationErrors.from_dict(job.errors),
    )
    members = members_table(record).set_index("sample")
    for name in ("lowest", "highest", "possible"):
        mrd[f"members_{name}"] = members[name].reindex(mrd.index.astype(str)).to_numpy()
    for name in map(QualityKeys().flag, CHECKS):
        flagged = result.column(name)
        if flagged is not None:
            mrd[f"n_positive_{name}"] = counted(flagged.to_numpy() & positive & inside)
    return table.join(mrd)


def _outside_training(counts: pd.DataFrame, limits: pd.DataFrame) -> pd.Series:
    """Classes whose share is outside that of the training samples, as text for each sample."""
    table = shares_against(counts, limits)
    odd = table[table["state"].isin(["below", "above"])]
    found = {s: "; ".join(t["population"] + " " + t["state"]) for s, t in odd.groupby("sample")}
    return pd.Series([found.get(sample, "") for sample in counts.index], counts.index)


def _plain(row: pd.Series) -> Entries:
    """Convert values to types that JSON has."""
    values = {str(k): v.item() if isinstance(v, np.generic) else v for k, v in row.items()}
    return {k: None if v is pd.NA or v != v else v for k, v in values.items()}
