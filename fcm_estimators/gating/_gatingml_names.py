"""Names of gates in Gating-ML.

Gating-ML identifies a gate by an XML id, which cannot contain blanks, for example. A gate gets a
similar id if its name is not a valid one. The name is then written to the element for custom
information and read back from there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fcm_estimators.exceptions import InvalidInputError

_GATING = "http://www.isac-net.org/std/Gating-ML/v2.0/gating"
_DATA_TYPE = "http://www.isac-net.org/std/Gating-ML/v2.0/datatypes"
_NAME = "gate_name"


def flowkit() -> Any:
    """Import FlowKit; if it is missing, raise InvalidInputError that says how to install it."""
    try:
        import flowkit
    except ImportError as error:
        raise InvalidInputError(
            "Gating-ML and FlowJo files need FlowKit: pip install 'fcm-estimators[gating]'."
        ) from error
    return flowkit


def names_by_id(path: str) -> dict[str, str]:
    """Id to name of the gates whose name :func:`with_names` wrote."""
    found = {}
    for gate in _xml(Path(path).read_bytes()).iter(f"{{{_GATING}}}*"):
        name = gate.findtext(f"{{{_DATA_TYPE}}}custom_info/{_NAME}")
        if name and (gate_id := gate.get(f"{{{_GATING}}}id")):
            found[gate_id] = name
    return found


def _xml(content: bytes) -> Any:
    from lxml import etree  # comes with FlowKit

    return etree.fromstring(content, etree.XMLParser(resolve_entities=False, no_network=True))


def ids_for(names: list[str]) -> dict[str, str]:
    """Give each name a similar, unique XML id of letters, digits, "_", "-" and "."."""
    ids: dict[str, str] = {}
    for name in names:
        gate_id = re.sub(r"[^\w.-]", "_", name)
        gate_id = gate_id if re.match(r"[^\W\d]", gate_id) else f"_{gate_id}"
        taken = {*ids.values(), *names} - {name}
        while gate_id in taken:
            gate_id += "_"
        ids[name] = gate_id
    return ids


def with_names(content: bytes, names: Mapping[str, str]) -> bytes:
    """Add the names of gates, by id, to a Gating-ML document."""
    from lxml import etree

    root = _xml(content)
    for gate in root.iter(f"{{{_GATING}}}*"):
        name = names.get(gate.get(f"{{{_GATING}}}id"))
        if name is not None:
            info = etree.Element(f"{{{_DATA_TYPE}}}custom_info")
            etree.SubElement(info, _NAME).text = name
            gate.insert(0, info)
    etree.indent(root)
    return bytes(etree.tostring(root, xml_declaration=True, encoding="UTF-8"))
