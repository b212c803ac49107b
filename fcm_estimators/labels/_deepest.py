"""Label each cell with the deepest gate that contains it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from anndata import AnnData

from fcm_estimators._checks import listed
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.gating import BooleanGate, GatingTree
from fcm_estimators.keys import EXPERT_GATES
from fcm_estimators.labels.membership import membership, record_within


def labels_of_deepest(
    adata: AnnData,
    trees: Mapping[str, GatingTree],
    *,
    only: Sequence[str] = (),
    within: str | None = None,
    default: str | None = "other",
    key_added: str = "cell_type",
) -> None:
    """Write the name of the deepest gate of each cell to ``obs[key_added]``.

    Parameters
    ----------
    adata : AnnData
        With ``obsm["gates"]``, the membership in the gates of ``trees``.
    trees : mapping of sample to GatingTree
    only : sequence of str, default ()
        Gates that are labels. Default: all.
    within : str, optional
        Parent gate. Cells outside it stay unlabelled, and it and the gates above it are no labels.
    default : str or None, default "other"
        Label of cells in no gate.
    key_added : str, default "cell_type"

    Raises
    ------
    InvalidInputError
        There is no tree, or two gates of equal depth share cells; the message counts them.
    """
    if not trees:
        raise InvalidInputError(
            'labels="deepest" needs a tree of gates: a Gating-ML file or a FlowJo workspace. '
            "Tables have none; name the classes of their gates."
        )
    labels = np.full(adata.n_obs, default, dtype=object)
    samples = adata.obs["sample"].astype(str).to_numpy()
    used: dict[str, None] = {}
    for sample, tree in trees.items():
        rows = np.flatnonzero(samples == sample)
        levels = _levels(tree, only, within)
        used |= dict.fromkeys(levels)
        found = membership(adata, EXPERT_GATES, levels)
        inside = {gate: values[rows] for gate, (values, _) in found.items()}
        deepest = np.full(len(rows), -1.0)
        for gate, level in levels.items():
            deepest[inside[gate]] = np.maximum(deepest[inside[gate]], level)
        _refuse_ties(inside, levels, deepest, sample)
        for gate, level in levels.items():
            labels[rows[inside[gate] & (deepest == level)]] = gate
    if within is not None:
        labels[~membership(adata, EXPERT_GATES, [within])[within][0]] = None
    categories = [*used, *([] if default is None else [default])]
    adata.obs[key_added] = pd.Categorical(labels, categories=list(dict.fromkeys(categories)))
    record_within(adata, key_added, within, EXPERT_GATES)


def _levels(tree: GatingTree, only: Sequence[str], within: str | None) -> dict[str, float]:
    """Depth of each gate that is a label.

    An intersection lies below the gates that it combines, a union above them.
    """
    depth: dict[str, float] = {}
    helpers = set()
    for gate in tree:
        above = [gate.parent] if gate.parent else []
        if isinstance(gate, BooleanGate):
            if gate.operation == "and":
                above += [o for o in gate.operands if o not in gate.complements]
            # Parts of which the importer composed a gate.
            helpers |= {o for o in gate.operands if o.startswith(f"{gate.name} (")}
        is_union = isinstance(gate, BooleanGate) and gate.operation == "or"
        step = 0.5 if is_union else 1.0
        depth[gate.name] = step + max((depth[name] for name in above), default=0.0)
    left_out = helpers if within is None else {*helpers, within, *tree.ancestors(within)}
    wanted = set(only) or set(depth)
    return {name: level for name, level in depth.items() if name in wanted - left_out}


def _refuse_ties(
    inside: Mapping[str, np.ndarray], levels: Mapping[str, float], deepest: np.ndarray, sample: str
) -> None:
    shared = []
    for level in sorted(set(levels.values())):
        of_level = [gate for gate, found in levels.items() if found == level]
        times = np.zeros(len(deepest), dtype=np.int64)
        for gate in of_level:
            times += inside[gate]
        several = (times > 1) & (deepest == level)
        tied = [gate for gate in of_level if several.any() and (inside[gate] & several).any()]
        for a, b in combinations(tied, 2):
            if count := int((inside[a] & inside[b] & several).sum()):
                shared.append(f"{a} and {b} ({count} cells)")
    if shared:
        raise InvalidInputError(
            f"Sample {sample!r}: gates of equal depth share cells, so the deepest gate of these "
            f"is not known: {listed(shared, 10)}. Choose gates with only=[...], or name the "
            "classes of gates."
        )
