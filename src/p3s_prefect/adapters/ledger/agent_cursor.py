"""How far the journal is recorded in Prefect: one row, which the agent writes and the health rows read."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from sqlalchemy import Connection, func, inspect, select, update

from p3s_prefect.adapters.ledger.rows import add
from p3s_prefect.adapters.ledger.schema import agent_cursor, journal
from p3s_prefect.core.record_health import RecordFacts

_NAME = "prefect"


@dataclass(frozen=True, kw_only=True)
class Cursor:
    """Where the record stands."""

    site: uuid.UUID
    """Of this ledger for good: what is derived from it is the same after every restart, and nowhere else."""
    number: int
    """The journal is recorded up to this number."""


def open_cursor(connection: Connection, now: float, site: uuid.UUID | None = None) -> Cursor:
    """The cursor; at the very first time it stands before everything, and the ledger is called `site` if it is given.

    A ledger that is filled again from its store is the one that was lost.
    """
    row = connection.execute(select(agent_cursor).where(agent_cursor.c.name == _NAME)).one_or_none()
    if row is not None:
        return Cursor(site=uuid.UUID(row.site), number=row.number)
    site = site or uuid.uuid4()
    add(connection, agent_cursor, name=_NAME, site=str(site), number=0, seen_at=now, problem="")
    return Cursor(site=site, number=0)


def site_of(connection: Connection) -> uuid.UUID | None:
    """The ledger's own id; None if no station has opened it yet."""
    if not inspect(connection).has_table(agent_cursor.name):
        return None
    found = connection.scalar(select(agent_cursor.c.site).where(agent_cursor.c.name == _NAME))
    return None if found is None else uuid.UUID(found)


def move(connection: Connection, number: int, now: float) -> None:
    """Notes that the journal is recorded up to `number`."""
    _write(connection, number=number, seen_at=now, problem="")


def sign_of_life(connection: Connection, now: float, problem: str = "") -> None:
    """Notes that the agent is there; `problem` says why it cannot record."""
    _write(connection, seen_at=now, problem=problem)


def newest_number(connection: Connection) -> int:
    """The number of the newest line of the journal; 0 if it has none."""
    return connection.scalar(select(func.coalesce(func.max(journal.c.number), 0))) or 0


def record_facts(connection: Connection, now: float) -> RecordFacts:
    """How far the record is behind, for the health rows."""
    row = connection.execute(select(agent_cursor).where(agent_cursor.c.name == _NAME)).one_or_none()
    number = 0 if row is None else row.number
    after = select(journal.c.at).where(journal.c.number > number).order_by(journal.c.number).limit(1)
    return RecordFacts(
        at=now,
        behind=newest_number(connection) - number,
        oldest_at=connection.scalar(after),
        seen_at=None if row is None else row.seen_at,
        problem="" if row is None else row.problem,
    )


def _write(connection: Connection, **values: object) -> None:
    connection.execute(update(agent_cursor).where(agent_cursor.c.name == _NAME).values(values))
