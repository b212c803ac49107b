"""What belongs together in list-mode files of Beckman Coulter (.lmd): names and compensation.

Such a file holds the same events twice: an FCS 2.0 data set of 10-bit integers with the names of
the markers, compensated by the instrument, and an uncompensated FCS 3 data set of 20 bits.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from fcm_estimators.io.keywords import listed
from fcm_estimators.io.text import DataSet, parsed_number

# write_fcs writes this keyword: numbers of parameters that the instrument compensated.
COMPENSATED_KEYWORD = "FCM_COMPENSATED_PARAMETERS"
# $PnTYPE of FCS 3.2 for channels that a spectral instrument has unmixed.
_UNMIXED = "UNMIXED_FLUORESCENCE"
_PERCENT = re.compile(r"DFC(\d+)TO(\d+)")
_DETECTOR = re.compile(r"FL ?(\d+)(?!\d).*", re.IGNORECASE)
_SCALE_WORDS = re.compile(r"[ _-]*\b(lin|log)\b", re.IGNORECASE)


def instrument_matrix(data: DataSet, names: Sequence[str]) -> pd.DataFrame | None:
    """Spillover matrix of ``$DFCiTOj``, percent of fluorescence i in detector j of FCS 2.0.

    Parameters
    ----------
    data : DataSet
        With the keywords.
    names : sequence of str, length M
        Unique ``$PnN`` names; detector i is the one whose name begins with "FL" and i.

    Returns
    -------
    DataFrame or None
        Labelled on both axes by `names`, 1 on the diagonal; None if there are no such keywords or
        all are 0.
    """
    detectors: dict[int, str] = {}
    for name in names:
        if found := _DETECTOR.fullmatch(name):
            detectors.setdefault(int(found[1]), name)
    shares = {}
    for keyword, text in data.keywords.items():
        place = _PERCENT.fullmatch(keyword)
        if place and int(place[1]) in detectors and int(place[2]) in detectors:
            percent = parsed_number(text)
            if percent is None:
                data.notes.add(f"${keyword} is {text!r}, which is no number; it was read as 0.")
            shares[int(place[1]), int(place[2])] = (percent or 0.0) / 100
    if not any(shares.values()):
        return None
    numbers = sorted({number for pair in shares for number in pair})
    labels = [detectors[number] for number in numbers]
    matrix = pd.DataFrame(np.eye(len(labels)), index=labels, columns=labels)
    for (source, target), share in shares.items():
        if source != target:
            matrix.loc[detectors[source], detectors[target]] = share
    return matrix


def is_older_form(data: DataSet, others: Sequence[DataSet]) -> bool:
    """Whether this is an FCS 2.0 data set, and an FCS 3 data set holds the same events."""
    return data.version == "2.0" and any(
        other.version != "2.0" and other.keywords.get("TOT") == data.keywords.get("TOT")
        for other in others
    )


def with_names_of(data: DataSet, others: Sequence[DataSet]) -> DataSet:
    """An FCS 3 data set with the names and the matrix of its FCS 2.0 twin, if there is one.

    Names are joined by detector: "FL1 Log" of FCS 2.0 is "FL1" of FCS 3. What the data set itself
    says is kept.
    """
    twins = [
        other
        for other in others
        if other.version == "2.0" and other.keywords.get("TOT") == data.keywords.get("TOT")
    ]
    if data.version == "2.0" or len(twins) != 1:
        return data
    theirs, ours = _parameters(twins[0]), _parameters(data)
    added: dict[str, str] = {}
    joined = []
    for number, (name, marker) in ours.items():
        same = [pair for pair in theirs.values() if _detector(pair[0]) == _detector(name)]
        alone = sum(_detector(other) == _detector(name) for other, _ in ours.values()) == 1
        if not marker and alone and len(same) == 1 and same[0][1] not in ("", same[0][0], name):
            added[f"P{number}S"] = same[0][1]
            joined.append(f"$P{number}S={same[0][1]} of {same[0][0]}")
    if joined:
        data.notes.add(
            f"the FCS {data.version} data set has no marker names there, so they are those of the "
            f"FCS 2.0 data set with the same events: {listed(joined)}."
        )
    matrix = instrument_matrix(twins[0], [name for name, _ in theirs.values()])
    if matrix is not None and not any(
        data.keywords.get(keyword) for keyword in ("SPILLOVER", "SPILL", "COMP")
    ):
        here = {_detector(name): name for name, _ in ours.values()}
        labels = [here.get(_detector(name), "") for name in matrix.columns]
        if all(labels) and len(set(labels)) == len(labels):
            values = [repr(float(value)) for value in matrix.to_numpy().ravel()]
            added["SPILLOVER"] = ",".join([str(len(labels)), *labels, *values])
            data.notes.add(
                "the spillover matrix is the $DFCiTOj of the FCS 2.0 data set with the same events."
            )
    pairs = (*data.pairs, *((f"${name}", value) for name, value in added.items()))
    return replace(data, pairs=pairs, keywords={**data.keywords, **added})


def _parameters(data: DataSet) -> dict[int, tuple[str, str]]:
    """Name and marker of each parameter."""
    found = {}
    for keyword, name in data.keywords.items():
        place = re.fullmatch(r"P(\d+)N", keyword)
        if place and name:
            number = int(place[1])
            found[number] = (name, data.keywords.get(f"P{number}S", ""))
    return dict(sorted(found.items()))


def _detector(name: str) -> str:
    """Name of a detector without the scale of its amplifier."""
    return _SCALE_WORDS.sub("", name).strip().upper()


def compensated_parameters(
    data: DataSet, names: Sequence[str], matrix: pd.DataFrame | None
) -> frozenset[str]:
    """Names of parameters that the instrument compensated or unmixed.

    By ``$DFCiTOj``, by the ``$PnTYPE`` of FCS 3.2, or by our record.
    """
    written = {n for n in data.keywords.get(COMPENSATED_KEYWORD, "").split(",") if n.isdecimal()}
    found = {
        name
        for n, name in enumerate(names, start=1)
        if str(n) in written or data.keywords.get(f"P{n}TYPE", "").upper() == _UNMIXED
    }
    if matrix is not None:
        numbers = {_number(name) for name in matrix.columns}
        by_matrix = {name for name in names if _number(name) in numbers}
        found |= by_matrix
        data.notes.add(
            f"$DFCiTOj is there, so the instrument compensated the integers of FCS 2.0; "
            f"{listed(sorted(by_matrix))} are recorded as compensated, unless the file is read "
            "with instrument_compensated=False."
        )
    return frozenset(found)


def _number(name: str) -> int | None:
    found = _DETECTOR.fullmatch(name)
    return int(found[1]) if found else None
