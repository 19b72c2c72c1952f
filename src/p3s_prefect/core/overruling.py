"""What the overrides in force make of a stage run's declared priority, and whether it may start."""

from __future__ import annotations

import math

from p3s_prefect.core.open_work import Run
from p3s_prefect.core.overrides import Controls, Override, Work
from p3s_prefect.core.plan import Plan


class Overruling:
    """The controls, asked about stage runs; false, and not asked, where nothing is in force."""

    def __init__(self) -> None:
        self.controls = Controls()

    def __bool__(self) -> bool:
        return bool(self.controls)

    def priority(self, run: Run) -> int:
        """Its priority: as it was set, else as it is declared."""
        if self.controls and (found := self.controls.priority(_work(run))) is not None:
            return found.value or 0
        return run.stage.priority

    def is_stopped(self, run: Run) -> bool:
        """Whether it may not start, by a pause or a drain."""
        return bool(self.controls) and self.controls.stopped(_work(run), begun=run.sub_job.started) is not None

    def held(self, run: Run) -> Override | None:
        """The hold that puts it aside."""
        return self.controls.held(_work(run))

    def limit(self, plan: Plan) -> float:
        """How many stages of a pipeline may run at once."""
        found = self.controls.limit(work_class=plan.class_name, pipeline=plan.name)
        return _or_infinite(plan.limit if found is None else found.value)

    def class_limit(self, plan: Plan) -> float:
        """How many stages of a pipeline's class may run at once."""
        found = self.controls.limit(work_class=plan.class_name)
        return _or_infinite(plan.work_class.limit if found is None else found.value)


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
