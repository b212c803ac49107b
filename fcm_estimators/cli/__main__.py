"""Run the command line with ``python -m fcm_estimators.cli``."""

from __future__ import annotations

from fcm_estimators.cli import main

if __name__ == "__main__":
    main()
