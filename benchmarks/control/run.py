"""`python -m benchmarks control`: two tables, or fewer runs and groups; or that of memory alone."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from benchmarks.control import latency, memory, record
from benchmarks.table import show


def run(arguments: Sequence[str] = ()) -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks control", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer runs and groups")
    parser.add_argument(
        "--memory",
        action="store_true",
        help="the memory of 2,000 groups alone: a quarter of an hour, or with --quick that of 400 in three minutes",
    )
    asked = parser.parse_args(arguments)
    if asked.memory:
        show("Memory of what records", memory.run(2 * memory.FEW) if asked.quick else memory.run())
        return
    show("From Prefect to the station", latency.run(20, 4) if asked.quick else latency.run())
    show("The record", record.run(3) if asked.quick else record.run())
