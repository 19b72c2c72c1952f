"""Letting a unit in: which pipelines take it, and in which state each of their stages begins."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from p3s_prefect.core import dag
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.experiment import Pipeline, Stream
from p3s_prefect.core.states import StageState


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """A stage run as it begins."""

    stage: str
    position: int
    state: StageState
    q: float
    """Probability of reaching this stage: the smallest prescale on the way."""


@dataclass(frozen=True, kw_only=True)
class Admission:
    """A sub-job as it begins."""

    pipeline: str
    per: Literal["unit", "group"]
    u: float
    stages: tuple[StagePlan, ...]


def choose_pipelines(stream: Stream, data_id: DataId) -> list[str]:
    """The pipelines of the first rule that matches; none if none does."""
    values = dict(data_id.items)
    for rule in stream.rules:
        if all(values.get(dimension) == value for dimension, value in rule.when.items()):
            return rule.pipelines
    return []


def admit_unit(name: str, pipeline: Pipeline, *, u: float, first_q: float) -> Admission:
    """A unit's sub-job. `u` is its number (see `selection`), `first_q` the share that its stream lets through.

    All prescales are known now, so each stage that the choice leaves out begins, and ends, as prescaled.
    """
    stages = []
    for position, stage in enumerate(dag.topological_order(pipeline)):
        if pipeline.stages[stage].per == "unit":
            q = dag.reach(pipeline, stage, first_q)
            state = _first_state(pipeline, stage) if u < q else StageState.PRESCALED
            stages.append(StagePlan(stage=stage, position=position, state=state, q=q))
    return Admission(pipeline=name, per="unit", u=u, stages=tuple(stages))


def admit_group(name: str, pipeline: Pipeline) -> Admission | None:
    """The sub-job of a closed group, for the stages that run once for it; None if the pipeline has no such stage."""
    stages = tuple(
        StagePlan(stage=stage, position=position, state=StageState.WAITING, q=1.0)
        for position, stage in enumerate(dag.topological_order(pipeline))
        if pipeline.stages[stage].per == "group"
    )
    return Admission(pipeline=name, per="group", u=0.0, stages=stages) if stages else None


def _first_state(pipeline: Pipeline, stage: str) -> StageState:
    return StageState.WAITING if pipeline.stages[stage].after else StageState.QUEUED
