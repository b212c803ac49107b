"""Classification of cells by a transformer that reads whole samples."""

from __future__ import annotations

import os
from numbers import Real
from pathlib import Path
from typing import Any, Literal, Self, overload

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy.special import expit, logit, logsumexp, softmax
from sklearn.base import ClassifierMixin, _fit_context
from sklearn.utils import Tags
from sklearn.utils._param_validation import Interval, StrOptions

from fcm_estimators._base.estimator import SetEstimator
from fcm_estimators._base.plans import CONSTRAINTS, augmentation_of, draw_plan
from fcm_estimators._base.reading import fitted_net, read_to_fit, read_to_predict
from fcm_estimators._base.running import outputs_of, stream_through
from fcm_estimators._cells.results import Sink, Writable, column_names
from fcm_estimators._cells.rows import SampleCells, by_block
from fcm_estimators._cells.samples import CellData, PerCell, Samples, read_labels
from fcm_estimators._fitting.augmentation import distorted_samples
from fcm_estimators._fitting.calibration import (
    best_f1_threshold,
    best_temperature,
    false_positive_threshold,
    labelled_subset,
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
    require_two_classes,
)
from fcm_estimators._fitting.draws import SampleDraws
from fcm_estimators._fitting.split import split_patients
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.keys import NOT_ANALYSED, ClassKeys
from fcm_estimators.nn import ReluFormer, SetModule

# Cells of each class are added up to this share of a draw, as far as the sample has such cells.
_MIN_CLASS_FRACTION = 0.1
# Constant added to the mean normaliser of the attention.
_EPS = 1e-2
# Number of distorted copies of the held-out samples for calibration, and of cells in each copy.
_CALIBRATION_COPIES = 16
_CALIBRATION_CELLS = 20_000


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
        The positive class of a binary problem, e.g. "blast". ``threshold_`` refers to it. None:
        the last of the sorted classes.
    n_layers : int, default 4
    n_heads : int, default 4
        Must divide ``hidden_dim``.
    hidden_dim : int, default 32
        Width of the net.
    max_epochs : int, default 60
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
    validation_fraction : float or None, default 0.15
        Share of the patients that is held out. Training stops if their Brier score does not fall
        for 20 epochs, and the best epoch is kept. None, fewer than 5 samples, or a single
        patient: no patient is held out, and the last weights are kept.
    threshold : "f1" or float, default "f1"
        Lowest probability of ``pos_label`` at which a cell is positive (binary problems). "f1" is
        0.5 unless the samples of the held-out patients show, by more than the standard error,
        that another threshold has a better mean F1.
    false_positive_rate : float, default None
        Replaces ``threshold``: the threshold is chosen so that at most this share of the negative
        cells of the held-out patients is positive. It needs held-out patients.
    warm_start : bool, default False
        Continue from the fitted net, e.g. to fine-tune a saved model on samples of another
        laboratory.
    device : str, default "auto"
        "auto" (CUDA if present), "cpu", "cuda", "cuda:1"; or "accelerate": all GPUs of
        ``accelerate launch``, through Hugging Face Accelerate (extra ``gpus``). With n processes
        an epoch has n times fewer steps with n times more samples. Every process fits the same
        model.
    random_state : int, RandomState or None, default 0
        Equal integers give equal models on one machine.
    verbose : int, default 0
        1 shows a progress bar.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted.
    threshold_ : float or None
        Lowest probability of ``pos_label_`` at which a cell is positive. None for more than two
        classes: the most probable class is predicted.
    temperature_ : float
        Number that logits are divided by; a buffer of the net. It calibrates the probabilities of
        the held-out patients' cells, which get the distortions of ``augmentation`` as if measured
        on other days. It is the median over samples of the best temperature, and at least 1.
    pos_label_ : label or None
        Positive class of a binary problem.
    markers_ : list of str
        Markers that the model reads, in the order of the net.
    preprocessing_ : dict of str to (str, bool)
        Transform and compensation of each marker, as the training data recorded them.
    reference_ : Reference
        Distribution of the markers in the training samples (:meth:`check_sample`).
    history_ : DataFrame
        One row per epoch: ``epoch``, ``train_loss`` (cross-entropy), ``valid_loss`` (Brier score),
        ``learning_rate``, ``seconds``.
    validation_samples_ : list
        Ids of the held-out samples.
    training_ : list of dict
        Numbers that describe the data of each training of the model. ``warm_start`` adds one.
    net_ : skorch.NeuralNet
        The trained net; ``net_.module_`` is the :class:`~fcm_estimators.nn.ReluFormer`.
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
    >>> adata = simulate_cohort(n_samples=2, n_cells=300, random_state=0)
    >>> clf = ReluFormerClassifier(
    ...     sample_key="sample", label_key="cell_type", pos_label="blast", max_epochs=1
    ... )
    >>> clf.fit(adata).predict(adata).shape
    (600,)
    """

    _parameter_constraints: dict[str, Any] = {
        **CONSTRAINTS,
        "label_key": [str, None],
        "pos_label": "no_validation",
        "class_weight": [dict, StrOptions({"balanced"}), None],
        "threshold": [StrOptions({"f1"}), Interval(Real, 0, 1, closed="neither")],
        "false_positive_rate": [Interval(Real, 0, 1, closed="neither"), None],
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
        pos_label: Any = None,
        n_layers: int = 4,
        n_heads: int = 4,
        hidden_dim: int = 32,
        max_epochs: int = 60,
        steps_per_epoch: int = 50,
        cells_per_sample: int = 1500,
        augmentation: float = 1.0,
        learning_rate: float = 3e-3,
        head_diversity: float = 0.0,
        head_evenness: float = 0.0,
        class_weight: dict[Any, float] | str | None = None,
        validation_fraction: float | None = 0.15,
        threshold: str | float = "f1",
        false_positive_rate: float | None = None,
        warm_start: bool = False,
        device: str = "auto",
        random_state: int | np.random.RandomState | None = 0,
        verbose: int = 0,
    ) -> None:
        self.sample_key = sample_key
        self.label_key = label_key
        self.patient_key = patient_key
        self.subset_key = subset_key
        self.markers = markers
        self.marker_aliases = marker_aliases
        self.layer = layer
        self.pos_label = pos_label
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
        self.validation_fraction = validation_fraction
        self.threshold = threshold
        self.false_positive_rate = false_positive_rate
        self.warm_start = warm_start
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = self.label_key is None
        return tags

    classes_: np.ndarray
    threshold_: float | None
    pos_label_: Any

    @property
    def temperature_(self) -> float:
        """Number that logits are divided by."""
        return float(fitted_net(self).get_buffer("temperature"))

    # -- fit ----------------------------------------------------------------------------------

    @_fit_context(prefer_skip_nested_validation=True)  # type: ignore[untyped-decorator]
    def fit(
        self,
        X: CellData,
        y: PerCell = None,
        groups: PerCell = None,
        *,
        checkpoint: str | os.PathLike[str] | None = None,
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
        return self._fit_copy(X, y, groups, checkpoint)

    def _fit(self, X: CellData, y: PerCell, groups: PerCell, checkpoint: Path | None) -> None:
        samples = read_to_fit(self, X, groups, continued=self._continues())
        classes, codes = encode_labels(read_labels(X, y, self.label_key, samples.n_rows))
        codes = codes[samples.rows]
        if self._continues():
            codes = recode(classes, codes, self.classes_)
            classes = self.classes_
        require_learnable(codes, classes, allow_one_class=self._continues())
        self.classes_ = classes
        self.pos_label_ = positive_class(self.pos_label, classes)
        require_two_classes("false_positive_rate", self.false_positive_rate, classes)
        seed = self._seed()
        module = self._initial_module(samples, seed)
        weights = class_weights(self.class_weight, classes, codes)
        present = class_presence(codes, samples.offsets, len(classes))
        train, valid = split_patients(samples, self.validation_fraction, seed, present)
        members = {f"class {c}": codes == i for i, c in enumerate(classes)}
        self._record_training(samples, {**members, "unlabelled": codes < 0}, valid)
        self._train(
            samples,
            module,
            CellLoss(torch.from_numpy(weights)),
            self._draws(samples, codes, train, module, seed),
            self._draws(samples, codes, valid, module, seed, fixed=True) if valid else None,
            checkpoint,
        )
        held_out = samples.take(valid)
        truth = codes_of(samples, codes, valid)
        self._calibrate(held_out, truth, seed)
        self.threshold_ = self._choose_threshold(held_out, truth)

    def _make_module(self, n_markers: int) -> ReluFormer:
        return ReluFormer(
            n_markers,
            len(self.classes_),
            hidden_dim=self.hidden_dim,
            n_heads=self.n_heads,
            n_layers=self.n_layers,
            eps=_EPS,
        )

    def _draws(
        self,
        samples: Samples,
        codes: np.ndarray,
        chosen: list[int],
        module: SetModule,
        seed: int,
        fixed: bool = False,
    ) -> SampleDraws:
        """Draws from some samples, for training, or for validation if ``fixed``."""
        part = samples.take(chosen)
        return SampleDraws(
            part.x,
            codes_of(samples, codes, chosen),
            part.offsets,
            mean=module.input_mean.numpy(force=True),
            scale=module.input_scale.numpy(force=True),
            n_classes=len(self.classes_),
            plan=draw_plan(self, len(chosen) if fixed else 0, _MIN_CLASS_FRACTION),
            seed=seed,
            fixed=fixed,
        )

    def _calibrate(self, held_out: Samples, truth: np.ndarray, seed: int) -> None:
        """Set the temperature of the net from the held-out patients.

        Their samples get the distortions of training, as if measured on several other days,
        because a few patients of one batch do not represent the next batch.
        """
        if not (truth >= 0).any():
            return
        net = fitted_net(self)
        known = labelled_subset(truth, held_out.offsets, _CALIBRATION_CELLS)
        augmentation, parts = augmentation_of(self), []
        mean, scale = (b.numpy(force=True) for b in (net.input_mean, net.input_scale))
        for copy in range(_CALIBRATION_COPIES if augmentation else 1):
            samples = held_out
            if augmentation is not None:
                rng = np.random.default_rng([seed, copy])
                samples = distorted_samples(held_out, mean, scale, augmentation, rng)
            logits = outputs_of(net, samples)[known]
            parts.append((logits, truth[known], samples.sample_of_cell[known]))
        temperature = best_temperature(*(np.concatenate(p) for p in zip(*parts, strict=True)))
        net.get_buffer("temperature").fill_(temperature)

    def _choose_threshold(self, held_out: Samples, truth: np.ndarray) -> float | None:
        """Lowest probability of the positive class at which a cell is positive."""
        if self.pos_label_ is None:
            return None
        rate = self.false_positive_rate
        if rate is not None and not len(truth):
            raise InvalidInputError(
                "false_positive_rate needs held-out patients, and there are none. Pass 5 or more "
                "samples of 2 or more patients with a validation_fraction, or a number as "
                "threshold."
            )
        if rate is None and self.threshold != "f1":
            return float(self.threshold)
        if not len(truth):
            return 0.5
        known = truth >= 0
        log_odds = self._log_odds(outputs_of(fitted_net(self), held_out))[known]
        positive = self.classes_[truth[known]] == self.pos_label_
        if rate is not None:
            return float(expit(false_positive_threshold(log_odds, positive, rate)))
        return float(expit(best_f1_threshold(log_odds, positive, held_out.sample_of_cell[known])))

    # -- prediction ---------------------------------------------------------------------------

    @property
    def _positive(self) -> int:
        """Code of the positive class of two."""
        return int(self.classes_[1] == self.pos_label_)

    def _log_odds(self, logits: np.ndarray) -> np.ndarray:
        """Log-odds of the positive class, shape (n,)."""
        positive = self._positive
        log_odds: np.ndarray = logits[:, positive] - logits[:, 1 - positive]
        return log_odds

    def _codes(self, logits: np.ndarray) -> np.ndarray:
        """Predicted class codes. All methods take the decision from here."""
        if self.threshold_ is None:
            return np.asarray(logits.argmax(1))
        positive = self._log_odds(logits) >= logit(self.threshold_)
        return np.where(positive, self._positive, 1 - self._positive)

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
            Labels. Cells outside ``subset_key`` are "not analysed" (NaN for numeric labels).

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
        samples = read_to_predict(self, X, groups)
        predicted = self.classes_[self._codes(outputs_of(fitted_net(self), samples))]
        if len(samples.rows) == samples.n_rows:
            return samples.scatter(predicted, predicted[0])
        if predicted.dtype.kind in "US":
            return samples.scatter(predicted.astype(object), NOT_ANALYSED)
        return samples.scatter(predicted.astype(np.float64), np.nan)

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
        samples = read_to_predict(self, X, groups)
        return samples.scatter(softmax(outputs_of(fitted_net(self), samples), axis=1), np.nan)

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
            log-odds of each class against the rest. NaN for cells outside ``subset_key``.
        """
        samples = read_to_predict(self, X, groups)
        logits = outputs_of(fitted_net(self), samples)
        if self.threshold_ is None:
            rest = [logsumexp(np.delete(logits, c, 1), axis=1) for c in range(logits.shape[1])]
            return samples.scatter(logits - np.stack(rest, 1), np.nan)
        excess = self._log_odds(logits) - logit(self.threshold_)
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
        samples = read_to_predict(self, X, groups)
        truth = pd.Series(read_labels(X, y, self.label_key, samples.n_rows))[
            samples.rows
        ].to_numpy()
        known = ~pd.isna(truth)
        predicted = self.classes_[self._codes(outputs_of(fitted_net(self), samples))]
        return float(np.mean(predicted[known] == truth[known]))

    @overload
    def annotate(self, data: AnnData, *, key_added: str = ..., copy: Literal[True]) -> AnnData: ...

    @overload
    def annotate(
        self, data: Writable, *, key_added: str = ..., copy: Literal[False] = ...
    ) -> None: ...

    def annotate(
        self, data: Writable, *, key_added: str = ClassKeys.key, copy: bool = False
    ) -> AnnData | None:
        """Classify cells and write the result into an AnnData, or into a store on disk.

        Sets the following fields:

        ``adata.obs[key_added]`` : Categorical
            Class. The categories are in the order of ``classes_``, then "not analysed" for cells
            outside ``subset_key``.
        ``adata.obsm[f"{key_added}_proba"]`` : DataFrame, float32
            Probability of each class.
        ``adata.uns[key_added]`` : dict
            Parameters, version, markers, classes, positive class and threshold of the run;
            ``cards``, the cards of the model as JSON (:meth:`cards`); ``distance``, the distance
            of each sample from training (:meth:`check_sample`).

        Parameters
        ----------
        data : AnnData or path
            Whole samples. A path is an h5ad file or a zarr directory of any size, which is changed
            in place. Memory does not grow with its size: intermediate values, 4 bytes per cell
            and unit of the width, are in a temporary file in ``TMPDIR``. After an error, none of
            the fields is written.
        key_added : str, default "reluformer"
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
        found: AnnData | None = self._annotate(data, ClassKeys(key_added), copy)
        return found

    def _write(self, cells: list[SampleCells], sink: Sink, keys: ClassKeys) -> dict[str, Any]:
        names = column_names(self.classes_)
        all_analysed = sum(len(part.rows) for part in cells) == sink.n_cells
        categories = names if all_analysed else [*names, NOT_ANALYSED]
        label = sink.categorical(keys.label, categories, fill=len(categories) - 1)
        probabilities = sink.table(keys.probabilities, names)
        for part in cells:
            for start, stop, logits in by_block(stream_through(fitted_net(self), part).outputs()):
                rows = part.rows[start:stop]
                label.write(rows, self._codes(logits))
                probabilities.write(rows, softmax(logits, axis=1))
        return {
            "classes": self.classes_.tolist(),
            "pos_label": None if self.pos_label_ is None else str(self.pos_label_),
            "threshold": self.threshold_,
        }

    # -- save and load ------------------------------------------------------------------------

    def _card_entries(self) -> dict[str, str]:
        found = {"classes": ", ".join(str(c) for c in self.classes_)}
        if self.pos_label_ is not None:
            found["positive class"] = str(self.pos_label_)
        if self.threshold_ is None:
            found["decision"] = "the most probable class"
        else:
            found["decision"] = f"positive from a probability of {self.threshold_:.4g}"
        source = "as trained" if self.temperature_ == 1 else "from held-out samples"
        found["temperature of the probabilities"] = f"{self.temperature_:.3g}, {source}"
        return found

    def _fitted_state(self) -> dict[str, Any]:
        return {
            "classes": self.classes_,
            "pos_label": self.pos_label_,
            "threshold": self.threshold_,
        }

    def _restore_fitted_state(self, state: dict[str, Any]) -> None:
        self.classes_ = np.array(state["classes"])
        self.pos_label_ = state["pos_label"]
        self.threshold_ = state["threshold"]
