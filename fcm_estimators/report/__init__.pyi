from ._many import report_files as report_files
from ._write import write_report as write_report

__all__ = ["report_files", "write_report"]
