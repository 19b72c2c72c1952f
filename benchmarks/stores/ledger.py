"""What the ledger keeps up with: transitions a second by the number of clients, and their cost by its length."""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from threading import Thread

from benchmarks.table import Row
from p3s_prefect.adapters.ledger import adoption, execution
from p3s_prefect.adapters.ledger.database import Lease, Ledger, acquire
from p3s_prefect.station.committer import Committer
from tests.adapters.builders import NOW, arrival, manifest, take
from tests.postgresql import server

CLIENTS = (1, 4, 16)
LENGTHS = (10_000, 100_000, 1_000_000)
QUICK_LENGTHS = LENGTHS[:2]
# Of a unit with one stage: it starts, and it is published.
_TRANSITIONS = 2
_UNITS = 480
_GROUP = 1000


def run(is_quick: bool) -> list[Row]:
    """Both databases, each with its writes made durable, in one table."""
    lengths, units = (QUICK_LENGTHS if is_quick else LENGTHS), _UNITS
    return [
        row
        for name, opened in (("SQLite", _in_file), ("PostgreSQL", _on_server))
        for row in [*_by_clients(name, opened, units), *_by_length(name, opened, lengths, units)]
    ]


@contextmanager
def _in_file() -> Iterator[Ledger]:
    with (
        tempfile.TemporaryDirectory(prefix="p3s-bench-") as folder,
        closing(Ledger(f"sqlite:///{Path(folder) / 'ledger.db'}")) as ledger,
    ):
        ledger.migrate()
        yield ledger


@contextmanager
def _on_server() -> Iterator[Ledger]:
    with (
        server(fsync="on", autovacuum="on", max_wal_size="1GB", shared_buffers="128MB") as found,
        closing(Ledger(found.url(found.create()))) as ledger,
    ):
        ledger.migrate()
        yield ledger


# --- clients --------------------------------------------------------------------------------------------------------


def _by_clients(name: str, opened: Callable[[], Iterator[Ledger]], units: int) -> Iterator[Row]:
    with opened() as ledger:
        lease, first = _lease(ledger), 0
        for clients in CLIENTS:
            waiting = _queued(ledger, first, units)
            first += units
            rate = _TRANSITIONS * units / asyncio.run(_through_committer(ledger, lease, waiting, clients))
            yield Row(f"{name}: transitions through the station, {clients} at once", f"{rate:.0f}/s", "")
        for clients in CLIENTS if ledger.is_server else ():
            waiting = _queued(ledger, first, units)
            first += units
            rate = _TRANSITIONS * units / _by_connections(ledger, waiting, clients)
            yield Row(f"{name}: transitions, {clients} connections", f"{rate:.0f}/s", "")


def _lease(ledger: Ledger) -> Lease:
    with ledger.transaction() as connection:
        return acquire(connection, namespace="bench", holder="here:1", lease_s=1e6, now=NOW)


def _queued(ledger: Ledger, first: int, units: int) -> list[int]:
    """Stage runs of new units."""
    with ledger.transaction() as connection:
        taken = [take(connection, arrival(first + number, run=99_999)) for number in range(units)]
    return [one.sub_jobs[0].stages[0].id for one in taken]


async def _through_committer(ledger: Ledger, lease: Lease, waiting: list[int], clients: int) -> float:
    begun = time.perf_counter()
    async with Committer(ledger, lease) as committer:

        async def client() -> None:
            while waiting:
                number = waiting.pop()
                opened = await committer.do(partial(execution.start, stage_run_id=number, now=NOW))
                await committer.do(partial(execution.publish, manifest=manifest(opened), now=NOW))

        await asyncio.gather(*(client() for _ in range(clients)))
    return time.perf_counter() - begun


def _by_connections(ledger: Ledger, waiting: list[int], clients: int) -> float:
    def client() -> None:
        for number in iter(lambda: waiting.pop() if waiting else None, None):
            _one(ledger, number)

    threads = [Thread(target=client) for _ in range(clients)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - begun


def _one(ledger: Ledger, number: int) -> None:
    with ledger.transaction() as connection:
        opened = execution.start(connection, number, NOW)
    with ledger.transaction() as connection:
        execution.publish(connection, manifest(opened), NOW)


# --- length ---------------------------------------------------------------------------------------------------------


def _by_length(name: str, opened: Callable[[], Iterator[Ledger]], lengths: Sequence[int], units: int) -> Iterator[Row]:
    with opened() as ledger:
        filled, first_s = 0, 0.0
        waiting = [_queued(ledger, place * units, units) for place in range(len(lengths))]
        for length, some in zip(lengths, waiting, strict=True):
            fill(ledger, filled, length)
            filled = length
            each_s = _cost(ledger, some)
            first_s = first_s or each_s
            ratio = f"{each_s / first_s:.2f} (wanted: at most 1.20)"
            yield Row(f"{name}: one transition at {length:,} sub-jobs", f"{1e3 * each_s:.2f} ms", ratio)


def _cost(ledger: Ledger, waiting: list[int]) -> float:
    """The median of many single transitions, in seconds, without the commit, whose cost is the disk's."""
    times: list[float] = []
    for number in waiting:
        with ledger.transaction() as connection:
            begun = time.perf_counter()
            opened = execution.start(connection, number, NOW)
            execution.publish(connection, manifest(opened), NOW)
            times.append((time.perf_counter() - begun) / _TRANSITIONS)
    return statistics.median(times)


def fill(ledger: Ledger, first: int, last: int) -> None:
    """Finished units, as a station would have left them, by a few statements."""
    with ledger.transaction() as connection:
        if ledger.is_server:
            # Else each row is looked up in what it refers to.
            connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
        for statement in _FILL:
            connection.exec_driver_sql(statement.format(**_numbers(first, last)))
        adoption.continue_numbers(connection)
    with ledger.transaction() as connection:
        connection.exec_driver_sql("ANALYZE")


def _numbers(first: int, last: int) -> dict[str, object]:
    many = "WITH RECURSIVE n(i) AS (SELECT {} UNION ALL SELECT i + 1 FROM n WHERE i < {})"
    return {
        "units": many.format(first + 1, last),
        "groups": many.format(first // _GROUP, (last - 1) // _GROUP),
        "g": f"((i - 1) / {_GROUP})",
        "unit": f"'run=' || ((i - 1) / {_GROUP}) || ' subrun=' || i",
        "at": "1700000000.0",
        # Above all numbers that were given before.
        "o": 10_000_000 + 10 * first,
    }


_FILL = (
    "INSERT INTO configuration VALUES ('c', '{{}}', {at}) ON CONFLICT DO NOTHING",
    "{groups} INSERT INTO data_group (id, data_id, day, opened_at, last_arrival_at, arrivals, is_open)"
    " SELECT i + {o}, 'run=' || i, '20231114', {at}, {at}, 1000, false FROM n",
    "{groups} INSERT INTO job (id, group_id, pipeline) SELECT i + {o}, i + {o}, 'dqm' FROM n",
    "{groups} INSERT INTO run_collection (name, configuration_id, opened_at) SELECT 'c/' || i, 'c', {at} FROM n",
    "{groups} INSERT INTO production_pass (id, job_id, number, run_collection, is_open, opened_at)"
    " SELECT i + {o}, i + {o}, 0, 'c/' || i, false, {at} FROM n",
    "{units} INSERT INTO arrival (stream, key, size, mtime_ns, path, data_id, dataset_type, arrived_at, verdict,"
    " reason) SELECT 'raw', 'r' || i, 3, i, '/r' || i, {unit}, 'raw', {at}, 'taken', '' FROM n",
    "{units} INSERT INTO sub_job (id, pass_id, data_id, per, taken_at, arrived_at, u, state, settled_at)"
    " SELECT i + {o}, {g} + {o}, {unit}, 'unit', {at}, {at}, 0.5, 'done', {at} FROM n",
    "{units} INSERT INTO stage_run (id, sub_job_id, stage, position, state, reason, q, settled_at, failures, losses)"
    " SELECT i + {o}, i + {o}, 'quick', 0, 'done', '', 1.0, {at}, 0, 0 FROM n",
    "{units} INSERT INTO attempt (id, stage_run_id, number, state, reason, prefix, opened_at, execution, is_recorded)"
    " SELECT i + {o}, i + {o}, 0, 'done', '', 'runs/' || i, {at}, 'e1', true FROM n",
    "{units} INSERT INTO dataset (id, dataset_type, data_id, run_collection, format, key, size, sha256, attempt_id)"
    " SELECT i + {o}, 'quick', {unit}, 'c/' || {g}, 'json', 'runs/' || i || '/a', 3, 'x', i + {o} FROM n",
    "{units} INSERT INTO journal (number, at, kind, subject, detail)"
    " SELECT i + {o}, {at}, 'stage.done', {unit}, '{{}}' FROM n",
)
