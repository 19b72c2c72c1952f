"""Filling a ledger from the store: a new one with all that was published, a restored one with what it lacks (S10).

Two looks at the store: the first finds what was published and what contradicts itself, the second takes over in the
order of publication, so that what was read is there before who has read it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal, NamedTuple

from sqlalchemy import Connection, func, select

from p3s_prefect.adapters.ledger import schema
from p3s_prefect.adapters.ledger.adoption import NOT_RECORDED, Adoption, continue_numbers
from p3s_prefect.adapters.ledger.database import Lease, Ledger
from p3s_prefect.adapters.stored_executions import (
    StoredExecution,
    damage_of,
    read_configuration,
    read_manifest,
    read_record,
    stored_executions,
)
from p3s_prefect.core.agreement import Done, Finding, Trouble
from p3s_prefect.core.commit_record import CommitRecord
from p3s_prefect.core.errors import Conflict, ObjectMissing, StoreError
from p3s_prefect.core.ports import ObjectStore
from p3s_prefect.core.records import Manifest

Prefer = Literal["", "earlier", "later"]
Progress = Callable[[str, int, int | None], None]
"""What is being done, how many are done, of how many (None if nobody knows)."""

# A transaction is durable at its end: one for each publication would cost more than all the rest.
_AT_ONCE = 200


class _Published(NamedTuple):
    """What is remembered of each publication between the two looks: a ledger may have a million."""

    at: float
    attempt_id: int
    place: str


@dataclass(frozen=True, kw_only=True)
class _Read:
    """A publication as the store has it."""

    record: CommitRecord
    manifest: Manifest
    configuration: Mapping[str, Any]
    damage: Mapping[str, str]
    """What is wrong with which of its objects, by key."""


@dataclass(kw_only=True)
class TakenOver:
    """What came of it."""

    publications: int = 0
    """Taken over now."""
    known: int = 0
    """Which the ledger had already."""
    datasets: int = 0
    not_recorded: int = 0
    """Stage runs of which no record tells how they ended; they are cancelled."""
    findings: list[Finding] = field(default_factory=list)
    """What could not be told, or is damaged."""


def take_over(
    ledger: Ledger,
    store: ObjectStore,
    now: float,
    *,
    lease: Lease | None = None,
    prefer: Prefer = "",
    quick: bool = False,
    places: Iterable[str] | None = None,
    progress: Progress = lambda what, done, total: None,
) -> TakenOver:
    """Takes over every publication of the store that the ledger does not know; repeating it changes nothing.

    With `places`, only those executions are looked at. Where two attempts at the same are both committed, none is taken
    over, unless `prefer` says which. With `quick`, objects are compared by size alone.
    """
    taken = TakenOver()
    found = _first_look(store, _stored(store, places), taken, prefer, progress)
    pages = iter(sorted(found))
    configurations: dict[str, Mapping[str, Any]] = {}
    done = 0
    while page := list(islice(pages, _AT_ONCE)):
        # Read before anything is written: a store may be slow, and writers of the ledger come one at a time.
        records = _unknown(ledger, [read_record(store, one.place) for one in page], taken)
        read = [one for record in records if (one := _read(store, record, configurations, taken, quick=quick))]
        with ledger.transaction(lease) as connection:
            adoption = Adoption(connection)
            for one in read:
                _adopt(adoption, one, taken, now)
            continue_numbers(connection)
        done += len(page)
        progress("taking over", done, len(found))
    with ledger.reading() as connection:
        taken.not_recorded = _not_recorded(connection)
    return taken


def _stored(store: ObjectStore, places: Iterable[str] | None) -> Iterator[StoredExecution]:
    if places is None:
        return stored_executions(store)
    return (found for place in places for found in stored_executions(store, f"{place}/"))


def _first_look(
    store: ObjectStore, executions: Iterator[StoredExecution], taken: TakenOver, prefer: Prefer, progress: Progress
) -> list[_Published]:
    rivals: dict[str, list[_Published]] = defaultdict(list)
    prefixes: set[str] = set()
    unrecorded: list[StoredExecution] = []
    for number, execution in enumerate(executions):
        if number % 100 == 0:
            progress("looking through the store", number, None)
        if execution.is_recorded:
            prefixes.add(execution.prefix)
            try:
                record = read_record(store, execution.place)
            except StoreError as error:
                _note(taken, Trouble.UNREADABLE, execution.place, "", f"its commit record: {error.what}", error.fix)
                continue
            key = f"{record.collection.name} {record.sub_job.per} {record.sub_job.data_id} {record.stage.stage}"
            rivals[key].append(_Published(record.attempt.published_at, record.attempt.id, execution.place))
        elif execution.has_manifest:
            unrecorded.append(execution)
    for execution in unrecorded:
        # Dask may run an order twice: beside an execution that was published, the other is none.
        if execution.prefix not in prefixes:
            _unrecorded(store, execution, taken)
    return [one for group in rivals.values() for one in _chosen(group, taken, prefer)]


def _unrecorded(store: ObjectStore, execution: StoredExecution, taken: TakenOver) -> None:
    data_id = ""
    with suppress(StoreError):
        data_id = read_manifest(store, execution.place).data_id
    what = "everything was written, and no commit record says that it was published"
    fix = "If it was, it was in the last moments; its unit can be processed anew."
    _note(taken, Trouble.UNRECORDED, execution.place, data_id, what, fix)


def _chosen(rivals: list[_Published], taken: TakenOver, prefer: Prefer) -> list[_Published]:
    if len(rivals) == 1:
        return rivals
    in_order = sorted(rivals)
    chosen = {"": [], "earlier": in_order[:1], "later": in_order[-1:]}[prefer]
    for one in in_order:
        if one not in chosen:
            others = ", ".join(other.place for other in in_order if other is not one)
            fix = "It is left out." if prefer else "Neither is taken over; choose with --prefer earlier or later."
            _note(taken, Trouble.TWICE, one.place, "", f"{others} is published for the same stage", fix)
    return chosen


def _unknown(ledger: Ledger, records: list[CommitRecord], taken: TakenOver) -> list[CommitRecord]:
    with ledger.reading() as connection:
        adoption = Adoption(connection)
        unknown = [record for record in records if not adoption.is_known(record)]
    taken.known += len(records) - len(unknown)
    return unknown


def _read(
    store: ObjectStore,
    record: CommitRecord,
    configurations: dict[str, Mapping[str, Any]],
    taken: TakenOver,
    *,
    quick: bool,
) -> _Read | None:
    """The publication of a record; None if what it published is not known."""
    number = record.collection.configuration_id
    try:
        manifest = read_manifest(store, record.place)
        if number not in configurations:
            configurations[number] = read_configuration(store, number)
    except StoreError as error:
        trouble = Trouble.UNREADABLE if not isinstance(error, ObjectMissing) else Trouble.NO_MANIFEST
        what = f"what it published is not known: {error.what}"
        _note(taken, trouble, record.place, record.sub_job.data_id, what, error.fix)
        return None
    damage = _damage(store, record, manifest, taken, quick=quick)
    return _Read(record=record, manifest=manifest, configuration=configurations[number], damage=damage)


def _adopt(adoption: Adoption, one: _Read, taken: TakenOver, now: float) -> None:
    place, data_id = one.record.place, one.record.sub_job.data_id
    savepoint = adoption.connection.begin_nested()
    try:
        adoption.adopt(one.record, one.manifest, one.configuration, one.damage, now)
    except Conflict as conflict:
        savepoint.rollback()
        _note(taken, Trouble.TWICE, place, data_id, conflict.what, conflict.fix)
        return
    savepoint.commit()
    taken.publications += 1
    taken.datasets += len(one.manifest.outputs)
    for remark in adoption.remarks:
        _note(taken, Trouble.FOREIGN, place, data_id, remark, "Its lineage has the checksum, and names no dataset.")


def _damage(
    store: ObjectStore, record: CommitRecord, manifest: Manifest, taken: TakenOver, *, quick: bool
) -> dict[str, str]:
    seen = {one.key: one for one in store.list(f"{record.place}/")}
    damage = {}
    for one in [*manifest.outputs, *manifest.products]:
        wrong = damage_of(store, one.key, one.size, one.sha256, seen.get(one.key), quick=quick)
        if wrong is not None:
            damage[one.key] = wrong[1]
            told = "It is marked as damaged. `p3s reconcile --copies DIR` puts it back from a copy of the store."
            _note(taken, wrong[0], one.key, record.sub_job.data_id, wrong[1], told, Done.MARKED)
    return damage


def _note(
    taken: TakenOver, trouble: Trouble, key: str, data_id: str, what: str, told: str, done: Done = Done.LEFT
) -> None:
    taken.findings.append(Finding(trouble=trouble, key=key, data_id=data_id, what=what, done=done, told=told))


def _not_recorded(connection: Connection) -> int:
    of_them = schema.stage_run.c.reason == NOT_RECORDED
    return connection.scalar(select(func.count()).select_from(schema.stage_run).where(of_them)) or 0


def is_empty(connection: Connection) -> bool:
    """Whether nothing has ever been taken into a ledger."""
    tables = (schema.arrival, schema.data_group, schema.attempt)
    return all(connection.scalar(select(table.c.id).limit(1)) is None for table in tables)


def rows_by_table(connection: Connection) -> Iterator[tuple[str, int]]:
    """How many rows each table has."""
    for table in schema.metadata.sorted_tables:
        yield table.name, connection.scalar(select(func.count()).select_from(table)) or 0
