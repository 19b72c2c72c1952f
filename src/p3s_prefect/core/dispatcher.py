"""Who runs next: a pure state machine over ledger facts, free slots and the time that it is told.

The station feeds it (`offer`, `add`, `settle`, `set_slots`, `control`), asks (`decide`), and writes what it answers to
the ledger before anything is started. The simulator does the same in virtual time. It holds open sub-jobs only, so its
size follows the backlog and not the history. How much is let in, in overload, is the `controller`'s decision; what is
left out stands by for a slot that would idle, or go to a lower priority, and is shed when it would hardly end in time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from p3s_prefect.core.admission import Admission, admit, left_out
from p3s_prefect.core.at_pilots import is_short
from p3s_prefect.core.controller import Controller
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.experiment import Pipeline, WorkClass
from p3s_prefect.core.open_runs import OpenRuns
from p3s_prefect.core.open_work import Run, SubJob
from p3s_prefect.core.overrides import Controls
from p3s_prefect.core.overruling import Overruling
from p3s_prefect.core.plan import Plan
from p3s_prefect.core.queues import Queues
from p3s_prefect.core.records import SubJobFact, Thinning, Transition
from p3s_prefect.core.states import StageState
from p3s_prefect.core.thinning import thin_again


@dataclass(frozen=True, kw_only=True, slots=True)
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
    """When the oldest data among them were taken, without those on standby, as they wait for what is left."""


class Dispatcher:
    """Decides for each stage run: start, wait, shed or expire; and what follows for its descendants."""

    def __init__(self, pipelines: Mapping[str, Pipeline], classes: Mapping[str, WorkClass] = {}) -> None:
        self._plans: dict[str, Plan] = {}
        self._overruling = Overruling()
        self._controller = Controller(self._overruling)
        self._queues = Queues(self._overruling, self._controller)
        self._opened = OpenRuns(self._overruling, self._controller, self._queues)
        self._offered: dict[tuple[str, DataId], Admission] = {}
        self._news = False
        """Whether something happened since the last decision by which more than before may have been let in."""
        self._at_pilots = self._opened.at_pilots
        self.define(pipelines, classes)

    @property
    def in_flight(self) -> int:
        """Stage runs that are with the pilots."""
        return self._at_pilots.in_flight

    @property
    def capacity(self) -> int:
        """How many may be with the pilots now."""
        return self._at_pilots.capacity

    @property
    def open(self) -> int:
        """Stage runs that it holds because their sub-job is open."""
        return len(self._opened.by_id)

    def define(self, pipelines: Mapping[str, Pipeline], classes: Mapping[str, WorkClass]) -> None:
        """Takes new definitions for what comes from now on; what is open keeps those with which it began.

        Limits, and the order of a queue, are those of the newest definition. One that is not named any more is kept
        for what is open of it.
        """
        self._plans |= {name: Plan.of(name, pipeline, classes) for name, pipeline in pipelines.items()}
        self._queues.define(self._plans)
        self._controller.define(self._plans, self._queues.overrule())
        self._news = True

    def backlog(self) -> Backlog:
        """What waits for a slot; walks over all that is open."""
        queued = [run for run in self._opened.by_id.values() if run.state is StageState.QUEUED]
        taken = (run.sub_job.taken_at for run in queued if not run.is_standby)
        return Backlog(queued=len(queued), oldest_taken_at=min(taken, default=None))

    def freshest_first(self, now: float) -> dict[str, float]:
        """The pipelines whose freshest units go first now, as declared or in overload.

        What has a deadline before the moment given goes before them, as it would be late; minus infinity for nothing.
        """
        return self._queues.freshest_first(now)

    def owed_until(self, now: float) -> dict[str, tuple[float, int]]:
        """The stages, as ``pipeline/stage``, of which some that floors let in go before everything else now.

        In the order of their data: up to the one that was taken at the given moment, with the given number of its run.
        """
        return self._queues.owed_until(now)

    def thinning(self) -> list[Thinning]:
        """How each stage stands: what arrives, how long it takes and waits, and which share is let in."""
        return self._controller.thinning()

    def set_slots(self, slots: int) -> None:
        """Tell how many pilot slots there are."""
        self._at_pilots.slots = slots
        self._controller.set_slots(slots)
        self._news = True

    def offer(
        self, pipeline: str, data_id: DataId, *, u: float, first_q: float, taken_at: float, now: float
    ) -> Admission:
        """How a unit begins, at the admission probability of this moment.

        What it lets in counts as work that waits until it is added, or withdrawn. `u` is the unit's number, `first_q`
        the share that its stream lets through.
        """
        plan = self._plans[pipeline]
        self.withdraw(pipeline, data_id)
        # What the stream leaves out asks for nothing: those that it lets through stand for it.
        kept = self._controller.admit(plan, data_id, first_q=first_q, taken_at=taken_at, now=now) if u < first_q else {}
        admission = admit(plan, u=u, first_q=first_q, kept=kept)
        if any(not stage.state.is_terminal for stage in admission.stages):
            self._offered[pipeline, data_id] = admission
            self._controller.count_offer(pipeline, admission, 1)
            self._news = True
        return admission

    def withdraw(self, pipeline: str, data_id: DataId) -> None:
        """What was offered is not added: the ledger says that it is not new."""
        admission = self._offered.pop((pipeline, data_id), None)
        if admission is not None:
            self._controller.count_offer(pipeline, admission, -1)

    def add(self, fact: SubJobFact, now: float) -> list[Transition]:
        """Take an open sub-job, new or found at the start, in whatever states its stage runs are.

        A sub-job of a group may be added once no further unit of its pass can come; at the start, units go before
        groups. What was let in before keeps its probability: nothing is decided twice.
        """
        self._opened.now = now
        if self._offered:
            self.withdraw(fact.pipeline, fact.data_id)
        sub_job = self._opened.open(fact, self._plans[fact.pipeline])
        changes: list[Transition] = []
        self._put_aside(sub_job, changes)
        self._follow(sub_job, now, changes)
        return changes

    def returned(self, stage_run_id: int) -> None:
        """A pilot has given a stage run back; its slot is free, though what came of it is not in the ledger yet."""
        self._opened.leave_pilot(self._opened.by_id[stage_run_id])

    def waits(self, stage_run_id: int, service_s: float) -> None:
        """What a pilot has given back waits for the store: it is open, and no slot is busy with it.

        `service_s` is how long one was.
        """
        run = self._opened.by_id[stage_run_id]
        self._opened.leave_pilot(run)
        self._controller.measured(run.sub_job.flow, run.stage, service_s, is_done=True)
        self._news = True

    def settle(
        self,
        stage_run_id: int,
        state: StageState,
        *,
        now: float,
        not_before: float = 0.0,
        service_s: float | None = None,
    ) -> list[Transition]:
        """A stage run went to `state`, and the ledger knows: returns what follows for others.

        A stage run that goes back to the queue is not started before `not_before`. `service_s` is how long its slot
        was busy with it, however it ended; None if nobody knows.
        """
        self._opened.now = now
        run = self._opened.by_id[stage_run_id]
        if service_s is not None:
            self._controller.measured(run.sub_job.flow, run.stage, service_s, is_done=state is StageState.DONE)
        run.not_before = not_before
        self._news = True
        self._opened.enter(run, state)
        changes: list[Transition] = []
        self._put_aside(run.sub_job, changes)
        self._follow(run.sub_job, now, changes)
        return changes

    def control(self, controls: Controls, now: float) -> list[Transition]:
        """These overrides are in force from now on: sorts the queues anew, puts aside what is held, and the reverse.

        Nothing that is with a pilot is touched.
        """
        self._overruling.controls = controls
        self._controller.define(self._plans, self._queues.overrule())
        self._queues.clear()
        self._news = True
        changes: list[Transition] = []
        for run in list(self._opened.by_id.values()):
            if run.state is StageState.HELD and self._overruling.held(run) is None:
                self._release(run, changes)
            elif run.state in _OPEN_TO_CONTROL:
                self._hold_or_sort(run, changes)
        changed = [self._opened.by_id[change.stage_run_id].sub_job for change in changes]
        for sub_job in {sub_job.id: sub_job for sub_job in changed}.values():
            self._follow(sub_job, now, changes)
        return changes

    def holds(self, fact: SubJobFact) -> bool:
        """Whether it has this sub-job, as something of it is open."""
        return any(stage.id in self._opened.by_id for stage in fact.stages)

    def take_back(self, changes: Sequence[Transition], now: float) -> list[Transition]:
        """Stage runs of sub-jobs that it holds go on by these changes (see `retry`).

        They are asked for by hand, so none of their sub-job stands by, and deadlines of all of it count from now on.
        Returns what follows for others.
        """
        changed: list[Transition] = []
        runs = [self._opened.by_id[change.stage_run_id] for change in changes]
        sub_jobs = {run.sub_job.id: run.sub_job for run in runs}
        for sub_job in sub_jobs.values():
            self._opened.ask(sub_job, now)
        for change in changes:
            run = self._opened.by_id[change.stage_run_id]
            run.cause, run.not_before = "", 0.0
            self._opened.enter(run, change.new)
        self._news = True
        for sub_job in sub_jobs.values():
            self._put_aside(sub_job, changed)
            self._follow(sub_job, now, changed)
        return changed

    def ask(self, fact: SubJobFact, now: float) -> bool:
        """Somebody asks for a sub-job that stands by: it does so no more, with deadlines from now on.

        False if it is not held any more, as it was shed or has ended meanwhile.
        """
        if not self.holds(fact):
            return False
        self._opened.ask(self._opened.by_id[fact.stages[0].id].sub_job, now)
        self._news = True
        return True

    def cancel(self, stage_run_ids: Iterable[int], reason: str, now: float) -> list[Transition]:
        """Gives these up as far as they are open and not with a pilot; returns that, and what follows for others."""
        changes: list[Transition] = []
        runs = [run for number in stage_run_ids if (run := self._opened.by_id.get(number)) is not None]
        for run in runs:
            if run.state in _OPEN_TO_CANCEL:
                self._opened.change(run, StageState.CANCELLED, reason, changes)
        for sub_job in {run.sub_job.id: run.sub_job for run in runs}.values():
            self._follow(sub_job, now, changes)
        return changes

    def decide(self, now: float) -> Decisions:
        """What to start and what to give up, now."""
        changes: list[Transition] = []
        starts: list[Start] = []
        self._opened.now = now
        self._queues.wake(now)
        for run in self._queues.hopeless(now):
            self._shed(run, now, changes)
        for run in self._queues.overdue(now):
            self._expire(run, "its deadline passed while it waited", now, changes)
        if self._news:
            self._news = False
            changes += thin_again(self._opened, self._queues, self._controller, now)
            if self._controller.is_turned:
                self._queues.sort_by_load()
        at_pilots = self._at_pilots
        while at_pilots.in_flight < at_pilots.capacity:
            is_idle = at_pilots.in_flight < at_pilots.slots
            found = self._queues.next(now, idle=is_idle)
            if found is None:
                break
            run, priority = found
            if not is_idle and not is_short(run):
                break
            if run.is_standby and now > self._controller.last_begin(run):
                self._shed(run, now, changes)
                continue
            late_s = now + run.load.times.fastest_s - run.deadline
            if late_s > 0:
                self._expire(run, f"even the fastest so far would end {late_s:.1f} s after its deadline", now, changes)
                continue
            self._opened.start(run, priority)
            starts.append(Start(stage_run_id=run.id, priority=priority))
        return Decisions(starts=tuple(starts), transitions=tuple(changes))

    def wake_at(self) -> float:
        """The next moment at which `decide` may answer otherwise though nothing happened; infinite if there is none."""
        return self._queues.wake_at()

    # --- what follows ---------------------------------------------------------------------------------------------

    def _shed(self, run: Run, now: float, changes: list[Transition]) -> None:
        run.cause = left_out(StageState.SHED, run.sub_job.u, run.q)
        self._opened.change(run, StageState.SHED, run.cause, changes)
        self._follow(run.sub_job, now, changes)

    def _expire(self, run: Run, reason: str, now: float, changes: list[Transition]) -> None:
        self._opened.change(run, StageState.EXPIRED, reason, changes)
        self._follow(run.sub_job, now, changes)

    def _follow(self, sub_job: SubJob, now: float, changes: list[Transition]) -> None:
        """Moves on whatever waits for this sub-job: its own later stages, and its group's when a unit has settled."""
        for run in sub_job:
            if run.state is StageState.WAITING:
                self._advance(run, now, changes)
        if sub_job.is_unit and sub_job.own_pass.groups:
            for group in list(sub_job.own_pass.groups.values()):
                self._follow(group, now, changes)
        if sub_job.settled:
            self._opened.forget(sub_job)

    def _advance(self, run: Run, now: float, changes: list[Transition]) -> None:
        """Where a parent did not finish, what comes after it does not either."""
        own = run.parents
        dead = next((one for one in own if one.state.is_terminal and one.state is not StageState.DONE), None)
        if dead is not None:
            run.cause = dead.cause or f"{dead.stage.name} is {dead.state}"
            state = StageState.SHED if dead.state is StageState.SHED else StageState.BLOCKED
            self._opened.change(run, state, run.cause, changes)
        elif all(parent.state is StageState.DONE for parent in own) and self._units_settled(run):
            self._become_ready(run, own, now, changes)

    def _become_ready(self, run: Run, own: list[Run], now: float, changes: list[Transition]) -> None:
        """Its parents are done: it is queued, on standby where the admission probability of this moment says so."""
        q = min([run.q, *(parent.q for parent in own)])
        # Who was left out before asks for nothing here: those that were let in stand for it, by their weights.
        if 0 < run.sub_job.u < q:
            q = self._controller.thin(run, q, now)
        self._opened.change(run, StageState.QUEUED, left_out(StageState.QUEUED, run.sub_job.u, q), changes, q)
        if run.is_left_out:
            self._opened.leave_out_after(run, changes)

    def _units_settled(self, run: Run) -> bool:
        # Ancestors, not parents alone: a parent that is blocked may have another ancestor that still runs, and what
        # is gathered must not depend on which of the two ends first.
        if run.sub_job.is_unit:
            return True
        stages = run.sub_job.flow.plan.stages
        before = [stages[position].name for position in run.stage.ancestors]
        return not any(one.open[name] for one in run.sub_job.passes for name in before)

    # --- overrides ------------------------------------------------------------------------------------------------

    def _put_aside(self, sub_job: SubJob, changes: list[Transition]) -> None:
        for run in sub_job:
            if run.state in _OPEN_TO_CONTROL and (found := self._overruling.held(run)) is not None:
                self._opened.change(run, StageState.HELD, found.reason, changes)

    def _hold_or_sort(self, run: Run, changes: list[Transition]) -> None:
        if (found := self._overruling.held(run)) is not None:
            self._opened.change(run, StageState.HELD, found.reason, changes)
        elif run.state is StageState.QUEUED and run.not_before == 0:
            self._queues.make_ready(run)

    def _release(self, run: Run, changes: list[Transition]) -> None:
        ready = all(parent.state is StageState.DONE for parent in run.parents) and self._units_settled(run)
        why = left_out(StageState.QUEUED, run.sub_job.u, run.q) if ready and run.is_standby else ""
        self._opened.change(run, StageState.QUEUED if ready else StageState.WAITING, why, changes)


_BEGUN = frozenset({StageState.RUNNING, StageState.DONE, StageState.FAILED})
_OPEN_TO_CONTROL = frozenset({StageState.WAITING, StageState.QUEUED})
_OPEN_TO_CANCEL = _OPEN_TO_CONTROL | {StageState.HELD}
