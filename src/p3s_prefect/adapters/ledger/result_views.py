"""What the ledger shows of results: one unit in full, the latest products, and the trends of summary values."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, select

from p3s_prefect.adapters.ledger.sampled import IS_SAMPLED, counts
from p3s_prefect.adapters.ledger.schema import (
    arrival,
    attempt,
    data_group,
    dataset,
    job,
    lineage,
    product,
    production_pass,
    stage_run,
    sub_job,
    summary_value,
)
from p3s_prefect.adapters.ledger.views import as_arrival, journal_rows, select_units, with_coverage, with_stages
from p3s_prefect.adapters.ledger.weighted_rows import not_done_since
from p3s_prefect.core.errors import NoSuchRecord
from p3s_prefect.core.views import (
    DatasetRow,
    GroupRow,
    LineageRow,
    ProductRow,
    SummaryRow,
    Trend,
    UnitDetail,
    UnitRow,
)
from p3s_prefect.core.weighted_values import Outcomes, weighted_value

# How far back the latest results are looked for: attempts, and passes of groups. It bounds the cost of a page.
RECENT_ATTEMPTS = 400
RECENT_PASSES = 40


def unit(
    connection: Connection, data_id: str, *, pipeline: str | None = None, pass_number: int | None = None
) -> UnitDetail:
    """A unit in full; where pipeline or pass are not given, the newest sub-job of that data id.

    Raises:
        NoSuchRecord: the ledger has no such unit.
    """
    query = select_units().where(sub_job.c.data_id == data_id).order_by(sub_job.c.id.desc())
    rows = connection.execute(query).all()
    chosen = next(
        (row for row in rows if pipeline in (None, row.pipeline) and pass_number in (None, row.pass_number)),
        None,
    )
    if chosen is None:
        raise _no_such_unit(data_id, pipeline, pass_number, [(row.pipeline, row.pass_number) for row in rows])
    first, *others = with_stages(connection, [chosen, *(row for row in rows if row.id != chosen.id)])
    return _detail(connection, chosen, first, tuple(others))


def _no_such_unit(
    data_id: str, pipeline: str | None, pass_number: int | None, there: list[tuple[str, int]]
) -> NoSuchRecord:
    where = "".join(
        [f" in pipeline {pipeline}" if pipeline else "", f", pass {pass_number}" if pass_number is not None else ""]
    )
    fix = "`p3s list units` shows what there is, `p3s list arrivals` what was seen and not taken."
    if there:
        fix = f"It is in: {'; '.join(f'pipeline {name}, pass {number}' for name, number in sorted(there))}."
    return NoSuchRecord(f"no unit {data_id}{where}", fix=fix)


def group_or_unit(
    connection: Connection, data_id: str, *, pipeline: str | None = None, pass_number: int | None = None
) -> tuple[GroupRow | None, UnitDetail | None]:
    """What a data id names: a group, a unit, or a group with the sub-job of its own stages.

    Raises:
        NoSuchRecord: it names neither, or not in that pipeline and pass.
    """
    row = connection.execute(select(data_group).where(data_group.c.data_id == data_id)).one_or_none()
    found = None if row is None else with_coverage(connection, [row])[0]
    try:
        return found, unit(connection, data_id, pipeline=pipeline, pass_number=pass_number)
    except NoSuchRecord:
        if found is None:
            raise
        there = [(one.pipeline, one.pass_number) for one in found.coverage]
    asked = pipeline is not None or pass_number is not None
    if asked and not any(pipeline in (None, name) and pass_number in (None, number) for name, number in there):
        raise _no_such_unit(data_id, pipeline, pass_number, there)
    return found, None


def group_work(connection: Connection, data_id: str) -> tuple[UnitRow, ...]:
    """The sub-jobs of a group's own stages, newest first."""
    query = select_units().where(sub_job.c.data_id == data_id, sub_job.c.per == "group").order_by(sub_job.c.id.desc())
    return with_stages(connection, connection.execute(query).all())


def group(connection: Connection, data_id: str) -> GroupRow:
    """A group with the coverage of its passes.

    Raises:
        NoSuchRecord: the ledger has no such group.
    """
    rows = connection.execute(select(data_group).where(data_group.c.data_id == data_id)).all()
    if not rows:
        raise NoSuchRecord(f"no group {data_id}", fix="`p3s list groups` shows what there is.")
    return with_coverage(connection, rows)[0]


def latest_products(connection: Connection) -> tuple[ProductRow, ...]:
    """For each pipeline, stage, category and title, the product of the latest data that have it.

    Latest is what was taken last, so that reprocessing old data does not take the place of what is going on now.
    """
    latest: dict[tuple[str, ...], ProductRow] = {}
    rows = connection.execute(_products().where(product.c.attempt_id.in_(_recent(connection))).order_by(product.c.id))
    for row in map(_product, rows):
        key = (row.pipeline, row.stage, row.category, row.title)
        known = latest.get(key)
        if known is None or (row.taken_at, row.pass_number) >= (known.taken_at, known.pass_number):
            latest[key] = row
    # Within a category in the order in which the payload listed them.
    return tuple(sorted(latest.values(), key=lambda row: (row.pipeline, row.per == "group", row.stage, row.id)))


def group_products(connection: Connection, data_id: str) -> tuple[ProductRow, ...]:
    """Products of a group's own stages, in the newest pass that has them."""
    query = _products().where(sub_job.c.data_id == data_id).order_by(product.c.id)
    rows = [_product(row) for row in connection.execute(query)]
    newest = {row.pipeline: row.pass_number for row in sorted(rows, key=lambda row: row.pass_number)}
    return tuple(row for row in rows if row.pass_number == newest[row.pipeline])


def product_of(connection: Connection, product_id: int) -> ProductRow:
    """One product.

    Raises:
        NoSuchRecord: the ledger has no such product.
    """
    row = connection.execute(_products().where(product.c.id == product_id)).one_or_none()
    if row is None:
        raise NoSuchRecord(f"no product {product_id}", fix="Open the page again: its pictures have other numbers now.")
    return _product(row)


def log_key(connection: Connection, attempt_id: int) -> str:
    """Where the log of an attempt is in the store.

    Raises:
        NoSuchRecord: there is no such attempt, or it left no log.
    """
    key = connection.scalar(select(attempt.c.log_key).where(attempt.c.id == attempt_id))
    if key is None:
        raise NoSuchRecord(
            f"no log of attempt {attempt_id}",
            fix="It may still be running, or its pilot was lost with the log; the unit's page tells which.",
        )
    return str(key)


def datasets(connection: Connection, dataset_type: str, data_id: str) -> tuple[DatasetRow, ...]:
    """Datasets of this type and data id in all run collections, newest first."""
    rows = connection.execute(
        select(dataset)
        .where(dataset.c.dataset_type == dataset_type, dataset.c.data_id == data_id)
        .order_by(dataset.c.id.desc())
    )
    return tuple(DatasetRow(**row._mapping) for row in rows)


def trends(connection: Connection, *, limit: int = 40) -> tuple[Trend, ...]:
    """Each summary value over the last units of its pipeline, in the order in which their data were taken.

    What was made in several passes is in it once.
    """
    also = (sub_job.c.id.label("sub_job_id"), IS_SAMPLED.label("is_sampled"))
    query = _summaries(*also).where(summary_value.c.attempt_id.in_(_recent(connection)), counts())
    series: dict[tuple[str, ...], list[Row[Any]]] = defaultdict(list)
    for row in connection.execute(query):
        series[row.pipeline, row.stage, row.name, row.unit].append(row)
    shown = [sorted(rows, key=lambda row: row.taken_at)[-limit:] for _, rows in sorted(series.items())]
    # Most values of a stage are given together, and so over the same stretch; one that is rarely given has its own.
    stretches = [_stretch(rows) for rows in shown]
    others = {one: not_done_since(connection, *one) for one in stretches if one is not None}
    return tuple(_trend(rows, None if one is None else others[one]) for rows, one in zip(shown, stretches, strict=True))


def _stretch(rows: list[Row[Any]]) -> tuple[str, str, int, float] | None:
    """Pipeline, stage, and from which sub-job and time of data on a trend of units goes; None for groups."""
    first = rows[0]
    if first.per != "unit":
        return None
    return first.pipeline, first.stage, min(row.sub_job_id for row in rows), first.taken_at


def _trend(rows: list[Row[Any]], others: Outcomes | None) -> Trend:
    last, given = rows[-1], [(row.value, 1 / row.q) for row in rows if row.is_sampled]
    named, whole = (last.pipeline, last.stage, last.name, last.unit), None
    if others is not None:
        whole = weighted_value(*named, given, others.with_done(weight for _, weight in given))
    return Trend(
        pipeline=last.pipeline,
        stage=last.stage,
        per=last.per,
        name=last.name,
        unit=last.unit,
        data_ids=tuple(row.data_id for row in rows),
        values=tuple(row.value for row in rows),
        weights=tuple(1 / row.q if row.is_sampled else 0.0 for row in rows),
        whole=whole,
    )


def _detail(connection: Connection, row: Row[Any], shown: UnitRow, others: tuple[UnitRow, ...]) -> UnitDetail:
    attempts = [one.id for stage in shown.stages for one in stage.attempts]
    came = connection.execute(select(arrival).where(arrival.c.id == row.arrival_id)).one_or_none()
    made = connection.execute(select(dataset).where(dataset.c.attempt_id.in_(attempts)).order_by(dataset.c.id))
    read = connection.execute(
        select(*(column for column in lineage.c if column.name != "id"))
        .where(lineage.c.attempt_id.in_(attempts))
        .order_by(lineage.c.id)
    )
    products = connection.execute(_products().where(product.c.attempt_id.in_(attempts)).order_by(product.c.id))
    summary = connection.execute(
        _summaries().where(summary_value.c.attempt_id.in_(attempts)).order_by(summary_value.c.name)
    )
    return UnitDetail(
        unit=shown,
        run_collection=row.run_collection,
        arrival=None if came is None else as_arrival(came),
        also=others,
        datasets=tuple(DatasetRow(**one._mapping) for one in made),
        lineage=tuple(LineageRow(**one._mapping) for one in read),
        products=tuple(_product(one) for one in products),
        summary=tuple(SummaryRow(**one._mapping) for one in summary),
        journal=journal_rows(connection, subject=shown.data_id, limit=100),
    )


def _recent(connection: Connection) -> list[int]:
    """The latest attempts that published, and those of the latest groups' own stages, which are rarer."""
    done = attempt.c.state == "done"
    newest = select(attempt.c.id).where(done).order_by(attempt.c.id.desc()).limit(RECENT_ATTEMPTS)
    groups = connection.scalars(
        select(data_group.c.data_id)
        .join(job, job.c.group_id == data_group.c.id)
        .join(production_pass, production_pass.c.job_id == job.c.id)
        .order_by(production_pass.c.id.desc())
        .limit(RECENT_PASSES)
    ).all()
    # Their own sub-jobs bear their data ids. In steps: where all is joined, SQLite walks through the history.
    sub_jobs = connection.scalars(select(sub_job.c.id).where(sub_job.c.data_id.in_(groups))).all()
    runs = connection.scalars(select(stage_run.c.id).where(stage_run.c.sub_job_id.in_(sub_jobs))).all()
    of_groups = select(attempt.c.id).where(attempt.c.stage_run_id.in_(runs), done)
    return [*connection.scalars(newest), *connection.scalars(of_groups)]


def _products() -> Select[Any]:
    return (
        select(
            product,
            job.c.pipeline,
            production_pass.c.number.label("pass_number"),
            stage_run.c.stage,
            sub_job.c.data_id,
            sub_job.c.per,
            sub_job.c.taken_at,
            attempt.c.published_at,
        )
        .where(product.c.damage.is_(None))
        .join(attempt, attempt.c.id == product.c.attempt_id)
        .join(stage_run, stage_run.c.id == attempt.c.stage_run_id)
        .join(sub_job, sub_job.c.id == stage_run.c.sub_job_id)
        .join(production_pass, production_pass.c.id == sub_job.c.pass_id)
        .join(job, job.c.id == production_pass.c.job_id)
    )


def _product(row: Row[Any]) -> ProductRow:
    return ProductRow(**{name: value for name, value in row._mapping.items() if name not in ("attempt_id", "damage")})


def _summaries(*also: ColumnElement[Any]) -> Select[Any]:
    return (
        select(
            *also,
            job.c.pipeline,
            stage_run.c.stage,
            sub_job.c.per,
            sub_job.c.data_id,
            summary_value.c.name,
            summary_value.c.value,
            summary_value.c.unit,
            sub_job.c.taken_at,
            stage_run.c.q,
        )
        .join(attempt, attempt.c.id == summary_value.c.attempt_id)
        .join(stage_run, stage_run.c.id == attempt.c.stage_run_id)
        .join(sub_job, sub_job.c.id == stage_run.c.sub_job_id)
        .join(production_pass, production_pass.c.id == sub_job.c.pass_id)
        .join(job, job.c.id == production_pass.c.job_id)
    )
