from ._read import read_fcs as read_fcs
from ._record import get_spillover as get_spillover
from ._write import write_fcs as write_fcs

__all__ = ["get_spillover", "read_fcs", "write_fcs"]
