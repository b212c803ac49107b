"""Base class of the estimators that read whole samples."""

from __future__ import annotations

import copy
import json
import os
from abc import ABCMeta, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from skorch.callbacks import Callback
from torch import nn

from fcm_estimators._base.cards import Cards, make_cards, training_record
from fcm_estimators._base.clipping import clipped_values, warn_of_clipped
from fcm_estimators._base.files import SavedState, read_model, to_json, write_model
from fcm_estimators._base.own_nets import require_recognised, with_module
from fcm_estimators._base.panels import suited_to
from fcm_estimators._base.plans import checked_callbacks, checkpoint_in, training_plan
from fcm_estimators._base.reading import (
    fitted_net,
    read_cells,
    read_to_predict,
    require_fitted,
    require_state,
)
from fcm_estimators._base.running import new_module, with_net
from fcm_estimators._base.state import (
    fitted_entries,
    module_with_weights,
    restore_fitted,
    with_prefix,
)
from fcm_estimators._cells.results import Sink, copy_if_asked, opened, run_record
from fcm_estimators._cells.rows import SampleCells, cells_in_memory
from fcm_estimators._cells.samples import CellData, PerCell, Samples, model_names
from fcm_estimators._cells.within import Within
from fcm_estimators._checks import marker_positions
from fcm_estimators._fitting.draws import SampleDraws
from fcm_estimators._fitting.net import PackedNet
from fcm_estimators._fitting.reference import Reference, subsamples
from fcm_estimators._fitting.scale import marker_scale
from fcm_estimators._fitting.trainer import ready_net, train_net
from fcm_estimators._types import Entries
from fcm_estimators._version import __version__
from fcm_estimators.exceptions import InvalidInputError, ModelFormatError, ProcessingStateError
from fcm_estimators.keys import ClassKeys, GateKeys
from fcm_estimators.nn.reluformer import ScaledModule
from fcm_estimators.preprocessing.recorded import MarkerState, bring_to


class SetEstimator(BaseEstimator, metaclass=ABCMeta):  # type: ignore[misc]  # sklearn: no types
    """Base class of the estimators that read whole samples; not for direct use.

    Subclasses list their parameters in ``__init__`` and implement the abstract methods.
    """

    markers_: list[str]
    preprocessing_: dict[str, MarkerState]
    reference_: Reference
    device: str
    history_: pd.DataFrame
    validation_samples_: list[Hashable]
    training_: list[Entries]
    net_: PackedNet
    fitted_with_groups_: bool
    within_: Within | None

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "net_")

    # -- abstract methods ---------------------------------------------------------------------

    @abstractmethod
    def _fit(
        self,
        X: CellData,
        y: PerCell,
        groups: PerCell,
        checkpoint: Path | None,
        callbacks: Sequence[Callback],
    ) -> None:
        """Train; set the fitted attributes."""

    @abstractmethod
    def _make_module(self, n_markers: int) -> ScaledModule:
        """Make the net with initial weights."""

    @abstractmethod
    def _card_entries(self) -> dict[str, str]:
        """Entries of the model card that only this class has."""

    def _performance_entries(self) -> dict[str, str]:
        """Entries of the model card about held-out patients."""
        return {}

    @abstractmethod
    def _fitted_state(self) -> Entries:
        """Fitted attributes of this class, for the saved model."""

    @abstractmethod
    def _restore_fitted_state(self, state: Entries) -> None:
        """Undo :meth:`_fitted_state`."""

    def _further_tensors(self) -> dict[str, torch.Tensor]:
        """Tensors of the saved model besides those of the net."""
        return {}

    def _restore_tensors(self, state: Entries, tensors: dict[str, torch.Tensor]) -> None:
        """Undo :meth:`_further_tensors`."""

    # -- fit ----------------------------------------------------------------------------------

    def _fit_copy(
        self,
        X: CellData,
        y: PerCell,
        groups: PerCell,
        checkpoint: str | os.PathLike[str] | None,
        callbacks: Sequence[Callback] | None,
    ) -> Self:
        """Fit a copy and take over its attributes, so that a failed fit changes nothing."""
        if self.hidden_dim % self.n_heads:
            raise InvalidInputError(
                f"hidden_dim={self.hidden_dim} is not a multiple of n_heads={self.n_heads}. Each "
                "head has an equal part of the width."
            )
        fitted = copy.copy(self)
        folder = None if checkpoint is None else Path(checkpoint)
        further = checked_callbacks(callbacks, folder)
        fitted._fit(X, y, groups, folder, further)  # noqa: SLF001  a copy of self
        for name in vars(self).keys() - vars(fitted).keys():
            delattr(self, name)
        for name, value in vars(fitted).items():
            setattr(self, name, value)
        return self

    def _continues(self) -> bool:
        """Whether ``fit`` continues from a fitted net."""
        return bool(self.warm_start) and hasattr(self, "net_")

    def _seed(self) -> int:
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    def _initial_module(self, samples: Samples, seed: int) -> ScaledModule:
        """The net before training: a new one with the training scale, or a copy of the fitted."""
        if self._continues():
            module = copy.deepcopy(fitted_net(self)).train()
            module.forget_calibration()
            return module
        module = self._new_module(seed)
        marker_scale(samples).put_into(module)
        cells = cells_in_memory(samples, module.input_mean.device)
        clipped = clipped_values(module, samples.markers, cells)
        warn_of_clipped(clipped, len(cells), stacklevel=7, where="the other cells of training")
        return module

    def _new_module(self, seed: int) -> ScaledModule:
        return new_module(lambda: self._make_module(len(self.markers_)), seed)

    def untrained_twin(self, random_state: int = 0) -> Self:
        """The same model with new weights and the same scale, as a control.

        A property that explanations of an untrained net also have was not learnt.

        Parameters
        ----------
        random_state : int, default 0
            Seed of the weights.

        Returns
        -------
        Fitted estimator
            A copy; this estimator does not change.

        Raises
        ------
        NotFittedError
        """
        module = self._new_module(random_state)
        module.copy_scale(fitted_net(self))
        return with_net(self, module)

    def _train(
        self,
        samples: Samples,
        module: ScaledModule,
        criterion: nn.Module,
        train_draws: SampleDraws,
        valid_draws: SampleDraws | None,
        checkpoint: Path | None,
        callbacks: Sequence[Callback],
    ) -> None:
        """Fit ``module`` on draws of ``samples``; set ``net_``, ``history_``, ``reference_``."""
        state = None
        if checkpoint is not None:
            state = checkpoint_in(checkpoint, self, train_draws, module)
        plan = training_plan(self)
        net, history = train_net(
            module, criterion, plan, train_draws, valid_draws, state, callbacks
        )
        if self._continues():
            history["epoch"] += len(self.history_)
            history = pd.concat([self.history_, history], ignore_index=True)
        self.net_, self.history_ = net, history
        self.reference_ = Reference.of(samples, module.input_scale.numpy(force=True))

    def _record_training(
        self, samples: Samples, groups: Mapping[str, np.ndarray], valid: list[int]
    ) -> None:
        """Set ``training_`` and ``validation_samples_``; keep records of earlier trainings."""
        before = self.training_ if self._continues() else []
        with_patients = self.patient_key is not None
        self.training_ = [*before, training_record(samples, groups, valid, with_patients)]
        self.validation_samples_ = samples.names[valid].tolist()

    # -- predict ------------------------------------------------------------------------------

    def prepare(self, adata: AnnData, *, copy: bool = True) -> AnnData:
        """Bring raw data to the scale of the training data.

        The model holds the preprocessing that its training data recorded. This method repeats
        it: compensation, with the matrix from the file of each sample, and the transform of each
        marker.

        Parameters
        ----------
        adata : AnnData
            Data as :func:`~fcm_estimators.read_fcs` returns them.
        copy : bool, default True
            False: change ``adata`` and return it; that takes less time and memory. If there is an
            error, it may then be half changed.

        Returns
        -------
        AnnData
            Data that :meth:`annotate` accepts. Markers that are already on that scale do not
            change.

        Raises
        ------
        NotFittedError
        MarkerMismatchError
            The data lack a marker.
        ProcessingStateError
            The training data recorded nothing, or the data have another transform.
        """
        if (model := suited_to(self, adata, quiet=True)) is not self:
            return model.prepare(adata, copy=copy)
        require_fitted(self)
        if not self.preprocessing_:
            raise ProcessingStateError(
                "The training data of this model did not record their preprocessing, so it "
                "cannot be repeated. Train on data from read_fcs and fcm_estimators."
                "preprocessing, or repeat the preprocessing yourself."
            )
        if not isinstance(adata, AnnData):
            raise InvalidInputError(f"Expected an AnnData, got {type(adata).__name__}.")
        names = model_names(adata.var_names, self.marker_aliases)
        places = marker_positions(self.markers_, names)
        found = {
            adata.var_names[i]: self.preprocessing_[m]
            for i, m in zip(places, self.markers_, strict=True)
        }
        return bring_to(adata, found, copy=copy)

    def is_prepared(self, adata: AnnData) -> bool:
        """Whether data record the same preprocessing as the training data did.

        Parameters
        ----------
        adata : AnnData

        Returns
        -------
        bool
            False: call :meth:`prepare` before :meth:`annotate`. Also True if nothing is recorded
            or a marker is missing; ``annotate`` then raises the error.
        """
        if (model := suited_to(self, adata, quiet=True)) is not self:
            return model.is_prepared(adata)
        require_fitted(self)
        try:
            require_state(self, adata)
        except ProcessingStateError:
            return False
        except ValueError:
            return True
        return True

    def check_sample(self, X: CellData, groups: PerCell = None) -> pd.DataFrame:
        """Distance of each sample from the training samples, for each marker.

        Another instrument, dye or laboratory can shift the markers of a sample. Such a sample may
        be classified wrongly although the probabilities look normal. A marker also moves if the
        shares of the populations differ, so a large distance does not prove an error.
        :meth:`annotate` warns of samples with a marker that is far.

        Parameters
        ----------
        X, groups
            As for ``predict``.

        Returns
        -------
        DataFrame
            Index ``sample`` and ``marker``. The columns describe at most 50,000 evenly spaced
            analysed cells of each sample:

            - ``distance``: mean distance of the sample's quantiles from those of the training
              samples (Wasserstein distance of order 1), in SD within training samples;
            - ``shift``: the same with its sign, which is the shift of the mean;
            - ``farthest_training``: largest distance of a training sample from the others;
            - ``far``: whether ``distance`` is more than 1.5 times ``farthest_training`` and more
              than 0.25 SD.

        Raises
        ------
        NotFittedError, MarkerMismatchError, MissingKeyError, InvalidInputError,
        ProcessingStateError
            As ``predict``.
        """
        if (model := suited_to(self, X)) is not self:
            return model.check_sample(X, groups)
        samples = read_to_predict(self, X, groups)
        return self.reference_.compare(samples.names, subsamples(samples))

    def _annotate(
        self,
        data: Any,
        keys: ClassKeys | GateKeys,
        copy: bool,
        write: Callable[[list[SampleCells], Sink], Entries],
    ) -> Any:
        """Write results by ``write``, which returns entries of the run record; return the copy."""
        require_fitted(self)
        data = copy_if_asked(data, copy)
        with opened(data, keys) as (source, sink):
            cells = read_cells(self, source)
            names = np.array([part.name for part in cells], dtype=object)
            distances = self.reference_.warn(names, [part.glance for part in cells], stacklevel=4)
            entries = write(cells, sink)
            channels = model_names(source.var_names, self.marker_aliases)
            sink.channels(keys.markers, np.isin(channels, self.markers_))
            clipped = clipped_values(fitted_net(self), self.markers_, cells)
            sink.commit(keys, self._record(distances, clipped, entries))
        return data if copy else None

    def _record(self, distances: pd.DataFrame, clipped: pd.DataFrame, entries: Entries) -> Entries:
        """Run record for ``uns``, with the cards, distances from training and clipped values."""
        found = distances.reset_index()
        distance = {
            "sample": found["sample"].astype(str).to_numpy(dtype=object),
            "marker": found["marker"].to_numpy(dtype=object),
            "distance": found["distance"].to_numpy(dtype=np.float64),
            "farthest_training": found["farthest_training"].to_numpy(dtype=np.float64),
            "far": found["far"].to_numpy(dtype=bool),
        }
        return run_record(
            self._json_params(),
            version=__version__,
            markers=self.markers_,
            layer=self.layer,
            sample_key=self.sample_key,
            within="" if self.within_ is None else self.within_.gate,
            cards=json.dumps(self.cards()),
            distance=distance,
            clipped={
                "sample": clipped["sample"].astype(str).to_numpy(dtype=object),
                "marker": clipped["marker"].to_numpy(dtype=object),
                "cells": clipped["cells"].to_numpy(dtype=np.int64),
            },
            **entries,
        )

    # -- cards, save and load -----------------------------------------------------------------

    def cards(self) -> Cards:
        """Model card and data card: a description of the model and of its training data.

        The cards name classes, gates and markers. They name no samples and no patients.
        :meth:`save` writes them beside the model, ``annotate`` writes them into ``uns``, and
        reports show them.

        Returns
        -------
        dict of card to dict of section to dict of entry to text

        Raises
        ------
        NotFittedError
        """
        require_fitted(self)
        return make_cards(
            type(self).__name__,
            self.get_params(deep=False),
            fitted_net(self),
            self.history_,
            self.training_,
            {marker: self.preprocessing_.get(marker) for marker in self.markers_},
            {**self._within_entry(), **self._card_entries()},
            self._performance_entries(),
        )

    def _within_entry(self) -> dict[str, str]:
        if self.within_ is None:
            return {}
        return {"cells": f"inside the gate {self.within_.gate}; others are not analysed"}

    def _json_params(self) -> Entries:
        """Parameters that are saved as JSON."""
        params: Entries = self.get_params(deep=False)
        return params

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the fitted model as a directory, without pickle.

        ``model.json`` and ``model-....safetensors``, the weights under the first digits of their
        checksum, hold the model. ``MODEL_CARD.md`` and
        ``DATA_CARD.md`` describe it for people (:meth:`cards`); :meth:`load` does not read them.

        Parameters
        ----------
        path : path
            Directory. It is created if it does not exist, and a model in it is replaced.

        Raises
        ------
        NotFittedError
        """
        require_fitted(self)
        params = self._json_params()
        if not isinstance(params["random_state"], (int, np.integer)):
            params["random_state"] = None  # the model does not hold the state of a generator
        fitted = {**fitted_entries(self), **self._fitted_state()}
        state = SavedState(type(self).__name__, to_json(params), to_json(fitted))
        tensors = {f"net.{k}": v for k, v in fitted_net(self).state_dict().items()}
        write_model(path, {**tensors, **self._further_tensors()}, state, self.cards())

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: str = "auto") -> Self:
        """Load a model that :meth:`save` wrote.

        Parameters
        ----------
        path : path
            Directory of the model.
        device : str, default "auto"
            Device of the net. It may differ from the device of the training.

        Returns
        -------
        Fitted estimator

        Raises
        ------
        ModelFormatError
            The model is missing, damaged, older or newer than this version, or of another class.
        """
        return cls._load(path, device, None)

    @classmethod
    def _load(
        cls, path: str | os.PathLike[str], device: str, module: type[nn.Module] | None
    ) -> Self:
        tensors, params, fitted = read_model(path, cls.__name__)
        params = with_module(params, module, path)
        try:
            model = cls(**params)
            model.device = device
            model._restore(fitted, tensors)
        except (LookupError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            advice = "Copy the directory again, or train again."
            if module is not None:
                advice = "Pass the class of nets that the model was fitted with."
            raise ModelFormatError(
                f"The description of the model in {path} does not fit its weights or this version "
                f"of the package: {str(error).rstrip('.')}. {advice}"
            ) from error
        if module is not None:
            require_recognised(fitted_net(model), fitted.get("recognised_by"), path)
        return model

    def _restore(self, fitted: Entries, tensors: dict[str, torch.Tensor]) -> None:
        restore_fitted(self, fitted)
        self._restore_fitted_state(fitted)
        self._restore_tensors(fitted, tensors)
        self.net_ = ready_net(self._saved_module(tensors, "net"), self.device)

    def _saved_module(self, tensors: dict[str, torch.Tensor], name: str) -> ScaledModule:
        """A net of the saved model."""
        weights = with_prefix(tensors, name)
        return module_with_weights(
            lambda: self._make_module(len(self.markers_)), self.n_layers, weights
        )
