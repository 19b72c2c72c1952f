"""Closing groups: their passes take no further unit, and the stages per group come into being (P22)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from sqlalchemy import Connection, select, update

from p3s_prefect.adapters.ledger import journal
from p3s_prefect.adapters.ledger.arrivals import add_sub_job, group_fact
from p3s_prefect.adapters.ledger.execution import earlier_passes
from p3s_prefect.adapters.ledger.schema import data_group, job, production_pass
from p3s_prefect.core.admission import Admission
from p3s_prefect.core.closing import GroupFact
from p3s_prefect.core.records import SubJobFact


def open_groups(connection: Connection) -> list[GroupFact]:
    """All groups that have not closed."""
    return [group_fact(row) for row in connection.execute(select(data_group).where(data_group.c.is_open))]


def close(
    connection: Connection, group: GroupFact, reason: str, admissions: Mapping[str, Admission | None], now: float
) -> list[SubJobFact]:
    """Closes a group and returns the sub-jobs of its group stages, one for each open pass; none if it was closed.

    `admissions` tells for each pipeline which group stages it has.
    """
    closed = connection.execute(
        update(data_group)
        .where(data_group.c.id == group.id, data_group.c.is_open)
        .values(is_open=False, closed_by=reason)
    )
    if not closed.rowcount:
        return []
    journal.write(connection, now, "group.closed", group.data_id, reason=reason, arrivals=group.arrivals)
    passes = connection.execute(
        select(production_pass.c.id, job.c.pipeline)
        .join(job, job.c.id == production_pass.c.job_id)
        .where(job.c.group_id == group.id, production_pass.c.is_open)
    ).all()
    connection.execute(
        update(production_pass).where(production_pass.c.id.in_([row.id for row in passes])).values(is_open=False)
    )
    added = (
        add_sub_job(
            connection,
            row.id,
            admission,
            data_id=group.data_id,
            group=group.data_id,
            arrival_id=None,
            taken_at=now,
            arrived_at=now,
        )
        for row in passes
        if (admission := admissions.get(row.pipeline)) is not None
    )
    return [replace(fact, earlier_passes=earlier_passes(connection, fact.pass_id)) for fact in added]
