"""The gate inside which a model was trained, and the cells of new data that are inside it."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

from fcm_estimators._checks import gate_called, listed, nullable_flags
from fcm_estimators.exceptions import InvalidInputError, MissingKeyError
from fcm_estimators.keys import EXPERT_GATES, LABELLED_WITHIN


@dataclass(frozen=True)
class Within:
    """A gate outside of which no cell had a label in training.

    Attributes
    ----------
    gate : str
    key : str
        Key of ``obsm`` with the membership.
    """

    gate: str
    key: str = EXPERT_GATES

    @classmethod
    def recorded(cls, data: Any, label_key: Hashable) -> Within | None:
        """The gate inside which the labels of some data were made, if that is recorded.

        Raises
        ------
        MissingKeyError
            The data lack the membership in the gate.
        InvalidInputError
            Cells outside of the gate have labels, so the labels are not those of the record.
        """
        if not isinstance(data, AnnData) or label_key not in data.obs:
            return None
        entry = data.uns.get(LABELLED_WITHIN, {}).get(label_key)
        if entry is None:
            return None
        found = cls(str(entry["gate"]), str(entry["key"]))
        labelled = data.obs[label_key].notna().to_numpy()
        if n_wrong := int((labelled & ~found.inside(data)).sum()):
            raise InvalidInputError(
                f"The labels in obs[{label_key!r}] were made inside the gate {found.gate!r}, but "
                f"{n_wrong} cells outside of it have a label. If the labels are others now, remove "
                f"uns[{LABELLED_WITHIN!r}][{label_key!r}]."
            )
        return found

    @property
    def keys(self) -> list[str]:
        """Keys of ``obsm`` that may hold the membership in new data, the most suitable first."""
        return list(dict.fromkeys((self.key, EXPERT_GATES)))

    def inside(self, data: Any) -> np.ndarray:
        """Cells inside the gate, as bool of shape (n_rows,); unknown cells are outside.

        Parameters
        ----------
        data : AnnData, DataFrame or array
            A table has a column of the gate's name.

        Raises
        ------
        MissingKeyError
            The data do not say which cells are inside.
        """
        if isinstance(data, AnnData):
            return self.among(data.obsm.get(key) for key in self.keys)
        return self.among([data])

    def among(self, tables: Iterable[Any]) -> np.ndarray:
        """As :meth:`inside`, from the first table that has a column of the gate's name."""
        found: list[str] = []
        for table in tables:
            if not isinstance(table, pd.DataFrame):
                continue
            if (gate := gate_called(self.gate, table)) in table:
                flags = nullable_flags(table[gate], f"Membership in the gate {gate!r}")
                return np.asarray(flags.to_numpy(dtype=bool, na_value=False))
            found += [str(name) for name in table]
        raise MissingKeyError(
            f"This model was trained on the cells inside the gate {self.gate!r}, and the data do "
            f"not say which cells are inside it: they have {listed(found) if found else 'no gates'}"
            ". Without that, it would judge cells of which it knows nothing, such as dead cells "
            f"and debris. Write the membership to obsm[{self.key!r}], for example with "
            "GatingTree.apply or predict_membership of a model of gates; for files, give a file of "
            "gates or a model of gates with gates=..."
        )
