"""How an attempt ends in the ledger: published, failed or lost. One transaction each, for station and plain road."""

from __future__ import annotations

from sqlalchemy import Connection

from p3s_prefect.adapters.ledger import execution
from p3s_prefect.adapters.ledger.commit_records import commit_record
from p3s_prefect.core.commit_record import CommitRecord
from p3s_prefect.core.experiment import Stage
from p3s_prefect.core.records import Failure, Manifest, StageOrder, StageReport, Transition
from p3s_prefect.core.retry import NextState, after_failure, after_loss, judged
from p3s_prefect.core.states import StageState

_ENDED_AS: dict[Failure, execution.AttemptState] = {
    Failure.DEADLINE: "expired",
    Failure.STOPPED: "stopped",
    Failure.AWAY: "stopped",
}


def publish(connection: Connection, manifest: Manifest, now: float) -> CommitRecord:
    """Makes the results visible, and returns the commit record that is to be written beside them.

    Raises:
        Conflict: the results came too late, or are there already (see `execution.publish`).
    """
    execution.publish(connection, manifest, now)
    return commit_record(connection, manifest.attempt_id)


def fail(
    connection: Connection,
    order: StageOrder,
    stage: Stage,
    report: StageReport,
    now: float,
    *,
    failure: Failure | None = None,
    reason: str = "",
) -> NextState:
    """Ends an attempt that gave no results; `failure` and `reason` take the place of what the report says."""
    told = reason or report.reason
    kind = failure or report.failure or Failure.STORE
    if kind is Failure.DISTURBED:
        words = execution.without_place(told, order.prefix, report.execution)
        kind = judged(kind, execution.number_of_attempts(connection, order.stage_run_id, ended_with=words))
    failures, _ = execution.counts(connection, order.stage_run_id)
    attempts = execution.number_of_attempts(connection, order.stage_run_id) if kind is Failure.AWAY else 1
    after = after_failure(stage, kind, failures + 1, attempts)
    execution.give_up(
        connection,
        attempt_id=order.attempt_id,
        stage_run_id=order.stage_run_id,
        ended_as=_ENDED_AS.get(kind, "failed"),
        next_state=after.state,
        reason=told,
        now=now,
        report=report,
    )
    return after


def lose(
    connection: Connection, attempt_id: int, stage_run_id: int, reason: str, now: float, *, by_stage: bool
) -> NextState:
    """Ends an attempt whose pilot is gone; it counts as a loss where the stage may have been the cause."""
    _, losses = execution.counts(connection, stage_run_id)
    after = after_loss(losses + 1) if by_stage else NextState(state=StageState.QUEUED)
    execution.give_up(
        connection,
        attempt_id=attempt_id,
        stage_run_id=stage_run_id,
        ended_as="lost" if by_stage else "stopped",
        next_state=after.state,
        reason=reason,
        now=now,
    )
    return after


def give_up_outputs(
    connection: Connection, attempt_id: int, stage_run_id: int, stage: Stage, reason: str, now: float
) -> NextState:
    """Ends an attempt whose outputs the store can never take: a failure of the store, which counts."""
    failures, _ = execution.counts(connection, stage_run_id)
    after = after_failure(stage, Failure.STORE, failures + 1)
    _end(connection, attempt_id, stage_run_id, "failed", after.state, reason, now)
    return after


def refuse(connection: Connection, attempt_id: int, stage_run_id: int, reason: str, now: float) -> NextState:
    """Ends an attempt whose results cannot be published: trying again would not help."""
    return _end(connection, attempt_id, stage_run_id, "failed", StageState.FAILED, reason, now)


def cancel(connection: Connection, attempt_id: int, stage_run_id: int, reason: str, now: float) -> NextState:
    """Ends an attempt whose outputs wait, as somebody gave its stage run up."""
    return _end(connection, attempt_id, stage_run_id, "stopped", StageState.CANCELLED, reason, now)


def _end(
    connection: Connection,
    attempt_id: int,
    stage_run_id: int,
    ended_as: execution.AttemptState,
    state: StageState,
    reason: str,
    now: float,
) -> NextState:
    execution.give_up(
        connection,
        attempt_id=attempt_id,
        stage_run_id=stage_run_id,
        ended_as=ended_as,
        next_state=state,
        reason=reason,
        now=now,
    )
    return NextState(state=state)


def block(connection: Connection, stage_run_id: int, reason: str, now: float) -> NextState:
    """Settles a queued stage run that cannot begin, as something that it reads was never made."""
    change = Transition(stage_run_id=stage_run_id, old=StageState.QUEUED, new=StageState.BLOCKED, reason=reason)
    execution.apply(connection, [change], now)
    return NextState(state=StageState.BLOCKED)
