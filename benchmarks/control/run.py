"""`python -m benchmarks control [--quick]`: both tables, or fewer runs and groups."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.control import latency, record
from benchmarks.table import show


def run(words: Sequence[str] = ()) -> None:
    """Prints the tables."""
    is_quick = "--quick" in words
    show("From Prefect to the station", latency.run(20, 4) if is_quick else latency.run())
    show("The record", record.run(3) if is_quick else record.run())
