from ._annotating import annotate_files as annotate_files
from ._files import list_files as list_files
from ._files import read_file as read_file
from ._reading import read_files as read_files

__all__ = ["annotate_files", "list_files", "read_file", "read_files"]
