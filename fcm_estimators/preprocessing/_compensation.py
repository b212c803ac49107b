"""Compensation of spectral overlap, with a matrix for each sample or one for all."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Self

import flowutils
import numpy as np
import pandas as pd
from anndata import AnnData
from sklearn.base import BaseEstimator, TransformerMixin

from fcm_estimators._checks import rows_by_sample
from fcm_estimators.exceptions import (
    InvalidInputError,
    MarkerMismatchError,
    NotFittedError,
    ProcessingStateError,
)
from fcm_estimators.io.cells import copied
from fcm_estimators.io.record import COMPENSATION_KEY, get_spillover, pack_compensation
from fcm_estimators.preprocessing import _state

# Values (N, C) and spillover matrix (C, C) to new values (N, C).
_Function = Callable[..., np.ndarray]


# scikit-learn has no types, so mypy sees its classes as Any.
class Compensation(TransformerMixin, BaseEstimator, auto_wrap_output_keys=None):  # type: ignore[call-arg, misc]
    """Compensate the fluorescence of an AnnData for spillover.

    Parameters
    ----------
    spillover : DataFrame of shape (C, C), optional
        Matrix for all samples: the signal of the row's fluorochrome in the column's detector, 1 on
        the diagonal. Rows and columns are labelled with channel names ($PnN). Default: the matrix
        of each sample, which :func:`fcm_estimators.read_fcs` stores in ``uns["fcs"]``.
    sample_key : str, default "sample"
        Column of ``obs`` with the sample of each cell. Not used if ``spillover`` is given.

    Attributes
    ----------
    spillover_ : DataFrame or None
        The matrix that is applied to all samples; None if each sample has its own.

    References
    ----------
    Bagwell, Adams, Annals of the New York Academy of Sciences 677, 167-184 (1993). Spidlen et
    al., Gating-ML 2.0, Cytometry A 87A, 683-687 (2015).

    Examples
    --------
    >>> import numpy as np, pandas as pd
    >>> from anndata import AnnData
    >>> from fcm_estimators.preprocessing import Compensation
    >>> adata = AnnData(np.float32([[100, 35]]), var=pd.DataFrame(index=["FITC-A", "PE-A"]))
    >>> names = ["FITC-A", "PE-A"]
    >>> spillover = pd.DataFrame([[1, 0.25], [0, 1]], index=names, columns=names)
    >>> Compensation(spillover=spillover).fit_transform(adata).X
    array([[100.,  10.]], dtype=float32)
    """

    spillover_: pd.DataFrame | None

    def __init__(
        self, *, spillover: pd.DataFrame | None = None, sample_key: str = "sample"
    ) -> None:
        self.spillover = spillover
        self.sample_key = sample_key

    def fit(self, X: AnnData, y: object = None) -> Self:
        """Check the given matrix. The matrices of samples are looked up in ``transform``.

        Parameters
        ----------
        X : AnnData
            Training cells; not changed.
        y : None
            Ignored.

        Returns
        -------
        self

        Raises
        ------
        InvalidInputError
            If ``X`` is not a dense AnnData in memory, or ``spillover`` is not a square, labelled,
            invertible matrix of finite numbers.
        """
        _state.check_adata(X)
        given = self.spillover
        self.spillover_ = None if given is None else _checked(given, "spillover")
        return self

    def transform(self, X: AnnData) -> AnnData:
        """Compensate every sample with its matrix.

        Parameters
        ----------
        X : AnnData
            Cells with raw linear values; not changed.

        Returns
        -------
        AnnData
            A copy with compensated float32 values in ``X``, the former ``X`` in ``layers["raw"]``
            (unless that layer exists) and True in ``var["compensated"]`` for these channels.
            ``uns["compensation"]`` records the matrix: ``channels`` and ``values``, empty if each
            sample was compensated with that of its file.

        Raises
        ------
        NotFittedError
            If called before ``fit``.
        InvalidInputError
            If ``X`` is not a dense AnnData in memory or has NaN or infinite values in a channel,
            or if the samples' matrices are invalid or cover different channels.
        MissingKeyError
            If ``obs`` has no column ``sample_key``, or ``uns["fcs"]`` is missing or lacks a
            sample.
        MarkerMismatchError
            If a channel of the matrix is not in the data.
        ProcessingStateError
            If the data are already compensated (also by "Comp-" channels), a channel is
            transformed, or a sample's file had no matrix.
        """
        self._check(X)
        return self.transform_in_place(copied(X))

    def transform_in_place(self, adata: AnnData) -> AnnData:
        """Compensate the data themselves, as :meth:`transform` does a copy; needs less memory.

        Parameters
        ----------
        adata : AnnData
            Changed; if there is an error, perhaps in part.

        Returns
        -------
        AnnData
            ``adata``.

        Raises
        ------
        NotFittedError, InvalidInputError, MissingKeyError, MarkerMismatchError,
        ProcessingStateError
            As for ``transform``.
        """
        self._check(adata)
        done = _state.recorded_compensation(adata)
        if done.any():
            raise ProcessingStateError(
                f"Already compensated: {list(done.index[done])}; expected uncompensated values. "
                "Leave the Compensation step out, or start from the raw data."
            )
        return self._apply(adata, flowutils.compensate.compensate, compensated=True)

    def inverse_transform(self, X: AnnData) -> AnnData:
        """Undo the compensation, with the precision of float32.

        Parameters
        ----------
        X : AnnData
            Cells with compensated linear values; not changed.

        Returns
        -------
        AnnData
            A copy with False in ``var["compensated"]`` for the channels of the matrix.

        Raises
        ------
        NotFittedError
            If called before ``fit``.
        InvalidInputError, MissingKeyError, MarkerMismatchError
            As for ``transform``.
        ProcessingStateError
            If a channel of the matrix is not compensated or is transformed, or a sample's file
            had no matrix.
        """
        self._check(X)
        return self._apply(copied(X), flowutils.compensate.inverse_compensate, compensated=False)

    def _check(self, adata: AnnData) -> None:
        if not hasattr(self, "spillover_"):
            raise NotFittedError(
                "This Compensation is not fitted yet. Call fit or fit_transform first."
            )
        _state.check_adata(adata)

    def _apply(self, adata: AnnData, function: _Function, *, compensated: bool) -> AnnData:
        parts = self._matrices(adata)
        if not parts:
            raise InvalidInputError("The AnnData has no cells, so there is nothing to compensate.")
        detectors = list(parts[0][1].columns)
        markers = _markers_of(adata, detectors)
        _refuse_state(adata, markers, compensated=not compensated)
        # Channels are matched by name: the files of a cohort may order them differently.
        squares = [(rows, matrix.loc[detectors, detectors].to_numpy()) for rows, matrix in parts]
        steps = [(rows, partial(function, spill_matrix=square)) for rows, square in squares]
        _state.process(adata, markers, steps, compensated=compensated)
        adata.uns.pop(COMPENSATION_KEY, None)
        if compensated:
            adata.uns[COMPENSATION_KEY] = pack_compensation(self.spillover_)
        return adata

    def _matrices(self, adata: AnnData) -> list[tuple[np.ndarray, pd.DataFrame]]:
        """Rows and matrix of each sample; all matrices cover the same channels."""
        if self.spillover_ is not None:
            return [(np.arange(adata.n_obs), self.spillover_)]
        rows_of = rows_by_sample(adata, self.sample_key)
        found = {s: get_spillover(adata, s) for s in rows_of}
        missing = [s for s, matrix in found.items() if matrix is None]
        if missing:
            raise ProcessingStateError(
                f"No spillover matrix for samples {missing} in uns['fcs']. Pass "
                "Compensation(spillover=DataFrame), or leave these samples out."
            )
        parts = [
            (rows_of[s], _checked(matrix, f"The spillover of sample {s}"))
            for s, matrix in found.items()
            if matrix is not None
        ]
        sets = {frozenset(matrix.columns) for _, matrix in parts}
        if len(sets) > 1:
            differing = sorted(frozenset.union(*sets) - frozenset.intersection(*sets))
            raise InvalidInputError(
                f"Some samples' spillover matrices do not cover {differing}. Compensate only "
                "samples of one panel together, or pass one matrix as spillover=."
            )
        return parts


def _markers_of(adata: AnnData, detectors: list[str]) -> list[str]:
    """Markers of the channels, in the order of ``detectors``."""
    names = _state.channels(adata)
    missing = [d for d in detectors if d not in set(names)]
    if missing:
        raise MarkerMismatchError(
            f"Channels {missing} of the spillover matrix are not in the data; available: "
            f"{list(names)} (var['channel']). Compensate before removing channels."
        )
    ambiguous = sorted(set(names[names.duplicated()]) & set(detectors))
    if ambiguous:
        raise InvalidInputError(
            f"Channels {ambiguous} occur more than once in var['channel']; every channel "
            "must be unique."
        )
    marker_of = dict(zip(names, names.index, strict=True))
    return [str(marker_of[d]) for d in detectors]


def _refuse_state(adata: AnnData, markers: list[str], *, compensated: bool) -> None:
    """Raise ProcessingStateError unless markers are linear and ``compensated`` as given."""
    transforms = _state.recorded_transforms(adata)[markers]
    transformed = transforms[transforms != _state.UNTRANSFORMED]
    if len(transformed):
        raise ProcessingStateError(
            f"Already transformed: {transformed.to_dict()}; expected linear values, because "
            "spillover is linear. Put Compensation before the transforms."
        )
    flags = _state.recorded_compensation(adata)[markers]
    if (flags != compensated).any():
        raise ProcessingStateError(
            f"Not compensated: {list(flags.index[flags != compensated])}; there is nothing to undo."
        )


def _checked(matrix: pd.DataFrame, what: str) -> pd.DataFrame:
    """Check a matrix; return it in float64, with the rows in the order of the columns."""
    if not isinstance(matrix, pd.DataFrame):
        raise InvalidInputError(
            f"{what} is a {type(matrix).__name__}; expected a DataFrame with channel names "
            "($PnN) as index and columns."
        )
    rows, columns = list(map(str, matrix.index)), list(map(str, matrix.columns))
    if not columns or len(set(columns)) < len(columns) or sorted(rows) != sorted(columns):
        raise InvalidInputError(
            f"{what} has the rows {rows} and the columns {columns}; expected the same channel "
            "names, each once."
        )
    try:
        values = matrix.to_numpy(dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(f"{what} holds values that are not numbers.") from error
    if not np.isfinite(values).all():
        raise InvalidInputError(f"{what} holds NaN or infinite values.")
    square = pd.DataFrame(values, index=rows, columns=columns).loc[columns]
    if (np.diag(square) >= 50).all():
        raise InvalidInputError(f"{what} is in percent; expected 1 on the diagonal. Divide by 100.")
    if np.linalg.matrix_rank(square.to_numpy()) < len(columns):
        raise InvalidInputError(f"{what} is singular; it cannot tell all channels apart.")
    return square
