"""Public data sets, verified by checksum, and simulated cohorts."""

from __future__ import annotations

from fcm_estimators.datasets._public import (
    fetch_all494,
    fetch_flowjo_example,
    fetch_multicenter_cytof,
)
from fcm_estimators.datasets._simulate import simulate_cohort

__all__ = ["fetch_all494", "fetch_flowjo_example", "fetch_multicenter_cytof", "simulate_cohort"]
