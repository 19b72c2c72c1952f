"""What of the ledger can be archived, and taking it out (S10).

What later work reads stays: arrivals, groups, passes, sub-jobs, stage runs, attempts and datasets. What goes is what
only people read: two thirds of all bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import JSON, ColumnElement, CompoundSelect, Connection, Select, Table, and_, delete, func, select

from p3s_prefect.adapters.ledger import journal as journal_lines
from p3s_prefect.adapters.ledger.rows import add_all
from p3s_prefect.adapters.ledger.schema import (
    agent_cursor,
    archive,
    archived_group,
    arrival,
    attempt,
    data_group,
    dataset,
    job,
    journal,
    lineage,
    product,
    production_pass,
    request,
    run_collection,
    stage_run,
    sub_job,
    summary_value,
)
from p3s_prefect.core.archiving import ArchiveFacts, ArchiveManifest, ArchiveRow, RowsDigest, why_live
from p3s_prefect.core.errors import Conflict

MOVED = (product, summary_value, lineage, journal)
"""Their rows leave the ledger."""
COPIED = (data_group, job, production_pass, run_collection, arrival, sub_job, stage_run, attempt, dataset)
"""Their rows stay, and are in the archive too, so that it can be read by itself."""

_PAGE = 500
_READ_AT_ONCE = 10_000


@dataclass(frozen=True, kw_only=True)
class Part:
    """What one archive takes: groups, and of the journal the lines up to a number."""

    groups: tuple[int, ...]
    journal_to: int


# --- which groups ----------------------------------------------------------------------------------------------------


def candidates(connection: Connection, before: float) -> Iterator[ArchiveRow]:
    """Every group that has something to archive and to which nothing came since `before`, the oldest first."""
    known = _Known(connection)
    last = 0
    query = select(data_group).where(data_group.c.last_arrival_at < before).order_by(data_group.c.id).limit(_PAGE)
    while page := connection.execute(query.where(data_group.c.id > last)).all():
        last = page[-1].id
        ids = [group.id for group in page]
        work, rows = _work(connection, ids), _rows_that_go(connection, ids)
        for group in page:
            if not rows.get(group.id):
                continue
            units, open_work, settled_at = work.get(group.id, (0, 0, None))
            facts = ArchiveFacts(
                is_open=group.is_open or group.id in known.open_passes,
                open_work=open_work,
                ended_at=max(group.last_arrival_at, settled_at or 0.0),
                is_damaged=group.id in known.damaged,
                is_owed=group.id in known.owed,
                is_asked=known.is_asked(group.id, group.data_id),
                is_newest=group.id in known.newest,
            )
            yield ArchiveRow(
                group_id=group.id,
                data_id=group.data_id,
                day=group.day,
                units=units,
                rows=rows[group.id],
                why=why_live(facts, before),
            )


def recorded_to(connection: Connection) -> int | None:
    """Up to which line the agent has recorded the journal in Prefect; None if nobody does."""
    found: int | None = connection.scalar(select(func.min(agent_cursor.c.number)))
    return found


class _Known:
    """What keeps groups in the ledger, looked up once."""

    def __init__(self, connection: Connection) -> None:
        of_attempts = _GROUP_OF_ATTEMPTS
        open_passes = select(job.c.group_id).join(production_pass, production_pass.c.job_id == job.c.id)
        self.open_passes = set(connection.scalars(open_passes.where(production_pass.c.is_open)))
        self.damaged = {
            found
            for table in (dataset, product)
            for found in connection.scalars(
                of_attempts.join(table, table.c.attempt_id == attempt.c.id).where(table.c.damage.is_not(None))
            )
        }
        owed = of_attempts.where(attempt.c.state == "done", ~attempt.c.is_recorded)
        self.owed = set(connection.scalars(owed))
        self.newest = {
            found
            for table in (product, lineage)
            for found in connection.scalars(
                of_attempts.join(table, table.c.attempt_id == attempt.c.id).where(
                    table.c.id == select(func.max(table.c.id)).scalar_subquery()
                )
            )
        }
        details = connection.scalars(
            select(request.c.detail).where(request.c.answered_at.is_(None), request.c.detail.is_not(None))
        ).all()
        self._asked = [set(str(found.get("group") or found.get("target") or "").split()) for found in details if found]
        passes = [int(found["pass_id"]) for found in details if found and "pass_id" in found]
        of_passes = select(job.c.group_id).join(production_pass, production_pass.c.job_id == job.c.id)
        self._asked_passes = set(connection.scalars(of_passes.where(production_pass.c.id.in_(passes))))

    def is_asked(self, group_id: int, data_id: str) -> bool:
        """Whether a request names the group, a unit of it, or no data at all."""
        names = set(data_id.split())
        return group_id in self._asked_passes or any(
            names <= words or not any("=" in word for word in words) for words in self._asked if words
        )


def _work(connection: Connection, groups: Sequence[int]) -> dict[int, tuple[int, int, float | None]]:
    """By group: its sub-jobs, how many have not settled, and when the last one did."""
    settled = func.count(sub_job.c.settled_at)
    query = (
        select(job.c.group_id, func.count().label("units"), settled.label("settled"), func.max(sub_job.c.settled_at))
        .join(production_pass, production_pass.c.job_id == job.c.id)
        .join(sub_job, sub_job.c.pass_id == production_pass.c.id)
        .where(job.c.group_id.in_(groups))
        .group_by(job.c.group_id)
    )
    return {found: (units, units - ended, at) for found, units, ended, at in connection.execute(query)}


def _rows_that_go(connection: Connection, groups: Sequence[int]) -> dict[int, int]:
    """By group: how many rows of products, summary values and lineage it has; its journal goes with them."""
    found: dict[int, int] = {}
    for table in MOVED:
        if table is journal:
            continue
        query = (
            select(job.c.group_id, func.count())
            .join(production_pass, production_pass.c.job_id == job.c.id)
            .join(sub_job, sub_job.c.pass_id == production_pass.c.id)
            .join(stage_run, stage_run.c.sub_job_id == sub_job.c.id)
            .join(attempt, attempt.c.stage_run_id == stage_run.c.id)
            .join(table, table.c.attempt_id == attempt.c.id)
            .where(job.c.group_id.in_(groups))
            .group_by(job.c.group_id)
        )
        for group_id, rows in connection.execute(query):
            found[group_id] = found.get(group_id, 0) + rows
    return found


_GROUP_OF_ATTEMPTS = (
    select(job.c.group_id)
    .join(production_pass, production_pass.c.job_id == job.c.id)
    .join(sub_job, sub_job.c.pass_id == production_pass.c.id)
    .join(stage_run, stage_run.c.sub_job_id == sub_job.c.id)
    .join(attempt, attempt.c.stage_run_id == stage_run.c.id)
)


# --- their rows ------------------------------------------------------------------------------------------------------


def rows_of(connection: Connection, table: Table, part: Part) -> Iterator[dict[str, Any]]:
    """The rows of a table that belong to a part, as they are archived, in the order of their numbers."""
    # By an expression: in the order of the plain key, SQLite would walk through the whole history.
    order = [key + 0 if key.type.python_type is int else key + "" for key in table.primary_key.columns]
    found = connection.execute(select(table).where(_belongs(table, part)).order_by(*order))
    for rows in found.mappings().partitions(_READ_AT_ONCE):
        yield from (as_archived(table, row) for row in rows)


def as_archived(table: Table, row: Mapping[Any, Any]) -> dict[str, Any]:
    """A row of the ledger as it stands in an archive: JSON is text."""
    return {
        column.name: json.dumps(row[column.name]) if isinstance(column.type, JSON) else row[column.name]
        for column in table.columns
    }


def as_live(table: Table, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of an archive as the ledger has it."""
    return {
        column.name: json.loads(row[column.name]) if isinstance(column.type, JSON) else row[column.name]
        for column in table.columns
        if column.name in row
    }


def journal_of(part: Part) -> ColumnElement[bool]:
    """The lines about the units of these groups. What happened to groups as a whole stays: it is little, and read."""
    units = select(sub_job.c.data_id).where(sub_job.c.per == "unit", sub_job.c.pass_id.in_(_passes(part.groups)))
    return and_(
        journal.c.subject.in_(units),
        journal.c.number <= part.journal_to,
        journal.c.kind.not_like("group.%"),
    )


def attempts_of(groups: Iterable[int]) -> Select[Any]:
    """The numbers of all attempts of these groups."""
    runs = select(stage_run.c.id).where(stage_run.c.sub_job_id.in_(_sub_jobs(groups)))
    return select(attempt.c.id).where(attempt.c.stage_run_id.in_(runs))


def _belongs(table: Table, part: Part) -> ColumnElement[bool]:
    if table is journal:
        return journal_of(part)
    if "attempt_id" in table.c:
        return table.c.attempt_id.in_(attempts_of(part.groups))
    arrived = select(sub_job.c.arrival_id).where(sub_job.c.pass_id.in_(_passes(part.groups)))
    collections = select(production_pass.c.run_collection).where(production_pass.c.id.in_(_passes(part.groups)))
    places: dict[str, ColumnElement[bool]] = {
        "data_group": data_group.c.id.in_(part.groups),
        "job": job.c.group_id.in_(part.groups),
        "production_pass": production_pass.c.id.in_(_passes(part.groups)),
        "run_collection": run_collection.c.name.in_(collections),
        "arrival": arrival.c.id.in_(arrived),
        "sub_job": sub_job.c.pass_id.in_(_passes(part.groups)),
        "stage_run": stage_run.c.sub_job_id.in_(_sub_jobs(part.groups)),
        "attempt": attempt.c.id.in_(attempts_of(part.groups)),
    }
    return places[table.name]


def _passes(groups: Iterable[int]) -> Select[Any]:
    jobs = select(job.c.id).where(job.c.group_id.in_(list(groups)))
    return select(production_pass.c.id).where(production_pass.c.job_id.in_(jobs))


def _sub_jobs(groups: Iterable[int]) -> Select[Any]:
    return select(sub_job.c.id).where(sub_job.c.pass_id.in_(_passes(groups)))


# --- taking them out -------------------------------------------------------------------------------------------------


def take_out(connection: Connection, manifest: ArchiveManifest, sha256: str, *, by: str, now: float) -> bool:
    """Removes the rows that are in an archive, and notes it; False if that was done before.

    The archive must have been verified. `sha256` is that of its manifest as it is in the store.

    Raises:
        Conflict: what the ledger holds of these groups is not what is in the archive; nothing was removed.
    """
    if connection.scalar(select(archive.c.name).where(archive.c.name == manifest.name)) is not None:
        return False
    part = Part(groups=tuple(group.id for group in manifest.groups), journal_to=manifest.journal_to)
    for table in MOVED:
        digest = RowsDigest()
        for row in rows_of(connection, table, part):
            digest.add(row)
        if digest.hexdigest() != manifest.table(table.name).rows_sha256:
            raise Conflict(
                f"{manifest.name} does not hold what the ledger has in {table.name}",
                fix="Nothing was removed, and the archive stays as it is. `p3s ledger archive` makes another one.",
            )
    # Before its lines go, so that the journal's numbers go on: this line is the newest.
    told = {"groups": len(manifest.groups), "rows": manifest.moved, "by": by}
    journal_lines.write(connection, now, "ledger.archived", manifest.name, **told)
    for table in MOVED:
        connection.execute(delete(table).where(_belongs(table, part)))
    values = {"name": manifest.name, "sha256": sha256, "rows": manifest.moved, "archived_at": now}
    add_all(connection, archive, [values])
    add_all(connection, archived_group, [{"group_id": group.id, "archive": manifest.name} for group in manifest.groups])
    return True


def archives(connection: Connection) -> dict[str, str]:
    """All archives, by name, with the SHA-256 of their manifests."""
    found = connection.execute(select(archive.c.name, archive.c.sha256).order_by(archive.c.name))
    return {row.name: row.sha256 for row in found}


def count_archived(connection: Connection) -> tuple[int, int, int]:
    """How many archives there are, with how many groups and rows."""
    number, rows = connection.execute(select(func.count(), func.coalesce(func.sum(archive.c.rows), 0))).one()
    groups = connection.scalar(select(func.count(archived_group.c.group_id.distinct()))) or 0
    return int(number), int(groups), int(rows)


def archives_of(connection: Connection, data_id: str) -> tuple[str, ...]:
    """The archives in which something of this group or unit is."""
    query = select(archived_group.c.archive).where(archived_group.c.group_id.in_(groups_of(data_id)))
    return tuple(connection.scalars(query.distinct().order_by(archived_group.c.archive)))


def groups_of(data_id: str) -> CompoundSelect[Any]:
    """The number of the group of that name, and of those that have units of that name."""
    of_units = (
        select(job.c.group_id)
        .join(production_pass, production_pass.c.job_id == job.c.id)
        .join(sub_job, sub_job.c.pass_id == production_pass.c.id)
        .where(sub_job.c.data_id == data_id)
    )
    return select(data_group.c.id).where(data_group.c.data_id == data_id).union(of_units)
