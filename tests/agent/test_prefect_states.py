"""How stage runs and attempts look in Prefect."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p3s_prefect.agent.states import (
    TERMINAL,
    Kind,
    RecordedState,
    attempt_states,
    in_order,
    unstarted_state,
    waits_again,
)
from p3s_prefect.core.at_limit import killed_at_limit
from p3s_prefect.core.states import StageState
from p3s_prefect.core.views import AttemptRow, StageRow

ATTEMPT = AttemptRow(
    id=1,
    number=0,
    state="done",
    reason="",
    opened_at=10.0,
    started_at=10.5,
    ended_at=12.0,
    published_at=12.1,
    pilot="pilot-1",
    steps=(),
    log_key=None,
)


def stage(state: str, *attempts: AttemptRow, **also: Any) -> StageRow:
    values: dict[str, Any] = {"id": 1, "stage": "quick", "state": state, "reason": "", "q": 1.0}
    times = {"queued_at": 9.0, "settled_at": 20.0 if StageState(state).is_terminal else None}
    return StageRow(**(values | times | {"failures": 0, "losses": 0, "attempts": attempts} | also))


@pytest.mark.parametrize(
    ("state", "reason", "shown"),
    [
        ("done", "", (Kind.COMPLETED, "Completed")),
        ("failed", "step work raised ValueError", (Kind.FAILED, "Failed")),
        ("failed", killed_at_limit(3.0, "work"), (Kind.FAILED, "TimedOut")),
        ("failed", f"{killed_at_limit(1e7)}, as its pilot had not ended it", (Kind.FAILED, "TimedOut")),
        ("failed", "step work: OSError: it was killed after its 3 s", (Kind.FAILED, "Failed")),
        ("lost", "the pilot died", (Kind.CRASHED, "PilotLost")),
        ("stopped", "the station stopped", (Kind.CANCELLED, "Stopped")),
        ("expired", "step work was killed at the deadline", (Kind.FAILED, "Expired")),
    ],
)
def test_an_attempt_ends_as_it_did(state: str, reason: str, shown: tuple[Kind, str]) -> None:
    """S2: states tell the truth, with the reason."""
    running, ended = attempt_states(replace(ATTEMPT, state=state, reason=reason))
    assert (running.kind, running.name, running.at) == (Kind.RUNNING, "Running", 10.0)
    assert ((ended.kind, ended.name), ended.at, ended.message) == (shown, 12.0, reason)


def test_a_second_attempt_is_retrying() -> None:
    """S2."""
    (running,) = attempt_states(replace(ATTEMPT, state="running", number=1, ended_at=None))
    assert running.name == "Retrying"


def test_times_rise_though_the_clock_of_a_pilot_is_behind() -> None:
    """V21: Prefect keeps the newest of two states by their times: the end must come last."""
    running, ended = attempt_states(replace(ATTEMPT, opened_at=100.0))
    assert ended.at > running.at


@given(st.lists(st.floats(min_value=1e9, max_value=2e9)))
def test_states_in_order_rise(times: list[float]) -> None:
    """V21."""
    found = in_order([RecordedState(kind=Kind.PENDING, name="x", at=at) for at in times])
    assert all(a.at < b.at for a, b in itertools.pairwise(found))
    assert all(state.at >= at for state, at in zip(found, times, strict=True))


@pytest.mark.parametrize("state", [state for state in StageState if state is not StageState.RUNNING])
def test_every_state_without_an_attempt_has_its_own_name(state: StageState) -> None:
    """S2: what is open stays open; what was left out on purpose is no failure."""
    shown = unstarted_state(stage(state, reason="why"), arrived_at=8.0, changed_at=None)
    assert (shown.kind in TERMINAL) == state.is_terminal
    assert shown.message == "why"
    if state in (StageState.PRESCALED, StageState.SHED, StageState.BLOCKED, StageState.SUPERSEDED):
        assert (shown.kind, shown.name) == (
            Kind.COMPLETED if state is StageState.PRESCALED else Kind.CANCELLED,
            state.capitalize(),
        )
    if state in (StageState.FAILED, StageState.EXPIRED):
        assert shown.kind is Kind.FAILED


def test_a_stage_that_waits_for_its_next_try_says_so() -> None:
    """S2: retrying is told while it is waited for."""
    failed = replace(ATTEMPT, state="failed", reason="bad")
    again = stage("queued", failed, queued_at=12.5, failures=1)
    assert waits_again(again)
    assert unstarted_state(again, arrived_at=8.0, changed_at=None).name == "AwaitingRetry"
    assert not waits_again(stage("failed", failed, failures=1))


def test_a_clock_that_was_set_back_makes_no_further_try() -> None:
    """V21: its own attempt has ended a stage run, though it seems to have been queued after that."""
    assert not waits_again(stage("done", ATTEMPT, queued_at=50.0))
    assert not waits_again(stage("running", replace(ATTEMPT, state="running"), queued_at=50.0))


def test_what_is_held_by_hand_is_paused_from_that_moment_on() -> None:
    """S2: later than when it was queued, or Prefect would keep the older state."""
    shown = unstarted_state(stage("held"), arrived_at=8.0, changed_at=15.0)
    assert (shown.kind, shown.at) == (Kind.PAUSED, 15.0)
