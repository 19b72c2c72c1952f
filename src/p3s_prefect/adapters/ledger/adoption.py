"""Taking over into the ledger what a commit record and its manifest say, as if it had been published here.

Rows are found by what they are about, and keep the numbers of the record where these are free: in an empty ledger all
of them, in one that was restored from a backup and has gone on since, not always.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Table, case, func, select, update

from p3s_prefect.adapters.ledger import journal
from p3s_prefect.adapters.ledger.execution import settle_sub_job
from p3s_prefect.adapters.ledger.outputs import dataset_row, insert_descriptions
from p3s_prefect.adapters.ledger.rows import add, add_all
from p3s_prefect.adapters.ledger.schema import (
    arrival,
    attempt,
    configuration,
    data_group,
    dataset,
    job,
    metadata,
    product,
    production_pass,
    run_collection,
    stage_run,
    sub_job,
)
from p3s_prefect.adapters.ledger.statements import END_WELL
from p3s_prefect.core.commit_record import CommitRecord, RecordedStage
from p3s_prefect.core.errors import Conflict
from p3s_prefect.core.records import Lineage, Manifest
from p3s_prefect.core.states import StageState

NOT_RECORDED = "its end stands in no commit record"
"""Reason of a stage run that was open when its unit was last heard of: whether it ever ended is not known."""
CLOSED_BY = "taken over from the store"


@dataclass
class Adoption:
    """Takes over one record after the other, in the order of their publication."""

    connection: Connection
    remarks: list[str] = field(default_factory=list)
    """What could not be told for sure of the last one."""

    def is_known(self, record: CommitRecord) -> bool:
        """Whether the ledger says that this execution was published."""
        row = self._attempt(record)
        return row is not None and row.state == "done" and row.execution == record.attempt.execution

    def rival(self, record: CommitRecord) -> str:
        """Where another attempt at the same is that the ledger says was published; empty if there is none."""
        query = (
            select(attempt.c.prefix, attempt.c.execution)
            .join(stage_run, stage_run.c.id == attempt.c.stage_run_id)
            .join(sub_job, sub_job.c.id == stage_run.c.sub_job_id)
            .join(production_pass, production_pass.c.id == sub_job.c.pass_id)
            .where(
                attempt.c.state == "done",
                stage_run.c.stage == record.stage.stage,
                sub_job.c.data_id == record.sub_job.data_id,
                sub_job.c.per == record.sub_job.per,
                production_pass.c.run_collection == record.collection.name,
            )
        )
        row = self.connection.execute(query).first()
        return "" if row is None else f"{row.prefix}/{row.execution}"

    def adopt(
        self,
        record: CommitRecord,
        manifest: Manifest,
        content: Mapping[str, Any],
        damage: Mapping[str, str],
        now: float,
    ) -> None:
        """Takes over one publication; `damage` says what is wrong with which of its objects.

        Raises:
            Conflict: the ledger says that another attempt has published this; nothing was written.
        """
        self.remarks = []
        self._refuse_second(record)
        sub_job_id = self._sub_job(record, content)
        stage_run_id = self._stages(record, sub_job_id)
        attempt_id = self._publish(record, manifest, stage_run_id)
        whole = manifest.model_copy(update={"attempt_id": attempt_id, "lineage": self._lineage(manifest)})
        self._outputs(record, whole, damage)
        insert_descriptions(self.connection, whole)
        for key, what in damage.items():
            self.connection.execute(update(product).where(product.c.key == key).values(damage=what))
        self._finish(record, sub_job_id, stage_run_id)
        journal.write(
            self.connection, now, "ledger.taken-over", record.sub_job.data_id, stage=manifest.stage, attempt=attempt_id
        )

    # --- what it belongs to -------------------------------------------------------------------------------------

    def _sub_job(self, record: CommitRecord, content: Mapping[str, Any]) -> int:
        group_id = self._group(record)
        job_id = self._row(job, {"group_id": group_id, "pipeline": record.job.pipeline}, id=record.job.id)
        pass_id = self._pass(record, job_id, content)
        arrival_id = None if record.arrival is None else self._arrival(record, group_id)
        unique = {"pass_id": pass_id, "per": record.sub_job.per, "data_id": record.sub_job.data_id}
        also = record.sub_job.model_dump(exclude=set(unique))
        return self._row(sub_job, unique, **also, arrival_id=arrival_id, state="arrived", settled_at=None)

    def _group(self, record: CommitRecord) -> int:
        found = record.group
        unique = {"data_id": found.data_id}
        closed_by = CLOSED_BY if found.is_open else found.closed_by
        # Closed, as nobody knows whether it is open: a unit that comes after all opens it again.
        also = {"day": found.day, "opened_at": found.opened_at, "last_arrival_at": found.opened_at, "arrivals": 0}
        group_id = self._row(data_group, unique, id=found.id, **also, is_open=False, closed_by=closed_by)
        if not found.is_open:
            self.connection.execute(
                update(data_group)
                .where(data_group.c.id == group_id, data_group.c.closed_by == CLOSED_BY)
                .values(closed_by=closed_by)
            )
        return group_id

    def _pass(self, record: CommitRecord, job_id: int, content: Mapping[str, Any]) -> int:
        collection, found = record.collection, record.production_pass
        row = self._find(production_pass, {"job_id": job_id, "number": found.number})
        if row is not None and row.run_collection != collection.name:
            raise Conflict(
                f"pass {found.number} of {record.job.pipeline} is {row.run_collection} here, and not {collection.name}",
                data_id=record.sub_job.data_id,
                fix="The ledger has gone on since; both stay where they are.",
            )
        if self._find(configuration, {"id": collection.configuration_id}) is None:
            values = {"id": collection.configuration_id, "content": dict(content), "stored_at": collection.opened_at}
            add_all(self.connection, configuration, [values])
        if self._find(run_collection, {"name": collection.name}) is None:
            add_all(self.connection, run_collection, [collection.model_dump()])
        unique = {"job_id": job_id, "number": found.number}
        also = {"run_collection": collection.name, "is_open": False, "opened_at": found.opened_at}
        return self._row(production_pass, unique, id=found.id, **also)

    def _arrival(self, record: CommitRecord, group_id: int) -> int:
        seen = record.arrival
        assert seen is not None  # noqa: S101 -- the caller has looked
        unique = {
            "stream": seen.stream,
            "key": seen.key,
            "size": seen.size,
            "mtime_ns": seen.mtime_ns,
            "etag": seen.etag,
        }
        if (row := self._find(arrival, unique)) is not None:
            return int(row.id)
        self.connection.execute(
            update(data_group)
            .where(data_group.c.id == group_id)
            .values(
                arrivals=data_group.c.arrivals + 1,
                last_arrival_at=case(
                    (data_group.c.last_arrival_at < seen.arrived_at, seen.arrived_at),
                    else_=data_group.c.last_arrival_at,
                ),
            )
        )
        return self._row(arrival, unique, **seen.model_dump(exclude=set(unique)))

    def _stages(self, record: CommitRecord, sub_job_id: int) -> int:
        """The stage run of the attempt, among its siblings as far as they are known."""
        ids = {}
        for stage in record.stages:
            unique = {"sub_job_id": sub_job_id, "stage": stage.stage}
            row = self._find(stage_run, unique)
            known = _as_known(stage, record.attempt.published_at)
            if row is None:
                ids[stage.id] = self._row(stage_run, unique, **known)
                continue
            ids[stage.id] = int(row.id)
            if row.state == StageState.CANCELLED and row.reason == NOT_RECORDED:
                # A later record knows more.
                known.pop("id")
                self.connection.execute(update(stage_run).where(stage_run.c.id == row.id).values(known))
        return ids[record.stage_run_id]

    # --- the publication ----------------------------------------------------------------------------------------

    def _publish(self, record: CommitRecord, manifest: Manifest, stage_run_id: int) -> int:
        row = self._attempt(record)
        if row is None:
            found = record.attempt.model_dump(include={"number", "prefix", "opened_at"})
            unique = {"stage_run_id": stage_run_id, "number": record.attempt.number}
            found |= {"state": "running", "reason": "", "is_recorded": True}
            attempt_id = self._row(attempt, unique, id=record.attempt.id, **found)
        else:
            attempt_id = int(row.id)
        self.connection.execute(
            END_WELL,
            {
                "attempt_id": attempt_id,
                "execution": manifest.execution,
                "pilot": manifest.pilot,
                "started_at": manifest.started_at,
                "ended_at": manifest.ended_at,
                "published_at": record.attempt.published_at,
                "steps": [step.model_dump() for step in manifest.steps],
                "coverage": manifest.coverage or None,
                "log_key": manifest.log.key if manifest.log else None,
            },
        )
        self.connection.execute(update(attempt).where(attempt.c.id == attempt_id).values(is_recorded=True, reason=""))
        return attempt_id

    def _refuse_second(self, record: CommitRecord) -> None:
        if rival := self.rival(record):
            raise Conflict(
                f"{rival} is published for the same stage",
                data_id=record.sub_job.data_id,
                fix="What the ledger says stays, and so do the other's objects.",
            )

    def _lineage(self, manifest: Manifest) -> list[Lineage]:
        return [
            read if read.dataset_id is None else read.model_copy(update={"dataset_id": self._read(read)})
            for read in manifest.lineage
        ]

    def _read(self, read: Lineage) -> int | None:
        """The dataset that was read: that of the same number if it is the one, else the only one with these bytes."""
        same = {"dataset_type": read.dataset_type, "data_id": read.data_id, "sha256": read.sha256}
        matches = select(dataset.c.id).where(*(dataset.c[name] == value for name, value in same.items()))
        ids: list[int] = list(self.connection.scalars(matches))
        if read.dataset_id is not None and read.dataset_id in ids:
            return read.dataset_id
        if len(ids) == 1:
            return ids[0]
        self.remarks.append(
            f"it has read {read.dataset_type} of {read.data_id}, "
            + ("of which there are several with these bytes" if ids else "which is not among the datasets")
        )
        return None

    def _outputs(self, record: CommitRecord, manifest: Manifest, damage: Mapping[str, str]) -> None:
        for output in manifest.outputs:
            unique = {
                "dataset_type": output.dataset_type,
                "data_id": manifest.data_id,
                "run_collection": manifest.collection,
            }
            if self._find(dataset, unique) is not None:
                raise Conflict(
                    f"{output.dataset_type} is already in {manifest.collection}, from another attempt",
                    data_id=manifest.data_id,
                    fix="What the ledger says stays, and so do the other's objects.",
                )
            also = {name: value for name, value in dataset_row(manifest, output).items() if name not in unique}
            number = record.datasets.get(output.dataset_type)
            self._row(dataset, unique, id=number, **also, damage=damage.get(output.key))

    def _finish(self, record: CommitRecord, sub_job_id: int, stage_run_id: int) -> None:
        known = record.stage.model_dump(include={"q", "queued_at", "settled_at", "failures", "losses"})
        self.connection.execute(
            update(stage_run).where(stage_run.c.id == stage_run_id).values(state=StageState.DONE, reason="", **known)
        )
        settle_sub_job(self.connection, sub_job_id, record.attempt.published_at)

    # --- rows ---------------------------------------------------------------------------------------------------

    def _attempt(self, record: CommitRecord) -> Any:
        return self._find(attempt, {"prefix": record.attempt.prefix})

    def _find(self, table: Table, unique: Mapping[str, Any]) -> Any:
        query = select(table).where(*(table.c[name] == value for name, value in unique.items()))
        return self.connection.execute(query).one_or_none()

    def _row(self, table: Table, unique: Mapping[str, Any], *, id: int | None, **also: Any) -> int:
        """The number of the row that is there, or of a new one: the wished one if it is free."""
        row = self._find(table, unique)
        if row is not None:
            return int(row.id)
        wished = {} if id is None or self._find(table, {"id": id}) is not None else {"id": id}
        return int(add(self.connection, table, **{**also, **unique, **wished}))


def _as_known(stage: RecordedStage, at: float) -> dict[str, Any]:
    """What a record knows of a stage run; one that was open then may have ended since, or not."""
    known = stage.model_dump(exclude={"stage"})
    if not stage.state.is_terminal:
        known |= {"state": StageState.CANCELLED, "reason": NOT_RECORDED, "settled_at": at}
    return known


def continue_numbers(connection: Connection) -> None:
    """After rows with numbers of their own: the database counts on from the largest (SQLite does so by itself)."""
    if connection.dialect.name != "postgresql":
        return
    for table in metadata.sorted_tables:
        (key, *others) = table.primary_key.columns
        if not others and key.type.python_type is int:
            sequence = func.pg_get_serial_sequence(table.name, key.name)
            largest = select(func.max(key)).scalar_subquery()
            connection.execute(select(func.setval(sequence, func.coalesce(largest, 1))))
