"""Protocols: the limits by which a laboratory reads a count of rare cells."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

from fcm_estimators.exceptions import InvalidInputError
from fcm_estimators.metrics._inputs import fraction_number

_NOT_TAKEN = "Numbers of events to detect and to quantify are not taken from it."


@dataclass(frozen=True)
class Protocol:
    """What a laboratory asks of a count of rare cells.

    Parameters
    ----------
    name : str
        Name, as tables and reports show it.
    events_to_detect : int, default 20
        Least number of positive cells that is called detected. The limit of detection (LOD) of a
        sample is this number divided by its denominator.
    events_to_quantify : int, default 50
        Least number of positive cells whose fraction is stated as a quantity; not below
        ``events_to_detect``. Divided by the denominator it is the lower limit of quantitation.
    sensitivity : float, optional
        Fraction that a sample has to be able to show: its LOD must not exceed it.
    least_events : int, optional
        Least number of cells in the denominator. ``sensitivity``, ``least_events`` or both are
        needed: without them nobody could say whether a sample was large enough.
    denominator : str, default ""
        The denominator in words, such as "nucleated cells". Default: the name of the gate.
    cut_offs : tuple of float, default ()
        Fractions at which decisions are made.
    source : str, default ""
        Where the numbers stand, and which of them do not stand there.

    Raises
    ------
    InvalidInputError
        A value is missing or out of range.

    Notes
    -----
    20 and 50 events are a convention. Poisson counts of 20 and 50 cells have coefficients of
    variation of 22 % and 14 %. Protocols differ; take the numbers from your own.

    Examples
    --------
    >>> from fcm_estimators.metrics import Protocol
    >>> own = Protocol("our lab", 10, 40, sensitivity=1e-5, denominator="nucleated cells")
    >>> own.least_denominator
    1000000
    """

    name: str
    events_to_detect: int = 20
    events_to_quantify: int = 50
    sensitivity: float | None = None
    least_events: int | None = None
    denominator: str = ""
    cut_offs: tuple[float, ...] = ()
    source: str = ""

    def __post_init__(self) -> None:
        for field in ("name", "denominator", "source"):
            if not isinstance(getattr(self, field), str):
                raise InvalidInputError(f"{field} is {getattr(self, field)!r}; expected text.")
        if not self.name.strip():
            raise InvalidInputError("The protocol has no name.")
        for field in ("events_to_detect", "events_to_quantify", "least_events"):
            value = getattr(self, field)
            if value is None and field == "least_events":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InvalidInputError(
                    f"{field} is {value!r}; expected a whole number of at least 1."
                )
        if self.events_to_quantify < self.events_to_detect:
            raise InvalidInputError(
                f"events_to_quantify is {self.events_to_quantify}, fewer than the "
                f"{self.events_to_detect} events_to_detect."
            )
        if self.sensitivity is None and self.least_events is None:
            raise InvalidInputError(
                f"Protocol {self.name!r} asks for no sensitivity. Give sensitivity (a fraction, "
                "such as 1e-4), least_events (cells of the denominator), or both."
            )
        if self.sensitivity is not None:
            fraction_number(self.sensitivity, "sensitivity", open_ends=True)
        if isinstance(self.cut_offs, str) or not hasattr(self.cut_offs, "__iter__"):
            raise InvalidInputError(f"cut_offs is {self.cut_offs!r}; expected a list of fractions.")
        cut_offs = tuple(fraction_number(c, "cut_offs", open_ends=True) for c in self.cut_offs)
        object.__setattr__(self, "cut_offs", tuple(sorted(cut_offs)))

    @property
    def least_denominator(self) -> int:
        """Least number of cells of the denominator that reaches the sensitivity asked for."""
        by_fraction = 0
        if self.sensitivity is not None:
            # Quotients of whole numbers decide, so that 20 / 200,000 reaches 1e-4.
            by_fraction = max(1, int(self.events_to_detect / self.sensitivity) - 1)
            while self.events_to_detect / by_fraction > self.sensitivity:
                by_fraction += 1
        return max(by_fraction, self.least_events or 0)

    def to_dict(self) -> dict[str, Any]:
        """Return values that JSON has."""
        return {**dataclasses.asdict(self), "cut_offs": list(self.cut_offs)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Undo :meth:`to_dict`.

        Raises
        ------
        InvalidInputError
            A name is unknown, or a value is missing or out of range.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        unknown = [str(k) for k in values if k not in known]
        if unknown:
            raise InvalidInputError(f"A protocol has no {unknown}; it has {known}.")
        if "name" not in values:
            raise InvalidInputError(f"The protocol has no name. A protocol has {known}.")
        return cls(**values)

    @classmethod
    def read(cls, text: str | os.PathLike[str]) -> Self:
        """Return a protocol from a name, the path of a JSON file, or JSON.

        Parameters
        ----------
        text : str or path
            One of ``PROTOCOLS``, a path that ends in ``.json``, or an object in JSON, such as
            ``{"name": "our lab", "events_to_detect": 10, "sensitivity": 1e-5}``.

        Raises
        ------
        InvalidInputError
            There is no such protocol, the file cannot be read, or a value is out of range.

        Examples
        --------
        >>> from fcm_estimators.metrics import Protocol
        >>> Protocol.read("eln-aml").denominator
        'CD45+ cells'
        """
        found = str(text)
        if found in PROTOCOLS:
            return cls.from_dict(PROTOCOLS[found].to_dict())
        if not found.lstrip().startswith("{"):
            if not found.endswith(".json"):
                raise InvalidInputError(
                    f"protocol={found!r} is none of {list(PROTOCOLS)}. Name one of them, or give "
                    "your own as JSON or as a file that ends in .json."
                )
            try:
                found = Path(found).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                raise InvalidInputError(f"protocol={found!r} cannot be read: {error}") from error
        try:
            values = json.loads(found)
        except ValueError as error:
            raise InvalidInputError(f"protocol={str(text)!r} is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise InvalidInputError(f"protocol={str(text)!r} holds no JSON object.")
        return cls.from_dict(values)


DEFAULT_PROTOCOL = "20/50 events"

#: Protocols by name. A protocol of a society is here only if its numbers were read in the source
#: that it names.
PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {
        p.name: p
        for p in (
            Protocol(
                DEFAULT_PROTOCOL,
                sensitivity=1e-4,
                cut_offs=(1e-4,),
                source="A convention, of no society: 20 events to detect, 50 to quantify, 1e-4.",
            ),
            Protocol(
                "eln-aml",
                least_events=500_001,
                denominator="CD45+ cells",
                source="Heuser et al., Blood 138, 2753-2767 (2021), table 1, A11: more than "
                "500,000 CD45+ cells before MRD is called negative. Its second demand, 100 viable "
                f"cells, is not checked. {_NOT_TAKEN}",
            ),
            Protocol(
                "all-response",
                sensitivity=1e-4,
                cut_offs=(1e-4,),
                source="HemaSphere, PMC8824253, table 1, MRD response in acute lymphoblastic "
                "leukaemia: failure from 0.01 %, complete response with a sensitivity of at least "
                f"0.01 %. {_NOT_TAKEN}",
            ),
            Protocol(
                "pnh",
                20,
                50,
                sensitivity=1e-4,
                source="International Clinical Cytometry Society, "
                "cytometry.org/web/q_view.php?id=258, examples: more than 50 PNH cells are "
                "quantifiable, more than 20 but less than 50 detectable and not quantifiable. Here "
                "20 and 50 themselves are enough. Borowitz et al., Cytometry B 78, 211-230 (2010), "
                "abstract: high-sensitivity analysis detects as few as 0.01 %.",
            ),
        )
    }
)
