"""The simulator, and the promises that show in whole nights: production rules, virtual time."""

from __future__ import annotations

from collections import Counter
from zlib import crc32

from hypothesis import given, settings
from hypothesis import strategies as st
from scheduling import chain, pipelines, stage

from p3s_prefect.core.at_pilots import IN_ADVANCE_PER_SLOT
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.experiment import Order, Pipeline, WorkClass
from p3s_prefect.core.incidents import ControlChange, Faults, GroupClosing, PartFault, SlotChange, UnitArrival
from p3s_prefect.core.outcome import Outcome
from p3s_prefect.core.overrides import Controls, Override, OverrideKind, Target
from p3s_prefect.core.records import Failure
from p3s_prefect.core.retry import MOST_LOSSES
from p3s_prefect.core.states import StageState
from p3s_prefect.core.virtual_time import simulate

RUN = DataId.of(run=1)


def _unit(number: int, *, at: float, pipeline: str = "p", run: int = 1, taken_at: float | None = None) -> UnitArrival:
    data_id = DataId.of(run=run, subrun=number)
    taken = at if taken_at is None else taken_at
    return UnitArrival(at=at, taken_at=taken, pipeline=pipeline, group=DataId.of(run=run), data_id=data_id)


def _one_second(pipeline: str, name: str, data_id: DataId) -> float:
    return 1.0


def _quarter_second(pipeline: str, name: str, data_id: DataId) -> float:
    return 0.25


def _uneven(pipeline: str, name: str, data_id: DataId) -> float:
    return 0.2 + (crc32(f"{name} {data_id}".encode()) % 7) * 0.3


def _most_at_once(spans: list[tuple[float, float]]) -> int:
    # An end at the same moment frees its slot before the next one begins.
    edges = sorted([(end, -1) for _, end in spans] + [(begin, 1) for begin, _ in spans])
    now = most = 0
    for _, change in edges:
        now += change
        most = max(most, now)
    return most


def _in_flight(outcome: Outcome) -> list[tuple[float, float]]:
    began = {e.stage_run_id: e.at for e in outcome.events if e.state is StageState.RUNNING}
    ended = {e.stage_run_id: e.at for e in outcome.events if e.old is StageState.RUNNING}
    return [(began[number], ended[number]) for number in began]


@given(
    st.lists(pipelines(), min_size=1, max_size=2),
    st.integers(0, 4),
    st.integers(1, 3),
    st.integers(0, 1000),
    st.sampled_from([None, 1.5, 6.0]),
)
@settings(max_examples=80)
def test_every_night_ends_with_a_full_account(
    found: list[Pipeline], units: int, slots: int, seed: int, deadline_s: float | None
) -> None:
    """P7, P9: whatever the DAG, the load and the faults, each stage run ends in one terminal state, once."""
    by_name = {
        f"p{index}": one.model_copy(
            update={"stages": {n: s.model_copy(update={"deadline_s": deadline_s}) for n, s in one.stages.items()}}
        )
        for index, one in enumerate(found)
    }
    arrivals = [_unit(i, at=0.4 * i, pipeline=name, run=i % 2) for name in by_name for i in range(units)]
    closings = [GroupClosing(at=1.0, group=DataId.of(run=run)) for run in (0, 1)]
    faults = Faults(loss=0.15, failure=0.15, seed=seed)
    outcome = simulate(by_name, arrivals, closings=closings, service_s=_uneven, slots=slots, faults=faults, seed=seed)
    account = outcome.account()
    assert all(state.is_terminal for states in account.values() for state in states)
    for name, one in by_name.items():
        for stage_name, declared in one.stages.items():
            seen = sum(account.get((name, stage_name), Counter()).values())
            assert seen == units if declared.per == "unit" else seen <= 2
    ended = Counter(event.stage_run_id for event in outcome.events if event.state.is_terminal)
    assert set(ended.values()) <= {1}
    assert _most_at_once([(s.began_at, s.ended_at) for s in outcome.services]) <= slots


def test_the_same_night_twice() -> None:
    """P21: nothing but its arguments decides about a simulated night."""
    load = [_unit(number, at=0.1 * number) for number in range(200)]
    faults = Faults(loss=0.1, failure=0.1, seed=5)
    first, second = (
        simulate({"p": chain("a", "b")}, load, service_s=_uneven, slots=3, faults=faults) for _ in range(2)
    )
    assert first == second
    assert simulate({"p": chain("a", "b")}, load, service_s=_uneven, slots=3) != first


def test_in_flight_stays_just_in_time_and_a_top_priority_arrival_starts_next() -> None:
    """P11: 10,000 queued, 4 slots: at most 6 in flight; the alert overtakes what the pilots have not begun."""
    night = {"p": chain("a"), "alert": chain("a", priority=9)}
    load = [_unit(number, at=0.0) for number in range(10_000)] + [_unit(1, at=3.125, pipeline="alert", run=2)]
    outcome = simulate(night, load, service_s=_quarter_second, slots=4)
    assert _most_at_once(_in_flight(outcome)) == (1 + IN_ADVANCE_PER_SLOT) * 4
    assert _most_at_once([(s.began_at, s.ended_at) for s in outcome.services]) == 4
    (alert,) = {event.stage_run_id for event in outcome.events if event.pipeline == "alert"}
    (service,) = [service for service in outcome.services if service.stage_run_id == alert]
    assert (service.began_at, service.ended_at) == (3.25, 3.5)
    assert outcome.ended_at == 625.25


def test_a_limit_of_three_with_ten() -> None:
    """P14: 3 run, 7 wait, all finish."""
    outcome = simulate(
        {"p": chain("a", limit=3)}, [_unit(n, at=0.0) for n in range(10)], service_s=_one_second, slots=8
    )
    assert _most_at_once(_in_flight(outcome)) == 3
    assert outcome.account() == {("p", "a"): Counter({StageState.DONE: 10})}
    assert outcome.ended_at == 4.0


def test_in_overload_freshest_first_serves_what_is_still_fresh() -> None:
    """P8: at three times the capacity, what is served is fresh, and the rest is left out before it takes a slot."""
    load = [_unit(number, at=number / 3) for number in range(600)]
    late = {}
    for order in Order:
        one = Pipeline(stages={"a": stage(deadline_s=20.0)}, order=order, freshest_in_overload=False)
        outcome = simulate({"p": one}, load, service_s=_one_second, slots=1)
        states = outcome.account()["p", "a"]
        assert sum(states[state] for state in (StageState.DONE, StageState.SHED, StageState.EXPIRED)) == 600
        assert 195 <= states[StageState.DONE] <= 221
        assert len(list(outcome.services)) == states[StageState.DONE]
        done = outcome.times("a", StageState.DONE)
        waited = sorted(done[arrival.data_id] - arrival.taken_at for arrival in load if arrival.data_id in done)
        late[order] = waited[len(waited) // 2]
    assert late[Order.FRESHEST_FIRST] < 4.0 < 15.0 < late[Order.OLDEST_FIRST]


def test_a_unit_that_kills_its_pilots_fails_for_good() -> None:
    """P12: the third loss counts as its own failure; its descendants are blocked, and the slot is free again."""
    faults = Faults(loss=1.0)
    outcome = simulate({"p": chain("a", "b")}, [_unit(1, at=0.0)], service_s=_one_second, slots=1, faults=faults)
    assert [service.state for service in outcome.services] == [StageState.QUEUED] * (MOST_LOSSES - 1) + [
        StageState.FAILED
    ]
    assert outcome.account()["p", "b"] == Counter({StageState.BLOCKED: 1})


def test_retries_back_off() -> None:
    """P12: 3 retries wait 1, 2 and 4 s after the end of the try before."""
    pipeline = Pipeline(stages={"a": stage(retries=3, backoff_s=1.0)})
    faults = Faults(failure=1.0)
    outcome = simulate({"p": pipeline}, [_unit(1, at=0.0)], service_s=_one_second, slots=1, faults=faults)
    assert [service.began_at for service in outcome.services] == [0.0, 2.0, 5.0, 10.0]
    assert outcome.account()["p", "a"] == Counter({StageState.FAILED: 1})


def test_a_stage_that_says_so_is_stopped_at_its_deadline() -> None:
    """P8."""
    for stops, ended_at, state in ((True, 5.0, StageState.EXPIRED), (False, 9.0, StageState.DONE)):
        pipeline = Pipeline(stages={"a": stage(deadline_s=5.0, stop_at_deadline=stops)})
        outcome = simulate({"p": pipeline}, [_unit(1, at=0.0)], service_s=lambda *_: 9.0, slots=1)
        assert [(service.ended_at, service.state) for service in outcome.services] == [(ended_at, state)]


def test_a_late_unit_opens_a_new_pass_of_the_group_stage() -> None:
    """P22: the total runs once for each closing, after every unit of its pass."""
    pipeline = Pipeline(stages={"a": stage(), "total": stage(after=["a"], per="group")})
    load = [_unit(1, at=0.0), _unit(2, at=0.0), _unit(3, at=50.0)]
    closings = [GroupClosing(at=0.5, group=RUN), GroupClosing(at=60.0, group=RUN), GroupClosing(at=70.0, group=RUN)]
    outcome = simulate({"p": pipeline}, load, closings=closings, service_s=_one_second, slots=1)
    totals = [event.at for event in outcome.events if (event.stage, event.state) == ("total", StageState.RUNNING)]
    assert totals == [2.0, 60.0]


def _four_seconds(pipeline: str, name: str, data_id: DataId) -> float:
    return 4.0


def test_pilots_that_go_lose_what_they_had_begun() -> None:
    """P12: of 4 stages that run, 2 lose their pilots half-way; they run again on those that are left."""
    load = [_unit(number, at=0.0) for number in range(4)]
    changes = [SlotChange(at=2.0, slots=2), SlotChange(at=10.0, slots=4)]
    outcome = simulate({"p": chain("a")}, load, service_s=_four_seconds, slots=4, slot_changes=changes)
    services = [(service.began_at, service.ended_at, service.state) for service in outcome.services]
    lost, done = StageState.QUEUED, StageState.DONE
    assert services == [(0.0, 2.0, lost)] * 2 + [(0.0, 4.0, done)] * 2 + [(4.0, 8.0, done)] * 2
    assert outcome.ended_at == 10.0


def test_pilots_that_come_take_what_waits() -> None:
    """P12: one slot for 4 units, then four."""
    load = [_unit(number, at=0.0) for number in range(4)]
    changes = [SlotChange(at=4.0, slots=4)]
    outcome = simulate({"p": chain("a")}, load, service_s=_four_seconds, slots=1, slot_changes=changes)
    assert [service.began_at for service in outcome.services] == [0.0, 4.0, 4.0, 4.0]


def test_a_part_that_is_broken_fails_alone_and_for_its_time() -> None:
    """B12: what begins on subrun 1 between 5 s and 15 s fails, nothing else."""
    fault = PartFault(when={"subrun": 1}, since=5.0, until=15.0)
    load = [_unit(subrun, at=at, run=run) for run, at in ((1, 0.0), (2, 10.0), (3, 20.0)) for subrun in (0, 1)]
    pipeline = Pipeline(stages={"a": stage(retries=0)})
    outcome = simulate({"p": pipeline}, load, service_s=_one_second, slots=2, faults=Faults(parts=(fault,)))
    assert [str(run.data_id) for run in outcome.runs if run.state is StageState.FAILED] == ["run=2 subrun=1"]
    assert outcome.account()["p", "a"][StageState.DONE] == 5


def test_a_fate_that_is_known_comes_true() -> None:
    """P21: a recorded failure happens again: at its attempt, at its end, and INPUT for good."""

    known: dict[tuple[int | str, int], Failure] = {(1, 1): Failure.PAYLOAD, (2, 1): Failure.INPUT}

    def fate(pipeline: str, name: str, data_id: DataId, attempt: int) -> Failure | None:
        return known.get((data_id["subrun"], attempt))

    load = [_unit(number, at=0.0) for number in range(3)]
    pipeline = Pipeline(stages={"a": stage(retries=1, backoff_s=1.0)})
    outcome = simulate({"p": pipeline}, load, service_s=_one_second, slots=3, fate=fate)
    assert [(run.state, run.attempts, run.since) for run in outcome.runs] == [
        (StageState.DONE, 1, 1.0),
        (StageState.DONE, 2, 3.0),
        (StageState.FAILED, 1, 1.0),
    ]


def test_overrides_act_from_their_moment() -> None:
    """P10, P14: paused at 1 s and released at 10 s: what runs goes on, what waits waits; its deadline counts on."""
    pause = Override(id=1, kind=OverrideKind.PAUSE, target=Target(pipeline="p"), by="me", why="test", set_at=1.0)
    changes = [ControlChange(at=1.0, controls=Controls([pause])), ControlChange(at=10.0, controls=Controls())]
    load = [_unit(number, at=0.0) for number in range(3)]
    outcome = simulate({"p": chain("a")}, load, service_s=_four_seconds, slots=1, control_changes=changes)
    began = [service.began_at for service in outcome.services]
    assert began == [0.0, 10.0, 14.0]


def test_a_night_may_be_cut_short_and_looked_at_on_the_way() -> None:
    """P21: until 3 s of 5: two units are done, one runs, two wait; every sample says how it stood."""
    told: list[float] = []
    load = [_unit(number, at=0.0) for number in range(5)]
    outcome = simulate(
        {"p": chain("a")}, load, service_s=_one_second, slots=1, until=2.5, sample_every_s=1.0, progress=told.append
    )
    assert outcome.account()["p", "a"] == Counter({StageState.DONE: 2, StageState.RUNNING: 1, StageState.QUEUED: 2})
    assert [(sample.at, sample.arrived, sample.queued, sample.busy) for sample in outcome.samples] == [
        (0.0, 5, 4, 1),
        (1.0, 5, 3, 1),
    ]
    assert told == []


def test_shares_and_latencies() -> None:
    """P21: four units in a row on one slot, of which two would be late, and are not begun."""
    pipeline = Pipeline(stages={"a": stage(deadline_s=2.5, value=3.0)}, work_class="prompt", order=Order.FIRST_COME)
    load = [_unit(number, at=0.0) for number in range(4)]
    classes = {"prompt": WorkClass(value=2.0, shed=False)}
    outcome = simulate({"p": pipeline}, load, service_s=_one_second, slots=1, classes=classes)
    assert outcome.share_in_time(lambda run: run.work_class) == {"prompt": 0.5}
    assert outcome.latencies_s(lambda run: run.stage) == {"a": [1.0, 2.0]}
    assert outcome.drops(lambda run: run.pipeline) == {"p": Counter({StageState.EXPIRED: 2})}
    assert outcome.value() == 12.0
