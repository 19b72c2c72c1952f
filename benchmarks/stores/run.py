"""`python -m benchmarks stores [--quick]`: all tables, or the same with fewer repetitions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.stores import ledger, listing, publication
from benchmarks.table import Row, show

# Each takes whether it shall be quick.
TABLES: dict[str, Callable[[bool], Sequence[Row]]] = {
    "Publication to S3 (SeaweedFS on this machine), against plain boto3 in the same run": publication.run,
    "Looking through a bucket of known keys, against a bare listing in the same run": listing.run,
    "Transitions of the ledger": ledger.run,
}


def run(words: Sequence[str] = ()) -> None:
    """Prints the tables."""
    for title, measure in TABLES.items():
        show(title, measure("--quick" in words))
