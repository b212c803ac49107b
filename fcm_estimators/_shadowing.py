"""Is the package ``explainers`` that Python finds the one of this distribution?"""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path


def warn_of_foreign_explainers() -> None:
    """Warn if ``import explainers`` would load somebody else's package. Nothing is imported."""
    try:
        spec = importlib.util.find_spec("explainers")
    except ValueError:  # a module that has no spec, put into sys.modules by hand
        return
    if spec is None or spec.origin is None:
        return
    found = Path(spec.origin).resolve()
    here = Path(__file__).resolve().parents[1] / "explainers" / "__init__.py"
    # Of two packages in one folder, that which was installed last has written __init__.py.
    if found != here or "fcm-estimators" not in found.read_text("utf-8", errors="replace"):
        warnings.warn(
            f"'explainers' is found in {found.parent} and is not that of fcm-estimators, which "
            f"belongs in {here.parent}. Explanations will fail. Rename a file or folder of your "
            "own of that name, or install fcm-estimators in an environment of its own.",
            UserWarning,
            stacklevel=3,
        )
