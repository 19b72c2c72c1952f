"""A group or a period as the ledger has recorded it, for a simulation to play again."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, Row, Select, func, or_, select

from p3s_prefect.adapters.ledger import report_rows
from p3s_prefect.adapters.ledger.schema import (
    arrival,
    attempt,
    data_group,
    job,
    journal,
    override,
    production_pass,
    stage_run,
    sub_job,
)
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.incidents import GroupClosing
from p3s_prefect.core.loads import SeenUnit
from p3s_prefect.core.recorded_load import Recorded, RecordedAttempt
from p3s_prefect.core.records import Verdict
from p3s_prefect.core.reports import Scope
from p3s_prefect.core.states import StageState

# Ignored ones too: other rules may take them.
_PLAYED = (Verdict.TAKEN, Verdict.IGNORED)


def recorded(connection: Connection, scope: Scope, group: Sequence[str]) -> Recorded:
    """What arrived in the scope, when its groups closed, and every attempt on it; `group` names a group's dimensions.

    Raises:
        NoSuchRecord: nothing arrived in it; says what there is instead.
    """
    units = tuple(_units(connection, scope, group))
    if not units:
        raise report_rows.nothing(connection, scope)
    groups = {str(unit.data_id.subset(group)) for unit in units}
    attempts = tuple(_attempts(connection, groups, {str(unit.data_id) for unit in units} | groups))
    since, until = units[0].at, max([units[-1].at, *(one.ended_at for one in attempts)])
    return Recorded(
        about=str(scope),
        units=units,
        closings=tuple(_closings(connection, groups, since=since)),
        attempts=attempts,
        open_before=_open_before(connection, since),
        beside=_arrived(connection, since, units[-1].at) - len(units),
        overrides=_overrides(connection, since, until),
        asked=_asked(connection, since, until),
    )


def measured(connection: Connection, *, most: int = 100_000) -> tuple[RecordedAttempt, ...]:
    """The latest attempts that were done or stopped at their deadline, as a source of service times."""
    query = _select_attempts().where(attempt.c.state.in_(("done", "expired"))).order_by(attempt.c.id.desc()).limit(most)
    return tuple(_attempt(row) for row in connection.execute(query))


def _units(connection: Connection, scope: Scope, group: Sequence[str]) -> Iterator[SeenUnit]:
    """In the order of their arrival; where clocks tie, in which the ledger took them."""
    query = select(arrival).where(arrival.c.verdict.in_(_PLAYED)).order_by(arrival.c.arrived_at, arrival.c.id)
    if scope.since is not None:
        query = query.where(arrival.c.arrived_at >= scope.since)
    if scope.until is not None:
        query = query.where(arrival.c.arrived_at < scope.until)
    if scope.group is not None:
        beyond = arrival.c.data_id.startswith(f"{scope.group} ", autoescape=True)
        query = query.where(beyond | (arrival.c.data_id == scope.group))
    days = None if scope.day is None else _groups_of_day(connection, scope.day)
    for row in connection.execute(query):
        data_id = DataId.parse(row.data_id)
        if days is None or str(data_id.subset(group)) in days:
            taken_at = min(row.mtime_ns / 1e9, row.arrived_at)
            yield SeenUnit(at=row.arrived_at, taken_at=taken_at, stream=row.stream, data_id=data_id)


def _open_before(connection: Connection, at: float) -> int:
    is_open = or_(sub_job.c.settled_at.is_(None), sub_job.c.settled_at > at)
    return connection.scalar(select(func.count()).where(is_open, sub_job.c.arrived_at < at)) or 0


def _arrived(connection: Connection, since: float, until: float) -> int:
    between = arrival.c.verdict.in_(_PLAYED) & arrival.c.arrived_at.between(since, until)
    return connection.scalar(select(func.count()).select_from(arrival).where(between)) or 0


def _overrides(connection: Connection, since: float, until: float) -> tuple[str, ...]:
    """Kinds of what was in force at some time between, once for each."""
    over_at = func.coalesce(override.c.ended_at, override.c.expires_at, until)
    between = select(override.c.kind).where(override.c.set_at <= until, over_at >= since)
    return tuple(connection.scalars(between.order_by(override.c.id)))


def _asked(connection: Connection, since: float, until: float) -> int:
    return connection.scalar(select(func.count()).where(sub_job.c.asked_at.between(since, until))) or 0


def _groups_of_day(connection: Connection, day: str) -> set[str]:
    return set(connection.scalars(select(data_group.c.data_id).where(data_group.c.day == day)))


def _closings(connection: Connection, groups: Collection[str], *, since: float) -> Iterator[GroupClosing]:
    query = select(journal.c.at, journal.c.subject).where(journal.c.kind == "group.closed", journal.c.at >= since)
    for some in _pages(groups):
        for row in connection.execute(query.where(journal.c.subject.in_(some))):
            yield GroupClosing(at=row.at, group=DataId.parse(row.subject))


def _attempts(connection: Connection, groups: Collection[str], wanted: Collection[str]) -> Iterator[RecordedAttempt]:
    """Those of the newest pass in which each stage of a unit ran."""
    newest: dict[tuple[str, str, str, str], int] = {}
    for some in _pages(groups):
        found = connection.execute(_select_attempts().where(data_group.c.data_id.in_(some)).order_by(attempt.c.id))
        rows = [row for row in found if row.data_id in wanted]
        newest |= {(row.pipeline, row.stage, row.per, row.data_id): row.stage_run_id for row in rows}
        for row in rows:
            if newest[row.pipeline, row.stage, row.per, row.data_id] == row.stage_run_id:
                yield _attempt(row)


def _pages(names: Collection[str]) -> Iterator[list[str]]:
    in_order = sorted(names)
    return (in_order[start : start + report_rows.PAGE] for start in range(0, len(in_order), report_rows.PAGE))


def _select_attempts() -> Select[Any]:
    """Attempts that ran and ended."""
    return (
        select(
            job.c.pipeline,
            stage_run.c.stage,
            sub_job.c.data_id,
            sub_job.c.per,
            stage_run.c.state.label("run_state"),
            attempt.c.stage_run_id,
            attempt.c.state,
            attempt.c.started_at,
            attempt.c.ended_at,
        )
        .select_from(attempt)
        .join(stage_run, stage_run.c.id == attempt.c.stage_run_id)
        .join(sub_job, sub_job.c.id == stage_run.c.sub_job_id)
        .join(production_pass, production_pass.c.id == sub_job.c.pass_id)
        .join(job, job.c.id == production_pass.c.job_id)
        .join(data_group, data_group.c.id == job.c.group_id)
        .where(attempt.c.started_at.is_not(None), attempt.c.ended_at.is_not(None), attempt.c.state != "running")
    )


def _attempt(row: Row[Any]) -> RecordedAttempt:
    return RecordedAttempt(
        pipeline=row.pipeline,
        stage=row.stage,
        data_id=DataId.parse(row.data_id),
        state=row.state,
        started_at=row.started_at,
        ended_at=row.ended_at,
        run_state=StageState(row.run_state),
    )
