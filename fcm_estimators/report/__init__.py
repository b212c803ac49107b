"""Reports of annotated samples as HTML pages that need no network.

:func:`write_report` writes the page of one sample, :func:`report_files` the pages of many files. On
the command line: ``fcm report sample.h5ad -o report.html``.
"""

from __future__ import annotations

import lazy_loader as _lazy

__getattr__, __dir__, __all__ = _lazy.attach_stub(__name__, __file__)
