"""Letting a unit in: which pipelines take it, and in which state each of their stages begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from p3s_prefect.core import dag
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.experiment import Pipeline, Stream, WorkClass
from p3s_prefect.core.plan import Plan
from p3s_prefect.core.states import StageState


@dataclass(frozen=True, kw_only=True, slots=True)
class StagePlan:
    """A stage run as it begins."""

    stage: str
    position: int
    state: StageState
    q: float
    """Probability of reaching this stage: the smallest of the prescales and admission probabilities on the way."""


@dataclass(frozen=True, kw_only=True, slots=True)
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
    """A unit's sub-job where nothing is in overload. `u` is its number (see `selection`).

    `first_q` is the share that its stream lets through. All prescales are known now, so each stage that the choice
    leaves out begins, and ends, as prescaled.
    """
    return admit(Plan.of(name, pipeline, _NO_CLASSES), u=u, first_q=first_q, kept={})


def admit_by_hand(name: str, pipeline: Pipeline) -> Admission:
    """The sub-job of a unit that somebody asks for: nothing of it is left out, and it stands for itself alone."""
    # 0 is below every prescale.
    admission = admit_unit(name, pipeline, u=0.0, first_q=1.0)
    return replace(admission, stages=tuple(replace(stage, q=1.0) for stage in admission.stages))


def admit(plan: Plan, *, u: float, first_q: float, kept: Mapping[int, float]) -> Admission:
    """A unit's sub-job, where overload lets only the share `kept` through at some stages, by their positions.

    What the prescale leaves out is prescaled, whatever overload would do. What is left out in overload begins as
    all others do, with its q: it is on standby, as u is not below it.
    """
    reached: dict[int, float] = {}
    stages = []
    for stage in plan.stages:
        if stage.per == "group":
            continue
        prescale = min(first_q, stage.prescale)
        q = min([prescale, kept.get(stage.position, 1.0), *(reached[parent] for parent in stage.parents)])
        reached[stage.position] = q
        taken = StageState.WAITING if stage.parents else StageState.QUEUED
        state = taken if u < prescale else StageState.PRESCALED
        stages.append(StagePlan(stage=stage.name, position=stage.position, state=state, q=q))
    return Admission(pipeline=plan.name, per="unit", u=u, stages=tuple(stages))


def admit_group(name: str, pipeline: Pipeline) -> Admission | None:
    """The sub-job of a closed group, for the stages that run once for it; None if the pipeline has no such stage."""
    stages = tuple(
        StagePlan(stage=stage, position=position, state=StageState.WAITING, q=1.0)
        for position, stage in enumerate(dag.topological_order(pipeline))
        if pipeline.stages[stage].per == "group"
    )
    return Admission(pipeline=name, per="group", u=0.0, stages=stages) if stages else None


def left_out(state: StageState, u: float, q: float) -> str:
    """Why chance has left a stage out; empty if it has not."""
    if u < q:
        return ""
    why = "" if state is StageState.PRESCALED else "in overload: "
    return f"{why}u = {u:.4f} is not below q = {q:g}"


_NO_CLASSES: Mapping[str, WorkClass] = {}
