"""What Prefect's queues said last, and what follows from what they say now, in one transaction.

It is kept in the ledger, so that the last value holds while Prefect or the agent is away, and what was changed there
meanwhile is found afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, delete, select

from p3s_prefect.adapters.ledger import overrides
from p3s_prefect.adapters.ledger.rows import add
from p3s_prefect.adapters.ledger.schema import prefect_queue
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.core.overrides import PREFECT
from p3s_prefect.core.queue_commands import QueueCommand, QueueSaid, commands


def seen(connection: Connection) -> dict[str, QueueSaid]:
    """What they said last, by name."""
    rows = connection.execute(select(prefect_queue))
    return {
        row.name: QueueSaid(name=row.name, priority=row.priority, most=row.most, is_paused=row.is_paused)
        for row in rows
    }


def follow(
    connection: Connection, now_said: Sequence[QueueSaid], experiment: Experiment, now: float
) -> tuple[QueueCommand, ...]:
    """Sets and lifts what the queues ask that they did not ask before, and notes what they say."""
    before = seen(connection)
    asked = commands(before, now_said, experiment)
    for command in asked:
        _carry_out(connection, command, now)
    for said in now_said:
        if before.get(said.name) != said:
            connection.execute(delete(prefect_queue).where(prefect_queue.c.name == said.name))
            told = {"priority": said.priority, "most": said.most, "is_paused": said.is_paused}
            add(connection, prefect_queue, name=said.name, **told, seen_at=now)
    return asked


def _carry_out(connection: Connection, command: QueueCommand, now: float) -> None:
    given = {"target": command.target, "by": PREFECT, "why": command.why, "now": now}
    if command.is_set:
        overrides.set_override(connection, kind=command.kind, value=command.value, **given)  # type: ignore[arg-type]
    else:
        overrides.clear(connection, kinds=[command.kind], **given)  # type: ignore[arg-type]
