from .annotating import annotate_files as annotate_files
from .files import read_file as read_file
from .reading import read_files as read_files

__all__ = ["annotate_files", "read_file", "read_files"]
