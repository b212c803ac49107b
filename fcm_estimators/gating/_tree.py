"""Named trees of gates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Self

import numpy as np
import pandas as pd
from anndata import AnnData

from fcm_estimators._checks import listed, require_key
from fcm_estimators.exceptions import InvalidInputError, MarkerMismatchError
from fcm_estimators.gating._kinds import Gate
from fcm_estimators.gating._order import needs_of, ordered
from fcm_estimators.gating._tracing import traced_gates
from fcm_estimators.gating._tree_files import TreeFiles
from fcm_estimators.gating._uns import gates_from_uns, gates_to_uns, matrix_from_uns
from fcm_estimators.gating.axis_values import AxisValues
from fcm_estimators.gating.coordinates import absent_markers, checked_matrix, on_data
from fcm_estimators.gating.gates import ROOT, BooleanGate, PolygonGate
from fcm_estimators.gating.membership import members_of


class GatingTree(TreeFiles):
    """Gates with their parents, applied from the root to the leaves.

    Parameters
    ----------
    gates : sequence of PolygonGate, RectangleGate, EllipsoidGate and BooleanGate
        In any order.
    spillover : DataFrame, optional
        Matrix that an imported file gives for its gates on compensated values, which ``apply``
        uses. Default: each sample has its own matrix.

    Attributes
    ----------
    gates : dict
        Name to gate. Parents and operands come before the gates that need them.

    Raises
    ------
    InvalidInputError
        A name occurs twice, a parent or operand is missing, gates need each other in a circle, or
        ``spillover`` is not a square, labelled, invertible matrix.

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
        self.spillover = None if spillover is None else checked_matrix(spillover)
        counts = Counter(gate.name for gate in gates)
        twice = sorted(name for name, count in counts.items() if count > 1)
        if twice:
            raise InvalidInputError(f"Gate names occur more than once: {listed(twice)}.")
        for gate in gates:
            absent = [name for name in needs_of(gate) if name not in counts]
            if absent:
                raise InvalidInputError(
                    f"Gate {gate.name!r} needs {listed(absent)}, but the tree has {listed(counts)}."
                )
        self.gates = ordered({gate.name: gate for gate in gates})

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

    def on_axes(self, names: Mapping[str, str]) -> GatingTree:
        """Return the tree with other names of its axes, such as those of markers in a file.

        Parameters
        ----------
        names : mapping
            Name of an axis to its new name. Axes without an entry keep their names.
        """

        def new(name: str) -> str:
            return names.get(name, name)

        gates: list[Gate] = []
        for gate in self:
            if isinstance(gate, PolygonGate):
                gates.append(replace(gate, x=new(gate.x), y=new(gate.y)))
            elif isinstance(gate, BooleanGate):
                gates.append(gate)
            else:
                gates.append(replace(gate, markers=tuple(map(new, gate.markers))))
        return GatingTree(gates, spillover=self.spillover)

    def on_markers(self, adata: AnnData) -> GatingTree:
        """Return the tree with axes named by marker instead of channel ($PnN).

        Other software names the channels of a gate; AnnData and models name markers.

        Parameters
        ----------
        adata : AnnData
            With ``var["channel"]``. Axes that are not in the data keep their names.
        """
        drawn = [gate for gate in self if not isinstance(gate, BooleanGate)]
        return self.on_axes({m: on_data(adata, m) for gate in drawn for m in gate.markers})

    def apply(self, adata: AnnData) -> pd.DataFrame:
        """Find the cells inside each gate and inside its parent.

        Every axis gets the values on which it was drawn. If the data and a gate have different
        transforms, the coordinates are converted. If they differ in compensation, the values are
        computed from raw ones (``X`` or ``layers["raw"]``), with the matrix of the tree or, if it
        has none, of the sample's file. Time in seconds is compared with the ``$TIMESTEP`` of the
        file.

        Parameters
        ----------
        adata : AnnData
            Cells with ``var["transform"]`` and ``var["compensated"]``, as ``read_fcs`` and the
            preprocessing record them. Raw data need no preprocessing. Without
            ``var["transform"]``, only gates with the transform "none" can be applied.

        Returns
        -------
        DataFrame of bool
            Rows as ``adata``, a column per gate.

        Raises
        ------
        MarkerMismatchError
            The data lack a marker of a gate.
        ProcessingStateError
            Data and gate differ in compensation or in its matrix and there are no raw values, there
            is no matrix, ``var["transform"]`` is missing and a gate needs it, or Time is in seconds
            and the data have no record of their files.

        Warns
        -----
        UserWarning
            The tree has a matrix, and it is not recorded with which one the data were compensated.
        """
        self._require_markers(adata)
        values = AxisValues(adata, self, self.spillover)
        return pd.DataFrame(members_of(self, adata.n_obs, values), index=adata.obs_names)

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
        return cls(
            gates_from_uns(adata, key, sample), spillover=matrix_from_uns(adata, key, sample)
        )

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
            polygons have "" there. If the axes of a polygon differ in compensation, it has both,
            separated by "/". If a tree has a matrix: ``spillover_sample``, ``spillover_size``,
            ``spillover_channels`` and ``spillover_values``, one matrix after the other.

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
        missing = [
            f"{a!r} (gate {g!r})" for m, g in wanted.items() for a in absent_markers(adata, m)
        ]
        if missing:
            raise MarkerMismatchError(
                f"The data lack marker(s) {', '.join(missing)}; present are "
                f"{listed(adata.var_names)}. Rename adata.var_names or leave out those gates."
            )
