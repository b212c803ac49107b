"""FCS files that are open: all but their events is read, and the events at once or by block."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import anndata as ad
import numpy as np
import pandas as pd

from fcm_estimators.exceptions import (
    FcsError,
    InvalidInputError,
    MissingKeyError,
    PanelMismatchError,
)
from fcm_estimators.io.cells import assembled, cell_table
from fcm_estimators.io.channels import marker_names
from fcm_estimators.io.decode import Decoder, decode
from fcm_estimators.io.keywords import listed
from fcm_estimators.io.kinds import is_compensated
from fcm_estimators.io.record import (
    FILE_KEY,
    INSTRUMENT_KEY,
    UNS_KEY,
    file_digest,
    pack_amplifiers,
    pack_fcs_record,
)
from fcm_estimators.io.segment import Segment, open_segment, open_segments
from fcm_estimators.io.text import parsed_number

_NUMBER = r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?"
_NAME = r"\w[\w .,:;()\[\]/+&-]{0,79}"
# Keywords that describe the measurement and cannot name a person, a place or a day, and the form of
# their values, for any other text could.
TECHNICAL_KEYWORDS = {
    "CYT": _NAME,
    "CREATOR": _NAME,
    "TIMESTEP": _NUMBER,
    "VOL": _NUMBER,
    "TR": rf"{_NAME},\s*{_NUMBER}",
    "THRESHOLD": rf"{_NAME},\s*{_NUMBER}",
    "ABRT": _NUMBER,
    "LOST": _NUMBER,
    "APPLY COMPENSATION": r"(?i:true|false)",
    "WINDOW EXTENSION": _NUMBER,
    "FSC ASF": _NUMBER,
}


@dataclass(frozen=True)
class OpenedFcs:
    """FCS files whose keywords are read and checked, and whose events are not read yet.

    Attributes
    ----------
    samples : list of S str
    segments : list of S Segment
    columns : list of S lists of int
        Column of each parameter of a file, -1 for none.
    var : DataFrame
        The M markers.
    fcs : dict
        ``uns["fcs"]`` of the AnnData.
    scale_time : bool
    """

    samples: list[str]
    segments: list[Segment]
    columns: list[list[int]]
    var: pd.DataFrame
    fcs: dict[str, Any]
    scale_time: bool

    @property
    def n_events(self) -> list[int]:
        """Events of each sample."""
        return [segment.n_events for segment in self.segments]

    def read(self) -> ad.AnnData:
        """All events."""
        x = np.empty((sum(self.n_events), len(self.var)), dtype=np.float32)
        first = 0
        for segment, columns in zip(self.segments, self.columns, strict=True):
            rows = x[first : first + segment.n_events]
            rows[:, ~np.isin(np.arange(len(self.var)), columns)] = np.nan
            decode(segment, rows, columns, self.scale_time)
            first += segment.n_events
        return self._as_adata(x, cell_table(self.samples, self.n_events))

    def blocks(self, n_rows: int) -> Iterator[ad.AnnData]:
        """The events of the only sample, `n_rows` at a time, a multiple of 8.

        The blocks, one after the other, are what :meth:`read` gives.
        """
        (segment,), (columns,) = self.segments, self.columns
        decoder, count = Decoder(segment, columns, self.scale_time), segment.n_events
        for first in range(0, count, n_rows):
            x = np.empty((min(n_rows, count - first), len(self.var)), dtype=np.float32)
            decoder.read(first, x)
            yield self._as_adata(x, cell_table(self.samples, [len(x)], first))
        decoder.warn()

    def _as_adata(self, x: np.ndarray, obs: pd.DataFrame) -> ad.AnnData:
        adata = assembled(x, obs, self.var)
        adata.uns[UNS_KEY] = dict(self.fcs)
        return adata


def open_fcs(
    path: str | PathLike[str] | Sequence[str | PathLike[str]],
    *,
    sample_names: str | Sequence[str] | None = None,
    dataset: int | Literal["all"] | None = None,
    join: Literal["inner", "outer"] | None = None,
    scale_time: bool = False,
    instrument_compensated: bool = True,
    marker_aliases: Mapping[str, str] | None = None,
    keep_keywords: Sequence[str] | None = None,
) -> OpenedFcs:
    """Open FCS files; parameters and errors as of :func:`~fcm_estimators.read_fcs`.

    The events are read later, so that a bad keyword in the last file does not cost minutes.
    """
    if join not in (None, "inner", "outer"):
        raise InvalidInputError(f'join must be None, "inner" or "outer", got {join!r}.')
    paths = _paths(path)
    samples = _sample_names(paths, sample_names)
    if dataset == "all":
        samples, segments = _all_data_sets(samples, paths)
    else:
        segments = [open_segment(p, dataset) for p in paths]
    if not instrument_compensated:
        segments = [replace(segment, compensated=frozenset()) for segment in segments]
    for segment in segments:
        if segment.n_events == 0:
            raise FcsError(f"{segment.path.name} {_no_events(segment)}")
    panels = [_panel(segment, marker_aliases or {}) for segment in segments]
    names = _joined_names(samples, panels, join)
    var = _joined_var(samples, panels, names)
    record = pack_fcs_record(
        samples,
        _kept_keywords(segments, keep_keywords or ()),
        [segment.n_events for segment in segments],
        [
            _spillover(sample, segment, panel, var)
            for sample, segment, panel in zip(samples, segments, panels, strict=True)
        ],
    )
    instrument = set().union(*(panel.index[panel["by_instrument"]] for panel in panels))
    fcs = {
        **record,
        "time_scaled": scale_time,
        INSTRUMENT_KEY: var.loc[[n for n in names if n in instrument], "channel"].to_numpy(object),
        FILE_KEY: np.array(
            [file_digest(s.keywords.get("FIL", "")) for s in segments], dtype=object
        ),
        **_amplifiers(samples, segments, panels, var),
    }
    columns = [pd.Index(names).get_indexer(panel.index).tolist() for panel in panels]
    return OpenedFcs(samples, segments, columns, var, fcs, scale_time)


def _amplifiers(
    samples: list[str], segments: list[Segment], panels: list[pd.DataFrame], var: pd.DataFrame
) -> dict[str, object]:
    """How integers that are not the values were decoded."""
    rows = []
    for sample, segment, panel in zip(samples, segments, panels, strict=True):
        whole = [kind == "I" for kind in segment.layout.kinds]
        for name, channel, integer in zip(panel.index, segment.channels, whole, strict=True):
            if integer and not channel.linear and name in var.index:
                known = (channel.decades, channel.log_zero, channel.stored_range, channel.gain)
                rows.append((sample, str(var.loc[name, "channel"]), *known))
    return pack_amplifiers(rows)


def _no_events(segment: Segment) -> str:
    """What is wrong with a file without events."""
    begin, end = (parsed_number(segment.keywords.get(f"{k}DATA", "")) for k in ("BEGIN", "END"))
    n_bytes = int((end or 0) - (begin or 0)) + 1
    if begin and n_bytes >= len(segment.channels):
        return (
            f"has $TOT = 0, but DATA of {n_bytes:,} bytes. The acquisition or the export was not "
            "finished; export it again."
        )
    return "holds no events ($TOT = 0); remove it from the list."


def _paths(path: str | PathLike[str] | Sequence[str | PathLike[str]]) -> list[Path]:
    paths = [Path(path)] if isinstance(path, str | PathLike) else [Path(p) for p in path]
    if not paths:
        raise InvalidInputError("The list of FCS files is empty; give at least one path.")
    return paths


def _sample_names(paths: list[Path], given: str | Sequence[str] | None) -> list[str]:
    names = _names_of(paths) if given is None else given
    names = [names] if isinstance(names, str) else list(names)
    if len(names) != len(paths):
        raise InvalidInputError(
            f"{len(names)} sample_names for {len(paths)} files; give one for each file."
        )
    if wrong := [name for name in names if not isinstance(name, str) or not name]:
        raise InvalidInputError(f"Sample names must be non-empty strings, got {wrong[0]!r}.")
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidInputError(
            f"Sample names repeat: {', '.join(repeated)}. Give unique ones with sample_names=."
        )
    return names


def _names_of(paths: list[Path]) -> list[str]:
    """Names without endings; files that only differ in the ending keep it."""
    stems = [_stem(path) for path in paths]
    return [
        path.name if stems.count(stem) > 1 else stem
        for path, stem in zip(paths, stems, strict=True)
    ]


def _stem(path: Path) -> str:
    """File name without its ending, and without the one before ".gz"."""
    return Path(path.stem).stem if path.suffix.lower() == ".gz" else path.stem


def _all_data_sets(samples: list[str], paths: list[Path]) -> tuple[list[str], list[Segment]]:
    """Every data set of every file; those of a file with several have numbers in their names."""
    names: list[str] = []
    segments: list[Segment] = []
    for sample, path in zip(samples, paths, strict=True):
        found = open_segments(path)
        names += [f"{sample}_{i}" for i in range(len(found))] if len(found) > 1 else [sample]
        segments += found
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidInputError(
            f"Sample names repeat: {', '.join(repeated)}. Give other ones with sample_names=."
        )
    return names, segments


def _panel(segment: Segment, aliases: Mapping[str, str]) -> pd.DataFrame:
    """One row per parameter of a file in file order, indexed by its unique marker name."""
    channels = segment.channels
    markers = [channel.marker for channel in channels]
    names = marker_names(segment.channel_names, markers)
    renamed = [aliases.get(name, name) for name in names]
    if repeated := sorted({name for name in renamed if renamed.count(name) > 1}):
        raise InvalidInputError(
            f"marker_aliases give several markers of {segment.path.name} the same name: "
            f"{', '.join(repeated)}. Its markers are {', '.join(names)}."
        )
    by_instrument = [name in segment.compensated for name in segment.channel_names]
    compensated = [
        instrument or is_compensated(name)
        for name, instrument in zip(segment.channel_names, by_instrument, strict=True)
    ]
    return pd.DataFrame(
        {
            "channel": segment.channel_names,
            "marker": markers,
            "kind": [channel.kind for channel in channels],
            "range": np.array([channel.range for channel in channels], dtype=np.float64),
            "compensated": np.array(compensated, dtype=bool),
            "transform": "none",
            "by_instrument": by_instrument,
        },
        index=pd.Index(renamed, dtype=object),
    )


def _joined_names(
    samples: list[str], panels: list[pd.DataFrame], join: Literal["inner", "outer"] | None
) -> list[str]:
    first = list(panels[0].index)
    everything = list(dict.fromkeys(name for panel in panels for name in panel.index))
    shared = [name for name in first if all(name in panel.index for panel in panels)]
    if join == "outer" or len(shared) == len(everything):
        return everything
    if join is None:
        lines = []
        for sample, panel in zip(samples[1:], panels[1:], strict=True):
            missing = ", ".join(n for n in first if n not in panel.index) or "nothing"
            extra = ", ".join(n for n in panel.index if n not in first) or "nothing"
            if set(panel.index) != set(first):
                lines.append(f"{sample} lacks {missing} and has {extra} in addition")
        raise PanelMismatchError(
            f"The files have different markers. Compared to {samples[0]} ({', '.join(first)}): "
            f'{"; ".join(lines)}. Rename with marker_aliases=, or choose join="inner" (shared '
            'markers) or join="outer" (NaN where a file lacks one).'
        )
    if not shared:
        raise PanelMismatchError("The files share no marker. Rename with marker_aliases=.")
    return shared


def _joined_var(samples: list[str], panels: list[pd.DataFrame], names: list[str]) -> pd.DataFrame:
    stacked = pd.concat(panels, keys=samples, names=["sample", "name"])
    by_name = stacked.groupby(level="name", sort=False)
    mixed = by_name["compensated"].nunique()
    if mixed_names := [name for name in names if mixed[name] > 1]:
        raise PanelMismatchError(
            f"{', '.join(mixed_names)}: compensated (Comp-..., <...> or $DFCiTOj) in some files, "
            "but not in others. Export all files the same way."
        )
    var = by_name.first().loc[names].drop(columns="by_instrument")
    # CyTOF software writes the largest value of each file as $PnR; a cohort needs one range.
    var["range"] = by_name["range"].max().loc[names]
    var.index.name = None
    return var


def _kept_keywords(segments: list[Segment], extra: Sequence[str]) -> list[dict[str, str]]:
    wanted = [name.removeprefix("$").upper() for name in extra]
    for name in wanted:
        if not any(name in segment.keywords for segment in segments):
            raise MissingKeyError(
                f"No file has the keyword {name}; {segments[0].path.name} has "
                f"{', '.join(segments[0].keywords)}."
            )
    found = []
    for segment in segments:
        values = {k: segment.keywords[k] for k in TECHNICAL_KEYWORDS if segment.keywords.get(k)}
        odd = [k for k, v in values.items() if not re.fullmatch(TECHNICAL_KEYWORDS[k], v)]
        if dropped := [k for k in odd if k not in wanted]:
            warnings.warn(
                f"{segment.path.name}: {listed(dropped)} not kept, because the value has not the "
                "form of this keyword. keep_keywords=[...] keeps it.",
                UserWarning,
                stacklevel=4,
            )
        kept = {k: v for k, v in values.items() if k not in dropped}
        kept |= {k: segment.keywords[k] for k in wanted if segment.keywords.get(k)}
        # A "/" would split the key when the data are saved as h5ad.
        found.append({name.replace("/", "_"): value for name, value in kept.items()})
    return found


def _spillover(
    sample: str, segment: Segment, panel: pd.DataFrame, var: pd.DataFrame
) -> pd.DataFrame | None:
    """Spillover of one file, labelled by the channel names of the cohort."""
    spillover = segment.spillover()
    if spillover is None:
        return None
    known = panel.index.intersection(var.index, sort=False)
    cohort = dict(zip(panel.loc[known, "channel"], var.loc[known, "channel"], strict=True))
    labels = [cohort.get(name, name) for name in spillover.columns]
    if repeated := sorted({name for name in labels if labels.count(name) > 1}):
        raise PanelMismatchError(
            f"Sample {sample}: channel {', '.join(repeated)} measures a different marker in the "
            "first file, so its spillover cannot be assigned. Read these samples separately."
        )
    return spillover.set_axis(labels, axis=0).set_axis(labels, axis=1)
