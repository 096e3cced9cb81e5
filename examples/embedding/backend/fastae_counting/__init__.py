"""Counts of what a training computed: the backend itself is in ``backend.py``."""

from fastae_counting.counts import COUNTS, Count, report, reset

__all__ = ["COUNTS", "Count", "report", "reset"]
