"""Classification of cells by a transformer that reads whole samples."""

from __future__ import annotations

import dataclasses
import math
import os
from numbers import Real
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy.special import expit, logit, logsumexp, softmax
from sklearn.base import ClassifierMixin, _fit_context
from sklearn.utils import Tags
from sklearn.utils._param_validation import Interval, StrOptions

from fcm_estimators._base.estimator import SetEstimator, spans
from fcm_estimators._cells import keys as _keys
from fcm_estimators._cells.samples import Samples, read_labels
from fcm_estimators._cells.store import by_block, open_store, write_rows
from fcm_estimators._fitting.calibration import (
    best_f1_threshold,
    best_temperature,
    false_positive_threshold,
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
from fcm_estimators._fitting.reference import glances
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.nn import ReluFormer, SetModule

# Every held-out sample is drawn this often, each time distorted otherwise.
_VALIDATION_DRAWS = 4
# Probabilities are fitted to so many distorted copies of the held-out samples, with about so many
# cells in each.
_CALIBRATION_COPIES = 16
_CALIBRATION_CELLS = 20_000


class ReluFormerClassifier(ClassifierMixin, SetEstimator):
    """Classify cells with a ReluFormer, a transformer over all cells of a sample.

    What a cell is depends on its sample: instruments, stains and days shift every marker. The
    net sees each cell together with all others of its sample, and is trained on distorted
    samples, so it learns to read the shift off the sample.

    Parameters
    ----------
    sample_key : str or int, default None
        Column that says which sample (FCS file) a cell belongs to: of ``obs`` for AnnData, of
        the table for a DataFrame, the column number for an array. It is never a marker. None:
        ids come from ``fit(..., groups=ids)``, else all cells are one sample.
    label_key : str, default None
        Column of labels that ``fit`` and ``score`` use where no ``y`` is given.
    patient_key : str or int, default None
        Column of patients. Validation is split by patient, since files of one patient are
        alike. None: every sample is its own patient.
    subset_key : str, default None
        True/False column of ``obs`` (or of ``obsm["gates"]``) that selects a parent gate. Other
        cells are neither context nor classified; their class is "not analysed".
    markers : list of str, default None
        Markers to read. None: scatter and stained fluorescence or mass channels where
        ``var["kind"]`` tells, else all columns; never Time.
    marker_aliases : dict, default None
        Name in the data -> name in the model, e.g. ``{"SY41": "Syto 41"}``.
    layer : str, default None
        Layer of the AnnData to read instead of ``X``.
    pos_label : label, default None
        The positive class of a binary problem, to which ``threshold_`` belongs, e.g. "blast".
        None: the last of the sorted classes.
    n_layers : int, default 4
    n_heads : int, default 4
        Must divide ``hidden_dim``.
    hidden_dim : int, default 32
        Width of the net.
    eps : float, default 1e-2
        Added to the mean normaliser of the attention.
    max_epochs : int, default 60
    steps_per_epoch : int, default 50
    samples_per_step : int, default 4
        Samples of one training step, drawn with replacement.
    cells_per_sample : int, default 1500
        Cells drawn from each for a step. Prediction always uses all cells.
    min_class_fraction : float, default 0.1
        Each class is topped up to this share of ``cells_per_sample`` for the loss, as far as
        the sample has such cells. The context stays representative, and the loss corrects for
        the altered prior, so probabilities refer to the samples as they are.
    augmentation : float, default 1.0
        Strength of the random distortions of training samples (shift, scale, monotone warp,
        channel mixing, class composition). 0 switches them off; larger values suit samples whose
        instruments differ much, smaller ones well standardised samples with little disease.
    learning_rate : float, default 3e-3
        Highest rate of the schedule (linear warm-up, cosine to zero).
    weight_decay : float, default 1e-2
        Of AdamW.
    head_diversity : float, default 0.0
        Weight of the heads' overlap (cosine similarity of the attention that cells receive from
        two heads) in the training loss. At 0.1 heads look at different cells, and so at
        populations that no label names; see ``explainers.specialisation``.
    head_evenness : float, default 0.0
        Weight, beside that overlap, of unevenness (1 minus the cosine similarity of what cells
        receive from all heads with an even share). With both at 1 the heads share all cells out
        among themselves. Without ``head_diversity`` it has no effect.
    class_weight : dict, "balanced" or None, default None
        Weight of each class in the loss. It shifts probabilities, as elsewhere in scikit-learn.
    early_stopping : bool, default True
        Hold out patients, stop when their Brier score no longer falls, keep the best epoch. Below
        5 samples or 2 patients nothing can be held out and the last weights are kept.
    validation_fraction : float, default 0.15
        Share of patients held out.
    n_iter_no_change : int, default 20
        Epochs without improvement before training stops.
    threshold : "f1" or float, default "f1"
        Probability of ``pos_label`` from which a cell is called positive (binary problems):
        "f1" is 0.5 unless the held-out patients' samples show, by more than the standard error,
        that another threshold has a better mean F1.
    false_positive_rate : float, default None
        Choose the threshold so that at most this share of the held-out patients' negative cells
        is called positive, instead of ``threshold``. Needs held-out patients.
    warm_start : bool, default False
        Go on from the fitted net, e.g. to fine-tune a saved model on another lab's samples.
    checkpoint : path, default None
        Directory for the state of training after every epoch. ``fit`` on the same data with the
        same parameters goes on from what is there, and ends with the same weights as without the
        interruption; for another training the directory is refused. Needs an integer as
        ``random_state``.
    accelerate : bool, default False
        Train through Hugging Face Accelerate (extra ``gpus``), on all GPUs of
        ``accelerate launch``; an epoch then has fewer steps of as many more samples. Every
        process fits the same model, in training with its batches as one graph. Not together with
        ``checkpoint``.
    device : str, default "auto"
        "auto" (CUDA where present), "cpu", "cuda", "cuda:1".
    random_state : int, RandomState or None, default None
        Equal ints give equal models on one machine.
    verbose : int, default 0
        1 shows a progress bar.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Labels, sorted.
    threshold_ : float or None
        Probability of ``pos_label_`` from which a cell is positive; None for more than two
        classes, where the most probable class is predicted.
    temperature_ : float
        By what the logits were divided, in the last layer, so that the probabilities suit the
        held-out patients' cells, seen with the distortions of ``augmentation`` as if measured on
        other days: the median over samples of what suits each, and not less than 1.
    pos_label_ : label or None
        Positive class of a binary problem.
    markers_ : list of str
        Markers that the model reads, in its order.
    history_ : DataFrame
        A row per epoch: ``epoch``, ``train_loss`` (cross-entropy), ``valid_loss`` (Brier score),
        ``learning_rate``, ``seconds``.
    validation_samples_ : list
        Ids of the held-out samples.
    training_ : list of dict
        Numbers of the training data, of every training that went into the model (several after
        ``warm_start``).
    net_ : skorch.NeuralNet
        The trained net; ``net_.module_`` is the :class:`~fcm_estimators.nn.ReluFormer`.
    n_features_in_ : int
        Columns of an array, markers of a table or AnnData.
    feature_names_in_ : ndarray of str
        Markers; only after fitting on named columns.

    Notes
    -----
    Predictions of a cell depend on the other cells of its sample: predict whole samples. Splits
    of rows that are not by sample change the context without notice; split with ``GroupKFold``
    and the sample or patient as group.

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
        **SetEstimator._parameter_constraints,
        "pos_label": "no_validation",
        "min_class_fraction": [Interval(Real, 0, 1, closed="both")],
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
        eps: float = 1e-2,
        max_epochs: int = 60,
        steps_per_epoch: int = 50,
        samples_per_step: int = 4,
        cells_per_sample: int = 1500,
        min_class_fraction: float = 0.1,
        augmentation: float = 1.0,
        learning_rate: float = 3e-3,
        weight_decay: float = 1e-2,
        head_diversity: float = 0.0,
        head_evenness: float = 0.0,
        class_weight: dict[Any, float] | str | None = None,
        early_stopping: bool = True,
        validation_fraction: float = 0.15,
        n_iter_no_change: int = 20,
        threshold: str | float = "f1",
        false_positive_rate: float | None = None,
        warm_start: bool = False,
        checkpoint: str | os.PathLike | None = None,
        accelerate: bool = False,
        device: str = "auto",
        random_state: int | np.random.RandomState | None = None,
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
        self.eps = eps
        self.max_epochs = max_epochs
        self.steps_per_epoch = steps_per_epoch
        self.samples_per_step = samples_per_step
        self.cells_per_sample = cells_per_sample
        self.min_class_fraction = min_class_fraction
        self.augmentation = augmentation
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.head_diversity = head_diversity
        self.head_evenness = head_evenness
        self.class_weight = class_weight
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.threshold = threshold
        self.false_positive_rate = false_positive_rate
        self.warm_start = warm_start
        self.checkpoint = checkpoint
        self.accelerate = accelerate
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = self.label_key is None
        return tags

    classes_: np.ndarray
    threshold_: float | None
    temperature_: float
    pos_label_: Any

    # -- fit ----------------------------------------------------------------------------------

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any = None, groups: Any = None) -> Self:
        """Train on samples with labelled cells.

        Parameters
        ----------
        X : AnnData, DataFrame or array of shape (n_cells, n_columns)
            Cells, transformed (compensated, logicle or arcsinh). Not changed.
        y : array-like of shape (n_cells,), optional
            Labels, text or numbers; NaN or None for cells without label, which are context but
            carry no loss. Default: the column ``label_key``.
        groups : array-like of shape (n_cells,), optional
            Sample id of each cell, where there is no ``sample_key``. Prediction then needs
            ``groups`` too.

        Returns
        -------
        self

        Raises
        ------
        InvalidInputError
            No cells or a single one; one class; labels or ids of another length; values that
            are not finite; ids that are missing.
        MarkerMismatchError, MissingKeyError
            A named marker, column or layer that is not there.
        """
        return self._fit_or_stay(X, y, groups)

    def _fit(self, X: Any, y: Any, groups: Any) -> Self:
        samples = self._read_to_fit(X, groups)
        classes, codes = encode_labels(read_labels(X, y, self.label_key, samples.n_rows))
        codes = codes[samples.rows]
        if self._goes_on():
            codes = recode(classes, codes, self.classes_)
            classes = self.classes_
        require_learnable(codes, classes, one_class_will_do=self._goes_on())
        self.classes_ = classes
        self.pos_label_ = positive_class(self.pos_label, classes)
        require_two_classes("false_positive_rate", self.false_positive_rate, classes)
        seed = self._seed()
        module = self._initial_module(samples, seed)
        weights = class_weights(self.class_weight, classes, codes)
        present = class_presence(codes, samples.offsets, len(classes))
        train, valid = self._split_patients(samples, seed, present)
        marked = {f"class {c}": codes == i for i, c in enumerate(classes)}
        self._record_training(samples, {**marked, "unlabelled": codes < 0}, valid)
        self._train(
            samples,
            module,
            CellLoss(torch.from_numpy(weights)),
            self._draws(samples, codes, train, module, seed),
            self._draws(samples, codes, valid, module, seed, fixed=True) if valid else None,
        )
        self.validation_samples_ = samples.names[valid].tolist()
        self.temperature_ = self._calibrate(samples, codes, valid, seed)
        self.threshold_ = self._choose_threshold(samples, codes, valid)
        return self

    def _make_module(self, n_markers: int) -> ReluFormer:
        return ReluFormer(
            n_markers,
            len(self.classes_),
            hidden_dim=self.hidden_dim,
            n_heads=self.n_heads,
            n_layers=self.n_layers,
            eps=self.eps,
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
        """Training draws from some samples; ``fixed`` ones, for validation, see each 4 times."""
        part = samples.take(chosen)
        n_steps = self.steps_per_epoch
        if fixed:
            n_steps = math.ceil(_VALIDATION_DRAWS * len(chosen) / self.samples_per_step)
        return SampleDraws(
            part.x,
            codes_of(samples, codes, chosen),
            part.offsets,
            mean=module.input_mean.numpy(force=True),
            scale=module.input_scale.numpy(force=True),
            n_classes=len(self.classes_),
            plan=self._draw_plan(n_steps, self.min_class_fraction),
            seed=seed,
            fixed=fixed,
        )

    def _calibrate(self, samples: Samples, codes: np.ndarray, valid: list[int], seed: int) -> float:
        """Divide the logits by what suits the probabilities to held-out patients.

        Each is seen as measured on several other days, by the distortions of training: from few
        patients of one batch, as they are, the next batch cannot be told.
        """
        truth = codes_of(samples, codes, valid) if valid else np.empty(0)
        if not (truth >= 0).any():
            return 1.0
        held_out = samples.take(valid)
        known = np.zeros(len(truth), dtype=bool)
        for start, stop in spans(held_out):
            rows = start + np.flatnonzero(truth[start:stop] >= 0)
            known[rows[:: 1 + len(rows) * len(valid) // _CALIBRATION_CELLS]] = True
        parts = []
        for copy in range(_CALIBRATION_COPIES if self.augmentation else 1):
            rng = np.random.default_rng([seed, copy])
            logits = self._outputs(self._as_on_another_day(held_out, rng))[known]
            parts.append((logits, truth[known], held_out.sample_of_cell[known]))
        temperature = best_temperature(*(np.concatenate(p) for p in zip(*parts, strict=True)))
        module: Any = self.net_.module_
        with torch.no_grad():
            # In the last layer, so that everything that reads logits reads these.
            module.output.weight /= temperature
            module.output.bias /= temperature
        return temperature

    def _as_on_another_day(self, samples: Samples, rng: np.random.Generator) -> Samples:
        """Return samples with a distortion each, if training distorts."""
        augmentation = self._augmentation()
        if augmentation is None:
            return samples
        always = dataclasses.replace(augmentation, probability=1.0)
        module = self.net_.module_
        mean, scale = (b.numpy(force=True) for b in (module.input_mean, module.input_scale))
        z = (samples.x - mean) / scale
        parts = [always.distort(z[start:stop], rng) for start, stop in spans(samples)]
        x = (np.concatenate(parts) * scale + mean).astype(samples.x.dtype, copy=False)
        return dataclasses.replace(samples, x=x)

    def _choose_threshold(
        self, samples: Samples, codes: np.ndarray, valid: list[int]
    ) -> float | None:
        """Probability of the positive class from which a cell is positive."""
        if self.pos_label_ is None:
            return None
        rate = self.false_positive_rate
        if rate is not None and not valid:
            raise InvalidInputError(
                "false_positive_rate needs held-out patients, and there are none: pass 5 or more "
                "samples of 2 or more patients with early_stopping=True, or a number as threshold."
            )
        if rate is None and self.threshold != "f1":
            return float(self.threshold)
        if not valid:
            return 0.5
        held_out = samples.take(valid)
        truth = codes_of(samples, codes, valid)
        known = truth >= 0
        log_odds = self._log_odds(self._outputs(held_out))[known]
        positive = self.classes_[truth[known]] == self.pos_label_
        if rate is not None:
            return float(expit(false_positive_threshold(log_odds, positive, rate)))
        return float(expit(best_f1_threshold(log_odds, positive, held_out.sample_of_cell[known])))

    # -- prediction ---------------------------------------------------------------------------

    def _log_odds(self, logits: np.ndarray) -> np.ndarray:
        """Log-odds of the positive class, shape (n,)."""
        positive = int(self.classes_[1] == self.pos_label_)
        return logits[:, positive] - logits[:, 1 - positive]

    def _codes(self, logits: np.ndarray) -> np.ndarray:
        """Predicted class codes; the one place where a decision is made."""
        if self.threshold_ is None:
            return logits.argmax(1)
        called = self._log_odds(logits) >= logit(self.threshold_)
        positive = int(self.classes_[1] == self.pos_label_)
        return np.where(called, positive, 1 - positive)

    def predict(self, X: Any, groups: Any = None) -> np.ndarray:
        """Class of each cell.

        Parameters
        ----------
        X : AnnData, DataFrame or array of shape (n_cells, n_columns)
            Whole samples; markers are found by name, further ones are ignored.
        groups : array-like of shape (n_cells,), optional
            Sample ids, for a model fitted with ``groups``.

        Returns
        -------
        ndarray of shape (n_cells,)
            Labels. Cells outside ``subset_key`` are "not analysed" (NaN for numeric labels).

        Raises
        ------
        NotFittedError, MarkerMismatchError, MissingKeyError, InvalidInputError
            Not fitted; markers or columns missing; values that are not finite.
        """
        samples = self._read_to_predict(X, groups)
        predicted = self.classes_[self._codes(self._outputs(samples))]
        if len(samples.rows) == samples.n_rows:
            return samples.scatter(predicted, predicted[0])
        if predicted.dtype.kind in "US":
            return samples.scatter(predicted.astype(object), _keys.NOT_ANALYSED)
        return samples.scatter(predicted.astype(np.float64), np.nan)

    def predict_proba(self, X: Any, groups: Any = None) -> np.ndarray:
        """Probability of each class for each cell.

        Parameters
        ----------
        X, groups
            As for :meth:`predict`.

        Returns
        -------
        ndarray of shape (n_cells, n_classes)
            Columns in the order of ``classes_``, dtype of X (float32 or float64); NaN for cells
            outside ``subset_key``.
        """
        samples = self._read_to_predict(X, groups)
        return samples.scatter(softmax(self._outputs(samples), axis=1), np.nan)

    def decision_function(self, X: Any, groups: Any = None) -> np.ndarray:
        """Scores whose sign (two classes) or largest entry is the predicted class.

        Parameters
        ----------
        X, groups
            As for :meth:`predict`.

        Returns
        -------
        ndarray of shape (n_cells,) or (n_cells, n_classes)
            Two classes: log-odds of ``classes_[1]`` beyond the threshold. More: log-odds of each
            class against the rest. NaN for cells outside ``subset_key``.
        """
        samples = self._read_to_predict(X, groups)
        logits = self._outputs(samples)
        if self.threshold_ is None:
            rest = [logsumexp(np.delete(logits, c, 1), axis=1) for c in range(logits.shape[1])]
            return samples.scatter(logits - np.stack(rest, 1), np.nan)
        beyond = self._log_odds(logits) - logit(self.threshold_)
        sign = 1 if self.classes_[1] == self.pos_label_ else -1
        return samples.scatter((sign * beyond).astype(logits.dtype), np.nan)

    def score(self, X: Any, y: Any = None, groups: Any = None) -> float:
        """Accuracy over labelled, analysed cells.

        Parameters
        ----------
        X, groups
            As for :meth:`predict`.
        y : array-like of shape (n_cells,), optional
            True labels, NaN for cells to leave out. Default: the column ``label_key``.

        Returns
        -------
        float
        """
        samples = self._read_to_predict(X, groups)
        truth = pd.Series(read_labels(X, y, self.label_key, samples.n_rows))[
            samples.rows
        ].to_numpy()
        known = ~pd.isna(truth)
        predicted = self.classes_[self._codes(self._outputs(samples))]
        return float(np.mean(predicted[known] == truth[known]))

    def annotate(
        self, adata: AnnData, *, key_added: str = "reluformer", copy: bool = False
    ) -> AnnData | None:
        """Classify and write the result into an AnnData.

        Sets the following fields:

        ``adata.obs[key_added]`` : Categorical
            Class, categories in the order of ``classes_``; "not analysed" outside ``subset_key``.
        ``adata.obsm[f"{key_added}_proba"]`` : DataFrame, float32
            Probability per class.
        ``adata.uns[key_added]`` : dict
            Parameters, version, markers, classes, positive class and threshold of the run;
            ``cards``, the model's (:meth:`cards`) as JSON; ``distance``, how far each sample is
            from training (:meth:`check_sample`).

        Parameters
        ----------
        adata : AnnData
            Whole samples.
        key_added : str, default "reluformer"
        copy : bool, default False
            Return an annotated copy and leave ``adata`` as it is.

        Returns
        -------
        AnnData or None

        Raises
        ------
        InvalidInputError
            Not an AnnData, a view, or an unusable key; and as :meth:`predict`.
        """
        if copy and isinstance(adata, AnnData):
            adata = adata.to_memory() if adata.isbacked else adata.copy()
        _keys.require_writable(adata, key_added)
        samples = self._read_to_predict(adata, None)
        distances = self._reference.warn(samples.names, glances(samples))
        logits = self._outputs(samples)
        _keys.write_classes(
            adata,
            key_added,
            classes=self.classes_,
            predicted=samples.scatter(self._codes(logits), -1),
            probabilities=samples.scatter(softmax(logits, axis=1), np.nan),
            run=self._run(distances),
        )
        return adata if copy else None

    def annotate_store(self, path: str | os.PathLike, *, key_added: str = "reluformer") -> None:
        """Classify the cells of an h5ad or zarr store, however large, and write the result into it.

        Memory does not grow with the store. What is kept between the layers, 4 bytes per cell and
        unit of the width, lies in a temporary file (where is set by ``TMPDIR``). The fields are
        those of :meth:`annotate`; where an error ends it, none of them is written.

        Parameters
        ----------
        path : path
            An .h5ad file or a zarr directory.
        key_added : str, default "reluformer"

        Raises
        ------
        FileNotFoundError
        InvalidInputError, MissingKeyError, MarkerMismatchError
            No AnnData; as :meth:`predict`.
        """
        self._require_fitted()
        _keys.require_key_name(key_added)
        names = _keys.column_names(self.classes_)
        with open_store(path) as store:
            samples = self._read_store(store)
            distances = self._warn_of_store(samples)
            everything = sum(cells.n_cells for _, cells in samples) == store.n_obs
            categories = names if everything else [*names, _keys.NOT_ANALYSED]
            codes = store.add_categorical(key_added, categories, len(names))
            shares = store.add_table(f"{key_added}_proba", names, np.float32, np.nan)
            for _, cells, stream in self._streams(samples):
                for start, stop, logits in by_block(stream.outputs()):
                    rows = cells.rows[start:stop]
                    write_rows(codes, rows, self._codes(logits))
                    for column, share in zip(shares, softmax(logits, axis=1).T, strict=True):
                        write_rows(column, rows, share)
            store.add_record(key_added, self._run(distances))

    def _run(self, distances: pd.DataFrame) -> dict[str, Any]:
        """Record for ``uns``."""
        return self._record(
            self._json_params(),
            distances,
            classes=self.classes_.tolist(),
            pos_label=None if self.pos_label_ is None else str(self.pos_label_),
            threshold=self.threshold_,
        )

    # -- save and load ------------------------------------------------------------------------

    def _card_entries(self) -> dict[str, str]:
        found = {"classes": ", ".join(str(c) for c in self.classes_)}
        if self.pos_label_ is not None:
            found["positive class"] = str(self.pos_label_)
        if self.threshold_ is None:
            found["decision"] = "the most probable class"
        else:
            found["decision"] = f"positive from a probability of {self.threshold_:.4g}"
        held_out = "as trained" if self.temperature_ == 1 else "by held-out samples"
        found["temperature of the probabilities"] = f"{self.temperature_:.3g}, {held_out}"
        return found

    def _fitted_state(self) -> dict[str, Any]:
        return {
            "classes": self.classes_,
            "pos_label": self.pos_label_,
            "threshold": self.threshold_,
            "temperature": self.temperature_,
        }

    def _restore_fitted_state(self, state: dict[str, Any]) -> None:
        self.classes_ = np.array(state["classes"])
        self.pos_label_ = state["pos_label"]
        self.threshold_ = state["threshold"]
        self.temperature_ = float(state["temperature"])
