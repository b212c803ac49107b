"""Classes, novelty and agreement of the members of all cells, written by block."""

from __future__ import annotations

import warnings
from collections.abc import Hashable
from typing import Protocol

import numpy as np
import pandas as pd

from fcm_estimators._base.deciding import code_of, novelty_of
from fcm_estimators._base.members import Agreement, agreement_table, warn_of_disagreement
from fcm_estimators._base.reading import fitted_net
from fcm_estimators._base.running import kept_outputs, stream_through
from fcm_estimators._cells.records import columns_of_shares, unusual_share
from fcm_estimators._cells.results import Field, Sink, column_names
from fcm_estimators._cells.rows import SampleCells, by_block
from fcm_estimators._fitting.calibration import calibrated, mean_keeping_shift
from fcm_estimators._fitting.net import PackedNet
from fcm_estimators._fitting.novelty import Novelty
from fcm_estimators._fitting.performance import Performance
from fcm_estimators._types import Entries
from fcm_estimators.exceptions import listed
from fcm_estimators.keys import NOT_ANALYSED, UNKNOWN, ClassKeys
from fcm_estimators.nn.reluformer import ScaledModule


class Classifies(Protocol):
    """What a fitted classifier needs to annotate cells."""

    unknown: str
    classes_: np.ndarray
    pos_label_: Hashable
    threshold_: float | None
    temperature_: float
    usual_excess_: np.ndarray
    class_shares_: pd.DataFrame | None
    members_: list[ScaledModule]
    missing_markers_: list[str]
    novelty_: Novelty
    performance_: Performance | None
    net_: PackedNet

    def decide(self, logits: np.ndarray) -> np.ndarray:
        """Class codes from logits."""


def write_classes(
    model: Classifies, cells: list[SampleCells], sink: Sink, keys: ClassKeys, disputed: bool
) -> Entries:
    """Classify cells and write the results; return entries of the run record.

    Parameters
    ----------
    model : Classifies
    cells : list of SampleCells
    sink : Sink
    keys : ClassKeys
    disputed : bool
        Whether every member judges every cell.
    """
    names = column_names(model.classes_)
    rejects = model.unknown == "reject"
    all_analysed = sum(len(part.rows) for part in cells) == sink.n_cells
    categories = names + [UNKNOWN] * rejects + [NOT_ANALYSED] * (not all_analysed)
    label = sink.categorical(keys.label, categories, fill=len(categories) - 1)
    probabilities = sink.table(keys.probabilities, names)
    novelty, unknown = sink.numbers(keys.novelty), sink.mask(keys.unknown)
    positive = code_of(model.pos_label_, model.classes_)
    n_unknown, agreements = [], []
    for part in cells:
        outputs = kept_outputs(fitted_net(model), part)
        shift = mean_keeping_shift(outputs.blocks, model.temperature_)
        n_unknown.append(0)
        if model.members_:
            agreements.append(
                Agreement(
                    model.members_, part, len(names), positive, model.decide, model.usual_excess_
                )
            )
        for start, stop, z in outputs.spans():
            rows, x = part.rows[start:stop], part.source.read(start, stop)
            score = novelty_of(model.novelty_, fitted_net(model), x)
            strange = score > model.novelty_.threshold
            logits = z.numpy(force=True)
            codes = model.decide(logits)
            if model.members_:
                agreements[-1].add(start, x, logits)
            label.write(rows, np.where(strange, len(names), codes) if rejects else codes)
            shares = calibrated(z, model.temperature_, shift)
            probabilities.write(rows, shares.numpy(force=True))
            novelty.write(rows, score)
            unknown.write(rows, strange)
            n_unknown[-1] += int(strange.sum())
    if disputed:
        _write_disputed(model, cells, sink.mask(keys.disputed))
    samples = [part.name for part in cells]
    _warn_of_unknown(samples, n_unknown, [len(part.rows) for part in cells], model.novelty_.usual)
    record: Entries = {
        "classes": model.classes_.tolist(),
        "missing_markers": model.missing_markers_,
        "tested": not model.missing_markers_ or model.performance_ is not None,
        "pos_label": None if model.pos_label_ is None else str(model.pos_label_),
        "threshold": model.threshold_,
        "novelty_threshold": model.novelty_.threshold,
        "unknown_usual": model.novelty_.usual,
        "n_patients_tested": 0 if model.performance_ is None else model.performance_.n_patients,
    }
    if model.class_shares_ is not None:
        record["class_shares"] = columns_of_shares(model.class_shares_)
    if model.members_:
        table = agreement_table(samples, agreements, names, positive)
        warn_of_disagreement(table, stacklevel=5)
        record["members"] = {name: table[name].to_numpy() for name in table}
    return record


def _write_disputed(model: Classifies, cells: list[SampleCells], field: Field) -> None:
    """Write which cells not all members give the same class."""
    for part in cells:
        first, differ = None, np.zeros(len(part.rows), dtype=bool)
        for member in model.members_:
            outputs = stream_through(member, part).outputs()
            codes = np.concatenate(
                [model.decide(z).astype(np.int32) for _, _, z in by_block(outputs)]
            )
            first = codes if first is None else first
            differ |= codes != first
        field.write(part.rows, differ)


def _warn_of_unknown(
    samples: list[Hashable], n_unknown: list[int], n_cells: list[int], usual: float
) -> None:
    """Warn of samples with many more cells than usual that are unlike any in training."""
    limit = unusual_share(usual)
    shares = {s: k / n for s, k, n in zip(samples, n_unknown, n_cells, strict=True)}
    found = [f"{s} ({share:.0%})" for s, share in shares.items() if share > limit]
    if found:
        warnings.warn(
            f"{len(found)} of {len(samples)} sample(s) have many cells that are unlike any in "
            f"training (at most {usual:.1%} in training samples): {listed(found, 5)}. Their "
            "classes are guesses; look at them before you use the result.",
            UserWarning,
            stacklevel=5,
        )
