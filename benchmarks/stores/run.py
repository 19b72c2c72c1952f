"""`python -m benchmarks stores`: all tables, or the same with fewer repetitions."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from benchmarks.stores import ledger, listing, publication
from benchmarks.table import Row, show

# Each takes whether it shall be quick.
TABLES: dict[str, Callable[[bool], Sequence[Row]]] = {
    "Publication to S3 (SeaweedFS on this machine), against plain boto3 in the same run": publication.run,
    "Looking through a bucket of known keys, against a bare listing in the same run": listing.run,
    "Transitions of the ledger": ledger.run,
}


def run(arguments: Sequence[str] = ()) -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks stores", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    asked = parser.parse_args(arguments)
    for title, measure in TABLES.items():
        show(title, measure(asked.quick))
