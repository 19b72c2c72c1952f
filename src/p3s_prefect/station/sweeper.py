"""Removing what no publication names: objects of executions that lost, failed, or were killed half-way."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from p3s_prefect.adapters.ledger import sweeping
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.core.ports import ObjectInfo, ObjectStore


def sweep(ledger: Ledger, store: ObjectStore, older_than: float) -> list[str]:
    """Removes orphans last modified before `older_than` (UTC, seconds since 1970) and returns their keys.

    What a running attempt writes is spared, however old, and so are the logs of attempts that failed.
    """
    removed = []
    for prefix, objects in groupby(store.list("runs/"), key=lambda found: _prefix(found.key)):
        with ledger.reading() as connection:
            keeps = sweeping.keeper(connection, prefix)
        for found in _older(objects, older_than):
            if not keeps(found.key):
                store.delete(found.key)
                removed.append(found.key)
    return removed


def _older(objects: Iterator[ObjectInfo], moment: float) -> Iterator[ObjectInfo]:
    return (found for found in objects if found.modified_at < moment)


def _prefix(key: str) -> str:
    """The attempt's part of an object's key: everything up to and with ``attemptN``."""
    parts = key.split("/")
    ends = [place for place, part in enumerate(parts) if part.startswith("attempt") and part[7:].isdigit()]
    return "/".join(parts[: ends[0] + 1]) if ends else key
