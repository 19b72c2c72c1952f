"""The dispatcher: random DAGs and random orders of events (P9, P7), and each rule of its own."""

from __future__ import annotations

import gc
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scheduling import PlayedLedger, chain, pipelines, stage

from p3s_prefect.core import dag
from p3s_prefect.core.dispatcher import Backlog, Dispatcher
from p3s_prefect.core.experiment import Floor, Order, Pipeline, WorkClass
from p3s_prefect.core.open_work import Run
from p3s_prefect.core.overrides import Controls, Override, OverrideKind, Target
from p3s_prefect.core.records import SubJobFact
from p3s_prefect.core.retry import retried
from p3s_prefect.core.states import StageState

DONE, FAILED, EXPIRED, QUEUED = StageState.DONE, StageState.FAILED, StageState.EXPIRED, StageState.QUEUED
BLOCKED, PRESCALED, RUNNING = StageState.BLOCKED, StageState.PRESCALED, StageState.RUNNING
SHED = StageState.SHED


class Night:
    """A dispatcher, its ledger and a clock, driven by hand or by chance."""

    def __init__(self, pipelines: dict[str, Pipeline], slots: int = 2, classes: Mapping[str, WorkClass] = {}) -> None:
        self.classes = classes
        self.ledger = PlayedLedger(pipelines)
        self.pipelines = pipelines
        self.now = 0.0
        self.slots = slots
        self._new_dispatcher()

    def _new_dispatcher(self) -> None:
        self.dispatcher = Dispatcher(self.pipelines, self.classes)
        self.dispatcher.set_slots(self.slots)

    def take(self, pipeline: str = "p", *, pass_id: int = 1, taken_at: float = 0.0, u: float = 0.0) -> int:
        fact = self.ledger.take(pipeline, pass_id=pass_id, taken_at=taken_at, u=u)
        self.ledger.apply(self.dispatcher.add(fact, self.now))
        return fact.id

    def close(self, pipeline: str = "p", *, pass_id: int = 1, earlier: tuple[int, ...] = ()) -> int | None:
        fact = self.ledger.close(pipeline, pass_id=pass_id, now=self.now, earlier=earlier)
        if fact is None:
            return None
        self.ledger.apply(self.dispatcher.add(fact, self.now))
        return fact.id

    def decide(self) -> list[int]:
        decisions = self.dispatcher.decide(self.now)
        self.ledger.write(decisions)
        return [start.stage_run_id for start in decisions.starts]

    def settle(
        self, stage_run_id: int, state: StageState, *, not_before: float = 0.0, service_s: float | None = None
    ) -> None:
        self.ledger.move(stage_run_id, self.ledger.states[stage_run_id], state)
        changes = self.dispatcher.settle(stage_run_id, state, now=self.now, not_before=not_before, service_s=service_s)
        self.ledger.apply(changes)

    def restart(self) -> None:
        self._new_dispatcher()
        for fact in self.ledger.restart():
            self.ledger.apply(self.dispatcher.add(fact, self.now))

    def run(self, sub_job_id: int, name: str) -> int:
        return next(run.id for run in self.ledger.facts[sub_job_id].stages if run.stage == name)

    def state(self, sub_job_id: int, name: str) -> StageState:
        return self.ledger.by_stage(sub_job_id)[name]

    def subject(self, stage_run_id: int) -> tuple[int, str]:
        return self.ledger.sub_job_of[stage_run_id], self.ledger.stage_of[stage_run_id]

    def finish(self, fate: dict[tuple[int, str], StageState] | None = None) -> None:
        """Plays on until nothing is open; what runs ends as `fate` says, or well."""
        for _ in range(1000):
            self.decide()
            running = self.ledger.running()
            for number in running:
                self.settle(number, (fate or {}).get(self.subject(number), DONE))
            if not self.dispatcher.open:
                return
            if not running:
                assert math.isfinite(self.dispatcher.wake_at())
                self.now = self.dispatcher.wake_at()
        raise AssertionError(f"still open: {self.ledger.account()}")


def _is_forgotten(dispatcher: Dispatcher) -> bool:
    return dispatcher.open == dispatcher.in_flight == 0 and not dispatcher._opened.passes


def _assert_blocked_exactly(night: Night) -> None:
    for fact in night.ledger.facts.values():
        own = night.ledger.by_stage(fact.id)
        for name, state in own.items():
            before = [own[parent] for parent in dag.ancestors(night.pipelines[fact.pipeline], name) if parent in own]
            if state not in (PRESCALED, SHED):
                assert (state is BLOCKED) == any(other is not DONE for other in before)


def _one_event(night: Night, chance: Random) -> None:
    """Something that happens to what is with the pilots, to the pilots, or to the clock."""
    night.now += chance.choice([0.0, 0.5, 3.0])
    running = night.ledger.running()
    if not running:
        night.slots = chance.randint(0, 3)
        night.dispatcher.set_slots(night.slots)
        return
    number = chance.choice(running)
    state = chance.choice([DONE, DONE, DONE, FAILED, EXPIRED, QUEUED])
    later = chance.choice([0.0, night.now + 1.0]) if state is QUEUED else 0.0
    night.settle(number, state, not_before=later, service_s=chance.choice([None, 0.1]) if state is DONE else None)


def _play(night: Night, chance: Random, *, units: int) -> None:
    """Units of two passes arrive, run, fail, are lost, expire; groups close with their units still open."""
    arriving = [(name, pass_id) for name in night.pipelines for pass_id in (1, 2) for _ in range(units)]
    chance.shuffle(arriving)
    closing = sorted(set(arriving))
    numbered = {key: number for number, key in enumerate(closing, start=1)}
    while arriving or closing:
        if arriving and chance.random() < 0.5:
            name, pass_id = arriving.pop()
            night.take(name, pass_id=numbered[name, pass_id], taken_at=night.now, u=chance.random())
            continue
        for key in [key for key in closing if key not in arriving]:
            closing.remove(key)
            night.close(key[0], pass_id=numbered[key])
        if chance.random() < 0.8:
            night.decide()
        _one_event(night, chance)


@given(st.lists(pipelines(), min_size=1, max_size=2), st.randoms(use_true_random=False), st.booleans())
@settings(max_examples=150)
def test_every_order_of_events_on_every_dag(found: list[Pipeline], chance: Random, has_deadlines: bool) -> None:
    """P9, P7: parents before children, failures block exactly the descendants, every path ends, nothing is kept.

    `PlayedLedger` asserts at every start that parents are done and units settled, and at every move that it is
    legal and made once.
    """
    if has_deadlines:
        found = [
            one.model_copy(
                update={"stages": {n: s.model_copy(update={"deadline_s": 4.0}) for n, s in one.stages.items()}}
            )
            for one in found
        ]
    night = Night({f"p{index}": one for index, one in enumerate(found)})
    _play(night, chance, units=3)
    night.slots = 2
    night.dispatcher.set_slots(2)
    night.finish()
    assert all(state.is_terminal for state in night.ledger.states.values())
    _assert_blocked_exactly(night)
    assert _is_forgotten(night.dispatcher)


@given(pipelines(), st.randoms(use_true_random=False), st.integers(0, 30))
@settings(max_examples=100)
def test_a_new_dispatcher_goes_on_where_the_old_one_was(found: Pipeline, chance: Random, moment: int) -> None:
    """P9, P7: fed with the facts as they stand, with running ones back in the queue, it reaches the same account."""
    accounts = []
    us = [chance.random() for _ in range(4)]
    fates = chance.choices([DONE, DONE, FAILED, EXPIRED], k=400)
    for stops in (False, True):
        night = Night({"p": found})
        sub_jobs = [night.take(u=u) for u in us]
        sub_jobs += [group] if (group := night.close()) else []
        fate = {(s, n): fates[(s * 17 + i) % 400] for s in sub_jobs for i, n in enumerate(found.stages)}
        for step in range(moment):
            night.decide()
            if stops and step == moment // 2:
                night.restart()
            elif running := night.ledger.running():
                night.settle(running[-1 if step % 2 else 0], fate[night.subject(running[-1 if step % 2 else 0])])
        if stops:
            night.restart()
        night.finish(fate)
        accounts.append(night.ledger.account())
    assert accounts[0] == accounts[1]


def test_a_join_waits_for_all_its_parents() -> None:
    """P9."""
    after = {"a": [], "b": ["a"], "c": ["a"], "join": ["b", "c"]}
    night = Night({"p": Pipeline(stages={name: stage(after=names) for name, names in after.items()})})
    unit = night.take()
    for name in ("a", "b"):
        night.decide()
        night.settle(night.run(unit, name), DONE)
    night.decide()
    assert night.state(unit, "join") is StageState.WAITING
    night.settle(night.run(unit, "c"), DONE)
    assert night.state(unit, "join") is QUEUED


def test_a_failed_parent_blocks_its_descendants_and_no_others() -> None:
    """P9: the other branch runs to its end, and what is blocked says why."""
    after = {"a": [], "bad": ["a"], "after-bad": ["bad"], "last": ["after-bad"], "good": ["a"]}
    night = Night({"p": Pipeline(stages={name: stage(after=names) for name, names in after.items()})})
    unit = night.take()
    night.decide()
    night.settle(night.run(unit, "a"), DONE)
    night.decide()
    night.ledger.move(night.run(unit, "bad"), RUNNING, FAILED)
    changes = night.dispatcher.settle(night.run(unit, "bad"), FAILED, now=night.now)
    night.ledger.apply(changes)
    assert [(night.subject(change.stage_run_id)[1], change.reason) for change in changes] == [
        ("after-bad", "bad is failed"),
        ("last", "bad is failed"),
    ]
    night.finish()
    assert night.state(unit, "good") is DONE


def _gathering() -> Pipeline:
    stages = {
        "slow": stage(),
        "quick": stage(),
        "both": stage(after=["slow", "quick"]),
        "total": stage(after=["both"], per="group"),
    }
    return Pipeline(stages=stages)


def test_a_group_stage_waits_for_every_unit_even_where_the_stage_before_it_is_blocked() -> None:
    """P9, P22: what is gathered does not depend on which of two branches ends first."""
    night = Night({"p": _gathering()}, slots=4)
    units = [night.take(), night.take()]
    group = night.close()
    assert group is not None
    night.decide()
    for name in ("slow", "quick"):
        night.settle(night.run(units[0], name), DONE)
    night.decide()
    night.settle(night.run(units[0], "both"), DONE)
    night.settle(night.run(units[1], "quick"), FAILED)
    assert night.state(units[1], "both") is BLOCKED
    assert night.state(group, "total") is StageState.WAITING
    night.settle(night.run(units[1], "slow"), DONE)
    assert night.state(group, "total") is QUEUED


def test_a_group_stage_waits_for_its_own_pass_only() -> None:
    """P22."""
    night = Night({"p": _gathering()})
    night.take(pass_id=1)
    other = night.close(pass_id=2)
    assert other is not None
    assert night.state(other, "total") is QUEUED


def test_totals_of_a_late_unit_wait_for_what_is_open_in_the_earlier_pass() -> None:
    """P22: pass 1 gathers the units of pass 0 too, so its totals must wait for them."""
    night = Night({"p": _gathering()}, slots=4)
    early, late = night.take(pass_id=1), night.take(pass_id=2)
    group = night.close(pass_id=2, earlier=(1,))
    assert group is not None
    night.decide()
    for name in ("quick", "slow"):
        night.settle(night.run(late, name), DONE)
    night.decide()
    night.settle(night.run(late, "both"), DONE)
    assert night.state(group, "total") is StageState.WAITING
    night.finish()
    assert night.state(early, "both") is night.state(group, "total") is DONE
    assert _is_forgotten(night.dispatcher)


def test_a_unit_that_is_tried_again_out_of_failed_is_waited_for_again() -> None:
    """P9: `retry` is the only way out of failed, and the account of its pass is open again."""
    pipeline = Pipeline(stages={"a": stage(), "b": stage(), "total": stage(after=["a"], per="group")})
    night = Night({"p": pipeline})
    unit = night.take()
    night.decide()
    night.settle(night.run(unit, "a"), FAILED)
    night.settle(night.run(unit, "a"), QUEUED)
    group = night.close()
    assert group is not None
    assert night.state(group, "total") is StageState.WAITING
    night.finish()
    assert night.state(unit, "a") is night.state(group, "total") is DONE
    assert _is_forgotten(night.dispatcher)


def test_a_sub_job_that_is_prescaled_altogether_is_not_held() -> None:
    """P4, P7."""
    night = Night({"p": Pipeline(stages={"a": stage(prescale=0.5)})})
    night.take(u=0.7)
    assert _is_forgotten(night.dispatcher)


# --- deadlines ------------------------------------------------------------------------------------------------------


def _urgent(**values: object) -> dict[str, Pipeline]:
    return {"p": Pipeline(stages={"a": stage(deadline_s=10.0), "b": stage(after=["a"])}, **values)}


def test_a_unit_is_expired_at_its_deadline_though_no_slot_is_free() -> None:
    """P8: and deciding again at the same moment, or before it, changes nothing."""
    night = Night(_urgent(), slots=0)
    unit = night.take(taken_at=100.0)
    night.now = math.nextafter(110.0, 0.0)
    assert night.decide() == []
    assert night.state(unit, "a") is QUEUED
    assert night.dispatcher.wake_at() == 110.0
    night.now = 110.0
    night.decide()
    assert (night.state(unit, "a"), night.state(unit, "b")) == (EXPIRED, BLOCKED)
    assert night.dispatcher.wake_at() > night.now


def test_a_stage_that_cannot_end_in_time_takes_no_slot() -> None:
    """P8: even the fastest so far would end after the deadline."""
    night = Night(_urgent(), slots=1)
    first = night.take(taken_at=0.0)
    night.decide()
    night.settle(night.run(first, "a"), DONE, service_s=4.0)
    night.now = 6.0
    just_in_time, too_late = night.take(taken_at=0.0), night.take(taken_at=-0.001)
    night.finish()
    assert night.state(just_in_time, "a") is DONE
    assert night.state(too_late, "a") is EXPIRED


def test_nothing_wakes_for_what_is_settled() -> None:
    """P8: neither its deadline nor its retry."""
    night = Night(_urgent(), slots=1)
    unit = night.take()
    night.decide()
    night.settle(night.run(unit, "a"), QUEUED, not_before=5.0)
    assert night.dispatcher.wake_at() == 5.0
    night.settle(night.run(unit, "a"), StageState.CANCELLED)
    assert night.dispatcher.wake_at() == math.inf


def test_a_stage_that_was_queued_twice_expires_once() -> None:
    """P7, P8: a lost pilot put it back in the queue; the ledger would refuse a second move."""
    night = Night(_urgent(), slots=1)
    unit = night.take()
    for _ in range(3):
        night.decide()
        night.settle(night.run(unit, "a"), QUEUED)
    night.dispatcher.set_slots(0)
    night.now = 11.0
    decisions = night.dispatcher.decide(night.now)
    assert [change.new for change in decisions.transitions] == [EXPIRED, BLOCKED]


def test_a_late_stage_is_expired_though_its_pipeline_is_at_its_limit() -> None:
    """P8, P14."""
    night = Night(_urgent(limit=1), slots=4)
    night.take()
    night.take()
    assert len(night.decide()) == 1
    night.now = 10.0
    night.decide()
    assert sorted(night.ledger.states.values()) == sorted([RUNNING, StageState.WAITING, EXPIRED, BLOCKED])


def test_what_expires_lets_its_group_go_on_in_the_same_decision() -> None:
    """P8, P9: nothing is left for the same moment."""
    stages = {"a": stage(deadline_s=10.0), "total": stage(after=["a"], per="group")}
    night = Night({"p": Pipeline(stages=stages)})
    night.dispatcher.set_slots(1)
    night.take()
    night.take(taken_at=5.0)
    night.close()
    night.decide()
    night.settle(night.ledger.running()[0], DONE)
    night.now = 20.0
    assert [night.subject(number)[1] for number in night.decide()] == ["total"]


@given(pipelines(prescales=False), st.randoms(use_true_random=False))
@settings(max_examples=100)
def test_deciding_before_wake_at_gives_nothing_new(found: Pipeline, chance: Random) -> None:
    """P8: so a station may sleep until then, and does not spin."""
    urgent = {n: s.model_copy(update={"deadline_s": chance.choice([None, 2.0, 5.0])}) for n, s in found.stages.items()}
    night = Night({"p": found.model_copy(update={"stages": urgent})})
    for _ in range(4):
        night.take(taken_at=night.now)
    night.close()
    for _ in range(20):
        night.decide()
        wakes_at = night.dispatcher.wake_at()
        assert wakes_at > night.now
        earlier = night.now + chance.choice([0.0, 0.3, 0.999]) * (min(wakes_at, night.now + 10) - night.now)
        if earlier < wakes_at:
            early = night.dispatcher.decide(earlier)
            assert (early.starts, early.transitions) == ((), ())
        if running := night.ledger.running():
            retried = chance.random() < 0.4
            later = night.now + chance.choice([0.0, 1.0]) if retried else 0.0
            night.settle(running[0], QUEUED if retried else DONE, not_before=later)
        elif math.isfinite(wakes_at):
            night.now = wakes_at


# --- retry ----------------------------------------------------------------------------------------------------------


def test_a_retry_is_not_started_before_its_time() -> None:
    """P12."""
    night = Night({"p": chain("a")})
    unit = night.take()
    night.decide()
    night.settle(night.run(unit, "a"), QUEUED, not_before=8.0)
    night.now = math.nextafter(8.0, 0.0)
    assert night.decide() == []
    assert night.dispatcher.wake_at() == 8.0
    night.now = 8.0
    assert night.decide() == [night.run(unit, "a")]


def test_holding_and_releasing_does_not_shorten_a_wait() -> None:
    """P12, P14: what stood in the queue before it was held starts from the new entry only."""
    night = Night({"p": chain("a")}, slots=0)
    unit = night.take()
    night.settle(night.run(unit, "a"), StageState.HELD)
    night.settle(night.run(unit, "a"), QUEUED, not_before=5.0)
    night.settle(night.run(unit, "a"), StageState.HELD)
    night.settle(night.run(unit, "a"), QUEUED, not_before=8.0)
    night.dispatcher.set_slots(1)
    night.now = 7.0
    assert night.decide() == []
    night.now = 8.0
    assert night.decide() == [night.run(unit, "a")]


def test_held_is_not_started_and_blocks_nobody() -> None:
    """P14."""
    night = Night({"p": chain("a")}, slots=1)
    held, other = night.take(taken_at=2.0), night.take(taken_at=1.0)
    night.settle(night.run(held, "a"), StageState.HELD)
    assert night.decide() == [night.run(other, "a")]
    night.settle(night.run(held, "a"), QUEUED)
    night.finish()
    assert night.state(held, "a") is DONE


# --- order and limits -----------------------------------------------------------------------------------------------


def _start_order(night: Night) -> list[int]:
    """Sub-jobs in the order in which their stages start, one at a time."""
    night.dispatcher.set_slots(1)
    order = []
    while night.dispatcher.open:
        (number,) = night.decide()
        order.append(night.subject(number)[0])
        night.settle(number, DONE)
    return order


@pytest.mark.parametrize(
    ("order", "sign"), [(Order.FRESHEST_FIRST, -1), (Order.OLDEST_FIRST, 1), (Order.FIRST_COME, 0)]
)
@given(taken_at=st.lists(st.floats(0, 1e9), min_size=1, max_size=12))
@settings(max_examples=40)
def test_order_within_a_pipeline(order: Order, sign: int, taken_at: list[float]) -> None:
    """P11, B4: by the time of taking or as they come; of two of the same time, the first come."""
    night = Night({"p": chain("a", order=order)})
    units = {night.take(taken_at=at): at for at in taken_at}
    assert _start_order(night) == sorted(units, key=lambda unit: (sign * units[unit], unit))


def test_the_earliest_deadline_goes_first_whatever_stage_has_it() -> None:
    """P11, B4: by the absolute deadline; what has none goes last, as it came."""
    stages = {"short": stage(deadline_s=5.0), "long": stage(deadline_s=50.0), "none": stage()}
    night = Night({"p": Pipeline(stages=stages, order=Order.EARLIEST_DEADLINE)})
    new, old = night.take(taken_at=2.0), night.take(taken_at=0.0)
    night.dispatcher.set_slots(1)
    order = []
    while night.dispatcher.open:
        (number,) = night.decide()
        order.append(night.subject(number))
        night.settle(number, DONE)
    assert order == [(old, "short"), (new, "short"), (old, "long"), (new, "long"), (new, "none"), (old, "none")]


def test_a_class_has_a_limit_of_its_own_and_shares_it() -> None:
    """P14: two pipelines of a class with room for three; another class is not held up, and nothing is lost."""
    pipelines = {name: chain("a", work_class="dqm") for name in ("one", "two")} | {"other": chain("a")}
    night = Night(pipelines, slots=8, classes={"dqm": WorkClass(limit=3)})
    for name in pipelines:
        for _ in range(4):
            night.take(name, pass_id=len(name))
    started = Counter(night.ledger.facts[night.subject(number)[0]].pipeline for number in night.decide())
    assert started["other"] == 4
    assert started["one"] + started["two"] == 3
    night.finish()
    assert set(night.ledger.states.values()) == {DONE}


def test_priority_goes_before_order() -> None:
    """P11: also where a stage's own priority differs from its pipeline's."""
    raised = Pipeline(stages={"a": stage(priority=7)}, priority=-5)
    night = Night({"low": chain("a", priority=-1), "high": chain("a", priority=3), "raised": raised})
    low, high = night.take("low", taken_at=99.0), night.take("high", taken_at=1.0)
    raised_unit = night.take("raised", taken_at=0.0)
    assert _start_order(night) == [raised_unit, high, low]


def test_later_stages_of_started_units_go_before_first_stages_of_new_ones() -> None:
    """P11: of the same priority; a fresher unit waits for the one that was begun, after a restart too."""
    for restarts in (False, True):
        night = Night({"p": chain("a", "b", "c")})
        night.dispatcher.set_slots(1)
        begun = night.take(taken_at=1.0)
        night.settle(night.decide()[0], DONE)
        fresh = night.take(taken_at=50.0, pass_id=2)
        if restarts:
            night.restart()
        assert _start_order(night) == [begun, begun, fresh, fresh, fresh]


def test_no_order_starves_another_pipeline_of_the_same_priority() -> None:
    """P11: times cannot be compared between freshest first and oldest first; slots are shared."""
    night = Night({"fresh": chain("a"), "old": chain("a", order=Order.OLDEST_FIRST)}, slots=4)
    for at in range(20):
        night.take("fresh", taken_at=1e9 + at)
        night.take("old", taken_at=1e9 + at, pass_id=2)
    started = [night.ledger.facts[night.subject(number)[0]].pipeline for number in night.decide()]
    assert sorted(started) == ["fresh"] * 2 + ["old"] * 2


def test_ten_thousand_queued_and_few_in_flight() -> None:
    """P11: as many as there are slots; a top-priority arrival is the next to start."""
    night = Night({"p": chain("a"), "alert": chain("a", priority=9)}, slots=3)
    for at in range(10_000):
        night.take(taken_at=float(at))
    started = night.decide()
    assert len(started) == night.dispatcher.in_flight == 3
    assert night.decide() == []
    assert night.dispatcher.backlog() == Backlog(queued=9_997, oldest_taken_at=0.0)
    alert = night.take("alert", taken_at=-1.0, pass_id=2)
    assert night.decide() == []
    night.settle(started[0], DONE)
    assert night.decide() == [night.run(alert, "a")]
    night.dispatcher.set_slots(1)
    night.settle(started[1], DONE)
    assert night.decide() == []
    assert night.dispatcher.in_flight == 2


@pytest.mark.parametrize(("service_s", "most"), [(0.4, 5), (0.6, 3)])
def test_only_what_is_short_is_handed_out_in_advance(service_s: float, most: int) -> None:
    """P11: never above ceil(1.5 x slots), and only where a slot would be idle for long against what it does."""
    night = Night({"p": chain("a")}, slots=3)
    for _ in range(20):
        night.take()
    for number in night.decide():
        # How long they take is known from the first that is done.
        assert night.dispatcher.in_flight <= most
        night.settle(number, DONE, service_s=service_s)
        night.decide()
    for number in night.ledger.running():
        night.settle(number, DONE, service_s=service_s)
        night.decide()
        assert night.dispatcher.in_flight <= most
    assert night.dispatcher.in_flight == most


@pytest.mark.parametrize(("busy", "most"), [(0, 0), (1, 1), (2, 1), (3, 2), (8, 4)])
def test_in_advance_goes_what_is_short_behind_what_is_short(busy: int, most: int) -> None:
    """P11: one for each two slots of eight that are busy with short ones, and never a long one."""
    night = Night({"short": chain("a", priority=9), "long": chain("a")}, slots=8)
    for pipeline, service_s in (("short", 0.1), ("long", 60.0)):
        night.take(pipeline)
        night.settle(night.decide()[0], DONE, service_s=service_s)
    for _ in range(busy):
        night.take("short", pass_id=2)
    for _ in range(8 - busy):
        night.take("long", pass_id=3)
    assert len(night.decide()) == 8
    night.take("long", pass_id=3)
    assert night.decide() == []
    night.now += 1.0
    for _ in range(9):
        night.take("short", pass_id=2)
    assert len(night.decide()) == most


def test_a_limit_queues_and_does_not_discard() -> None:
    """P14: 3 run, 7 wait, all finish; another pipeline is not held up."""
    night = Night({"p": chain("a", limit=3), "other": chain("a", priority=-1)}, slots=8)
    units = [night.take() for _ in range(10)]
    other = night.take("other", pass_id=2)
    started = night.decide()
    assert sum(night.subject(number)[0] in units for number in started) == 3
    assert night.run(other, "a") in started
    assert night.ledger.count(QUEUED) == 7
    most = 3
    while night.dispatcher.open:
        night.settle(night.ledger.running()[0], DONE)
        night.decide()
        running = [number for number in night.ledger.running() if night.subject(number)[0] in units]
        most = max(most, len(running))
    assert most == 3
    assert all(night.state(unit, "a") is DONE for unit in units)


# --- overrides ------------------------------------------------------------------------------------------------------


def _set(kind: OverrideKind, value: int | None = None, **target: object) -> Controls:
    one = Override(id=1, kind=kind, target=Target(**target), value=value, by="somebody", why="because", set_at=0.0)
    return Controls([one])


def _control(night: Night, controls: Controls) -> None:
    night.ledger.apply(night.dispatcher.control(controls, night.now))


def test_a_changed_priority_sorts_what_waits_and_touches_nothing_that_runs() -> None:
    """P10: of 10,000 that wait, and back again."""
    night = Night({"p": chain("a", order=Order.FIRST_COME), "q": chain("a", order=Order.FIRST_COME)}, slots=2)
    first = [night.take("p") for _ in range(5_000)]
    last = [night.take("q", pass_id=2) for _ in range(5_000)]
    running = night.decide()
    _control(night, _set(OverrideKind.PRIORITY, 5, pipeline="q"))
    assert sorted(night.ledger.running()) == sorted(running)
    waiting = [unit for unit in last if night.state(unit, "a") is QUEUED]
    night.settle(running[0], DONE)
    night.settle(running[1], DONE)
    assert night.decide() == [night.run(unit, "a") for unit in waiting[:2]]
    _control(night, Controls())
    night.settle(night.ledger.running()[0], DONE)
    (number,) = night.decide()
    assert night.subject(number)[0] in first


def test_one_units_priority_can_be_raised() -> None:
    """P10."""
    night = Night({"p": chain("a")}, slots=0)
    units = [night.take(taken_at=float(at)) for at in range(5)]
    _control(night, _set(OverrideKind.PRIORITY, 9, unit=night.ledger.facts[units[1]].data_id))
    assert _start_order(night) == [units[1], units[4], units[3], units[2], units[0]]


def test_pause_lets_nothing_start_and_deadlines_count_on() -> None:
    """P14."""
    night = Night(_urgent())
    unit = night.take(taken_at=0.0)
    _control(night, _set(OverrideKind.PAUSE, pipeline="p"))
    assert night.decide() == []
    assert night.state(unit, "a") is QUEUED
    late = night.take(taken_at=5.0)
    night.now = 10.0
    assert night.decide() == []
    assert night.state(unit, "a") is EXPIRED
    _control(night, Controls())
    assert night.decide() == [night.run(late, "a")]


def test_drain_ends_what_has_begun_and_begins_nothing() -> None:
    """P14."""
    night = Night({"p": chain("a", "b")})
    night.dispatcher.set_slots(1)
    begun, new = night.take(taken_at=1.0), night.take(taken_at=0.0)
    night.decide()
    _control(night, _set(OverrideKind.DRAIN, pipeline="p"))
    night.settle(night.run(begun, "a"), DONE)
    assert night.decide() == [night.run(begun, "b")]
    night.settle(night.run(begun, "b"), DONE)
    assert night.decide() == []
    assert night.state(new, "a") is QUEUED


def test_hold_puts_aside_and_release_puts_back() -> None:
    """P14: what waits for its parents too; what comes while it is held is held too; nothing that runs is touched."""
    night = Night({"p": chain("a", "b")})
    night.dispatcher.set_slots(1)
    running, waiting = night.take(taken_at=1.0), night.take(taken_at=0.0)
    night.decide()
    _control(night, _set(OverrideKind.HOLD, pipeline="p"))
    later = night.take(taken_at=2.0)
    held = StageState.HELD
    assert [night.state(unit, "a") for unit in (running, waiting, later)] == [RUNNING, held, held]
    assert {night.state(unit, "b") for unit in (running, waiting, later)} == {held}
    night.settle(night.run(running, "a"), DONE)
    assert night.decide() == []
    night.restart()
    _control(night, Controls())
    assert night.state(running, "b") is QUEUED
    assert night.state(waiting, "b") is StageState.WAITING
    night.finish()
    assert set(night.ledger.states.values()) == {DONE}


def test_a_limit_by_command_takes_the_place_of_the_declared_one() -> None:
    """P14: 0 lets none run."""
    night = Night({"p": chain("a", limit=3)}, slots=8)
    for _ in range(10):
        night.take()
    _control(night, _set(OverrideKind.LIMIT, 0, pipeline="p"))
    assert night.decide() == []
    _control(night, _set(OverrideKind.LIMIT, 5, pipeline="p"))
    assert len(night.decide()) == 5
    _control(night, Controls())
    assert night.decide() == []
    assert len(night.ledger.running()) == 5


def test_a_new_definition_is_for_what_comes_from_now_on() -> None:
    """S9: what is open goes on as it began; limits are those of today."""
    night = Night({"p": chain("a", "b")}, slots=4)
    old = night.take()
    night.pipelines["p"] = chain("a", "b", "c", limit=1)
    night.dispatcher.define(night.pipelines, {})
    new = night.take()
    assert len(night.decide()) == 1
    night.finish()
    assert night.ledger.by_stage(old) == {"a": DONE, "b": DONE}
    assert night.ledger.by_stage(new) == {"a": DONE, "b": DONE, "c": DONE}


# --- memory ---------------------------------------------------------------------------------------------------------


def _entries(dispatcher: Dispatcher) -> int:
    lines = dispatcher._queues.lines.values()
    heaps = [
        dispatcher._queues._later,
        dispatcher._queues._owed,
        dispatcher._queues._standby,
        *(line.deadlines for line in lines),
        *(heap for line in lines for heap in line._heaps.values()),
    ]
    return sum(len(heap) for heap in heaps) + len(dispatcher._opened.by_id) + len(dispatcher._opened.passes)


def test_what_is_finished_is_forgotten() -> None:
    """P7: after 10,000 sub-jobs with deadlines in hours and retries in hours, what is held does not show it."""
    night = Night({"p": Pipeline(stages={"a": stage(deadline_s=86_400.0), "b": stage(after=["a"])})})
    for number in range(10_000):
        night.now = number * 0.1
        unit = night.take(taken_at=night.now, pass_id=number)
        night.decide()
        if number % 3 == 0:
            night.settle(night.run(unit, "a"), QUEUED, not_before=night.now + 7200.0)
            night.settle(night.run(unit, "a"), StageState.CANCELLED)
            continue
        night.settle(night.run(unit, "a"), DONE)
        night.decide()
        night.settle(night.run(unit, "b"), DONE)
    assert _is_forgotten(night.dispatcher)
    assert _entries(night.dispatcher) < 1000


def test_what_is_finished_needs_no_garbage_collector() -> None:
    """P7: a full collection looks at all that is open; until it comes, nothing that has ended may lie about."""
    night = Night({"p": Pipeline(stages={"a": stage(deadline_s=3600.0), "b": stage(after=["a"])})})
    gc.collect()
    gc.disable()
    try:
        for _ in range(200):
            night.take()
            night.finish()
        assert _runs_alive() < 20
    finally:
        gc.enable()


def test_what_a_command_puts_aside_keeps_nothing_else_alive() -> None:
    """P7: the queue that it stood in is sorted anew, and the old one is nobody's."""
    night = Night({"p": chain("a")}, slots=0)
    units = [night.take() for _ in range(200)]
    _control(night, _set(OverrideKind.HOLD, unit=night.ledger.facts[units[0]].data_id))
    queued = [night.run(unit, "a") for unit in units[1:]]
    night.ledger.apply(night.dispatcher.cancel(queued, "for the test", night.now))
    night.dispatcher.set_slots(2)
    assert night.decide() == []
    gc.collect()
    assert _runs_alive() < 20


def _fact(night: Night, unit: int) -> SubJobFact:
    """As it stands in the ledger now."""
    fact = night.ledger.facts[unit]
    return replace(fact, stages=tuple(replace(run, state=night.ledger.states[run.id]) for run in fact.stages))


def _runs_alive() -> int:
    return sum(isinstance(one, Run) for one in gc.get_objects())


@pytest.mark.parametrize("order", Order)
def test_what_failed_is_taken_again_while_its_old_entry_lies_in_the_queue(order: Order) -> None:
    """B3: with the same place in the order, and the same id, as before."""
    night = Night({"p": chain("a", "b", order=order)}, slots=2)
    first, second = night.take(), night.take()
    assert len(night.decide()) == 2
    # What has begun goes first, so that nobody looks at those that have not.
    night.dispatcher.set_slots(1)
    night.settle(night.run(first, "a"), DONE)
    night.settle(night.run(second, "a"), FAILED)
    assert night.decide() == [night.run(first, "b")]
    night.ledger.apply(retried(night.pipelines["p"], _fact(night, second), "again"))
    night.dispatcher.add(_fact(night, second), night.now)
    night.dispatcher.set_slots(2)
    assert night.decide() == [night.run(second, "a")]


def test_what_expired_under_fresher_ones_is_forgotten() -> None:
    """P7: in an overload that never ends, freshest first never gets down to what expired."""
    night = Night({"p": Pipeline(stages={"a": stage(deadline_s=5.0)})}, slots=1)
    running: list[int] = []
    for number in range(10_000):
        night.now = number * 0.1
        night.take(taken_at=night.now, pass_id=number)
        running += night.decide()
        if number % 5 == 0:
            night.settle(running.pop(0), DONE)
    assert night.dispatcher.open < 60
    assert _entries(night.dispatcher) < 1000


def test_what_was_owed_a_slot_and_had_it_is_forgotten() -> None:
    """P7: though older ones, with earlier deadlines, still wait behind what is fresh."""
    pipeline = Pipeline(stages={"a": stage(deadline_s=86_400.0)}, order=Order.FRESHEST_FIRST)
    night = Night({"p": pipeline}, slots=1, classes={"default": WorkClass(floors=[Floor(share=0.5)])})
    for _ in range(night.dispatcher.capacity + 4):
        night.take()
    (first,) = night.decide()
    for number in range(2_000):
        night.now = number * 1.0
        night.settle(first, DONE, service_s=1.0)
        night.take(taken_at=night.now, pass_id=number)
        (first,) = night.decide()
    assert 4 <= len(night.dispatcher._queues._owed) < 100


def test_what_waits_for_the_store_takes_no_slot_and_is_open() -> None:
    """P13: as many go on as there are slots; how long it took counts once, and how long it waits does not."""
    night = Night({"p": chain("a", "b")}, slots=2)
    for _ in range(6):
        night.take()
    seen: list[int] = []
    while started := night.decide():
        seen += started
        for number in started:
            night.dispatcher.returned(number)
            night.dispatcher.waits(number, 3.0)
        night.now += 3.0
    assert len(seen) == 6
    assert night.dispatcher.in_flight == 0
    night.now += 3600.0
    for number in seen:
        night.settle(number, DONE)
    assert len(night.decide()) == night.dispatcher.capacity
    (first, *_) = night.dispatcher.thinning()
    assert first.service_s == pytest.approx(3.0)
