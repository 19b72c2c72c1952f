"""Products whose rows are in archives, for a comparison with the store (B11, S10)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from sqlalchemy import Connection

from p3s_prefect.adapters.archive_files import read_manifest, rows_in
from p3s_prefect.adapters.ledger.archiving import archives_of
from p3s_prefect.adapters.ledger.booked_objects import BookedAttempt, BookedObject
from p3s_prefect.adapters.ledger.schema import product
from p3s_prefect.core.errors import StoreError
from p3s_prefect.core.ports import ObjectStore

# Attempts come in the order of their run collections, which is about that of archives; each has up to 100,000 rows.
_MOST_KEPT = 2


class ArchivedProducts:
    """Of each attempt; the archives that were asked for last are kept."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._kept: dict[str, Mapping[int, Sequence[BookedObject]]] = {}

    def of(self, connection: Connection, attempt: BookedAttempt) -> tuple[BookedObject, ...]:
        """Its archived products; none where the archive cannot be read, which is a finding of its own."""
        names = archives_of(connection, attempt.group)
        return tuple(found for name in names for found in self._products(name).get(attempt.id, ()))

    def _products(self, name: str) -> Mapping[int, Sequence[BookedObject]]:
        if name not in self._kept:
            while len(self._kept) >= _MOST_KEPT:
                del self._kept[next(iter(self._kept))]
            try:
                self._kept[name] = self._read(name)
            except StoreError:
                self._kept[name] = {}
        return self._kept[name]

    def _read(self, name: str) -> Mapping[int, Sequence[BookedObject]]:
        found: dict[int, list[BookedObject]] = defaultdict(list)
        for row in rows_in(self._store, read_manifest(self._store, name).table(product.name), product):
            names = ("id", "key", "size", "sha256", "damage")
            same = {column: row[column] for column in names}
            found[row["attempt_id"]].append(BookedObject(table=product, name=row["title"], is_archived=True, **same))
        return found
