"""The place in the queue that `p3s why` tells is the one at which the dispatcher starts it (B12)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.dispatcher import Dispatcher
from p3s_prefect.core.experiment import Experiment, Order
from p3s_prefect.core.overrides import Controls, Override, OverrideKind, Target
from p3s_prefect.core.owed import _OwedLine
from p3s_prefect.core.records import StageFact, SubJobFact
from p3s_prefect.core.states import StageState
from p3s_prefect.core.why_facts import Case, Queued, StationCase
from p3s_prefect.core.why_queue import place

GROUP = DataId.of(run=1)


@dataclass(frozen=True)
class Unit:
    """A unit that waits with its first stage, or has begun and waits with its second one."""

    pipeline: str
    taken_at: int
    begun: bool
    u: float
    left_out: bool


def experiment(priorities: list[int], order: Order) -> Experiment:
    def stage(**fields: object) -> dict[str, object]:
        return {"steps": [{"name": "work", "command": ["true"]}], **fields}

    stages = {"first": stage(deadline_s=10_000), "second": stage(after=["first"], deadline_s=9_000)}
    pipelines = {
        f"p{index}": {"stages": stages, "priority": priority, "order": order}
        for index, priority in enumerate(priorities)
    }
    stream = {"directory": "in", "pattern": "{run}.{n}", "dataset_type": "raw", "rules": [{"pipelines": ["p0"]}]}
    return Experiment.model_validate(
        {
            "experiment": "test",
            "instrument": {"name": "c", "dimensions": {"run": "int", "n": "int"}, "group": ["run"]},
            "dataset_types": {"raw": {"format": "text"}},
            "classes": {"default": {"floors": [{"when": {"n": 3}, "share": 0.5}, {"share": 0.3}]}},
            "pipelines": pipelines,
            "streams": {"s": stream},
        }
    )


def fact(number: int, unit: Unit) -> SubJobFact:
    first = StageState.DONE if unit.begun else StageState.QUEUED
    second = StageState.QUEUED if unit.begun else StageState.WAITING
    return SubJobFact(
        id=number,
        pass_id=1,
        pipeline=unit.pipeline,
        data_id=DataId.of(run=1, n=number),
        group=GROUP,
        per="unit",
        taken_at=float(unit.taken_at),
        u=unit.u,
        stages=(
            StageFact(id=2 * number, stage="first", state=first, q=q(unit)),
            StageFact(id=2 * number + 1, stage="second", state=second, q=q(unit)),
        ),
    )


def q(unit: Unit) -> float:
    return unit.u / 2 if unit.left_out else 1.0


def queued(number: int, unit: Unit) -> Queued:
    return Queued(
        id=2 * number + unit.begun,
        sub_job_id=number,
        pipeline=unit.pipeline,
        stage="second" if unit.begun else "first",
        per="unit",
        group=str(GROUP),
        data_id=f"run=1 n={number}",
        taken_at=float(unit.taken_at),
        begun=unit.begun,
        u=unit.u,
        q=q(unit),
        is_asked=False,
    )


def _every_3_s(line: _OwedLine) -> _OwedLine:
    line.each_s = 3.0
    return line


units = st.lists(
    st.builds(
        Unit,
        st.sampled_from(["p0", "p1"]),
        st.integers(0, 50),
        st.booleans(),
        st.sampled_from([0.2, 0.4, 0.4, 0.8]),
        st.booleans(),
    ),
    min_size=1,
    max_size=20,
)


@given(units, st.lists(st.integers(-1, 1), min_size=2, max_size=2), st.sampled_from(Order), st.data())
def test_the_place_is_that_at_which_the_dispatcher_starts_it(
    waiting: list[Unit], priorities: list[int], order: Order, data: st.DataObject
) -> None:
    """B12: in every order, with priorities of pipelines, one set by command, on standby, freshest first in overload,
    and what a floor owes a slot.
    """
    declared = experiment(priorities, order)
    chosen = data.draw(st.integers(0, len(waiting) - 1))
    target = Target(unit=DataId.of(run=1, n=data.draw(st.integers(0, len(waiting) - 1))))
    priority = Override(id=1, kind=OverrideKind.PRIORITY, target=target, value=5, by="anna", why="", set_at=0.0)
    controls = Controls(data.draw(st.sampled_from([(), (priority,)])))
    dispatcher = Dispatcher(declared.pipelines, declared.classes)
    dispatcher.set_slots(1000)
    dispatcher.control(controls, 100.0)
    for number, unit in enumerate(waiting):
        dispatcher.add(fact(number, unit), 100.0)
    controller, is_overloaded = dispatcher._controller, data.draw(st.booleans())
    controller.is_overloaded = lambda _plan: is_overloaded  # type: ignore[method-assign]
    # Deadlines are from 9,000 and from 10,000 s on: some of the second stages, or all of them and some of the first.
    before = data.draw(st.sampled_from([-math.inf, 9_025.0, 10_025.0]))
    controller.rescued_before = lambda _plan, _now: before  # type: ignore[method-assign]
    # Of those with a number below the floor none, all, or some that are late: more where more are owed.
    long_s = data.draw(st.sampled_from([0.0, 8_860.0, 9_870.0, 1e9]))
    controller.start_by_s = lambda run: run.stage.deadline_s - long_s  # type: ignore[method-assign]
    controller.is_known = lambda _run: True  # type: ignore[method-assign]
    owed, own_pace = dispatcher._queues._owed, dispatcher._queues._owed._ready
    owed._ready = lambda: [_every_3_s(line) for line in own_pace()]  # type: ignore[method-assign]
    dispatcher._queues.sort_by_load()
    fresh = dispatcher.freshest_first(100.0)
    assert set(fresh) == (set(declared.pipelines) if is_overloaded or order is Order.FRESHEST_FIRST else set())
    station = StationCase(
        freshest_first={name: at if math.isfinite(at) else None for name, at in fresh.items()},
        owed_until=dispatcher.owed_until(100.0),
    )
    starts = [start.stage_run_id for start in dispatcher.decide(100.0).starts]
    queue = tuple(queued(number, unit) for number, unit in enumerate(waiting))
    case = Case(
        at=100.0,
        data_id=DataId.of(run=1, n=chosen),
        group=None,
        queue=queue,
        running={},
        controls=controls,
        station=station,
    )
    found = place(declared, case, queue[chosen])
    index = starts.index(queue[chosen].id)
    assert found.before <= index <= found.before + found.turns
