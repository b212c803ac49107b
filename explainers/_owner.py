"""Whose the top-level name ``explainers`` is."""

from __future__ import annotations

import functools
import importlib.metadata
import warnings


@functools.cache
def warn_of_others() -> None:
    """Warn, once, if another installed distribution has a package ``explainers`` too.

    Looking takes up to a second, so this is for the first use of a name and not for the import.
    """
    owners = importlib.metadata.packages_distributions().get("explainers", [])
    others = sorted({name for name in owners if name.replace("_", "-") != "fcm-estimators"})
    if others:
        warnings.warn(
            f"The package 'explainers' of fcm-estimators is also installed by {', '.join(others)}. "
            "Files of one may have replaced those of the other. Uninstall both, and install "
            "fcm-estimators in an environment of its own.",
            UserWarning,
            stacklevel=3,
        )
