from .read import read_fcs as read_fcs
from .record import get_spillover as get_spillover
from .write import write_fcs as write_fcs

__all__ = ["get_spillover", "read_fcs", "write_fcs"]
