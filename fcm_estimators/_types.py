"""Types that many modules share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

# Named values of mixed types: parameters, run records, rows of a table, pictures.
Entries: TypeAlias = dict[str, Any]
# Called with the row of each file that is done.
Progress: TypeAlias = Callable[[Entries], None]
# A group or an array of a store: of h5py, which has no types, or of zarr.
Group: TypeAlias = Any
Element: TypeAlias = Any
