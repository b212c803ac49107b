from ._labels import gates_from_csv as gates_from_csv
from ._labels import gates_from_exports as gates_from_exports
from ._labels import labels_from_channel as labels_from_channel
from ._labels import labels_from_gates as labels_from_gates
from .source import LabelSource as LabelSource

__all__ = [
    "LabelSource",
    "gates_from_csv",
    "gates_from_exports",
    "labels_from_channel",
    "labels_from_gates",
]
