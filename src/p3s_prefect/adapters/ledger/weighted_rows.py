"""Summary values of many units as one value of all: of a group, and of the stretch of time that a trend covers."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from sqlalchemy import Connection, Row, Select, func, select

from p3s_prefect.adapters.ledger.sampled import IS_BY_HAND, SAMPLED_STATE, counts, probabilities
from p3s_prefect.adapters.ledger.schema import (
    attempt,
    data_group,
    job,
    production_pass,
    stage_run,
    sub_job,
    summary_value,
)
from p3s_prefect.core.states import StageState
from p3s_prefect.core.weighted_values import Outcomes, Scalar, WeightedValue, weighted_value

_Stage = tuple[str, str]


def group_values(connection: Connection, data_id: str) -> tuple[WeightedValue, ...]:
    """Every summary value of a group's units that is a number, in the order of pipelines, stages and names."""
    runs = _runs_that_count(connection, data_id)
    chances = {stage: probabilities(units) for stage, units in runs.items()}
    outcomes = {
        stage: Outcomes.of((run.state, chances[stage][unit]) for unit, run in units.items())
        for stage, units in runs.items()
    }
    weights = {
        run.id: 1 / chances[stage][unit]
        for stage, units in runs.items()
        for unit, run in units.items()
        if run.state == StageState.DONE
    }
    given: dict[tuple[_Stage, str, str], list[tuple[Scalar, float]]] = defaultdict(list)
    for row in connection.execute(_summaries(data_id)):
        if row.stage_run_id in weights:
            given[(row.pipeline, row.stage), row.name, row.unit].append((row.value, weights[row.stage_run_id]))
    order = {stage: place for place, stage in enumerate(runs)}
    found = (
        weighted_value(*stage, name, unit, values, outcomes[stage])
        for (stage, name, unit), values in sorted(given.items(), key=lambda item: (order[item[0][0]], item[0][1:]))
    )
    return tuple(value for value in found if value is not None)


def not_done_since(connection: Connection, pipeline: str, stage: str, sub_job_id: int, taken_at: float) -> Outcomes:
    """What became of the units of a stage that are not done, from a sub-job and a time of data on."""
    rows = connection.execute(
        select(SAMPLED_STATE, func.count().label("units"), func.sum(1 / stage_run.c.q).label("weight"))
        .join(sub_job, sub_job.c.id == stage_run.c.sub_job_id)
        .join(production_pass, production_pass.c.id == sub_job.c.pass_id)
        .join(job, job.c.id == production_pass.c.job_id)
        .where(
            sub_job.c.id >= sub_job_id,
            sub_job.c.taken_at >= taken_at,
            sub_job.c.per == "unit",
            job.c.pipeline == pipeline,
            stage_run.c.stage == stage,
            SAMPLED_STATE.element != StageState.DONE,
            counts(),
        )
        .group_by(SAMPLED_STATE.element)
    ).all()
    return Outcomes(
        units={row.state: row.units for row in rows}, weights={row.state: float(row.weight) for row in rows}
    )


def _runs_that_count(connection: Connection, data_id: str) -> dict[_Stage, dict[str, Row[Any]]]:
    """Of each stage per unit, in the order of pipelines and stages: the stage run that counts, by unit."""
    also = (stage_run.c.id, stage_run.c.stage, stage_run.c.q, sub_job.c.data_id, job.c.pipeline)
    rows = connection.execute(
        select(SAMPLED_STATE, IS_BY_HAND, *also)
        .join(sub_job, sub_job.c.id == stage_run.c.sub_job_id)
        .join(production_pass, production_pass.c.id == sub_job.c.pass_id)
        .join(job, job.c.id == production_pass.c.job_id)
        .join(data_group, data_group.c.id == job.c.group_id)
        .where(data_group.c.data_id == data_id, sub_job.c.per == "unit", counts())
        .order_by(job.c.pipeline, stage_run.c.position, production_pass.c.number, sub_job.c.id)
    )
    found: dict[_Stage, dict[str, Row[Any]]] = defaultdict(dict)
    for row in rows:
        found[row.pipeline, row.stage][row.data_id] = row
    return found


def _summaries(data_id: str) -> Select[Any]:
    return (
        select(
            attempt.c.stage_run_id,
            summary_value.c.name,
            summary_value.c.value,
            summary_value.c.unit,
            stage_run.c.stage,
            job.c.pipeline,
        )
        .join(attempt, attempt.c.id == summary_value.c.attempt_id)
        .join(stage_run, stage_run.c.id == attempt.c.stage_run_id)
        .join(sub_job, sub_job.c.id == stage_run.c.sub_job_id)
        .join(production_pass, production_pass.c.id == sub_job.c.pass_id)
        .join(job, job.c.id == production_pass.c.job_id)
        .join(data_group, data_group.c.id == job.c.group_id)
        .where(data_group.c.data_id == data_id, sub_job.c.per == "unit")
    )
