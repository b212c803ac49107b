"""Sources of the expert's labels of a file: tables, Gating-ML files, FlowJo workspaces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd
from anndata import AnnData

from fcm_estimators._checks import listed
from fcm_estimators.exceptions import MissingKeyError, ProcessingStateError
from fcm_estimators.gating import GatingTree
from fcm_estimators.keys import EXPERT_GATES
from fcm_estimators.labels._labels import gates_from_csv, labels_from_gates
from fcm_estimators.preprocessing import Compensation


@dataclass(frozen=True)
class LabelSource:
    """Source of the expert's labels of a file.

    Parameters
    ----------
    label_key : str, default "cell_type"
        Column of ``obs`` for the labels. Without ``classes`` the data must already have it.
    gates : path, optional
        A table (.csv) of one file, a directory with a table ``{sample}.csv`` per file
        (:func:`~fcm_estimators.labels.gates_from_csv`), a Gating-ML file (.xml), or a FlowJo
        workspace (.wsp) that lists the files. Default: use the gates in ``obsm["gates"]``.
    classes : mapping of gate to label, optional
        Label of each gate (:func:`~fcm_estimators.labels.labels_from_gates`).
    within : str, optional
        Parent gate; cells outside it stay unlabelled.
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

    def __call__(self, adata: AnnData) -> None:
        """Label the cells of one file in place."""
        if self.gates is not None:
            self._add_gates(adata, Path(self.gates))
        if self.classes:
            labels_from_gates(
                adata,
                self.classes,
                default=self.default,
                within=self.within,
                key_added=self.label_key,
            )

    def _add_gates(self, adata: AnnData, path: Path) -> None:
        samples = [str(s) for s in adata.obs["sample"].unique()]
        if path.suffix.lower() == ".csv":
            gates_from_csv(adata, path, event_column=self.event_column)
            return
        if path.is_dir():
            tables = {s: path / f"{s}.csv" for s in samples}
            if missing := [t.name for t in tables.values() if not t.exists()]:
                raise MissingKeyError(
                    f"{path} has no {listed(missing)}; it has "
                    f"{listed(sorted(p.name for p in path.iterdir()))}. The name of a table must "
                    "be that of its sample."
                )
            gates_from_csv(adata, tables, event_column=self.event_column)
            return
        parts = []
        for sample in samples:
            inside = (adata.obs["sample"].astype(str) == sample).to_numpy()
            parts.append(membership_in(self.tree(sample), adata[inside].copy()))
        adata.obsm[EXPERT_GATES] = pd.concat(parts).loc[adata.obs_names]

    def tree(self, sample: str) -> GatingTree:
        """Read the gates of one sample from a Gating-ML file or a FlowJo workspace."""
        path = Path(str(self.gates))
        if path.suffix.lower() != ".wsp":
            return GatingTree.from_gatingml(path)
        names = GatingTree.flowjo_samples(path)
        # Samples are named by files with or without their ending, such as ".fcs" or ".001".
        found = [name for name in names if name == sample] or [
            name for name in names if Path(name).stem == sample
        ]
        if len(found) == 1:
            return GatingTree.from_flowjo(path, sample=found[0])
        if found:
            raise MissingKeyError(
                f"{path.name} has several samples {sample!r}: {listed(found)}. Name the sample by "
                "its whole file name with sample_names=..."
            )
        raise MissingKeyError(f"{path.name} has no sample {sample!r}; it has {listed(names)}.")


def membership_in(tree: GatingTree, adata: AnnData) -> pd.DataFrame:
    """Membership in drawn gates; data are compensated if the gates need it."""
    try:
        return tree.apply(adata)
    except ProcessingStateError:
        return tree.apply(Compensation(spillover=tree.spillover).fit_transform(adata))
