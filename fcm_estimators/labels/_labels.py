"""Label cells from a table of gates, from a channel of the FCS file, or from exported gates.

Gate membership is written to ``obsm["gates"]``, one column per gate; :func:`labels_from_gates`
makes one class per cell of it. Cells with unknown membership stay unlabelled (missing).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import anndata as ad
import numpy as np
import pandas as pd

from fcm_estimators.exceptions import InvalidInputError, MissingKeyError
from fcm_estimators.io.record import UNS_KEY
from fcm_estimators.io.write import raw_values, require_columns
from fcm_estimators.labels.membership import (
    PathName,
    as_membership,
    match_export,
    membership,
    per_sample,
    read_gate_table,
    record_within,
    refuse_overlap,
    require_own_data,
    rows_of,
    store_gates,
)


def gates_from_csv(
    adata: ad.AnnData,
    path: PathName | Mapping[str, PathName],
    *,
    event_column: str | None = None,
    gates: Sequence[str] | None = None,
    key_added: str = "gates",
) -> None:
    r"""Read expert gates from a table with one row per event and one 0/1 column per gate.

    Parameters
    ----------
    adata : AnnData
        Data from :func:`fcm_estimators.read_fcs`, with any subset of cells in any order.
    path : path or mapping of sample to path
        One CSV file if `adata` holds one sample, otherwise one CSV file per sample.
    event_column : str, optional
        Column with the position of the event in the file, counted from 0. Default: row i is event
        i, and the table must have a row for every event of the original FCS file.
    gates : sequence of str, optional
        Columns to read. Default: all except `event_column` and a plain row counter (0, 1, 2, ...).
    key_added : str, default "gates"
        Key of ``obsm`` to write to.

    Notes
    -----
    Sets ``adata.obsm[key_added]``: DataFrame with one bool column per gate. If a sample has no
    table, or its table lacks a gate, the column is pandas' "boolean" with NA for the cells of this
    sample.

    Raises
    ------
    InvalidInputError
        If a file is missing or not a CSV file, a gate column is not 0/1, rows and events do not
        match, an event repeats, a gate name contains "/", a single path is given for several
        samples, or `adata` is a view.
    MissingKeyError
        If a sample, `event_column` or a gate is missing.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import anndata as ad, numpy as np, pandas as pd
    >>> from fcm_estimators.labels import gates_from_csv
    >>> path = Path(tempfile.mkdtemp()) / "gates.csv"
    >>> _ = path.write_text("index,blast\n0,1\n1,0\n")
    >>> adata = ad.AnnData(
    ...     np.zeros((2, 1), dtype="float32"),
    ...     obs=pd.DataFrame({"sample": "a", "event": [1, 0]}, index=["a:1", "a:0"]),
    ... )
    >>> gates_from_csv(adata, path)
    >>> adata.obsm["gates"]["blast"].tolist()
    [False, True]
    """
    require_own_data(adata)
    require_columns(adata.obs, "obs", "sample", "event")
    tables = {}
    for sample, file in per_sample(adata, path, "path").items():
        table = read_gate_table(adata, sample, file, event_column)
        chosen = [gate for gate in table.columns if gates is None or gate in gates]
        tables[sample] = pd.DataFrame(
            {gate: as_membership(table[gate], file) for gate in chosen}, index=table.index
        )
    found = list(dict.fromkeys(str(gate) for table in tables.values() for gate in table))
    if missing := [gate for gate in gates or () if gate not in found]:
        raise MissingKeyError(
            f"No table has the gate(s) {', '.join(missing)}; of the gates asked for, the tables "
            f"have {', '.join(found) or 'none'}."
        )
    store_gates(adata, tables, found if gates is None else gates, key_added)


def gates_from_exports(
    adata: ad.AnnData,
    exports: Mapping[str, PathName | Mapping[str, PathName]],
    *,
    key_added: str = "gates",
) -> None:
    """Read expert gates from one exported FCS file per gate, as FlowJo writes them.

    An exported event is matched to the event of the sample that has exactly the same raw values
    in all shared channels, including Time. Of several equal events, the k-th is matched to the
    k-th.

    Parameters
    ----------
    adata : AnnData
        Data from :func:`fcm_estimators.read_fcs`, raw or with ``layers["raw"]``. It must have all
        events of the gates.
    exports : mapping of gate to path, or of gate to mapping of sample to path
        A path alone is enough if `adata` holds one sample. A file without events is an empty gate.
    key_added : str, default "gates"
        Key of ``obsm`` to write to.

    Notes
    -----
    Sets ``adata.obsm[key_added]``: DataFrame with one bool column per gate. If a sample has no file
    for a gate, the column is pandas' "boolean" with NA for its cells.

    Raises
    ------
    InvalidInputError
        If exported events are not in the sample (the message counts them), no channel is shared,
        no gate is given, a gate name contains "/", a single path is given for several samples, or
        `adata` is a view.
    MissingKeyError
        If a sample is missing.
    FcsError
        If a file cannot be read.
    ProcessingStateError
        If X is compensated or transformed and there is no ``layers["raw"]``.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import anndata as ad, numpy as np, pandas as pd
    >>> from fcm_estimators import write_fcs
    >>> from fcm_estimators.labels import gates_from_exports
    >>> adata = ad.AnnData(
    ...     np.array([[1.0], [2.0], [3.0]], dtype="float32"),
    ...     obs=pd.DataFrame({"sample": "a", "event": [0, 1, 2]}, index=list("xyz")),
    ...     var=pd.DataFrame({"channel": "FL1-A", "marker": "CD3", "range": 1024.0,
    ...                       "compensated": False, "transform": "none"}, index=["CD3"]),
    ... )
    >>> path = Path(tempfile.mkdtemp()) / "T.fcs"
    >>> write_fcs(adata[[1]].copy(), path)
    >>> gates_from_exports(adata, {"T": path})
    >>> adata.obsm["gates"]["T"].tolist()
    [False, True, False]
    """
    require_own_data(adata)
    require_columns(adata.obs, "obs", "sample", "event")
    require_columns(adata.var, "var", "channel", "marker")
    if not exports:
        raise InvalidInputError("exports is empty; give at least one gate and its file.")
    raw = raw_values(adata)
    in_seconds = bool(adata.uns.get(UNS_KEY, {}).get("time_scaled", False))
    columns: dict[str, dict[str, np.ndarray]] = {}
    for gate, paths in exports.items():
        for sample, file in per_sample(adata, paths, f"exports[{gate!r}]").items():
            inside = match_export(file, raw[rows_of(adata, sample)], adata.var, in_seconds)
            columns.setdefault(sample, {})[gate] = inside
    tables = {sample: pd.DataFrame(inside) for sample, inside in columns.items()}
    store_gates(adata, tables, exports, key_added)


def labels_from_gates(
    adata: ad.AnnData,
    gates: Mapping[str, str] | Sequence[str],
    *,
    gates_key: str = "gates",
    default: str | None = "other",
    within: str | None = None,
    overlap: Literal["error", "first"] = "error",
    key_added: str = "cell_type",
) -> None:
    """Give every cell one label according to its gates.

    Parameters
    ----------
    adata : AnnData
        Data with gate membership in ``obsm[gates_key]``.
    gates : mapping of gate to label, or sequence of gates
        Several gates may have the same label. In a sequence, the label is the name of the gate.
    gates_key : str, default "gates"
        Key of ``obsm`` with the membership.
    default : str or None, default "other"
        Label of cells outside all gates; None leaves them unlabelled.
    within : str, optional
        A parent gate, e.g. "intact". Cells outside it stay unlabelled. A model that is fitted on
        these labels reads only the cells inside, and asks for the gate at prediction.
    overlap : {"error", "first"}, default "error"
        What to do with cells in gates of different labels: raise an error, or take the label of
        the first of `gates` (put the most specific gate first).
    key_added : str, default "cell_type"
        Column of ``obs`` to write to.

    Notes
    -----
    Sets ``adata.obs[key_added]``: Categorical, categories in the order of `gates`, then `default`.
    With `within`, sets ``adata.uns["labelled_within"][key_added]``: ``gate`` and ``key``. It tells
    a model which cells it may judge.
    A cell whose membership in a gate is unknown (NA) is missing unless another gate labels it; it
    does not get `default`.

    Raises
    ------
    MissingKeyError
        If ``obsm[gates_key]`` or a gate is missing.
    InvalidInputError
        If gates of different labels overlap and `overlap` is "error" (the message counts the
        cells), no gate is given, membership is not boolean, `overlap` is unknown, or `adata` is a
        view.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd
    >>> from fcm_estimators.labels import labels_from_gates
    >>> adata = ad.AnnData(np.zeros((3, 1), dtype="float32"))
    >>> adata.obsm["gates"] = pd.DataFrame(
    ...     {"intact": [True, True, False], "blast": [True, False, False]}, index=adata.obs_names
    ... )
    >>> labels_from_gates(adata, ["blast"], within="intact")
    >>> adata.obs["cell_type"].astype(object).fillna("unlabelled").tolist()
    ['blast', 'other', 'unlabelled']
    """
    require_own_data(adata)
    if overlap not in ("error", "first"):
        raise InvalidInputError(f'overlap must be "error" or "first", got {overlap!r}.')
    if isinstance(gates, str):
        raise InvalidInputError(f"gates must be a list or a mapping, got the string {gates!r}.")
    names = dict(gates) if isinstance(gates, Mapping) else {gate: gate for gate in gates}
    if not names:
        raise InvalidInputError("gates is empty; name at least one gate.")
    inside, unknown = {}, np.zeros(adata.n_obs, dtype=bool)
    for gate, (values, known) in membership(adata, gates_key, names).items():
        inside[gate] = values
        unknown |= ~known
    allowed = np.ones(adata.n_obs, dtype=bool)
    if within is not None:
        # Cells with unknown membership in the parent count as outside: they stay unlabelled.
        allowed = membership(adata, gates_key, [within])[within][0]
        inside = {gate: values & allowed for gate, values in inside.items()}
    if overlap == "error":
        refuse_overlap(inside, names)
    categories = list(dict.fromkeys([*names.values(), *([] if default is None else [default])]))
    codes = np.full(adata.n_obs, -1)
    for gate, values in inside.items():
        codes[values & (codes < 0)] = categories.index(names[gate])
    if default is not None:
        codes[(codes < 0) & allowed & ~unknown] = categories.index(default)
    adata.obs[key_added] = pd.Categorical.from_codes(codes, categories=pd.Index(categories))
    record_within(adata, key_added, within, gates_key)


def labels_from_channel(
    adata: ad.AnnData,
    channel: str,
    names: Mapping[int, str],
    *,
    unlabelled: Iterable[int] = (),
    key_added: str = "cell_type",
) -> None:
    """Take labels from a channel of the FCS file that holds population codes.

    Parameters
    ----------
    adata : AnnData
        Data from :func:`fcm_estimators.read_fcs`, raw or with ``layers["raw"]``.
    channel : str
        Name of the channel, as in ``var_names`` or ``var["channel"]``.
    names : mapping of int to str
        Label of every code; several codes may share one.
    unlabelled : iterable of int, default ()
        Codes of cells without a label.
    key_added : str, default "cell_type"
        Column of ``obs`` to write to.

    Notes
    -----
    Sets ``adata.obs[key_added]``: Categorical, categories in the order of `names`, missing for
    `unlabelled` codes. Sets ``adata.var.loc[channel, "kind"]`` to "other", so that the models do
    not use the channel as a marker.

    Raises
    ------
    MissingKeyError
        If the channel is missing.
    InvalidInputError
        If a code is in neither `names` nor `unlabelled` or is not a whole number (the message
        lists these codes), `names` is empty, several channels have this name, or `adata` is a
        view.
    ProcessingStateError
        If X is compensated or transformed and there is no ``layers["raw"]``.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd
    >>> from fcm_estimators.labels import labels_from_channel
    >>> adata = ad.AnnData(
    ...     np.array([[1.0], [2.0], [0.0]], dtype="float32"),
    ...     var=pd.DataFrame({"channel": "gate", "kind": "fluorescence", "compensated": False,
    ...                       "transform": "none"}, index=["population"]),
    ... )
    >>> labels_from_channel(adata, "population", {1: "T", 2: "B"}, unlabelled=[0])
    >>> adata.obs["cell_type"].astype(object).fillna("unlabelled").tolist()
    ['T', 'B', 'unlabelled']
    >>> adata.var["kind"].tolist()
    ['other']
    """
    require_own_data(adata)
    require_columns(adata.var, "var", "channel", "kind")
    if not names:
        raise InvalidInputError("names is empty; give the label of every code.")
    matches = adata.var_names == channel
    if not matches.any():
        matches = (adata.var["channel"].astype(str) == channel).to_numpy()
    if matches.sum() != 1:
        raise (InvalidInputError if matches.any() else MissingKeyError)(
            f"{matches.sum()} channels are called {channel!r}; the channels are "
            f"{', '.join(adata.var['channel'])}, the markers are {', '.join(adata.var_names)}."
        )
    codes = raw_values(adata)[:, int(np.flatnonzero(matches)[0])]
    found, counts = np.unique(codes, return_counts=True)
    known = {*names, *unlabelled}
    if unknown := [
        f"{code:g} ({count} cells)"
        for code, count in zip(found, counts, strict=True)
        if code not in known
    ]:
        shown = ", ".join(unknown[:10]) + (", ..." if len(unknown) > 10 else "")
        raise InvalidInputError(
            f"Channel {channel!r} holds codes without a name: {shown}. Name them in names=, list "
            "them in unlabelled=, or check that this channel holds whole-number codes."
        )
    categories = pd.Index(dict.fromkeys(names.values()))
    adata.obs[key_added] = pd.Categorical(
        pd.Series(codes).map({float(code): label for code, label in names.items()}),
        categories=categories,
    )
    record_within(adata, key_added, None, "")
    # A saved file has a categorical here, which may lack "other"; text takes any value.
    kinds = adata.var["kind"].astype(str)
    kinds[matches] = "other"
    adata.var["kind"] = kinds
