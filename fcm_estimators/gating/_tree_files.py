"""Trees in files of other software: the methods of GatingTree that read and write them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Literal, Self

import pandas as pd
from anndata import AnnData

from fcm_estimators.gating._exchange import on_exchange_scales, with_exchange_scales
from fcm_estimators.gating._gatingml import read_gatingml
from fcm_estimators.gating._gatingml_writer import write_gatingml
from fcm_estimators.gating._kinds import Gate
from fcm_estimators.gating._workspace_writer import write_workspace
from fcm_estimators.gating._workspaces import flowjo_samples, read_flowjo


class TreeFiles:
    """Part of :class:`GatingTree`."""

    spillover: pd.DataFrame | None

    if TYPE_CHECKING:

        def __init__(
            self, gates: Sequence[Gate], *, spillover: pd.DataFrame | None = None
        ) -> None: ...

        def __iter__(self) -> Iterator[Gate]: ...

        def apply(self, adata: AnnData) -> pd.DataFrame: ...

    @classmethod
    def from_gatingml(
        cls,
        path: str | PathLike[str],
        *,
        gates: Sequence[str] | None = None,
        sample: str | None = None,
        unreadable: Literal["error", "skip"] = "error",
    ) -> Self:
        """Read the gates of a Gating-ML 2.0 file.

        Polygons, ranges, rectangles, boxes, ellipsoids, quadrants (as boxes) and boolean gates are
        read, on the scales flin, flog, fasinh, logicle and hyperlog and on ratios of two channels.
        Axes are named by channel ($PnN), which ``apply`` looks up in ``var["channel"]``. Each axis
        has the compensation that it refers to: "fcs" for the matrix of the FCS file, "spillover"
        for a matrix of the Gating-ML file, which the tree keeps as ``spillover``. Time is in
        seconds (``$TIMESTEP``).

        Names are those that :meth:`to_gatingml` or Cytobank wrote beside the ids, or else the ids.
        A population of Cytobank has its name; a gate of the same name becomes "name (gate)". An
        outline that crosses itself becomes its parts, by the even-odd rule, and their union.

        Parameters
        ----------
        path : path
        gates : sequence of str, optional
            Import only these, with their parents and operands. If several gates have the same
            name, name one by its path, "parent > name". "/" in names becomes "|".
        sample : str, optional
            Name of the FCS file, for gates that Cytobank tailored to files.
        unreadable : {"error", "skip"}, default "error"
            What to do about gates that cannot be read: raise an error, or leave them out with
            those that need them, and warn.

        Returns
        -------
        GatingTree

        Raises
        ------
        InvalidInputError
            The file cannot be read, or gates are not supported; the message names all of them.
            Not supported are matrices that are not square, and shapes that reach the bounds of a
            bounded scale, other than ranges.
        MissingKeyError
            A gate of ``gates`` is not in the file.

        Warns
        -----
        UserWarning
            Gates were left out, renamed because their name is not unique, or are tailored to files.
        """
        found = read_gatingml(path, gates, sample, unreadable)
        return cls(found.gates, spillover=found.spillover)

    @classmethod
    def from_flowjo(
        cls,
        path: str | PathLike[str],
        *,
        sample: str | None = None,
        gates: Sequence[str] | None = None,
        unreadable: Literal["error", "skip"] = "error",
    ) -> Self:
        """Read the gates of one sample of a FlowJo 10 workspace (.wsp).

        Gates are drawn on the scale that the workspace has for the channel as it is named in the
        gate, and on compensated values if the name has the prefix or suffix of the matrix. Time
        is in seconds. An ellipse becomes a polygon of 128 vertices, which is how FlowJo gates, a
        gate on the events outside of an outline the outline and its complement. FlowJo sorts
        events into bins of its display when it applies polygons, so its counts can differ by a few
        events at the edges. Its biexponential axes need FlowKit (extra ``gating``).

        Parameters
        ----------
        path : path
        sample : str, optional
            Name of the sample in the workspace, its file name, the path of its file, or the
            ``$FIL`` of the file, with any ending and in any case; :meth:`flowjo_samples` lists the
            names. Default: the only sample.
        gates, unreadable
            As in :meth:`from_gatingml`.

        Returns
        -------
        GatingTree

        Raises
        ------
        InvalidInputError
            As in :meth:`from_gatingml`. Not supported are scales that FlowJo does not document
            (miltenyi, hyperlog), gates of other kinds (CurlyQuad), and matrices that are not
            square.
        MissingKeyError
            As in :meth:`from_gatingml`, or the workspace does not have the sample, or has several
            of this name.

        Warns
        -----
        UserWarning
            As in :meth:`from_gatingml`.
        """
        found = read_flowjo(path, sample, gates, unreadable)
        return cls(found.gates, spillover=found.spillover)

    @staticmethod
    def flowjo_samples(path: str | PathLike[str]) -> list[str]:
        """Names of the samples of a FlowJo workspace."""
        return flowjo_samples(path)

    def to_gatingml(
        self,
        path: str | PathLike[str],
        *,
        channels: AnnData | Mapping[str, str] | None = None,
        cytobank: bool = False,
    ) -> None:
        """Write a Gating-ML 2.0 file for the raw values of FCS files.

        Axes with the compensation "spillover" refer to the matrix of the tree, which is written,
        or else to that of the FCS file. Time is written in seconds. Gates on FlowJo's scales, which
        Gating-ML does not have, are drawn on others (:meth:`on_exchange_scales`), and a warning
        says how many cells of ``channels`` change sides.

        Parameters
        ----------
        path : path
        channels : AnnData or mapping, optional
            Channel ($PnN) of each marker, which Gating-ML uses as the name of an axis: data with
            ``var["channel"]``, or a mapping. Default: axes keep the names of the markers. Gates on
            Time in other units than seconds need the data, which have the ``$TIMESTEP``.
        cytobank : bool, default False
            Write the form of Cytobank, which CytoML reads: gates without parents, and for each
            population a "GateSet", the intersection of its gate and all gates above it. Boolean
            gates other than "and" have no such form.

        Raises
        ------
        InvalidInputError
            More than 0.1 % of the cells of ``channels`` would change sides of a gate, ``cytobank``
            is set and there is a boolean gate other than "and", or the ``$TIMESTEP`` is unknown.
        MarkerMismatchError
            The data of ``channels`` lack a marker of a gate.

        Warns
        -----
        UserWarning
            Gates were drawn on other scales.
        """
        adata = channels if isinstance(channels, AnnData) else None
        tree = with_exchange_scales(self, adata)
        write_gatingml(tree, path, channels, cytobank=cytobank)

    def on_exchange_scales(self, adata: AnnData | None = None) -> tuple[Self, pd.DataFrame]:
        """Draw the gates on scales that Gating-ML has.

        Outlines on FlowJo's biexponential, logarithmic and linear axes are drawn again on the
        closest logicle, log and linear scales. Straight edges bend there, so they get more
        vertices.

        Parameters
        ----------
        adata : AnnData, optional
            Cells to compare: raw data of the sample of these gates. Default: none.

        Returns
        -------
        tree : GatingTree
        changed : DataFrame
            One row per gate: ``inside`` (cells in the gate), ``changed`` (cells that change sides)
            and ``fraction`` of all cells that change sides. Without rows if there are no data.

        Raises
        ------
        InvalidInputError
            More than 0.1 % of the cells change sides of a gate.
        """
        return on_exchange_scales(self, adata)

    def to_flowjo(
        self,
        path: str | PathLike[str],
        fcs: str | PathLike[str],
        *,
        channels: AnnData | Mapping[str, str] | None = None,
    ) -> None:
        """Write a FlowJo workspace of one FCS file, through FlowKit (experimental).

        FlowKit writes polygons, rectangles and ranges. The workspace is read again and applied to
        the file, and it is only kept if every gate has the same events. It was not tried in FlowJo.

        Parameters
        ----------
        path : path
        fcs : path
            The FCS file of these gates, to which the workspace will refer by name.
        channels : AnnData or mapping, optional
            As for :meth:`to_gatingml`. Default: the markers of the FCS file.

        Raises
        ------
        InvalidInputError
            A gate is of a kind, or on a scale, that FlowKit does not write, FlowKit is missing, or
            what it wrote has other events.
        """
        write_workspace(self, path, fcs, channels)
