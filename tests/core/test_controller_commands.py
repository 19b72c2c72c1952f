"""What commands change in overload: priorities decide who is left out, and what is stopped takes no slots (P14, S9)."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from random import Random
from types import MappingProxyType

import pytest
from scheduling import stage

from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.dispatcher import Dispatcher
from p3s_prefect.core.experiment import Floor, Pipeline, WorkClass
from p3s_prefect.core.incidents import ControlChange, UnitArrival
from p3s_prefect.core.outcome import Outcome, PlayedRun
from p3s_prefect.core.overrides import Controls, Override, OverrideKind, Target
from p3s_prefect.core.records import StageFact, SubJobFact
from p3s_prefect.core.states import StageState
from p3s_prefect.core.virtual_time import simulate

DONE = StageState.DONE
GROUP = DataId.of(run=1)
SLOTS = 4
LENGTH_S = 60.0


def _steady(load: float, pipeline: str, length_s: float = LENGTH_S) -> list[UnitArrival]:
    """Poisson arrivals of units of one second each, at so many times what the slots can do."""
    chance, at, units = Random(pipeline), 0.0, []
    while (at := at + chance.expovariate(load * SLOTS)) < length_s:
        unit = DataId.of(pipeline=pipeline, unit=len(units))
        units.append(UnitArrival(at=at, taken_at=at, pipeline=pipeline, group=GROUP, data_id=unit))
    return units


def _pipeline(*names: str, **values: object) -> Pipeline:
    stages = {name: stage(after=list(names[max(0, n - 1) : n]), deadline_s=8.0) for n, name in enumerate(names)}
    return Pipeline(stages=stages, **values)


def _set(kind: OverrideKind, value: int | None = None, **target: object) -> Override:
    return Override(id=1, kind=kind, target=Target(**target), value=value, by="me", why="", set_at=0.0)


def _play(
    arrivals: list[UnitArrival],
    *changes: tuple[float, Override | None],
    classes: Mapping[str, WorkClass] = MappingProxyType({}),
    **pipelines: Pipeline,
) -> Outcome:
    return simulate(
        pipelines,
        arrivals,
        classes=classes,
        control_changes=[ControlChange(at=at, controls=Controls([one] if one else [])) for at, one in changes],
        service_s=lambda pipeline, stage, unit: 1.0,
        slots=SLOTS,
    )


def _mean_q(outcome: Outcome, pipeline: str, *, since: float = 0.0, until: float = LENGTH_S) -> float:
    return statistics.mean(run.q for run in _runs(outcome, pipeline) if since <= run.taken_at < until)


def _runs(outcome: Outcome, pipeline: str) -> list[PlayedRun]:
    return [run for run in outcome.runs if run.pipeline == pipeline]


# --- priorities -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [{"work_class": "low"}, {"pipeline": "low"}, {"pipeline": "low", "stage": "a"}])
def test_a_priority_by_command_decides_who_is_left_out_as_a_declared_one_does(target: dict[str, str]) -> None:
    """S9, P10, P5: the same units with the same q, and who had nothing gets nearly all."""
    arrivals = _steady(1.0, "low") + _steady(1.5, "high")
    pipelines = {name: _pipeline("a", work_class=name) for name in ("low", "high")}
    classes = {"high": WorkClass(priority=1), "low": WorkClass()}
    before = _play(arrivals, classes=classes, **pipelines)
    given = _play(arrivals, (0.0, _set(OverrideKind.PRIORITY, 10, **target)), classes=classes, **pipelines)
    declared = _play(arrivals, classes=classes | {"low": WorkClass(priority=10)}, **pipelines)
    assert _mean_q(before, "low") < 0.1
    assert _mean_q(given, "low") > 0.8
    assert [(run.state, run.q) for run in given.runs] == [(run.state, run.q) for run in declared.runs]


def test_a_priority_that_is_cleared_decides_nothing_any_more() -> None:
    """S9."""
    arrivals = _steady(1.0, "low") + _steady(1.5, "high")
    pipelines = {name: _pipeline("a", work_class=name) for name in ("low", "high")}
    raised = _set(OverrideKind.PRIORITY, 10, work_class="low")
    found = _play(arrivals, (10.0, raised), (30.0, None), classes={"high": WorkClass(priority=1)}, **pipelines)
    assert _mean_q(found, "low", since=12.0, until=28.0) > 0.8
    assert _mean_q(found, "low", since=40.0) < 0.1
    assert _mean_q(found, "high", since=40.0) > 0.5


@pytest.mark.parametrize("target", [{"pipeline": "high"}, {"group": DataId.of(run=9)}])
def test_a_floor_is_owed_its_slot_before_a_priority_that_was_set(target: dict[str, object]) -> None:
    """P5, P10: at the pilots too, where the higher goes first."""
    kept = WorkClass(floors=[Floor(share=1.0)])
    dispatcher = Dispatcher({"low": _pipeline("a", work_class="low"), "high": _pipeline("a")}, {"low": kept})
    dispatcher.set_slots(1)
    dispatcher.control(Controls([_set(OverrideKind.PRIORITY, 10, **target)]), 0.0)
    for number, pipeline in enumerate(("high", "low"), start=1):
        queued = StageFact(id=number, stage="a", state=StageState.QUEUED)
        dispatcher.add(
            SubJobFact(
                id=number, pass_id=number, pipeline=pipeline, data_id=DataId.of(unit=number), group=GROUP, per="unit",
                taken_at=0.0, stages=(queued,),
            ),
            0.0,
        )  # fmt: skip
    first, *_ = dispatcher.decide(0.0).starts
    assert (first.stage_run_id, first.priority) == (2, 11)


def test_what_is_set_for_a_group_sorts_its_units_and_leaves_the_tiers_as_they_are() -> None:
    """P10, S9: nobody knows beforehand how much of a group comes."""
    arrivals = _steady(1.0, "low") + _steady(1.5, "high")
    pipelines = {name: _pipeline("a", work_class=name) for name in ("low", "high")}
    raised = _set(OverrideKind.PRIORITY, 10, work_class="low", group=GROUP)
    found = _play(arrivals, (0.0, raised), classes={"high": WorkClass(priority=1)}, **pipelines)
    assert _mean_q(found, "low") < 0.1


# --- stops ------------------------------------------------------------------------------------------------------------

STOPS = [
    _set(OverrideKind.PAUSE, work_class="high"),
    _set(OverrideKind.PAUSE, pipeline="high", stage="a"),
    _set(OverrideKind.HOLD, pipeline="high"),
    _set(OverrideKind.DRAIN, pipeline="high"),
    _set(OverrideKind.LIMIT, 0, work_class="high"),
    _set(OverrideKind.LIMIT, 0, pipeline="high"),
]


@pytest.mark.parametrize("stop", STOPS, ids=lambda stop: stop.effect)
@pytest.mark.parametrize("names", [("a",), ("a", "b", "c")], ids=len)
def test_what_is_stopped_thins_nothing_below_it(stop: Override, names: tuple[str, ...]) -> None:
    """P5, P14: its queue and what still comes of it take no slots from a lower class, which fits beside nothing."""
    arrivals = _steady(0.5, "low") + _steady(1.2 / len(names), "high")
    pipelines = {"low": _pipeline("a"), "high": _pipeline(*names, work_class="high")}
    found = _play(arrivals, (20.0, stop), classes={"high": WorkClass(priority=1)}, **pipelines)
    assert _mean_q(found, "low", until=20.0) < 0.5
    assert _mean_q(found, "low", since=25.0) > 0.95
    late = [run for run in _runs(found, "low") if run.taken_at > 25.0]
    assert all(run.state is DONE for run in late)


def test_a_later_stage_that_is_stopped_thins_nothing_below_it() -> None:
    """P5, P14: while the stage before it goes on."""
    arrivals = _steady(0.5, "low") + _steady(0.4, "high")
    pipelines = {"low": _pipeline("a"), "high": _pipeline("a", "b", "c", work_class="high")}
    stop = _set(OverrideKind.PAUSE, pipeline="high", stage="b")
    found = _play(arrivals, (20.0, stop), classes={"high": WorkClass(priority=1)}, **pipelines)
    assert _mean_q(found, "low", until=20.0) < 0.8
    assert _mean_q(found, "low", since=30.0) > 0.95


def test_what_goes_on_again_comes_first_again() -> None:
    """P5, P14: and what the class below has let in meanwhile is thinned, it does not expire."""
    arrivals = _steady(1.0, "low") + _steady(0.9, "high")
    pipelines = {"low": _pipeline("a"), "high": _pipeline("a", work_class="high")}
    pause = _set(OverrideKind.PAUSE, work_class="high")
    found = _play(arrivals, (20.0, pause), (40.0, None), classes={"high": WorkClass(priority=1)}, **pipelines)
    assert _mean_q(found, "low", since=45.0) < 0.4
    high = [run for run in _runs(found, "high") if run.taken_at > 42.0]
    assert statistics.mean(run.state is DONE for run in high) > 0.9
    assert statistics.mean(run.state is StageState.EXPIRED for run in _runs(found, "low")) < 0.02


def test_a_limit_of_none_by_command_makes_work_wait_and_sheds_nothing() -> None:
    """P14, P10: as a pause does; once it is lifted, what waited is done."""
    none = _set(OverrideKind.LIMIT, 0, pipeline="p")
    outcome = _play(_steady(0.5, "p", 8.0), (2.0, none), (4.0, None), p=_pipeline("a"))
    assert {run.state for run in outcome.runs} == {DONE}
