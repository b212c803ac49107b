"""Decode the events of one data set of an FCS file."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fcm_estimators._checks import column_extremes
from fcm_estimators.exceptions import FcsError
from fcm_estimators.io.keywords import Notes
from fcm_estimators.io.segment import LARGEST_WHOLE, Channel, Segment
from fcm_estimators.io.text import Content

# Floats above this many times $PnR are told.
_FAR_BEYOND = 2.0


def decode(segment: Segment, out: np.ndarray, columns: Sequence[int], scale_time: bool) -> None:
    """Read the events of a data set into columns of an array.

    Parameters
    ----------
    segment : Segment
        From :func:`~fcm_estimators.io.segment.open_segment`.
    out : ndarray of float32, shape (n_events, M)
        Filled column by column; columns without a parameter do not change.
    columns : sequence of int
        Column of `out` for every parameter of the file, -1 for none.
    scale_time : bool
        Multiply Time by ``$TIMESTEP``.

    Raises
    ------
    FcsError
        If `scale_time` is set and the file has a Time channel but no ``$TIMESTEP``, or if values
        exceed float32.

    Notes
    -----
    Scale values are those of FCS 3.1: a log amplifier with ``$PnE = f1,f2`` gives
    f2 * 10^(f1 * x / $PnR) for integers, a gain ``$PnG = g`` gives x / g. Floats are linear
    whatever ``$PnE`` says. The gain is not applied to Time.
    """
    decoder = Decoder(segment, columns, scale_time)
    decoder.read(0, out)
    decoder.warn()


class Decoder:
    """Reads the events of a data set part by part, as :func:`decode` reads them at once.

    Parameters
    ----------
    segment, columns, scale_time
        As for :func:`decode`.
    """

    def __init__(self, segment: Segment, columns: Sequence[int], scale_time: bool) -> None:
        self._segment, self._columns = segment, columns
        self._factors = [
            _time_step(segment) if scale_time and channel.kind == "time" and column >= 0 else 1.0
            for channel, column in zip(segment.channels, columns, strict=True)
        ]
        self._content = Content(segment.path)
        self._rounded: set[str] = set()
        self._highest: list[np.ndarray] = []

    def read(self, first: int, out: np.ndarray) -> None:
        """Read the events from number `first` on, a multiple of 8, into `out`."""
        if len(out) == 0:
            return
        segment, layout = self._segment, self._segment.layout
        start = segment.data_start + layout.n_bytes(first)
        # float32 in the order of the file goes straight into the array.
        if (
            layout.uniform is not None
            and layout.uniform.newbyteorder("=") == out.dtype
            and out.flags.c_contiguous
            and list(self._columns) == list(range(out.shape[1]))
        ):
            self._content.fill(start, out)
            if not layout.uniform.isnative:
                out.byteswap(inplace=True)
            for index, channel in enumerate(segment.channels):
                if not channel.linear or self._factors[index] != 1:
                    self._store(out[:, index], out[:, index], index)
        else:
            for rows, stored in layout.chunks(self._content, start, len(out)):
                for index, column in enumerate(self._columns):
                    if column >= 0:
                        self._store(out[rows, column], stored[index], index)
                        self._look_for_rounded(stored[index], index)
        if set(layout.kinds) != {"I"}:
            self._highest.append(column_extremes(out)[1])

    def warn(self) -> None:
        """Tell what is odd about the events that were read."""
        notes = Notes(self._segment.path.name)
        for name in sorted(self._rounded):
            notes.group("with integers above 2^24 (16,777,216), which float32 rounds.", name)
        notes.warn()
        if self._highest:
            self._warn_beyond_range(column_extremes(np.stack(self._highest))[1])

    def _warn_beyond_range(self, highest: np.ndarray) -> None:
        """Tell which floats lie far beyond ``$PnR``, which bounds integers only."""
        segment = self._segment
        notes = Notes(segment.path.name)
        kinds = segment.layout.kinds
        for channel, kind, column in zip(segment.channels, kinds, self._columns, strict=True):
            if column < 0 or kind == "I" or channel.kind in ("time", "other"):
                continue
            if highest[column] > _FAR_BEYOND * channel.range > 0:
                what = f"{channel.name} (up to {highest[column]:.3g}, $PnR {channel.range:.3g})"
                notes.group("with floats far beyond $PnR, which is no bound for floats.", what)
        notes.warn()

    def _store(self, out: np.ndarray, values: np.ndarray, index: int) -> None:
        channel = self._segment.channels[index]
        try:
            with np.errstate(over="raise"):
                out[...] = _scale_values(values, channel, self._factors[index])
        except FloatingPointError as error:
            raise FcsError(
                f"{self._segment.path.name}: channel {channel.name} holds values beyond the range "
                "of float32. Its $PnE, $PnG or data are wrong."
            ) from error

    def _look_for_rounded(self, stored: np.ndarray, index: int) -> None:
        """Remember an integer that is too large for float32."""
        channel = self._segment.channels[index]
        if (
            self._segment.exceeds_float32(index)
            and (_scale_values(stored, channel, 1.0) > LARGEST_WHOLE).any()
        ):
            self._rounded.add(channel.name)


def _scale_values(values: np.ndarray, channel: Channel, factor: float) -> np.ndarray:
    if values.dtype.kind == "u":
        mask = (1 << (int(channel.stored_range) - 1).bit_length()) - 1
        # Bits above $PnR are not data: the standard allows instruments to write anything there.
        if mask < np.iinfo(values.dtype).max:
            values = values & values.dtype.type(mask)
    if channel.decades > 0:
        exponent = channel.decades / channel.stored_range
        values = channel.log_zero * 10 ** (values.astype(np.float64) * exponent)
    if channel.gain != 1 or factor != 1:
        values = values.astype(np.float64) / channel.gain * factor
    return values


def _time_step(segment: Segment) -> float:
    step = segment.time_step
    if step is None or step <= 0:
        found = f"$TIMESTEP {step:g}" if step is not None else "no $TIMESTEP"
        raise FcsError(
            f"{segment.path.name} has {found}, so its Time cannot be converted to seconds. "
            "Read it with scale_time=False."
        )
    return step
