"""Reading what was archived together with what was not, by the very same views (S10).

On a connection of its own, the tables whose rows are archived are covered by temporary ones of the same names. They
hold all rows of the groups that are asked for, from the ledger and from the archives, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from sqlalchemy import CompoundSelect, Connection, MetaData, Table, func, select

from p3s_prefect.adapters.archive_files import read_manifest, rows_in
from p3s_prefect.adapters.ledger.archiving import MOVED, archives_of, as_live, attempts_of, groups_of
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.adapters.ledger.rows import add_all
from p3s_prefect.adapters.ledger.schema import data_group, job, journal, production_pass, sub_job
from p3s_prefect.core.ports import ObjectStore

_ROWS_AT_ONCE = 1000


@contextmanager
def reading_about(ledger: Ledger, store: ObjectStore, data_id: str) -> Iterator[Connection]:
    """A connection that reads all about a group or unit, wherever its rows are.

    Of other groups, only what is never archived is there to be read.

    Raises:
        LedgerAway: the ledger cannot be read now.
        StoreError: what is archived cannot be read.
    """
    with ledger.reading() as connection:
        if not archives_of(connection, data_id):
            yield connection
            return
    with ledger.reading(own_tables=True) as connection:
        _cover(connection, store, data_id)
        yield connection


def _cover(connection: Connection, store: ObjectStore, data_id: str) -> None:
    groups = list(connection.scalars(groups_of(data_id)))
    names = archives_of(connection, data_id)
    attempts = set(connection.scalars(attempts_of(groups)))
    subjects = set(connection.scalars(_subjects(groups)))
    live = {table.name: _live(connection, table) for table in MOVED}
    manifests = [read_manifest(store, name) for name in names]
    for table in MOVED:
        own = live[table.name]
        column = "subject" if table is journal else "attempt_id"
        _make(connection, own)
        mine = own.c.subject.in_(_subjects(groups)) if table is journal else own.c.attempt_id.in_(attempts_of(groups))
        connection.execute(table.insert().from_select(list(own.c.keys()), select(own).where(mine)))
        wanted = {column: subjects if table is journal else attempts}
        for manifest in manifests:
            rows = (as_live(table, row) for row in rows_in(store, manifest.table(table.name), table, wanted))
            while some := list(islice(rows, _ROWS_AT_ONCE)):
                add_all(connection, table, some)


def _subjects(groups: list[int]) -> CompoundSelect[Any]:
    """The names under which the journal speaks of these groups and their units."""
    of_units = (
        select(sub_job.c.data_id)
        .join(production_pass, production_pass.c.id == sub_job.c.pass_id)
        .join(job, job.c.id == production_pass.c.job_id)
        .where(job.c.group_id.in_(groups))
    )
    return select(data_group.c.data_id).where(data_group.c.id.in_(groups)).union(of_units)


def _live(connection: Connection, table: Table) -> Table:
    """The ledger's table under its full name, which a temporary one does not cover."""
    if connection.dialect.name == "sqlite":
        return table.to_metadata(MetaData(), schema="main")
    return table.to_metadata(MetaData(), schema=str(connection.scalar(select(func.current_schema()))))


def _make(connection: Connection, live: Table) -> None:
    quoted = connection.dialect.identifier_preparer
    ends = "" if connection.dialect.name == "sqlite" else " ON COMMIT DROP"
    name, full = quoted.quote(live.name), quoted.format_table(live)
    # Names of the schema; with the columns' types, and without what holds them together.
    connection.exec_driver_sql(f"CREATE TEMPORARY TABLE {name}{ends} AS SELECT * FROM {full} WHERE 1 = 0")  # noqa: S608
