from . import cohort as cohort
from . import colours as colours
from . import datasets as datasets
from . import exceptions as exceptions
from . import gating as gating
from . import inference as inference
from . import io as io
from . import keys as keys
from . import labels as labels
from . import metrics as metrics
from . import preprocessing as preprocessing
from . import quality as quality
from . import report as report
from . import workflow as workflow
from ._version import __version__ as __version__
from .classifier import ReluFormerClassifier as ReluFormerClassifier
from .exceptions import FcmError as FcmError
from .io import read_fcs as read_fcs
from .io import write_fcs as write_fcs
from .models import load_model as load_model
from .polygon_regressor import PolygonRegressor as PolygonRegressor
from .scores import scores_to_obs as scores_to_obs

__all__ = [
    "FcmError",
    "PolygonRegressor",
    "ReluFormerClassifier",
    "cohort",
    "colours",
    "datasets",
    "exceptions",
    "gating",
    "inference",
    "io",
    "keys",
    "labels",
    "load_model",
    "metrics",
    "preprocessing",
    "quality",
    "read_fcs",
    "report",
    "scores_to_obs",
    "workflow",
    "write_fcs",
]
