"""What the ledger shows: units, groups, arrivals, the journal and the account. Results are in `result_views`.

Lists come newest first and in pages: a page costs the same whether the ledger holds a thousand units or a million.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from math import inf
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, case, exists, func, select

from p3s_prefect.adapters.ledger.sampled import IS_BY_HAND
from p3s_prefect.adapters.ledger.schema import (
    arrival,
    attempt,
    data_group,
    job,
    journal,
    production_pass,
    stage_run,
    sub_job,
)
from p3s_prefect.core.errors import BadName, NoSuchRecord
from p3s_prefect.core.health import LOST_IN_A_ROW, KeptOut, Outcomes
from p3s_prefect.core.records import Verdict
from p3s_prefect.core.states import TERMINAL, StageState, SubJobState
from p3s_prefect.core.views import (
    ACTIVITIES,
    AccountRow,
    ArrivalRow,
    AttemptRow,
    Coverage,
    GroupRow,
    JournalRow,
    StageRow,
    StepSpan,
    UnitRow,
)

# More than anybody reads at once; a client that wants all goes from page to page.
MAX_PAGE = 1000
KEPT_OUT = (Verdict.REFUSED, Verdict.CONFLICT)
# What units may be asked by, besides the states of their account.
_OF_OPEN = ("open", "standby", *ACTIVITIES)
_MAY_STAND_BY = (StageState.WAITING, StageState.QUEUED, StageState.HELD)
# States that say whether a unit gave a result; the others leave units out on purpose.
_TOLD = (SubJobState.DONE, SubJobState.FAILED, SubJobState.EXPIRED, SubJobState.BLOCKED)


def units(
    connection: Connection,
    *,
    state: str | None = None,
    pipeline: str | None = None,
    group: str | None = None,
    before: int | None = None,
    limit: int = 50,
) -> tuple[UnitRow, ...]:
    """Sub-jobs, newest first.

    `state` may also be ``open``, ``standby`` for those that `stands_by` finds, or what open ones do (`ACTIVITIES`).
    `before` is the id of the last row of the page before.
    """
    query = select_units().order_by(sub_job.c.id.desc()).limit(_page(limit))
    if state in _OF_OPEN:
        # Sorted by an expression, so that the few that are open are found by their index and then sorted; by the plain
        # id, SQLite walks through the history instead.
        newest = (sub_job.c.id + 0).desc()
        query = query.where(sub_job.c.settled_at.is_(None)).order_by(None).order_by(newest)
        if state == "standby":
            query = query.where(stands_by())
        elif state != "open":
            query = query.where(_does(StageState(state)))
    elif state is not None:
        query = query.where(sub_job.c.state == state)
    if pipeline is not None:
        query = query.where(job.c.pipeline == pipeline)
    if group is not None:
        query = query.where(data_group.c.data_id == group)
    if before is not None:
        query = query.where(sub_job.c.id < before)
    return with_stages(connection, connection.execute(query).all())


def stands_by() -> ColumnElement[bool]:
    """Whether overload has left out a stage of a sub-job that is open, and nobody has asked for it by hand."""
    left_out = (
        stage_run.c.sub_job_id == sub_job.c.id,
        stage_run.c.state.in_(_MAY_STAND_BY),
        stage_run.c.q <= sub_job.c.u,
    )
    return and_(sub_job.c.per == "unit", sub_job.c.asked_at.is_(None), exists().where(*left_out))


def _does(activity: StageState) -> ColumnElement[bool]:
    """Whether this is the `UnitRow.activity` of a sub-job that is open."""
    of_it = stage_run.c.sub_job_id == sub_job.c.id
    further = ACTIVITIES[: ACTIVITIES.index(activity)]
    return and_(
        exists().where(of_it, stage_run.c.state == activity), ~exists().where(of_it, stage_run.c.state.in_(further))
    )


def select_units() -> Select[Any]:
    """Sub-jobs with the names of what they belong to; for `with_stages`."""
    return (
        select(
            sub_job,
            job.c.pipeline,
            production_pass.c.number.label("pass_number"),
            production_pass.c.run_collection,
            data_group.c.data_id.label("group"),
        )
        .join(production_pass, production_pass.c.id == sub_job.c.pass_id)
        .join(job, job.c.id == production_pass.c.job_id)
        .join(data_group, data_group.c.id == job.c.group_id)
    )


def with_stages(connection: Connection, rows: Sequence[Row[Any]]) -> tuple[UnitRow, ...]:
    """Rows of `select_units` as records, with their stages and attempts."""
    stages = _stages(connection, [row.id for row in rows])
    return tuple(_unit(row, stages[row.id]) for row in rows)


def groups(
    connection: Connection, *, is_open: bool | None = None, before: int | None = None, limit: int = 20
) -> tuple[GroupRow, ...]:
    """Groups with the coverage of each of their passes, newest first."""
    query = select(data_group).order_by(data_group.c.id.desc()).limit(_page(limit))
    if is_open is not None:
        query = query.where(data_group.c.is_open == is_open)
    if before is not None:
        query = query.where(data_group.c.id < before)
    return with_coverage(connection, connection.execute(query).all())


def with_coverage(connection: Connection, rows: Sequence[Row[Any]]) -> tuple[GroupRow, ...]:
    """Rows of `data_group` as records."""
    counts = _coverage(connection, [row.id for row in rows])
    return tuple(GroupRow(**row._mapping, coverage=tuple(counts[row.id])) for row in rows)


def arrivals(
    connection: Connection,
    *,
    verdicts: Iterable[str] | None = None,
    before: int | None = None,
    limit: int = 50,
) -> tuple[ArrivalRow, ...]:
    """Files that were seen, newest first; `KEPT_OUT` selects those that were refused or are in conflict."""
    query = select(arrival).order_by(arrival.c.id.desc()).limit(_page(limit))
    if verdicts is not None:
        query = query.where(arrival.c.verdict.in_(list(verdicts)))
    if before is not None:
        query = query.where(arrival.c.id < before)
    return tuple(as_arrival(row) for row in connection.execute(query))


def kept_out(connection: Connection, *, now: float, window_s: float = 3600) -> KeptOut:
    """How many files were kept out lately."""
    rows = connection.execute(
        select(arrival.c.verdict, func.count().label("files"))
        .where(arrival.c.verdict.in_(KEPT_OUT), arrival.c.arrived_at > now - window_s)
        .group_by(arrival.c.verdict)
    )
    counts = {row.verdict: row.files for row in rows}
    return KeptOut(refused=counts.get(Verdict.REFUSED, 0), conflicts=counts.get(Verdict.CONFLICT, 0), window_s=window_s)


def outcomes(connection: Connection, *, now: float, window_s: float = 3600) -> Outcomes:
    """How the sub-jobs ended that settled lately."""
    lately = sub_job.c.settled_at > now - window_s
    counted = select(
        sub_job.c.state,
        func.count().label("units"),
        func.sum(case((IS_BY_HAND.element, 1), else_=0)).label("by_hand"),
        func.max(sub_job.c.settled_at).label("last_at"),
    )
    found = {row.state: row for row in connection.execute(counted.where(lately).group_by(sub_job.c.state))}
    shed = found.get(SubJobState.SHED)
    newest = select(sub_job.c.id, sub_job.c.state).order_by(sub_job.c.settled_at.desc(), sub_job.c.id.desc())
    latest = connection.execute(newest.where(lately, sub_job.c.state.in_(_TOLD)).limit(LOST_IN_A_ROW)).all()
    lost = connection.execute(newest.where(lately, sub_job.c.state.in_(_TOLD[1:])).limit(1)).first()
    return Outcomes(
        **{state.value: found[state].units if state in found else 0 for state in _TOLD},
        shed=0 if shed is None else shed.units,
        by_hand=sum(row.by_hand for state, row in found.items() if state in _TOLD),
        shed_s=inf if shed is None else max(0.0, now - shed.last_at),
        latest=tuple(row.state for row in latest),
        reason="" if lost is None else _reason(connection, lost.id, lost.state),
        window_s=window_s,
    )


def _reason(connection: Connection, sub_job_id: int, state: str) -> str:
    query = select(stage_run.c.reason).where(stage_run.c.sub_job_id == sub_job_id, stage_run.c.state == state)
    return connection.scalars(query.where(stage_run.c.reason != "").order_by(stage_run.c.position)).first() or ""


def check_filters(
    connection: Connection,
    pipelines: Collection[str],
    *,
    state: str | None = None,
    pipeline: str | None = None,
    group: str | None = None,
) -> None:
    """Refuses what can select nothing; `pipelines` are those of the experiment file.

    Raises:
        BadName: there is no such state of a unit, or no such pipeline in the file or in the ledger.
        NoSuchRecord: the ledger has no such group.
    """
    states = [*_OF_OPEN, *SubJobState]
    if state is not None and state not in states:
        raise BadName(f"units have no state {state[:40]!r}", fix=f"Give one of: {', '.join(states)}.")
    named = select(data_group.c.id).where(data_group.c.data_id == group)
    if group is not None and connection.scalar(named) is None:
        raise NoSuchRecord(f"this ledger has no group {group[:120]}", fix="`p3s list groups` shows what there is.")
    if pipeline is None or pipeline in pipelines:
        return
    known = sorted({*pipelines, *connection.scalars(select(job.c.pipeline).distinct())})
    if pipeline not in known:
        raise BadName(f"there is no pipeline {pipeline[:120]!r}", fix=f"Give one of: {', '.join(known)}.")


def check_verdicts(verdicts: Iterable[str]) -> None:
    """Refuses verdicts that no arrival can have.

    Raises:
        BadName: there is no such verdict.
    """
    for verdict in verdicts:
        if verdict not in list(Verdict):
            raise BadName(f"arrivals have no verdict {verdict[:40]!r}", fix=f"Give one of: {', '.join(Verdict)}.")


def journal_rows(
    connection: Connection, *, subject: str | None = None, before: int | None = None, limit: int = 50
) -> tuple[JournalRow, ...]:
    """Lines of the journal, newest first."""
    query = select(journal).order_by(journal.c.number.desc()).limit(_page(limit))
    if subject is not None:
        query = query.where(journal.c.subject == subject)
    if before is not None:
        query = query.where(journal.c.number < before)
    return tuple(JournalRow(**row._mapping) for row in connection.execute(query))


def account(connection: Connection, *, pipeline: str | None = None, group: str | None = None) -> tuple[AccountRow, ...]:
    """What became of all that was seen, one row for each pipeline and stage (P7), in their order."""
    position = func.min(stage_run.c.position)
    query = (
        select(job.c.pipeline, stage_run.c.stage, *_counts(stage_run.c.state))
        .join(sub_job, sub_job.c.id == stage_run.c.sub_job_id)
        .join(production_pass, production_pass.c.id == sub_job.c.pass_id)
        .join(job, job.c.id == production_pass.c.job_id)
        .group_by(job.c.pipeline, stage_run.c.stage)
        .order_by(job.c.pipeline, position)
    )
    rows = connection.execute(_of(query, pipeline, group))
    return tuple(AccountRow(**row._mapping) for row in rows)


def sub_job_account(
    connection: Connection, *, pipeline: str | None = None, group: str | None = None
) -> tuple[AccountRow, ...]:
    """The account of the sub-jobs, one row for each pipeline."""
    query = (
        select(job.c.pipeline, *_counts(sub_job.c.state))
        .join(production_pass, production_pass.c.id == sub_job.c.pass_id)
        .join(job, job.c.id == production_pass.c.job_id)
        .group_by(job.c.pipeline)
        .order_by(job.c.pipeline)
    )
    rows = connection.execute(_of(query, pipeline, group))
    return tuple(AccountRow(stage=None, **row._mapping) for row in rows)


def as_arrival(row: Row[Any]) -> ArrivalRow:
    """A row of `arrival` as a record."""
    return ArrivalRow(
        id=row.id,
        stream=row.stream,
        key=row.key,
        path=row.path,
        size=row.size,
        data_id=row.data_id,
        sha256=row.sha256,
        arrived_at=row.arrived_at,
        verdict=row.verdict,
        reason=row.reason,
    )


def _counts(state: ColumnElement[str]) -> list[ColumnElement[int]]:
    """Number of rows, of those not settled, and of each terminal state."""
    open_states = [name for name in [*StageState, *SubJobState] if name not in TERMINAL]
    return [
        func.count().label("seen"),
        func.sum(case((state.in_(open_states), 1), else_=0)).label("open"),
        *(func.sum(case((state == name, 1), else_=0)).label(name.value) for name in sorted(TERMINAL)),
    ]


def _of(query: Select[Any], pipeline: str | None, group: str | None) -> Select[Any]:
    if pipeline is not None:
        query = query.where(job.c.pipeline == pipeline)
    if group is not None:
        query = query.join(data_group, data_group.c.id == job.c.group_id).where(data_group.c.data_id == group)
    return query


def _page(limit: int) -> int:
    return max(1, min(limit, MAX_PAGE))


def _coverage(connection: Connection, group_ids: Sequence[int]) -> dict[int, list[Coverage]]:
    found: dict[int, list[Coverage]] = defaultdict(list)
    of_units = sub_job.c.per == "unit"
    is_open = sub_job.c.state.in_([SubJobState.EXPECTED, SubJobState.ARRIVED])
    rows = connection.execute(
        select(
            job.c.group_id,
            job.c.pipeline,
            production_pass.c.number.label("pass_number"),
            func.sum(case((of_units, 1), else_=0)).label("seen"),
            func.sum(case((of_units & (sub_job.c.state == SubJobState.DONE), 1), else_=0)).label("done"),
            func.sum(case((of_units & is_open, 1), else_=0)).label("open"),
        )
        .join(production_pass, production_pass.c.job_id == job.c.id)
        .join(sub_job, sub_job.c.pass_id == production_pass.c.id)
        .where(job.c.group_id.in_(group_ids))
        .group_by(job.c.group_id, job.c.pipeline, production_pass.c.number)
        .order_by(job.c.pipeline, production_pass.c.number)
    )
    for row in rows:
        found[row.group_id].append(
            Coverage(pipeline=row.pipeline, pass_number=row.pass_number, seen=row.seen, done=row.done, open=row.open)
        )
    return found


def _stages(connection: Connection, sub_job_ids: Sequence[int]) -> dict[int, list[StageRow]]:
    runs = connection.execute(
        select(stage_run).where(stage_run.c.sub_job_id.in_(sub_job_ids)).order_by(stage_run.c.position)
    ).all()
    attempts = _attempts(connection, [run.id for run in runs])
    found: dict[int, list[StageRow]] = defaultdict(list)
    for run in runs:
        found[run.sub_job_id].append(
            StageRow(
                id=run.id,
                stage=run.stage,
                state=run.state,
                reason=run.reason,
                q=run.q,
                queued_at=run.queued_at,
                settled_at=run.settled_at,
                failures=run.failures,
                losses=run.losses,
                attempts=tuple(attempts[run.id]),
            )
        )
    return found


def _attempts(connection: Connection, stage_run_ids: Sequence[int]) -> dict[int, list[AttemptRow]]:
    found: dict[int, list[AttemptRow]] = defaultdict(list)
    rows = connection.execute(
        select(attempt).where(attempt.c.stage_run_id.in_(stage_run_ids)).order_by(attempt.c.number)
    )
    for row in rows:
        found[row.stage_run_id].append(
            AttemptRow(
                id=row.id,
                number=row.number,
                state=row.state,
                reason=row.reason,
                opened_at=row.opened_at,
                started_at=row.started_at,
                ended_at=row.ended_at,
                published_at=row.published_at,
                pilot=row.pilot,
                steps=tuple(StepSpan(**step) for step in row.steps or ()),
                log_key=row.log_key,
                waits_since=row.waits_since if row.state == "running" else None,
            )
        )
    return found


def _unit(row: Row[Any], stages: Sequence[StageRow]) -> UnitRow:
    attempts = [attempt for stage in stages for attempt in stage.attempts]
    return UnitRow(
        id=row.id,
        data_id=row.data_id,
        per=row.per,
        group=row.group,
        pipeline=row.pipeline,
        pass_number=row.pass_number,
        state=row.state,
        reason=next((stage.reason for stage in stages if stage.state == row.state and stage.reason), ""),
        taken_at=row.taken_at,
        arrived_at=row.arrived_at,
        asked_at=row.asked_at,
        queued_at=min((stage.queued_at for stage in stages if stage.queued_at is not None), default=None),
        started_at=min((one.started_at for one in attempts if one.started_at is not None), default=None),
        ended_at=max((one.ended_at for one in attempts if one.ended_at is not None), default=None),
        published_at=max((one.published_at for one in attempts if one.published_at is not None), default=None),
        settled_at=row.settled_at,
        stages=tuple(stages),
    )
