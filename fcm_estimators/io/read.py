"""Read one or many FCS files into one AnnData."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Literal

import anndata as ad

from fcm_estimators.io.opened import open_fcs


def read_fcs(
    path: str | PathLike[str] | Sequence[str | PathLike[str]],
    *,
    sample_names: str | Sequence[str] | None = None,
    dataset: int | Literal["all"] | None = None,
    join: Literal["inner", "outer"] | None = None,
    scale_time: bool = False,
    instrument_compensated: bool = True,
    marker_aliases: Mapping[str, str] | None = None,
    keep_keywords: Sequence[str] | None = None,
) -> ad.AnnData:
    """Read one FCS file, or a cohort of them, as raw values.

    Values are on the linear scale that FCS defines: log amplifiers (``$PnE``) of integers and gains
    (``$PnG``) are decoded; floats are linear whatever ``$PnE`` says. The gain is not applied to
    Time. Nothing is compensated or transformed. Whatever is guessed, dropped or replaced is told
    in a UserWarning that names the file and the keyword.

    Parameters
    ----------
    path : path or sequence of paths
        FCS 2.0, 3.0, 3.1 or 3.2 files in list mode (.fcs, .lmd), also packed (.fcs.gz). The first
        file sets the order of the markers; markers of the other files are matched to it by name.
    sample_names : str or sequence of str, optional
        One unique name per file. Default: the file name without its extension, which files that
        only differ in it keep ("tube.001", "tube.002").
    dataset : int or "all", optional
        Which data set to read of a file that holds several, counted from 0. "all" reads each as a
        sample of its own, named by the file and the number ("tube_0", "tube_1"), without FCS 2.0
        data sets that repeat the events of an FCS 3 data set. Default: the only
        FCS 3 data set if the others are FCS 2.0 (Beckman .lmd), otherwise the first; a warning
        lists them all. An FCS 3 data set without marker names takes those of the FCS 2.0 data set
        with the same events.
    join : {"inner", "outer"}, optional
        What to do if the files have different markers. Default: raise an error. "inner" keeps the
        markers that all files have. "outer" keeps all markers and fills those that a file lacks
        with NaN, which the models refuse.
    scale_time : bool, default False
        Multiply Time by ``$TIMESTEP``, which gives seconds. False keeps the values of the file.
    instrument_compensated : bool, default True
        Record integers of FCS 2.0 with ``$DFCiTOj`` as compensated by the instrument, and the
        matrix in ``uns["fcs"]``. False if the instrument did not apply it.
    marker_aliases : mapping of str to str, optional
        Old to new marker names, applied before files are compared, e.g. ``{"SY41": "Syto 41"}``.
    keep_keywords : sequence of str, optional
        Keywords to keep besides the technical ones, in any case, with or without ``$``. Names,
        places, dates and identifiers are kept only if they are listed here.

    Returns
    -------
    AnnData
        Cells x markers, X float32.

        - ``obs_names``: ``"{sample}:{event}"``; ``obs["sample"]``: Categorical in the order of the
          files; ``obs["event"]``: int64, position in the file, counted from 0.
        - ``var_names``: the marker (``$PnS``) or, if there is none, the channel (``$PnN``). A
          marker measured in several channels becomes ``"marker (channel)"``. A repeated or empty
          channel gets its number: ``"FL1 [P4]"`` or ``"P4"``.
        - ``var``: ``channel``; ``marker`` (``""`` if none); ``kind`` ("scatter", "fluorescence",
          "mass", "time", "other"); ``range`` (``$PnR`` on the scale of X, the largest of all
          files; floats may exceed it, NaN if unknown); ``compensated`` (True for channels named
          "Comp-...", "FJComp-..." or "<...>", unmixed by their ``$PnTYPE``, or compensated by the
          instrument); ``transform``
          ("none").
        - ``uns["fcs"]``: per-sample keywords, number of events and labelled spillover
          (:func:`get_spillover`), whose channels are named as in ``var["channel"]``;
          ``time_scaled``; ``instrument_compensated``, the channels that the instrument
          compensated; ``fil_sha256``, a digest of ``$FIL``, by which workspaces are matched;
          ``amplifiers``, how integers of log amplifiers and gains were decoded.

    Raises
    ------
    FcsError
        If a file is missing, empty, not FCS, truncated, inconsistent or without events, or if it
        has no ``$TIMESTEP`` although `scale_time` is set.
    PanelMismatchError
        If the markers of the files differ and `join` is not given, if the files share no marker,
        or if a marker is compensated in some files only.
    InvalidInputError
        If there are no paths, sample names repeat or do not match the paths, `join` is unknown, an
        alias makes two markers equal, or `dataset` does not exist.
    MissingKeyError
        If no file has a keyword that `keep_keywords` asks for.

    References
    ----------
    Spidlen et al., Data File Standard for Flow Cytometry, version FCS 3.1, Cytometry A 77A (2010).

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import anndata as ad, numpy as np, pandas as pd
    >>> from fcm_estimators import read_fcs, write_fcs
    >>> made = ad.AnnData(
    ...     np.arange(6, dtype="float32").reshape(3, 2),
    ...     obs=pd.DataFrame({"sample": "tube", "event": [0, 1, 2]}, index=list("abc")),
    ...     var=pd.DataFrame({"channel": ["FSC-A", "FL1-A"], "marker": ["", "CD3"]},
    ...                      index=["FSC-A", "CD3"]).assign(range=1024.0, transform="none",
    ...                                                     compensated=False),
    ... )
    >>> path = Path(tempfile.mkdtemp()) / "tube.fcs"
    >>> write_fcs(made, path)
    >>> adata = read_fcs(path)
    >>> adata.var["kind"].tolist(), adata.obs_names.tolist()
    (['scatter', 'fluorescence'], ['tube:0', 'tube:1', 'tube:2'])
    """
    return open_fcs(
        path,
        sample_names=sample_names,
        dataset=dataset,
        join=join,
        scale_time=scale_time,
        instrument_compensated=instrument_compensated,
        marker_aliases=marker_aliases,
        keep_keywords=keep_keywords,
    ).read()
