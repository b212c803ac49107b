"""Names of gates in Gating-ML.

An id there is an XML id, which holds no blanks. A gate of another name is written with an id like
it, and its name in the element for custom information, from which it is read back.
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
    """FlowKit, or an InvalidInputError that says how to get it."""
    try:
        import flowkit
    except ImportError as error:
        raise InvalidInputError(
            "Gating-ML and FlowJo files need FlowKit: pip install 'fcm-estimators[gating]'."
        ) from error
    return flowkit


def names_by_id(path: str) -> dict[str, str]:
    """Names of gates whose id differs from them, as :func:`with_names` writes them."""
    found = {}
    for gate in _xml(Path(path).read_bytes()).iter(f"{{{_GATING}}}*"):
        name = gate.findtext(f"{{{_DATA_TYPE}}}custom_info/{_NAME}")
        if name and (own := gate.get(f"{{{_GATING}}}id")):
            found[own] = name
    return found


def _xml(content: bytes) -> Any:
    from lxml import etree  # comes with FlowKit

    return etree.fromstring(content, etree.XMLParser(resolve_entities=False, no_network=True))


def ids_for(names: list[str]) -> dict[str, str]:
    """An XML id like each name, and unlike the others: letters, digits, "_", "-" and "."."""
    ids: dict[str, str] = {}
    for name in names:
        own = re.sub(r"[^\w.-]", "_", name)
        own = own if re.match(r"[^\W\d]", own) else f"_{own}"
        taken = {*ids.values(), *names} - {name}
        while own in taken:
            own += "_"
        ids[name] = own
    return ids


def with_names(content: bytes, names: Mapping[str, str]) -> bytes:
    """Gating-ML with the names of gates whose ids differ from them."""
    from lxml import etree

    root = _xml(content)
    for gate in root.iter(f"{{{_GATING}}}*"):
        name = names.get(gate.get(f"{{{_GATING}}}id"))
        if name is not None:
            info = etree.Element(f"{{{_DATA_TYPE}}}custom_info")
            etree.SubElement(info, _NAME).text = name
            gate.insert(0, info)
    etree.indent(root)
    return etree.tostring(root, xml_declaration=True, encoding="UTF-8")
