"""Whole tasks on files, one call each: train, evaluate, explain, gate.

The command line calls these functions. :func:`fcm_estimators.cohort.annotate_files` annotates.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData

from fcm_estimators._base.panels import with_aliases
from fcm_estimators._cells.samples import data_names
from fcm_estimators._checks import gate_called, listed
from fcm_estimators._files import made_folder, replaced_when_complete, write_table
from fcm_estimators._types import Entries, Progress
from fcm_estimators.cohort import annotate_files, read_files
from fcm_estimators.cohort.files import PathName
from fcm_estimators.exceptions import InvalidInputError, MissingKeyError
from fcm_estimators.gating import GatingTree
from fcm_estimators.gating.gate_files import TREE_ENDINGS
from fcm_estimators.io.record import file_digests
from fcm_estimators.keys import AttentionKeys, GateKeys, GradientKeys
from fcm_estimators.labels import LabelSource
from fcm_estimators.metrics import classification_table, reliability_table, summarize
from fcm_estimators.models import is_gating_model, load_model, result_keys
from fcm_estimators.preprocessing import standard_steps

if TYPE_CHECKING:
    from distributed import Client

    from fcm_estimators.classifier import ReluFormerClassifier
    from fcm_estimators.polygon_regressor import PolygonRegressor

__all__ = [
    "Evaluation",
    "evaluate_files",
    "explain_files",
    "gate_files",
    "train_model",
]

_TRAINING = "training"


def train_model(
    files: PathName | Sequence[PathName],
    out: PathName,
    *,
    labels: LabelSource | None = None,
    kind: Literal["classifier", "gates"] = "classifier",
    transform: Literal["auto", "logicle", "arcsinh", "none"] = "auto",
    cofactor: float | None = None,
    compensate: bool | None = None,
    patients: Mapping[str, str] | None = None,
    max_cells: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    client: Client | None = None,
    n_workers: int | None = None,
    progress: Progress | None = None,
    **params: Any,
) -> ReluFormerClassifier | PolygonRegressor:
    """Train a model on files and save it.

    The state of training is kept in ``out/"training"`` after each epoch, until the model is
    saved. A training that is killed loses at most one epoch.

    Parameters
    ----------
    files : path or sequence of paths
        FCS, h5ad or zarr files, or a directory of such files.
    out : path
        Directory of the model. ``history.csv`` is also written there.
    labels : LabelSource, optional
        Default: ``obs["cell_type"]`` of h5ad and zarr files.
    kind : {"classifier", "gates"}, default "classifier"
        Train a :class:`ReluFormerClassifier`, or a :class:`PolygonRegressor` of the tree in
        ``labels.gates``.
    transform, cofactor, compensate
        As for :func:`standard_steps`.
    patients : mapping of sample to patient, optional
        Patient of each sample, for the validation split. Default: the column ``patient`` of
        ``obs`` if all files have it, else each sample is a separate patient.
    max_cells : int, optional
        Number of cells of each sample to train on, chosen at random. Default: all cells.
    resume : bool, default False
        Continue the unfinished training in ``out``. If False, such a training is an error.
    overwrite : bool, default False
        Replace a model in ``out``. If False, such a model is an error.
    client, n_workers, progress
        As for :func:`~fcm_estimators.cohort.read_files`.
    **params
        Parameters of the estimator. ``pos_label`` defaults to the only class that
        ``labels.classes`` names, if the labels are two.

    Returns
    -------
    ReluFormerClassifier or PolygonRegressor
        Fitted.

    Raises
    ------
    InvalidInputError
        ``out`` holds an unfinished training and ``resume`` is False, or a model and ``overwrite``
        is False; the labels are two classes, there is no ``pos_label``, and ``labels.classes``
        names both or none of them; there is no tree of gates for ``kind="gates"``, or there is
        ``labels.within``; and as ``read_files`` and ``fit``.
    MissingKeyError
        The files have no labels, or ``patients`` lacks a sample.
    """
    from fcm_estimators.classifier import ReluFormerClassifier
    from fcm_estimators.polygon_regressor import PolygonRegressor

    if kind not in ("classifier", "gates"):
        raise InvalidInputError(f'kind must be "classifier" or "gates", got {kind!r}.')
    labels = _with_subset(labels or LabelSource(), params.get("subset_key"))
    if kind == "gates" and labels.within is not None:
        raise InvalidInputError(
            f"within={labels.within!r} limits the labels of classes, and a model of gates has "
            "none. Choose the cells that it reads with subset_key=..."
        )
    # Before hours of training.
    folder = made_folder(out)
    state = folder / _TRAINING
    if (folder / "model.json").exists() and not overwrite:
        raise InvalidInputError(
            f"{folder} holds a model, which would be replaced. Choose another out, or replace it "
            "with overwrite=True (--overwrite)."
        )
    if state.exists() and not resume:
        raise InvalidInputError(
            f"{folder} holds an unfinished training. Continue it with resume=True (--resume), or "
            f"remove {state} to start again."
        )
    adata = read_files(
        files,
        steps=partial(
            standard_steps, transform=transform, cofactor=cofactor, compensate=compensate
        ),
        label=labels,
        marker_aliases=params.get("marker_aliases"),
        max_cells=max_cells,
        client=client,
        n_workers=n_workers,
        progress=progress,
    )
    patient_key = _add_patients(adata, patients)
    common = {"sample_key": "sample", "patient_key": patient_key, **params}
    model: ReluFormerClassifier | PolygonRegressor
    if kind == "classifier":
        _require_labels(adata, labels.label_key)
        pos_label = common.pop("pos_label", None)
        if pos_label is None:
            pos_label = _named_class(adata.obs[labels.label_key], labels)
        model = ReluFormerClassifier(label_key=labels.label_key, pos_label=pos_label, **common)
    else:
        if labels.gates is None or Path(labels.gates).suffix.lower() not in TREE_ENDINGS:
            raise InvalidInputError(
                "A model learns gates from a tree. Give a Gating-ML file or a FlowJo workspace."
            )
        sample = str(adata.obs["sample"].iloc[0])
        tree = labels.tree(sample, file_digests(adata).get(sample, ""))
        model = PolygonRegressor(tree, **common)
    # Distributed training keeps no state.
    model.fit(adata, checkpoint=None if model.device == "accelerate" else state)
    model.save(folder)
    write_table(folder / "history.csv", model.history_)
    shutil.rmtree(state, ignore_errors=True)
    return model


def _with_gates_of(model: Any, labels: LabelSource) -> LabelSource:
    """Let the source read the gates whose cells a fitted model reads."""
    within = None if model.within_ is None else model.within_.gate
    return _with_subset(_with_subset(labels, model.subset_key), within)


def _with_subset(labels: LabelSource, subset: object) -> LabelSource:
    """Let the source read the gate whose cells a model reads, if its file has it."""
    if not isinstance(subset, str) or labels.gates is None:
        return labels
    known = labels.gate_names()
    gate = gate_called(subset, known)
    return replace(labels, also=(*labels.also, gate)) if gate in known else labels


def _require_labels(adata: AnnData, key: str) -> None:
    if key not in adata.obs:
        raise MissingKeyError(
            f"The files have no labels obs[{key!r}]; obs has {listed(adata.obs.columns)}. Give "
            "classes (of gates), or another key."
        )


def _named_class(labels: pd.Series, source: LabelSource) -> str | None:
    """Positive class: of two, the only one that the user has named. It is never guessed."""
    classes = sorted(labels.dropna().unique())
    if len(classes) != 2:
        return None
    named = set(source.classes.values()) & set(classes)
    if len(named) == 1:
        return named.pop()
    raise InvalidInputError(
        f"The labels are two classes, {listed(classes)}. Which is the one of interest, such as the "
        "blasts? Name it with pos_label=...; thresholds, false positives and residual disease "
        "refer to it."
    )


def _add_patients(adata: AnnData, patients: Mapping[str, str] | None) -> str | None:
    if patients is None:
        complete = "patient" in adata.obs and not adata.obs["patient"].isna().any()
        return "patient" if complete else None
    samples = adata.obs["sample"].astype(str)
    if missing := sorted(set(samples) - set(patients)):
        raise MissingKeyError(f"patients lacks the patient of {listed(missing)}.")
    adata.obs["patient"] = pd.Categorical(samples.map(dict(patients)))
    return "patient"


# -- evaluation ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evaluation:
    """Agreement of a model with experts on files.

    Attributes
    ----------
    table : DataFrame
        One row per sample (:func:`~fcm_estimators.metrics.classification_table`), or per sample
        and gate (:func:`~fcm_estimators.metrics.gate_agreement`).
    summary : Series or DataFrame
        Summary over samples (:func:`~fcm_estimators.metrics.summarize`).
    reliability : DataFrame or None
        Reliability of the probabilities (:func:`~fcm_estimators.metrics.reliability_table`); None
        for gates.
    """

    table: pd.DataFrame
    summary: pd.Series | pd.DataFrame
    reliability: pd.DataFrame | None


def evaluate_files(
    model: Any,
    files: PathName | Sequence[PathName],
    *,
    labels: LabelSource | None = None,
    marker_aliases: Mapping[str, str] | None = None,
    client: Client | None = None,
    n_workers: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Compare the classes or gates of a model with those of experts.

    Parameters
    ----------
    model : path or fitted estimator
    files : path or sequence of paths
    labels : LabelSource, optional
        Default: ``obs[model.label_key]``, or for a PolygonRegressor the gates in ``obsm``.
    marker_aliases : mapping, optional
        As for :func:`~fcm_estimators.cohort.annotate_files`.
    client, n_workers, progress
        As for :func:`~fcm_estimators.cohort.read_files`.

    Returns
    -------
    Evaluation

    Raises
    ------
    MissingKeyError
        There are no labels.
    InvalidInputError
        An alias is of no marker of the model.
    """
    if isinstance(model, str | os.PathLike):
        model = load_model(model)
    model = with_aliases(model, marker_aliases)
    adata = read_files(
        files,
        steps=model if model.preprocessing_ else (),
        label=None if labels is None else _with_gates_of(model, labels),
        marker_aliases=model.marker_aliases,
        client=client,
        n_workers=n_workers,
        progress=progress,
    )
    keys = result_keys(model)
    if isinstance(keys, GateKeys):
        table = model.score_table(adata)
        return Evaluation(table, summarize(table), None)
    label_key = labels.label_key if labels is not None else model.label_key
    _require_labels(adata, label_key)
    # Read the labels first, because annotate may write a column with the same name.
    truth = adata.obs[label_key].astype(object)
    model.annotate(adata)
    probabilities = adata.obsm[keys.probabilities]
    truth = truth.where(~probabilities.isna().any(axis=1).to_numpy())
    common = {"groups": adata.obs["sample"], "pos_label": model.pos_label_}
    table = classification_table(
        truth, adata.obs[keys.label], labels=model.classes_.tolist(), **common
    )
    reliability = reliability_table(truth, probabilities, **common)
    return Evaluation(table, summarize(table), reliability)


# -- explanation and gates ----------------------------------------------------------------------


@dataclass(frozen=True)
class _Explain:
    """Add gradients and attention to one annotated file; runs in a worker."""

    target: Any
    gate: str | None
    mode: Literal["own", "set", "context"] | None
    units: Literal["layer", "sd"]
    net_layer: int | None
    key_added: str | None

    def __call__(self, model: Any, adata: AnnData, path: Path) -> Entries:
        from explainers import AttentionExplainer, GateQuery, GateSize, GradientExplainer

        # For a regressor, explain the number of cells in the gate.
        target = self.target if self.gate is None else GateSize(self.gate)
        gradient = GradientExplainer(model, target, mode=self.mode, units=self.units)
        gradient.explain(adata)
        queries = None if self.gate is None else GateQuery(self.gate)
        attention = AttentionExplainer(model, net_layer=self.net_layer, queries=queries)
        attention.explain(adata)
        keys = result_keys(model, self.key_added)
        if isinstance(keys, GateKeys):
            population = "predicted"
            inside = adata.obsm[keys.membership][self.gate].fillna(False)
            adata.obs[population] = pd.Categorical(np.where(inside, str(self.gate), "outside"))
        else:
            population = keys.label
        table = gradient.summary(adata, population)
        write_table(path.with_name(f"{path.name}.gradient.csv"), table)
        strongest = adata.obs[GradientKeys().marker].dropna().mode()
        found = {"strongest_marker": str(strongest.iloc[0]) if len(strongest) else ""}
        if self.net_layer is None and self.gate is None:
            return found
        heads = adata.obs[AttentionKeys().head].value_counts()
        return found | {f"n_{name}": int(n) for name, n in heads.sort_index().items()}


def explain_files(
    model: Any,
    files: PathName | Sequence[PathName],
    out: PathName,
    *,
    target: Any = None,
    gate: str | None = None,
    mode: Literal["own", "set", "context"] | None = None,
    units: Literal["layer", "sd"] = "sd",
    net_layer: int | None = None,
    key_added: str | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Annotate files and add gradients and received attention, by head if a layer is chosen.

    Parameters
    ----------
    model, files, out
        As for :func:`~fcm_estimators.cohort.annotate_files`.
    target : label, optional
        Class to explain. Default: the positive one.
    gate : str, optional
        Gate of a PolygonRegressor to explain, by the number of cells in it.
    mode, units
        As in :class:`explainers.GradientExplainer`, but ``units`` is "sd" by default.
    net_layer : int, optional
        Layer of the net whose heads are written. Default: the mean attention of all layers.
    key_added : str, optional
        As for ``annotate_files``.
    **options
        Options of ``annotate_files``.

    Returns
    -------
    DataFrame
        Table of ``annotate_files`` with the columns ``strongest_marker`` (the most frequent one)
        and, with ``net_layer`` or ``gate``, ``n_head0``, ..., ``n_none`` (number of cells). The
        mean gradient per class is written beside each result as ``{name}.gradient.csv``.
    """
    also = _Explain(target, gate, mode, units, net_layer, key_added)
    return annotate_files(model, files, out, also=also, key_added=key_added, **options)


@dataclass(frozen=True)
class _WriteGates:
    """Write the predicted gates of one file as Gating-ML; runs in a worker."""

    key_added: str | None

    def __call__(self, model: Any, adata: AnnData, path: Path) -> Entries:
        record = result_keys(model, self.key_added).record
        samples = list(dict.fromkeys(map(str, adata.uns[record]["gates"]["sample"])))
        in_data = data_names(adata.var_names, model.marker_aliases)
        written = []
        for sample in samples:
            tree = GatingTree.from_adata(adata, key=record, sample=sample).on_axes(in_data)
            name = path.name if len(samples) == 1 else f"{path.name}.{sample}"
            target = path.with_name(f"{name}.xml")
            with replaced_when_complete(target) as temporary:
                tree.to_gatingml(temporary, channels=adata if "channel" in adata.var else None)
            written.append(target.name)
        return {"gatingml": " ".join(written)}


def gate_files(
    model: Any,
    files: PathName | Sequence[PathName],
    out: PathName,
    *,
    key_added: str | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Predict the gates of files, and write those of each sample as Gating-ML, for FlowJo.

    Parameters
    ----------
    model : path or fitted PolygonRegressor
    files, out
        As for :func:`~fcm_estimators.cohort.annotate_files`.
    key_added : str, optional
        As for ``annotate_files``.
    **options
        Options of ``annotate_files``.

    Returns
    -------
    DataFrame
        Table of ``annotate_files`` with the column ``gatingml``, the file beside each result.

    Raises
    ------
    InvalidInputError
        The model is a classifier.
    """
    loaded = load_model(model) if isinstance(model, str | os.PathLike) else model
    if not is_gating_model(loaded):
        raise InvalidInputError(
            f"{type(loaded).__name__} predicts classes, not gates. Train a model with "
            'kind="gates", or use this model to annotate.'
        )
    also = _WriteGates(key_added)
    return annotate_files(model, files, out, also=also, key_added=key_added, **options)
