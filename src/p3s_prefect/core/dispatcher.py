"""Who runs next: a pure state machine over ledger facts, free slots and the time that it is told.

The station feeds it (`add`, `settle`, `set_slots`), asks (`decide`), and writes what it answers to the ledger before
anything is started. The simulator does the same in virtual time. It holds open sub-jobs only, so its size follows the
backlog and not the history.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from p3s_prefect.core import dag
from p3s_prefect.core.experiment import Order, Pipeline, Stage
from p3s_prefect.core.records import SubJobFact, Transition
from p3s_prefect.core.states import StageState

# In flight per slot: with 2 slots, 3 in flight gave 159 stages/s where 2 gave 128, as a pilot finds its next stage
# without a round trip; more than that would bind work to pilots before a slot is free (P11).
IN_FLIGHT_PER_SLOT = 1.5


@dataclass(frozen=True, kw_only=True)
class Start:
    """Hand this stage run to a pilot."""

    stage_run_id: int
    priority: int
    """Higher goes first, also among what the pilots have not begun."""


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """What is to be done now: `transitions` are only to be recorded, `starts` to be recorded and handed out."""

    starts: tuple[Start, ...]
    transitions: tuple[Transition, ...]


@dataclass(frozen=True, kw_only=True)
class Backlog:
    """What waits for a slot."""

    queued: int
    oldest_taken_at: float | None
    """When the oldest data among them were taken; None if nothing waits."""


class Dispatcher:
    """Decides for each stage run: start, wait or expire; and what follows for its descendants."""

    def __init__(self, pipelines: Mapping[str, Pipeline]) -> None:
        self._plans = {name: _Plan.of(pipeline) for name, pipeline in pipelines.items()}
        self._runs: dict[int, _Run] = {}
        self._ready: dict[str, list[tuple[_Rank, _Run]]] = {name: [] for name in pipelines}
        self._later: list[tuple[float, int]] = []
        self._deadlines: list[tuple[float, int]] = []
        self._passes: defaultdict[int, _Pass] = defaultdict(_Pass)
        self._running: Counter[str] = Counter()
        self._fastest_s: dict[tuple[str, str], float] = {}
        self.capacity = 0

    @property
    def in_flight(self) -> int:
        """Stage runs that are with the pilots."""
        return self._running.total()

    @property
    def open(self) -> int:
        """Stage runs that it holds because their sub-job is open."""
        return len(self._runs)

    def backlog(self) -> Backlog:
        """What waits for a slot; walks over all that is open."""
        taken = [run.sub_job.fact.taken_at for run in self._runs.values() if run.state is StageState.QUEUED]
        return Backlog(queued=len(taken), oldest_taken_at=min(taken, default=None))

    def set_slots(self, slots: int) -> None:
        """Tell how many pilot slots there are."""
        self.capacity = math.ceil(IN_FLIGHT_PER_SLOT * slots)

    def add(self, fact: SubJobFact) -> list[Transition]:
        """Take an open sub-job, new or found at the start, in whatever states its stage runs are.

        A sub-job of a group may be added once no further unit of its pass can come; at the start, units go before
        groups.
        """
        plan = self._plans[fact.pipeline]
        # A group's stages are the last of what its units have begun.
        started = fact.per == "group" or any(stage.state in _BEGUN for stage in fact.stages)
        sub_job = _SubJob(fact=fact, plan=plan, started=started)
        for stage in fact.stages:
            deadline = plan.deadline(stage.stage, fact.taken_at)
            run = _Run(id=stage.id, stage=stage.stage, sub_job=sub_job, state=stage.state, deadline=deadline)
            sub_job.runs[stage.stage] = run
        self._runs |= {run.id: run for run in sub_job.runs.values()}
        for pass_id in sub_job.passes:
            self._passes[pass_id].add(sub_job)
        for run in sub_job.runs.values():
            self._enter(run, run.state)
        changes: list[Transition] = []
        self._follow(sub_job, changes)
        return changes

    def returned(self, stage_run_id: int) -> None:
        """A pilot has given a stage run back; its slot is free, though what came of it is not in the ledger yet."""
        self._leave_pilot(self._runs[stage_run_id])

    def settle(
        self, stage_run_id: int, state: StageState, *, not_before: float = 0.0, service_s: float | None = None
    ) -> list[Transition]:
        """A stage run went to `state`, and the ledger knows: returns what follows for others.

        A stage run that goes back to the queue is not started before `not_before`. `service_s` is how long it took.
        """
        run = self._runs[stage_run_id]
        key = run.sub_job.pipeline, run.stage
        if service_s is not None:
            self._fastest_s[key] = min(service_s, self._fastest_s.get(key, math.inf))
        run.not_before = not_before
        self._enter(run, state)
        changes: list[Transition] = []
        self._follow(run.sub_job, changes)
        return changes

    def decide(self, now: float) -> Decisions:
        """What to start and what to give up, now."""
        changes: list[Transition] = []
        starts: list[Start] = []
        self._wake(now)
        while (run := self._next(now, changes)) is not None:
            late_s = now + self._fastest_s.get((run.sub_job.pipeline, run.stage), 0.0) - run.deadline
            if late_s > 0:
                self._expire(run, f"even the fastest so far would end {late_s:.1f} s after its deadline", changes)
                continue
            self._enter(run, StageState.RUNNING)
            starts.append(Start(stage_run_id=run.id, priority=run.priority))
        return Decisions(starts=tuple(starts), transitions=tuple(changes))

    def wake_at(self) -> float:
        """The next moment at which `decide` may answer otherwise though nothing happened; infinite if there is none."""
        return min(self._first_of(self._later), self._first_of(self._deadlines))

    # --- inside -------------------------------------------------------------------------------------------------

    def _enter(self, run: _Run, state: StageState) -> None:
        self._leave_pilot(run)
        self._passes[run.sub_job.fact.pass_id].moved(run, state)
        run.state = state
        run.rank = None
        if state is StageState.RUNNING:
            run.in_flight = True
            self._running[run.sub_job.pipeline] += 1
            run.sub_job.started = True
        elif state is StageState.QUEUED:
            self._queue(run)

    def _leave_pilot(self, run: _Run) -> None:
        if run.in_flight:
            run.in_flight = False
            self._running[run.sub_job.pipeline] -= 1

    def _queue(self, run: _Run) -> None:
        if run.deadline < math.inf:
            self._push(self._deadlines, (run.deadline, run.id), lambda entry: self._is_queued(entry[1]))
        if run.not_before > 0:
            self._push(self._later, (run.not_before, run.id), lambda entry: self._is_queued(entry[1]))
        else:
            self._make_ready(run)

    def _make_ready(self, run: _Run) -> None:
        run.rank = run.make_rank()
        self._push(self._ready[run.sub_job.pipeline], (run.rank, run), _is_ready)

    def _push(self, heap: list[_Entry], entry: _Entry, is_live: Callable[[_Entry], bool]) -> None:
        # What was settled otherwise leaves its entry behind; without this the heaps would grow with the history.
        if len(heap) > 64 + 2 * len(self._runs):
            heap[:] = filter(is_live, heap)
            heapq.heapify(heap)
        heapq.heappush(heap, entry)

    def _first_of(self, heap: list[tuple[float, int]]) -> float:
        while heap and not self._is_queued(heap[0][1]):
            heapq.heappop(heap)
        return heap[0][0] if heap else math.inf

    def _is_queued(self, stage_run_id: int) -> bool:
        run = self._runs.get(stage_run_id)
        return run is not None and run.state is StageState.QUEUED

    def _wake(self, now: float) -> None:
        while self._first_of(self._later) <= now:
            run = self._runs[heapq.heappop(self._later)[1]]
            if run.not_before <= now:
                self._make_ready(run)

    def _expire_overdue(self, now: float, changes: list[Transition]) -> None:
        while self._first_of(self._deadlines) <= now:
            _, stage_run_id = heapq.heappop(self._deadlines)
            self._expire(self._runs[stage_run_id], "its deadline passed while it waited", changes)

    def _next(self, now: float, changes: list[Transition]) -> _Run | None:
        """The stage run to start next, taken from its queue, if a slot is free; first expires what is overdue."""
        self._expire_overdue(now, changes)
        if self.in_flight >= self.capacity:
            return None
        heads = [head for name in self._ready if (head := self._head(name)) is not None]
        if not heads:
            return None
        best = min(heads, key=self._turn)[1]
        heapq.heappop(self._ready[best.sub_job.pipeline])
        return best

    def _turn(self, head: tuple[_Rank, _Run]) -> tuple[int, bool, int, _Rank]:
        # Freshest and oldest first cannot be compared with each other: between pipelines of the same priority, the
        # one with fewer stage runs in flight goes first, so that none starves another.
        rank, run = head
        return rank[0], rank[1], self._running[run.sub_job.pipeline], rank

    def _head(self, pipeline: str) -> tuple[_Rank, _Run] | None:
        """The first of a pipeline's queue, unless the pipeline is at its limit."""
        limit = self._plans[pipeline].pipeline.limit
        if limit is not None and self._running[pipeline] >= limit:
            return None
        heap = self._ready[pipeline]
        while heap and not _is_ready(heap[0]):
            heapq.heappop(heap)
        return heap[0] if heap else None

    def _expire(self, run: _Run, reason: str, changes: list[Transition]) -> None:
        self._change(run, StageState.EXPIRED, reason, changes)
        self._follow(run.sub_job, changes)

    def _change(self, run: _Run, state: StageState, reason: str, changes: list[Transition]) -> None:
        changes.append(Transition(stage_run_id=run.id, old=run.state, new=state, reason=reason))
        self._enter(run, state)

    def _follow(self, sub_job: _SubJob, changes: list[Transition]) -> None:
        """Moves on whatever waits for this sub-job: its own later stages, and its group's when a unit has settled."""
        for name in sub_job.plan.order:
            run = sub_job.runs.get(name)
            if run is not None and run.state is StageState.WAITING:
                self._advance(run, changes)
        if sub_job.fact.per == "unit":
            for group in list(self._passes[sub_job.fact.pass_id].groups.values()):
                self._follow(group, changes)
        if sub_job.settled:
            self._forget(sub_job)

    def _advance(self, run: _Run, changes: list[Transition]) -> None:
        parents = run.sub_job.plan.stages[run.stage].after
        own = [run.sub_job.runs[parent] for parent in parents if parent in run.sub_job.runs]
        dead = next(
            (parent for parent in own if parent.state.is_terminal and parent.state is not StageState.DONE), None
        )
        if dead is not None:
            cause = dead.cause or f"{dead.stage} is {dead.state}"
            run.cause = cause
            self._change(run, StageState.BLOCKED, cause, changes)
        elif all(parent.state is StageState.DONE for parent in own) and self._units_settled(run):
            self._change(run, StageState.QUEUED, "", changes)

    def _units_settled(self, run: _Run) -> bool:
        # Ancestors, not parents alone: a parent that is blocked may have another ancestor that still runs, and what
        # is gathered must not depend on which of the two ends first.
        if run.sub_job.fact.per == "unit":
            return True
        before = run.sub_job.plan.ancestors[run.stage]
        return not any(self._passes[pass_id].open[stage] for pass_id in run.sub_job.passes for stage in before)

    def _forget(self, sub_job: _SubJob) -> None:
        for run in sub_job.runs.values():
            self._runs.pop(run.id, None)
        for pass_id in sub_job.passes:
            siblings = self._passes[pass_id]
            siblings.remove(sub_job)
            if siblings.empty:
                del self._passes[pass_id]


_Rank = tuple[int, bool, float, int]
_Entry = TypeVar("_Entry", bound=tuple[Any, Any])
_BEGUN = frozenset({StageState.RUNNING, StageState.DONE, StageState.FAILED})


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What of a pipeline the dispatcher looks up again and again."""

    pipeline: Pipeline
    order: tuple[str, ...]
    ancestors: Mapping[str, frozenset[str]]

    @classmethod
    def of(cls, pipeline: Pipeline) -> _Plan:
        order = dag.topological_order(pipeline)
        return cls(pipeline=pipeline, order=order, ancestors={name: dag.ancestors(pipeline, name) for name in order})

    @property
    def stages(self) -> Mapping[str, Stage]:
        return self.pipeline.stages

    def deadline(self, stage: str, taken_at: float) -> float:
        deadline_s = self.pipeline.stages[stage].deadline_s
        return math.inf if deadline_s is None else taken_at + deadline_s


@dataclass(slots=True, kw_only=True, eq=False)
class _SubJob:
    fact: SubJobFact
    plan: _Plan
    runs: dict[str, _Run] = field(default_factory=dict)
    started: bool = False

    @property
    def passes(self) -> tuple[int, ...]:
        """Its own, and for a group's those whose units it gathers too."""
        return (self.fact.pass_id, *self.fact.earlier_passes)

    @property
    def pipeline(self) -> str:
        return self.fact.pipeline

    @property
    def settled(self) -> bool:
        return all(run.state.is_terminal for run in self.runs.values())


@dataclass(slots=True, kw_only=True, eq=False)
class _Run:
    id: int
    stage: str
    sub_job: _SubJob
    state: StageState
    deadline: float
    not_before: float = 0.0
    cause: str = ""
    in_flight: bool = False
    rank: _Rank | None = None
    """While it is ready to start, the rank in its entry of the queue; an entry with another one is stale."""

    @property
    def priority(self) -> int:
        own = self.sub_job.plan.stages[self.stage].priority
        return self.sub_job.plan.pipeline.priority if own is None else own

    def make_rank(self) -> _Rank:
        """Smallest goes first: priority, then units already started, then the pipeline's order."""
        taken_at = self.sub_job.fact.taken_at
        freshest = self.sub_job.plan.pipeline.order is Order.FRESHEST_FIRST
        return (-self.priority, not self.sub_job.started, -taken_at if freshest else taken_at, self.id)


def _is_ready(entry: tuple[_Rank, _Run]) -> bool:
    return entry[0] is entry[1].rank


@dataclass(slots=True)
class _Pass:
    """What of a pass is open: a group's stage waits until none of the units has a stage before it open."""

    units: set[int] = field(default_factory=set)
    groups: dict[int, _SubJob] = field(default_factory=dict)
    open: Counter[str] = field(default_factory=Counter)
    """Number of its units of which this stage is not settled, by stage."""

    @property
    def empty(self) -> bool:
        return not self.units and not self.groups

    def add(self, sub_job: _SubJob) -> None:
        if sub_job.fact.per == "group":
            self.groups[sub_job.fact.id] = sub_job
            return
        self.units.add(sub_job.fact.id)
        self.open.update(run.stage for run in sub_job.runs.values() if not run.state.is_terminal)

    def moved(self, run: _Run, state: StageState) -> None:
        if run.sub_job.fact.per == "unit":
            self.open[run.stage] += run.state.is_terminal - state.is_terminal

    def remove(self, sub_job: _SubJob) -> None:
        self.units.discard(sub_job.fact.id)
        self.groups.pop(sub_job.fact.id, None)
