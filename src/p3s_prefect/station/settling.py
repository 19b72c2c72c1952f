"""How an attempt ends in the ledger: published, failed or lost. One transaction each, for station and plain road."""

from __future__ import annotations

from sqlalchemy import Connection

from p3s_prefect.adapters.ledger import execution
from p3s_prefect.adapters.ledger.commit_records import commit_record
from p3s_prefect.core.commit_record import CommitRecord
from p3s_prefect.core.experiment import Stage
from p3s_prefect.core.records import Failure, Manifest, StageOrder, StageReport, Transition
from p3s_prefect.core.retry import NextState, after_failure, after_loss
from p3s_prefect.core.states import StageState

_ENDED_AS: dict[Failure, execution.AttemptState] = {Failure.DEADLINE: "expired", Failure.STOPPED: "stopped"}


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
    kind = failure or report.failure or Failure.STORE
    failures, _ = execution.counts(connection, order.stage_run_id)
    after = after_failure(stage, kind, failures + 1)
    execution.give_up(
        connection,
        attempt_id=order.attempt_id,
        stage_run_id=order.stage_run_id,
        ended_as=_ENDED_AS.get(kind, "failed"),
        next_state=after.state,
        reason=reason or report.reason,
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


def block(connection: Connection, stage_run_id: int, reason: str, now: float) -> NextState:
    """Settles a queued stage run that cannot begin, as something that it reads was never made."""
    change = Transition(stage_run_id=stage_run_id, old=StageState.QUEUED, new=StageState.BLOCKED, reason=reason)
    execution.apply(connection, [change], now)
    return NextState(state=StageState.BLOCKED)
