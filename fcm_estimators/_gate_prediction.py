"""Soft membership through a tree; the state of the data that gates were learnt on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from anndata import AnnData

from fcm_estimators.gating import BooleanGate, GatingTree
from fcm_estimators.preprocessing._state import recorded_compensation, recorded_transforms


def soft_members(tree: GatingTree, names: list[str], own: torch.Tensor) -> dict[str, torch.Tensor]:
    """Soft membership in every gate, within soft parents.

    Parameters
    ----------
    tree : GatingTree
    names : list of G str
        Gates with a polygon.
    own : Tensor of shape (N, G)
        Soft membership in each polygon, 0 to 1, parents left aside.

    Returns
    -------
    dict of gate to Tensor of shape (N,)
        A gate within its parent, AND: products; NOT: 1 - p; OR: 1 - (1 - p)(1 - q).
    """
    found: dict[str, torch.Tensor] = {}
    for name, gate in tree.gates.items():
        if isinstance(gate, BooleanGate):
            parts = torch.stack(
                [1 - found[o] if o in gate.complements else found[o] for o in gate.operands]
            )
            if gate.operation == "and":
                member = parts.prod(0)
            else:
                member = 1 - (1 - parts).prod(0) if gate.operation == "or" else 1 - parts[0]
        else:
            member = own[:, names.index(name)]
        found[name] = member * found[gate.parent] if gate.parent else member
    return found


def recorded_states(
    X: Any, markers: list[str], aliases: Mapping[str, str] | None
) -> dict[str, tuple[str, bool]]:
    """Transform and compensation of each marker where the data record them."""
    if not isinstance(X, AnnData) or "transform" not in X.var:
        return {}
    names = [(aliases or {}).get(name, name) for name in X.var_names]
    transforms, flags = recorded_transforms(X), recorded_compensation(X)
    return {
        m: (str(transforms.iloc[names.index(m)]), bool(flags.iloc[names.index(m)])) for m in markers
    }


def described(state: tuple[str, bool]) -> str:
    return f"in transform {state[0]!r}, {'' if state[1] else 'not '}compensated"
