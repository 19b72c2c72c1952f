"""All that is open, and its moves between states: each keeps pass, queue, load and slot in step."""

from __future__ import annotations

from p3s_prefect.core.at_pilots import AtPilots
from p3s_prefect.core.controller import Controller
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.open_work import Pass, Run, SubJob
from p3s_prefect.core.overruling import Overruling
from p3s_prefect.core.plan import Plan
from p3s_prefect.core.queues import Queues
from p3s_prefect.core.records import SubJobFact, Transition
from p3s_prefect.core.states import StageState

_BEGUN = frozenset({StageState.RUNNING, StageState.DONE, StageState.FAILED})


class OpenRuns:
    """The stage runs of open sub-jobs."""

    def __init__(self, overruling: Overruling, controller: Controller, queues: Queues) -> None:
        self._overruling = overruling
        self._controller = controller
        self._queues = queues
        self.by_id: dict[int, Run] = {}
        self.passes: dict[int, Pass] = {}
        self.at_pilots = AtPilots()
        self.now = 0.0
        """The time that was told last."""

    # --- in and out -------------------------------------------------------------------------------------------------

    def open(self, fact: SubJobFact, plan: Plan) -> SubJob:
        """Takes a sub-job, in whatever states its stage runs are."""
        sub_job = self._made(fact, plan)
        for one in sub_job.passes:
            one.add(sub_job)
        for run in sub_job:
            self.by_id[run.id] = run
            self.count(run, run.state, 1)
            if run.state is StageState.QUEUED:
                self._queues.add(run)
            elif run.state is StageState.RUNNING:
                self.take_slot(run, self._overruling.priority(run))
        return sub_job

    def forget(self, sub_job: SubJob) -> None:
        """Nothing of a sub-job is open any more."""
        if not sub_job.runs:
            return
        for run in sub_job:
            del self.by_id[run.id]
        # A sub-job and its runs name each other: else both would be there until the garbage collector has seen all.
        sub_job.runs = ()
        for one in sub_job.passes:
            one.remove(sub_job)
            if one.is_empty:
                self.passes.pop(one.id, None)

    def ask(self, sub_job: SubJob, now: float) -> None:
        """Its deadlines count from now on; what of it stood by is queued, and counts, as what was let in."""
        for run in sub_job:
            self.count(run, run.state, -1)
        sub_job.is_asked, sub_job.taken_at = True, now
        for run in sub_job:
            run.deadline, run.due, run.is_claimed = now + run.stage.deadline_s, None, False
            self.count(run, run.state, 1)
            if run.state is StageState.QUEUED:
                self._queues.add(run)

    # --- moves ------------------------------------------------------------------------------------------------------

    def enter(self, run: Run, state: StageState) -> None:
        """A run goes to `state`."""
        self.leave_pilot(run)
        run.sub_job.own_pass.moved(run, state)
        self.count(run, run.state, -1)
        self.count(run, state, 1)
        run.state = state
        run.entry = run.due = None
        if state is StageState.QUEUED:
            self._queues.add(run)

    def change(self, run: Run, state: StageState, reason: str, changes: list[Transition], q: float = 1.0) -> None:
        """The same, to be recorded in `changes`.

        Its q becomes `q` if that is smaller, and is never above those of the stages on the way to it.
        """
        q = min(q, run.q)
        if run.stage.ancestors:
            q = min([q, *(before.q for before in run.sub_job if before.stage.position in run.stage.ancestors)])
        told = q if q < run.q else None
        self.set_q(run, q)
        changes.append(Transition(stage_run_id=run.id, old=run.state, new=state, reason=reason, q=told))
        self.enter(run, state)

    def start(self, run: Run, priority: int) -> None:
        """A run is handed to a pilot."""
        self.enter(run, StageState.RUNNING)
        self.take_slot(run, priority)

    def take_slot(self, run: Run, priority: int) -> None:
        """A run is with a pilot, with the given priority there."""
        line = self._queues.line(run)
        self.at_pilots.take(run, priority, self.now)
        if priority > self._queues.top_priority:
            run.load.first_at_pilots.add(run.id)
        self._controller.in_flight = self.at_pilots.in_flight
        line.running += 1
        line.of_class.running += 1
        if not run.sub_job.started:
            run.sub_job.started = True
            if self._overruling:
                self._queues.sort_again(run.sub_job)

    def leave_pilot(self, run: Run) -> None:
        """A run is with no pilot any more, if it was."""
        if run.in_flight:
            line = self._queues.line(run)
            self.at_pilots.give_back(run, self.now)
            self._controller.in_flight = self.at_pilots.in_flight
            line.running -= 1
            line.of_class.running -= 1

    # --- load -------------------------------------------------------------------------------------------------------

    def set_q(self, run: Run, q: float) -> None:
        """The probability of having got to a run is `q`, by which it may be left out."""
        if q == run.q:
            return
        self.count(run, run.state, -1)
        run.q = q
        self.count(run, run.state, 1)

    @staticmethod
    def count(run: Run, state: StageState, by: int) -> None:
        """Counts a run as work that waits in `state`."""
        if state is StageState.QUEUED:
            if not run.is_left_out or run.sub_job.is_asked:
                run.load.queued += by
            elif run.is_standby:
                run.load.standby += by
        elif state is StageState.WAITING and (not run.is_left_out or run.sub_job.is_asked):
            run.load.waiting += by

    def leave_out_after(self, run: Run, changes: list[Transition]) -> None:
        """With a stage that is left out, all that comes after it is."""
        for after in run.sub_job:
            if run.stage.position in after.stage.ancestors and after.q > run.q:
                self.set_q(after, run.q)
                changes.append(Transition(stage_run_id=after.id, old=after.state, new=after.state, q=run.q))

    # --- inside -----------------------------------------------------------------------------------------------------

    def _made(self, fact: SubJobFact, plan: Plan) -> SubJob:
        flow = self._controller.flow(plan)
        # A group's stages are the last of what its units have begun.
        started = fact.per == "group" or any(stage.state in _BEGUN for stage in fact.stages)
        own_pass, *earlier = (self._pass(number, fact.group) for number in (fact.pass_id, *fact.earlier_passes))
        sub_job = SubJob(
            id=fact.id,
            flow=flow,
            data_id=fact.data_id,
            taken_at=fact.taken_at,
            u=fact.u,
            is_unit=fact.per == "unit",
            own_pass=own_pass,
            earlier_passes=tuple(earlier),
            started=started,
            is_asked=fact.is_asked,
        )
        runs: list[Run | None] = [None] * len(plan.stages)
        for stage in fact.stages:
            planned = plan.stages[plan.positions[stage.stage]]
            deadline = fact.taken_at + planned.deadline_s
            runs[planned.position] = Run(
                id=stage.id,
                stage=planned,
                load=flow.loads[planned.position],
                sub_job=sub_job,
                state=stage.state,
                q=stage.q,
                deadline=deadline,
            )
        sub_job.runs = tuple(runs)
        sub_job.is_owed = sub_job.is_unit and sub_job.u < plan.floor(fact.data_id)
        return sub_job

    def _pass(self, number: int, group: DataId) -> Pass:
        found = self.passes.get(number)
        if found is None:
            found = self.passes[number] = Pass(number, group)
        return found
