"""What the estimators share: reading samples, splitting by patient, training, prediction."""

from __future__ import annotations

import copy
import dataclasses
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from itertools import pairwise
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval
from sklearn.utils.validation import validate_data
from torch import nn

from fcm_estimators._base.cards import Cards, as_markdown, cards, training_record
from fcm_estimators._base.files import from_json, read_model, to_json, write_model
from fcm_estimators._cells import keys as _keys
from fcm_estimators._cells.samples import Samples, Source, read_samples
from fcm_estimators._cells.store import (
    CellStore,
    FileRows,
    StoredCells,
    sample_rows,
)
from fcm_estimators._checks import marker_positions
from fcm_estimators._fitting.augmentation import Augmentation
from fcm_estimators._fitting.checkpoint import Checkpoint, training_identity
from fcm_estimators._fitting.draws import DrawPlan, SampleDraws
from fcm_estimators._fitting.net import PackedNet
from fcm_estimators._fitting.reference import Reference, glances
from fcm_estimators._fitting.trainer import history_frame, make_net, stopped_early
from fcm_estimators._version import __version__
from fcm_estimators.exceptions import (
    InvalidInputError,
    ModelFormatError,
    NotFittedError,
    ProcessingStateError,
)
from fcm_estimators.nn import SetModule, streamed
from fcm_estimators.nn.streaming import Stream
from fcm_estimators.preprocessing._recorded import (
    MarkerState,
    bring_to,
    recorded_states,
    require_states,
)

logger = logging.getLogger("fcm_estimators")

# Fewer samples than this leave nothing to validate on.
_MIN_SAMPLES_FOR_VALIDATION = 5


class SetEstimator(BaseEstimator):
    """Base of estimators that read whole samples; not for direct use.

    Subclasses list their parameters in ``__init__`` and provide ``_fit`` and ``_make_module``.
    """

    _parameter_constraints: dict[str, Any] = {
        "sample_key": [str, Integral, None],
        "label_key": [str, None],
        "patient_key": [str, Integral, None],
        "subset_key": [str, None],
        "markers": ["array-like", None],
        "marker_aliases": [dict, None],
        "layer": [str, None],
        "n_layers": [Interval(Integral, 1, None, closed="left")],
        "n_heads": [Interval(Integral, 1, None, closed="left")],
        "hidden_dim": [Interval(Integral, 1, None, closed="left")],
        "eps": [Interval(Real, 0, None, closed="neither")],
        "max_epochs": [Interval(Integral, 1, None, closed="left")],
        "steps_per_epoch": [Interval(Integral, 1, None, closed="left")],
        "samples_per_step": [Interval(Integral, 1, None, closed="left")],
        "cells_per_sample": [Interval(Integral, 1, None, closed="left")],
        "augmentation": [Interval(Real, 0, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "head_diversity": [Interval(Real, 0, None, closed="left")],
        "head_evenness": [Interval(Real, 0, None, closed="left")],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "warm_start": ["boolean"],
        "checkpoint": [str, os.PathLike, None],
        "accelerate": ["boolean"],
        "device": [str],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    markers_: list[str]
    history_: pd.DataFrame
    validation_samples_: list[Any]
    training_: list[dict[str, Any]]
    net_: PackedNet
    fitted_with_groups_: bool
    _states: dict[str, MarkerState]
    _reference: Reference

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "net_")

    def _require_fitted(self) -> None:
        if not self.__sklearn_is_fitted__():
            raise NotFittedError(
                f"This {type(self).__name__} is not fitted yet. Call fit(...) or load(path) first."
            )

    # -- reading ------------------------------------------------------------------------------

    def _source(self) -> Source:
        return Source(
            sample_key=self.sample_key,
            patient_key=self.patient_key,
            subset_key=self.subset_key,
            label_key=self.label_key,
            layer=self.layer,
            aliases=self.marker_aliases,
        )

    def _read_to_fit(self, X: Any, groups: Any) -> Samples:
        """Samples for ``fit``; sets the attributes that describe the features."""
        named = _has_names(X)
        if not named:
            X = validate_data(self, X, dtype=[np.float64, np.float32], ensure_all_finite=False)
        markers = self.markers_ if self._goes_on() else self.markers
        samples = read_samples(X, self._source(), markers=markers, groups=groups)
        _warn_of_unused_samples(X, self.sample_key, groups)
        self.markers_ = list(samples.markers)
        if markers is self.markers:
            self._states = self._recorded(X)
        else:
            self._require_state(X)
        self.fitted_with_groups_ = groups is not None
        if named:
            self.n_features_in_ = len(self.markers_)
            self.feature_names_in_ = np.array(self.markers_, dtype=object)
        return samples

    def _read_to_predict(self, X: Any, groups: Any) -> Samples:
        """Samples for prediction, markers matched by name."""
        self._require_fitted()
        if self.fitted_with_groups_ and groups is None:
            raise InvalidInputError(
                "This model was fitted with groups=..., so it needs the sample id of each cell "
                "to predict: pass groups=..., or fit with sample_key=... so that the id travels "
                "with the rows."
            )
        source = self._source()
        if not _has_names(X):
            X = validate_data(
                self, X, dtype=[np.float64, np.float32], ensure_all_finite=False, reset=False
            )
        # Patients matter for the training split only; new data need not name them.
        source = dataclasses.replace(source, patient_key=None)
        samples = read_samples(X, source, markers=self.markers_, groups=groups)
        self._require_state(X)
        return samples

    def _recorded(self, X: Any) -> dict[str, MarkerState]:
        """Transform and compensation of each marker as recorded; nothing is of a layer."""
        if self.layer is not None:
            return {}
        return recorded_states(X, self.markers_, self.marker_aliases)

    def _require_state(self, X: Any) -> None:
        """Raise ProcessingStateError where data record another state than those of training."""
        require_states(self._recorded(X), self._states, f"this {type(self).__name__}")

    def prepare(self, adata: AnnData) -> AnnData:
        """Bring raw data to the scale that the model was trained on.

        What training data record of their preprocessing is part of the model: compensation, with
        the matrix of each sample's own file, and the transform of each marker.

        Parameters
        ----------
        adata : AnnData
            As :func:`~fcm_estimators.read_fcs` returns it. Not changed.

        Returns
        -------
        AnnData
            A copy, on which :meth:`annotate` works. Markers that are on that scale already stay
            as they are.

        Raises
        ------
        NotFittedError
        MarkerMismatchError
            A marker that the data do not have.
        ProcessingStateError
            The training data recorded nothing, or the data are transformed in another way.
        """
        self._require_fitted()
        if not self._states:
            raise ProcessingStateError(
                "The data that this model was trained on did not record their preprocessing, so "
                "it cannot be repeated. Train on data from read_fcs and fcm_estimators."
                "preprocessing, or preprocess as in training yourself."
            )
        if not isinstance(adata, AnnData):
            raise InvalidInputError(f"Expected an AnnData, got {type(adata).__name__}.")
        aliases = self.marker_aliases or {}
        names = [aliases.get(name, name) for name in adata.var_names]
        places = marker_positions(self.markers_, names)
        found = {
            adata.var_names[i]: self._states[m] for i, m in zip(places, self.markers_, strict=True)
        }
        return bring_to(adata, found)

    def check_sample(self, X: Any, groups: Any = None) -> pd.DataFrame:
        """How far samples are from those that the model was trained on, marker by marker.

        A sample whose markers are shifted, by another instrument, dye or laboratory, may be
        classified wrongly without any sign of it in the probabilities. Other shares of the
        populations move a marker too: a finding is a reason to look, no proof of an error.
        :meth:`annotate` warns of samples with a marker that is far.

        Parameters
        ----------
        X, groups
            As for ``predict``.

        Returns
        -------
        DataFrame
            Index ``sample`` and ``marker``; of at most 50,000 evenly spaced analysed cells of
            each sample:

            - ``distance``: mean distance of the sample's quantiles from those of the training
              samples (Wasserstein distance of order 1), in SD within training samples;
            - ``shift``: the same with its sign, so how far the mean has moved;
            - ``farthest_training``: largest distance of a training sample from the others;
            - ``far``: more than 1.5 times that, and more than 0.25 SD.

        Raises
        ------
        NotFittedError, MarkerMismatchError, MissingKeyError, InvalidInputError,
        ProcessingStateError
            As ``predict``.
        """
        samples = self._read_to_predict(X, groups)
        return self._reference.compare(samples.names, glances(samples))

    # -- training -----------------------------------------------------------------------------

    def _fit(self, X: Any, y: Any, groups: Any) -> Self:
        raise TypeError(f"{type(self).__name__} has to provide _fit")

    def _fit_or_stay(self, X: Any, y: Any, groups: Any) -> Self:
        """Fit; where that fails, an earlier model stays as it was."""
        if self.hidden_dim % self.n_heads:
            raise InvalidInputError(
                f"hidden_dim={self.hidden_dim} is not a multiple of n_heads={self.n_heads}; heads "
                "are equal blocks of the width."
            )
        before = dict(vars(self))
        try:
            return self._fit(X, y, groups)
        except Exception:
            self.__dict__ = before
            raise

    def _make_module(self, n_markers: int) -> SetModule:
        raise TypeError(f"{type(self).__name__} has to provide _make_module")

    def _augmentation(self) -> Augmentation | None:
        return Augmentation().scaled(self.augmentation) if self.augmentation else None

    def _draw_plan(self, n_steps: int, min_fraction: float) -> DrawPlan:
        return DrawPlan(
            n_steps=n_steps,
            samples_per_step=self.samples_per_step,
            cells_per_sample=self.cells_per_sample,
            min_class_fraction=min_fraction,
            augmentation=self._augmentation(),
        )

    def _train(
        self,
        samples: Samples,
        module: SetModule,
        criterion: nn.Module,
        train_draws: SampleDraws,
        valid_draws: SampleDraws | None,
    ) -> None:
        """Fit ``module`` on draws of ``samples``; sets ``net_`` and ``history_``."""
        patience = None if valid_draws is None else self.n_iter_no_change
        checkpoint = self._checkpoint_of(train_draws, module)
        done = 0 if checkpoint is None else checkpoint.n_epochs_done()
        net = self._make_net(module, criterion, patience, checkpoint, self.accelerate)
        if valid_draws is not None:
            net.train_split = lambda data, y=None: (data, valid_draws)
        # The loader takes a number from torch's global generator, which is the caller's.
        with torch.random.fork_rng():
            net.partial_fit(train_draws, epochs=self.max_epochs - done)
        if len(net.history) < self.max_epochs and not stopped_early(net):
            # skorch ends quietly; a half-trained model must not pass for a trained one.
            raise KeyboardInterrupt
        # The split holds the validation cells; the fitted model must not.
        net.train_split = None
        module.eval()
        history = history_frame(net)
        if self._goes_on():
            history["epoch"] += len(self.history_)
            history = pd.concat([self.history_, history], ignore_index=True)
        if self.accelerate:
            # What distributed training needs is no part of a model.
            net = self._make_net(module, nn.Identity(), patience=None)
        self.net_ = net
        self.history_ = history
        scale = module.input_scale.numpy(force=True)
        self._reference = Reference.of(samples, scale)

    def _record_training(
        self, samples: Samples, marked: Mapping[str, np.ndarray], valid: list[int]
    ) -> None:
        """Set ``training_``: numbers of this training, after those of the ones it goes on from."""
        before = self.training_ if self._goes_on() else []
        with_patients = self.patient_key is not None
        self.training_ = [*before, training_record(samples, marked, valid, with_patients)]

    def _checkpoint_of(self, draws: SampleDraws, module: SetModule) -> Checkpoint | None:
        if self.checkpoint is None:
            return None
        if self.accelerate:
            raise InvalidInputError("checkpoint and accelerate do not go together; drop one.")
        if not isinstance(self.random_state, Integral):
            raise InvalidInputError(
                f"checkpoint needs an integer as random_state, got {self.random_state!r}: a "
                "training that goes on has to draw the same cells."
            )
        params = self.get_params(deep=False)
        for irrelevant in ("checkpoint", "device", "verbose"):
            del params[irrelevant]
        identity = training_identity(params, type(self).__name__, draws, module)
        return Checkpoint(Path(self.checkpoint), identity)

    def _make_net(
        self,
        module: SetModule,
        criterion: nn.Module,
        patience: int | None,
        checkpoint: Checkpoint | None = None,
        accelerate: bool = False,
    ) -> PackedNet:
        net = make_net(
            module,
            criterion,
            learning_rate=self.learning_rate,
            weight_decay=self.weight_decay,
            max_epochs=self.max_epochs,
            steps_per_epoch=self.steps_per_epoch,
            device=resolve_device(self.device),
            patience=patience,
            verbose=self.verbose,
            head_diversity=self.head_diversity,
            head_evenness=self.head_evenness,
            checkpoint=checkpoint,
            accelerate=accelerate,
        )
        return net.initialize()

    def _new_module(self, n_markers: int, seed: int) -> SetModule:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return self._make_module(n_markers)

    def _untrained(self, seed: int) -> Self:
        """Return this estimator as it was before training: new weights, the same scale."""
        module = self._new_module(len(self.markers_), seed)
        # Buffers are what was measured on the training data, not learnt.
        for name, value in self.net_.module_.named_buffers():
            module.get_buffer(name).copy_(value)
        return self._with_module(module)

    def _with_module(self, module: SetModule) -> Self:
        """Return this fitted estimator with another net; the original stays as it is."""
        other = copy.copy(self)
        other.net_ = self._make_net(module.eval(), nn.Identity(), patience=None)
        return other

    def _initial_module(self, samples: Samples, seed: int) -> SetModule:
        """Build a new module with the training scale inside, or a copy of the fitted one."""
        if self._goes_on():
            return copy.deepcopy(self.net_.module_).train()
        module = self._new_module(len(samples.markers), seed)
        mean, scale = marker_scale(samples)
        module.input_mean.copy_(torch.from_numpy(mean))
        module.input_scale.copy_(torch.from_numpy(scale))
        return module

    def _goes_on(self) -> bool:
        """Whether ``fit`` continues from a fitted net."""
        return self.warm_start and hasattr(self, "net_")

    def _seed(self) -> int:
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def _split_patients(
        self, samples: Samples, seed: int, has: np.ndarray
    ) -> tuple[list[int], list[int]]:
        """Positions of training and validation samples, no patient in both.

        Parameters
        ----------
        samples : Samples
        seed : int
        has : bool ndarray of shape (S, C)
            What each sample contributes to learn from; everything stays present in training,
            and in validation where possible.
        """
        n_samples = len(samples.names)
        everything = list(range(n_samples))
        patients, codes = np.unique(samples.patients.astype(str), return_inverse=True)
        if not self.early_stopping:
            return everything, []
        if n_samples < _MIN_SAMPLES_FOR_VALIDATION or len(patients) < 2:
            logger.info(
                "%d sample(s) of %d patient(s): no validation split, no early stopping; the "
                "weights after the last epoch are kept.",
                n_samples,
                len(patients),
            )
            return everything, []
        rng = np.random.default_rng(seed)
        n_valid = min(max(1, round(self.validation_fraction * len(patients))), len(patients) - 1)
        best: tuple[int, np.ndarray] | None = None
        for _ in range(100):
            valid = np.isin(codes, rng.permutation(len(patients))[:n_valid])
            lost = int((has.any(0) & ~has[~valid].any(0)).sum())
            unseen = int((has.any(0) & ~has[valid].any(0)).sum())
            score = lost * has.shape[1] + unseen
            if best is None or score < best[0]:
                best = score, valid
            if score == 0:
                break
        valid = best[1] if best is not None else np.zeros(n_samples, dtype=bool)
        return np.flatnonzero(~valid).tolist(), np.flatnonzero(valid).tolist()

    # -- prediction ---------------------------------------------------------------------------

    def _module(self, dtype: np.dtype) -> SetModule:
        """Fitted module in the data's precision; a cast copy where that differs."""
        module = self.net_.module_
        if dtype == np.float64:
            module = copy.deepcopy(module).double()
        return module

    def _outputs(self, samples: Samples) -> np.ndarray:
        """Module outputs of all cells, sample by sample, in the dtype of ``samples.x``."""
        module = self._module(samples.x.dtype)
        device = next(module.parameters()).device
        parts = []
        with torch.no_grad():
            for start, stop in spans(samples):
                x = torch.from_numpy(samples.x[start:stop]).to(device)
                parts.append(streamed(module, x).outputs.cpu().numpy())
        return np.concatenate(parts)

    def _read_store(self, store: CellStore) -> list[tuple[Any, StoredCells]]:
        """Name and cells of each sample of a store; everything is read once and checked."""
        self._require_fitted()
        if self.fitted_with_groups_:
            raise InvalidInputError(
                "This model was fitted with groups=..., which a store does not hold. Fit with "
                "sample_key=... so that the id travels with the rows."
            )
        columns = store.columns(self.markers_, self.marker_aliases)
        self._require_state(AnnData(np.zeros((0, len(store.var)), np.float32), var=store.var))
        module = self._module(store.value_type(self.layer))
        rows = sample_rows(store, self.sample_key, self.subset_key)
        samples = [
            (
                name,
                StoredCells(store, inside, columns, self.markers_, self.layer, module.input_mean),
            )
            for name, inside in rows.items()
        ]
        for _, cells in samples:
            cells.check()
        return samples

    def _warn_of_store(self, samples: list[tuple[Any, StoredCells]]) -> pd.DataFrame:
        names = np.array([name for name, _ in samples], dtype=object)
        return self._reference.warn(names, [cells.glance for _, cells in samples], stacklevel=4)

    def _streams(
        self, samples: list[tuple[Any, StoredCells]], *, keep_layers: bool = False
    ) -> Iterator[tuple[Any, StoredCells, Stream]]:
        """Each sample of a store on its way through the net; what is kept is kept in files."""
        for name, cells in samples:
            module = self._module(cells.dtype)
            yield name, cells, Stream(module, cells, keep_layers=keep_layers, store=FileRows)

    # -- save and load ------------------------------------------------------------------------

    def _json_params(self) -> dict[str, Any]:
        """Parameters that are saved as such; a directory of this machine is not."""
        return {**self.get_params(deep=False), "checkpoint": None}

    def _fitted_state(self) -> dict[str, Any]:
        raise TypeError(f"{type(self).__name__} has to provide _fitted_state")

    def _restore_fitted_state(self, state: dict[str, Any]) -> None:
        raise TypeError(f"{type(self).__name__} has to provide _restore_fitted_state")

    def _card_entries(self) -> dict[str, str]:
        raise TypeError(f"{type(self).__name__} has to provide _card_entries")

    def cards(self) -> Cards:
        """Model card and data card: what the model is and what it was trained on.

        They name classes, gates and markers, and neither samples nor patients. :meth:`save`
        writes them beside the model, ``annotate`` into ``uns``, and reports show them.

        Returns
        -------
        dict of card to dict of section to dict of entry to text

        Raises
        ------
        NotFittedError
        """
        self._require_fitted()
        return cards(self)

    def _record(self, params: Mapping[str, Any], distances: pd.DataFrame, **entries: Any) -> Any:
        """Run record for ``uns``, with the cards and how far the samples are from training."""
        found = distances.reset_index()
        distance = {
            "sample": found["sample"].astype(str).to_numpy(dtype=object),
            "marker": found["marker"].to_numpy(dtype=object),
            "distance": found["distance"].to_numpy(dtype=np.float64),
            "far": found["far"].to_numpy(dtype=bool),
        }
        return _keys.record(
            params,
            version=__version__,
            markers=self.markers_,
            layer=self.layer,
            sample_key=self.sample_key,
            cards=json.dumps(self.cards()),
            distance=distance,
            **entries,
        )

    def _scale_of(self, marker: str) -> tuple[float, float]:
        """Mean and SD of a marker in training."""
        module = self.net_.module_
        place = self.markers_.index(marker)
        return float(module.input_mean[place]), float(module.input_scale[place])

    def save(self, path: str | os.PathLike) -> None:
        """Save the fitted model as a directory, without pickle.

        ``model.safetensors`` and ``model.json`` are the model; ``MODEL_CARD.md`` and
        ``DATA_CARD.md`` say the same in words (:meth:`cards`) and are not read again.

        Parameters
        ----------
        path : path
            Directory; made where it does not exist, a model in it is replaced.

        Raises
        ------
        NotFittedError
            Before ``fit``.
        """
        self._require_fitted()
        params = self._json_params()
        if not isinstance(params["random_state"], (int, np.integer)):
            params["random_state"] = None  # a generator's state is not part of the model
        state = {
            "class": type(self).__name__,
            "params": to_json(params),
            "fitted": to_json(
                {
                    "markers": self.markers_,
                    "n_features_in": self.n_features_in_,
                    "named": hasattr(self, "feature_names_in_"),
                    "with_groups": self.fitted_with_groups_,
                    "validation_samples": [str(name) for name in self.validation_samples_],
                    "training": self.training_,
                    "history": self.history_.to_dict("list"),
                    "reference": self._reference.to_dict(),
                    "states": {k: list(v) for k, v in self._states.items()},
                    **self._fitted_state(),
                }
            ),
        }
        texts = {
            f"{name.upper().replace(' ', '_')}.md": as_markdown(name, sections)
            for name, sections in self.cards().items()
        }
        write_model(path, self.net_.module_.state_dict(), state, texts)

    @classmethod
    def load(cls, path: str | os.PathLike, *, device: str = "auto") -> Self:
        """Load a model that :meth:`save` wrote.

        Parameters
        ----------
        path : path
            The directory.
        device : str, default "auto"
            Where to put the net, whatever it was trained on.

        Returns
        -------
        Fitted estimator

        Raises
        ------
        ModelFormatError
            Missing, damaged, or newer model, or one of another class.
        """
        tensors, description = read_model(path, cls.__name__)
        try:
            model = cls(**from_json(description["params"])).set_params(device=device)
            fitted = from_json(description["fitted"])
            model._restore(fitted, tensors)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise ModelFormatError(
                f"The description of the model in {path} does not fit its weights or this version "
                f"of the package: {error}. Copy the directory again, or train anew."
            ) from error
        return model

    def _restore(self, fitted: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        self.markers_ = list(fitted["markers"])
        self.n_features_in_ = int(fitted["n_features_in"])
        if fitted["named"]:
            self.feature_names_in_ = np.array(self.markers_, dtype=object)
        self.fitted_with_groups_ = bool(fitted["with_groups"])
        self.validation_samples_ = fitted["validation_samples"]
        self.training_ = [dict(entry) for entry in fitted["training"]]
        self.history_ = pd.DataFrame(fitted["history"])
        self._reference = Reference.from_dict(self.markers_, fitted["reference"])
        self._states = {k: (str(v[0]), bool(v[1])) for k, v in fitted["states"].items()}
        self._restore_fitted_state(fitted)
        # A description may ask for a net of any size; only one that the weights fill is made.
        if self.n_layers > len(tensors):
            raise ValueError(f"{self.n_layers} layers, but only {len(tensors)} tensors")
        with torch.device("meta"):
            wanted = self._make_module(len(self.markers_)).state_dict()
        found = {name: tensor.shape for name, tensor in tensors.items()}
        if found != {name: tensor.shape for name, tensor in wanted.items()}:
            raise ValueError("the weights are those of another net")
        module = self._make_module(len(self.markers_))
        module.load_state_dict(tensors)
        self.net_ = self._make_net(module.eval(), nn.Identity(), patience=None)


def _has_names(X: Any) -> bool:
    return isinstance(X, (AnnData, pd.DataFrame))


def _warn_of_unused_samples(X: Any, sample_key: Any, groups: Any) -> None:
    """Warn where a cohort would silently be read as one sample."""
    if sample_key is None and groups is None and isinstance(X, AnnData) and "sample" in X.obs:
        n_samples = X.obs["sample"].nunique()
        if n_samples > 1:
            warnings.warn(
                f"adata.obs['sample'] names {n_samples} samples, but neither sample_key nor "
                "groups was given, so all cells are read as one sample. Pass "
                "sample_key='sample' to read them apart.",
                UserWarning,
                stacklevel=4,
            )


def spans(samples: Samples) -> Iterator[tuple[int, int]]:
    """Row limits of each sample."""
    return pairwise(samples.offsets)


def marker_scale(samples: Samples) -> tuple[np.ndarray, np.ndarray]:
    """Mean and SD of each marker within samples, every sample with equal weight.

    The SD is that of cells around their own sample's mean, so a shift between training samples
    does not count as spread. A marker without spread gets scale 1.
    """
    blocks = [samples.x[start:stop] for start, stop in spans(samples)]
    mean = np.mean([block.mean(0, dtype=np.float64) for block in blocks], axis=0)
    variance = np.mean([block.var(0, dtype=np.float64) for block in blocks], axis=0)
    scale = np.sqrt(variance)
    flat = scale <= 1e-12 * np.maximum(1.0, np.abs(mean))
    return mean.astype(np.float32), np.where(flat, 1.0, scale).astype(np.float32)


def resolve_device(device: str) -> str:
    """``"auto"`` is CUDA where there is a CUDA device, else the CPU."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind = torch.device(device).type
    except RuntimeError as error:
        raise InvalidInputError(
            f"device={device!r} is not a device; use 'auto', 'cpu', 'cuda' or 'cuda:0'."
        ) from error
    if kind == "cuda" and not torch.cuda.is_available():
        raise InvalidInputError(f"device={device!r}, but no CUDA device was found; use 'auto'.")
    return device
