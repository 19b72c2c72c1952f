"""Looking up what a stage reads: what arrived, and what earlier stages have published."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from sqlalchemy import Connection, select

from p3s_prefect.adapters.ledger.execution import Attempt
from p3s_prefect.adapters.ledger.schema import (
    arrival,
    attempt,
    dataset,
    production_pass,
    stage_run,
    sub_job,
)
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.experiment import Format
from p3s_prefect.core.records import InputFile
from p3s_prefect.core.states import StageState, sub_job_state
from p3s_prefect.core.wiring import Wire


def find(
    connection: Connection, opened: Attempt, wires: Sequence[Wire], formats: Mapping[str, Format]
) -> list[InputFile]:
    """The files that an attempt reads; those of a stage per group in the order of their data ids.

    What is not there is not in the answer: the caller knows what it asked for.
    """
    found: list[InputFile] = []
    for wire in wires:
        if wire.producer is None:
            found += _arrived(connection, opened, wire, formats[wire.dataset_type])
        else:
            found += _published(connection, opened, wire)
    return found


def _arrived(connection: Connection, opened: Attempt, wire: Wire, raw_format: Format) -> list[InputFile]:
    chosen = select(arrival).where(arrival.c.dataset_type == wire.dataset_type).distinct()
    if opened.arrival_id is not None:
        chosen = chosen.where(arrival.c.id == opened.arrival_id)
    else:
        chosen = (
            chosen.join(sub_job, sub_job.c.arrival_id == arrival.c.id)
            .join(production_pass, production_pass.c.id == sub_job.c.pass_id)
            .where(production_pass.c.job_id == opened.job_id, production_pass.c.number <= opened.pass_number)
        )
    files = [
        InputFile(
            dataset_type=wire.dataset_type,
            is_gathered=wire.is_gathered,
            format=raw_format,
            data_id=DataId.parse(row.data_id),
            path=row.path,
            size=row.size,
            mtime_ns=row.mtime_ns,
            sha256=row.sha256,
        )
        for row in connection.execute(chosen)
    ]
    return sorted(files, key=_order)


def _published(connection: Connection, opened: Attempt, wire: Wire) -> list[InputFile]:
    """Each data id's dataset of this job, from its newest pass up to this one."""
    chosen = (
        select(dataset, production_pass.c.number)
        .join(attempt, attempt.c.id == dataset.c.attempt_id)
        .join(stage_run, stage_run.c.id == attempt.c.stage_run_id)
        .join(sub_job, sub_job.c.id == stage_run.c.sub_job_id)
        .join(production_pass, production_pass.c.id == sub_job.c.pass_id)
        .where(
            production_pass.c.job_id == opened.job_id,
            production_pass.c.number <= opened.pass_number,
            dataset.c.dataset_type == wire.dataset_type,
        )
        .order_by(production_pass.c.number)
    )
    if not wire.is_gathered:
        chosen = chosen.where(dataset.c.data_id == str(opened.data_id))
    newest = {
        row.data_id: InputFile(
            dataset_type=wire.dataset_type,
            is_gathered=wire.is_gathered,
            format=Format(row.format),
            data_id=DataId.parse(row.data_id),
            key=row.key,
            size=row.size,
            sha256=row.sha256,
            dataset_id=row.id,
        )
        for row in connection.execute(chosen)
    }
    return sorted(newest.values(), key=_order)


def coverage(connection: Connection, opened: Attempt, stages: Collection[str]) -> dict[str, int]:
    """How many units of an attempt's group are in which state; of a unit in several passes, the newest counts.

    A unit's state follows from those of its `stages`, which are gathered; what else runs for it is not waited for.
    """
    rows = connection.execute(
        select(sub_job.c.id, sub_job.c.data_id, stage_run.c.state)
        .join(stage_run, stage_run.c.sub_job_id == sub_job.c.id)
        .join(production_pass, production_pass.c.id == sub_job.c.pass_id)
        .where(
            production_pass.c.job_id == opened.job_id,
            production_pass.c.number <= opened.pass_number,
            sub_job.c.per == "unit",
            stage_run.c.stage.in_(stages),
        )
        .order_by(production_pass.c.number, stage_run.c.position)
    )
    states: dict[int, list[StageState]] = {}
    newest: dict[str, int] = {}
    for row in rows:
        states.setdefault(row.id, []).append(StageState(row.state))
        newest[row.data_id] = row.id
    return dict(Counter(sub_job_state(states[sub_job_id]).value for sub_job_id in newest.values()))


def _order(file: InputFile) -> tuple[tuple[str, bool, str], ...]:
    # A number sorts as a number, and beside a text without an error.
    return tuple(
        (name, isinstance(value, str), f"{value:020d}" if isinstance(value, int) else value)
        for name, value in file.data_id.items
    )
