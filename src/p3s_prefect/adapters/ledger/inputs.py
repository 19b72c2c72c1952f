"""Looking up what a stage reads: what arrived, and what earlier stages have published."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from sqlalchemy import Connection, select

from p3s_prefect.adapters.ledger.execution import Attempt
from p3s_prefect.adapters.ledger.sampled import IS_BY_HAND, IS_SAMPLED, SAMPLED_STATE, counts, probabilities
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
from p3s_prefect.core.records import BufferPlace, InputFile
from p3s_prefect.core.states import LEFT_OUT, StageState, SubJobState, sub_job_state
from p3s_prefect.core.wiring import Wire

Buffered = Callable[[str, str], BufferPlace | None]
"""Where else a file is, by its stream and its path."""


def find(
    connection: Connection,
    opened: Attempt,
    wires: Sequence[Wire],
    formats: Mapping[str, Format],
    buffered: Buffered = lambda _stream, _path: None,
) -> list[InputFile]:
    """The files that an attempt reads; those of a stage per group in the order of their data ids.

    What is not there is not in the answer: the caller knows what it asked for.
    """
    found: list[InputFile] = []
    for wire in wires:
        if wire.producer is None:
            found += _arrived(connection, opened, wire, formats[wire.dataset_type], buffered)
        else:
            found += _published(connection, opened, wire)
    return found


def _arrived(
    connection: Connection, opened: Attempt, wire: Wire, raw_format: Format, buffered: Buffered
) -> list[InputFile]:
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
            etag=row.etag,
            buffered=buffered(row.stream, row.path),
            sha256=row.sha256,
        )
        for row in connection.execute(chosen)
    ]
    return sorted(files, key=_order)


def _published(connection: Connection, opened: Attempt, wire: Wire) -> list[InputFile]:
    """Each data id's dataset of this job, from its newest pass up to this one.

    What chance has left out is not gathered, as nobody could weight it.
    """
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
            dataset.c.damage.is_(None),
        )
        .order_by(production_pass.c.number)
    )
    chosen = chosen.where(IS_SAMPLED if wire.is_gathered else dataset.c.data_id == str(opened.data_id))
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
    """How many units of an attempt's group are in which state.

    Of a unit in several passes the newest that is done counts, else the newest, as for what is gathered of it. A unit's
    state follows from those of its `stages`, which are gathered; what else runs for it is not waited for.
    """
    rows = connection.execute(
        select(sub_job.c.id, sub_job.c.data_id, SAMPLED_STATE)
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
    of_units: dict[tuple[str, int], list[StageState]] = {}
    for row in rows:
        of_units.setdefault((row.data_id, row.id), []).append(StageState(row.state))
    counted: dict[str, SubJobState] = {}
    for (data_id, _), states in of_units.items():
        state = sub_job_state(states)
        if state is SubJobState.DONE or counted.get(data_id) is not SubJobState.DONE:
            counted[data_id] = state
    return dict(Counter(state.value for state in counted.values()))


def weights(connection: Connection, opened: Attempt, wires: Iterable[Wire]) -> dict[str, dict[DataId, float]]:
    """For each dataset type that is gathered, how many units each unit stands for that chance let come so far.

    A unit that gave nothing, such as one that expired, has its weight too; one that was left out at random has none.
    """
    return {wire.dataset_type: _weights(connection, opened, wire) for wire in wires if wire.is_gathered}


def _weights(connection: Connection, opened: Attempt, wire: Wire) -> dict[DataId, float]:
    """By 1/q of the stage that makes it; what arrives is all taken in, and weighs 1."""
    rows = (
        select(sub_job.c.data_id, SAMPLED_STATE, IS_BY_HAND, stage_run.c.q)
        .join(stage_run, stage_run.c.sub_job_id == sub_job.c.id)
        .join(production_pass, production_pass.c.id == sub_job.c.pass_id)
        .where(
            production_pass.c.job_id == opened.job_id,
            production_pass.c.number <= opened.pass_number,
            sub_job.c.per == "unit",
        )
        .order_by(production_pass.c.number)
    )
    if wire.producer is None:
        return {DataId.parse(row.data_id): 1.0 for row in connection.execute(rows)}
    found = connection.execute(rows.where(stage_run.c.stage == wire.producer, counts(opened.pass_number)))
    runs = {row.data_id: row for row in found}
    likely = probabilities(runs)
    return {DataId.parse(unit): 1 / likely[unit] for unit, run in runs.items() if run.state not in LEFT_OUT}


def _order(file: InputFile) -> tuple[tuple[str, bool, str], ...]:
    # A number sorts as a number, and beside a text without an error.
    return tuple(
        (name, isinstance(value, str), f"{value:020d}" if isinstance(value, int) else value)
        for name, value in file.data_id.items
    )
