"""A report of one annotated sample as a single HTML page that needs no network.

:func:`write_report` writes it, :func:`report_files` those of many files; on the command line
``fcm report sample.h5ad -o report.html``.
"""

from __future__ import annotations

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
