"""The production dispatcher in virtual time: hours of a night in a second, and the same every time.

`simulate` lets units in, hands stage runs to pilots, ends them after the service times that it is given, closes
groups, and writes down what happened. Prescale, dispatcher, retry and states are those of the station; only the clock,
the pilots and the ledger are played. Times are seconds on the clock of the arrivals.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from p3s_prefect.core import retry
from p3s_prefect.core.admission import Admission, admit_group, admit_unit
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.dispatcher import Dispatcher, Start
from p3s_prefect.core.experiment import Pipeline, Stage
from p3s_prefect.core.records import Failure, StageFact, SubJobFact, Transition
from p3s_prefect.core.selection import sample_number
from p3s_prefect.core.states import StageState, may_move

ServiceTime = Callable[[str, str, DataId], float]
"""How long a pilot takes [s] for a pipeline's stage on a unit or group: ``(pipeline, stage, data_id) -> s``."""


@dataclass(frozen=True, kw_only=True)
class UnitArrival:
    """A unit that arrives for a pipeline."""

    at: float
    taken_at: float
    pipeline: str
    group: DataId
    data_id: DataId


@dataclass(frozen=True, kw_only=True)
class GroupClosing:
    """A group that closes. What arrives for it later belongs to a new pass, which a later closing closes."""

    at: float
    group: DataId


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What goes wrong, as a pure function of `seed`, stage run and attempt: `loss` + `failure` is at most 1."""

    loss: float = 0.0
    """Probability that a stage takes its pilot down with it, half-way. A new pilot is there at once."""
    failure: float = 0.0
    """Probability that a stage's payload fails, at its end."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class StageEvent:
    """A stage run entered `state` at the time `at`; one that is let in begins in the state `old` = `state`."""

    at: float
    stage_run_id: int
    data_id: DataId
    pipeline: str
    stage: str
    old: StageState
    state: StageState
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Service:
    """A pilot's slot was taken by a stage run from `began_at` to `ended_at`; `state` is what became of it."""

    stage_run_id: int
    began_at: float
    ended_at: float
    state: StageState


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What happened, in order."""

    ended_at: float
    events: tuple[StageEvent, ...]
    services: tuple[Service, ...]

    def account(self) -> dict[tuple[str, str], Counter[StageState]]:
        """Number of stage runs by the state in which each ended, for each pipeline and stage (P7)."""
        last = {event.stage_run_id: event for event in self.events}
        found: defaultdict[tuple[str, str], Counter[StageState]] = defaultdict(Counter)
        for event in last.values():
            found[event.pipeline, event.stage][event.state] += 1
        return dict(found)

    def times(self, stage: str, state: StageState) -> dict[DataId, float]:
        """When each data id's run of `stage` last entered `state`."""
        return {event.data_id: event.at for event in self.events if (event.stage, event.state) == (stage, state)}


def simulate(
    pipelines: Mapping[str, Pipeline],
    arrivals: Iterable[UnitArrival],
    *,
    service_s: ServiceTime,
    slots: int,
    closings: Iterable[GroupClosing] = (),
    faults: Faults = Faults(),
    seed: int = 0,
) -> Outcome:
    """Plays the load to its end: until nothing arrives, runs or falls due any more.

    `slots` stages are served at a time; what more is in flight waits at the pilots, highest priority first. `seed` is
    that of the prescale's choice. Group stages of groups that never close do not come into being.

    Raises:
        RuntimeError: the dispatcher asked for a move that the states forbid; a defect.
    """
    night = _Night(pipelines=pipelines, service_s=service_s, slots=slots, faults=faults, seed=seed)
    for arrival in arrivals:
        night.plan(arrival.at, partial(night.take, arrival))
    for closing in closings:
        night.plan(closing.at, partial(night.close, closing.group))
    return night.play()


class _Night:
    """The parts that are played: the clock with its agenda, the pilots, and the ledger's compare-and-set."""

    def __init__(
        self, *, pipelines: Mapping[str, Pipeline], service_s: ServiceTime, slots: int, faults: Faults, seed: int
    ) -> None:
        self.pipelines, self.service_s, self.slots, self.faults, self.seed = pipelines, service_s, slots, faults, seed
        self.dispatcher = Dispatcher(pipelines)
        self.dispatcher.set_slots(slots)
        self.now = -math.inf
        self.agenda: list[tuple[float, int, Callable[[], None]]] = []
        self.runs: dict[int, _Played] = {}
        self.at_pilots: list[tuple[int, int, int]] = []
        self.busy = 0
        self.passes: defaultdict[DataId, dict[str, int]] = defaultdict(dict)
        self.counts: Counter[str] = Counter()
        self.events: list[StageEvent] = []
        self.services: list[Service] = []

    def number(self, what: str) -> int:
        self.counts[what] += 1
        return self.counts[what]

    def plan(self, at: float, action: Callable[[], None]) -> None:
        heapq.heappush(self.agenda, (at, self.number("agenda"), action))

    def play(self) -> Outcome:
        while (due_at := min(self.agenda[0][0] if self.agenda else math.inf, self.dispatcher.wake_at())) < math.inf:
            self.now = due_at
            while self.agenda and self.agenda[0][0] <= self.now:
                heapq.heappop(self.agenda)[2]()
            decided = self.dispatcher.decide(self.now)
            self.record(decided.transitions)
            for start in decided.starts:
                self.hand_out(start)
            self.serve()
        return Outcome(ended_at=self.now, events=tuple(self.events), services=tuple(self.services))

    def take(self, arrival: UnitArrival) -> None:
        u = sample_number(arrival.data_id, self.seed)
        admission = admit_unit(arrival.pipeline, self.pipelines[arrival.pipeline], u=u, first_q=1.0)
        passes = self.passes[arrival.group]
        if arrival.pipeline not in passes:
            passes[arrival.pipeline] = self.number("pass")
        self.let_in(admission, passes[arrival.pipeline], arrival.data_id, arrival.taken_at)

    def close(self, group: DataId) -> None:
        for pipeline, pass_id in self.passes.pop(group, {}).items():
            admission = admit_group(pipeline, self.pipelines[pipeline])
            if admission is not None:
                self.let_in(admission, pass_id, group, self.now)

    def let_in(self, admission: Admission, pass_id: int, data_id: DataId, taken_at: float) -> None:
        stages = tuple(
            StageFact(id=self.number("stage run"), stage=plan.stage, state=plan.state) for plan in admission.stages
        )
        fact = SubJobFact(
            id=self.number("sub-job"),
            pass_id=pass_id,
            pipeline=admission.pipeline,
            data_id=data_id,
            per=admission.per,
            taken_at=taken_at,
            stages=stages,
        )
        for stage in stages:
            self.runs[stage.id] = _Played(fact=fact, stage=stage.stage, state=stage.state)
            self.note(stage.id, stage.state, "")
        self.record(self.dispatcher.add(fact))

    def record(self, transitions: Iterable[Transition]) -> None:
        for change in transitions:
            self.move(change.stage_run_id, change.old, change.new, change.reason)

    def move(self, stage_run_id: int, old: StageState, new: StageState, reason: str = "") -> None:
        if self.runs[stage_run_id].state is not old or not may_move(old, new):
            raise RuntimeError(f"stage run {stage_run_id}: no move from {old} to {new}")
        self.note(stage_run_id, new, reason)

    def note(self, stage_run_id: int, state: StageState, reason: str) -> None:
        run = self.runs[stage_run_id]
        event = StageEvent(
            at=self.now,
            stage_run_id=stage_run_id,
            data_id=run.fact.data_id,
            pipeline=run.fact.pipeline,
            stage=run.stage,
            old=run.state,
            state=state,
            reason=reason,
        )
        run.state = state
        self.events.append(event)

    def hand_out(self, start: Start) -> None:
        self.move(start.stage_run_id, StageState.QUEUED, StageState.RUNNING)
        heapq.heappush(self.at_pilots, (-start.priority, self.number("start"), start.stage_run_id))

    def serve(self) -> None:
        while self.busy < self.slots and self.at_pilots:
            _, _, stage_run_id = heapq.heappop(self.at_pilots)
            self.busy += 1
            service, after = self.foresee(stage_run_id)
            self.plan(service.ended_at, partial(self.end, service, after))

    def foresee(self, stage_run_id: int) -> tuple[Service, retry.NextState]:
        """How the service that begins now will end."""
        run = self.runs[stage_run_id]
        stage = self.stage(run)
        whole_s = self.service_s(run.fact.pipeline, run.stage, run.fact.data_id)
        after, spent_s = self.fate(stage_run_id, whole_s)
        ended_at = self.now + spent_s
        if stage.stop_at_deadline and stage.deadline_s is not None:
            stops_at = max(self.now, run.fact.taken_at + stage.deadline_s)
            if stops_at < ended_at:
                after, ended_at = retry.after_failure(stage, Failure.DEADLINE, run.failures), stops_at
        service = Service(stage_run_id=stage_run_id, began_at=self.now, ended_at=ended_at, state=after.state)
        return service, after

    def fate(self, stage_run_id: int, whole_s: float) -> tuple[retry.NextState, float]:
        run = self.runs[stage_run_id]
        run.attempts += 1
        drawn = sample_number(DataId.of(stage_run=stage_run_id, attempt=run.attempts), self.faults.seed)
        if drawn < self.faults.loss:
            run.losses += 1
            return retry.after_loss(run.losses), whole_s / 2
        if drawn < self.faults.loss + self.faults.failure:
            run.failures += 1
            return retry.after_failure(self.stage(run), Failure.PAYLOAD, run.failures), whole_s
        return retry.NextState(state=StageState.DONE), whole_s

    def end(self, service: Service, after: retry.NextState) -> None:
        self.busy -= 1
        self.services.append(service)
        self.move(service.stage_run_id, StageState.RUNNING, after.state)
        changes = self.dispatcher.settle(
            service.stage_run_id,
            after.state,
            not_before=self.now + after.delay_s if after.delay_s else 0.0,
            service_s=service.ended_at - service.began_at if after.state is StageState.DONE else None,
        )
        self.record(changes)

    def stage(self, run: _Played) -> Stage:
        return self.pipelines[run.fact.pipeline].stages[run.stage]


@dataclass(kw_only=True)
class _Played:
    fact: SubJobFact
    stage: str
    state: StageState
    attempts: int = 0
    failures: int = 0
    losses: int = 0
