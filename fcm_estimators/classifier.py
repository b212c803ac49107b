"""Classification of cells by a transformer that reads whole samples."""

from __future__ import annotations

import copy
import math
import os
import warnings
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, Self, overload

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from sklearn.base import ClassifierMixin, _fit_context
from sklearn.utils import Tags
from sklearn.utils._param_validation import Interval, StrOptions
from skorch.callbacks import Callback
from torch import Tensor, nn

from fcm_estimators._base.annotating import write_classes
from fcm_estimators._base.deciding import Rules, novelty_of
from fcm_estimators._base.estimator import SetEstimator
from fcm_estimators._base.held_out import HeldOut
from fcm_estimators._base.members import (
    against_rest,
)
from fcm_estimators._base.own_nets import (
    PREFIX,
    make_own_net,
    parameters_of_net,
    recognised_by,
    require_own_net_possible,
    require_sound,
)
from fcm_estimators._base.panels import (
    Decided,
    hideable,
    model_without,
    suited_to,
)
from fcm_estimators._base.plans import (
    CONSTRAINTS,
    augmentation_of,
    checkpoint_in,
    draw_plan,
    training_plan,
)
from fcm_estimators._base.reading import fitted_net, layered_net, read_to_fit, read_to_predict
from fcm_estimators._base.running import outputs_of
from fcm_estimators._base.state import with_prefix
from fcm_estimators._cells.results import Writable, column_names
from fcm_estimators._cells.rows import as_tensor
from fcm_estimators._cells.samples import CellData, PerCell, Samples, read_labels
from fcm_estimators._fitting.calibration import (
    calibrated,
    called,
    mean_keeping_shift,
)
from fcm_estimators._fitting.class_loss import CellLoss
from fcm_estimators._fitting.class_targets import (
    class_presence,
    class_weights,
    codes_of,
    encode_labels,
    positive_class,
    recode,
    require_learnable,
    require_positive_class,
    share_ranges,
)
from fcm_estimators._fitting.draws import SampleDraws
from fcm_estimators._fitting.novelty import LabelledCells, Novelty, fit_novelty
from fcm_estimators._fitting.performance import FEW_PATIENTS, Performance, few_patients
from fcm_estimators._fitting.scale import MarkerScale, marker_scale
from fcm_estimators._fitting.split import patient_folds, split_patients
from fcm_estimators._fitting.threads import own_threads
from fcm_estimators._fitting.trainer import train_net
from fcm_estimators._types import Entries
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.keys import NOT_ANALYSED, UNKNOWN, ClassKeys
from fcm_estimators.nn import ReluFormer
from fcm_estimators.nn.own import OwnModule
from fcm_estimators.nn.reluformer import ScaledModule

# Cells of each class are added up to this share of a draw, as far as the sample has such cells.
_MIN_CLASS_FRACTION = 0.1
# Constant added to the mean normaliser of the attention.
_EPS = 1e-2
# Distortions of the held-out samples that give the temperature, of the whole panel and without a
# marker.
_DAYS, _DAYS_WITHOUT = 16, 4
# A member is trained for this share of the epochs.
_MEMBER_EPOCHS = 0.4


class ReluFormerClassifier(ClassifierMixin, SetEstimator):  # type: ignore[misc]  # sklearn: no types
    """Classify cells with a ReluFormer, a transformer over all cells of a sample.

    The class of a cell depends on its sample, because instruments, stains and days shift every
    marker. The net sees each cell together with all other cells of its sample. It is trained on
    distorted samples, so it learns to estimate the shift from the sample.

    Parameters
    ----------
    sample_key : str or int, default None
        Column with the sample (FCS file) of each cell: a column of ``obs`` for AnnData, of the
        table for a DataFrame, a column number for an array. It is not a marker. None: ids come
        from ``fit(..., groups=ids)``, else all cells are one sample.
    label_key : str, default None
        Column of labels that ``fit`` and ``score`` use if ``y`` is not given.
    patient_key : str or int, default None
        Column of patients. Validation is split by patient, because files of one patient are
        similar. None: each sample is a separate patient.
    subset_key : str, default None
        True/False column of ``obs`` (or of ``obsm["gates"]``) that selects a parent gate. Other
        cells are not in the context and are not classified; their class is "not analysed".
    markers : list of str, default None
        Markers to read. None: the scatter, stained fluorescence and mass channels if
        ``var["kind"]`` exists, else all columns except Time.
    marker_aliases : dict, default None
        Name in the data -> name in the model, e.g. ``{"SY41": "Syto 41"}``.
    layer : str, default None
        Layer of the AnnData to read instead of ``X``.
    pos_label : label, default None
        The positive class of a binary problem, e.g. "blast". ``threshold_``, false positives and
        residual disease refer to it. It is never guessed: without it there are none of these, and
        the more probable class is predicted.
    module : type, default None
        Class of a net of yours that replaces the ReluFormer: a ``torch.nn.Module`` that is made
        with ``(n_markers, n_outputs, **parameters)``, and whose ``forward(x, offsets)`` gives the
        logits, (N, n_outputs), of standardised cells, (N, M); sample s is rows ``offsets[s]`` to
        ``offsets[s + 1]``. If ``forward`` has a parameter ``context_weight``, (N,), it gets the
        weight of each cell in its sample, 0 for one that is not part of it. Such a net gets whole
        samples, so memory grows with them. Explanations by attention, and gradients in the modes
        "own" and "context", need a :class:`~fcm_estimators.nn.SetModule`.
    n_layers : int, default 4
    n_heads : int, default 4
        Must divide ``hidden_dim``.
    hidden_dim : int, default 32
        Width of the net.
    max_epochs : int, default 30
    steps_per_epoch : int, default 50
    cells_per_sample : int, default 1500
        Cells drawn from a sample for a training step; prediction always uses all cells. A step
        has four samples, drawn with replacement, or fewer if four would exceed 65,536 cells.
        Cells of rare classes are added to the loss, but not to the context, up to a tenth of this
        number per class. The context stays representative, and the loss corrects for the changed
        class shares, so probabilities refer to the samples as they are.
    augmentation : float, default 1.0
        Strength of the random distortions of training samples (shift, scale, monotone warp,
        channel mixing, class composition). 0 switches them off. Larger values suit samples from
        very different instruments, smaller values well standardised samples with little disease.
    learning_rate : float, default 3e-3
        Highest rate of the schedule (linear warm-up, cosine to zero).
    head_diversity : float, default 0.0
        Weight of the heads' overlap (cosine similarity of the attention that cells receive from
        two heads) in the training loss. At 0.1 heads attend to different cells, and therefore to
        populations that have no label; see ``explainers.specialisation``.
    head_evenness : float, default 0.0
        Weight, relative to that overlap, of unevenness: 1 minus the cosine similarity between the
        attention that cells receive from all heads and equal attention. If both weights are 1,
        the heads divide all cells among them. It has no effect without ``head_diversity``.
    class_weight : dict, "balanced" or None, default None
        Weight of each class in the loss. As elsewhere in scikit-learn, it shifts probabilities.
    n_members : int, default 5
        Number of further nets, the members. The patients are divided into as many groups (one
        patient each, if there are fewer), and each member is trained without one group, for 0.4
        of the epochs. What members say of the patients that they have not seen gives the
        threshold, the calibration and ``performance_``; how much they differ on a new sample
        shows whether the model is sure of it. The net itself is then trained on all patients. 0,
        or a single patient: no members.
    validation_fraction : float or None, default 0.15
        Only without members: share of the patients that is held out. Training stops if their
        Brier score does not fall for 20 epochs, and the best epoch is kept. None, fewer than 5
        samples, or a single patient: no patient is held out, and the last weights are kept.
    threshold : "f1" or float, default "f1"
        Probability of ``pos_label``, before calibration, from which a cell is positive. "f1" is
        0.5 unless the samples of the held-out patients show, by more than two standard errors,
        that another threshold has a better mean F1.
    false_positive_rate : float, default None
        Replaces ``threshold``: the threshold is chosen so that at most this share of the negative
        cells of the held-out patients is positive. It needs ``pos_label`` and held-out patients.
    missing_markers : {"error", "mask"}, default "error"
        What happens if data to predict lack a marker. "mask": every training step of ``fit`` has
        one sample more, in which one or a few markers are hidden, never scatter, and the model does
        without markers that data lack (:meth:`without`). Threshold, calibration, ``performance_``
        and the threshold of novelty are then those determined with the marker hidden; if several
        are missing, they are not known, and the residual disease is not stated. A warning and every
        table say so.
    unknown : {"flag", "reject"}, default "flag"
        What happens to cells that are unlike all labelled cells of the training. "flag": they
        keep their class, and ``annotate`` flags them. "reject": their class is "unknown" (NaN for
        numeric labels).
    warm_start : bool, default False
        Continue from the fitted net, e.g. to fine-tune a saved model on samples of another
        laboratory.
    device : str, default "auto"
        "auto" (CUDA if present), "cpu", "cuda", "cuda:1"; or "accelerate": all GPUs of
        ``accelerate launch``, through Hugging Face Accelerate (extra ``gpus``). With n processes
        an epoch has n times fewer steps with n times more samples. Every process fits the same
        model. ``accelerate launch --mixed_precision bf16`` trains in mixed precision.
    random_state : int, RandomState or None, default 0
        Equal integers give equal models on one machine.
    verbose : int, default 0
        1 shows a progress bar.
    **module__parameters
        Parameters of ``module``, with the prefix ``module__``: ``module__width=64``. Numbers, text
        or lists. They can be searched: ``GridSearchCV(clf, {"module__width": [32, 64]})``.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted.
    threshold_ : float or None
        Log-odds of ``pos_label_``, before calibration, from which a cell is positive. None without
        a positive class: the most probable class is predicted.
    temperature_ : float
        Number that the logits of the net are divided by for ``predict_proba``. It calibrates the
        probabilities of the held-out patients' cells, which get the distortions of
        ``augmentation`` as if measured on other days. It is the median over samples of the best
        temperature, at least 1, and 1 if the expected numbers of cells would become wrong.
        Decisions do not depend on it, nor does the mean probability of a class in a sample.
    pos_label_ : label or None
        Positive class.
    performance_ : Performance or None
        F1 per class, false positives and errors of residual disease on held-out patients. None if
        no patient was held out.
    members_ : list of ReluFormer
        The members.
    usual_excess_ : ndarray of shape (n_classes,)
        Ratio of possible to given cells of each class that is usual where the model is right.
    class_shares_ : DataFrame or None
        Least and largest share of each class but the positive one in the training samples:
        columns ``low``, ``high``, ``n_samples``. None if fewer than 5 samples have a label for
        every cell, if a class is in none of these, or if there is one such class only.
    decided_without_ : dict of str to Decided
        Threshold, calibration and performance without each marker; empty unless
        ``missing_markers="mask"``.
    missing_markers_ : list of str
        Markers of the training that this model does without (:meth:`without`).
    novelty_ : Novelty
        Density of the labelled training cells, and the threshold that 1 % of the known cells of
        held-out patients exceed.
    markers_ : list of str
        Markers that the model reads, in the order of the net.
    preprocessing_ : dict of str to (str, bool)
        Transform and compensation of each marker, as the training data recorded them.
    reference_ : Reference
        Distribution of the markers in the training samples (:meth:`check_sample`).
    history_ : DataFrame
        One row per epoch: ``epoch``, ``train_loss`` (cross-entropy), ``valid_loss`` (Brier score,
        only without members), ``learning_rate``, ``seconds``.
    validation_samples_ : list
        Ids of the samples that were held out from the net itself; empty with members.
    training_ : list of dict
        Numbers that describe the data of each training of the model. ``warm_start`` adds one.
    net_ : skorch.NeuralNet
        The trained net; ``net_.module_`` is the :class:`~fcm_estimators.nn.ReluFormer`, or holds
        the net of ``module`` as ``net_.module_.net``.
    n_features_in_ : int
        Number of columns of an array, or of markers of a table or AnnData.
    feature_names_in_ : ndarray of str
        Markers; set only by a fit on named columns.

    Notes
    -----
    The prediction of a cell depends on the other cells of its sample, so predict whole samples.
    A split of rows within a sample silently changes the context. Split with ``GroupKFold``, with
    the sample or patient as group.

    References
    ----------
    Kowarsch et al., *Explainable Techniques for Analyzing Flow Cytometry Cell Transformers*,
    arXiv 2307.14581. Guo et al., *On Calibration of Modern Neural Networks*, ICML 2017
    (temperature).

    Examples
    --------
    >>> from fcm_estimators import ReluFormerClassifier
    >>> from fcm_estimators.datasets import simulate_cohort
    >>> from fcm_estimators.preprocessing import LogicleTransform
    >>> raw = simulate_cohort(n_samples=2, n_cells=300, random_state=0)
    >>> adata = LogicleTransform().fit_transform(raw)
    >>> clf = ReluFormerClassifier(
    ...     sample_key="sample", label_key="cell_type", pos_label="blast", max_epochs=1
    ... )
    >>> clf.fit(adata).predict(adata).shape
    (600,)
    """

    _parameter_constraints: Entries = {
        **CONSTRAINTS,
        "label_key": [str, None],
        "pos_label": "no_validation",
        "class_weight": [dict, StrOptions({"balanced"}), None],
        "threshold": [StrOptions({"f1"}), Interval(Real, 0, 1, closed="neither")],
        "false_positive_rate": [Interval(Real, 0, 1, closed="neither"), None],
        "n_members": [Interval(Integral, 0, None, closed="left")],
        "missing_markers": [StrOptions({"error", "mask"})],
        "unknown": [StrOptions({"flag", "reject"})],
        "module": [type, None],
    }

    def __init__(
        self,
        *,
        sample_key: str | int | None = None,
        label_key: str | None = None,
        patient_key: str | int | None = None,
        subset_key: str | None = None,
        markers: list[str] | None = None,
        marker_aliases: dict[str, str] | None = None,
        layer: str | None = None,
        pos_label: Hashable = None,
        module: type[nn.Module] | None = None,
        n_layers: int = 4,
        n_heads: int = 4,
        hidden_dim: int = 32,
        max_epochs: int = 30,
        steps_per_epoch: int = 50,
        cells_per_sample: int = 1500,
        augmentation: float = 1.0,
        learning_rate: float = 3e-3,
        head_diversity: float = 0.0,
        head_evenness: float = 0.0,
        class_weight: dict[Hashable, float] | str | None = None,
        n_members: int = 5,
        validation_fraction: float | None = 0.15,
        threshold: str | float = "f1",
        false_positive_rate: float | None = None,
        missing_markers: Literal["error", "mask"] = "error",
        unknown: Literal["flag", "reject"] = "flag",
        warm_start: bool = False,
        device: str = "auto",
        random_state: int | np.random.RandomState | None = 0,
        verbose: int = 0,
        **module__parameters: Any,
    ) -> None:
        self.sample_key = sample_key
        self.label_key = label_key
        self.patient_key = patient_key
        self.subset_key = subset_key
        self.markers = markers
        self.marker_aliases = marker_aliases
        self.layer = layer
        self.pos_label = pos_label
        self.module = module
        self.n_layers = n_layers
        self.n_heads = n_heads
        self.hidden_dim = hidden_dim
        self.max_epochs = max_epochs
        self.steps_per_epoch = steps_per_epoch
        self.cells_per_sample = cells_per_sample
        self.augmentation = augmentation
        self.learning_rate = learning_rate
        self.head_diversity = head_diversity
        self.head_evenness = head_evenness
        self.class_weight = class_weight
        self.n_members = n_members
        self.validation_fraction = validation_fraction
        self.threshold = threshold
        self.false_positive_rate = false_positive_rate
        self.missing_markers = missing_markers
        self.unknown = unknown
        self.warm_start = warm_start
        self.device = device
        self.random_state = random_state
        self.verbose = verbose
        for name, value in module__parameters.items():
            if not name.startswith(PREFIX):
                raise TypeError(f"{type(self).__name__} has no parameter {name!r}.")
            setattr(self, name, value)

    def get_params(self, deep: bool = True) -> Entries:
        """Return all parameters, those of the net (``module__...``) included.

        Parameters
        ----------
        deep : bool, default True
            As in scikit-learn.

        Returns
        -------
        dict
        """
        own = {k: v for k, v in vars(self).items() if k.startswith(PREFIX)}
        return {**super().get_params(deep), **own}

    def set_params(self, **params: Any) -> Self:
        """Set parameters, those of the net (``module__...``) included.

        Parameters
        ----------
        **params

        Returns
        -------
        self
        """
        own = {k: v for k, v in params.items() if k.startswith(PREFIX)}
        super().set_params(**{k: v for k, v in params.items() if k not in own})
        for name, value in own.items():
            setattr(self, name, value)
        return self

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = self.label_key is None
        return tags

    classes_: np.ndarray
    threshold_: float | None
    temperature_: float
    pos_label_: Hashable
    performance_: Performance | None
    members_: list[ScaledModule]
    usual_excess_: np.ndarray
    class_shares_: pd.DataFrame | None
    decided_without_: dict[str, Decided]
    missing_markers_: list[str]
    novelty_: Novelty

    # -- fit ----------------------------------------------------------------------------------

    @_fit_context(prefer_skip_nested_validation=True)  # type: ignore[untyped-decorator]
    @own_threads()
    def fit(
        self,
        X: CellData,
        y: PerCell = None,
        groups: PerCell = None,
        *,
        checkpoint: str | os.PathLike[str] | None = None,
        callbacks: Sequence[Callback] | None = None,
    ) -> Self:
        """Train on samples with labelled cells.

        Parameters
        ----------
        X : AnnData, DataFrame or array of shape (n_cells, n_columns)
            Cells, transformed (compensated, logicle or arcsinh). Not changed.
        y : array-like of shape (n_cells,), optional
            Labels, text or numbers. NaN or None means no label: such cells are in the context,
            but not in the loss. Default: the column ``label_key``.
        groups : array-like of shape (n_cells,), optional
            Sample id of each cell, if there is no ``sample_key``. Prediction then also needs
            ``groups``.
        checkpoint : path, optional
            Directory for the state of training after each epoch. ``fit`` on the same data with
            the same parameters resumes from this state, and ends with the same weights as
            without the interruption. A directory of another training is an error. Needs an
            integer as ``random_state``, and does not work with ``device="accelerate"``.
        callbacks : list of skorch.callbacks.Callback, optional
            Called while the net trains, e.g. loggers for TensorBoard or Weights & Biases;
            not while the members train.
            The fitted model does not keep them. They exclude ``checkpoint``.

        Returns
        -------
        self

        Raises
        ------
        InvalidInputError
            There are no cells or only one; there is only one class; labels or ids have another
            length; a value is not finite; an id is missing.
        MarkerMismatchError, MissingKeyError
            A named marker, column or layer is missing.
        """
        return self._fit_copy(X, y, groups, checkpoint, callbacks)

    def _fit(
        self,
        X: CellData,
        y: PerCell,
        groups: PerCell,
        checkpoint: Path | None,
        callbacks: Sequence[Callback],
    ) -> None:
        require_own_net_possible(self)
        label_key = self.label_key if y is None else None
        samples = read_to_fit(self, X, groups, continued=self._continues(), label_key=label_key)
        classes, codes = encode_labels(read_labels(X, y, self.label_key, samples.n_rows))
        column_names(classes)
        codes = codes[samples.rows]
        if self._continues():
            codes = recode(classes, codes, self.classes_)
            classes = self.classes_
        require_learnable(codes, classes, allow_one_class=self._continues())
        self.classes_ = classes
        self.pos_label_ = positive_class(self.pos_label, classes)
        require_positive_class(self.false_positive_rate, self.pos_label_, classes)
        seed = self._seed()
        start = self._initial_module(samples, seed)
        if self.module is not None:
            require_sound(start, len(classes))
        self.class_shares_ = share_ranges(classes, codes, samples, self.pos_label_)
        present = class_presence(codes, samples.offsets, len(classes))
        folds = patient_folds(samples, self.n_members, seed, present)
        fraction = None if folds else self.validation_fraction
        train, valid = split_patients(samples, fraction, seed, present)
        kinds = {f"class {c}": codes == i for i, c in enumerate(classes)}
        self._record_training(samples, {**kinds, "unlabelled": codes < 0}, valid)
        self.members_ = [
            self._train_member(number, samples, codes, fold, start, seed, checkpoint)
            for number, fold in enumerate(folds)
        ]
        self._train(
            samples,
            start,
            self._criterion(codes),
            self._draws(samples, codes, train, start, seed),
            self._draws(samples, codes, valid, start, seed, fixed=True) if valid else None,
            checkpoint,
            callbacks,
        )
        nets = zip(self.members_, folds, strict=True) if folds else [(fitted_net(self), valid)]
        held_out = HeldOut(samples, codes, list(nets))
        known = codes >= 0
        z = MarkerScale.in_net(start).standardised(samples.x[known])
        cells = LabelledCells(z.astype(np.float32), codes[known], samples.sample_of_cell[known])
        self.novelty_, test = fit_novelty(cells, folds or [valid], augmentation_of(self), seed)
        rules = Rules(
            classes,
            self.pos_label_,
            self.threshold,
            self.false_positive_rate,
            augmentation_of(self),
            seed,
        )
        rules.decided(held_out, fitted_net(self), self.novelty_, _DAYS).adopt(self)
        self.missing_markers_ = []
        self.decided_without_ = {
            self.markers_[marker]: rules.decided(
                held_out.without(marker),
                layered_net(self, "missing_markers='mask'").without([marker]),
                test.threshold_for(self.novelty_, [marker]),
                _DAYS_WITHOUT,
            )
            for marker in (hideable(self.markers_) if self.missing_markers == "mask" else ())
        }
        n_patients = len(np.unique(samples.patients.astype(str)))
        if n_patients < FEW_PATIENTS:
            warnings.warn(few_patients(n_patients), UserWarning, stacklevel=5)

    def _train_member(
        self,
        number: int,
        samples: Samples,
        codes: np.ndarray,
        fold: list[int],
        start: ScaledModule,
        seed: int,
        checkpoint: Path | None,
    ) -> ScaledModule:
        """Train a net without the samples of a fold.

        A new net starts from its own weights, so that nothing in it comes from the fold. A
        continued training starts from the fitted net.
        """
        own_seed = int(np.random.default_rng([seed, number]).integers(2**31 - 1))
        chosen = sorted(set(range(len(samples.names))) - set(fold))
        module = copy.deepcopy(start)
        if not self._continues():
            module = self._new_module(own_seed)
            marker_scale(samples.take(chosen)).put_into(module)
        draws = self._draws(samples, codes, chosen, module, own_seed)
        state = None
        if checkpoint is not None:
            state = checkpoint_in(checkpoint / f"member{number}", self, draws, module)
        plan = training_plan(self)
        plan = replace(plan, max_epochs=math.ceil(_MEMBER_EPOCHS * plan.max_epochs))
        train_net(module, self._criterion(codes), plan, draws, None, state)
        return module

    def _criterion(self, codes: np.ndarray) -> CellLoss:
        return CellLoss(torch.from_numpy(class_weights(self.class_weight, self.classes_, codes)))

    def _make_module(self, n_markers: int) -> ScaledModule:
        if self.module is not None:
            params = parameters_of_net(vars(self))
            return make_own_net(self.module, n_markers, len(self.classes_), params)
        return ReluFormer(
            n_markers,
            len(self.classes_),
            hidden_dim=self.hidden_dim,
            n_heads=self.n_heads,
            n_layers=self.n_layers,
            eps=_EPS,
            stand_ins=self.missing_markers == "mask",
        )

    def _draws(
        self,
        samples: Samples,
        codes: np.ndarray,
        chosen: list[int],
        module: ScaledModule,
        seed: int,
        fixed: bool = False,
    ) -> SampleDraws:
        """Draws from some samples, for training, or for validation if ``fixed``."""
        part = samples.take(chosen)
        # A net that takes no weights would have the added cells in its context.
        adds = not isinstance(module, OwnModule) or module.takes_weights
        return SampleDraws(
            part.x,
            codes_of(samples, codes, chosen),
            part.offsets,
            scale=MarkerScale.in_net(module),
            n_classes=len(self.classes_),
            plan=draw_plan(
                self,
                len(chosen) if fixed else 0,
                _MIN_CLASS_FRACTION if adds else 0.0,
                hideable(samples.markers) if self.missing_markers == "mask" else (),
            ),
            seed=seed,
            fixed=fixed,
        )

    # -- prediction ---------------------------------------------------------------------------

    def without(self, markers: list[str]) -> Self:
        """Return this model for data that lack markers; needs ``missing_markers="mask"``.

        ``predict``, ``annotate`` and the other methods use it by themselves. Call it to explain
        such data: ``GradientExplainer(clf.without(["CD34"]))``.

        Parameters
        ----------
        markers : list of str
            One marker or several, at most half of those that may be missing.

        Returns
        -------
        Fitted estimator
            A copy. Threshold, calibration and ``performance_`` are those determined with the
            marker hidden. With several markers ``performance_`` is None, the threshold is that
            of the whole panel, and no cell is unknown.

        Raises
        ------
        NotFittedError
        InvalidInputError
            The model was fitted with ``missing_markers="error"``.
        MarkerMismatchError
            A marker is scatter or not one of the model, or there are too many.
        """
        return model_without(self, markers)

    @property
    def _positive(self) -> int:
        """Code of the class whose log-odds decide between two: the positive one, or the last."""
        return int(self.pos_label_ is None or self.classes_[1] == self.pos_label_)

    def _log_odds(self, logits: np.ndarray) -> np.ndarray:
        """Log-odds of one of two classes, shape (n,), float64."""
        positive = self._positive
        found: np.ndarray = np.subtract(
            logits[:, positive], logits[:, 1 - positive], dtype=np.float64
        )
        return found

    def decide(self, logits: np.ndarray) -> np.ndarray:
        """Class codes, positions in ``classes_``, from logits of the net.

        All methods, and the explainers, take the decision from here.

        Parameters
        ----------
        logits : ndarray of shape (n, n_classes)

        Returns
        -------
        ndarray of int of shape (n,)
        """
        return called(logits, self.threshold_, self._positive)

    def _is_unknown(self, x: np.ndarray) -> np.ndarray:
        """Cells that are unlike any in training, bool of shape (n,)."""
        score = novelty_of(self.novelty_, fitted_net(self), as_tensor(x))
        return score > self.novelty_.threshold

    @own_threads()
    def predict(self, X: CellData, groups: PerCell = None) -> np.ndarray:
        """Class of each cell.

        Parameters
        ----------
        X : AnnData, DataFrame or array of shape (n_cells, n_columns)
            Whole samples. Markers are found by name; other columns are ignored.
        groups : array-like of shape (n_cells,), optional
            Sample ids, for a model fitted with ``groups``.

        Returns
        -------
        ndarray of shape (n_cells,)
            Labels. Cells outside ``subset_key`` are "not analysed", and with
            ``unknown="reject"`` cells unlike any in training are "unknown" (NaN for numeric
            labels).

        Raises
        ------
        NotFittedError
            The estimator is not fitted.
        MarkerMismatchError, MissingKeyError
            A marker or a column is missing.
        InvalidInputError
            A value is not finite, or the data are invalid in another way.
        ProcessingStateError
            The preprocessing differs from that of the training data.
        """
        if (model := suited_to(self, X)) is not self:
            return model.predict(X, groups)
        samples = read_to_predict(self, X, groups)
        predicted = self._predict(samples)
        if len(samples.rows) == samples.n_rows:
            return samples.scatter(predicted, predicted[0])
        if predicted.dtype.kind in "USO":
            return samples.scatter(predicted.astype(object), NOT_ANALYSED)
        return samples.scatter(predicted.astype(np.float64), np.nan)

    def _predict(self, samples: Samples) -> np.ndarray:
        """Labels of analysed cells, or "unknown"."""
        logits = outputs_of(fitted_net(self), samples)
        predicted: np.ndarray = self.classes_[self.decide(logits)]
        if self.unknown == "flag":
            return predicted
        is_text = predicted.dtype.kind in "US"
        predicted = predicted.astype(object if is_text else np.float64)
        predicted[self._is_unknown(samples.x)] = UNKNOWN if is_text else np.nan
        return predicted

    @own_threads()
    def predict_proba(self, X: CellData, groups: PerCell = None) -> np.ndarray:
        """Probability of each class for each cell.

        Parameters
        ----------
        X, groups
            As for :meth:`predict`.

        Returns
        -------
        ndarray of shape (n_cells, n_classes)
            Columns in the order of ``classes_``, in the dtype of X (float32 or float64). NaN for
            cells outside ``subset_key``.
        """
        if (model := suited_to(self, X)) is not self:
            return model.predict_proba(X, groups)
        samples = read_to_predict(self, X, groups)
        outputs = outputs_of(fitted_net(self), samples)
        shares = [self._probabilities(outputs[i:j]) for i, j in samples.spans()]
        return samples.scatter(np.concatenate(shares), np.nan)

    def _probabilities(self, outputs: np.ndarray) -> np.ndarray:
        """Calibrated probabilities of the cells of one sample, from outputs of the net."""
        z = torch.from_numpy(outputs)
        shift = mean_keeping_shift(lambda: [z], self.temperature_)
        return calibrated(z, self.temperature_, shift).numpy()

    @own_threads()
    def decision_function(self, X: CellData, groups: PerCell = None) -> np.ndarray:
        """Scores whose sign (two classes) or largest entry gives the predicted class.

        Parameters
        ----------
        X, groups
            As for :meth:`predict`.

        Returns
        -------
        ndarray of shape (n_cells,) or (n_cells, n_classes)
            Two classes: log-odds of ``classes_[1]`` minus those of the threshold. More classes:
            log-odds of each class against the rest. NaN for cells outside ``subset_key``. They
            are those before calibration, as are decisions.
        """
        if (model := suited_to(self, X)) is not self:
            return model.decision_function(X, groups)
        samples = read_to_predict(self, X, groups)
        logits = outputs_of(fitted_net(self), samples)
        if len(self.classes_) > 2:
            return samples.scatter(against_rest(logits), np.nan)
        excess = self._log_odds(logits) - (self.threshold_ or 0.0)
        sign = 1 if self._positive else -1
        return samples.scatter((sign * excess).astype(logits.dtype), np.nan)

    def score(self, X: CellData, y: PerCell = None, groups: PerCell = None) -> float:
        """Accuracy over labelled and analysed cells.

        Parameters
        ----------
        X, groups
            As for :meth:`predict`.
        y : array-like of shape (n_cells,), optional
            True labels; cells with NaN are left out. Default: the column ``label_key``.

        Returns
        -------
        float
        """
        if (model := suited_to(self, X)) is not self:
            return model.score(X, y, groups)
        samples = read_to_predict(self, X, groups)
        truth = pd.Series(read_labels(X, y, self.label_key, samples.n_rows))[
            samples.rows
        ].to_numpy()
        known = ~pd.isna(truth)
        predicted = self._predict(samples)
        return float(np.mean(predicted[known] == truth[known]))

    @overload
    def annotate(
        self, data: AnnData, *, key_added: str = ..., disputed: bool = ..., copy: Literal[True]
    ) -> AnnData: ...

    @overload
    def annotate(
        self,
        data: Writable,
        *,
        key_added: str = ...,
        disputed: bool = ...,
        copy: Literal[False] = ...,
    ) -> None: ...

    @own_threads()
    def annotate(
        self,
        data: Writable,
        *,
        key_added: str = ClassKeys.key,
        disputed: bool = False,
        copy: bool = False,
    ) -> AnnData | None:
        """Classify cells and write the result into an AnnData, or into a store on disk.

        Sets the following fields:

        ``adata.obs[key_added]`` : Categorical
            Class. The categories are in the order of ``classes_``, then "not analysed" for cells
            outside ``subset_key``. With ``unknown="reject"``, "unknown" comes before it.
        ``adata.obsm[f"{key_added}_proba"]`` : DataFrame, float32
            Probability of each class.
        ``adata.obs[f"{key_added}_novelty"]`` : float32
            How strange a cell is for the model; NaN for cells that are not analysed.
        ``adata.obs[f"{key_added}_unknown"]`` : bool
            Cells that are unlike any in training: their novelty is above the threshold.
        ``adata.obs[f"{key_added}_disputed"]`` : bool
            Only with ``disputed=True``: cells that not all members give the same class.
        ``adata.var[f"{key_added}_markers"]`` : bool
            Channels that the model reads, for ``sc.pp.pca(adata, mask_var=...)``: Time and other
            channels should not shape an embedding.
        ``adata.uns[key_added]`` : dict
            Parameters, version, markers, classes, positive class and threshold of the run;
            ``cards``, the cards of the model as JSON (:meth:`cards`); ``distance``, the distance
            of each sample from training (:meth:`check_sample`); ``members``, the share of each
            class in each sample, the lowest and the highest among the members, and whether they
            are too far apart to be relied on.

        A warning names samples with many unknown cells, samples that are far from training, and
        samples on which the members disagree.

        Parameters
        ----------
        data : AnnData or path
            Whole samples. A path is an h5ad file or a zarr directory of any size, which is changed
            in place. Memory does not grow with its size: intermediate values, 4 bytes per cell
            and unit of the width, are in a temporary file in ``TMPDIR``. After an error, none of
            the fields is written.
        key_added : str, default "reluformer"
        disputed : bool, default False
            Also find the disputed cells. This runs every member on all cells, and so takes as
            many times longer. The shares in ``uns`` come from a tenth of the cells.
        copy : bool, default False
            Return an annotated copy and do not change ``data``. Not possible for a path.

        Returns
        -------
        AnnData or None

        Raises
        ------
        InvalidInputError
            ``data`` is neither an AnnData nor a store, or is a view; the key is unusable;
            ``copy`` is True for a store; and as :meth:`predict`.
        FileNotFoundError
            The path does not exist.
        """
        if (model := suited_to(self, data)) is not self:
            annotate: Callable[..., AnnData | None] = model.annotate
            return annotate(data, key_added=key_added, disputed=disputed, copy=copy)
        if disputed and not self.members_:
            raise InvalidInputError(
                "disputed=True needs members, and this model has none: it was fitted with "
                "n_members=0 or on a single patient."
            )
        keys = ClassKeys(key_added)
        write = partial(write_classes, self, keys=keys, disputed=disputed)
        found: AnnData | None = self._annotate(data, keys, copy, write)
        return found

    # -- save and load ------------------------------------------------------------------------

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        device: str = "auto",
        module: type[nn.Module] | None = None,
    ) -> Self:
        """Load a model that :meth:`save` wrote.

        Parameters
        ----------
        path : path
            Directory of the model.
        device : str, default "auto"
            Device of the net. It may differ from the device of the training.
        module : type, default None
            Class of the net, for a model that was fitted with ``module``. The file holds its name
            only, and nothing is imported by that name.

        Returns
        -------
        Fitted estimator

        Raises
        ------
        ModelFormatError
            The model is missing, damaged, older or newer than this version, or of another class;
            or ``module`` does not compute what it computed when the model was saved.
        InvalidInputError
            The model needs ``module``, or has the net of this package.
        """
        return cls._load(path, device, module)

    def _json_params(self) -> Entries:
        params = super()._json_params()
        if self.module is None:
            del params["module"]
            return params
        return {**params, "module": self.module.__name__}

    def _card_entries(self) -> dict[str, str]:
        found = {"classes": ", ".join(str(c) for c in self.classes_)}
        if self.pos_label_ is not None:
            found["positive class"] = str(self.pos_label_)
        if self.threshold_ is None:
            found["decision"] = "the most probable class"
        else:
            found["decision"] = f"positive from log-odds of {self.threshold_:.4g}"
        source = "as trained" if self.temperature_ == 1 else "from held-out samples"
        found["temperature of the probabilities"] = f"{self.temperature_:.3g}, {source}"
        if self.missing_markers_:
            found["markers of the training that are missing"] = ", ".join(self.missing_markers_)
        if self.decided_without_:
            found["markers that may be missing, one at a time"] = ", ".join(self.decided_without_)
        found["members"] = f"{len(self.members_)}, each trained without some patients"
        found["unknown cells"] = (
            f"novelty above {self.novelty_.threshold:.3g}, which 1 % of the labelled cells of "
            f"{self.novelty_.source} exceed; {len(self.novelty_.centroids)} centroids, each of 20 "
            "or more training cells"
        )
        return found

    def _performance_entries(self) -> dict[str, str]:
        found = {} if self.performance_ is None else self.performance_.entries()
        training = self.training_[-1]
        n_patients = training["n_patients"] or training["n_samples"]
        if n_patients < FEW_PATIENTS:
            found["few patients"] = few_patients(n_patients)
        return found

    def _fitted_state(self) -> Entries:
        own = {} if self.module is None else {"recognised_by": recognised_by(fitted_net(self))}
        return {
            **own,
            "classes": self.classes_,
            "pos_label": self.pos_label_,
            "threshold": self.threshold_,
            "temperature": self.temperature_,
            "n_members": len(self.members_),
            "usual_excess": self.usual_excess_,
            "class_shares": None if self.class_shares_ is None else self.class_shares_.to_dict(),
            "performance": None if self.performance_ is None else self.performance_.to_dict(),
            "novelty": self.novelty_.to_dict(),
            "without": self.missing_markers_,
            "decided_without": {k: v.to_dict() for k, v in self.decided_without_.items()},
        }

    def _restore_fitted_state(self, state: Entries) -> None:
        self.classes_ = np.array(state["classes"])
        self.pos_label_ = state["pos_label"]
        self.threshold_, self.temperature_ = state["threshold"], state["temperature"]
        self.usual_excess_ = np.array(state["usual_excess"], dtype=float)
        shares = state.get("class_shares")
        self.class_shares_ = None if shares is None else pd.DataFrame(shares)
        self.missing_markers_ = list(state["without"])
        saved = state["decided_without"]
        self.decided_without_ = {str(k): Decided.from_dict(v) for k, v in saved.items()}
        found = state["performance"]
        self.performance_ = None if found is None else Performance.from_dict(found)

    def _further_tensors(self) -> dict[str, Tensor]:
        found = {
            f"member{number}.{name}": tensor
            for number, member in enumerate(self.members_)
            for name, tensor in member.state_dict().items()
        }
        return {**found, **{f"novelty.{k}": v for k, v in self.novelty_.tensors().items()}}

    def _restore_tensors(self, state: Entries, tensors: dict[str, Tensor]) -> None:
        self.members_ = [
            self._saved_module(tensors, f"member{number}").eval()
            for number in range(state["n_members"])
        ]
        self.novelty_ = Novelty.restored(state["novelty"], with_prefix(tensors, "novelty"))
