"""Soft membership through a tree."""

from __future__ import annotations

import torch

from fcm_estimators.gating import BooleanGate, GatingTree


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
