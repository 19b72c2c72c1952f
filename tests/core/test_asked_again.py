"""Retry and cancel, as the dispatcher does them (B3)."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scheduling import PlayedLedger, chain, pipelines, stage

from p3s_prefect.core import dag
from p3s_prefect.core.dispatcher import Dispatcher
from p3s_prefect.core.experiment import Pipeline
from p3s_prefect.core.records import StageFact, SubJobFact
from p3s_prefect.core.retry import retried
from p3s_prefect.core.states import StageState as S
from p3s_prefect.core.states import may_move


def with_states(fact: SubJobFact, states: dict[str, S]) -> SubJobFact:
    stages = tuple(StageFact(id=one.id, stage=one.stage, state=states[one.stage]) for one in fact.stages)
    return replace(fact, stages=stages)


@given(pipelines(prescales=False), st.data())
def test_a_retry_frees_what_failed_and_only_what_waited_for_it(declared: Pipeline, data: st.DataObject) -> None:
    """B3: what is blocked by something that stays as it is stays blocked; what is done, or given up, is left alone."""
    fact = PlayedLedger({"p": declared}).take("p")
    states = {one.stage: data.draw(st.sampled_from([S.DONE, S.FAILED, S.BLOCKED, S.EXPIRED])) for one in fact.stages}
    changes = retried(declared, with_states(fact, states), "asked for")
    names = {one.id: one.stage for one in fact.stages}
    assert all(may_move(change.old, change.new) for change in changes)
    after = states | {names[change.stage_run_id]: change.new for change in changes}
    for name in states:
        parents = [after[parent] for parent in dag.parents(declared, name) if parent in after]
        is_stuck = any(parent.is_terminal and parent is not S.DONE for parent in parents)
        expected = {S.FAILED: S.QUEUED, S.BLOCKED: S.BLOCKED if is_stuck else S.WAITING}
        assert after[name] is expected.get(states[name], states[name])


def test_only_the_stage_that_is_named() -> None:
    """B3: `p3s retry dqm/left` leaves what failed elsewhere."""
    declared = Pipeline(stages={"left": stage(), "right": stage(), "after": stage(after=["left"])})
    fact = PlayedLedger({"p": declared}).take("p")
    states = {"left": S.FAILED, "right": S.FAILED, "after": S.BLOCKED}
    changes = retried(declared, with_states(fact, states), "asked for", "left")
    names = {one.id: one.stage for one in fact.stages}
    assert {names[change.stage_run_id]: change.new for change in changes} == {"left": S.QUEUED, "after": S.WAITING}


def test_what_is_taken_back_counts_its_deadline_from_then() -> None:
    """P8, B3: it would expire at once else, as would what comes after it; the other branch goes on meanwhile."""
    declared = Pipeline(
        stages={
            "left": stage(deadline_s=10.0),
            "right": stage(),
            "both": stage(after=["left", "right"], deadline_s=20.0),
        }
    )
    dispatcher, fact = Dispatcher({"p": declared}), PlayedLedger({"p": declared}).take("p")
    dispatcher.set_slots(2)
    ids = {one.stage: one.id for one in fact.stages}
    dispatcher.add(fact, 0.0)
    assert {start.stage_run_id for start in dispatcher.decide(0.0).starts} == {ids["left"], ids["right"]}
    dispatcher.settle(ids["left"], S.FAILED, now=1.0)
    assert dispatcher.holds(fact)
    states = {"left": S.FAILED, "right": S.RUNNING, "both": S.BLOCKED}
    changes = retried(declared, with_states(fact, states), "asked for")
    assert dispatcher.take_back(changes, 100.0) == []
    decided = dispatcher.decide(100.0)
    assert [start.stage_run_id for start in decided.starts] == [ids["left"]]
    assert decided.transitions == ()
    dispatcher.settle(ids["right"], S.DONE, now=101.0)
    (ready,) = dispatcher.settle(ids["left"], S.DONE, now=102.0)
    assert (ready.stage_run_id, ready.new) == (ids["both"], S.QUEUED)
    assert [start.stage_run_id for start in dispatcher.decide(102.0).starts] == [ids["both"]]


@pytest.mark.parametrize(("state", "held"), list(product((S.QUEUED, S.RUNNING), (False, True))))
def test_cancelling_leaves_what_runs_to_its_pilot(state: S, held: bool) -> None:
    """S2: it is given up when the pilot has given it back; what waits for it is given up at once, not blocked."""
    declared = chain("first", "second")
    dispatcher, fact = Dispatcher({"p": declared}), PlayedLedger({"p": declared}).take("p")
    dispatcher.set_slots(1 if state is S.RUNNING else 0)
    dispatcher.add(fact, 0.0)
    dispatcher.decide(0.0)
    first, second = (one.id for one in fact.stages)
    changes = dispatcher.cancel([first, second] if held else [second, first], "by ana", 1.0)
    given_up = {second} if state is S.RUNNING else {first, second}
    assert {(change.stage_run_id, change.new) for change in changes} == {(one, S.CANCELLED) for one in given_up}
    if state is S.RUNNING:
        dispatcher.settle(first, S.QUEUED, now=2.0)
        (last,) = dispatcher.cancel([first], "by ana", 2.0)
        assert (last.old, last.new, last.reason) == (S.QUEUED, S.CANCELLED, "by ana")
    assert dispatcher.open == 0
    assert dispatcher.cancel([first, second], "by ana", 3.0) == []
