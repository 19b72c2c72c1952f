"""What becomes of a stage run whose execution gave no results (P12)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scheduling import stage

from p3s_prefect.core.records import Failure
from p3s_prefect.core.retry import MOST_LOSSES, NextState, after_failure, after_loss
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


@pytest.mark.parametrize("failure", Failure)
def test_every_failure_has_a_next_state_that_running_may_move_to(failure: Failure) -> None:
    """P7."""
    for failures in (1, 2, 3):
        assert may_move(StageState.RUNNING, after_failure(stage(retries=1), failure, failures).state)


def test_the_third_loss_is_the_units_own_failure() -> None:
    """P12: a unit that takes its pilot down with it must not take all of them."""
    states = [after_loss(losses).state for losses in range(1, MOST_LOSSES + 2)]
    assert states == [StageState.QUEUED] * (MOST_LOSSES - 1) + [StageState.FAILED] * 2
