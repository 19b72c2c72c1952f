"""The production dispatcher in virtual time: hours of a night in seconds, and the same every time.

`simulate` lets units in, hands stage runs to pilots, ends them after the service times that it is given, closes
groups, takes and gives slots, and writes down what happened. Admission, dispatcher, retry and states are those of the
station; only the clock, the pilots and the ledger are played. Times are seconds on the clock of the arrivals.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from p3s_prefect.core import retry
from p3s_prefect.core.admission import Admission, admit_group
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.dispatcher import Dispatcher, Start
from p3s_prefect.core.experiment import Pipeline, Stage, WorkClass
from p3s_prefect.core.incidents import (
    ControlChange,
    Fate,
    Faults,
    GroupClosing,
    ServiceTime,
    SlotChange,
    UnitArrival,
)
from p3s_prefect.core.outcome import Outcome, PlayedRun, Sample, Trail
from p3s_prefect.core.records import Failure, StageFact, SubJobFact, Transition
from p3s_prefect.core.selection import sample_number
from p3s_prefect.core.states import StageState, may_move
from p3s_prefect.core.virtual_pilots import Pilots, Service

_NO_FAULTS = Faults()


def simulate(
    pipelines: Mapping[str, Pipeline],
    arrivals: Iterable[UnitArrival],
    *,
    service_s: ServiceTime,
    slots: int,
    classes: Mapping[str, WorkClass] = {},
    slot_changes: Iterable[SlotChange] = (),
    control_changes: Iterable[ControlChange] = (),
    closings: Iterable[GroupClosing] = (),
    faults: Faults = _NO_FAULTS,
    fate: Fate | None = None,
    seed: int = 0,
    sample_every_s: float = math.inf,
    until: float = math.inf,
    progress: Callable[[float], None] | None = None,
) -> Outcome:
    """Plays the load to its end: until nothing arrives, runs or falls due any more, or to the moment `until`.

    `slots` stages are served at a time; what more is in flight waits at the pilots, highest priority first. `seed` is
    that of the units' numbers u. What `fate` says about an attempt goes before `faults`. Group stages of groups that
    never close do not come into being. At the same moment units arrive before groups close, and both before slots and
    overrides change. `progress` is told the time now and then.

    Raises:
        RuntimeError: the dispatcher asked for a move that the states forbid; a defect.
    """
    night = _Night(pipelines, classes, service_s=service_s, slots=slots, faults=faults, fate=fate, seed=seed)
    incidents: tuple[tuple[Callable[[Any], None], Iterable[_Incident]], ...] = (
        (night.take, arrivals),
        (night.close, closings),
        (night.change_slots, slot_changes),
        (night.change_controls, control_changes),
    )
    agenda: _Agenda = [(one.at, kind, action, one) for kind, (action, found) in enumerate(incidents) for one in found]
    agenda.sort(key=lambda entry: entry[:2])
    return night.play(agenda, sample_every_s, until, progress)


_Incident = UnitArrival | GroupClosing | SlotChange | ControlChange
_Entry = tuple[float, int, Callable[[Any], None], Any]
_Agenda = list[_Entry]

ROUNDS_A_REPORT = 2000


class _Night:
    """The parts that are played: the clock, the pilots, and the ledger's compare-and-set."""

    def __init__(
        self,
        pipelines: Mapping[str, Pipeline],
        classes: Mapping[str, WorkClass],
        *,
        service_s: ServiceTime,
        slots: int,
        faults: Faults,
        fate: Fate | None,
        seed: int,
    ) -> None:
        self.pipelines, self.classes = pipelines, classes
        self.service_s, self.faults, self.fate, self.seed = service_s, faults, fate, seed
        self.values = {name: self.values_of(pipeline) for name, pipeline in pipelines.items()}
        self.has_faults = bool(faults.loss or faults.failure or faults.parts)
        self.dispatcher = Dispatcher(pipelines, classes)
        self.trail = Trail()
        self.runs = self.trail.runs
        self.samples: list[Sample] = []
        self.now = -math.inf
        self.pilots = Pilots()
        self.at_pilots: list[tuple[int, int, int]] = []
        self.ends: list[tuple[float, int, Service]] = []
        self.passes: defaultdict[DataId, dict[str, int]] = defaultdict(dict)
        self.arrived = self.passes_made = self.sub_jobs = self.started = self.queued = 0
        self.change_slots(SlotChange(at=self.now, slots=slots))

    def values_of(self, pipeline: Pipeline) -> dict[str, float]:
        of_class = self.classes.get(pipeline.work_class, WorkClass()).value
        return {name: stage.value * of_class for name, stage in pipeline.stages.items()}

    # --- the clock ------------------------------------------------------------------------------------------------

    def play(
        self, agenda: _Agenda, sample_every_s: float, until: float, progress: Callable[[float], None] | None
    ) -> Outcome:
        upcoming = iter(agenda)
        entry = next(upcoming, None)
        sample_at = entry[0] if entry and sample_every_s < math.inf else math.inf
        rounds = 0
        while (due_at := self.due_at(entry)) < math.inf and due_at <= until:
            while sample_at < due_at:
                self.samples.append(self.sample(sample_at))
                sample_at += sample_every_s
            if progress and (rounds := rounds + 1) % ROUNDS_A_REPORT == 0:
                progress(due_at)
            self.now = due_at
            entry = self.follow(entry, upcoming)
            while self.ends and self.ends[0][0] <= self.now:
                self.end(heapq.heappop(self.ends)[2])
            self.decide()
        return Outcome(ended_at=self.now, trail=self.trail, samples=tuple(self.samples))

    def due_at(self, entry: _Entry | None) -> float:
        while self.ends and not self.pilots.serves(self.ends[0][2]):
            heapq.heappop(self.ends)
        at = min(entry[0] if entry else math.inf, self.ends[0][0] if self.ends else math.inf, self.dispatcher.wake_at())
        return max(at, self.now)

    def follow(self, entry: _Entry | None, upcoming: Iterator[_Entry]) -> _Entry | None:
        """Does what the agenda has for now; returns its next entry."""
        while entry is not None and entry[0] <= self.now:
            entry[2](entry[3])
            entry = next(upcoming, None)
        return entry

    def decide(self) -> None:
        decided = self.dispatcher.decide(self.now)
        self.record(decided.transitions)
        for start in decided.starts:
            self.hand_out(start)
        self.serve()

    def sample(self, at: float) -> Sample:
        return Sample(
            at=at,
            arrived=self.arrived,
            queued=self.queued,
            busy=len(self.pilots.serving),
            slots=self.pilots.slots,
            thinning=tuple(self.dispatcher.thinning()),
        )

    # --- what comes from outside ------------------------------------------------------------------------------------

    def take(self, arrival: UnitArrival) -> None:
        self.arrived += 1
        passes = self.passes[arrival.group]
        if arrival.pipeline not in passes:
            self.passes_made += 1
            passes[arrival.pipeline] = self.passes_made
        admission = self.dispatcher.offer(
            arrival.pipeline,
            arrival.data_id,
            u=sample_number(arrival.data_id, self.seed),
            first_q=arrival.first_q,
            taken_at=arrival.taken_at,
            now=self.now,
        )
        self.let_in(admission, passes[arrival.pipeline], arrival.data_id, arrival.group, arrival.taken_at)

    def close(self, closing: GroupClosing) -> None:
        for pipeline, pass_id in self.passes.pop(closing.group, {}).items():
            admission = admit_group(pipeline, self.pipelines[pipeline])
            if admission is not None:
                self.let_in(admission, pass_id, closing.group, closing.group, self.now)

    def change_slots(self, change: SlotChange) -> None:
        for service in self.pilots.change(change.slots):
            run = self.runs[service.stage_run_id - 1]
            run.losses += 1
            self.settle(service, retry.after_loss(run.losses), service_s=None)
        self.dispatcher.set_slots(change.slots)

    def change_controls(self, change: ControlChange) -> None:
        self.record(self.dispatcher.control(change.controls, self.now))

    # --- the ledger -------------------------------------------------------------------------------------------------

    def let_in(self, admission: Admission, pass_id: int, data_id: DataId, group: DataId, taken_at: float) -> None:
        stages, values = self.pipelines[admission.pipeline].stages, self.values[admission.pipeline]
        facts = []
        for plan in admission.stages:
            deadline_s = stages[plan.stage].deadline_s
            run = PlayedRun(
                id=len(self.runs) + 1,
                data_id=data_id,
                pipeline=admission.pipeline,
                work_class=self.pipelines[admission.pipeline].work_class,
                stage=plan.stage,
                value=values[plan.stage],
                taken_at=taken_at,
                deadline=math.inf if deadline_s is None else taken_at + deadline_s,
                state=plan.state,
                since=self.now,
                q=plan.q,
            )
            self.runs.append(run)
            self.queued += plan.state is StageState.QUEUED
            self.trail.note(run, self.now, "")
            facts.append(StageFact(id=run.id, stage=plan.stage, state=plan.state, q=plan.q))
        self.sub_jobs += 1
        if all(fact.state.is_terminal for fact in facts):
            return
        fact = SubJobFact(
            id=self.sub_jobs,
            pass_id=pass_id,
            pipeline=admission.pipeline,
            data_id=data_id,
            group=group,
            per=admission.per,
            taken_at=taken_at,
            u=admission.u,
            stages=tuple(facts),
        )
        self.record(self.dispatcher.add(fact, self.now))

    def record(self, transitions: Iterable[Transition]) -> None:
        for change in transitions:
            run = self.runs[change.stage_run_id - 1]
            if change.q is not None:
                run.q = change.q
            if change.new is not change.old:
                self.move(run, change.old, change.new, change.reason)

    def move(self, run: PlayedRun, old: StageState, new: StageState, reason: str = "") -> None:
        if run.state is not old or not may_move(old, new):
            raise RuntimeError(f"stage run {run.id} is {run.state}: no move from {old} to {new}")
        self.queued += (new is StageState.QUEUED) - (old is StageState.QUEUED)
        run.state, run.since, run.reason = new, self.now, reason
        self.trail.note(run, self.now, reason)

    # --- the pilots -------------------------------------------------------------------------------------------------

    def hand_out(self, start: Start) -> None:
        self.move(self.runs[start.stage_run_id - 1], StageState.QUEUED, StageState.RUNNING)
        self.started += 1
        heapq.heappush(self.at_pilots, (-start.priority, self.started, start.stage_run_id))

    def serve(self) -> None:
        while self.at_pilots and self.pilots.has_free():
            _, number, stage_run_id = heapq.heappop(self.at_pilots)
            service = self.foresee(self.runs[stage_run_id - 1])
            self.pilots.begin(service)
            heapq.heappush(self.ends, (service.ends_at, number, service))

    def foresee(self, run: PlayedRun) -> Service:
        """How the service that begins now will end."""
        stage = self.pipelines[run.pipeline].stages[run.stage]
        whole_s = self.service_s(run.pipeline, run.stage, run.data_id)
        after, spent_s = self.draw_fate(run, stage, whole_s)
        ends_at = self.now + spent_s
        if stage.stop_at_deadline and run.deadline < ends_at:
            after, ends_at = retry.after_failure(stage, Failure.DEADLINE, run.failures), max(self.now, run.deadline)
        return Service(stage_run_id=run.id, began_at=self.now, ends_at=ends_at, after=after)

    def draw_fate(self, run: PlayedRun, stage: Stage, whole_s: float) -> tuple[retry.NextState, float]:
        run.attempts += 1
        if self.fate and (failure := self.fate(run.pipeline, run.stage, run.data_id, run.attempts)) is not None:
            run.failures += 1
            return retry.after_failure(stage, failure, run.failures), whole_s
        if not self.has_faults:
            return _DONE, whole_s
        drawn = sample_number(DataId.of(stage_run=run.id, attempt=run.attempts), self.faults.seed)
        if drawn < self.faults.loss:
            run.losses += 1
            return retry.after_loss(run.losses), whole_s / 2
        if drawn < self.faults.loss + self.faults.failure_of(run.data_id, self.now):
            run.failures += 1
            return retry.after_failure(stage, Failure.PAYLOAD, run.failures), whole_s
        return _DONE, whole_s

    def end(self, service: Service) -> None:
        if self.pilots.serves(service):
            self.pilots.end(service)
            self.settle(service, service.after, service_s=self.now - service.began_at)

    def settle(self, service: Service, after: retry.NextState, *, service_s: float | None) -> None:
        """What follows when a service has ended, as foreseen or with its pilot."""
        state = after.state
        reason = "stopped at its deadline" if state is StageState.EXPIRED else ""
        self.trail.note_service(service.stage_run_id, service.began_at, self.now, state)
        self.move(self.runs[service.stage_run_id - 1], StageState.RUNNING, state, reason)
        changes = self.dispatcher.settle(
            service.stage_run_id,
            state,
            now=self.now,
            not_before=self.now + after.delay_s if after.delay_s else 0.0,
            service_s=service_s,
        )
        self.record(changes)


_DONE = retry.NextState(state=StageState.DONE)
