"""Named trees of gates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from os import PathLike
from typing import Self

import numpy as np
import pandas as pd
from anndata import AnnData

from fcm_estimators._checks import listed, require_key
from fcm_estimators.exceptions import InvalidInputError, MarkerMismatchError
from fcm_estimators.gating._export import write_gatingml
from fcm_estimators.gating._import import flowjo_samples, read_flowjo, read_gatingml
from fcm_estimators.gating._kinds import Gate
from fcm_estimators.gating._tracing import traced_gates
from fcm_estimators.gating._uns import gates_from_uns, gates_to_uns
from fcm_estimators.gating.coordinates import column_of, coordinates_of
from fcm_estimators.gating.gates import ROOT, BooleanGate, PolygonGate
from fcm_estimators.gating.membership import members_of


class GatingTree:
    """Gates with their parents, applied from the root to the leaves.

    Parameters
    ----------
    gates : sequence of PolygonGate, RectangleGate, EllipsoidGate and BooleanGate
        In any order.
    spillover : DataFrame, optional
        Matrix that an imported file gives for its gates on compensated values. Compensate the
        data with it: ``Compensation(spillover=tree.spillover)``. Default: each sample has its own
        matrix.

    Attributes
    ----------
    gates : dict
        Name to gate. Parents and operands come before the gates that need them.

    Raises
    ------
    InvalidInputError
        A name occurs twice, a parent or operand is missing, or gates need each other in a circle.

    Examples
    --------
    >>> from fcm_estimators.datasets import simulate_cohort
    >>> from fcm_estimators.gating import GatingTree
    >>> from fcm_estimators.preprocessing import Compensation
    >>> adata = Compensation().fit_transform(simulate_cohort(n_samples=1, n_cells=500))
    >>> tree = GatingTree.from_adata(adata, sample="patient1_d0")
    >>> list(tree.gates)[:3]
    ['syto', 'singlets', 'intact']
    >>> bool((tree.apply(adata)["cd19"] == adata.obsm["gates"]["cd19"]).all())
    True
    """

    def __init__(self, gates: Sequence[Gate], *, spillover: pd.DataFrame | None = None) -> None:
        self.spillover = spillover
        names = [gate.name for gate in gates]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise InvalidInputError(f"Gate names occur more than once: {listed(twice)}.")
        for gate in gates:
            absent = [name for name in _needs(gate) if name not in names]
            if absent:
                raise InvalidInputError(
                    f"Gate {gate.name!r} needs {listed(absent)}, but the tree has {listed(names)}."
                )
        self.gates = _ordered({gate.name: gate for gate in gates})

    def __len__(self) -> int:
        return len(self.gates)

    def __iter__(self) -> Iterator[Gate]:
        return iter(self.gates.values())

    def __getitem__(self, name: str) -> Gate:
        require_key(name, self.gates, "the gate")
        return self.gates[name]

    def __repr__(self) -> str:
        lines = [f"{'  ' * len(self.ancestors(name))}{name}" for name in self._depth_first()]
        return "\n".join([f"GatingTree of {len(self)} gates", *lines])

    def ancestors(self, name: str) -> list[str]:
        """Parent of a gate, its parent and so on, the nearest first."""
        chain, parent = [], self[name].parent
        while parent != ROOT:
            chain.append(parent)
            parent = self.gates[parent].parent
        return chain

    @property
    def leaves(self) -> list[str]:
        """Gates that are not the parent of another gate."""
        parents = {gate.parent for gate in self}
        return [name for name in self.gates if name not in parents]

    def renamed(self, aliases: Mapping[str, str]) -> GatingTree:
        """Return the tree with other gate names.

        Parameters
        ----------
        aliases : mapping
            Name to new name. Gates without an entry keep their names.

        Raises
        ------
        InvalidInputError
            Two gates would have the same name.
        """

        def new(name: str) -> str:
            return aliases.get(name, name)

        return GatingTree(
            [
                replace(
                    gate,
                    name=new(gate.name),
                    parent=new(gate.parent),
                    operands=tuple(new(o) for o in gate.operands),
                    complements=tuple(new(o) for o in gate.complements),
                )
                if isinstance(gate, BooleanGate)
                else replace(gate, name=new(gate.name), parent=new(gate.parent))
                for gate in self
            ],
            spillover=self.spillover,
        )

    def on_markers(self, adata: AnnData) -> GatingTree:
        """Return the tree with axes named by marker instead of channel ($PnN).

        Other software names the channels of a gate; AnnData and models name markers.

        Parameters
        ----------
        adata : AnnData
            With ``var["channel"]``. Axes that are not in the data keep their names.
        """

        def new(name: str) -> str:
            column = column_of(adata, name)
            return name if column is None else str(adata.var_names[column])

        gates: list[Gate] = []
        for gate in self:
            if isinstance(gate, PolygonGate):
                gates.append(replace(gate, x=new(gate.x), y=new(gate.y)))
            elif isinstance(gate, BooleanGate):
                gates.append(gate)
            else:
                gates.append(replace(gate, markers=tuple(map(new, gate.markers))))
        return GatingTree(gates, spillover=self.spillover)

    def apply(self, adata: AnnData) -> pd.DataFrame:
        """Find the cells inside each gate and inside its parent.

        If the data and a gate have different transforms, the coordinates are converted. If they
        differ in compensation, an error is raised, because no conversion is exact.

        Parameters
        ----------
        adata : AnnData
            Cells with ``var["transform"]`` and ``var["compensated"]``, as ``read_fcs`` and the
            preprocessing record them. Without ``var["transform"]``, only gates with the transform
            "none" can be applied.

        Returns
        -------
        DataFrame of bool
            Rows as ``adata``, a column per gate.

        Raises
        ------
        MarkerMismatchError
            The data lack a marker of a gate.
        ProcessingStateError
            Data and gate differ in compensation, or ``var["transform"]`` is missing and a gate
            needs it.
        """
        self._require_markers(adata)
        members = members_of(self, adata.n_obs, partial(coordinates_of, adata))
        return pd.DataFrame(members, index=adata.obs_names)

    @classmethod
    def from_gatingml(
        cls, path: str | PathLike[str], *, gates: Sequence[str] | None = None
    ) -> Self:
        """Read the gates of a Gating-ML 2.0 file, through FlowKit (extra ``gating``).

        Polygons, ranges, rectangles, boxes, ellipsoids, quadrants (as boxes) and boolean gates
        are read, on the scales flin, flog, fasinh, logicle and hyperlog. Axes are named by channel
        ($PnN), which ``apply`` looks up in ``var["channel"]``. Gates that refer to the matrix of
        the FCS file get the compensation "fcs". Gates that refer to a matrix in the Gating-ML file
        get "spillover", and the tree keeps that matrix as ``spillover``.

        Parameters
        ----------
        path : path
        gates : sequence of str, optional
            Import only these, with their parents and operands. If several gates have the same
            name, name one by its path, "parent > name". "/" in names becomes "|".

        Returns
        -------
        GatingTree

        Raises
        ------
        InvalidInputError
            The file cannot be read, or gates are not supported; the message names all of them.
            Not supported are ratios of channels, outlines that cross themselves, gates that take
            the cells outside of their outline, and axes compensated in different ways.
        MissingKeyError
            A gate of ``gates`` is not in the file.
        """
        found = read_gatingml(path, gates)
        return cls(found.gates, spillover=found.spillover)

    @classmethod
    def from_flowjo(
        cls,
        path: str | PathLike[str],
        *,
        sample: str | None = None,
        gates: Sequence[str] | None = None,
    ) -> Self:
        """Read the gates of one sample of a FlowJo 10 workspace (.wsp), through FlowKit.

        FlowJo sorts events into bins of its display when it applies polygons, so its counts can
        differ by a few events at the edges. FlowJo's biexponential axes are read by FlowKit's
        table.

        Parameters
        ----------
        path : path
        sample : str, optional
            Name of the sample in the workspace; :meth:`flowjo_samples` lists them. Default: the
            only sample.
        gates : sequence of str, optional
            As in :meth:`from_gatingml`.

        Returns
        -------
        GatingTree

        Raises
        ------
        InvalidInputError
            As in :meth:`from_gatingml`.
        MissingKeyError
            As in :meth:`from_gatingml`, or the workspace does not have the sample.
        """
        found = read_flowjo(path, sample, gates)
        return cls(found.gates, spillover=found.spillover)

    @staticmethod
    def flowjo_samples(path: str | PathLike[str]) -> list[str]:
        """Names of the samples of a FlowJo workspace."""
        return flowjo_samples(path)

    def to_gatingml(
        self, path: str | PathLike[str], *, channels: AnnData | Mapping[str, str] | None = None
    ) -> None:
        """Write a Gating-ML 2.0 file, which FlowJo and Bioconductor read.

        Compensated gates refer to the matrix of the FCS file.

        Parameters
        ----------
        path : path
        channels : AnnData or mapping, optional
            Channel ($PnN) of each marker, which Gating-ML uses as the name of an axis: data with
            ``var["channel"]``, or a mapping. Default: axes keep the names of the markers.

        Raises
        ------
        InvalidInputError
            Gating-ML does not have the scale of a gate (FlowJo's scales).
        """
        if isinstance(channels, AnnData):
            require_key("channel", channels.var, "the column of adata.var")
            channels = dict(
                zip(channels.var_names, channels.var["channel"].astype(str), strict=True)
            )
        write_gatingml(self, path, channels or {})

    @classmethod
    def from_adata(cls, adata: AnnData, *, key: str = "gates", sample: str) -> Self:
        """Read the tree of one sample from ``adata.uns[key]``.

        Parameters
        ----------
        adata : AnnData
            With polygons as parallel arrays, as :func:`~fcm_estimators.datasets.simulate_cohort`
            and :meth:`to_uns` write them.
        key : str, default "gates"
        sample : str

        Raises
        ------
        MissingKeyError
            ``adata.uns`` does not have the key, or the entry does not have the sample.
        """
        return cls(gates_from_uns(adata, key, sample))

    @staticmethod
    def to_uns(trees: Mapping[str, GatingTree]) -> dict[str, np.ndarray]:
        """Return the gates of several samples as parallel arrays, for h5ad and zarr files.

        Parameters
        ----------
        trees : mapping of sample to GatingTree

        Returns
        -------
        dict of ndarray
            Arrays with one entry per gate: ``sample``, ``name``, ``parent``, ``x``, ``y``,
            ``transform_x``, ``transform_y``, ``compensation``. The vertices of gate i are
            ``vertices[vertex_offsets[i]:vertex_offsets[i + 1]]``. Boolean gates have no vertices.
            They have ``operation``, ``operands`` and ``complements``, with names separated by "/";
            polygons have "" there.

        Raises
        ------
        InvalidInputError
            A gate is a rectangle or an ellipsoid, which these arrays cannot hold. Use
            :meth:`to_gatingml` for those.
        """
        return gates_to_uns(trees)

    @classmethod
    def from_labels(
        cls,
        adata: AnnData,
        membership: pd.DataFrame,
        planes: Mapping[str, tuple[str, str, str]],
        *,
        trim: float = 3.0,
    ) -> Self:
        """Trace convex polygons around the cells of each gate.

        Parameters
        ----------
        adata : AnnData
            Cells of one sample; the polygons are in the units of ``X``.
        membership : DataFrame of bool
            Rows as ``adata``, a column per gate.
        planes : mapping of gate to (parent, x, y)
            Parent ("" for none) and markers of each gate.
        trim : float, default 3.0
            Leave out cells farther than this many SD from the mean (Mahalanobis distance).

        Returns
        -------
        GatingTree

        Raises
        ------
        MissingKeyError
            A gate has no column in ``membership``.
        MarkerMismatchError
            The data lack a marker.
        InvalidInputError
            A gate has fewer than three cells, or its cells lie on a line.
        """
        return cls(traced_gates(adata, membership, planes, trim))

    def _depth_first(self, parent: str = ROOT) -> list[str]:
        return [
            name
            for child, gate in self.gates.items()
            if gate.parent == parent
            for name in (child, *self._depth_first(child))
        ]

    def _require_markers(self, adata: AnnData) -> None:
        wanted: dict[str, str] = {}
        for gate in self:
            if not isinstance(gate, BooleanGate):
                wanted |= dict.fromkeys(gate.markers, gate.name)
        missing = [f"{m!r} (gate {g!r})" for m, g in wanted.items() if column_of(adata, m) is None]
        if missing:
            raise MarkerMismatchError(
                f"The data lack marker(s) {', '.join(missing)}; present are "
                f"{listed(adata.var_names)}. Rename adata.var_names or leave out those gates."
            )


def _needs(gate: Gate) -> list[str]:
    """Names of the parent and the operands of a gate."""
    operands = gate.operands if isinstance(gate, BooleanGate) else ()
    return [name for name in (gate.parent, *operands) if name != ROOT]


def _ordered(gates: dict[str, Gate]) -> dict[str, Gate]:
    """Sort gates so that each comes after its parent and its operands."""
    done: dict[str, Gate] = {}
    waiting = dict(gates)
    while waiting:
        ready = [n for n, g in waiting.items() if all(need in done for need in _needs(g))]
        if not ready:
            raise InvalidInputError(f"Gates need each other in a circle: {listed(waiting)}.")
        done |= {name: waiting.pop(name) for name in ready}
    return done
