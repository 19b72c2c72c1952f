"""What deciding costs: time and memory of the dispatcher alone, with many units queued."""

from __future__ import annotations

import gc
import random
import time
import tracemalloc

from benchmarks.table import Row
from p3s_prefect.core.admission import Admission
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.dispatcher import Dispatcher, Start
from p3s_prefect.core.experiment import Pipeline, Stage, Step, WorkClass
from p3s_prefect.core.records import StageFact, SubJobFact
from p3s_prefect.core.selection import sample_number
from p3s_prefect.core.states import StageState

QUEUED = 100_000
ROUNDS = 20_000
SLOTS = 16
FAR_S = 1e6
GROUP = DataId.of(run=1)
_STEPS = [Step(name="work", command=["true"])]
# Deadlines are set, so that they are watched, and so far that none passes; nothing is thinned, so that all is queued.
PIPELINE = Pipeline(stages={"quick": Stage(steps=_STEPS, deadline_s=FAR_S)}, work_class="dqm")
CLASSES = {"dqm": WorkClass(shed=False)}


def rows() -> list[Row]:
    """Microseconds for a decision and for a whole unit, and bytes for a queued unit at three sizes."""
    decide_us, unit_us = _time(QUEUED)
    sizes = [(number, bytes_a_unit(number)) for number in (QUEUED // 10, QUEUED // 2, QUEUED)]
    return [
        Row(f"decide, {QUEUED:,} units queued", f"{decide_us:.1f} µs", "wanted: at most 20"),
        Row("offer, add, decide and settle of a unit", f"{unit_us:.1f} µs", ""),
        *(
            Row(f"memory of {number:,} queued units", f"{size:.0f} B a unit", "wanted: below 1,000")
            for number, size in sizes
        ),
    ]


class _Fed:
    """A dispatcher that is fed as a station feeds it."""

    def __init__(self, ids: list[DataId]) -> None:
        self.ids, self.added, self.now = ids, 0, 0.0
        self.dispatcher = Dispatcher({"p": PIPELINE}, CLASSES)
        self.dispatcher.set_slots(SLOTS)
        self.running: list[Start] = []
        self.chance = random.Random(1)

    def take(self) -> None:
        number = self.added = self.added + 1
        data_id = self.ids[number - 1]
        self.now += 1 / SLOTS
        admission: Admission = self.dispatcher.offer(
            "p", data_id, u=sample_number(data_id, 0), first_q=1.0, taken_at=self.now, now=self.now
        )
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
        self.running += self.dispatcher.decide(self.now).starts

    def settle(self) -> None:
        ended = self.running.pop(self.chance.randrange(len(self.running)))
        self.dispatcher.settle(ended.stage_run_id, StageState.DONE, now=self.now, service_s=1.0)


def _ids(number: int) -> list[DataId]:
    return [DataId.of(run=1, unit=place) for place in range(number)]


def _time(queued: int) -> tuple[float, float]:
    """(microseconds of a decision, of all that a unit costs), the queue staying as long as it is."""
    fed = _Fed(_ids(queued + ROUNDS))
    for _ in range(queued):
        fed.take()
    fed.decide()
    deciding = 0
    began = time.process_time_ns()
    for _ in range(ROUNDS):
        fed.settle()
        fed.take()
        before = time.process_time_ns()
        fed.decide()
        deciding += time.process_time_ns() - before
    return deciding / ROUNDS / 1000, (time.process_time_ns() - began) / ROUNDS / 1000


def bytes_a_unit(queued: int) -> float:
    """Bytes that the dispatcher holds for each queued unit, its data id apart, which the caller has."""
    fed = _Fed(_ids(queued))
    gc.collect()
    tracemalloc.start()
    for _ in range(queued):
        fed.take()
    fed.decide()
    gc.collect()
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return size / queued
