"""What chance left out in overload stands by for a slot that is left, and stays left out for statistics (P5, P6)."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from dataclasses import replace
from itertools import accumulate
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scheduling import stage

from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.dispatcher import Backlog, Dispatcher
from p3s_prefect.core.experiment import Order, Pipeline, WorkClass
from p3s_prefect.core.incidents import ControlChange, UnitArrival
from p3s_prefect.core.outcome import Outcome
from p3s_prefect.core.overrides import Controls, Override, OverrideKind, Target
from p3s_prefect.core.records import Failure, StageFact, SubJobFact, Transition
from p3s_prefect.core.selection import sample_number
from p3s_prefect.core.service_times import chance
from p3s_prefect.core.states import StageState
from p3s_prefect.core.virtual_time import simulate
from p3s_prefect.core.weighting import Sampled, weighted_total

DONE, SHED, QUEUED = StageState.DONE, StageState.SHED, StageState.QUEUED
EXPIRED, FAILED = StageState.EXPIRED, StageState.FAILED
GROUP = DataId.of(run=1)
LONGEST_S = 3.0


def _pipeline(**values: object) -> Pipeline:
    return Pipeline(stages={"a": stage(deadline_s=8.0)}, **values)


def _fact(number: int, *, u: float, q: float = 1.0, pipeline: str = "p") -> SubJobFact:
    return SubJobFact(
        id=number,
        pass_id=1,
        pipeline=pipeline,
        data_id=DataId.of(unit=number),
        group=GROUP,
        per="unit",
        taken_at=0.0,
        u=u,
        stages=(StageFact(id=number, stage="a", state=QUEUED, q=q),),
    )


def _dispatcher(*facts: SubJobFact, slots: int, **pipelines: Pipeline) -> Dispatcher:
    found = Dispatcher(pipelines or {"p": _pipeline()})
    found.set_slots(slots)
    for fact in facts:
        assert found.add(fact, 0.0) == []
    return found


def _arrival(pipeline: str, number: int, *, at: float) -> UnitArrival:
    return UnitArrival(at=at, taken_at=at, pipeline=pipeline, group=GROUP, data_id=DataId.of(unit=number))


def _started(dispatcher: Dispatcher, now: float = 0.0) -> list[int]:
    return [start.stage_run_id for start in dispatcher.decide(now).starts]


def test_it_starts_only_where_a_slot_would_idle_the_smallest_number_first() -> None:
    """P5, P7: a queued stage run whose number is not below its q is on standby, also after a restart."""
    dispatcher = _dispatcher(
        _fact(1, u=0.9, q=0.5), _fact(2, u=0.6, q=0.5), _fact(3, u=0.7, q=0.5), _fact(4, u=0.4, q=0.5), slots=2
    )
    assert _started(dispatcher) == [4, 2]
    dispatcher.settle(2, DONE, now=1.0, service_s=1.0)
    dispatcher.add(_fact(5, u=0.1, q=0.5), 1.0)
    assert _started(dispatcher, 1.0) == [5]
    dispatcher.settle(4, DONE, now=2.0, service_s=1.0)
    assert _started(dispatcher, 2.0) == [3]


def test_it_goes_behind_what_was_let_in_of_its_priority_or_a_higher_one_and_before_the_others() -> None:
    """P5: no slot is left to a lower priority that a higher one can use."""
    pipelines = {"urgent": _pipeline(priority=5), "usual": _pipeline(), "dull": _pipeline(priority=-5)}
    facts = [
        _fact(1, u=0.9, q=0.5, pipeline="dull"),
        _fact(2, u=0.1, pipeline="dull"),
        _fact(3, u=0.9, q=0.5, pipeline="usual"),
        _fact(4, u=0.1, pipeline="usual"),
        _fact(5, u=0.9, q=0.5, pipeline="urgent"),
    ]
    dispatcher = _dispatcher(*facts, slots=1, **pipelines)
    order = []
    for _ in facts:
        (number,) = _started(dispatcher)
        order.append(number)
        dispatcher.settle(number, DONE, now=0.0, service_s=1.0)
    assert order == [5, 4, 3, 2, 1]


@pytest.mark.parametrize("sheds", [False, True])
@pytest.mark.parametrize("order", Order)
def test_a_bunch_of_a_higher_class_takes_the_slots_of_a_lower_one(order: Order, sheds: bool) -> None:
    """P5: 300 units at once, of which 50 can be done in time; the lower class has time enough and waits for them.

    10 slots, services of 1 s, a deadline of 6 s.
    """
    pipelines = {
        "high": Pipeline(stages={"a": stage(deadline_s=6.0)}, work_class="high", order=order),
        "low": Pipeline(stages={"a": stage(deadline_s=600.0)}, work_class="low"),
    }
    classes = {"high": WorkClass(priority=1), "low": WorkClass(shed=sheds)}
    steady = [_arrival("low", number, at=0.1 * number) for number in range(600)]
    load = sorted([*steady, *(_arrival("high", number, at=20.0) for number in range(300))], key=lambda unit: unit.at)
    outcome = simulate(pipelines, load, classes=classes, service_s=lambda *_: 1.0, slots=10)
    account = outcome.account()
    assert account["high", "a"][DONE] >= 49
    assert account["high", "a"][EXPIRED] == 0
    assert account["low", "a"] == {DONE: 600}


@pytest.mark.parametrize("deadline_s", [4.0, 10.0])
def test_a_lower_class_is_thinned_beside_what_stands_by_above_it(deadline_s: float) -> None:
    """P5, P6: it does not expire, though for 40 s after a burst of the higher one no slot is left to it."""
    pipelines = {
        "high": Pipeline(stages={"a": stage(deadline_s=60.0)}, work_class="high"),
        "low": Pipeline(stages={"a": stage(deadline_s=deadline_s)}, work_class="low"),
    }
    load = [_arrival("low", number, at=0.2 * number) for number in range(900)]
    load += [_arrival("high", number, at=40.0 + 0.05 * number) for number in range(1200)]
    load.sort(key=lambda unit: unit.at)
    outcome = simulate(pipelines, load, classes={"high": WorkClass(priority=1)}, service_s=lambda *_: 1.0, slots=10)
    low = outcome.account()["low", "a"]
    assert low[EXPIRED] <= 0.01 * 900
    # From 40 to 140 s, 1,000 s of slots, go to the higher class; before and after there is room for all.
    assert low[DONE] >= 0.9 * (900 - 500)


def test_a_lower_class_is_not_thinned_for_what_stands_by_at_a_limit() -> None:
    """P5, P14: of ten slots eight are left, whatever waits for the other two."""
    pipelines = {
        "high": Pipeline(stages={"a": stage(deadline_s=60.0)}, work_class="high", limit=2),
        "low": Pipeline(stages={"a": stage(deadline_s=4.0)}, work_class="low"),
    }
    load = [_arrival("low", number, at=0.2 * number) for number in range(500)]
    load += [_arrival("high", number, at=20.0 + 0.05 * number) for number in range(1200)]
    load.sort(key=lambda unit: unit.at)
    outcome = simulate(pipelines, load, classes={"high": WorkClass(priority=1)}, service_s=lambda *_: 1.0, slots=10)
    assert min(run.q for run in outcome.runs if run.pipeline == "low") == 1.0


@pytest.mark.parametrize(("group", "priority"), [(1, 9), (2, -5)])
def test_what_was_let_in_is_done_where_a_group_is_put_forward_or_back(group: int, priority: int) -> None:
    """P10, P5: how much is let in is reckoned for stages; what is left out of a group goes behind what is let in."""
    target = Target(group=DataId.of(run=group))
    one = Override(id=1, kind=OverrideKind.PRIORITY, target=target, value=priority, by="a", why="b", set_at=30.0)
    load = [
        replace(_arrival("p", 2 * number + run, at=number / 15), group=DataId.of(run=run))
        for number in range(900)
        for run in (1, 2)
    ]
    outcome = simulate(
        {"p": Pipeline(stages={"a": stage(deadline_s=20.0)})},
        load,
        service_s=lambda *_: 1.0,
        slots=10,
        control_changes=[ControlChange(at=30.0, controls=Controls([one]))],
    )
    assert outcome.account()["p", "a"][EXPIRED] <= 0.01 * len(load)
    # Run 2 has the even numbers.
    later = [run for run in outcome.runs if not run.data_id["unit"] % 2 and run.taken_at >= 30.0]
    assert sum(run.state is DONE for run in later) >= 100


def test_it_is_shed_with_its_q_once_it_would_hardly_end_in_time() -> None:
    """P6, P8: at its deadline less the mean service, and not before; nothing is left open."""
    dispatcher = _dispatcher(_fact(1, u=0.1), _fact(3, u=0.2), slots=1)
    assert _started(dispatcher) == [1]
    dispatcher.settle(1, DONE, now=3.0, service_s=3.0)
    assert _started(dispatcher, 3.0) == [3]
    dispatcher.add(_fact(2, u=0.9, q=0.5), 3.0)
    assert _started(dispatcher, 3.0) == []
    assert dispatcher.wake_at() == pytest.approx(5.0)
    assert dispatcher.decide(4.9).transitions == ()
    (change,) = dispatcher.decide(5.0).transitions
    assert (change.stage_run_id, change.new, change.q) == (2, SHED, None)
    assert "is not below q = 0.5" in change.reason
    assert dispatcher.wake_at() == math.inf


@pytest.mark.parametrize("is_closed", [False, True])
def test_what_failed_on_standby_and_is_tried_again_is_not_shed(is_closed: bool) -> None:
    """B3: long after its deadline, at once where a slot idles, or as what was let in; it stays left out (P6)."""
    first = _fact(1, u=0.9, q=0.5)
    failed = StageFact(id=2, stage="b", state=StageState.FAILED, q=0.5)
    for number in (0, 2):
        pipeline = Pipeline(stages={"a": stage(deadline_s=8.0), "b": stage(deadline_s=8.0)})
        dispatcher = _dispatcher(slots=2, p=pipeline)
        busy = [_fact(10 + other, u=0.1) for other in range(number)]
        for fact in busy:
            dispatcher.add(replace(fact, taken_at=95.0), 95.0)
        assert len(_started(dispatcher, 95.0)) == len(busy)
        if is_closed:
            done = replace(first.stages[0], state=DONE)
            again = replace(failed, state=QUEUED)
            dispatcher.add(replace(first, taken_at=100.0, is_asked=True, stages=(done, again)), 100.0)
        else:
            running = replace(first.stages[0], state=StageState.RUNNING)
            dispatcher.add(replace(first, stages=(running, failed)), 100.0)
            dispatcher.take_back([Transition(stage_run_id=2, old=StageState.FAILED, new=QUEUED)], 100.0)
        decided = dispatcher.decide(100.0)
        assert decided.transitions == ()
        assert [start.stage_run_id for start in decided.starts] == ([] if number else [2])
        if number:
            # It goes before fresh ones that chance left out.
            dispatcher.add(replace(_fact(5, u=0.6, q=0.5), taken_at=101.0), 101.0)
            dispatcher.settle(10, DONE, now=101.0)
            if not is_closed:
                dispatcher.settle(11, DONE, now=101.0)
            assert _started(dispatcher, 101.0) == [2]


def test_what_stands_by_and_is_asked_for_is_queued_as_what_was_let_in() -> None:
    """B3: its deadline counts from then; at its old one it is neither shed nor expired."""
    dispatcher = _dispatcher(_fact(1, u=0.1), _fact(2, u=0.2), _fact(3, u=0.9, q=0.5), slots=2)
    assert _started(dispatcher) == [1, 2]
    assert dispatcher.ask(_fact(3, u=0.9, q=0.5), 6.0)
    assert dispatcher.decide(8.0).transitions == ()
    dispatcher.add(replace(_fact(4, u=0.3, q=0.5), taken_at=1.0), 8.0)
    dispatcher.settle(1, DONE, now=8.0)
    assert _started(dispatcher, 8.0) == [3]
    assert dispatcher.wake_at() == 9.0
    assert not dispatcher.ask(_fact(9, u=0.9, q=0.5), 8.0)


def test_what_is_asked_for_again_still_expires() -> None:
    """P8: as late as its last deadline, and only once."""
    dispatcher = _dispatcher(_fact(1, u=0.1), _fact(2, u=0.2), _fact(3, u=0.9, q=0.5), slots=2)
    assert _started(dispatcher) == [1, 2]
    for now in (1.0, 2.0):
        assert dispatcher.ask(_fact(3, u=0.9, q=0.5), now)
    assert dispatcher.decide(9.9).transitions == ()
    (change,) = dispatcher.decide(10.0).transitions
    assert (change.stage_run_id, change.new) == (3, StageState.EXPIRED)


def test_what_stands_by_does_not_make_the_backlog_old() -> None:
    """P19: it waits for what is left only, however well the slots keep up with what was let in."""
    dispatcher = _dispatcher(_fact(1, u=0.9, q=0.5), slots=0)
    assert dispatcher.backlog() == Backlog(queued=1, oldest_taken_at=None)
    dispatcher.add(replace(_fact(2, u=0.1, q=0.5), taken_at=40.0), 40.0)
    assert dispatcher.backlog() == Backlog(queued=2, oldest_taken_at=40.0)


def test_what_is_paused_does_not_start_from_standby() -> None:
    """P14."""
    dispatcher = _dispatcher(_fact(1, u=0.9, q=0.5), slots=1)
    pause = Override(id=1, kind=OverrideKind.PAUSE, target=Target(), value=None, by="anna", why="", set_at=0.0)
    dispatcher.control(Controls((pause,)), 0.0)
    assert _started(dispatcher) == []
    dispatcher.control(Controls(), 1.0)
    assert _started(dispatcher, 1.0) == [1]


@pytest.mark.parametrize("u", [0.1, 0.9])
def test_what_is_held_and_released_says_again_that_it_stands_by(u: float) -> None:
    """B12, S9."""
    dispatcher = _dispatcher(_fact(1, u=u, q=0.5), slots=0)
    hold = Override(id=1, kind=OverrideKind.HOLD, target=Target(), value=None, by="anna", why="", set_at=0.0)
    (held,) = dispatcher.control(Controls((hold,)), 0.0)
    (released,) = dispatcher.control(Controls(), 1.0)
    assert (held.new, released.new) == (StageState.HELD, QUEUED)
    assert released.reason == ("in overload: u = 0.9000 is not below q = 0.5" if u > 0.5 else "")


def test_a_later_stage_of_a_unit_on_standby_stands_by_too_unless_nothing_has_a_deadline() -> None:
    """P5: what was left out once is left out of all that follows; without a deadline nothing is."""
    for deadline_s, first in ((8.0, 4), (None, 2)):
        found = Pipeline(stages={"a": stage(deadline_s=8.0), "b": stage(after=["a"], deadline_s=deadline_s)})
        dispatcher = _dispatcher(slots=2, p=found)
        for number, u in ((1, 0.9), (3, 0.1)):
            stages = (
                StageFact(id=number, stage="a", state=DONE, q=0.5),
                StageFact(id=number + 1, stage="b", state=QUEUED, q=0.5),
            )
            dispatcher.add(replace(_fact(number, u=u), taken_at=-number / 10, stages=stages), 0.0)
        # Both have begun, and the one that was left out is fresher.
        assert _started(dispatcher)[0] == first


def _chain_fact(*stages: tuple[str, StageState, float], u: float) -> SubJobFact:
    found = (StageFact(id=number, stage=name, state=state, q=q) for number, (name, state, q) in enumerate(stages, 1))
    return replace(_fact(1, u=u), stages=tuple(found))


@pytest.mark.parametrize(("u", "ends"), [(0.5, EXPIRED), (0.2, FAILED)])
def test_what_is_blocked_has_no_larger_q_than_what_blocks_it(u: float, ends: StageState) -> None:
    """P6: else it would count as let through where it was left out, and as one where it stands for several."""
    stages = {"a": stage(deadline_s=8.0), "b": stage(after=["a"], deadline_s=8.0), "c": stage(after=["b"])}
    # As the ledger may have it after a restart: the second stage was thinned, and the third waits for it.
    fact = _chain_fact(("a", DONE, 1.0), ("b", QUEUED, 0.3), ("c", StageState.WAITING, 1.0), u=u)
    dispatcher = _dispatcher(fact, slots=1, p=Pipeline(stages=stages))
    assert _started(dispatcher) == [2]
    (change,) = dispatcher.settle(2, ends, now=8.0, service_s=8.0)
    assert (change.stage_run_id, change.new, change.q) == (3, StageState.BLOCKED, 0.3)


def test_what_is_cancelled_has_no_larger_q_than_the_stages_on_the_way_to_it() -> None:
    """P6, B3: in whatever order it is named."""
    stages = {"a": stage(deadline_s=8.0), "b": stage(after=["a"]), "c": stage(after=["b"])}
    waiting = StageState.WAITING
    fact = _chain_fact(("a", QUEUED, 0.3), ("b", waiting, 1.0), ("c", waiting, 1.0), u=0.5)
    dispatcher = _dispatcher(fact, slots=0, p=Pipeline(stages=stages))
    changes = dispatcher.cancel([3, 2, 1], "not wanted", 1.0)
    assert {change.stage_run_id: change.q for change in changes} == {1: None, 2: 0.3, 3: 0.3}


def test_with_a_later_stage_that_is_left_out_all_that_comes_after_it_is() -> None:
    """P5, P6: at once, so that what waits behind it does not count as work."""
    stages = {
        "look": stage(deadline_s=8.0, value=5.0),
        "deep": stage(after=["look"], deadline_s=8.0),
        "last": stage(after=["deep"], deadline_s=8.0),
    }
    dispatcher = _dispatcher(slots=1, p=Pipeline(stages=stages))
    qs: dict[int, float] = {}
    running: list[int] = []
    for number in range(1, 400, 3):
        waiting = (("deep", StageState.WAITING), ("last", StageState.WAITING))
        found = [StageFact(id=number + k, stage=n, state=s) for k, (n, s) in enumerate((("look", QUEUED), *waiting))]
        dispatcher.add(replace(_fact(number, u=0.9), taken_at=number / 3, stages=tuple(found)), number / 3)
        running += _started(dispatcher, number / 3)
        if running:
            for change in dispatcher.settle(running.pop(0), DONE, now=number / 3, service_s=1.0):
                qs |= {} if change.q is None else {change.stage_run_id: change.q}
    left_out = [number for number in qs if number % 3 == 2 and qs[number] <= 0.9]
    assert left_out
    assert all(qs[number + 1] == qs[number] for number in left_out)


@given(
    st.lists(st.tuples(st.floats(0.0, 0.4), st.floats(0.2, LONGEST_S)), min_size=1, max_size=60),
    st.lists(st.sampled_from([None, None, Failure.PAYLOAD]), min_size=1, max_size=7),
    st.sampled_from([1.0, 3.0, 10.0]),
)
@settings(max_examples=60, deadline=None)
def test_whatever_becomes_of_a_stage_its_q_is_at_most_that_of_the_one_before(
    found: list[tuple[float, float]], fates: list[Failure | None], value: float
) -> None:
    """P4, P6: with stages that are thinned apart, fail, expire or are stopped, and what is blocked behind them."""
    at, arrivals, services = 0.0, [], {}
    for number, (gap_s, service_s) in enumerate(found):
        at += gap_s
        arrivals.append(_arrival("p", number, at=at))
        services[arrivals[-1].data_id] = service_s
    stages = {
        "a": stage(deadline_s=6.0, value=value**2, retries=0),
        "b": stage(after=["a"], deadline_s=7.0, value=value, retries=0, stop_at_deadline=True),
        "c": stage(after=["b"], deadline_s=8.0, retries=0),
        "d": stage(after=["c"], retries=0),
    }
    outcome = simulate(
        {"p": Pipeline(stages=stages)},
        arrivals,
        service_s=lambda pipeline, stage, unit: services[unit],
        slots=2,
        fate=lambda pipeline, stage, unit, attempt: fates[(unit["unit"] + ord(stage)) % len(fates)],
    )
    q = {(run.data_id, run.stage): run.q for run in outcome.runs}
    for unit in services:
        on_the_way = [q[unit, name] for name in stages]
        assert on_the_way == sorted(on_the_way, reverse=True)


@given(
    st.lists(st.tuples(st.floats(0.0, 0.5), st.floats(0.2, LONGEST_S)), min_size=1, max_size=60),
    st.integers(1, 3),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_no_slot_idles_while_something_could_end_in_time(
    found: list[tuple[float, float]], slots: int, fresh: bool, several: bool
) -> None:
    """P5, P7: whatever arrives: what stands by goes on, everything ends, and who is shed had no slot to take."""
    stages = {"a": stage(deadline_s=5.0)} | ({"b": stage(after=["a"], deadline_s=6.0)} if several else {})
    at, arrivals, services = 0.0, [], {}
    for number, (gap_s, service_s) in enumerate(found):
        at += gap_s
        arrivals.append(_arrival("p", number, at=at))
        services[arrivals[-1].data_id] = service_s
    outcome = simulate(
        {"p": Pipeline(stages=stages, freshest_in_overload=fresh)},
        arrivals,
        service_s=lambda pipeline, stage, unit: services[unit],
        slots=slots,
    )
    assert all(run.state.is_terminal for run in outcome.runs)
    for run in outcome.runs:
        if run.state is SHED:
            assert sample_number(run.data_id, 0) >= run.q
    _no_slot_idles_before_a_shedding(outcome, slots)


def _no_slot_idles_before_a_shedding(outcome: Outcome, slots: int) -> None:
    """While a first stage could have been served in time, however long it took, that was shed in the end."""
    edges = sorted([(one.began_at, 1) for one in outcome.services] + [(one.ended_at, -1) for one in outcome.services])
    busy = list(accumulate(step for _, step in edges))
    for run in outcome.runs:
        if run.state is SHED and run.stage == "a":
            last = min(run.since, run.deadline - LONGEST_S)
            for (at, _), (until, _), level in zip(edges, [*edges[1:], (math.inf, 0)], busy, strict=True):
                assert level >= slots or min(until, last) - max(at, run.taken_at) < 1e-9


def test_it_is_shed_if_services_turn_out_to_take_too_long_for_it() -> None:
    """P8: when it came, nobody knew how long they take."""
    dispatcher = _dispatcher(_fact(1, u=0.1), _fact(2, u=0.9, q=0.5), slots=1)
    assert _started(dispatcher) == [1]
    dispatcher.settle(1, DONE, now=6.0, service_s=6.0)
    decided = dispatcher.decide(6.0)
    assert decided.starts == ()
    assert [(change.stage_run_id, change.new) for change in decided.transitions] == [(2, SHED)]


def test_what_runs_on_standby_asks_for_no_more_of_the_stages_behind_it() -> None:
    """P5: bursts with long pauses, in which what the first stage left out runs: the second one sees as many
    units as there are, as those that were let in stand for them.
    """
    draws, at, arrivals = Random(1), 0.0, []
    while at < 40.0:
        at += draws.expovariate(120.0)
        began = at + 17.0 * (at // 3)
        arrivals.append(_arrival("p", len(arrivals), at=began))
    stages = {"look": stage(deadline_s=12.0, value=5.0), "deep": stage(after=["look"], deadline_s=18.0)}
    outcome = simulate(
        {"p": Pipeline(stages=stages)},
        arrivals,
        service_s=lambda pipeline, stage, unit: {"look": 0.3, "deep": 0.5}[stage],
        slots=4,
        sample_every_s=0.5,
    )
    looks = [run for run in outcome.runs if run.stage == "look" and run.state is DONE]
    assert sum(sample_number(run.data_id, 0) >= run.q for run in looks) > 100
    rates = [one.arrival_rate for sample in outcome.samples for one in sample.thinning if one.stage == "deep"]
    assert statistics.mean(rates) == pytest.approx(len(arrivals) / outcome.ended_at, rel=0.25)


# --- statistics -------------------------------------------------------------------------------------------------------

SEEDS = 200
UNITS = 60


def test_what_ran_on_standby_is_no_part_of_the_sample_and_the_sample_covers() -> None:
    """P6: bursts with pauses, values that go with the service time and drift: over 200 choices the totals of those with
    u < q are right on average and within what they say; counted in, what ran on standby would make them wrong.
    """
    units = [DataId.of(unit=number) for number in range(UNITS)]
    # Three bursts of four times the capacity, each with a pause behind it in which half of what was left out can run.
    arrivals = [
        UnitArrival(at=at, taken_at=at, pipeline="p", group=GROUP, data_id=unit)
        for number, unit in enumerate(units)
        for at in [10.0 * (number // 20) + 0.125 * (number % 20)]
    ]
    services = {unit: 0.5 + chance("service", number) for number, unit in enumerate(units)}
    values = {unit: services[unit] ** 2 + number / UNITS for number, unit in enumerate(units)}
    truth = sum(values.values())
    pulls, with_standby, stood_by = [], [], 0
    for seed in range(SEEDS):
        outcome = simulate(
            {"p": _pipeline()}, arrivals, service_s=lambda pipeline, stage, unit: services[unit], slots=2, seed=seed
        )
        sample = {run.data_id: run for run in outcome.runs if sample_number(run.data_id, seed) < run.q}
        estimate = weighted_total([Sampled(value=values[unit], weight=1 / run.q) for unit, run in sample.items()])
        assert estimate.error
        pulls.append((estimate.value - truth) / estimate.error)
        ran = [run for run in outcome.runs if run.data_id not in sample and run.state is DONE]
        stood_by += len(ran)
        extra = sum(values[run.data_id] / run.q for run in ran)
        with_standby.append((estimate.value + extra - truth) / estimate.error)
    assert stood_by > 5 * SEEDS
    inside = {reach: statistics.mean(abs(pull) < reach for pull in pulls) for reach in (1.0, 2.0)}
    assert inside[1.0] == pytest.approx(0.68, abs=0.1)
    assert inside[2.0] >= 0.90
    assert statistics.mean(abs(pull) < 2.0 for pull in with_standby) < 0.5


def test_the_sample_is_right_on_average_for_short_and_long_units_alike() -> None:
    """P6: whether a unit is in the sample does not go with its length, though on standby short ones end more often."""
    weights: defaultdict[bool, list[float]] = defaultdict(list)
    arrivals = [
        UnitArrival(at=0.05 * number, taken_at=0.05 * number, pipeline="p", group=GROUP, data_id=DataId.of(unit=number))
        for number in range(UNITS)
    ]
    draws = Random(3)
    services = {arrival.data_id: draws.choice([0.2, 1.8]) for arrival in arrivals}
    for seed in range(SEEDS):
        outcome = simulate(
            {"p": _pipeline()}, arrivals, service_s=lambda pipeline, stage, unit: services[unit], slots=2, seed=seed
        )
        for run in outcome.runs:
            inside = sample_number(run.data_id, seed) < run.q
            weights[services[run.data_id] > 1].append(1 / run.q if inside else 0.0)
    for found in weights.values():
        error = statistics.stdev(found) / math.sqrt(len(found))
        assert statistics.mean(found) == pytest.approx(1.0, abs=4 * error)
