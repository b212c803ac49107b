"""Order of gates: parents and operands before the gates that need them."""

from __future__ import annotations

from fcm_estimators._checks import listed
from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.gating._kinds import Gate
from fcm_estimators.gating.gates import ROOT, BooleanGate


def needs_of(gate: Gate) -> list[str]:
    """Names of the parent and the operands of a gate."""
    operands = gate.operands if isinstance(gate, BooleanGate) else ()
    return [name for name in (gate.parent, *operands) if name != ROOT]


def ordered(gates: dict[str, Gate]) -> dict[str, Gate]:
    """Sort gates so that each comes after its parent and its operands, in time linear in gates.

    Gates that need equally many others in a row keep their order.

    Raises
    ------
    InvalidInputError
        Gates need each other in a circle.
    """
    waits = {name: len(set(needs_of(gate))) for name, gate in gates.items()}
    needed_by: dict[str, list[str]] = {name: [] for name in gates}
    for name, gate in gates.items():
        for need in set(needs_of(gate)):
            needed_by[need].append(name)
    places = {name: i for i, name in enumerate(gates)}
    done: dict[str, Gate] = {}
    ready = [name for name, count in waits.items() if count == 0]
    while ready:
        following = []
        for name in ready:
            done[name] = gates[name]
            for other in needed_by[name]:
                waits[other] -= 1
                if waits[other] == 0:
                    following.append(other)
        ready = sorted(following, key=places.__getitem__)
    if len(done) < len(gates):
        circle = [name for name in gates if name not in done]
        raise InvalidInputError(f"Gates need each other in a circle: {listed(circle)}.")
    return done
