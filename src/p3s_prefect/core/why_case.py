"""A stage run of a sub-job as the question why looks at it."""

from __future__ import annotations

from dataclasses import dataclass

from p3s_prefect.core import dag
from p3s_prefect.core.experiment import Experiment, Pipeline, Stage
from p3s_prefect.core.overrides import Work
from p3s_prefect.core.views import StageRow, UnitRow
from p3s_prefect.core.why_facts import Case, SubJobCase
from p3s_prefect.core.why_rules import stage_rule


@dataclass(frozen=True, kw_only=True)
class StageCase:
    """The stage run, with all that is known about what it belongs to."""

    experiment: Experiment
    case: Case
    found: SubJobCase
    run: StageRow

    @property
    def unit(self) -> UnitRow:
        """The sub-job with its stages."""
        return self.found.unit

    @property
    def pipeline(self) -> Pipeline | None:
        """None if the experiment file does not have it any more."""
        return self.experiment.pipelines.get(self.unit.pipeline)

    @property
    def counts_from(self) -> float:
        """From when on its deadlines count."""
        return self.unit.taken_at if self.unit.asked_at is None else self.unit.asked_at

    @property
    def stage(self) -> Stage | None:
        """Its declaration; None if the experiment file does not have it any more."""
        return None if self.pipeline is None else self.pipeline.stages.get(self.run.stage)

    @property
    def work_class(self) -> str:
        """The class of its pipeline."""
        return "default" if self.pipeline is None else self.pipeline.work_class

    @property
    def work(self) -> Work:
        """As overrides look at it."""
        return self.case.work(self.unit, self.run.stage, self.work_class)

    def of(self, key: str) -> str:
        """The rule of a key of its stage."""
        return stage_rule(self.experiment, self.unit.pipeline, self.run.stage, key)

    @property
    def siblings(self) -> dict[str, StageRow]:
        """The stage runs of its sub-job, by stage."""
        return {stage.stage: stage for stage in self.unit.stages}

    @property
    def ancestors(self) -> frozenset[str]:
        """The stages that it needs, directly or not."""
        if self.pipeline is None or self.stage is None:
            return frozenset()
        return dag.ancestors(self.pipeline, self.run.stage)
