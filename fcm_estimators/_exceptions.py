"""Name of :mod:`fcm_estimators.exceptions` in 0.1.0.dev0, for scripts that still import it."""

from fcm_estimators.exceptions import *  # noqa: F403
