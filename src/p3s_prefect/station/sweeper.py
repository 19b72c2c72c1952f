"""Removing what no publication names: objects of executions that lost, failed, or were killed half-way."""

from __future__ import annotations

from itertools import groupby

from p3s_prefect.adapters.ledger import sweeping
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.core.ports import ObjectStore


def sweep(ledger: Ledger, store: ObjectStore, older_than: float) -> list[str]:
    """Removes orphans last modified before `older_than` (UTC, seconds since 1970) and returns their keys.

    What a running attempt writes is spared, however old, and so are the logs of attempts that failed. Where a commit
    record says that something was published of which this ledger knows nothing, it is the ledger that lacks it.
    """
    removed = []
    for prefix, found in groupby(store.list("runs/"), key=lambda found: _prefix(found.key)):
        objects = list(found)
        with ledger.reading() as connection:
            keeps = sweeping.keeper(connection, prefix)
        if keeps is None and any(one.key == f"{prefix}/commit.json" for one in objects):
            continue
        for one in objects:
            if one.modified_at < older_than and (keeps is None or not keeps(one.key)):
                store.delete(one.key)
                removed.append(one.key)
    return removed


def _prefix(key: str) -> str:
    """The attempt's part of an object's key: everything up to and with ``attemptN``."""
    parts = key.split("/")
    ends = [place for place, part in enumerate(parts) if part.startswith("attempt") and part[7:].isdigit()]
    return "/".join(parts[: ends[0] + 1]) if ends else key
