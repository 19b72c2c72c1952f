"""What the ledger says about an attempt's objects in the store, and the few ways in which that may be mended (B11)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy import Connection, Table, select, update

from p3s_prefect.adapters.ledger import journal
from p3s_prefect.adapters.ledger.outputs import dataset_row
from p3s_prefect.adapters.ledger.rows import add
from p3s_prefect.adapters.ledger.schema import (
    attempt,
    data_group,
    dataset,
    job,
    lineage,
    product,
    production_pass,
    run_collection,
    stage_run,
    sub_job,
    summary_value,
)
from p3s_prefect.core.payload import Product, SummaryValue
from p3s_prefect.core.records import (
    Lineage,
    Manifest,
    OutputObject,
    ProductObject,
    PublishedObject,
    StepTime,
)

_PAGE = 1000


@dataclass(frozen=True, kw_only=True)
class BookedObject:
    """A dataset or product, and where its bytes should be."""

    table: Table
    id: int
    name: str
    """Dataset type, or title."""
    key: str
    size: int
    sha256: str
    damage: str | None
    is_archived: bool = False
    """Whether its row is in an archive, where nothing is changed any more."""


@dataclass(frozen=True, kw_only=True)
class BookedAttempt:
    """An attempt as the ledger has it."""

    id: int
    prefix: str
    execution: str | None
    state: str
    is_recorded: bool
    log_key: str | None
    data_id: str
    per: str
    pipeline: str
    group: str
    configuration_id: str
    objects: tuple[BookedObject, ...]

    @property
    def place(self) -> str:
        """Where the objects of its execution are."""
        return f"{self.prefix}/{self.execution}"


def booked_attempt(connection: Connection, prefix: str) -> BookedAttempt | None:
    """The attempt whose objects are below a prefix; None if the ledger has none."""
    row = connection.execute(_ATTEMPTS.where(attempt.c.prefix == prefix)).one_or_none()
    if row is None:
        return None
    objects = []
    for table, name in ((dataset, dataset.c.dataset_type), (product, product.c.title)):
        columns = (table.c.id, name.label("name"), table.c.key, table.c.size, table.c.sha256, table.c.damage)
        rows = connection.execute(select(*columns).where(table.c.attempt_id == row.id).order_by(table.c.id))
        objects += [BookedObject(table=table, **found._mapping) for found in rows]
    return BookedAttempt(**row._mapping, objects=tuple(objects))


def done_attempts(connection: Connection, under: str) -> Iterator[tuple[int, str]]:
    """Number and prefix of all published attempts below a prefix of the store."""
    last = 0
    query = select(attempt.c.id, attempt.c.prefix).where(
        attempt.c.state == "done", attempt.c.prefix.startswith(under, autoescape=True)
    )
    while rows := connection.execute(query.where(attempt.c.id > last).order_by(attempt.c.id).limit(_PAGE)).all():
        yield from ((row.id, row.prefix) for row in rows)
        last = rows[-1].id


def keys_with(connection: Connection, sha256: str, size: int) -> list[str]:
    """Where the same bytes should be, too."""
    found: list[str] = []
    for table in (dataset, product):
        same = (table.c.sha256 == sha256, table.c.size == size, table.c.damage.is_(None))
        found += connection.scalars(select(table.c.key).where(*same))
    return found


def note_damage(connection: Connection, found: BookedObject, what: str | None, data_id: str, now: float) -> None:
    """Marks a dataset or product as damaged, or as good again (None)."""
    connection.execute(update(found.table).where(found.table.c.id == found.id).values(damage=what))
    kind = "object.damaged" if what else "object.good-again"
    told = {"what": what} if what else {}
    journal.write(connection, now, kind, data_id, name=found.name, key=found.key, **told)


def correct(connection: Connection, found: BookedObject, size: int, sha256: str, data_id: str, now: float) -> None:
    """Corrects what a row says about an object that is as its manifest says."""
    values = {"size": size, "sha256": sha256, "damage": None}
    connection.execute(update(found.table).where(found.table.c.id == found.id).values(values))
    journal.write(connection, now, "object.corrected", data_id, name=found.name, key=found.key, said=found.sha256)


def add_missing(connection: Connection, manifest: Manifest, output: OutputObject, number: int | None) -> None:
    """Adds the dataset that a manifest names and the ledger lacks, under this number if it is free."""
    taken = number is None or connection.scalar(select(dataset.c.id).where(dataset.c.id == number)) is not None
    add(connection, dataset, **dataset_row(manifest, output), **({} if taken else {"id": number}))


def forget_log(connection: Connection, attempt_id: int) -> None:
    """The log of an attempt is not there any more."""
    connection.execute(update(attempt).where(attempt.c.id == attempt_id).values(log_key=None))


def manifest_of(connection: Connection, attempt_id: int, log: PublishedObject | None) -> Manifest:
    """The manifest of a published attempt, as the ledger knows it."""
    row = connection.execute(
        select(attempt, stage_run.c.stage, sub_job.c.data_id, production_pass.c.run_collection)
        .join(stage_run, stage_run.c.id == attempt.c.stage_run_id)
        .join(sub_job, sub_job.c.id == stage_run.c.sub_job_id)
        .join(production_pass, production_pass.c.id == sub_job.c.pass_id)
        .where(attempt.c.id == attempt_id)
    ).one()
    made = connection.execute(select(dataset).where(dataset.c.attempt_id == attempt_id).order_by(dataset.c.id))
    shown = connection.execute(select(product).where(product.c.attempt_id == attempt_id).order_by(product.c.id))
    read = connection.execute(select(lineage).where(lineage.c.attempt_id == attempt_id).order_by(lineage.c.id))
    said = connection.execute(select(summary_value).where(summary_value.c.attempt_id == attempt_id))
    return Manifest(
        attempt_id=attempt_id,
        execution=row.execution,
        collection=row.run_collection,
        data_id=row.data_id,
        stage=row.stage,
        outputs=[
            OutputObject(
                key=one.key, size=one.size, sha256=one.sha256, dataset_type=one.dataset_type, format=one.format
            )
            for one in made
        ],
        products=[
            ProductObject(
                key=one.key,
                size=one.size,
                sha256=one.sha256,
                step=one.step,
                product=Product(category=one.category, title=one.title, shows=one.shows, file=one.file),
            )
            for one in shown
        ],
        summary={one.name: SummaryValue(value=one.value, unit=one.unit) for one in said},
        lineage=[
            Lineage(dataset_type=one.dataset_type, data_id=one.data_id, sha256=one.sha256, dataset_id=one.dataset_id)
            for one in read
        ],
        coverage=row.coverage or {},
        steps=[StepTime(**step) for step in row.steps or []],
        log=log,
        pilot=row.pilot or "",
        started_at=row.started_at,
        ended_at=row.ended_at,
    )


_ATTEMPTS = (
    select(
        attempt.c.id,
        attempt.c.prefix,
        attempt.c.execution,
        attempt.c.state,
        attempt.c.is_recorded,
        attempt.c.log_key,
        sub_job.c.data_id,
        sub_job.c.per,
        job.c.pipeline,
        data_group.c.data_id.label("group"),
        run_collection.c.configuration_id,
    )
    .join(stage_run, stage_run.c.id == attempt.c.stage_run_id)
    .join(sub_job, sub_job.c.id == stage_run.c.sub_job_id)
    .join(production_pass, production_pass.c.id == sub_job.c.pass_id)
    .join(run_collection, run_collection.c.name == production_pass.c.run_collection)
    .join(job, job.c.id == production_pass.c.job_id)
    .join(data_group, data_group.c.id == job.c.group_id)
)
