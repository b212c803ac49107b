"""Soft membership in a hierarchy of gates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class SoftGate(NamedTuple):
    """One gate of a hierarchy; parents and operands are positions in the hierarchy.

    Attributes
    ----------
    parent : int
        Position of the parent, -1 for none.
    polygon : int
        Position among the polygons, -1 for a gate that combines other gates.
    operation : {"", "and", "or", "not"}
        How the operands are combined; "" for a polygon.
    operands : tuple of int
        Positions of the operands.
    complements : tuple of bool
        Whether the complement of each operand is used.
    """

    parent: int
    polygon: int = -1
    operation: str = ""
    operands: tuple[int, ...] = ()
    complements: tuple[bool, ...] = ()


def soft_members(gates: Sequence[SoftGate], own: Tensor) -> Tensor:
    """Soft membership in every gate, within its soft parents.

    Parameters
    ----------
    gates : sequence of K SoftGate
        Gates in an order in which parents and operands precede the gates that use them.
    own : Tensor of shape (N, G)
        Soft membership in each polygon, 0 to 1, regardless of parents.

    Returns
    -------
    Tensor of shape (N, K)
        AND and a gate inside its parent are products; NOT is 1 - p; OR is 1 - (1 - p)(1 - q).
    """
    found: list[Tensor] = []
    for gate in gates:
        if gate.polygon >= 0:
            member = own[:, gate.polygon]
        else:
            parts = torch.stack(
                [
                    1 - found[operand] if complement else found[operand]
                    for operand, complement in zip(gate.operands, gate.complements, strict=True)
                ]
            )
            if gate.operation == "and":
                member = parts.prod(0)
            elif gate.operation == "or":
                member = 1 - (1 - parts).prod(0)
            else:
                member = 1 - parts[0]
        found.append(member * found[gate.parent] if gate.parent >= 0 else member)
    return torch.stack(found, 1)
