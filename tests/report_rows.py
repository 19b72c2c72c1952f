"""A ledger with everything that a report may meet: passes, parts, thinning, losses, retries, clocks that disagree."""

from __future__ import annotations

import random

from ledger_rows import T0, Rows
from sqlalchemy import select

from p3s_prefect.adapters.ledger import schema

DEADLINES = {"quick": 12.0, "deep": 30.0, "totals": 60.0}
CONTENT = {
    "pipeline": {
        "stages": {
            "quick": {"per": "unit", "deadline_s": DEADLINES["quick"]},
            "deep": {"per": "unit", "deadline_s": DEADLINES["deep"]},
            "plots": {"per": "unit", "deadline_s": None},
            "totals": {"per": "group", "deadline_s": DEADLINES["totals"]},
        }
    }
}
STAGES = ("quick", "deep", "plots")


def write(rows: Rows, *, units: int = 120, seed: int = 5) -> None:
    """Two runs of `units` units each on six parts, in two pipelines; some go on in a second pass."""
    chance = random.Random(seed)
    rows.connection.execute(schema.configuration.insert().values(id="c" * 64, content=CONTENT, stored_at=T0))
    for run in (1, 2):
        group = rows.group(f"run={run}", at=T0 + 10_000 * run)
        for pipeline in ("alerts", "dqm"):
            first = rows.production_pass(group, pipeline)
            second = second_pass(rows, first)
            for subrun in range(units):
                data_id = f"run={run} part={subrun % 6}{'a' if run == 2 else ''} subrun={subrun}"
                at = T0 + 10_000 * run + 3.0 * subrun
                again = chance.random() < 0.1
                _unit(rows, chance, first, data_id, at, cancelled=again)
                if again:
                    _unit(rows, chance, second, data_id, at, late_s=100.0)
            whole = rows.unit(first, f"run={run}", per="group", at=T0 + 10_000 * run + 9000)
            rows.attempt(
                rows.stage(whole, "totals", at=T0 + 10_000 * run + 9000), at=T0 + 10_000 * run + 9000, steps={"add": 70}
            )


def second_pass(rows: Rows, first: int) -> int:
    """The next pass of the same job."""
    job_id = rows.connection.scalar(select(schema.production_pass.c.job_id).where(schema.production_pass.c.id == first))
    name = f"second/{first}"
    rows.connection.execute(schema.run_collection.insert().values(name=name, configuration_id="c" * 64, opened_at=T0))
    return rows.add(schema.production_pass, job_id=job_id, number=1, run_collection=name, is_open=True, opened_at=T0)


def _unit(
    rows: Rows,
    chance: random.Random,
    pass_id: int,
    data_id: str,
    at: float,
    *,
    cancelled: bool = False,
    late_s: float = 0.0,
) -> None:
    arrived_at = at + late_s + chance.uniform(-0.2, 2.0)
    states = ["cancelled"] * 3 if cancelled else _states(chance)
    told = [state for state in states if state not in ("done", "prescaled")]
    state = told[0] if told else "done" if "done" in states else "prescaled"
    state = "arrived" if "queued" in states else state
    sub_job = rows.add(
        schema.sub_job,
        pass_id=pass_id,
        data_id=data_id,
        per="unit",
        taken_at=at,
        arrived_at=arrived_at,
        u=chance.random(),
        state=state,
        settled_at=None if state == "arrived" else arrived_at + 50,
    )
    ready_at = arrived_at
    for position, (stage, is_in) in enumerate(zip(STAGES, states, strict=True)):
        ready_at = _stage(rows, chance, sub_job, stage, position, is_in, ready_at)


def _states(chance: random.Random) -> list[str]:
    first = chance.choices(["done", "shed", "expired", "failed", "queued", "prescaled"], [80, 8, 4, 4, 2, 2])[0]
    if first != "done":
        return [first, *(["waiting" if first == "queued" else first if first != "failed" else "blocked"] * 2)]
    return ["done", chance.choice(["done", "done", "done", "prescaled", "shed", "expired"]), "done"]


def _stage(
    rows: Rows, chance: random.Random, sub_job: int, stage: str, position: int, state: str, ready_at: float
) -> float:
    """Returns when its results were published."""
    tried_before = state == "done" and chance.random() < 0.1
    queued_at = ready_at + 2.0 * tried_before
    stage_run = rows.add(
        schema.stage_run,
        sub_job_id=sub_job,
        stage=stage,
        position=position,
        state=state,
        reason="",
        q=chance.choice([1.0, 0.5, 0.25]),
        queued_at=None if state == "waiting" else queued_at,
        settled_at=None if state in ("waiting", "queued") else queued_at + 40,
        failures=int(tried_before),
        losses=0,
    )
    if state != "done":
        return ready_at
    if tried_before:
        rows.attempt(stage_run, state="failed", reason="exited with 1", at=ready_at)
    # A pilot's clock may be behind the station's.
    started_at = queued_at + chance.lognormvariate(0, 1) - 0.3
    at, steps = started_at + 0.1, []
    for step in ("read", "fit")[: 1 + position % 2]:
        seconds = chance.lognormvariate(0, 0.7)
        steps.append({"step": step, "started_at": at, "ended_at": at + seconds})
        at += seconds
    rows.add(
        schema.attempt,
        stage_run_id=stage_run,
        number=int(tried_before),
        state="done",
        reason="",
        prefix=f"runs/done/{stage_run}",
        opened_at=queued_at,
        pilot="pilot-1",
        started_at=started_at,
        ended_at=at + 0.2,
        published_at=at + chance.uniform(0.1, 0.4),
        steps=steps,
        is_recorded=True,
    )
    return at + 0.4
