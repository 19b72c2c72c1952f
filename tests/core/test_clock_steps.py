"""A clock that steps in overload: how much is let in afterwards."""

from __future__ import annotations

import statistics
from heapq import heappop, heappush

import pytest
from scheduling import stage

from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.dispatcher import Dispatcher
from p3s_prefect.core.experiment import Order, Pipeline
from p3s_prefect.core.records import StageFact, SubJobFact
from p3s_prefect.core.selection import sample_number
from p3s_prefect.core.states import StageState

SLOTS = 16
SLACK_S = 20.0
STEPS_AT = 70.0
_HOUR = 3600.0


class _Station:
    """A dispatcher and pilots on one clock, which steps; every unit takes a second of a slot."""

    def __init__(self, step_s: float, *, fresh: bool) -> None:
        pipeline = Pipeline(
            stages={"a": stage(deadline_s=SLACK_S)}, order=Order.EARLIEST_DEADLINE, freshest_in_overload=fresh
        )
        self.dispatcher = Dispatcher({"p": pipeline})
        self.dispatcher.set_slots(SLOTS)
        self.step_s = step_s
        self.ends: list[tuple[float, int]] = []
        self.at_pilots: list[int] = []

    def clock(self, at: float) -> float:
        return at + (self.step_s if at >= STEPS_AT else 0.0)

    def take(self, number: int, at: float) -> float:
        """A unit arrives, and is let in or not; returns its q."""
        unit, now = DataId.of(unit=number), self.clock(at)
        u = sample_number(unit, 0)
        (found,) = self.dispatcher.offer("p", unit, u=u, first_q=1.0, taken_at=now, now=now).stages
        stages = (StageFact(id=number, stage="a", state=found.state, q=found.q),)
        fact = SubJobFact(
            id=number, pass_id=1, pipeline="p", data_id=unit, group=DataId.of(run=1), per="unit", taken_at=now, u=u,
            stages=stages,
        )  # fmt: skip
        self.dispatcher.add(fact, now)
        return found.q

    def serve(self, at: float) -> None:
        """Ends what has been served, and begins what is decided now."""
        while self.ends and self.ends[0][0] <= at:
            _, number = heappop(self.ends)
            # By a clock that nobody sets, as pilots tell it.
            self.dispatcher.settle(number, StageState.DONE, now=self.clock(at), service_s=1.0)
        self.at_pilots += [start.stage_run_id for start in self.dispatcher.decide(self.clock(at)).starts]
        while self.at_pilots and len(self.ends) < SLOTS:
            heappush(self.ends, (at + 1.0, self.at_pilots.pop(0)))


def test_a_clock_that_is_set_back_makes_no_overload() -> None:
    """S8, P5: at 0.8 times what the slots can do, units go in the declared order all the time."""
    station = _Station(-_HOUR, fresh=True)
    for number in range(1, int((STEPS_AT + 5 * SLACK_S) * 0.8 * SLOTS)):
        at = number / (0.8 * SLOTS)
        assert station.take(number, at) == 1.0
        station.serve(at)
        assert station.dispatcher.freshest_first(station.clock(at)) == {}


def _mean_q(step_s: float, *, fresh: bool) -> float:
    """Of the third slack after the step, at three times what the slots can do."""
    station, found = _Station(step_s, fresh=fresh), []
    for number in range(1, int((STEPS_AT + 3 * SLACK_S) * 3 * SLOTS)):
        at = number / (3 * SLOTS)
        q = station.take(number, at)
        station.serve(at)
        if at >= STEPS_AT + 2 * SLACK_S:
            found.append(q)
    return statistics.mean(found)


@pytest.mark.parametrize("step_s", [-_HOUR, _HOUR])
@pytest.mark.parametrize("fresh", [False, True])
def test_two_slacks_after_a_clock_has_stepped_as_much_is_let_in_as_without(step_s: float, fresh: bool) -> None:
    """S8, P5: within 2 %, as what had queued is served. It is the clock of the data too: else all would be late, or
    of the future.
    """
    assert _mean_q(step_s, fresh=fresh) == pytest.approx(_mean_q(0.0, fresh=fresh), rel=0.02)
