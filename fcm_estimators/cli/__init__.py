"""``fcm``, the command line. Each command makes one call of the Python API.

Results go to standard output, as a table or with ``--json`` as JSON. Errors go to standard error,
and so does progress if it is a terminal. Exit status: 0, done; 1, some files failed, or
the system did (a full disk); 2, a wrong call or input that cannot be used; 130, interrupted.
"""

from __future__ import annotations

from fcm_estimators.cli._commands import app

__all__ = ["app", "main"]


def main() -> None:
    """Entry point of ``fcm``."""
    app()
