"""Named trees of gates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from os import PathLike
from typing import Any, Self

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy.spatial import ConvexHull, QhullError

from fcm_estimators._checks import listed, require_key
from fcm_estimators.exceptions import InvalidInputError, MarkerMismatchError, MissingKeyError
from fcm_estimators.gating._coordinates import column_of, places_of, plane_of
from fcm_estimators.gating._export import write_gatingml
from fcm_estimators.gating._gates import ROOT, BooleanGate, PolygonGate
from fcm_estimators.gating._import import flowjo_samples, read_flowjo, read_gatingml
from fcm_estimators.gating._shapes import EllipsoidGate, RectangleGate

Gate = PolygonGate | RectangleGate | EllipsoidGate | BooleanGate

# What is text in the parallel arrays; a gate's name holds no "/".
_UNS_TEXT = (
    "name",
    "parent",
    "x",
    "y",
    "transform_x",
    "transform_y",
    "compensation",
    "operation",
    "operands",
    "complements",
)


class GatingTree:
    """Gates with their parents, applied from the root to the leaves.

    Parameters
    ----------
    gates : sequence of PolygonGate and BooleanGate
        In any order.

    spillover : DataFrame, default None
        Matrix with which data have to be compensated for gates on compensated values, where a
        file gave one: ``Compensation(spillover=tree.spillover)``. None: each sample's own.

    Attributes
    ----------
    gates : dict
        Name to gate, parents and operands before the gates that need them.

    Raises
    ------
    InvalidInputError
        Names that occur twice, a parent or operand that is not there, a circle.

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
        """Parents of a gate, the nearest first."""
        chain, parent = [], self[name].parent
        while parent != ROOT:
            chain.append(parent)
            parent = self.gates[parent].parent
        return chain

    @property
    def leaves(self) -> list[str]:
        """Gates that are nobody's parent."""
        parents = {gate.parent for gate in self}
        return [name for name in self.gates if name not in parents]

    def renamed(self, aliases: Mapping[str, str]) -> GatingTree:
        """Return the tree with other gate names.

        Parameters
        ----------
        aliases : mapping
            Name -> new name; gates without entry keep theirs.

        Raises
        ------
        InvalidInputError
            Two gates would have one name.
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
        """Return the tree with axes named by marker where they are named by channel ($PnN).

        Gates of other software name channels, an AnnData and a model name markers.

        Parameters
        ----------
        adata : AnnData
            With ``var["channel"]``. Axes it does not have keep their names.
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
        """Cells inside each gate, each within its parent.

        Coordinates are converted where the data are in another transform than the gate. Data
        whose compensation is not that of the gate are refused, since no conversion is exact.

        Parameters
        ----------
        adata : AnnData
            Cells with ``var["transform"]`` and ``var["compensated"]`` as ``read_fcs`` and the
            preprocessing record them; without these columns values are taken to be in the
            gates' own coordinates only where these are "none" too.

        Returns
        -------
        DataFrame of bool, rows as ``adata``, a column per gate

        Raises
        ------
        MarkerMismatchError
            A gate on a marker that the data lack.
        ProcessingStateError
            Data compensated and the gate not, or the other way round.
        """
        self._require_markers(adata)

        members = self.members(adata.n_obs, partial(places_of, adata))
        return pd.DataFrame(members, index=adata.obs_names)

    def members(
        self, n_cells: int, places: Callable[[Any, np.ndarray], np.ndarray]
    ) -> dict[str, np.ndarray]:
        """Cells inside each gate, from a function that says where they lie.

        Parameters
        ----------
        n_cells : int
        places : callable
            Gate and rows (ndarray of int) -> where these cells lie in the gate's units, (n, axes).

        Returns
        -------
        dict of gate to ndarray of bool, shape (n_cells,)
        """
        everything = np.ones(n_cells, dtype=bool)
        inside: dict[str, np.ndarray] = {}
        for name, gate in self.gates.items():
            parent = inside.get(gate.parent, everything)
            if isinstance(gate, BooleanGate):
                inside[name] = parent & gate.combine([inside[o] for o in gate.operands])
                continue
            rows = np.flatnonzero(parent)
            inside[name] = np.zeros(n_cells, dtype=bool)
            inside[name][rows] = gate.contains(places(gate, rows))
        return inside

    # -- files --------------------------------------------------------------------------------

    @classmethod
    def from_gatingml(
        cls, path: str | PathLike[str], *, gates: Sequence[str] | None = None
    ) -> Self:
        """Gates of a Gating-ML 2.0 file, through FlowKit (extra ``gating``).

        Polygons, ranges, rectangles, boxes, ellipsoids, quadrants (as boxes) and boolean gates;
        scales flin, flog, fasinh, logicle and hyperlog. Axes are named by channel ($PnN), which
        ``apply`` finds in ``var["channel"]``. Gates on values compensated with the file's matrix
        or a matrix of their own have compensation "spillover"; a matrix of their own is in
        ``spillover``.

        Parameters
        ----------
        path : path
        gates : sequence of str, optional
            Import these only, with their parents and operands. A gate whose name occurs more than
            once is called by its path, "parent > name"; "/" in names becomes "|".

        Returns
        -------
        GatingTree

        Raises
        ------
        InvalidInputError
            Not readable; gates that are not supported, all of them named: ratios of channels,
            outlines that cross themselves, cells outside of an outline, axes compensated in
            different ways.
        MissingKeyError
            No such gate.
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
        """Gates of one sample of a FlowJo 10 workspace (.wsp), through FlowKit.

        FlowJo sorts events into bins of its display when it applies polygons, so its counts can
        differ by a few events at the edges. FlowJo's biexponential axes are read by FlowKit's
        table.

        Parameters
        ----------
        path : path
        sample : str, optional
            Name of the sample in the workspace; :meth:`flowjo_samples` lists them. Default: the
            only one.
        gates : sequence of str, optional
            As in :meth:`from_gatingml`.

        Returns
        -------
        GatingTree

        Raises
        ------
        InvalidInputError, MissingKeyError
            As :meth:`from_gatingml`; no such sample.
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
            Channel ($PnN) of each marker, as Gating-ML needs it: data whose ``var["channel"]``
            tells, or a mapping. Default: markers are named as they are.

        Raises
        ------
        InvalidInputError
            A scale that Gating-ML does not have (FlowJo's).
        """
        if isinstance(channels, AnnData):
            require_key("channel", channels.var, "the column of adata.var")
            channels = dict(
                zip(channels.var_names, channels.var["channel"].astype(str), strict=True)
            )
        write_gatingml(self, path, channels or {})

    # -- AnnData ------------------------------------------------------------------------------

    @classmethod
    def from_adata(cls, adata: AnnData, *, key: str = "gates", sample: str) -> Self:
        """Tree of one sample from ``adata.uns[key]``.

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
            No such key or sample.
        """
        require_key(key, adata.uns, "the key in adata.uns")
        entry = adata.uns[key]
        entry = entry.get("gates", entry)
        samples = np.array([str(name) for name in entry["sample"]])
        require_key(sample, dict.fromkeys(samples), "the sample")
        offsets, vertices = np.asarray(entry["vertex_offsets"]), np.asarray(entry["vertices"])
        gates: list[Gate] = []
        for i in np.flatnonzero(samples == sample):
            text = {k: str(v[i]) for k, v in entry.items() if k in _UNS_TEXT}
            operation, *names = (text.pop(k, "") for k in ("operation", "operands", "complements"))
            if operation:
                operands, complements = (tuple(filter(None, n.split("/"))) for n in names)
                gates.append(
                    BooleanGate(text["name"], operation, operands, text["parent"], complements)  # type: ignore[arg-type]
                )
            else:
                outline = vertices[offsets[i] : offsets[i + 1]]
                gates.append(PolygonGate(**text, vertices=outline))  # type: ignore[arg-type]
        return cls(gates)

    @staticmethod
    def to_uns(trees: Mapping[str, GatingTree]) -> dict[str, np.ndarray]:
        """Parallel arrays of the gates of several samples, which h5ad and zarr can hold.

        Parameters
        ----------
        trees : mapping of sample to GatingTree

        Returns
        -------
        dict of ndarray
            One entry per gate: ``sample``, ``name``, ``parent``, ``x``, ``y``, ``transform_x``,
            ``transform_y``, ``compensation``; polygon i is
            ``vertices[vertex_offsets[i]:vertex_offsets[i + 1]]``. Boolean gates have no vertices
            but an ``operation``, ``operands`` and ``complements``, names separated by "/"; all are
            "" for polygons.

        Raises
        ------
        InvalidInputError
            Rectangles and ellipsoids, which these arrays cannot hold; see :meth:`to_gatingml`.
        """
        found = [(s, g) for s, tree in trees.items() for g in tree]
        others = [g.name for _, g in found if isinstance(g, (RectangleGate, EllipsoidGate))]
        if others:
            raise InvalidInputError(
                f"Gates {listed(dict.fromkeys(others))} are no polygons; the arrays in uns hold "
                "polygons and boolean gates only. Keep the tree as Gating-ML (to_gatingml)."
            )
        out = {
            k: np.array([_uns_text(getattr(g, k, "")) for _, g in found], dtype=object)
            for k in _UNS_TEXT
        }
        outlines = [getattr(g, "vertices", np.empty((0, 2))) for _, g in found]
        out["sample"] = np.array([str(s) for s, _ in found], dtype=object)
        out["vertex_offsets"] = np.cumsum([0, *map(len, outlines)], dtype=np.int64)
        out["vertices"] = np.concatenate([np.empty((0, 2)), *outlines])
        return out

    def to_records(self) -> list[dict[str, Any]]:
        """Gates as a list of dicts of text, numbers and lists, for JSON."""
        return [
            {
                "type": type(gate).__name__,
                **{
                    k: v.tolist()
                    if isinstance(v, np.ndarray)
                    else list(v)
                    if k == "operands"
                    else v
                    for k, v in vars(gate).items()
                },
            }
            for gate in self
        ]

    @classmethod
    def from_records(cls, records: Sequence[Mapping[str, Any]]) -> Self:
        """Undo :meth:`to_records`."""
        kinds: dict[str, Any] = {
            kind.__name__: kind for kind in (PolygonGate, RectangleGate, EllipsoidGate, BooleanGate)
        }
        return cls(
            [
                kinds[record["type"]](**{k: v for k, v in record.items() if k != "type"})
                for record in records
            ]
        )

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
            Cells farther than this many SD from the mean (Mahalanobis distance) are left out.

        Returns
        -------
        GatingTree

        Raises
        ------
        MissingKeyError, MarkerMismatchError
            A gate without column, or a marker that is not there.
        InvalidInputError
            Fewer than three cells, or cells on a line.
        """
        missing = [name for name in planes if name not in membership]
        if missing:
            raise MissingKeyError(
                f"Gates {listed(missing)} have no column; there is {listed(membership.columns)}."
            )
        gates = []
        for name, (parent, x, y) in planes.items():
            points, state = plane_of(adata, x, y)
            hull = _trimmed_hull(name, points[membership[name].to_numpy(dtype=bool)], trim)
            gates.append(PolygonGate(name, x, y, hull, parent, **state))
        return cls(gates)

    # -- inside -------------------------------------------------------------------------------

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


def _uns_text(value: str | tuple[str, ...]) -> str:
    return value if isinstance(value, str) else "/".join(value)


def _needs(gate: Any) -> list[str]:
    """Gates that have to be known before this one."""
    operands = gate.operands if isinstance(gate, BooleanGate) else ()
    return [name for name in (gate.parent, *operands) if name != ROOT]


def _ordered(gates: dict[str, Gate]) -> dict[str, Gate]:
    """Gates in an order in which each finds what it needs before it."""
    done: dict[str, Gate] = {}
    waiting = dict(gates)
    while waiting:
        ready = [n for n, g in waiting.items() if all(need in done for need in _needs(g))]
        if not ready:
            raise InvalidInputError(f"Gates need each other in a circle: {listed(waiting)}.")
        done |= {name: waiting.pop(name) for name in ready}
    return done


def _trimmed_hull(name: str, points: np.ndarray, trim: float) -> np.ndarray:
    if len(points) >= 3:
        apart = points - points.mean(0)
        covariance = np.cov(points.T)
        if np.linalg.matrix_rank(covariance) == 2:
            distance = np.einsum("ni,ij,nj->n", apart, np.linalg.inv(covariance), apart)
            points = points[distance <= trim**2]
    try:
        return points[ConvexHull(points).vertices]
    except (QhullError, ValueError) as error:
        raise InvalidInputError(
            f"Gate {name!r} has {len(points)} cells, which span no area; three or more that do "
            "not lie on a line are needed."
        ) from error
