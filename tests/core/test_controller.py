"""The admission controller: what it lets in in overload, and that the choice stays fit for statistics (P4, P5, P6)."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scheduling import stage

from p3s_prefect.core.controller import LEAST_Q
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.dispatcher import Dispatcher
from p3s_prefect.core.experiment import Floor, Order, Pipeline, WorkClass
from p3s_prefect.core.outcome import Outcome, PlayedRun
from p3s_prefect.core.overrides import Controls, Override, OverrideKind, Target
from p3s_prefect.core.records import StageFact, SubJobFact
from p3s_prefect.core.selection import sample_number
from p3s_prefect.core.states import StageState
from p3s_prefect.core.virtual_time import SlotChange, UnitArrival, simulate

DONE, SHED, EXPIRED, QUEUED = StageState.DONE, StageState.SHED, StageState.EXPIRED, StageState.QUEUED
WAITING = StageState.WAITING
GROUP = DataId.of(run=1)
SLOTS = 4


def _unit(number: int, at: float, pipeline: str = "p", part: int = 0) -> UnitArrival:
    return UnitArrival(at=at, taken_at=at, pipeline=pipeline, group=GROUP, data_id=DataId.of(part=part, unit=number))


def _steady(load: float, length_s: float, *, pipeline: str = "p", since: float = 0.0) -> list[UnitArrival]:
    """Poisson arrivals of units of one second each, at so many times what the slots can do."""
    chance, at, units = Random(f"{pipeline} {since}"), since, []
    while (at := at + chance.expovariate(load * SLOTS)) < since + length_s:
        number = len(units)
        units.append(_unit(number + round(1e6 * since), at, pipeline, part=number % 4))
    return units


def _service(chance: Random) -> object:
    return lambda pipeline, stage, unit: chance.gammavariate(11, 1 / 11)


def _pipeline(*names: str, deadline_s: float | None = 8.0, **values: object) -> Pipeline:
    stages = {
        name: stage(after=list(names[max(0, place - 1) : place]), deadline_s=deadline_s)
        for place, name in enumerate(names)
    }
    return Pipeline(stages=stages, **{"order": Order.EARLIEST_DEADLINE, "freshest_in_overload": False, **values})


def _prescaled(pipeline: Pipeline, name: str, prescale: float) -> Pipeline:
    changed = pipeline.stages[name].model_copy(update={"prescale": prescale})
    return pipeline.model_copy(update={"stages": pipeline.stages | {name: changed}})


def _play(pipelines: dict[str, Pipeline], arrivals: list[UnitArrival], **values: object) -> Outcome:
    return simulate(pipelines, arrivals, **{"service_s": _service(Random(5)), "slots": SLOTS, **values})


def _share(runs: list[PlayedRun], *states: StageState) -> float:
    return sum(run.state in states for run in runs) / len(runs)


# --- fit for statistics -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", [1.5, 4.0])
def test_who_is_left_out_is_told_by_the_number_and_the_stored_q_and_q_never_grows(load: float) -> None:
    """P4, P5: at every stage of a chain with a prescale, in overload with slots that go and come back; nested.

    Who is not below it is prescaled or shed, or runs where a slot is left.
    """
    found = _prescaled(_pipeline("a", "b", "c"), "b", 0.6)
    changes = [SlotChange(at=20.0, slots=1), SlotChange(at=40.0, slots=SLOTS)]
    outcome = _play({"p": found}, _steady(load / 3, 80.0), slot_changes=changes)
    by_unit: dict[DataId, dict[str, PlayedRun]] = {}
    for run in outcome.runs:
        by_unit.setdefault(run.data_id, {})[run.stage] = run
    for unit, runs in by_unit.items():
        u = sample_number(unit, 0)
        for run in runs.values():
            assert u >= run.q or run.state not in (SHED, StageState.PRESCALED)
            assert (run.state is StageState.PRESCALED) == (
                u >= found.stages[run.stage].prescale or (u >= 0.6 and run.stage == "c")
            )
            assert LEAST_Q <= run.q <= 1
        decided = [run.q for run in runs.values() if run.state is not StageState.PRESCALED]
        assert decided == sorted(decided, reverse=True)
        assert max(runs["b"].q, runs["c"].q) <= 0.6
    states = Counter(run.state for run in outcome.runs)
    assert min(states[DONE], states[SHED], states[StageState.PRESCALED]) > 50
    assert any("is not below q" in run.reason for run in outcome.runs if run.state is SHED)


def test_weights_give_back_what_arrived() -> None:
    """P6: the sum of 1/q over what was let in estimates the number of all units, within three standard deviations."""
    for load in (1.5, 5.0):
        units = _steady(load, 200.0)
        runs = [run for run in _play({"p": _pipeline("a")}, units).runs if sample_number(run.data_id, 0) < run.q]
        estimate = sum(1 / run.q for run in runs)
        error = math.sqrt(sum((1 - run.q) / run.q**2 for run in runs))
        assert abs(estimate - len(units)) <= 3 * error


# --- how much is let in -----------------------------------------------------------------------------------------------


def test_below_the_capacity_nothing_is_left_out() -> None:
    """P5: fluctuations of a load of 0.9 shed nothing, in any order."""
    for order in Order:
        outcome = _play({"p": _pipeline("a", deadline_s=20.0, order=order)}, _steady(0.9, 100.0))
        assert _share(outcome.runs, SHED) < 0.01
        assert _share(outcome.runs, DONE) > 0.98


@pytest.mark.parametrize("load", [1.3, 3.0, 10.0])
def test_in_overload_the_slots_stay_busy_and_hardly_anything_is_late(load: float) -> None:
    """P5, P8: from a cold start, when nothing is known of service times; ever the same share of what fits."""
    outcome = _play({"p": _pipeline("a")}, _steady(load, 100.0), until=100.0)
    assert outcome.account()["p", "a"][DONE] >= 0.95 * 100 * SLOTS
    assert _share(outcome.runs, EXPIRED) <= 0.02


def test_freshest_first_in_overload_keeps_nothing_waiting_for_long() -> None:
    """P5, V18 (freshest_in_overload): whatever the order is otherwise; as much is done, but fresh."""
    units = _steady(3.0, 150.0)
    latency = {}
    for fresh in (True, False):
        outcome = _play({"p": _pipeline("a", deadline_s=20.0, freshest_in_overload=fresh)}, units, until=150.0)
        done = [run for run in outcome.runs if run.state is DONE]
        assert len(done) >= 0.95 * 150 * SLOTS
        latency[fresh] = statistics.median(run.latency_s for run in done)
    assert latency[True] < 5.0 < 14.0 < latency[False]


@pytest.mark.parametrize("pipelines", [("p",), ("p", "q")])
@pytest.mark.parametrize("since", [200.0, 240.0, 300.0])
def test_freshest_first_begins_without_a_hole(since: float, pipelines: tuple[str, ...]) -> None:
    """P5, P6: a burst after an idle time, of which the overload is told late. What has queued by then and what comes
    while it is served are thinned alike: of no time slice hardly anything is done, and hardly anything is late. Two
    pipelines beside each other give up together what one would.
    """
    load = 1.9 * 4 / len(pipelines)
    units = [unit for name in pipelines for at in (0.0, since) for unit in _steady(load, 80.0, since=at, pipeline=name)]
    found = _pipeline("a", deadline_s=16.0, freshest_in_overload=True)
    outcome = _play(dict.fromkeys(pipelines, found), sorted(units, key=lambda unit: unit.at), slots=16)
    slices: dict[int, list[bool]] = {}
    for run in outcome.runs:
        slices.setdefault(int(run.taken_at // 4), []).append(run.in_time)
    assert min(statistics.mean(found) for found in slices.values()) > 0.1
    assert _share(outcome.runs, EXPIRED) <= 0.01


def test_without_a_deadline_or_where_it_is_declared_nothing_is_shed() -> None:
    """P5, P14: it queues, and expires at its deadline."""
    units = _steady(3.0, 30.0)
    assert {run.state for run in _play({"p": _pipeline("a", deadline_s=None)}, units).runs} == {DONE}
    kept = _play({"p": _pipeline("a", work_class="kept")}, units, classes={"kept": WorkClass(shed=False)})
    assert {run.state for run in kept.runs} == {DONE, EXPIRED}


def test_what_comes_at_once_and_fits_is_let_in_at_once() -> None:
    """P5: visits of as many units as there are slots; between them nothing comes."""
    units = [_unit(100 * visit + n, at=10.0 * visit, part=n) for visit in range(20) for n in range(2 * SLOTS)]
    assert {run.state for run in _play({"p": _pipeline("a")}, units).runs} == {DONE}


def test_a_flood_of_offers_is_thinned_along_the_way() -> None:
    """P5: what is offered counts before it is in the ledger, until it is withdrawn."""
    dispatcher = Dispatcher({"p": _pipeline("a")})
    dispatcher.set_slots(SLOTS)
    dispatcher.add(_fact(1), 0.0)
    (start,) = dispatcher.decide(0.0).starts
    dispatcher.settle(start.stage_run_id, DONE, now=1.0, service_s=1.0)
    ids = [DataId.of(unit=number) for number in range(5_000)]

    def flood() -> list[float]:
        return [
            dispatcher.offer("p", one, u=sample_number(one, 0), first_q=1.0, taken_at=1.0, now=1.0).stages[0].q
            for one in ids
        ]

    first = flood()
    assert first[0] == 1.0
    assert first[-1] < 0.05
    assert sum(q == 1.0 for q in first) <= 9 * SLOTS
    for one in ids:
        dispatcher.withdraw("p", one)
    assert dispatcher.offer("p", ids[0], u=0.5, first_q=1.0, taken_at=60.0, now=60.0).stages[0].q == 1.0


def test_when_slots_go_what_was_let_in_is_thinned_again() -> None:
    """P5, P12: at random, and at once, in place of letting half of the queue expire."""
    changes = [SlotChange(at=50.0, slots=1), SlotChange(at=100.0, slots=SLOTS)]
    outcome = _play({"p": _pipeline("a")}, _steady(1.5, 150.0), slot_changes=changes, until=150.0)
    assert _share(outcome.runs, EXPIRED) <= 0.02
    assert outcome.account()["p", "a"][DONE] >= 0.93 * (100 * SLOTS + 50)


# --- tiers and floors -------------------------------------------------------------------------------------------------


def test_the_higher_class_sees_its_own_work_only() -> None:
    """P5: with ten times too much of the lower class beside it, all of it is done in time."""
    pipelines = {"p": _pipeline("a", work_class="dqm"), "alert": _pipeline("a", work_class="alert")}
    classes = {"alert": WorkClass(priority=1)}
    units = _steady(10.0, 60.0) + _steady(0.5, 60.0, pipeline="alert")
    runs = _play(pipelines, units, classes=classes).runs
    assert _share([run for run in runs if run.pipeline == "alert"], DONE) == 1.0
    assert sum(run.state is DONE for run in runs if run.pipeline == "p") >= 0.4 * 60 * SLOTS


def test_what_is_worth_least_for_its_time_is_thinned_first() -> None:
    """P5, V18 (value): of the same priority."""
    pipelines = {name: _pipeline("a", work_class=name) for name in ("gold", "lead")}
    classes = {"gold": WorkClass(value=5.0), "lead": WorkClass(value=1.0)}
    units = _steady(0.7, 100.0, pipeline="gold") + _steady(0.7, 100.0, pipeline="lead")
    runs = _play(pipelines, units, classes=classes).runs
    assert _share([run for run in runs if run.pipeline == "gold"], DONE) >= 0.95
    assert 0.3 <= _share([run for run in runs if run.pipeline == "lead"], DONE) <= 0.65


@pytest.mark.parametrize("load", [1.2, 3.0, 10.0])
@pytest.mark.parametrize("shape", [11, 100])
@pytest.mark.parametrize("slots", [4, 16])
def test_floors_are_kept(load: float, shape: float, slots: int) -> None:
    """P5: a part's share is done in time although a higher class alone would fill more than all slots.

    Where services hardly differ, what is owed is late at once if it starts a little too late.
    """
    pipelines = {
        name: _pipeline("a", work_class=name, deadline_s=16.0 if slots == 16 else 8.0) for name in ("p", "alert")
    }
    floors = [Floor(when={"part": 2}, share=0.3), Floor(share=0.02)]
    classes = {"alert": WorkClass(priority=1), "p": WorkClass(floors=floors)}
    times, chance = slots / SLOTS, Random(5)
    units = _steady(times * load, 60.0, pipeline="alert") + _steady(times * 2.0, 60.0)
    services = {"service_s": lambda pipeline, stage, unit: chance.gammavariate(shape, 1 / shape), "slots": slots}
    runs = [run for run in _play(pipelines, units, classes=classes, **services).runs if run.pipeline == "p"]
    of_part = [run for run in runs if run.data_id["part"] == 2]
    owed = [run for run in of_part if sample_number(run.data_id, 0) < 0.3]
    assert min(run.q for run in of_part) >= 0.3
    assert min(run.q for run in runs) >= 0.02
    assert statistics.mean(run.in_time for run in owed) >= 0.96


@pytest.mark.parametrize(("slots", "deadline_s"), [(4, 60.0), (16, 20.0)])
def test_a_floor_for_all_of_a_visit_is_kept_to_the_last_unit(slots: int, deadline_s: float) -> None:
    """P5, P11: 120 units at once below a class that wants one and a half times the slots; nothing waits at a pilot."""
    pipelines = {
        "p": _pipeline("a", work_class="dqm", deadline_s=deadline_s),
        "alert": _pipeline("a", deadline_s=None),
    }
    classes = {"default": WorkClass(priority=1), "dqm": WorkClass(floors=[Floor(share=1.0)])}
    visit = [_unit(number, at=0.0) for number in range(120)]
    units = sorted(visit + _steady(1.5 * slots / SLOTS, 90.0, pipeline="alert"), key=lambda unit: unit.at)
    runs = _play(pipelines, units, classes=classes, service_s=lambda *_: 1.0, slots=slots).runs
    assert all(run.in_time for run in runs if run.pipeline == "p")


def test_a_floor_is_kept_where_all_of_it_comes_at_once() -> None:
    """P5: visits of many units, which press long before the last moment of each, after a time in which none was owed.

    A higher class without deadlines wants more than all slots.
    """
    visits = [_unit(100 * visit + n, at=70.0 * visit, part=visit) for visit in range(3) for n in range(30)]
    pipelines = {"p": _pipeline("a", work_class="dqm", deadline_s=60.0), "alert": _pipeline("a", deadline_s=None)}
    classes = {"default": WorkClass(priority=1), "dqm": WorkClass(floors=[Floor(share=1.0)])}
    units = sorted(visits + _steady(1.5 / 6, 210.0, pipeline="alert"), key=lambda unit: unit.at)
    outcome = _play(pipelines, units, classes=classes, service_s=lambda pipeline, stage, unit: 6.0)
    for visit in range(3):
        in_time = [run.in_time for run in outcome.runs if run.pipeline == "p" and run.data_id["part"] == visit]
        assert statistics.mean(in_time) > 0.9


class _Owed:
    """A class of which every unit is owed a slot, below one of which none is and that wants all slots."""

    def __init__(self, deadline_s: float, **pipelines: Pipeline) -> None:
        of_class = {name: one.model_copy(update={"work_class": "dqm"}) for name, one in pipelines.items()}
        self.pipelines = of_class | {"alert": _pipeline("a", deadline_s=deadline_s)}
        self.classes = {"default": WorkClass(priority=1), "dqm": WorkClass(floors=[Floor(share=1.0)])}
        self.dispatcher = Dispatcher(self.pipelines, self.classes)
        self.dispatcher.set_slots(SLOTS)
        self.taken: dict[int, tuple[str, str]] = {}

    def take(self, pipeline: str, number: int, stage: str = "a", taken_at: float = 0.0) -> None:
        """So many units are queued with this stage; those before it are done."""
        names = list(self.pipelines[pipeline].stages)
        for _ in range(number):
            unit = 1 + len(self.taken)
            states = [DONE if name < stage else QUEUED if name == stage else WAITING for name in names]
            stages = tuple(
                StageFact(id=10 * unit + place, stage=name, state=state)
                for place, (name, state) in enumerate(zip(names, states, strict=True))
            )
            self.taken[unit] = pipeline, stage
            self.dispatcher.add(replace(_fact(unit), pipeline=pipeline, stages=stages, taken_at=taken_at), taken_at)

    def start(self, now: float) -> list[str]:
        """What starts, as pipeline/stage."""
        self.started = [start.stage_run_id for start in self.dispatcher.decide(now).starts]
        return ["/".join(self.taken[number // 10]) for number in self.started]

    def waits_until_it_presses(self) -> None:
        """What takes a second, with a deadline of 60 s, begins in the end and not before."""
        assert set(self.start(0.0)) == {"alert/a"}
        assert self.dispatcher.owed_until(30.0) == {}
        assert set(self.dispatcher.owed_until(59.0)) == {"dqm/a"}

    def learn(self, pipeline: str, service_s: float, stage: str = "a") -> None:
        """A unit of the pipeline comes, and has taken so long; the controller looks at it."""
        for _ in range(4):
            self.take(pipeline, 1, stage)
            number = self.start(0.0).index(f"{pipeline}/{stage}")
            self.dispatcher.settle(self.started[number], DONE, now=0.0, service_s=service_s)


@pytest.mark.parametrize("failed", [False, True])
def test_of_a_stage_that_nobody_knows_one_starts_before_a_higher_class(failed: bool) -> None:
    """P5: it tells how long they take; the others have time. One that failed tells nothing."""
    owed = _Owed(600.0, dqm=_pipeline("a", deadline_s=600.0))
    owed.take("alert", 20)
    owed.take("dqm", 20)
    assert owed.start(0.0) == ["dqm/a", *(owed.dispatcher.capacity - 1) * ["alert/a"]]
    assert owed.dispatcher.owed_until(1.0) == {}
    owed.take("dqm", 5, taken_at=1.0)
    first = owed.started[0]
    owed.dispatcher.settle(first, StageState.FAILED if failed else DONE, now=1.0, service_s=0.1)
    assert owed.start(1.0) == ["dqm/a" if failed else "alert/a"]


def test_one_of_a_stage_that_nobody_knows_starts_before_what_presses() -> None:
    """P5: though another stage took an hour, which says nothing about it; what is known is reckoned without it."""
    pipelines = {name: _pipeline("a", deadline_s=600.0) for name in ("new", "known")}
    owed = _Owed(1e5, **pipelines, long=_pipeline("a", deadline_s=1e5))
    owed.learn("long", 3600.0)
    owed.learn("known", 1.0)
    owed.take("alert", 20)
    owed.take("known", 20)
    owed.take("new", 20)
    assert owed.start(0.0) == ["new/a", *(owed.dispatcher.capacity - 1) * ["alert/a"]]
    owed.dispatcher.settle(owed.started[0], StageState.FAILED, now=599.0, service_s=599.0)
    assert owed.start(599.0) == ["new/a"]


def test_one_of_each_stage_that_nobody_knows_starts() -> None:
    """P5: of a later stage too, though first stages have earlier deadlines."""
    owed = _Owed(600.0, dqm=_pipeline("a", "b", deadline_s=60.0))
    owed.take("alert", 20)
    owed.take("dqm", 5, taken_at=-10.0)
    owed.take("dqm", 5, "b")
    assert Counter(owed.start(0.0)) == {"dqm/a": 1, "dqm/b": 1, "alert/a": owed.dispatcher.capacity - 2}
    assert owed.dispatcher.owed_until(1.0) == {}


@pytest.mark.parametrize("limit", [0, 1])
@pytest.mark.parametrize("of_class", [False, True])
def test_what_is_owed_at_a_limit_neither_stops_nor_presses_others(limit: int, of_class: bool) -> None:
    """P5, P14: limits by command, earlier deadlines, and much more work than the slots could do."""
    owed = _Owed(600.0, dqm=_pipeline("a", deadline_s=60.0), full=_pipeline("a", deadline_s=50.0))
    owed.learn("dqm", 1.0)
    owed.learn("full", 1.0)
    owed.take("alert", 20)
    owed.take("dqm", 20)
    owed.take("full", 2_000)
    limits = [_set_limit(limit, pipeline="full"), _set_limit(3, work_class="dqm")]
    owed.dispatcher.control(Controls(limits[: 2 if of_class else 1]), 0.0)
    started = Counter(owed.start(0.0))
    assert (started["dqm/a"], started["full/a"]) == (0, limit)
    assert owed.dispatcher.owed_until(1.0) == {}
    assert set(owed.dispatcher.owed_until(58.0)) == {"dqm/a"}


def test_a_stage_that_takes_an_hour_elsewhere_makes_nothing_press() -> None:
    """P5: a slot becomes free as soon as one of what runs has ended."""
    owed = _Owed(600.0, dqm=_pipeline("a", deadline_s=60.0), long=_pipeline("a", deadline_s=1e5))
    owed.learn("long", 3600.0)
    owed.learn("dqm", 1.0)
    owed.learn("alert", 1.0)
    owed.take("alert", 20)
    owed.take("dqm", 5)
    owed.waits_until_it_presses()


@pytest.mark.parametrize("later_s", [600.0, 70.0])
def test_what_is_open_presses_by_the_deadline_with_which_it_began(later_s: float) -> None:
    """P5, S9: a reload has made that of its first stage a hundred times as long."""

    def dqm(deadline_s: float) -> Pipeline:
        stages = {"a": stage(deadline_s=deadline_s), "b": stage(after=["a"], deadline_s=later_s)}
        return Pipeline(stages=stages, order=Order.EARLIEST_DEADLINE, freshest_in_overload=False, work_class="dqm")

    owed = _Owed(6000.0, dqm=dqm(60.0))
    owed.learn("dqm", 1.0)
    owed.take("alert", 20)
    owed.take("dqm", 5)
    owed.dispatcher.define(owed.pipelines | {"dqm": dqm(6000.0)}, owed.classes)
    owed.waits_until_it_presses()


def test_what_becomes_owed_is_seen_while_nobody_looks() -> None:
    """P5: one that is late already, and many that press long before the last moment of each."""
    owed = _Owed(6000.0, dqm=_pipeline("a", deadline_s=1000.0))
    owed.learn("dqm", 1.0)
    owed.take("alert", 20)
    owed.take("dqm", 1)
    assert set(owed.start(0.0)) == {"alert/a"}
    owed.take("dqm", 1, taken_at=-998.0)
    owed.dispatcher.settle(owed.started[0], DONE, now=1.0, service_s=1.0)
    assert owed.start(1.0) == ["dqm/a"]
    owed.dispatcher.settle(owed.started[0], DONE, now=2.0, service_s=1.0)
    assert owed.start(2.0) == ["alert/a"]
    owed.take("dqm", 5_000, taken_at=2.0)
    owed.dispatcher.settle(owed.started[0], DONE, now=3.0, service_s=1.0)
    assert owed.start(3.0) == ["dqm/a"]


def _set_limit(value: int, **target: object) -> Override:
    kind = OverrideKind.LIMIT
    return Override(id=1, kind=kind, target=Target(**target), value=value, by="me", why="", set_at=0.0)


@pytest.mark.parametrize(("before", "after"), [(["pre", "a", "b"], ["a", "b"]), (["a", "b"], ["pre", "a", "b"])])
def test_stages_that_come_or_go_with_a_reload_are_told_from_others(before: list[str], after: list[str]) -> None:
    """P5, S9: what is open goes on as it began, and is counted by its name."""
    old, classes = _pipeline(*before), {"default": WorkClass(floors=[Floor(share=0.3)])}
    dispatcher = Dispatcher({"p": old}, classes)
    dispatcher.set_slots(SLOTS)
    stages = tuple(StageFact(id=n, stage=name, state=QUEUED if not n else WAITING) for n, name in enumerate(before))
    dispatcher.add(replace(_fact(1), u=0.2, stages=stages), 0.0)
    dispatcher.define({"p": _pipeline(*after)}, classes)
    for number, name in enumerate(before):
        assert [start.stage_run_id for start in dispatcher.decide(float(number)).starts] == [number], name
        dispatcher.settle(number, DONE, now=number + 0.5, service_s=0.5)
    assert dispatcher.open == 0
    asked = {one.stage: one.arrival_rate > 0 for one in dispatcher.thinning()}
    assert asked["b"]
    assert not asked.get("pre", False)


def test_a_floor_is_never_above_the_prescale() -> None:
    """P4, P5: q is the smallest of all that was applied."""
    found = _prescaled(_pipeline("a", work_class="c"), "a", 0.2)
    dispatcher = Dispatcher({"p": found}, {"c": WorkClass(floors=[Floor(share=0.5)])})
    dispatcher.set_slots(SLOTS)
    admission = dispatcher.offer("p", DataId.of(unit=1), u=0.3, first_q=1.0, taken_at=0.0, now=0.0)
    assert [(one.state, one.q) for one in admission.stages] == [(StageState.PRESCALED, 0.2)]


def test_what_the_prescale_of_a_stream_leaves_out_asks_for_nothing() -> None:
    """P4, P5: of seven times the capacity a tenth is let through, which fits."""
    units = [replace(unit, first_q=0.1) for unit in _steady(7.0, 100.0)]
    outcome = _play({"p": _pipeline("a")}, units, sample_every_s=1.0)
    assert {run.q for run in outcome.runs} == {0.1}
    rates = [sample.thinning[0].arrival_rate for sample in outcome.samples]
    assert statistics.mean(rates) == pytest.approx(len(units) / 100, rel=0.3)


def test_what_the_prescale_of_a_higher_class_leaves_out_takes_nothing_from_the_lower_one() -> None:
    """P4, P5: of three times the capacity a tenth is let through, which leaves room for a load of a half."""
    above = _prescaled(_pipeline("a", work_class="alert"), "a", 0.1)
    units = _steady(3.0, 60.0, pipeline="alert") + _steady(0.5, 60.0)
    runs = _play({"p": _pipeline("a"), "alert": above}, units, classes={"alert": WorkClass(priority=1)}).runs
    assert statistics.mean(run.q for run in runs if run.pipeline == "p") > 0.95


# --- steps ------------------------------------------------------------------------------------------------------------


def test_a_step_of_the_load_is_followed_without_oscillation_where_the_freshest_go_first() -> None:
    """P5: the default: q is a third after a few seconds, moves little, and is back at 1 after it."""
    units = _steady(0.5, 60.0) + _steady(3.0, 120.0, since=60.0) + _steady(0.5, 60.0, since=180.0)
    found = Pipeline(stages={"a": stage(deadline_s=20.0)})
    samples = _play({"p": found}, units, sample_every_s=1.0).samples
    qs = [sample.thinning[0].q for sample in samples if 80 <= sample.at < 180]
    assert statistics.mean(qs) == pytest.approx(1 / 3, rel=0.2)
    # With a horizon of a tenth, by which it would swing, it is 0.56.
    assert statistics.stdev(qs) < 0.35 * statistics.mean(qs)
    assert all(sample.thinning[0].q == 1.0 for sample in samples if sample.at < 60 or 210 < sample.at < 240)


def test_a_step_of_the_load_is_followed_without_oscillation() -> None:
    """P5: 0.5 -> 3 -> 0.5: the predicted wait rises to its target, stays in a band, and q is back at 1 after it."""
    units = _steady(0.5, 60.0) + _steady(3.0, 120.0, since=60.0) + _steady(0.5, 60.0, since=180.0)
    outcome = _play({"p": _pipeline("a", deadline_s=20.0)}, units, sample_every_s=1.0)
    during = [sample.thinning[0] for sample in outcome.samples if 100 <= sample.at < 180]
    waits = [one.wait_s for one in during]
    assert max(waits) - min(waits) < 0.35 * statistics.mean(waits)
    assert max(one.wait_s for one in (s.thinning[0] for s in outcome.samples)) < 20.0
    assert statistics.mean(one.q for one in during) == pytest.approx(1 / 3, rel=0.2)
    assert all(sample.thinning[0].q == 1.0 for sample in outcome.samples if sample.at < 60)
    assert all(sample.thinning[0].q == 1.0 for sample in outcome.samples if 200 < sample.at < 240)


# --- restart, bad input -----------------------------------------------------------------------------------------------


def _fact(number: int, *, q: float = 1.0, u: float = 0.0) -> SubJobFact:
    return SubJobFact(
        id=number,
        pass_id=1,
        pipeline="p",
        data_id=DataId.of(unit=number),
        group=GROUP,
        per="unit",
        taken_at=0.0,
        u=u,
        stages=(StageFact(id=number, stage="a", state=QUEUED, q=q),),
    )


def test_what_was_let_in_before_a_restart_is_not_decided_again() -> None:
    """P6, P7: its q is that of the ledger; a later thinning makes it smaller; who is left out stands by."""
    dispatcher = Dispatcher({"p": _pipeline("a")})
    dispatcher.set_slots(SLOTS)
    for number in range(1, 2_001):
        assert dispatcher.add(_fact(number, q=0.5, u=number / 4_000), 0.0) == []
    decided = dispatcher.decide(0.0)
    assert decided.transitions == ()
    dispatcher.settle(decided.starts[0].stage_run_id, DONE, now=1.0, service_s=1.0)
    changes = dispatcher.decide(1.0).transitions
    qs = {change.q for change in changes}
    assert len(qs) == 1
    (q,) = qs
    assert q is not None
    assert q < 0.05
    assert all(change.new is change.old is QUEUED for change in changes)
    for change in changes:
        assert change.reason.startswith("in overload: u = ") is (change.stage_run_id / 4_000 >= q)
    dispatcher.set_slots(0)
    shed = {change.stage_run_id for change in dispatcher.decide(7.5).transitions if change.new is SHED}
    assert shed == {change.stage_run_id for change in changes if change.stage_run_id / 4_000 >= q}


def test_what_a_floor_owes_is_counted_once_whatever_is_commanded() -> None:
    """P10, S9: else it would go before everything ever earlier, and a command take ever longer."""
    classes = {"default": WorkClass(floors=[Floor(share=0.5)])}
    dispatcher = Dispatcher({"p": _pipeline("a")}, classes)
    for number in range(1, 101):
        dispatcher.add(_fact(number, q=1.0, u=number / 100), 0.0)
    pause = Override(id=1, kind=OverrideKind.PAUSE, target=Target(work_class="else"), by="me", why="", set_at=0.0)
    for controls in 5 * [Controls([pause]), Controls()]:
        dispatcher.control(controls, 0.0)
        assert len(dispatcher._queues._owed) == 49


def test_a_floor_for_all_costs_nothing_where_as_much_is_let_in_anyway() -> None:
    """P5: what is owed a slot takes nobody's turn before it has to, else those before it would be late."""
    units = _steady(1.9 * 4, 150.0)
    in_time = {}
    for floors in ([], [Floor(share=0.3)]):
        outcome = _play(
            {"p": _pipeline("a", deadline_s=16.0)}, units, classes={"default": WorkClass(floors=floors)}, slots=16
        )
        in_time[bool(floors)] = sum(run.in_time for run in outcome.runs)
    assert in_time[True] >= 0.99 * in_time[False]


def test_thinned_again_as_many_stay_as_are_wanted_whatever_floors_keep() -> None:
    """P5, P6: of fifty with numbers spread evenly, as many with floors as without."""
    stay = {}
    for share in (0.0, 0.2, 0.5):
        floors = [Floor(share=share)] if share else []
        dispatcher = Dispatcher({"p": _pipeline("a")}, {"default": WorkClass(floors=floors)})
        dispatcher.set_slots(SLOTS)
        for number in range(1, 51):
            dispatcher.add(_fact(number, q=1.0, u=(number - 0.5) / 50), 0.0)
        begun = {start.stage_run_id for start in dispatcher.decide(0.0).starts}
        dispatcher.settle(min(begun), DONE, now=1.0, service_s=1.0)
        (q,) = {change.q for change in dispatcher.decide(1.0).transitions if change.q is not None}
        assert q >= share
        stay[share] = q
    assert stay[0.5] == pytest.approx(stay[0.0], abs=0.02)
    assert stay[0.2] == pytest.approx(stay[0.0], abs=0.02)


def _thinned_again(qs: list[float]) -> list[tuple[float, float]]:
    """(q before, q after) of what stays queued, when after the first service it is clear that it is too much."""
    dispatcher = Dispatcher({"p": _pipeline("a")})
    dispatcher.set_slots(SLOTS)
    for number, q in enumerate(qs, start=1):
        dispatcher.add(_fact(number, q=q, u=0.9 * q), 0.0)
    begun = {start.stage_run_id for start in dispatcher.decide(0.0).starts}
    dispatcher.settle(min(begun), DONE, now=1.0, service_s=1.0)
    after = {change.stage_run_id: change.q for change in dispatcher.decide(1.0).transitions}
    return [(q, after.get(number) or q) for number, q in enumerate(qs, start=1) if number not in begun]


@given(st.lists(st.sampled_from([0.05, 0.2, 0.5, 1.0]), min_size=20, max_size=100))
@settings(max_examples=50, deadline=None)
def test_thinned_again_none_has_a_larger_q_than_the_others_need(qs: list[float]) -> None:
    """P5, P6: who was let in freely is thinned first; as many stay as if all had had the same q."""
    found = _thinned_again(qs)
    most = max(after for _, after in found)
    assert all(after == pytest.approx(min(before, most)) for before, after in found)
    stay, alike = (sum(after / before for before, after in one) for one in (found, _thinned_again([1.0] * len(qs))))
    assert stay == pytest.approx(alike, rel=1e-6)


_TIMES = st.sampled_from([-1e9, -5.0, 0.0, 1e-9, 1.0, 7.0, 1e4, 1e12])
_LATEST = 2e12


@given(st.lists(st.tuples(_TIMES, _TIMES, _TIMES, st.integers(0, 3)), min_size=1, max_size=60), st.booleans())
@settings(max_examples=100)
def test_clocks_that_step_and_services_of_any_length(
    events: list[tuple[float, float, float, int]], fresh: bool
) -> None:
    """S8, P7: whatever the times, q stays a probability, nothing is raised, and every unit ends once."""
    found = _pipeline("a", "b", freshest_in_overload=fresh)
    dispatcher = Dispatcher({"p": found}, {"default": WorkClass(floors=[Floor(share=0.01)])})
    open_runs: set[int] = set()
    running: list[int] = []
    for number, (now, taken_at, service_s, slots) in enumerate(events, start=1):
        dispatcher.set_slots(slots)
        unit = DataId.of(unit=number)
        admission = dispatcher.offer("p", unit, u=(number * 0.618) % 1, first_q=1.0, taken_at=taken_at, now=now)
        assert all(LEAST_Q <= one.q <= 1 for one in admission.stages)
        stages = tuple(
            StageFact(id=2 * number + one.position, stage=one.stage, state=one.state, q=one.q)
            for one in admission.stages
        )
        fact = SubJobFact(
            id=number, pass_id=1, pipeline="p", data_id=unit, group=GROUP, per="unit", taken_at=taken_at,
            u=admission.u, stages=stages,
        )  # fmt: skip
        open_runs |= {one.id for one in stages if not one.state.is_terminal}
        told = dispatcher.add(fact, now)
        decided = dispatcher.decide(now)
        running += [start.stage_run_id for start in decided.starts]
        for change in [*told, *decided.transitions]:
            if change.new.is_terminal:
                open_runs.remove(change.stage_run_id)
        if running:
            ended = running.pop(0)
            open_runs.remove(ended)
            for change in dispatcher.settle(ended, DONE, now=now, service_s=service_s):
                if change.new.is_terminal:
                    open_runs.remove(change.stage_run_id)
        assert all(math.isfinite(one.q) and LEAST_Q <= one.q <= 1 for one in dispatcher.thinning())
    # A sub-job is held until all of it is settled.
    assert len(open_runs) <= dispatcher.open
    # In the end, each settles once: to remove one again would raise.
    dispatcher.set_slots(len(events))
    while running:
        ended = running.pop()
        open_runs.remove(ended)
        told = dispatcher.settle(ended, DONE, now=_LATEST, service_s=1.0)
        decided = dispatcher.decide(_LATEST)
        running += [start.stage_run_id for start in decided.starts]
        for change in [*told, *decided.transitions]:
            if change.new.is_terminal:
                open_runs.remove(change.stage_run_id)
    decided = dispatcher.decide(_LATEST)
    assert decided.starts == ()
    assert open_runs == {one.stage_run_id for one in decided.transitions if one.new.is_terminal}


def test_a_unit_whose_deadline_has_passed_is_expired_and_not_shed() -> None:
    """P6, P8: what is decided by its time and not by chance is not counted as chance."""
    dispatcher = Dispatcher({"p": _pipeline("a")})
    dispatcher.set_slots(SLOTS)
    for number in range(2, 400):
        dispatcher.add(_fact(number), 0.0)
    admission = dispatcher.offer("p", DataId.of(unit=1), u=0.9, first_q=1.0, taken_at=-100.0, now=0.0)
    assert [one.state for one in admission.stages] == [QUEUED]
    dispatcher.add(replace(_fact(1), taken_at=-100.0), 0.0)
    expired = [one for one in dispatcher.decide(0.0).transitions if one.new is EXPIRED]
    assert [one.stage_run_id for one in expired] == [_fact(1).stages[0].id]


def test_stages_one_after_the_other_are_decided_together_where_the_later_is_worth_as_much() -> None:
    """P5: units that are begun are ended, whatever the load."""
    outcome = _play({"p": _pipeline("a", "b", deadline_s=16.0)}, _steady(1.5, 100.0))
    account = outcome.account()
    assert account["p", "b"][DONE] >= 0.93 * account["p", "a"][DONE]


def test_a_later_stage_that_is_worth_less_is_thinned_first() -> None:
    """P5, V18 (value): any stage of processing: first looks are all taken, deep ones as there is time for."""
    stages = {
        "look": stage(deadline_s=12.0, value=5.0),
        "deep": stage(after=["look"], deadline_s=12.0),
        "last": stage(after=["deep"], deadline_s=12.0),
    }
    found = Pipeline(stages=stages, order=Order.EARLIEST_DEADLINE, freshest_in_overload=False)
    account = _play({"p": found}, _steady(0.6, 100.0)).account()
    looks, deep, last = (account["p", name] for name in stages)
    assert looks[DONE] >= 0.97 * looks.total()
    assert 0.15 * deep.total() <= deep[SHED] <= last[SHED]
    assert last[DONE] >= 0.9 * deep[DONE]
