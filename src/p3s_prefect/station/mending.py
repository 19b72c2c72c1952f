"""Mending one disagreement of books and storage: from a good copy, as the other side says, or with a mark (B11)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar

from p3s_prefect.adapters.ledger import booked_objects, execution
from p3s_prefect.adapters.ledger.archived import reading_about
from p3s_prefect.adapters.ledger.booked_objects import BookedAttempt, BookedObject
from p3s_prefect.adapters.ledger.commit_records import commit_record, configuration_content
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.adapters.stored_executions import read_record
from p3s_prefect.core.agreement import Done, Trouble
from p3s_prefect.core.commit_record import configuration_key
from p3s_prefect.core.errors import LedgerError, StoreError
from p3s_prefect.core.ports import ObjectStore
from p3s_prefect.core.records import OutputObject, PublishedObject
from p3s_prefect.station.comparing import Problem
from p3s_prefect.station.recorder import RecordWriter

_T = TypeVar("_T")

_LEFT = {
    Trouble.UNRECORDED: "its unit can be processed anew; nothing removes it",
    Trouble.UNREADABLE: "put the record back from a copy of the store",
    Trouble.TWICE: "what the ledger says stays, and so do the other's objects",
}


class Mender:
    """Mends what `compare` has found, at one moment `now` (UTC in seconds since 1970)."""

    def __init__(self, ledger: Ledger, store: ObjectStore, copies: Sequence[ObjectStore], now: float) -> None:
        self._ledger = ledger
        self._store = store
        self._other_stores = copies
        self._now = now

    def mend(self, problem: Problem) -> tuple[Done, str]:
        """What became of it, and what was done.

        Raises:
            StoreError: the store cannot be read or written; run it again.
        """
        if problem.trouble in _LEFT:
            return Done.LEFT, _LEFT[problem.trouble]
        if problem.trouble is Trouble.ARCHIVE:
            return self._mend_archive(problem)
        if problem.trouble is Trouble.BOOKS and _given(problem.booked).is_archived:
            return Done.LEFT, "its row is in an archive, where nothing is changed any more"
        if problem.trouble in (Trouble.MISSING, Trouble.SIZE, Trouble.CHECKSUM):
            return self._mend_object(problem)
        mends: dict[Trouble, tuple[Callable[[Problem], None], str]] = {
            Trouble.BOOKS: (self._correct, "the ledger is corrected"),
            Trouble.MENDED: (self._clear, "it is used again"),
            Trouble.NO_ENTRY: (self._add_entry, "the ledger has it again"),
            Trouble.NO_MANIFEST: (self._write_manifest, "written again, as the ledger says"),
            Trouble.NO_RECORD: (self._write_record, "written again, as the ledger says"),
            Trouble.NO_CONFIGURATION: (self._write_configuration, "written again, as the ledger says"),
            Trouble.LOG: (self._forget_log, "the ledger does not name it any more"),
            Trouble.ORPHAN: (self._remove, "removed"),
        }
        mend, told = mends[problem.trouble]
        mend(problem)
        return Done.MENDED, told

    # --- a damaged object ---------------------------------------------------------------------------------------

    def _mend_object(self, problem: Problem) -> tuple[Done, str]:
        booked = _given(problem.booked)
        for key, store in self._copies(problem, booked):
            if self._put_back(booked.key, booked.sha256, key, store):
                return Done.MENDED, f"put back from {store.url}/{key}"
        if booked.is_archived:
            return Done.LEFT, "no good copy was found, and its row is in an archive, where nothing is marked any more"
        what = problem.what.removeprefix(f"{booked.name}: ")
        with self._ledger.transaction() as connection:
            booked_objects.note_damage(connection, booked, what, problem.data_id, self._now)
        again = "`p3s reconcile --again` asks the station to process anew what it was made from"
        return Done.MARKED, f"no good copy was found, so nothing reads it any more; {again}"

    def _copies(self, problem: Problem, booked: BookedObject) -> Iterator[tuple[str, ObjectStore]]:
        """Where the same bytes may be."""
        for store in self._other_stores:
            yield booked.key, store
        with self._ledger.reading() as connection:
            keys = booked_objects.keys_with(connection, booked.sha256, booked.size)
        yield from ((key, self._store) for key in keys if key != booked.key)
        # Dask may run an order twice: beside the execution that was published, the other's object may be the same.
        name = booked.key.rpartition("/")[2]
        for one in list(self._store.list(f"{problem.prefix}/")):
            if one.size == booked.size and one.key.rpartition("/")[2] == name and one.key != booked.key:
                yield one.key, self._store

    def _mend_archive(self, problem: Problem) -> tuple[Done, str]:
        entry = _given(problem.entry)
        for store in self._other_stores:
            if self._put_back(entry.key, entry.sha256, entry.key, store):
                return Done.MENDED, f"put back from {store.url}/{entry.key}"
        return Done.LEFT, "no good copy was found: `p3s reconcile --copies DIR` looks in a copy of the store"

    def _put_back(self, place: str, sha256: str, key: str, store: ObjectStore) -> bool:
        with TemporaryDirectory(prefix="p3s-") as scratch:
            try:
                good = store.fetch(key, Path(scratch), sha256)
            except StoreError:
                return False
            # Only now, with what was published at hand and verified: objects are never written over.
            self._store.delete(place)
            self._store.put_file(place, good)
        return True

    # --- what the other side says -------------------------------------------------------------------------------

    def _correct(self, problem: Problem) -> None:
        entry, booked = _given(problem.entry), _given(problem.booked)
        with self._ledger.transaction() as connection:
            booked_objects.correct(connection, booked, entry.size, entry.sha256, problem.data_id, self._now)

    def _clear(self, problem: Problem) -> None:
        with self._ledger.transaction() as connection:
            booked_objects.note_damage(connection, _given(problem.booked), None, problem.data_id, self._now)

    def _add_entry(self, problem: Problem) -> None:
        output, number = _given(problem.entry), None
        if isinstance(output, OutputObject):
            with suppress(StoreError):
                number = read_record(self._store, _given(problem.attempt).place).datasets.get(output.dataset_type)
            with self._ledger.transaction() as connection:
                booked_objects.add_missing(connection, _given(problem.manifest), output, number)

    def _write_manifest(self, problem: Problem) -> None:
        attempt = _given(problem.attempt)
        log = self._log(attempt)
        with reading_about(self._ledger, self._store, attempt.group) as connection:
            manifest = booked_objects.manifest_of(connection, attempt.id, log)
        self._write_anew(problem.key, manifest.model_dump_json().encode())

    def _log(self, attempt: BookedAttempt) -> PublishedObject | None:
        if attempt.log_key is None:
            return None
        with suppress(StoreError):
            content = self._store.read_bytes(attempt.log_key)
            sha256 = hashlib.sha256(content).hexdigest()
            return PublishedObject(key=attempt.log_key, size=len(content), sha256=sha256)
        return None

    def _write_record(self, problem: Problem) -> None:
        attempt = _given(problem.attempt)
        with self._ledger.reading() as connection:
            record = commit_record(connection, attempt.id)
        self._store.delete(problem.key)
        RecordWriter(self._store, self._ledger).write(record)
        with self._ledger.transaction() as connection:
            execution.mark_recorded(connection, [attempt.id])

    def _write_configuration(self, problem: Problem) -> None:
        number = problem.key.rpartition("/")[2].removesuffix(".json")
        with self._ledger.reading() as connection:
            content = configuration_content(connection, number)
        self._write_anew(configuration_key(number), json.dumps(content, sort_keys=True).encode())

    def _forget_log(self, problem: Problem) -> None:
        with self._ledger.transaction() as connection:
            booked_objects.forget_log(connection, _given(problem.attempt).id)

    def _remove(self, problem: Problem) -> None:
        self._store.delete(problem.key)

    def _write_anew(self, key: str, content: bytes) -> None:
        # What is lost with the old one, the ledger knows: it is damaged, or says less.
        self._store.delete(key)
        self._store.put_bytes(key, content)


def _given(value: _T | None) -> _T:
    if value is None:
        raise LedgerError("a disagreement without what it is about", fix="This is a defect; report it.")
    return value
