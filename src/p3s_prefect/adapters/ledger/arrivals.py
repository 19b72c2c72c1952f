"""Taking arrivals: each identity once, each unit once, and a clear conflict where content changed (P2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

from sqlalchemy import Connection, Row, select, update

from p3s_prefect.adapters.ledger import journal
from p3s_prefect.adapters.ledger.functions import is_among
from p3s_prefect.adapters.ledger.rows import add, add_missing
from p3s_prefect.adapters.ledger.schema import (
    arrival,
    attempt,
    configuration,
    data_group,
    job,
    production_pass,
    run_collection,
    stage_run,
    sub_job,
)
from p3s_prefect.adapters.ledger.statements import ADD_STAGES, JOB, JOIN_GROUP, NEWEST_PASS, RIVAL
from p3s_prefect.core.admission import Admission, left_out
from p3s_prefect.core.closing import GroupFact
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.ports import Refusal
from p3s_prefect.core.records import Arrival, Identity, StageFact, SubJobFact, Verdict
from p3s_prefect.core.states import StageState, sub_job_state

# SQLite takes 32,766 parameters in a statement, PostgreSQL 65,535.
_MOST_PARAMETERS = 10_000


@dataclass(frozen=True, kw_only=True)
class Collection:
    """How a pipeline's run collections are named, and what stands behind the name."""

    configuration_id: str
    content: dict[str, Any]
    name: Callable[[date, int], str]
    """From the processing day and the number of the pass."""


@dataclass(frozen=True, kw_only=True)
class Intake:
    """What the experiment decides about a unit before the ledger is asked."""

    group: DataId
    day: date
    admissions: tuple[Admission, ...]


@dataclass(frozen=True, kw_only=True)
class Rival:
    """The file that was taken for this unit before: its bytes decide whether the new one is a conflict."""

    id: int
    """Of its arrival."""
    path: str
    identity: Identity
    sha256: str | None
    """None if nobody has read it, or if it can no longer be read, as it is gone or has changed."""
    is_gone: bool = False
    """Whether no file is there any more."""


@dataclass(frozen=True, kw_only=True)
class Taken:
    """What became of an arrival."""

    verdict: Verdict | None = None
    """None if this identity was settled before, or if a rival must be compared with first."""
    reason: str = ""
    rival: Rival | None = None
    sub_jobs: tuple[SubJobFact, ...] = ()
    group: GroupFact | None = None


def known(connection: Connection, stream: str, keys: Sequence[str]) -> set[Identity]:
    """The identities under these keys that were settled before."""
    columns = select(arrival.c.key, arrival.c.size, arrival.c.mtime_ns, arrival.c.etag)
    found: set[Identity] = set()
    for start in range(0, len(keys), _MOST_PARAMETERS):
        some = keys[start : start + _MOST_PARAMETERS]
        rows = connection.execute(columns.where(arrival.c.stream == stream, is_among(connection, arrival.c.key, some)))
        found |= {_identity(row) for row in rows}
    return found


def refuse(connection: Connection, refusal: Refusal, now: float) -> bool:
    """Records a file that cannot be a unit; False if that was done before."""
    identity = Identity(key=refusal.key, size=refusal.size, mtime_ns=refusal.mtime_ns, etag=refusal.etag)
    if identity in known(connection, refusal.stream, [refusal.key]):
        return False
    _insert_arrival(connection, refusal.stream, identity, refusal.path, Verdict.REFUSED, refusal.reason, now)
    journal.write(connection, now, "arrival.refused", refusal.stream, key=refusal.key, reason=refusal.reason)
    return True


def take(
    connection: Connection,
    seen: Arrival,
    intake: Intake,
    collections: dict[str, Collection],
    *,
    compared: Rival | None = None,
) -> Taken:
    """Takes an arrival, unless its identity was settled before.

    Where the unit was taken from another file, or from this one with other size or time, the answer names the
    `Rival`; call again with the arrival's own ``sha256`` and what was found of the rival, `compared`. Between bucket
    and online buffer, another size is enough.
    """
    if seen.identity in known(connection, seen.stream, [seen.identity.key]):
        return Taken()
    rival = _rival(connection, seen)
    if rival is None:
        return _take_new(connection, seen, intake, collections)
    if seen.sha256 is None and not (_are_of_two_places(seen, rival) and seen.identity.size != rival.identity.size):
        return Taken(rival=rival)
    if compared is not None:
        if rival.sha256 is None and compared.sha256 is not None:
            # Somebody has read them now: what stands there later must be these bytes.
            _set_checksum(connection, rival, compared.sha256)
        rival = replace(rival, sha256=compared.sha256 or rival.sha256, is_gone=compared.is_gone)
    return _compare(connection, seen, rival)


def _rival(connection: Connection, seen: Arrival) -> Rival | None:
    asked = {
        "stream_": seen.stream,
        "key_": seen.identity.key,
        "unit": str(seen.data_id),
        "type_": seen.dataset_type,
    }
    row = connection.execute(RIVAL, asked).first()
    if row is None:
        return None
    return Rival(id=row.id, path=row.path, identity=_identity(row), sha256=row.sha256)


def _identity(row: Any) -> Identity:
    return Identity(key=row.key, size=row.size, mtime_ns=row.mtime_ns, etag=row.etag)


def _compare(connection: Connection, seen: Arrival, rival: Rival) -> Taken:
    has_left = rival.sha256 is None and rival.is_gone
    if has_left and _are_of_two_places(seen, rival) and _key_and_size(seen) == _key_and_size(rival):
        verdict = Verdict.SAME
        reason = f"the same key and size as {rival.path}, which was taken before, and is there no more"
    elif seen.sha256 is not None and _took_its_place(seen, rival) and not _is_begun(connection, rival):
        # Sent again, as far as anybody can know: from now on these bytes are the unit's, and no others.
        _set_checksum(connection, rival, seen.sha256)
        verdict = Verdict.SAME
        reason = "the same place and size as the file that was taken before, which nobody had begun to read"
    elif rival.sha256 is None and seen.sha256 is not None:
        verdict = Verdict.CONFLICT
        reason = f"{rival.identity.key} was taken for this unit, and changed before its bytes were read"
    elif rival.sha256 is not None and rival.sha256 == seen.sha256:
        verdict = Verdict.SAME
        reason = f"the same bytes as {rival.identity.key}, which was taken before"
    else:
        verdict = Verdict.CONFLICT
        reason = f"other bytes than {rival.identity.key}, which was taken before; the first one stays"
    _insert_arrival(connection, seen.stream, seen.identity, seen.path, verdict, reason, seen.arrived_at, seen=seen)
    journal.write(connection, seen.arrived_at, f"arrival.{verdict}", seen.data_id, key=seen.identity.key, reason=reason)
    return Taken(verdict=verdict, reason=reason)


def _took_its_place(seen: Arrival, rival: Rival) -> bool:
    """Whether it stands where the other one stood, of which no checksum is known, with as many bytes.

    Objects in a bucket are told by their ETag.
    """
    is_file = not seen.identity.etag and not rival.identity.etag
    is_same_place = (seen.path, seen.identity.size) == (rival.path, rival.identity.size)
    return is_file and is_same_place and rival.sha256 is None


def _set_checksum(connection: Connection, rival: Rival, sha256: str) -> None:
    connection.execute(update(arrival).where(arrival.c.id == rival.id).values(sha256=sha256))


def _is_begun(connection: Connection, rival: Rival) -> bool:
    """Whether somebody may be reading the file that was taken: an attempt of one of its units was opened."""
    opened = (
        select(attempt.c.id)
        .join(stage_run, stage_run.c.id == attempt.c.stage_run_id)
        .join(sub_job, sub_job.c.id == stage_run.c.sub_job_id)
        .where(sub_job.c.arrival_id == rival.id)
    )
    return connection.execute(opened.limit(1)).first() is not None


def _are_of_two_places(seen: Arrival, rival: Rival) -> bool:
    """Whether one is in a bucket, and the other in the online buffer."""
    return bool(seen.identity.etag) != bool(rival.identity.etag)


def _key_and_size(one: Arrival | Rival) -> tuple[str, int]:
    return one.identity.key, one.identity.size


def _take_new(connection: Connection, seen: Arrival, intake: Intake, collections: dict[str, Collection]) -> Taken:
    verdict = Verdict.TAKEN if intake.admissions else Verdict.IGNORED
    reason = "" if intake.admissions else "no pipeline of the stream's rules takes it"
    arrival_id = _insert_arrival(
        connection, seen.stream, seen.identity, seen.path, verdict, reason, seen.arrived_at, seen=seen
    )
    journal.write(connection, seen.arrived_at, f"arrival.{verdict}", seen.data_id, key=seen.identity.key)
    if not intake.admissions:
        return Taken(verdict=verdict, reason=reason)
    group, day = _join_group(connection, intake, seen.arrived_at)
    sub_jobs = []
    for admission in intake.admissions:
        job_id = connection.scalar(JOB, {"group": group.id, "pipeline_": admission.pipeline})
        if job_id is None:
            job_id = add(connection, job, group_id=group.id, pipeline=admission.pipeline)
        pass_id = open_pass(connection, job_id, day, collections[admission.pipeline], seen.arrived_at)
        sub_jobs.append(
            add_sub_job(
                connection,
                pass_id,
                admission,
                data_id=seen.data_id,
                group=intake.group,
                arrival_id=arrival_id,
                taken_at=seen.taken_at,
                arrived_at=seen.arrived_at,
            )
        )
    return Taken(verdict=verdict, sub_jobs=tuple(sub_jobs), group=group)


def add_sub_job(
    connection: Connection,
    pass_id: int,
    admission: Admission,
    *,
    data_id: DataId,
    group: DataId,
    arrival_id: int | None,
    taken_at: float,
    arrived_at: float,
    asked_at: float | None = None,
) -> SubJobFact:
    """Adds a sub-job with its stage runs, each in the state in which it begins.

    One that was asked for by hand at `asked_at` has its deadlines from then on.
    """
    state = sub_job_state(plan.state for plan in admission.stages)
    settled = all(plan.state.is_terminal for plan in admission.stages)
    sub_job_id = add(
        connection,
        sub_job,
        pass_id=pass_id,
        data_id=str(data_id),
        per=admission.per,
        arrival_id=arrival_id,
        taken_at=taken_at,
        arrived_at=arrived_at,
        asked_at=asked_at,
        u=admission.u,
        state=state,
        settled_at=arrived_at if settled else None,
    )
    rows = [
        {
            "sub_job_id": sub_job_id,
            "stage": plan.stage,
            "position": plan.position,
            "state": plan.state,
            "reason": left_out(plan.state, admission.u, plan.q),
            "q": plan.q,
            "queued_at": arrived_at if plan.state is StageState.QUEUED else None,
            "settled_at": arrived_at if plan.state.is_terminal else None,
            "failures": 0,
            "losses": 0,
        }
        for plan in admission.stages
    ]
    ids = connection.scalars(ADD_STAGES, rows)
    stages = tuple(
        StageFact(id=stage_run_id, stage=plan.stage, state=plan.state, q=plan.q)
        for stage_run_id, plan in zip(ids, admission.stages, strict=True)
    )
    return SubJobFact(
        id=sub_job_id,
        pass_id=pass_id,
        pipeline=admission.pipeline,
        data_id=data_id,
        group=group,
        per=admission.per,
        taken_at=taken_at if asked_at is None else asked_at,
        u=admission.u,
        is_asked=asked_at is not None,
        stages=stages,
    )


def _insert_arrival(
    connection: Connection,
    stream: str,
    identity: Identity,
    path: str,
    verdict: Verdict,
    reason: str,
    now: float,
    *,
    seen: Arrival | None = None,
) -> int:
    values: dict[str, Any] = {
        "stream": stream,
        "key": identity.key,
        "size": identity.size,
        "mtime_ns": identity.mtime_ns,
        "etag": identity.etag,
        "path": path,
        "arrived_at": now,
        "verdict": verdict,
        "reason": reason,
    }
    if seen is not None:
        values |= {"data_id": str(seen.data_id), "dataset_type": seen.dataset_type, "sha256": seen.sha256}
    return int(add(connection, arrival, **values))


def _join_group(connection: Connection, intake: Intake, now: float) -> tuple[GroupFact, date]:
    """Counts the unit in its group, which is opened, or opened again, if need be."""
    row = connection.execute(JOIN_GROUP, {"group": str(intake.group), "now": now}).one_or_none()
    if row is None:
        row = connection.execute(
            data_group.insert()
            .values(
                data_id=str(intake.group),
                day=f"{intake.day:%Y%m%d}",
                opened_at=now,
                last_arrival_at=now,
                arrivals=1,
                is_open=True,
            )
            .returning(data_group)
        ).one()
        journal.write(connection, now, "group.opened", intake.group, day=row.day)
    return group_fact(row), date.fromisoformat(row.day)


def group_fact(row: Row[Any]) -> GroupFact:
    """A row of `data_group` as core sees it."""
    return GroupFact(
        id=row.id, data_id=DataId.parse(row.data_id), last_arrival_at=row.last_arrival_at, arrivals=row.arrivals
    )


def open_pass(connection: Connection, job_id: int, day: date, collection: Collection, now: float) -> int:
    """The newest pass of the job, or a new one: an earlier pass is never added to, nor one of another configuration."""
    newest = connection.execute(NEWEST_PASS, {"job": job_id}).one_or_none()
    if newest is not None and newest.is_open and newest.run_collection == collection.name(day, newest.number):
        return int(newest.id)
    number = 0 if newest is None else newest.number + 1
    name = collection.name(day, number)
    add_missing(connection, configuration, id=collection.configuration_id, content=collection.content, stored_at=now)
    add_missing(connection, run_collection, name=name, configuration_id=collection.configuration_id, opened_at=now)
    return int(
        add(connection, production_pass, job_id=job_id, number=number, run_collection=name, is_open=True, opened_at=now)
    )
