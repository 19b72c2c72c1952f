"""Removing what no publication names: objects of executions that lost, failed, or were killed half-way."""

from __future__ import annotations

from itertools import groupby

from p3s_prefect.adapters.ledger import sweeping
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.core.commit_record import MANIFEST_FILE, RECORD_FILE
from p3s_prefect.core.naming import attempt_of
from p3s_prefect.core.ports import ObjectInfo, ObjectStore


def sweep(ledger: Ledger, store: ObjectStore, older_than: float, since: float | None = None) -> list[str]:
    """Removes orphans last modified before `older_than` and returns their keys; times are UTC in seconds since 1970.

    What a running attempt writes is spared, however old, and so are the logs of attempts that failed. What a commit
    record stands beside was published, whatever this ledger knows of it: it may have been restored from a backup that
    is older. So may be what has a manifest below an attempt that this ledger has never opened. With `since`, only the
    run collections are looked through in which an attempt was opened after it.
    """
    with ledger.reading() as connection:
        collections = sweeping.collections(connection, since)
    removed = []
    for collection in collections:
        for prefix, found in groupby(store.list(f"runs/{collection}/"), key=lambda found: attempt_of(found.key)):
            for orphan in _orphans(ledger, prefix, list(found), older_than):
                store.delete(orphan)
                removed.append(orphan)
    return removed


def _orphans(ledger: Ledger, prefix: str, objects: list[ObjectInfo], older_than: float) -> list[str]:
    with ledger.reading() as connection:
        keeps = sweeping.keeper(connection, prefix)
    marks = (RECORD_FILE,) if keeps is not None else (RECORD_FILE, MANIFEST_FILE)
    published = tuple(one.key.removesuffix(mark) for one in objects for mark in marks if one.key.endswith(f"/{mark}"))
    return [
        one.key
        for one in objects
        if one.modified_at < older_than
        and not one.key.startswith(published)
        and not (keeps is not None and keeps(one.key))
    ]
