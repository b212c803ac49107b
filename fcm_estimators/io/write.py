"""Write one sample of an AnnData to an FCS file."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from fcm_estimators._checks import rows_by_sample
from fcm_estimators.exceptions import InvalidInputError, MissingKeyError, ProcessingStateError
from fcm_estimators.io.beckman import COMPENSATED_KEYWORD
from fcm_estimators.io.channels import ADDED_KEYWORD
from fcm_estimators.io.decode import decode
from fcm_estimators.io.encode import save_fcs, standard_name
from fcm_estimators.io.kinds import is_compensated
from fcm_estimators.io.record import INSTRUMENT_KEY, UNS_KEY, get_keywords, get_spillover
from fcm_estimators.io.segment import Segment, open_segment
from fcm_estimators.keys import NOT_ANALYSED, ClassKeys, GateKeys


def write_fcs(
    adata: ad.AnnData,
    path: str | PathLike[str],
    *,
    sample: str | None = None,
    source: str | PathLike[str] | None = None,
    dataset: int | None = None,
    key: str | None = None,
) -> None:
    """Write the raw events of one sample, and its predictions as parameters, as FCS 3.1.

    Events are written in their original order as float32 scale values, so reading the file again
    gives the same numbers. The result of a classifier adds a parameter ``{key}`` with the class
    code (0 = not analysed, 1, 2, ... = the categories in order; the keyword ``{KEY}_CLASSES`` lists
    them) and a parameter ``{key}_{class}`` with the probability of each class, 0 where a cell was
    not analysed. The result of a polygon regressor adds a parameter ``{key}_{gate}`` for each
    gate, 1 inside and 0 outside. :func:`read_fcs` gives these parameters the kind "other", so they
    never become markers.

    Parameters
    ----------
    adata : AnnData
        Data from :func:`read_fcs`, in any order of cells, raw or with ``layers["raw"]``.
    path : path
        File to write. It is replaced in one step, and only after everything has succeeded.
    sample : str, optional
        Which sample to write; not needed if `adata` holds one sample.
    source : path, optional
        The original FCS file. If given, all events, parameters and keywords of its data set are
        written letter by letter, also keywords that name a patient; events that `adata` lacks get
        class code 0. Keywords of the structure (offsets, widths, amplifiers, gains) are written
        anew, those without a value are left out with a warning.
        Default: the file holds the events and markers of `adata` and the keywords in
        ``uns["fcs"]``.
    dataset : int, optional
        Which data set of `source`, as in :func:`read_fcs`.
    key : str, optional
        Key of the classes, ``obs[key]`` and, if present, ``obsm[f"{key}_proba"]``, or of the gates,
        ``obsm[f"{key}_membership"]``. Default: "reluformer" and "predicted_gates" if `adata` has
        them; otherwise only events are written.

    Raises
    ------
    MissingKeyError
        If both ``obs[key]`` and the membership are missing, or if `sample` or a column that
        :func:`read_fcs` writes is missing.
    ProcessingStateError
        If X is compensated or transformed and there is no ``layers["raw"]``.
    InvalidInputError
        If several samples are present and none is chosen, an event repeats, `source` is not the
        file of these events, a parameter name is already used, probabilities are not a DataFrame
        with the classes as columns, or the file cannot be written.
    FcsError
        If `source` cannot be read.

    Notes
    -----
    Log amplifiers and gains are decoded, so ``$PnE`` is 0,0 and there is no ``$PnG``.
    ``$ORIGINALITY`` says "Appended" or "NonDataModified" if the values of the source are those
    written, otherwise "DataModified". Commas in ``$PnN`` become "_". Markers that
    a sample lacks (all NaN, from ``join="outer"``) are not written. An ANALYSIS segment is not
    copied. A Time in seconds gets ``$TIMESTEP`` 1.

    References
    ----------
    Spidlen et al., Data File Standard for Flow Cytometry, version FCS 3.1, Cytometry A 77A (2010).

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import anndata as ad, numpy as np, pandas as pd
    >>> from fcm_estimators import read_fcs, write_fcs
    >>> adata = ad.AnnData(
    ...     np.array([[5.0], [7.0]], dtype="float32"),
    ...     obs=pd.DataFrame({"sample": "a", "event": [1, 0],
    ...                       "reluformer": pd.Categorical(["blast", "other"])}, index=["x", "y"]),
    ...     var=pd.DataFrame({"channel": "FL1-A", "marker": "CD3", "range": 1024.0,
    ...                       "compensated": False, "transform": "none"}, index=["CD3"]),
    ... )
    >>> path = Path(tempfile.mkdtemp()) / "a.fcs"
    >>> write_fcs(adata, path)
    >>> read_fcs(path).to_df().to_numpy().tolist()
    [[7.0, 2.0], [5.0, 1.0]]
    """
    target = Path(path)
    name, rows = _sample_rows(adata, sample)
    class_keys = ClassKeys() if key is None else ClassKeys(key)
    gate_keys = GateKeys() if key is None else GateKeys(key)
    if (
        key is not None
        and class_keys.label not in adata.obs
        and gate_keys.membership not in adata.obsm
    ):
        raise MissingKeyError(
            f"adata has neither obs[{key!r}] nor obsm[{gate_keys.membership!r}]; obs has "
            f"{', '.join(adata.obs.columns)}. Run annotate first, or choose another key."
        )
    added, codebook = _class_parameters(adata, rows, class_keys)
    gates = _gate_parameters(adata, rows, gate_keys)
    added = pd.concat([added, gates], axis=1)
    events = adata.obs["event"].to_numpy()[rows]
    if source is None:
        block, parameters, keywords = _from_adata(adata, name, rows)
    else:
        origin = Path(source)
        if target.exists() and origin.exists() and target.samefile(origin):
            raise InvalidInputError(f"{target} is the source itself; write to another file.")
        segment = open_segment(origin, dataset)
        block, parameters, keywords = _from_source(adata, rows, events, segment)
        # Cells that only the source has keep 0: not analysed.
        whole = np.zeros((segment.n_events, added.shape[1]), dtype=np.float32)
        whole[events] = added.to_numpy()
        added = pd.DataFrame(whole, columns=added.columns)
    taken = [p["N"] for p in parameters]
    if clash := [column for column in added.columns if column in taken]:
        raise InvalidInputError(
            f"The file already has parameters named {', '.join(clash)}. Choose another key, or use "
            "the original file as source."
        )
    number = len(parameters)
    parameters += [{"N": column, "R": "1"} for column in added.columns]
    if len(added.columns):
        numbers = [n for n in _value(keywords, ADDED_KEYWORD).split(",") if n]
        numbers += [str(number + 1 + i) for i in range(added.shape[1])]
        keywords[ADDED_KEYWORD] = ",".join(numbers)
        if keywords["$ORIGINALITY"] == "NonDataModified":
            keywords["$ORIGINALITY"] = "Appended"
    if codebook:
        parameters[number]["R"] = str(len(codebook))
        classes = ", ".join(f"{code}={label}" for code, label in enumerate(codebook))
        keywords[f"{added.columns[0].upper()}_CLASSES"] = classes
    save_fcs(target, np.hstack([block, added.to_numpy(dtype=np.float32)]), parameters, keywords)


def raw_values(adata: ad.AnnData) -> np.ndarray:
    """Return the values of the files: ``layers["raw"]``, or X if it is not processed.

    Parameters
    ----------
    adata : AnnData
        Data from :func:`read_fcs`, raw or preprocessed.

    Returns
    -------
    ndarray of float32, shape (cells, markers)

    Raises
    ------
    ProcessingStateError
        If X is compensated or transformed and there is no ``layers["raw"]``.

    Examples
    --------
    >>> import anndata as ad, numpy as np
    >>> from fcm_estimators.io.write import raw_values
    >>> adata = ad.AnnData(np.ones((2, 1), dtype="float32"))
    >>> adata.var["channel"], adata.var["transform"], adata.var["compensated"] = "A", "none", False
    >>> raw_values(adata).shape
    (2, 1)
    """
    if "raw" in adata.layers:
        return _dense(adata.layers["raw"])
    require_columns(adata.var, "var", "channel", "transform", "compensated")
    var = adata.var
    exported = var["channel"].astype(str).map(is_compensated).astype(bool)
    exported |= var["channel"].astype(str).isin(_by_instrument(adata))
    processed = (var["transform"].astype(str) != "none") | (var["compensated"] & ~exported)
    if processed.any():
        raise ProcessingStateError(
            f"X is compensated or transformed for {', '.join(var.index[processed])} and there is "
            'no layers["raw"]. Use the data as read, or keep the layer "raw" in preprocessing.'
        )
    return _dense(adata.X)


def shared_channels(segment: Segment, var: pd.DataFrame) -> list[tuple[int, int]]:
    """Pair parameters of the file with the columns of the data that measure the same.

    A pair agrees in channel and marker. The columns that remain are matched by marker alone (the
    channel names of a cohort are those of its first file), or by channel alone if the file names
    no marker.
    """
    columns = list(zip(var["channel"].astype(str), var["marker"].astype(str), strict=True))
    pairs = {
        i: columns.index((c.name, c.marker))
        for i, c in enumerate(segment.channels)
        if (c.name, c.marker) in columns
    }
    taken = set(pairs.values())
    for i, c in enumerate(segment.channels):
        if i in pairs or (c.marker and is_compensated(c.name)):
            continue
        place, wanted = (1, c.marker) if c.marker else (0, c.name)
        free = [j for j, names in enumerate(columns) if names[place] == wanted and j not in taken]
        if len(free) == 1:
            pairs[i] = free[0]
            taken.add(free[0])
    return sorted(pairs.items())


def require_columns(frame: pd.DataFrame, where: str, *columns: str) -> None:
    """Raise MissingKeyError, naming `where`, if `frame` lacks any of `columns`."""
    if missing := [column for column in columns if column not in frame]:
        raise MissingKeyError(
            f"adata.{where} lacks {', '.join(missing)}; it has {', '.join(frame.columns) or 'no'} "
            "columns. Read the data with fcm_estimators.read_fcs."
        )


def _dense(values: object) -> np.ndarray:
    dense = values.toarray() if hasattr(values, "toarray") else values
    return np.asarray(dense, dtype=np.float32)


def _sample_rows(adata: ad.AnnData, sample: str | None) -> tuple[str, np.ndarray]:
    """Name of the sample, and its rows in the order of the original file."""
    require_columns(adata.obs, "obs", "sample", "event")
    present = [str(name) for name in adata.obs["sample"].unique()]
    if sample is None and len(present) == 1:
        sample = present[0]
    if sample is None:
        raise InvalidInputError(
            f"adata holds the samples {', '.join(present) or 'none'}; choose one with sample=."
        )
    if sample not in present:
        raise MissingKeyError(f"Sample {sample!r} is not among {', '.join(present) or 'none'}.")
    rows = rows_by_sample(adata, "sample")[sample]
    events = adata.obs["event"].to_numpy()[rows]
    if len(np.unique(events)) != len(events):
        raise InvalidInputError(
            f'Sample {sample!r} has {len(events) - len(np.unique(events))} repeated obs["event"]; '
            "every event can be written only once."
        )
    return sample, rows[np.argsort(events)]


def _class_parameters(
    adata: ad.AnnData, rows: np.ndarray, keys: ClassKeys
) -> tuple[pd.DataFrame, list[str]]:
    """Class code and probabilities of the rows, and the class that each code means."""
    key = keys.label
    if key not in adata.obs:
        return pd.DataFrame(index=range(len(rows))), []
    labels = pd.Categorical(adata.obs[key])
    classes = [c for c in labels.categories if c != NOT_ANALYSED]
    codes = pd.Index(classes).get_indexer(pd.Index(labels[rows])) + 1
    name = _parameter_name(key)
    columns = {name: codes.astype(np.float32)}
    proba_key = keys.probabilities
    if proba_key in adata.obsm:
        proba = adata.obsm[proba_key]
        names = list(map(str, classes))
        found = list(map(str, proba.columns)) if isinstance(proba, pd.DataFrame) else None
        if found is None or sorted(found) != sorted(names):
            raise InvalidInputError(
                f"obsm[{proba_key!r}] has the columns {found}; expected a DataFrame with one "
                f"column for each of {names}."
            )
        proba = proba.set_axis(found, axis=1)
        for label in names:
            values = proba[label].to_numpy(dtype=np.float32)[rows]
            column = _parameter_name(f"{key}_{label}")
            if column in columns:
                raise InvalidInputError(f"Two parameters would be named {column!r}; rename them.")
            columns[column] = np.where(codes == 0, np.float32(0), values)
    return pd.DataFrame(columns), [NOT_ANALYSED, *map(str, classes)]


def _gate_parameters(adata: ad.AnnData, rows: np.ndarray, keys: GateKeys) -> pd.DataFrame:
    """A column of 0 and 1 for every gate; 0 for cells that were not gated."""
    name = keys.membership
    if name not in adata.obsm:
        return pd.DataFrame(index=range(len(rows)))
    inside = adata.obsm[name]
    if not isinstance(inside, pd.DataFrame):
        raise InvalidInputError(
            f"obsm[{name!r}] is a {type(inside).__name__}; expected a DataFrame with a True/False "
            "column per gate."
        )
    return pd.DataFrame(
        {
            _parameter_name(f"{keys.key}_{gate}"): inside[gate]
            .astype("boolean")
            .fillna(False)
            .to_numpy(dtype=np.float32)[rows]
            for gate in inside
        },
        index=range(len(rows)),
    )


def _from_adata(
    adata: ad.AnnData, sample: str, rows: np.ndarray
) -> tuple[np.ndarray, list[dict[str, str]], dict[str, str]]:
    require_columns(adata.var, "var", "channel", "marker", "range")
    block = raw_values(adata)[rows]
    measured = ~np.isnan(block).all(axis=0)
    var = adata.var[measured]
    parameters = [
        _parameter(channel, marker, span)
        for channel, marker, span in zip(var["channel"], var["marker"], var["range"], strict=True)
    ]
    names = [parameter["N"] for parameter in parameters]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise InvalidInputError(
            f'var["channel"] repeats {", ".join(repeated)}; FCS needs unique names.'
        )
    for values, parameter in zip(block[:, measured].T, parameters, strict=True):
        if parameter["R"] == "nan":  # the range was unknown; it is a hint only
            parameter["R"] = format(max(float(np.nanmax(values)), 0.0), ".12g")
    entries = {"$ORIGINALITY": "DataModified"}
    if UNS_KEY not in adata.uns:
        return block[:, measured], parameters, entries
    entries |= {standard_name(k): v for k, v in get_keywords(adata, sample).items()}
    if adata.uns[UNS_KEY].get("time_scaled", False):
        entries["$TIMESTEP"] = "1"
    spillover = get_spillover(adata, sample)
    if spillover is not None:
        labels = [_parameter_name(label) for label in spillover.columns]
        numbers = [repr(float(value)) for value in spillover.to_numpy().ravel()]
        entries["$SPILLOVER"] = ",".join([str(len(labels)), *labels, *numbers])
    _record_compensated(entries, var["channel"].isin(_by_instrument(adata)).to_numpy())
    return block[:, measured], parameters, entries


def _by_instrument(adata: ad.AnnData) -> list[str]:
    """Channels whose values the instrument compensated before it wrote the file."""
    return [str(name) for name in adata.uns.get(UNS_KEY, {}).get(INSTRUMENT_KEY, [])]


def _record_compensated(entries: dict[str, str], flags: np.ndarray) -> None:
    if flags.any():
        entries[COMPENSATED_KEYWORD] = ",".join(str(i + 1) for i in np.flatnonzero(flags))


def _value(entries: Mapping[str, str], name: str) -> str:
    """Value of a keyword in any case, ``""`` if there is none."""
    return next((value for key, value in entries.items() if key.upper() == name), "")


def _from_source(
    adata: ad.AnnData, rows: np.ndarray, events: np.ndarray, segment: Segment
) -> tuple[np.ndarray, list[dict[str, str]], dict[str, str]]:
    """Events, parameters and keywords of the source, once the events of `adata` match it."""
    if len(events) and (events[0] < 0 or events[-1] >= segment.n_events):
        raise InvalidInputError(
            f"{segment.path.name} has {segment.n_events} events, but adata refers to event "
            f"{events[-1]}. The events did not come from this file."
        )
    block = np.empty((segment.n_events, len(segment.channels)), dtype=np.float32)
    decode(segment, block, range(len(segment.channels)), scale_time=False)
    require_columns(adata.var, "var", "channel", "marker")
    # Time is not compared, because adata may have it in seconds.
    shared = [
        (i, j) for i, j in shared_channels(segment, adata.var) if segment.channels[i].kind != "time"
    ]
    raw = raw_values(adata)
    same = [np.array_equal(block[events, i], raw[rows, j], equal_nan=True) for i, j in shared]
    if not same or not all(same):
        differing = [
            segment.channels[i].name for (i, _), ok in zip(shared, same, strict=True) if not ok
        ]
        raise InvalidInputError(
            f"{segment.path.name} is not the file that the events came from: "
            f"{'values differ in ' + ', '.join(differing) if shared else 'no channel is shared'}."
        )
    original = {name.upper(): value for name, value in reversed(segment.pairs)}
    parameters = [
        _parameter(channel.name, channel.marker, channel.range) for channel in segment.channels
    ]
    for number, (channel, parameter) in enumerate(
        zip(segment.channels, parameters, strict=True), start=1
    ):
        if channel.linear or channel.kind == "time":
            parameter["R"] = original.get(f"$P{number}R", "").strip() or parameter["R"]
        if channel.marker and original.get(f"$P{number}S", "").strip() == channel.marker:
            parameter["S"] = original[f"$P{number}S"]
        gain = segment.keywords.get(f"P{number}G")
        if gain:
            # Readers do not apply the gain to Time, so it is kept; other channels are decoded.
            parameter["G"] = gain if channel.kind == "time" else "1.0"
    entries = dict(reversed(segment.pairs))
    entries = {name: entries[name] for name, _ in segment.pairs}
    same_data = "D" not in segment.layout.kinds and all(
        channel.linear and not segment.exceeds_float32(index)
        for index, channel in enumerate(segment.channels)
    )
    for name in [name for name in entries if name.upper() == "$ORIGINALITY"]:
        del entries[name]
    entries["$ORIGINALITY"] = "NonDataModified" if same_data else "DataModified"
    flags = np.array([name in segment.compensated for name in segment.channel_names])
    _record_compensated(entries, flags)
    return block, parameters, entries


def _parameter(channel: str, marker: str, span: float) -> dict[str, str]:
    described = {"N": _parameter_name(str(channel)), "R": format(span, ".12g")}
    return described | ({"S": str(marker)} if marker else {})


def _parameter_name(name: str) -> str:
    # $SPILLOVER separates names by commas, so FCS forbids commas in names.
    return name.replace(",", "_")
