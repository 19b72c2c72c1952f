"""What deciding costs: time and memory of the dispatcher alone, with many units queued."""

from __future__ import annotations

import gc
import random
import time
import tracemalloc
from collections.abc import Callable

from benchmarks.table import Row
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.dispatcher import Dispatcher, Start
from p3s_prefect.core.experiment import Floor, Pipeline, Stage, Step, WorkClass
from p3s_prefect.core.overrides import Controls, Override, OverrideKind, Target
from p3s_prefect.core.records import StageFact, SubJobFact
from p3s_prefect.core.selection import sample_number
from p3s_prefect.core.states import StageState

QUEUED = 100_000
ROUNDS = 20_000
SLOTS = 16
OVERLOAD = 3.0
"""So many times more arrives than the slots can do."""
FAR_S = 1e6
GROUP = DataId.of(run=1)
_STEPS = [Step(name="work", command=["true"])]


def rows() -> list[Row]:
    """Microseconds for a decision and for a whole unit, what a command takes, and bytes for a queued unit."""
    kept, overload = _all_kept(QUEUED), _in_overload(QUEUED)
    found = [
        *_times(f"{QUEUED:,} units queued", kept),
        *_times(f"{overload.dispatcher.open:,} open in overload", overload),
    ]
    found += [_command(kept, "queued"), _command(overload, "open in overload")]
    for number in (QUEUED // 10, QUEUED // 2, QUEUED):
        found.append(
            Row(f"memory of {number:,} queued units", f"{bytes_a_unit(number):.0f} B a unit", "wanted: below 1,000")
        )
    size, number = _size_of(lambda: _in_overload(QUEUED // 10))
    row = Row(f"memory of {number:,} in overload, with a floor", f"{size / number:.0f} B a unit", "wanted: below 1,000")
    return [*found, row]


class _Fed:
    """A dispatcher that is fed as a station feeds it; services take 1 s."""

    def __init__(self, work_class: WorkClass, deadline_s: float, load: float) -> None:
        pipeline = Pipeline(stages={"quick": Stage(steps=_STEPS, deadline_s=deadline_s)}, work_class="dqm")
        self.dispatcher = Dispatcher({"p": pipeline}, {"dqm": work_class})
        self.dispatcher.set_slots(SLOTS)
        self.load, self.taken, self.now = load, 0, 0.0
        self.running: list[Start] = []
        self.ended = 0.0
        self.chance = random.Random(1)

    def take(self) -> None:
        """A unit arrives."""
        number = self.taken = self.taken + 1
        data_id = DataId.of(run=1, unit=number)
        self.now += 1 / (self.load * SLOTS)
        u = sample_number(data_id, 0)
        admission = self.dispatcher.offer("p", data_id, u=u, first_q=1.0, taken_at=self.now, now=self.now)
        (plan,) = admission.stages
        fact = SubJobFact(
            id=number,
            pass_id=1,
            pipeline="p",
            data_id=data_id,
            group=GROUP,
            per="unit",
            taken_at=self.now,
            u=admission.u,
            stages=(StageFact(id=number, stage=plan.stage, state=plan.state, q=plan.q),),
        )
        self.dispatcher.add(fact, self.now)

    def decide(self) -> None:
        """What is to start is started."""
        self.running += self.dispatcher.decide(self.now).starts

    def settle(self) -> None:
        """What the slots have done since the last arrival has ended."""
        self.ended += 1 / self.load
        while self.ended >= 1:
            self.ended -= 1
            ended = self.running.pop(self.chance.randrange(len(self.running)))
            self.dispatcher.settle(ended.stage_run_id, StageState.DONE, now=self.now, service_s=1.0)


def _all_kept(queued: int) -> _Fed:
    """Deadlines are set, so that they are watched, and so far that none passes; nothing is thinned: all is queued."""
    fed = _Fed(WorkClass(shed=False), FAR_S, load=1.0)
    for _ in range(queued):
        fed.take()
    fed.decide()
    return fed


def _in_overload(queued: int) -> _Fed:
    """As many stand by, in the end, as are queued otherwise: from then on one is shed for each that is left out."""
    fed = _Fed(WorkClass(floors=[Floor(share=0.05)]), queued / ((OVERLOAD - 1) * SLOTS), load=OVERLOAD)
    fed.take()
    fed.decide()
    for _ in range(2 * queued):
        fed.take()
        fed.decide()
        fed.settle()
    return fed


def _times(what: str, fed: _Fed) -> list[Row]:
    """Microseconds of a decision, and of all that a unit costs, while the number of open ones stays as it is."""
    deciding = 0
    began = time.process_time_ns()
    for _ in range(ROUNDS):
        fed.settle()
        fed.take()
        before = time.process_time_ns()
        fed.decide()
        deciding += time.process_time_ns() - before
    whole = time.process_time_ns() - began
    return [
        Row(f"decide, {what}", f"{deciding / ROUNDS / 1000:.1f} µs", "wanted: at most 20"),
        Row("offer, add, decide and settle of a unit", f"{whole / ROUNDS / 1000:.1f} µs", ""),
    ]


def _command(fed: _Fed, what: str) -> Row:
    """Seconds until a priority that is set has sorted the queue anew."""
    target = Target(pipeline="p")
    set_one = Override(id=1, kind=OverrideKind.PRIORITY, target=target, value=9, by="me", why="", set_at=fed.now)
    began = time.process_time()
    fed.dispatcher.control(Controls([set_one]), fed.now)
    fed.decide()
    spent_s = time.process_time() - began
    fed.dispatcher.control(Controls(), fed.now)
    return Row(f"a priority by command, {fed.dispatcher.open:,} {what}", f"{spent_s:.2f} s", "wanted: below 1")


def bytes_a_unit(queued: int) -> float:
    """Bytes that are held for each queued unit, its data id included."""
    size, _ = _size_of(lambda: _all_kept(queued))
    return size / queued


def _size_of(feed: Callable[[], _Fed]) -> tuple[int, int]:
    """(Bytes, open units) of what is fed."""
    gc.collect()
    tracemalloc.start()
    fed = feed()
    gc.collect()
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return size, fed.dispatcher.open
