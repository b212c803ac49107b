from .annotating import annotate_files as annotate_files
from .files import read_file as read_file
from .reading import read_files as read_files
from .tables import comparison_of_tables as comparison_of_tables
from .tables import course_of_tables as course_of_tables
from .tables import errors_of_evaluation as errors_of_evaluation
from .tables import limits_of_tables as limits_of_tables
from .tables import read_results as read_results

__all__ = [
    "annotate_files",
    "comparison_of_tables",
    "course_of_tables",
    "errors_of_evaluation",
    "limits_of_tables",
    "read_file",
    "read_files",
    "read_results",
]
