"""How an attempt that gave no results counts in the ledger."""

from __future__ import annotations

from builders import NOW, command, order, take_and_start

from p3s_prefect.adapters.ledger import execution
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.core.experiment import Stage
from p3s_prefect.core.records import Failure, StageReport
from p3s_prefect.core.retry import MOST_DISTURBED, NextState
from p3s_prefect.core.states import StageState
from p3s_prefect.station import settling

ONCE = Stage(steps=[command("true")], retries=0)


def _cannot_be_served(ledger: Ledger, attempt: execution.Attempt, reason: str, execution_id: str = "e1") -> NextState:
    report = StageReport(
        attempt_id=attempt.id,
        stage_run_id=attempt.stage_run_id,
        execution=execution_id,
        pilot="here:1",
        started_at=NOW,
        ended_at=NOW + 1,
        failure=Failure.DISTURBED,
        reason=reason,
    )
    with ledger.transaction() as connection:
        wanted = order("s3://central", attempt_id=attempt.id, stage_run_id=attempt.stage_run_id, prefix=attempt.prefix)
        return settling.fail(connection, wanted, ONCE, report, NOW + 1)


def test_an_object_that_can_never_be_read_fails_its_unit_in_the_end(ledger: Ledger) -> None:
    """P7, P13: what the store said of other objects, as it does in an outage, is not counted with it."""
    with ledger.transaction() as connection:
        attempt = take_and_start(connection)
    told = [f"it cannot serve {number}" for number in range(3)] + ["it cannot serve this"] * (MOST_DISTURBED + 1)
    states = []
    for reason in told:
        states.append(_cannot_be_served(ledger, attempt, reason).state)
        with ledger.transaction() as connection:
            failed, _ = execution.counts(connection, attempt.stage_run_id)
            assert failed == int(states[-1] is StageState.FAILED)
            if states[-1] is StageState.QUEUED:
                attempt = execution.start(connection, attempt.stage_run_id, NOW)
    assert states == [StageState.QUEUED] * (len(told) - 1) + [StageState.FAILED]


def test_an_object_that_can_never_be_written_fails_its_unit_in_the_end(ledger: Ledger) -> None:
    """P7, P13: each execution has keys of its own, of which the store says the same."""
    with ledger.transaction() as connection:
        attempt = take_and_start(connection)
    for number in range(MOST_DISTURBED + 1):
        reason = f"it cannot serve {attempt.prefix}/e{number}/quick/out.dat in s3://central (its log is lost: so is \
{attempt.prefix}/e{number}/log.txt)"
        state = _cannot_be_served(ledger, attempt, reason, f"e{number}").state
        assert state is (StageState.QUEUED if number < MOST_DISTURBED else StageState.FAILED)
        if state is StageState.QUEUED:
            with ledger.transaction() as connection:
                attempt = execution.start(connection, attempt.stage_run_id, NOW)


def test_outputs_that_the_store_never_takes_count_against_the_retries(ledger: Ledger) -> None:
    """P7, P13: one retry is allowed, after the stage's own back-off."""
    stage = Stage(steps=[command("true")], retries=1, backoff_s=7.0)
    with ledger.transaction() as connection:
        attempt = take_and_start(connection)
        ended = settling.give_up_outputs(connection, attempt.id, attempt.stage_run_id, stage, "it is bad", NOW)
        assert ended == NextState(state=StageState.QUEUED, delay_s=7.0)
        attempt = execution.start(connection, attempt.stage_run_id, NOW)
        ended = settling.give_up_outputs(connection, attempt.id, attempt.stage_run_id, stage, "it is bad", NOW)
        assert ended == NextState(state=StageState.FAILED)
