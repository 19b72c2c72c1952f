"""Removing arrived files from the watched place: only what is processed, copied and aged, and never on a guess."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Connection

from p3s_prefect.adapters.directory_store import file_sha256
from p3s_prefect.adapters.ledger import purged
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.adapters.stored_executions import damage_of
from p3s_prefect.core.errors import StoreError
from p3s_prefect.core.ports import Clock, ObjectStore
from p3s_prefect.core.purging import PurgeFacts, PurgeRow, why_kept

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Purge:
    """What is removed, and under which conditions."""

    ledger: Ledger
    store: ObjectStore
    clock: Clock
    roots: dict[str, Path]
    """The watched directory of each stream that is looked at."""
    copied_to: Sequence[Path]
    """Directories where the same file may be, under the same name below the watched directory, or under its own."""
    older_than_s: float
    by: str

    def plan(self) -> Iterator[PurgeRow]:
        """Every file that was taken and is still there, and what would become of it. Nothing is changed."""
        for stream, root in self.roots.items():
            after = 0
            while rows := self._read(partial(purged.taken_files, stream=stream, after=after)):
                yield from (self._judge(row, root) for row in rows)
                after = rows[-1].id

    def remove(self, row: PurgeRow) -> PurgeRow:
        """Removes a file of the plan, and notes it; what has changed meanwhile stays."""
        # Looked at beforehand: copies may be on a tape or a mount that hangs, and as long as this writes, no station
        # commits. What goes away between this and the removal would do so after it as well.
        if row.is_file_copy and not Path(row.copy).is_file():
            return _kept(row, "its copy is gone")
        # The plan may be hours old, and nobody asks for work on the file as long as this writes: so what the ledger
        # knows, the file's own identity and its removal belong together.
        with self.ledger.transaction() as connection:
            if why := self._why_kept_now(connection, row):
                return _kept(row, why)
            try:
                Path(row.path).unlink(missing_ok=True)
            except OSError as error:
                return _kept(row, f"it cannot be removed: {error.strerror or error}")
            # Killed in between, the next purge finds that it is gone, looks for the copy again, and notes it.
            purged.note_purged(connection, row, by=self.by, now=self.clock.now())
        return row

    # --- inside -------------------------------------------------------------------------------------------------

    def _read(self, query: Callable[[Connection], _T]) -> _T:
        """An answer of the ledger, which is not kept open while files are read: that may take hours."""
        with self.ledger.reading() as connection:
            return query(connection)

    def _why_kept_now(self, connection: Connection, row: PurgeRow) -> str:
        taken = purged.taken_file(connection, row.arrival_id)
        if taken is None:
            return "it was removed or archived meanwhile"
        if why := self._why_kept(connection, taken, self.roots[row.stream]):
            return why
        if row.is_file_copy:
            return ""
        keys = purged.objects_with(connection, taken.sha256, taken.size)
        return "" if any(row.copy == self._address(key) for key in keys) else "its copy is gone"

    def _why_kept(self, connection: Connection, row: Any, root: Path) -> str:
        states, is_open = purged.made_from(connection, row.id)
        facts = PurgeFacts(
            arrived_at=row.arrived_at,
            sha256=row.sha256,
            states=states,
            is_group_open=is_open,
            has_damage=purged.has_damage(connection, row.id),
            trouble=_trouble(row, root),
        )
        return why_kept(facts, now=self.clock.now(), older_than_s=self.older_than_s)

    def _address(self, key: str) -> str:
        return f"{self.store.url}/{key}"

    def _judge(self, row: Any, root: Path) -> PurgeRow:
        why = self._read(partial(self._why_kept, row=row, root=root))
        copy, is_file = ("", False) if why else self._copy(row, root)
        if not why and not copy:
            why = "no copy of it was found"
        return PurgeRow(
            arrival_id=row.id,
            stream=row.stream,
            data_id=row.data_id or "",
            path=row.path,
            size=row.size,
            mtime_ns=row.mtime_ns,
            goes=not why,
            why=why or "processed, copied and old enough",
            copy=copy,
            is_file_copy=is_file,
        )

    def _copy(self, row: Any, root: Path) -> tuple[str, bool]:
        """Where the same bytes are, read to the last one; and whether that is a file."""
        path = Path(row.path)
        for directory in self.copied_to:
            for name in dict.fromkeys((path.relative_to(root), Path(path.name))):
                copy = directory / name
                with suppress(OSError):
                    is_other = not path.exists() or not copy.samefile(path)
                    if is_other and copy.stat().st_size == row.size and file_sha256(copy) == row.sha256:
                        return str(copy.resolve()), True
        for key in self._read(partial(purged.objects_with, sha256=row.sha256, size=row.size)):
            with suppress(StoreError):
                seen = next((one for one in self.store.list(key) if one.key == key), None)
                if damage_of(self.store, key, row.size, row.sha256, seen) is None:
                    return self._address(key), False
        return "", False


def _trouble(row: Any, root: Path) -> str:
    """Why a file is not the one that was taken, or none of the watched place."""
    path = Path(row.path)
    if not path.is_relative_to(root) or ".." in path.parts:
        return "it is not in the watched directory"
    try:
        found = path.lstat()
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"it cannot be looked at: {error.strerror or error}"
    if not stat.S_ISREG(found.st_mode) or (found.st_size, found.st_mtime_ns) != (row.size, row.mtime_ns):
        return "it is not the file that was taken any more"
    return ""


def _kept(row: PurgeRow, why: str) -> PurgeRow:
    return replace(row, goes=False, why=why)
