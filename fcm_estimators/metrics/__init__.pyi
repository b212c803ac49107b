from ._blank import LimitOfBlank as LimitOfBlank
from ._blank import blank_of_counts as blank_of_counts
from ._blank import limit_of_blank as limit_of_blank
from ._calibration import reliability_table as reliability_table
from ._classification import classification_table as classification_table
from ._classification import summarize as summarize
from ._comparison import DilutionSeries as DilutionSeries
from ._comparison import MethodComparison as MethodComparison
from ._comparison import dilution_series as dilution_series
from ._comparison import method_comparison as method_comparison
from ._comparison_display import MethodComparisonDisplay as MethodComparisonDisplay
from ._composition import composition_table as composition_table
from ._composition import population_shares as population_shares
from ._course import CourseDisplay as CourseDisplay
from ._course import course_table as course_table
from ._course import pool_tubes as pool_tubes
from ._detection_limits import DetectionLimits as DetectionLimits
from ._detection_limits import detection_limits as detection_limits
from ._gates import gate_agreement as gate_agreement
from ._mrd import mrd_of_counts as mrd_of_counts
from ._mrd import mrd_table as mrd_table
from ._mrd_error import mrd_error as mrd_error
from ._protocol import DEFAULT_PROTOCOL as DEFAULT_PROTOCOL
from ._protocol import PROTOCOLS as PROTOCOLS
from ._protocol import Protocol as Protocol
from ._total_interval import ClassificationErrors as ClassificationErrors

__all__ = [
    "DEFAULT_PROTOCOL",
    "PROTOCOLS",
    "ClassificationErrors",
    "CourseDisplay",
    "DetectionLimits",
    "DilutionSeries",
    "LimitOfBlank",
    "MethodComparison",
    "MethodComparisonDisplay",
    "Protocol",
    "blank_of_counts",
    "classification_table",
    "composition_table",
    "course_table",
    "detection_limits",
    "dilution_series",
    "gate_agreement",
    "limit_of_blank",
    "method_comparison",
    "mrd_error",
    "mrd_of_counts",
    "mrd_table",
    "pool_tubes",
    "population_shares",
    "reliability_table",
    "summarize",
]
