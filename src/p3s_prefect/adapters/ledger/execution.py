"""Stage runs and attempts: every change of state is a compare-and-set, and publication is one transaction."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Row, Select, func, select, update

from p3s_prefect.adapters.ledger import journal
from p3s_prefect.adapters.ledger.outputs import insert_datasets, insert_descriptions
from p3s_prefect.adapters.ledger.rows import add
from p3s_prefect.adapters.ledger.schema import (
    attempt,
    data_group,
    job,
    production_pass,
    stage_run,
    sub_job,
)
from p3s_prefect.adapters.ledger.statements import (
    ATTEMPT,
    END_WELL,
    MOVE,
    SETTLE,
    STAGES,
    START,
    THIN,
)
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.errors import Conflict, NoSuchRecord
from p3s_prefect.core.naming import attempt_prefix
from p3s_prefect.core.records import Manifest, StageFact, StageReport, SubJobFact, Transition
from p3s_prefect.core.states import StageState, SubJobState, may_move, sub_job_state

AttemptState = Literal["done", "failed", "lost", "stopped", "expired"]


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """An attempt that was opened, with what its inputs are looked up by."""

    id: int
    number: int
    stage_run_id: int
    stage: str
    pipeline: str
    per: Literal["unit", "group"]
    data_id: DataId
    taken_at: float
    job_id: int
    pass_number: int
    arrival_id: int | None
    collection: str
    prefix: str


@dataclass(frozen=True, kw_only=True)
class Interrupted:
    """An attempt that was running when its station ended."""

    attempt_id: int
    stage_run_id: int
    prefix: str
    opened_at: float


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """An attempt whose outputs wait for the store, as far as anybody knows: no slot is busy with it."""

    attempt_id: int
    stage_run_id: int
    prefix: str
    opened_at: float
    since: float
    """UTC in seconds since 1970."""
    pilot: str | None
    """None where the station ended before the pilot had told what became of it; so is `execution`."""
    execution: str | None = None


def open_sub_jobs(connection: Connection) -> list[SubJobFact]:
    """Every sub-job that is not settled, units before groups."""
    rows = connection.execute(
        sub_job_rows().where(sub_job.c.settled_at.is_(None)).order_by(sub_job.c.per.desc(), sub_job.c.id)
    ).all()
    return [sub_job_fact(connection, row) for row in rows]


def sub_job_rows() -> Select[Any]:
    """Rows for `sub_job_fact`; joined with the pass and its job, by which they can be chosen."""
    return (
        select(sub_job, job.c.pipeline, data_group.c.data_id.label("group_name"))
        .join(production_pass, production_pass.c.id == sub_job.c.pass_id)
        .join(job, job.c.id == production_pass.c.job_id)
        .join(data_group, data_group.c.id == job.c.group_id)
    )


def sub_job_fact(connection: Connection, row: Row[Any]) -> SubJobFact:
    """A row of `sub_job`, with its pipeline and the name of its group, as core sees it."""
    stages = connection.execute(
        select(stage_run).where(stage_run.c.sub_job_id == row.id).order_by(stage_run.c.position)
    )
    return SubJobFact(
        id=row.id,
        pass_id=row.pass_id,
        pipeline=row.pipeline,
        data_id=DataId.parse(row.data_id),
        group=DataId.parse(row.group_name),
        per=row.per,
        taken_at=row.taken_at if row.asked_at is None else row.asked_at,
        u=row.u,
        is_asked=row.asked_at is not None,
        earlier_passes=earlier_passes(connection, row.pass_id) if row.per == "group" else (),
        stages=tuple(
            StageFact(
                id=stage.id,
                stage=stage.stage,
                state=StageState(stage.state),
                q=stage.q,
            )
            for stage in stages
        ),
    )


def earlier_passes(connection: Connection, pass_id: int) -> tuple[int, ...]:
    """The passes of the same job before this one."""
    own = production_pass.alias()
    query = (
        select(production_pass.c.id)
        .join(own, own.c.job_id == production_pass.c.job_id)
        .where(own.c.id == pass_id, production_pass.c.number < own.c.number)
    )
    return tuple(connection.scalars(query.order_by(production_pass.c.number)))


def apply(connection: Connection, transitions: Iterable[Transition], now: float) -> None:
    """Writes the dispatcher's transitions.

    Raises:
        Conflict: a stage run is no longer in the state that the dispatcher took it to be in.
    """
    touched: dict[int, None] = {}
    for change in transitions:
        if change.new is change.old:
            _thin(connection, change)
            continue
        row = _move(connection, change.stage_run_id, change.old, change.new, change.reason, now, q=change.q)
        # A retry opens a sub-job that had settled.
        if change.new.is_terminal or change.old.is_terminal:
            touched[row.sub_job_id] = None
    for sub_job_id in touched:
        settle_sub_job(connection, sub_job_id, now)


def start(connection: Connection, stage_run_id: int, now: float) -> Attempt:
    """Opens the next attempt of a queued stage run, which is running from now on.

    Raises:
        Conflict: it is not queued.
        NoSuchRecord: there is no such stage run.
    """
    row = connection.execute(START, {"stage_run_id": stage_run_id}).one_or_none()
    if row is None:
        raise _no_such("stage run", stage_run_id)
    _move(connection, stage_run_id, StageState.QUEUED, StageState.RUNNING, "", now, journaled=False)
    data_id = DataId.parse(row.data_id)
    prefix = attempt_prefix(row.run_collection, data_id, row.stage, row.number)
    attempt_id = add(
        connection,
        attempt,
        stage_run_id=stage_run_id,
        number=row.number,
        state="running",
        reason="",
        prefix=prefix,
        opened_at=now,
        is_recorded=False,
    )
    journal.write(
        connection, now, "stage.running", data_id, stage=row.stage, attempt=attempt_id, stage_run=stage_run_id
    )
    return Attempt(
        id=attempt_id,
        number=row.number,
        stage_run_id=stage_run_id,
        stage=row.stage,
        pipeline=row.pipeline,
        per=row.per,
        data_id=data_id,
        taken_at=row.taken_at,
        job_id=row.job_id,
        pass_number=row.pass_number,
        arrival_id=row.arrival_id,
        collection=row.run_collection,
        prefix=prefix,
    )


def publish(connection: Connection, manifest: Manifest, now: float) -> None:
    """Makes everything that a manifest names visible, at once. Repeating it changes nothing.

    Raises:
        Conflict: the attempt was given up meanwhile, or another attempt has published one of these datasets.
        NoSuchRecord: this ledger never opened the attempt.
    """
    row = connection.execute(ATTEMPT, {"attempt_id": manifest.attempt_id}).one_or_none()
    if row is None:
        raise _no_such("attempt", manifest.attempt_id)
    if row.state == "done" and row.execution == manifest.execution:
        return
    if row.state != "running":
        raise Conflict(
            f"attempt {manifest.attempt_id} of {manifest.stage} is {row.state}; its results came too late",
            data_id=manifest.data_id,
            fix="Nothing to do: the attempt that took its place counts.",
        )
    insert_datasets(connection, manifest)
    insert_descriptions(connection, manifest)
    connection.execute(
        END_WELL,
        {
            "attempt_id": manifest.attempt_id,
            "execution": manifest.execution,
            "pilot": manifest.pilot,
            "started_at": manifest.started_at,
            "ended_at": manifest.ended_at,
            "published_at": now,
            "steps": [step.model_dump() for step in manifest.steps],
            "coverage": manifest.coverage or None,
            "log_key": manifest.log.key if manifest.log else None,
        },
    )
    moved = _move(
        connection, row.stage_run_id, StageState.RUNNING, StageState.DONE, "", now, attempt=manifest.attempt_id
    )
    settle_sub_job(connection, moved.sub_job_id, now)


def give_up(
    connection: Connection,
    *,
    attempt_id: int,
    stage_run_id: int,
    ended_as: AttemptState,
    next_state: StageState,
    reason: str,
    now: float,
    report: StageReport | None = None,
) -> None:
    """Ends an attempt that gave no results; its stage run goes back to the queue or to its end.

    Raises:
        Conflict: the attempt is not running.
    """
    values: dict[str, Any] = {"state": ended_as, "reason": reason, "ended_at": now}
    if report is not None:
        values |= {
            "execution": report.execution,
            "pilot": report.pilot,
            "started_at": report.started_at,
            "ended_at": report.ended_at,
            "steps": [step.model_dump() for step in report.steps],
            "log_key": report.log.key if report.log else None,
        }
    ended = connection.execute(
        update(attempt).where(attempt.c.id == attempt_id, attempt.c.state == "running").values(values)
    )
    if not ended.rowcount:
        raise Conflict(f"attempt {attempt_id} is not running", fix="Nothing to do: it was ended by somebody else.")
    row = _move(
        connection,
        stage_run_id,
        StageState.RUNNING,
        next_state,
        reason,
        now,
        attempt=attempt_id,
        failed=int(ended_as == "failed"),
        lost=int(ended_as == "lost"),
    )
    if next_state.is_terminal:
        settle_sub_job(connection, row.sub_job_id, now)


def wait(connection: Connection, attempt_id: int, now: float, *, execution: str, pilot: str) -> Waiting:
    """Notes that the outputs of a running attempt wait for the store.

    Raises:
        Conflict: the attempt is not running.
    """
    values = {
        "waits_since": now,
        "execution": execution,
        "pilot": pilot,
        "reason": f"its results wait on {pilot} for the store",
    }
    return _wait(connection, attempt_id, values)


def wait_unknown(connection: Connection, attempt_id: int, now: float) -> Waiting:
    """Notes that only the store, which does not answer, or a pilot can tell what became of an interrupted attempt.

    Raises:
        Conflict: the attempt is not running.
    """
    reason = "the station ended while it ran; whether there are results shows when the store is back"
    return _wait(connection, attempt_id, {"waits_since": now, "reason": reason})


def _wait(connection: Connection, attempt_id: int, values: dict[str, Any]) -> Waiting:
    running = update(attempt).where(attempt.c.id == attempt_id, attempt.c.state == "running")
    row = connection.execute(running.values(values).returning(attempt)).one_or_none()
    if row is None:
        raise Conflict(f"attempt {attempt_id} is not running", fix="Nothing to do: it was ended by somebody else.")
    query = select(stage_run.c.stage, sub_job.c.data_id).join(sub_job, sub_job.c.id == stage_run.c.sub_job_id)
    told = connection.execute(query.where(stage_run.c.id == row.stage_run_id)).one()
    detail = {"stage": told.stage, "stage_run": row.stage_run_id, "attempt": attempt_id, "reason": row.reason}
    journal.write(connection, row.waits_since, "stage.waits", told.data_id, **detail)
    return _as_waiting(row)


def _as_waiting(row: Row[Any]) -> Waiting:
    return Waiting(
        attempt_id=row.id,
        stage_run_id=row.stage_run_id,
        prefix=row.prefix,
        opened_at=row.opened_at,
        since=row.waits_since,
        pilot=row.pilot,
        execution=row.execution,
    )


def counts(connection: Connection, stage_run_id: int) -> tuple[int, int]:
    """How many attempts of a stage run have failed by themselves, and how many were lost with their pilot."""
    row = connection.execute(
        select(stage_run.c.failures, stage_run.c.losses).where(stage_run.c.id == stage_run_id)
    ).one()
    return row.failures, row.losses


def number_of_attempts(connection: Connection, stage_run_id: int, *, ended_with: str | None = None) -> int:
    """How many attempts of a stage run there were; with `ended_with`, those whose reason is this `without_place`."""
    own = attempt.c.stage_run_id == stage_run_id
    if ended_with is None:
        return connection.scalar(select(func.count()).select_from(attempt).where(own)) or 0
    query = select(attempt.c.reason, attempt.c.prefix, attempt.c.execution).where(own, attempt.c.execution.is_not(None))
    return sum(without_place(*row) == ended_with for row in connection.execute(query))


def without_place(reason: str, prefix: str, execution: str) -> str:
    """A reason that names no key of this execution: else that of each attempt would be another one."""
    return reason.replace(f"{prefix}/{execution}/", "")


def definition_of(connection: Connection, stage_run_id: int) -> tuple[str, str, str]:
    """The run collection, the pipeline and the stage of a stage run."""
    row = connection.execute(START, {"stage_run_id": stage_run_id}).one()
    return row.run_collection, row.pipeline, row.stage


def settle_sub_job(connection: Connection, sub_job_id: int, now: float) -> SubJobState:
    """Brings a sub-job's state in line with its stage runs."""
    stages = connection.scalars(STAGES, {"sub_job_id": sub_job_id})
    state = sub_job_state(StageState(stage) for stage in stages)
    settled_at = None if state is SubJobState.ARRIVED else now
    connection.execute(SETTLE, {"sub_job_id": sub_job_id, "state_": state, "settled": settled_at})
    return state


def waiting(connection: Connection) -> list[Waiting]:
    """Attempts whose outputs wait for the store."""
    query = select(attempt).where(attempt.c.state == "running", attempt.c.waits_since.is_not(None))
    return [_as_waiting(row) for row in connection.execute(query.order_by(attempt.c.id))]


def wait_no_more(connection: Connection) -> None:
    """What waits for the store counts as interrupted from now on: there is nobody who would look for it later."""
    connection.execute(update(attempt).where(attempt.c.state == "running").values(waits_since=None))


def interrupted(connection: Connection) -> list[Interrupted]:
    """Attempts that are still marked as running, and do not wait for the store.

    At the start of a station none of them has anybody who waits.
    """
    running = select(attempt).where(attempt.c.state == "running", attempt.c.waits_since.is_(None))
    rows = connection.execute(running.order_by(attempt.c.id))
    return [
        Interrupted(attempt_id=row.id, stage_run_id=row.stage_run_id, prefix=row.prefix, opened_at=row.opened_at)
        for row in rows
    ]


def unrecorded(connection: Connection) -> list[int]:
    """Published attempts whose commit record is not known to be in the store."""
    return list(connection.scalars(select(attempt.c.id).where(attempt.c.state == "done", ~attempt.c.is_recorded)))


def mark_recorded(connection: Connection, attempt_ids: Sequence[int]) -> None:
    """Notes that the commit records of these attempts are in the store."""
    connection.execute(update(attempt).where(attempt.c.id.in_(attempt_ids)).values(is_recorded=True))


def _move(
    connection: Connection,
    stage_run_id: int,
    old: StageState,
    new: StageState,
    reason: str,
    now: float,
    *,
    journaled: bool = True,
    attempt: int | None = None,
    failed: int = 0,
    lost: int = 0,
    q: float | None = None,
) -> Row[Any]:
    if not may_move(old, new):
        raise Conflict(f"stage run {stage_run_id} cannot go from {old} to {new}", fix="This is a defect; report it.")
    values = {
        "id_": stage_run_id,
        "old": old,
        "new": new,
        "reason_": reason,
        "settled": now if new.is_terminal else None,
        "queued": now if new is StageState.QUEUED else None,
        "failed": failed,
        "lost": lost,
        "q_": q,
    }
    row = connection.execute(MOVE, values).one_or_none()
    if row is None:
        raise _moved_by_others(stage_run_id, old)
    if journaled:
        detail = {"stage": row.stage, "stage_run": stage_run_id, "reason": reason, "attempt": attempt, "q": q}
        told = {name: value for name, value in detail.items() if value not in ("", None)}
        journal.write(connection, now, f"stage.{new}", row.data_id, **told)
    return row


def _thin(connection: Connection, change: Transition) -> None:
    """A thinning that it survived has made its probability smaller."""
    values = {"id_": change.stage_run_id, "old": change.old, "q_": change.q, "reason_": change.reason or None}
    found = connection.execute(THIN, values)
    if not found.rowcount:
        raise _moved_by_others(change.stage_run_id, change.old)


def _moved_by_others(stage_run_id: int, old: StageState) -> Conflict:
    return Conflict(f"stage run {stage_run_id} is no longer {old}", fix="Somebody else changed it first.")


def _no_such(what: str, number: int) -> NoSuchRecord:
    return NoSuchRecord(f"this ledger has no {what} {number}", fix="Give one that it lists, or open the right ledger.")
