"""Overload in virtual time, small and the same every time: the promise that `benchmarks/shedding` measures at length.

The bound and the known disciplines stand there; they are checked here against what can be reckoned by hand.
"""

from __future__ import annotations

import random
import statistics
from dataclasses import dataclass, replace
from functools import cache
from itertools import permutations, product
from pathlib import Path

import pytest
from scheduling import stage

from benchmarks.shedding import cells, cost, disciplines, night, ours, run, step
from benchmarks.shedding.bound import bound
from benchmarks.shedding.service import Gamma, Lognormal, ServiceTimes
from benchmarks.shedding.traces import RECIPES, SLOTS, Kind, Trace, Unit, make
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.experiment import Floor, Pipeline, WorkClass
from p3s_prefect.core.incidents import UnitArrival
from p3s_prefect.core.selection import sample_number
from p3s_prefect.core.states import StageState
from p3s_prefect.core.virtual_time import simulate

LENGTH_S = 60.0
SEEDS = (1, 2)
# A trace has two bursts or three, so that two of them tell little.
SEEDS_OF_BURSTS = (1, 2, 3, 4, 5)


LOADS = (1.2, 3.0, 10.0)
# What a core does in a second is a half or less where its caches and its clock are shared.
_ROOM_FOR_OTHERS = 3.0


@pytest.mark.parametrize(("name", "load"), list(product(RECIPES, LOADS)))
def test_value_in_time_is_near_the_bound(name: str, load: float) -> None:
    """P5: at 1.2, 3 and 10 times the capacity."""
    assert _played(name, load)[0] >= cells.WANTED_SHARE.get(name, cells.WANTED_SHARE_ELSEWHERE)


@pytest.mark.parametrize("name", list(RECIPES))
def test_fresh_results_cost_little_value(name: str) -> None:
    """P5: where the freshest go first in overload, as by default, at three times the capacity."""
    assert _played(name, 3.0, "fresh")[0] >= 0.93


@pytest.mark.parametrize("name", list(RECIPES))
def test_few_units_are_given_up_that_chance_did_not_choose(name: str) -> None:
    """P5, P6: expired or stopped, at three times the capacity."""
    assert _played(name, 3.0)[1] <= cells.MOST_EXPIRED.get(name, cells.MOST_EXPIRED_ELSEWHERE)


def test_a_class_that_gets_no_slot_is_shed_and_does_not_expire() -> None:
    """P5, P6: what was handed out and never begins is not taken to run, and its stage not to be too long for everyone.

    In this trace a slot becomes free just when better work comes for it.
    """
    trace = make("two classes", 10.0, 5.0, 3, length_s=LENGTH_S)
    assert ours.judge(ours.play(trace, "value")).expired / len(trace.units) < 0.01


@cache
def _played(name: str, load: float, policy: str = "value") -> tuple[float, float]:
    """(Share of the bound, share of the arrivals that were expired or stopped), the median of all seeds."""
    values, expired = [], []
    for seed in SEEDS_OF_BURSTS if name == "bursty" else SEEDS:
        # A trace of bursts needs more than one of them.
        trace = make(name, load, 5.0, seed, length_s=2 * LENGTH_S if name == "bursty" else LENGTH_S)
        judged = ours.judge(ours.play(trace, policy))
        values.append(judged.value / bound(trace))
        expired.append(judged.expired / len(trace.units))
    return statistics.median(values), statistics.median(expired)


def test_a_floor_is_kept_at_ten_times_the_capacity() -> None:
    """P5: one part of four has a floor of a half and gets it, chosen by chance; the others share what is left."""
    pipeline = Pipeline(stages={"a": stage(deadline_s=20.0)}, work_class="dqm")
    classes = {"dqm": WorkClass(floors=[Floor(when={"part": 0}, share=0.5)])}
    load = [
        UnitArrival(
            at=at, taken_at=at, pipeline="p", group=DataId.of(run=1), data_id=DataId.of(run=1, unit=n, part=n % 4)
        )
        for n, at in enumerate(number * 0.025 for number in range(8000))
    ]
    outcome = simulate({"p": pipeline}, load, classes=classes, service_s=lambda *_: 1.0, slots=8)
    let_in = {
        part: statistics.mean(run.state is not StageState.SHED for run in outcome.runs if run.data_id["part"] == part)
        for part in range(4)
    }
    assert let_in[0] == pytest.approx(0.5, abs=0.04)
    assert max(let_in[part] for part in (1, 2, 3)) < 0.2
    assert all(run.q >= 0.5 for run in outcome.runs if run.data_id["part"] == 0)
    owed = [run for run in outcome.runs if run.data_id["part"] == 0 and sample_number(run.data_id, 0) < 0.5]
    assert statistics.mean(run.in_time for run in owed) >= 0.98
    assert statistics.mean(run.state is StageState.EXPIRED for run in outcome.runs) <= 0.01


VALUE = ("pipelines.alerts.order=earliest-deadline", "pipelines.alerts.freshest_in_overload=false")


@pytest.mark.parametrize(
    ("slots", "changes", "possible"),
    [(140, (), 1.0), (140, VALUE, 1.0), (120, VALUE, 0.906), (100, VALUE, 0.666)],
)
def test_visits_of_many_units_and_two_stages_fill_the_slots(
    slots: int, changes: tuple[str, ...], possible: float
) -> None:
    """P5, P21: all get their first stage, and of the second as many as there is time for until the next visit.

    It goes at the pace of a whole night of 1,000 visits in two minutes of a core, which others may slow down.
    """
    visits = 12
    result, spent_s = night.play(visits, *changes, slots=slots)
    isr, diff = result.stages
    assert isr.in_time == isr.seen == visits * night.DETECTORS
    assert diff.in_time >= 0.95 * possible * diff.seen
    assert diff.expired <= 0.01 * diff.seen
    assert spent_s < night.WANTED_S * visits / night.VISITS * _ROOM_FOR_OTHERS


def test_a_queued_unit_takes_less_than_a_kilobyte_however_many_there_are() -> None:
    """P5: memory grows linearly."""
    # Other threads of the process may allocate meanwhile, which only adds.
    few, many = (min(cost.bytes_a_unit(queued) for _ in range(3)) for queued in (1_000, 5_000))
    assert many < 1_000
    assert many < 1.05 * few


def test_what_is_left_out_is_a_matter_of_q_alone() -> None:
    """P6: at three times the capacity those with u >= q are shed, but for a few that a slot was idle for."""
    trace = make("steady", 3.0, 5.0, 1, length_s=LENGTH_S)
    runs = ours.play(trace).runs
    out = [run for run in runs if sample_number(run.data_id, trace.seed) >= run.q]
    assert len(out) > len(runs) / 2
    assert all(0 < run.q < 1 for run in out)
    assert {run.id for run in runs if run.state is StageState.SHED} <= {run.id for run in out}
    waiting = [run for run in out if not run.state.is_terminal]
    assert all(run.deadline > LENGTH_S for run in waiting)
    assert sum(run.state is StageState.SHED for run in out) > 0.95 * (len(out) - len(waiting))
    expected = sum(run.q for run in runs)
    kept = len(runs) - len(out)
    assert abs(kept - expected) < 4 * sum(run.q * (1 - run.q) for run in runs) ** 0.5


# --- the bound ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fixed:
    """Always the same service time."""

    mean_s: float

    def draw(self, chance: random.Random) -> float:
        return self.mean_s

    def below(self, limit_s: float) -> float:
        return float(limit_s >= self.mean_s)

    def expected_s(self, limit_s: float) -> float:
        return min(self.mean_s, limit_s)


@pytest.mark.parametrize("times", [Gamma(1.0), Gamma(0.3), Lognormal(1.0)])
@pytest.mark.parametrize("limit_s", [0.2, 1.0, 5.0, 20.0])
def test_what_a_stopped_service_takes_is_the_area_under_its_survival(times: ServiceTimes, limit_s: float) -> None:
    """P5: the mean of min(service, limit)."""
    steps = 20_000
    area = sum(1 - times.below((step + 0.5) / steps * limit_s) for step in range(steps)) / steps * limit_s
    assert times.expected_s(limit_s) == pytest.approx(area, rel=1e-4)
    chance = random.Random(1)
    drawn = [min(times.draw(chance), limit_s) for _ in range(40_000)]
    assert times.expected_s(limit_s) == pytest.approx(statistics.mean(drawn), rel=0.02)


def test_a_steady_overload_is_bound_by_the_slots() -> None:
    """P5: the bound, by hand."""
    for name, load, rate in (
        ("steady", 3.0, 1.0),
        ("heavy tails", 3.0, 1 / Lognormal(1.0).expected_s(5.0)),
        # Alerts alone, which are worth 4, are 2.5 times what fits.
        ("two classes", 10.0, 4.0),
        # The first look alone, worth 0.5 for 0.2 s of a slot, is twice what fits.
        ("three stages", 10.0, 2.5),
        # All looks (0.24 of the slots) and fits (0.36), and of the deep stages what 0.4 of the slots can do.
        ("three stages", 1.2, 1.2 * (0.5 + 0.2) + 0.4 / 0.5 * 0.3),
        # Half of the slots are away for a third of the time.
        ("worker loss", 3.0, 5 / 6),
    ):
        trace = make(name, load, 5.0, 1)
        assert bound(trace) == pytest.approx(rate * SLOTS * trace.length_s, rel=0.03), name


def test_below_the_capacity_everything_fits_that_can_end_before_the_trace() -> None:
    """P5: the bound, by hand."""
    for name in ("steady", "two classes", "three stages"):
        trace = make(name, 0.5, 20.0, 1)
        whole = sum(sum(trace.kinds[unit.kind].stage_values()) for unit in trace.units)
        assert 0.98 * whole <= bound(trace) <= whole


@pytest.mark.parametrize("seed", range(8))
def test_no_schedule_is_better_than_the_bound(seed: int) -> None:
    """P5: every order of every choice of 5 units on one slot, with what one knows who knows all."""
    chance = random.Random(seed)
    kind = Kind(name="k", stages={"a": Fixed(1.0)})
    units = tuple(Unit(at, "k", (1.0,)) for at in sorted(chance.uniform(0, 3) for _ in range(5)))
    deadline_s = chance.uniform(1.2, 3.0)
    trace = Trace(
        name="small", load=1, deadline_s=deadline_s, seed=seed, kinds={"k": kind}, units=units, slots=((0.0, 1),),
        length_s=5.0,
    )  # fmt: skip
    best = max(_in_time(order, deadline_s, 5.0) for order in permutations(units))
    assert best <= bound(trace) + 1e-9
    # Units are divisible there, and time is in buckets: that is worth less than two units here.
    assert bound(trace) < best + 2


def _in_time(order: tuple[Unit, ...], deadline_s: float, length_s: float) -> int:
    """How many of them end in time on one slot, those that cannot being left out."""
    free_at, number = 0.0, 0
    for unit in order:
        ends_at = max(free_at, unit.at) + unit.services_s[0]
        if ends_at <= min(unit.at + deadline_s, length_s):
            free_at, number = ends_at, number + 1
    return number


# --- the known disciplines ------------------------------------------------------------------------------------------


def test_the_rig_of_the_disciplines_is_that_of_the_simulator() -> None:
    """P21: first come without deadlines: the dispatcher in virtual time ends every unit when the discipline does."""
    for name, load in product(("steady", "bursty"), (0.9, 1.2)):
        trace = make(name, load, 1e6, 1)
        outcome = ours.play(trace, "value")
        assert outcome.value() == disciplines.play(trace, disciplines.FirstCome)[0]


def test_each_discipline_does_what_its_name_says() -> None:
    """P5: one slot, services of 2 s; five units, one a second; deadlines after 4.5 s."""
    kind = Kind(name="k", stages={"a": Fixed(2.0)})
    units = tuple(Unit(at, "k", (2.0,)) for at in (0.0, 0.9, 1.9, 2.9, 3.9))
    trace = Trace(
        name="small", load=2, deadline_s=4.5, seed=1, kinds={"k": kind}, units=units, slots=((0.0, 1),), length_s=20.0
    )
    # The third ends at 6.0, in time; the fourth at 8.0, after 7.4, and the last at 10.0, after 8.4.
    assert disciplines.play(trace, disciplines.FirstCome) == (3, 0)
    # After the first the third, until 4.0, the last, until 6.0, and the fourth, until 8.0: late; the second too.
    assert disciplines.play(trace, disciplines.NewestFirst) == (3, 0)
    # As first come; with stops, the fourth and the last begin in time and are stopped at 7.4 and 8.4.
    assert disciplines.play(trace, disciplines.EarliestDeadline) == (3, 0)
    assert disciplines.play(trace, disciplines.EarliestDeadline, stops=True) == (3, 2)


def test_earliest_deadline_drops_what_is_late() -> None:
    """P5: the second waits behind a service of 5 s until it is late; only who drops it serves the third in time."""
    kind = Kind(name="k", stages={"a": Fixed(2.0)})
    units = (Unit(0.0, "k", (5.0,)), Unit(0.5, "k", (2.0,)), Unit(3.5, "k", (2.0,)))
    trace = Trace(
        name="small", load=2, deadline_s=4.0, seed=1, kinds={"k": kind}, units=units, slots=((0.0, 1),), length_s=20.0
    )
    assert disciplines.play(trace, disciplines.EarliestDeadline)[0] == 1
    assert disciplines.play(trace, disciplines.FirstCome)[0] == 0


def test_codel_lets_nothing_wait_long_once_the_queue_builds_up() -> None:
    """P5: the rival is the one of the literature."""
    trace = make("steady", 3.0, 20.0, 1, length_s=200.0)
    waits = _waits(trace)
    standing = [wait for at, wait in waits if at > 60]
    assert max(standing) <= (20.0 - 1.0) / 20 + 1e-9
    assert max(wait for at, wait in waits) > 1


def _waits(trace: Trace) -> list[tuple[float, float]]:
    """(When it was served, how long it waited) of every unit that CoDel serves."""
    found: list[tuple[float, float]] = []

    class Watched(disciplines.CoDel):
        def take(self, now: float) -> disciplines.Waiting | None:
            waiting = super().take(now)
            if waiting is not None:
                found.append((now, now - waiting.unit.at))
            return waiting

    disciplines.play(trace, Watched)
    return found


def test_the_table_has_a_line_for_each_policy_and_says_what_it_misses() -> None:
    """P5: where nothing is scarce nothing is missed; where a half of the value is lost, that is."""
    cell = cells.play("steady", 0.5, 5.0, [1])
    (one,) = cell.played
    half = replace(one.ours["fresh"], value=0.5 * one.ours["fresh"].value, expired=0.02)
    spoilt = replace(cell, played=[replace(one, ours={**one.ours, "fresh": half})])
    _, *lines = run.table([cell, spoilt]).splitlines()
    assert [line.split()[3] for line in lines] == [*ours.POLICIES, *ours.POLICIES]
    assert [cell.misses(policy) for policy in ours.POLICIES] == [[], []]
    assert [spoilt.misses(policy) for policy in ours.POLICIES] == [[], ["value", "expired", "rival"]]
    assert lines[-1].endswith("value expired rival")


def test_the_step_response_is_drawn(tmp_path: Path) -> None:
    """P5: q, backlog and predicted wait over time."""
    step.draw(tmp_path / "step.png")
    assert (tmp_path / "step.png").stat().st_size > 20_000
