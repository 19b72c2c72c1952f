"""`python -m benchmarks control [--quick] [--memory]`: two tables, or fewer runs and groups; or that of memory alone.

The memory of 2,000 groups takes a quarter of an hour, and that of 400, with `--quick`, three minutes.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.control import latency, memory, record
from benchmarks.table import show


def run(words: Sequence[str] = ()) -> None:
    """Prints the tables."""
    is_quick = "--quick" in words
    if "--memory" in words:
        show("Memory of what records", memory.run(2 * memory.FEW) if is_quick else memory.run())
        return
    show("From Prefect to the station", latency.run(20, 4) if is_quick else latency.run())
    show("The record", record.run(3) if is_quick else record.run())
