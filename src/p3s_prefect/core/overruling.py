"""What the overrides in force make of a stage run's declared priority, and whether it may start."""

from __future__ import annotations

import math
from collections.abc import Iterable

from p3s_prefect.core.open_work import Run
from p3s_prefect.core.overrides import Controls, Override, OverrideKind, Work
from p3s_prefect.core.plan import Plan, PlannedStage

_STOPPING_STARTS = frozenset({OverrideKind.PAUSE, OverrideKind.DRAIN})


class Overruling:
    """The controls, asked about stage runs; false, and not asked, where nothing is in force."""

    def __init__(self) -> None:
        self._controls = Controls()
        self._priorities: dict[PlannedStage, int] = {}
        """Those of stages as such, as far as they were asked for."""

    def __bool__(self) -> bool:
        return bool(self._controls)

    @property
    def controls(self) -> Controls:
        """What is in force."""
        return self._controls

    @controls.setter
    def controls(self, controls: Controls) -> None:
        self._controls = controls
        self._priorities = {}

    def priority(self, run: Run) -> int:
        """Its priority: as it was set, else as it is declared."""
        if OverrideKind.PRIORITY not in self._controls.kinds:
            return run.stage.priority
        if self._controls.priorities_of_data:
            return self._priority(_work(run), run.stage)
        return self._of_stage(run)

    def standby_priority(self, run: Run) -> int:
        """That of a run on standby: how much is let in is reckoned by those of stages, so that it goes by its stage's.

        Where a group or a unit has one of its own, it goes behind that, too: what is let in of data that are put back,
        or beside data that are put forward, must not wait for what was left out.
        """
        if OverrideKind.PRIORITY not in self._controls.kinds:
            return run.stage.priority
        return min([self._of_stage(run), *self._controls.priorities_of_data])

    def stage_priority(self, plan: Plan, stage: PlannedStage) -> int:
        """That of a stage as such: what is set for a group or a unit alone is not in it."""
        return self._priority(_stage_work(plan, stage), stage)

    def top_priority(self, plans: Iterable[Plan]) -> int:
        """The highest that anything has."""
        declared = [self.stage_priority(plan, stage) for plan in plans for stage in plan.stages]
        given = [one.value or 0 for one in self.controls.overrides if one.kind is OverrideKind.PRIORITY]
        return max(declared + given, default=0)

    def is_stopped(self, run: Run) -> bool:
        """Whether it may not start, by a pause or a drain."""
        if _STOPPING_STARTS.isdisjoint(self._controls.kinds):
            return False
        return self.controls.stopped(_work(run), begun=run.sub_job.started) is not None

    def is_stage_stopped(self, plan: Plan, stage: PlannedStage) -> bool:
        """Whether nothing of a stage starts: by a pause, a hold or a limit of 0, or as a drain begins no new unit."""
        work = _stage_work(plan, stage)
        is_stopped = self.controls.stopped(work, begun=bool(stage.parents)) or self.controls.held(work)
        return is_stopped is not None or 0 in (self.limit(plan), self.class_limit(plan))

    def held(self, run: Run) -> Override | None:
        """The hold that puts it aside."""
        return self.controls.held(_work(run)) if OverrideKind.HOLD in self._controls.kinds else None

    def limit(self, plan: Plan) -> float:
        """How many stages of a pipeline may run at once."""
        found = self.controls.limit(work_class=plan.class_name, pipeline=plan.name)
        return _or_infinite(plan.limit if found is None else found.value)

    def class_limit(self, plan: Plan) -> float:
        """How many stages of a pipeline's class may run at once."""
        found = self.controls.limit(work_class=plan.class_name)
        return _or_infinite(plan.work_class.limit if found is None else found.value)

    def _of_stage(self, run: Run) -> int:
        found = self._priorities.get(run.stage)
        if found is None:
            found = self._priorities[run.stage] = self.stage_priority(run.sub_job.flow.plan, run.stage)
        return found

    def _priority(self, work: Work, stage: PlannedStage) -> int:
        found = self.controls.priority(work)
        return stage.priority if found is None else found.value or 0


def _stage_work(plan: Plan, stage: PlannedStage) -> Work:
    return Work(work_class=plan.class_name, pipeline=plan.name, stage=stage.name, group=None, unit=None)


def _work(run: Run) -> Work:
    sub_job = run.sub_job
    return Work(
        work_class=sub_job.flow.plan.class_name,
        pipeline=sub_job.flow.plan.name,
        stage=run.stage.name,
        group=sub_job.own_pass.group,
        unit=sub_job.data_id if sub_job.is_unit else None,
    )


def _or_infinite(value: int | None) -> float:
    return math.inf if value is None else value
