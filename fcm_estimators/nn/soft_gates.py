"""Soft membership in a hierarchy of gates: the chance of being inside, of independent polygons.

A gate is a logical formula of polygons: it holds the cells that its own polygon and all ancestors
hold, and a combination holds what its operands say, within its parent. Products of the operands'
memberships would count an ancestor that two operands share twice. Each formula is therefore
written as a reduced, ordered decision diagram, in which every polygon occurs once on each path.
AND of independent operands is then a product, OR is 1 - (1 - p)(1 - q), NOT is 1 - p within the
parent, and A AND A is A.

References
----------
Bryant, *Graph-Based Algorithms for Boolean Function Manipulation*, IEEE Transactions on Computers
C-35 (8), 1986, 677-691 (diagrams). Parker and McCluskey, *Probabilistic Treatment of General
Combinational Networks*, IEEE Transactions on Computers C-24 (6), 1975, 668-670 (the chance of a
formula).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

_FALSE, _TRUE = 0, 1


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
        Chance that the cell is in the gate if it is in each polygon independently with the chance
        ``own``. A polygon that several operands or ancestors share counts once.

    Examples
    --------
    >>> import torch
    >>> from fcm_estimators.nn.soft_gates import SoftGate, soft_members
    >>> live, t, b = (SoftGate(parent, polygon) for parent, polygon in ((-1, 0), (0, 1), (0, 2)))
    >>> both = SoftGate(0, operation="and", operands=(1, 2), complements=(False, False))
    >>> soft_members([live, t, b, both], torch.tensor([[0.5, 0.5, 0.5]]))
    tensor([[0.5000, 0.2500, 0.2500, 0.1250]])
    """
    return torch.stack(_chances(own, *_diagrams(tuple(gates))), 1)


def soft_parents(gates: Sequence[SoftGate], own: Tensor) -> Tensor:
    """Soft membership in the parent of every polygon; 1 for a polygon without parent.

    Parameters
    ----------
    gates, own
        As for :func:`soft_members`.

    Returns
    -------
    Tensor of shape (N, G)
    """
    nodes, roots = _diagrams(tuple(gates))
    above = {g.polygon: roots[g.parent] if g.parent >= 0 else _TRUE for g in gates}
    wanted = [above[polygon] for polygon in range(own.shape[1])]
    return torch.stack(_chances(own, nodes, wanted), 1)


# A node is (polygon, node if the cell is outside of it, node if the cell is inside).
_Node = tuple[int, int, int]


def _chances(own: Tensor, nodes: Sequence[_Node], roots: Sequence[int]) -> list[Tensor]:
    """Chance of each root, (N,) each; nodes come after those that they lead to."""
    needed = set(roots)
    for number in range(len(nodes) - 1, _TRUE, -1):
        if number in needed:
            needed.update(nodes[number][1:])
    chance = {_FALSE: torch.zeros_like(own[:, 0]), _TRUE: torch.ones_like(own[:, 0])}
    for number in sorted(needed - chance.keys()):
        polygon, outside, inside = nodes[number]
        chance[number] = torch.lerp(chance[outside], chance[inside], own[:, polygon])
    return [chance[root] for root in roots]


@lru_cache(maxsize=64)
def _diagrams(gates: tuple[SoftGate, ...]) -> tuple[list[_Node], list[int]]:
    """Nodes of the diagrams of all gates, and the root of each gate."""
    diagram = _Diagram()
    roots: list[int] = []
    for gate in gates:
        if gate.polygon >= 0:
            root = diagram.node(gate.polygon, _FALSE, _TRUE)
        else:
            parts = [
                diagram.inverse(roots[operand]) if complement else roots[operand]
                for operand, complement in zip(gate.operands, gate.complements, strict=True)
            ]
            root = diagram.combined(gate.operation, parts)
        roots.append(root if gate.parent < 0 else diagram.both(root, roots[gate.parent]))
    return diagram.nodes, roots


class _Diagram:
    """Decision diagrams of several formulas that share their nodes."""

    def __init__(self) -> None:
        # The first two nodes are the answers; they ask for no polygon.
        self.nodes: list[_Node] = [(-1, _FALSE, _FALSE), (-1, _TRUE, _TRUE)]
        self._numbers: dict[_Node, int] = {}
        self._both: dict[tuple[int, int], int] = {}
        self._inverse: dict[int, int] = {_FALSE: _TRUE, _TRUE: _FALSE}

    def node(self, polygon: int, outside: int, inside: int) -> int:
        if outside == inside:
            return outside
        node = (polygon, outside, inside)
        if node not in self._numbers:
            self._numbers[node] = len(self.nodes)
            self.nodes.append(node)
        return self._numbers[node]

    def inverse(self, a: int) -> int:
        if a not in self._inverse:
            polygon, outside, inside = self.nodes[a]
            self._inverse[a] = self.node(polygon, self.inverse(outside), self.inverse(inside))
        return self._inverse[a]

    def both(self, a: int, b: int) -> int:
        a, b = min(a, b), max(a, b)
        if a in (_FALSE, b):
            return a
        if a == _TRUE:
            return b
        if (a, b) not in self._both:
            polygon = min(self.nodes[a][0], self.nodes[b][0])
            (outside_a, inside_a), (outside_b, inside_b) = (
                self.nodes[n][1:] if self.nodes[n][0] == polygon else (n, n) for n in (a, b)
            )
            self._both[a, b] = self.node(
                polygon, self.both(outside_a, outside_b), self.both(inside_a, inside_b)
            )
        return self._both[a, b]

    def combined(self, operation: str, parts: Sequence[int]) -> int:
        if operation == "not":
            return self.inverse(parts[0])
        if operation == "or":
            # Neither is outside.
            return self.inverse(self.combined("and", [self.inverse(part) for part in parts]))
        found = _TRUE
        for part in parts:
            found = self.both(found, part)
        return found
