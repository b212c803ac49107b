from . import datasets as datasets
from . import gating as gating
from . import labels as labels
from . import metrics as metrics
from . import preprocessing as preprocessing
from ._exceptions import FcmError as FcmError
from .classifier import ReluFormerClassifier as ReluFormerClassifier
from .io import read_fcs as read_fcs
from .io import write_fcs as write_fcs
from .polygon_regressor import PolygonRegressor as PolygonRegressor

__all__ = [
    "FcmError",
    "PolygonRegressor",
    "ReluFormerClassifier",
    "datasets",
    "gating",
    "labels",
    "metrics",
    "preprocessing",
    "read_fcs",
    "write_fcs",
]
