"""What becomes of a stage run whose execution gave no results (P12)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scheduling import stage

from p3s_prefect.core.records import Failure, StageReport
from p3s_prefect.core.retry import (
    MOST_AWAY_S,
    MOST_DISTURBED,
    MOST_LOSSES,
    NextState,
    after_failure,
    after_loss,
    judged,
)
from p3s_prefect.core.states import StageState, may_move

COUNTED = (Failure.PAYLOAD, Failure.TIMEOUT, Failure.STORE)


@pytest.mark.parametrize("failure", COUNTED)
@given(retries=st.integers(0, 100), backoff_s=st.floats(0, 86_400), failures=st.integers(1, 200))
def test_as_many_retries_as_declared_each_later(
    failure: Failure, retries: int, backoff_s: float, failures: int
) -> None:
    """P12: the wait doubles with each, up to 64 times the first."""
    after = after_failure(stage(retries=retries, backoff_s=backoff_s), failure, failures)
    if failures > retries:
        assert after == NextState(state=StageState.FAILED)
    else:
        assert after == NextState(state=StageState.QUEUED, delay_s=backoff_s * min(2 ** (failures - 1), 64))


def test_the_waits_one_after_the_other() -> None:
    """P12."""
    waits = [after_failure(stage(retries=9, backoff_s=0.5), Failure.PAYLOAD, n).delay_s for n in range(1, 10)]
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 32.0, 32.0]


@given(failures=st.integers(1, 200))
def test_what_trying_again_cannot_change(failures: int) -> None:
    """P8, P12, V22: a bad input fails at once, a deadline expires, what was stopped goes back without a wait."""
    patient = stage(retries=100)
    assert after_failure(patient, Failure.INPUT, failures) == NextState(state=StageState.FAILED)
    assert after_failure(patient, Failure.DEADLINE, failures) == NextState(state=StageState.EXPIRED)
    assert after_failure(patient, Failure.STOPPED, failures) == NextState(state=StageState.QUEUED)


@given(retries=st.integers(0, 3), failures=st.integers(1, 200), attempts=st.integers(1, 10_000))
def test_what_is_away_costs_no_retry_and_is_asked_for_ever_more_seldom(
    retries: int, failures: int, attempts: int
) -> None:
    """P13: an outage of any length fails no unit, and a thousand units that wait for its end ask 13 times a second."""
    after = after_failure(stage(retries=retries), Failure.AWAY, failures, attempts)
    assert after == NextState(state=StageState.QUEUED, delay_s=min(5.0 * 2 ** min(attempts - 1, 10), MOST_AWAY_S))
    assert 1000 / MOST_AWAY_S < 13


def test_the_waits_for_what_is_away() -> None:
    """P13."""
    waits = [after_failure(stage(), Failure.AWAY, 1, attempts).delay_s for attempts in range(1, 8)]
    assert waits == [5.0, 10.0, 20.0, 40.0, 80.0, 80.0, 80.0]


@pytest.mark.parametrize("failure", [None, *Failure])
def test_an_attempt_that_found_what_it_needs_away_tells_nothing_of_the_service(failure: Failure | None) -> None:
    """P6, P13: else the many short ones of an outage would be the service times by which units are left out."""
    report = StageReport(
        attempt_id=1, stage_run_id=1, execution="e", pilot="p", started_at=10.0, ended_at=10.5, failure=failure
    )
    assert report.service_s == (None if failure in (Failure.AWAY, Failure.DISTURBED) else 0.5)


@given(failure=st.sampled_from(Failure), times=st.integers(0, 1000))
def test_what_a_server_cannot_serve_is_an_outage_at_first_and_the_objects_own_trouble_later(
    failure: Failure, times: int
) -> None:
    """P7, P13: a trouble of 20 minutes fails no unit, and none waits for ever for what can never be read."""
    if failure is not Failure.DISTURBED:
        assert judged(failure, times) is failure
    else:
        assert judged(failure, times) is (Failure.AWAY if times < MOST_DISTURBED else Failure.STORE)
    waits = [after_failure(stage(), Failure.AWAY, 1, attempts).delay_s for attempts in range(1, MOST_DISTURBED + 1)]
    assert 20 * 60 < sum(waits) < 30 * 60


@pytest.mark.parametrize("failure", Failure)
def test_every_failure_has_a_next_state_that_running_may_move_to(failure: Failure) -> None:
    """P7."""
    for failures in (1, 2, 3):
        assert may_move(StageState.RUNNING, after_failure(stage(retries=1), failure, failures).state)


def test_the_third_loss_is_the_units_own_failure() -> None:
    """P12: a unit that takes its pilot down with it must not take all of them."""
    states = [after_loss(losses).state for losses in range(1, MOST_LOSSES + 2)]
    assert states == [StageState.QUEUED] * (MOST_LOSSES - 1) + [StageState.FAILED] * 2
