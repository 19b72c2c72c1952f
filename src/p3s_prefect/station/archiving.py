"""Archiving closed periods: written and read back before anything leaves the ledger, and noted when it has (S10).

Killed at any point, the next run goes on: an archive is named by its content, its manifest is written last, and the
rows go in the transaction that notes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256

from p3s_prefect.adapters import archive_files
from p3s_prefect.adapters.journal_segments import export
from p3s_prefect.adapters.ledger import archiving
from p3s_prefect.adapters.ledger.archiving import Part
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.core.archiving import ArchivedGroup, ArchiveManifest, ArchiveRow
from p3s_prefect.core.errors import Conflict, StoreError
from p3s_prefect.core.ports import Clock, ObjectStore

# A transaction in which so many rows are compared and removed takes about 2 s; a station waits for it.
_ROWS_AT_ONCE = 100_000
_GROUPS_AT_ONCE = 500


@dataclass(frozen=True, kw_only=True)
class Archived:
    """What came of it."""

    groups: tuple[ArchiveRow, ...]
    """Every group that was looked at."""
    archives: tuple[ArchiveManifest, ...] = ()
    """Those that are noted now."""
    left: tuple[tuple[str, str], ...] = ()
    """Archives of the store that this ledger does not know, and why they stay as they are."""


@dataclass(kw_only=True)
class Archiving:
    """What is archived, and where."""

    ledger: Ledger
    store: ObjectStore
    clock: Clock
    by: str
    sweep_after_s: float
    """Files of an archive that was never completed go when they are this old."""
    progress: Callable[[str, int, int | None], None] = field(default=lambda what, done, total: None)

    def plan(self, before: float) -> tuple[ArchiveRow, ...]:
        """Every group with something to archive, and what would become of it; `before` is UTC in seconds since 1970."""
        rows: list[ArchiveRow] = []
        with self.ledger.reading() as connection:
            for row in archiving.candidates(connection, before):
                rows.append(row)
                self.progress("looking at groups", len(rows), None)
        return tuple(rows)

    def run(self, before: float) -> Archived:
        """Archives every group that may go.

        Raises:
            StoreError: an archive could not be written or read back; its rows are still in the ledger.
            Conflict: a group was changed meanwhile; its rows are still in the ledger.
        """
        completed, left = self._complete()
        groups = self.plan(before)
        # Lines that leave the ledger are in the store twice: among the groups' rows, and in order.
        journal_to = export(self.ledger, self.store).number
        made = [self._archive(some, journal_to) for some in _parts(groups)]
        return Archived(groups=groups, archives=(*completed, *made), left=tuple(left))

    # --- inside -------------------------------------------------------------------------------------------------

    def _archive(self, rows: list[ArchiveRow], journal_to: int) -> ArchiveManifest:
        groups = [ArchivedGroup(id=row.group_id, data_id=row.data_id, day=row.day) for row in rows]
        with self.ledger.reading() as connection:
            recorded_to = archiving.recorded_to(connection)
        part = Part(
            groups=tuple(group.id for group in groups),
            journal_to=journal_to if recorded_to is None else min(journal_to, recorded_to),
        )
        manifest = archive_files.write(self.ledger, self.store, groups, part, self.progress)
        self._take_out(manifest)
        return manifest

    def _take_out(self, manifest: ArchiveManifest) -> None:
        """Reads an archive back, and removes its rows from the ledger."""
        content = self.store.read_bytes(manifest.key)
        archive_files.verify(self.store, manifest, self.progress)
        self.progress("removing rows", 0, manifest.moved)
        with self.ledger.transaction() as connection:
            archiving.take_out(connection, manifest, sha256(content).hexdigest(), by=self.by, now=self.clock.now())

    def _complete(self) -> tuple[list[ArchiveManifest], list[tuple[str, str]]]:
        """Goes on where an earlier run ended: archives that are whole and not noted, files of those that are not."""
        with self.ledger.reading() as connection:
            noted = archiving.archives(connection)
        whole, unfinished = archive_files.stored_archives(self.store)
        completed: list[ArchiveManifest] = []
        left: list[tuple[str, str]] = []
        for name in whole:
            if name not in noted:
                try:
                    manifest = archive_files.read_manifest(self.store, name)
                    self._take_out(manifest)
                except (Conflict, StoreError) as error:
                    left.append((name, error.what))
                else:
                    completed.append(manifest)
        older_than = self.clock.now() - self.sweep_after_s
        for name, objects in unfinished.items():
            for key, modified_at in objects:
                # One that is noted has lost its manifest, and is to be put back, not removed.
                if name not in noted and modified_at < older_than:
                    self.store.delete(key)
        return completed, left


def _parts(groups: tuple[ArchiveRow, ...]) -> Iterator[list[ArchiveRow]]:
    """Those that go, in archives of a bounded size."""
    part: list[ArchiveRow] = []
    for row in (one for one in groups if one.goes):
        if part and (len(part) == _GROUPS_AT_ONCE or sum(one.rows for one in part) + row.rows > _ROWS_AT_ONCE):
            yield part
            part = []
        part.append(row)
    if part:
        yield part
