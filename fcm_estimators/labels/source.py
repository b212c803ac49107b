"""Sources of the expert's labels of a file: tables, Gating-ML files, FlowJo workspaces."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pandas as pd
from anndata import AnnData

from fcm_estimators._checks import listed
from fcm_estimators.exceptions import InvalidInputError, MarkerMismatchError, MissingKeyError
from fcm_estimators.gating import GatingTree
from fcm_estimators.gating.gate_files import TREE_ENDINGS, names_in, tree_of_sample
from fcm_estimators.io.record import file_digests
from fcm_estimators.keys import EXPERT_GATES
from fcm_estimators.labels._deepest import labels_of_deepest
from fcm_estimators.labels._labels import gates_from_csv, labels_from_gates


@dataclass(frozen=True)
class LabelSource:
    """Source of the expert's labels of a file.

    Parameters
    ----------
    label_key : str, default "cell_type"
        Column of ``obs`` for the labels. Without ``classes`` or ``labels="deepest"`` the data must
        already have it.
    gates : path, optional
        A table (.csv) of one file, a directory with a table ``{sample}.csv`` per file
        (:func:`~fcm_estimators.labels.gates_from_csv`), a Gating-ML file (.xml), or a FlowJo
        workspace (.wsp) that lists the files. In names of their gates "/" is "|". Samples of a
        workspace are found by name, file name and ``$FIL``, with any ending and in any case.
        Default: use the gates in ``obsm["gates"]``.
    only : sequence of str, default ()
        Gates to read, with their parents and operands; those of ``classes`` and ``within`` are
        read, too. Default: all. If one of all cannot be read, and ``classes`` or ``within`` name
        gates, those are read and a warning says so.
    also : sequence of str, default ()
        Gates that are read whatever else is, such as that of ``subset_key``.
    labels : {"classes", "deepest"}, default "classes"
        "deepest": the label of a cell is the name of its deepest gate, of those of ``only`` if
        there are any. Needs a Gating-ML file or a workspace.
    classes : mapping of gate to label, optional
        Label of each gate (:func:`~fcm_estimators.labels.labels_from_gates`).
    within : str, optional
        Parent gate; cells outside it stay unlabelled, and a model trained on these labels neither
        reads nor judges them (:func:`~fcm_estimators.labels.labels_from_gates`).
    default : str or None, default "other"
        Label of cells outside all gates.
    event_column : str, optional
        Column of the tables with the event numbers.
    """

    label_key: str = "cell_type"
    gates: str | None = None
    classes: Mapping[str, str] = field(default_factory=dict)
    within: str | None = None
    default: str | None = "other"
    event_column: str | None = None
    only: Sequence[str] = ()
    also: Sequence[str] = ()
    labels: Literal["classes", "deepest"] = "classes"

    def __post_init__(self) -> None:
        if self.labels not in ("classes", "deepest"):
            raise InvalidInputError(f'labels must be "classes" or "deepest", got {self.labels!r}.')
        if self.labels == "deepest" and self.classes:
            raise InvalidInputError(
                'labels="deepest" gives every gate its name as label; leave out classes.'
            )
        if Path(str(self.gates)).suffix.lower() in TREE_ENDINGS:
            self._rename_slashes()

    def _rename_slashes(self) -> None:
        """Call gates as their importer does, which writes "|" for "/"."""

        def renamed(names: Sequence[str]) -> tuple[str, ...]:
            return tuple(name.replace("/", "|") for name in names)

        classes = dict(zip(renamed(list(self.classes)), self.classes.values(), strict=True))
        if len(classes) < len(self.classes):
            raise InvalidInputError(
                f'classes names a gate both with "/" and with "|" ({listed(self.classes)}); as '
                '"/" is read as "|", that is one name. Of two such gates of one parent the second '
                'is called "name (2)"; those of several parents are called "parent > name".'
            )
        within = None if self.within is None else renamed([self.within])[0]
        changes = {
            "classes": classes,
            "within": within,
            "only": renamed(self.only),
            "also": renamed(self.also),
        }
        for name, value in changes.items():
            object.__setattr__(self, name, value)

    def __call__(self, adata: AnnData) -> None:
        """Label the cells of one file in place."""
        trees = {} if self.gates is None else self.add_gates(adata)
        if self.labels == "deepest":
            labels_of_deepest(
                adata,
                trees,
                only=self.only,
                within=self.within,
                default=self.default,
                key_added=self.label_key,
            )
        elif self.classes:
            labels_from_gates(
                adata,
                self.classes,
                default=self.default,
                within=self.within,
                key_added=self.label_key,
            )

    def add_gates(self, adata: AnnData, needed: Sequence[str] = ()) -> dict[str, GatingTree]:
        """Write the membership of the gates to ``obsm["gates"]``.

        Parameters
        ----------
        adata : AnnData
        needed : sequence of str, default ()
            Further gates that must be read.

        Returns
        -------
        dict of sample to GatingTree
            Empty for tables.
        """
        path = self._path()
        samples = [str(s) for s in adata.obs["sample"].unique()]
        names = self._asked(needed) if self.only else None
        if path.suffix.lower() == ".csv":
            gates_from_csv(adata, path, event_column=self.event_column, gates=names)
            return {}
        if path.is_dir():
            tables = {s: path / f"{s}.csv" for s in samples}
            if missing := [t.name for t in tables.values() if not t.exists()]:
                raise MissingKeyError(
                    f"{path} has no {listed(missing)}; it has "
                    f"{listed(sorted(p.name for p in path.iterdir()))}. The name of a table must "
                    "be that of its sample."
                )
            gates_from_csv(adata, tables, event_column=self.event_column, gates=names)
            return {}
        digests = file_digests(adata)
        trees, parts = {}, []
        for sample in samples:
            inside = (adata.obs["sample"].astype(str) == sample).to_numpy()
            cells = adata[inside].copy()
            digest = digests.get(sample, "")

            def read(gates: Sequence[str] | None, sample: str = sample, digest: str = digest):  # type: ignore[no-untyped-def]
                return tree_of_sample(path, sample, digest=digest, gates=gates)

            trees[sample], members = self._applied(read, cells, needed)
            parts.append(members)
        found = pd.concat(parts).loc[adata.obs_names]
        # A gate that a sample does not have is unknown there.
        lacking = [name for name in found if found[name].dtype != bool]
        adata.obsm[EXPERT_GATES] = found.astype(dict.fromkeys(lacking, "boolean"))
        return trees

    def _path(self) -> Path:
        path = Path(str(self.gates))
        if not path.exists():
            raise InvalidInputError(f"gates: {path} does not exist.")
        return path

    def _asked(self, needed: Sequence[str]) -> list[str]:
        """Gates that somebody named."""
        within = [] if self.within is None else [self.within]
        return list(dict.fromkeys([*self.only, *self.also, *self.classes, *within, *needed]))

    def _applied(
        self,
        read: Callable[[Sequence[str] | None], GatingTree],
        cells: AnnData,
        needed: Sequence[str],
    ) -> tuple[GatingTree, pd.DataFrame]:
        """Read a tree and apply it: all gates, or the named ones if some cannot be read."""
        asked = self._asked(needed)
        if self.only:
            tree = read(asked)
            return tree, tree.apply(cells)
        try:
            tree = read(None)
            return tree, tree.apply(cells)
        except (InvalidInputError, MarkerMismatchError) as error:
            if not asked:
                raise
            tree = read(asked)
            members = tree.apply(cells)
            warnings.warn(
                f"Only the gates {listed(tree.gates)} were read, because others cannot be: {error}",
                UserWarning,
                stacklevel=2,
            )
            return tree, members

    def tree(self, sample: str, digest: str = "") -> GatingTree:
        """Read the gates of one sample from a Gating-ML file or a FlowJo workspace.

        ``digest`` is that of the ``$FIL`` of the file, as ``read_fcs`` records it.
        """
        names = self._asked(()) if self.only else None
        return tree_of_sample(str(self.gates), sample, digest=digest, gates=names)

    def gate_names(self) -> list[str]:
        """Names of all gates of the file or the tables."""
        path = self._path()
        if path.suffix.lower() in TREE_ENDINGS:
            return names_in(path)
        tables = sorted(path.glob("*.csv")) if path.is_dir() else [path]
        if not tables:
            raise InvalidInputError(f"{path} holds neither a model of gates nor a table (.csv).")
        try:
            columns = [str(c) for t in tables for c in pd.read_csv(t, nrows=0).columns]
        except (OSError, ValueError) as error:
            raise InvalidInputError(f"{path} cannot be read as CSV: {error}") from error
        return list(dict.fromkeys(columns))
