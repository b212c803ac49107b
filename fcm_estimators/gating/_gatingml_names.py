"""Names of gates in Gating-ML.

Gating-ML identifies a gate by an XML id, which cannot contain blanks, for example. A gate gets a
similar id if its name is not a valid one. The name is then written to the element for custom
information and read back from there.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from fcm_estimators.exceptions import InvalidInputError


def flowkit() -> Any:
    """Import FlowKit; if it is missing, raise InvalidInputError that says how to install it."""
    try:
        import flowkit
    except ImportError as error:
        raise InvalidInputError(
            "FlowJo workspaces are written by FlowKit: pip install 'fcm-estimators[gating]'."
        ) from error
    return flowkit


def ids_for(names: Sequence[str]) -> dict[str, str]:
    """Give each name a similar, unique XML id of letters, digits, "_", "-" and "."."""
    ids: dict[str, str] = {}
    taken = set(names)
    for name in names:
        gate_id = re.sub(r"[^\w.-]", "_", name)
        gate_id = gate_id if re.match(r"[^\W\d]", gate_id) else f"_{gate_id}"
        while gate_id in taken and gate_id != name:
            gate_id += "_"
        taken.add(gate_id)
        ids[name] = gate_id
    return ids
