"""The statements of the hot path, made once: every unit runs each of them, and building one costs as much."""

from __future__ import annotations

from sqlalchemy import String, bindparam, func, select, union, update

from p3s_prefect.adapters.ledger.schema import (
    arrival,
    attempt,
    data_group,
    job,
    production_pass,
    stage_run,
    sub_job,
)
from p3s_prefect.core.records import Verdict

START = (
    select(
        stage_run.c.stage,
        sub_job.c.data_id,
        sub_job.c.per,
        func.coalesce(sub_job.c.asked_at, sub_job.c.taken_at).label("taken_at"),
        sub_job.c.arrival_id,
        job.c.pipeline,
        production_pass.c.job_id,
        production_pass.c.number.label("pass_number"),
        production_pass.c.run_collection,
        select(func.coalesce(func.max(attempt.c.number), -1) + 1)
        .where(attempt.c.stage_run_id == stage_run.c.id)
        .scalar_subquery()
        .label("number"),
    )
    .join(sub_job, sub_job.c.id == stage_run.c.sub_job_id)
    .join(production_pass, production_pass.c.id == sub_job.c.pass_id)
    .join(job, job.c.id == production_pass.c.job_id)
    .where(stage_run.c.id == bindparam("stage_run_id"))
)
MOVE = (
    update(stage_run)
    .where(stage_run.c.id == bindparam("id_"), stage_run.c.state == bindparam("old"))
    .values(
        state=bindparam("new"),
        reason=bindparam("reason_"),
        settled_at=bindparam("settled"),
        queued_at=func.coalesce(bindparam("queued"), stage_run.c.queued_at),
        failures=stage_run.c.failures + bindparam("failed"),
        losses=stage_run.c.losses + bindparam("lost"),
        q=func.coalesce(bindparam("q_"), stage_run.c.q),
    )
    .returning(
        stage_run.c.sub_job_id,
        stage_run.c.stage,
        select(sub_job.c.data_id).where(sub_job.c.id == stage_run.c.sub_job_id).scalar_subquery().label("data_id"),
    )
)
THIN = (
    update(stage_run)
    .where(stage_run.c.id == bindparam("id_"), stage_run.c.state == bindparam("old"))
    .values(q=bindparam("q_"), reason=func.coalesce(bindparam("reason_", type_=String), stage_run.c.reason))
)
ATTEMPT = select(attempt.c.state, attempt.c.stage_run_id, attempt.c.execution).where(
    attempt.c.id == bindparam("attempt_id")
)
STAGES = (
    select(stage_run.c.state).where(stage_run.c.sub_job_id == bindparam("sub_job_id")).order_by(stage_run.c.position)
)
SETTLE = (
    update(sub_job)
    .where(sub_job.c.id == bindparam("sub_job_id"))
    .values(state=bindparam("state_"), settled_at=bindparam("settled"))
)
NOTE_CHECKSUM = (
    update(arrival)
    .where(
        arrival.c.data_id == bindparam("unit"),
        arrival.c.dataset_type == bindparam("type_"),
        arrival.c.verdict == "taken",
        arrival.c.sha256.is_(None),
    )
    .values(sha256=bindparam("read"))
)
END_WELL = (
    update(attempt)
    .where(attempt.c.id == bindparam("attempt_id"))
    .values(
        state="done",
        reason="",
        execution=bindparam("execution"),
        pilot=bindparam("pilot"),
        started_at=bindparam("started_at"),
        ended_at=bindparam("ended_at"),
        published_at=bindparam("published_at"),
        steps=bindparam("steps"),
        coverage=bindparam("coverage"),
        log_key=bindparam("log_key"),
    )
)
# Two searches by index: as one with OR, in the order of arrival, the database would rather walk through all of them.
_OF_UNIT = select(arrival).where(arrival.c.verdict.in_([Verdict.TAKEN.value, Verdict.IGNORED.value]))
_RIVALS = union(
    _OF_UNIT.where(arrival.c.stream == bindparam("stream_"), arrival.c.key == bindparam("key_")),
    _OF_UNIT.where(arrival.c.data_id == bindparam("unit"), arrival.c.dataset_type == bindparam("type_")),
).subquery()
RIVAL = select(_RIVALS).order_by(_RIVALS.c.id)
JOIN_GROUP = (
    update(data_group)
    .where(data_group.c.data_id == bindparam("group"))
    .values(last_arrival_at=bindparam("now"), arrivals=data_group.c.arrivals + 1, is_open=True)
    .returning(data_group)
)
JOB = select(job.c.id).where(job.c.group_id == bindparam("group"), job.c.pipeline == bindparam("pipeline_"))
NEWEST_PASS = (
    select(production_pass)
    .where(production_pass.c.job_id == bindparam("job"))
    .order_by(production_pass.c.number.desc())
    .limit(1)
)
ADD_STAGES = stage_run.insert().returning(stage_run.c.id, sort_by_parameter_order=True)
