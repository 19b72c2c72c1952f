"""States, their moves, and what a sub-job's state follows from (P7)."""

from __future__ import annotations

from itertools import product

import pytest

from p3s_prefect.core.states import MOVES, TERMINAL, StageState, SubJobState, may_move, sub_job_state

S = StageState


def _reachable(start: StageState) -> set[StageState]:
    found = {start}
    while more := {new for old in found for new in MOVES[old]} - found:
        found |= more
    return found


@pytest.mark.parametrize("state", StageState)
def test_whatever_is_open_can_still_end_in_every_way_but_prescaled(state: StageState) -> None:
    """P7: prescaled is decided before a unit is let in; nothing moves there."""
    if not state.is_terminal:
        assert _reachable(state) >= TERMINAL - {S.PRESCALED}
        assert S.PRESCALED not in _reachable(state)


def test_retry_is_the_only_way_out_of_a_terminal_state() -> None:
    """P7, B3: and it lets what was blocked wait again."""
    out = {(old, new) for old, new in product(StageState, StageState) if old.is_terminal and may_move(old, new)}
    assert out == {(S.FAILED, S.QUEUED), (S.BLOCKED, S.WAITING)}


def test_nothing_runs_or_ends_well_without_having_been_queued_and_run() -> None:
    """P7, P11."""
    assert {old for old in StageState if may_move(old, S.RUNNING)} == {S.QUEUED}
    assert {old for old in StageState if may_move(old, S.DONE)} == {S.RUNNING}
    assert {old for old in StageState if may_move(old, S.FAILED)} == {S.RUNNING}
    assert not any(may_move(state, state) for state in StageState)


def test_every_state_has_its_moves_and_its_place_in_the_account() -> None:
    """P7: the account's terms are the terminal states, and each is a sub-job's state too."""
    assert set(MOVES) == set(StageState)
    assert {str(state) for state in StageState if state.is_terminal} == {
        *("done", "prescaled", "shed", "expired", "failed", "blocked", "superseded", "cancelled")
    }
    assert {str(state) for state in TERMINAL} == {str(s) for s in SubJobState} - {"expected", "arrived"}


@pytest.mark.parametrize("length", [1, 2, 3])
def test_a_sub_jobs_state_for_every_combination(length: int) -> None:
    """P7: open while any stage is; done if each is done or prescaled; else what first went otherwise."""
    for stages in product(StageState, repeat=length):
        state = sub_job_state(stages)
        otherwise = [one for one in stages if one not in (S.DONE, S.PRESCALED)]
        if any(one in (S.WAITING, S.QUEUED, S.RUNNING, S.HELD) for one in stages):
            assert state is SubJobState.ARRIVED
        elif not otherwise:
            assert state is (SubJobState.DONE if S.DONE in stages else SubJobState.PRESCALED)
        else:
            assert state == SubJobState(otherwise[0].value)
