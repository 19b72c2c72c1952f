"""Archiving what is over: it leaves the ledger, is read as before, and is nowhere twice nor lost (S10)."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from builders import NOW, arrival, kill_at_random, take
from published import BusyStore, age, overwrite, publish
from sqlalchemy import Connection, func, select, update

from p3s_prefect.adapters import archive_files
from p3s_prefect.adapters.clock import SystemClock
from p3s_prefect.adapters.directory_store import DirectoryStore
from p3s_prefect.adapters.ledger import archiving, groups, reports, result_views, schema, views
from p3s_prefect.adapters.ledger.archived import reading_about
from p3s_prefect.adapters.ledger.archiving import COPIED, MOVED, as_live
from p3s_prefect.adapters.ledger.backups import back_up
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.adapters.ledger.weighted_rows import group_values
from p3s_prefect.adapters.s3_store import S3Store
from p3s_prefect.core.agreement import Done, Trouble
from p3s_prefect.core.closing import GroupFact
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.errors import Conflict, StoreError
from p3s_prefect.core.ports import ObjectStore
from p3s_prefect.core.reports import Scope
from p3s_prefect.station import archiving as station_archiving
from p3s_prefect.station.archiving import Archiving
from p3s_prefect.station.reconciling import Reconciliation
from p3s_prefect.station.sweeper import sweep
from p3s_prefect.station.taking_over import take_over

RUNS, UNITS = (1, 2, 3), 3
LATER = NOW + 100 * 86_400


def work(ledger: Ledger, store: ObjectStore) -> Archiving:
    return Archiving(ledger=ledger, store=store, clock=SystemClock(), by="me", sweep_after_s=3600)


def close(connection: Connection, run: int) -> None:
    row = connection.execute(select(schema.data_group).where(schema.data_group.c.data_id == f"run={run}")).one()
    fact = GroupFact(id=row.id, data_id=DataId.of(run=run), last_arrival_at=NOW, arrivals=row.arrivals)
    groups.close(connection, fact, "marker", {}, NOW)


def fill(ledger: Ledger, store: ObjectStore, runs: tuple[int, ...] = RUNS, units: int = UNITS) -> None:
    """Closed runs of a few units each."""
    for run in runs:
        publish(ledger, store, range(units), f"run {run} {{}}", run=run)
        with ledger.transaction() as connection:
            close(connection, run)


@pytest.fixture
def filled(ledger: Ledger, store: DirectoryStore) -> Ledger:
    fill(ledger, store)
    return ledger


def told(ledger: Ledger, store: ObjectStore, runs: tuple[int, ...] = RUNS, units: int = UNITS) -> dict[str, Any]:
    """All that people are told of the units and groups."""
    found: dict[str, Any] = {}
    for run in runs:
        group = f"run={run}"
        with reading_about(ledger, store, group) as connection:
            found[group] = (
                result_views.group_or_unit(connection, group),
                group_values(connection, group),
                result_views.group_products(connection, group),
                views.journal_rows(connection, subject=group),
                reports.coverage(connection, Scope(group=group)),
                reports.latency(connection, Scope(group=group)),
            )
        for subrun in range(units):
            unit = f"{group} subrun={subrun}"
            with reading_about(ledger, store, unit) as connection:
                found[unit] = result_views.unit(connection, unit), views.journal_rows(connection, subject=unit)
    with ledger.reading() as connection:
        found["period"] = reports.coverage(connection, Scope(since=NOW - 1)), reports.latency(connection, Scope())
        found["units"] = views.units(connection)
    return found


Rows = dict[str, "Counter[str]"]


def everywhere(ledger: Ledger, store: ObjectStore) -> Rows:
    """Every row of the tables that are archived, in the ledger and in its archives, with how often it is there."""
    found: Rows = {}
    with ledger.reading() as connection:
        names = archiving.archives(connection)
        for table in MOVED:
            rows = [dict(row) for row in connection.execute(select(table)).mappings()]
            for name in names:
                stored = archive_files.read_manifest(store, name).table(table.name)
                rows += [as_live(table, row) for row in archive_files.rows_in(store, stored, table)]
            told = (repr(row) for row in rows if not str(row.get("kind")).startswith("ledger."))
            found[table.name] = Counter(told)
    return found


def count(ledger: Ledger, name: str) -> int:
    with ledger.reading() as connection:
        return connection.scalar(select(func.count()).select_from(schema.metadata.tables[name])) or 0


def test_what_was_archived_is_read_as_before(filled: Ledger, store: DirectoryStore) -> None:
    """S10: units, values, products, journal, coverage and latency are the same to the last digit; the rows are gone."""
    before, rows = told(filled, store), everywhere(filled, store)
    kept = {table.name: count(filled, table.name) for table in COPIED}
    planned = work(filled, store).plan(LATER)
    assert [(row.data_id, row.goes) for row in planned] == [("run=1", True), ("run=2", True), ("run=3", False)]
    found = work(filled, store).run(LATER)
    assert found.groups == planned
    (one,) = found.archives
    assert [(table.name, table.rows) for table in one.tables if table.is_moved][:3] == [
        ("product", 2 * UNITS),
        ("summary_value", 4 * UNITS),
        ("lineage", 2 * UNITS),
    ]
    assert (count(filled, "product"), count(filled, "summary_value")) == (UNITS, 2 * UNITS)
    assert {table.name: count(filled, table.name) for table in COPIED} == kept
    assert told(filled, store) == before
    assert everywhere(filled, store) == rows
    # A second run has nothing to do.
    again = work(filled, store).run(LATER)
    assert (again.archives, again.left, [row.goes for row in again.groups]) == ((), (), [False])
    assert told(filled, store) == before


def test_an_archive_can_be_read_by_itself(filled: Ledger, store: DirectoryStore) -> None:
    """S10: any program that reads parquet finds all that belongs together, in the columns' own types."""
    import pandas as pd

    (one,) = work(filled, store).run(LATER).archives
    at = store.root / one.name
    tables = {file.stem: pd.read_parquet(file) for file in at.glob("*.parquet")}
    assert set(tables) == {table.name for table in (*MOVED, *COPIED)}
    found = (
        tables["summary_value"]
        .merge(tables["attempt"].rename(columns={"id": "attempt_id"}), on="attempt_id")
        .merge(tables["stage_run"].rename(columns={"id": "stage_run_id"}), on="stage_run_id")
        .merge(tables["sub_job"].rename(columns={"id": "sub_job_id"}), on="sub_job_id")
    )
    assert sorted(found.query("name == 'noise'")["data_id"]) == [
        f"run={r} subrun={s}" for r in (1, 2) for s in range(3)
    ]
    assert set(found.query("name == 'noise'")["value"]) == {"4.2"}
    assert tables["attempt"]["started_at"].dtype == "float64"
    assert [row.rows for row in one.tables] == [len(tables[row.name]) for row in one.tables]


@pytest.mark.sockets
def test_a_bucket_takes_archives_too(new_ledger: Callable[[], Ledger], s3_store: S3Store) -> None:
    """S10, S3: written, read back, and read again."""
    ledger = new_ledger()
    fill(ledger, s3_store)
    before, rows = told(ledger, s3_store), everywhere(ledger, s3_store)
    assert len(work(ledger, s3_store).run(LATER).archives) == 1
    assert told(ledger, s3_store) == before
    assert everywhere(ledger, s3_store) == rows


def test_others_write_while_the_store_is_slow(filled: Ledger, store: DirectoryStore) -> None:
    """S10, P8: nothing is read from the store within a transaction of the ledger."""
    busy, before = BusyStore(store.root, filled), told(filled, store)
    assert len(work(filled, busy).run(LATER).archives) == 1
    assert told(filled, busy) == before


# --- what stays ------------------------------------------------------------------------------------------------------


def _open_again(connection: Connection) -> None:
    connection.execute(update(schema.data_group).where(schema.data_group.c.id == 1).values(is_open=True))


def _not_settled(connection: Connection) -> None:
    connection.execute(update(schema.sub_job).where(schema.sub_job.c.id == 1).values(settled_at=None, state="arrived"))


def _settled_late(connection: Connection) -> None:
    connection.execute(update(schema.sub_job).where(schema.sub_job.c.id == 1).values(settled_at=LATER + 1))


def _damaged(connection: Connection) -> None:
    connection.execute(update(schema.dataset).where(schema.dataset.c.id == 1).values(damage="it is not in the store"))


def _picture_damaged(connection: Connection) -> None:
    connection.execute(update(schema.product).where(schema.product.c.id == 1).values(damage="it is not in the store"))


def _owed(connection: Connection) -> None:
    connection.execute(update(schema.attempt).where(schema.attempt.c.id == 1).values(is_recorded=False))


def _open_pass(connection: Connection) -> None:
    connection.execute(update(schema.production_pass).where(schema.production_pass.c.id == 1).values(is_open=True))


def _asked(detail: dict[str, Any]) -> Callable[[Connection], None]:
    def ask(connection: Connection) -> None:
        values = {"kind": "retry", "asked_by": "me", "why": "", "asked_at": NOW, "detail": detail}
        connection.execute(schema.request.insert().values(values))

    return ask


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_open_again, "it has not closed"),
        (_open_pass, "it has not closed"),
        (_not_settled, "some of its work has not settled"),
        (_settled_late, "it ended later"),
        (_damaged, "a result is damaged: `p3s reconcile` first"),
        (_picture_damaged, "a result is damaged: `p3s reconcile` first"),
        (_owed, "the station owes it a commit record"),
        (_asked({"target": "dqm run=1 subrun=2"}), "a request about it is not answered"),
        (_asked({"pass_id": 1}), "a request about it is not answered"),
        (_asked({"group": "run=1", "pipeline": "dqm"}), "a request about it is not answered"),
    ],
)
def test_what_is_not_over_stays(
    filled: Ledger, store: DirectoryStore, change: Callable[[Connection], None], why: str
) -> None:
    """S10: only what has ended, before the date, and that nobody has anything to do with, is archived."""
    with filled.transaction() as connection:
        change(connection)
    planned = {row.data_id: row.why for row in work(filled, store).plan(LATER)}
    assert planned == {"run=1": why, "run=2": "", "run=3": "it has the newest results, which stay"}
    assert work(filled, store).plan(NOW - 1) == ()


def test_what_prefect_was_not_told_stays_in_the_journal(filled: Ledger, store: DirectoryStore) -> None:
    """S10, P10: the agent goes on at its cursor, and finds all lines behind it."""
    with filled.transaction() as connection:
        connection.execute(
            schema.agent_cursor.insert().values(name="prefect", site="x", number=5, seen_at=NOW, problem="")
        )
        behind = connection.scalars(select(schema.journal.c.number).where(schema.journal.c.number > 5)).all()
    assert work(filled, store).run(LATER).archives[0].journal_to == 5
    with filled.reading() as connection:
        assert set(behind) <= set(connection.scalars(select(schema.journal.c.number)))


# --- what comes later ------------------------------------------------------------------------------------------------


def test_no_number_is_given_twice_and_no_file_taken_twice(filled: Ledger, store: DirectoryStore) -> None:
    """S10, P2, P22: an archived file that is listed again is known; a late unit opens the next pass."""
    with filled.reading() as connection:
        highest = {
            table.name: connection.scalar(select(func.max(next(iter(table.primary_key.columns)))))
            for table in (schema.product, schema.lineage, schema.journal, schema.attempt)
        }
    work(filled, store).run(LATER)
    before = told(filled, store)
    with filled.transaction() as connection:
        assert take(connection, arrival(0, run=1)).verdict is None
        late = take(connection, arrival(7, run=1))
        (fact,) = late.sub_jobs
        number = connection.scalar(
            select(schema.production_pass.c.number).where(schema.production_pass.c.id == fact.pass_id)
        )
        assert number == 1
    publish(filled, store, [8], run=1)
    with filled.reading() as connection:
        for name, most in highest.items():
            table = schema.metadata.tables[name]
            key = next(iter(table.primary_key.columns))
            assert connection.scalar(select(func.count()).where(key > most)) > 0
            assert connection.scalar(select(func.max(key))) > most
    for unit in ("run=1 subrun=0", "run=1 subrun=2"):
        assert told(filled, store)[unit] == before[unit]
    with reading_about(filled, store, "run=1 subrun=8") as connection:
        assert len(result_views.unit(connection, "run=1 subrun=8").products) == 1
    # The values of the group are those of both passes together.
    with reading_about(filled, store, "run=1") as connection:
        assert {value.estimate.sampled for value in group_values(connection, "run=1")} == {UNITS + 1}


def test_a_group_that_went_on_is_archived_again(filled: Ledger, store: DirectoryStore) -> None:
    """S10: its later pass goes into an archive of its own, and both are read."""
    first = work(filled, store).run(LATER).archives
    publish(filled, store, [8], run=1)
    with filled.transaction() as connection:
        close(connection, 1)
    publish(filled, store, [0], run=9)
    rows, before = everywhere(filled, store), told(filled, store)
    second = work(filled, store).run(LATER).archives
    assert [[group.data_id for group in one.groups] for one in (*first, *second)] == [
        ["run=1", "run=2"],
        ["run=1", "run=3"],
    ]
    assert everywhere(filled, store) == rows
    assert told(filled, store) == before


def test_the_sweeper_leaves_archives_and_what_is_in_them(filled: Ledger, store: DirectoryStore) -> None:
    """S10: neither the files of an archive nor the objects of archived attempts are orphans."""
    work(filled, store).run(LATER)
    for one in list(store.list("")):
        age(store.root / one.key)
    there = [one.key for one in store.list("")]
    assert sweep(filled, store, LATER) == []
    assert [one.key for one in store.list("")] == there


def reconcile(ledger: Ledger, store: ObjectStore, *copies: ObjectStore) -> list[tuple[Trouble, Done, str]]:
    found = Reconciliation(
        ledger=ledger,
        store=store,
        clock=SystemClock(),
        namespace="test",
        lease_s=60,
        sweep_after_s=3600,
        copies=copies,
    ).run()
    return [(one.trouble, one.done, one.key.rpartition("/")[2]) for one in found]


def test_reconciling_knows_what_is_archived(filled: Ledger, store: DirectoryStore, tmp_path: Path) -> None:
    """B11, S10: nothing archived is an orphan; what is damaged is put back; a manifest is written whole."""
    work(filled, store).run(LATER)
    assert reconcile(filled, store) == []
    shutil.copytree(store.root, tmp_path / "copy")
    copy = DirectoryStore(tmp_path / "copy")
    with filled.reading() as connection:
        prefix, execution = connection.execute(select(schema.attempt.c.prefix, schema.attempt.c.execution)).first()
    at = store.root / prefix / execution
    manifest = (at / "manifest.json").read_bytes()
    (at / "manifest.json").unlink()
    (at / "work" / "a.png").unlink()
    (name,) = archive_files.stored_archives(store)[0]
    overwrite(store.root / name / "lineage.parquet", b"turned")
    (store.root / name / "archive.json").unlink()
    troubles = {Trouble.ARCHIVE: "archive.json", Trouble.MISSING: "a.png", Trouble.NO_MANIFEST: "manifest.json"}
    left = reconcile(filled, store)
    assert {(trouble, key) for trouble, _, key in left} >= {(Trouble.ARCHIVE, "archive.json")}
    assert Done.MENDED not in [done for _, done, _ in left]
    mended = [*reconcile(filled, store, copy), *reconcile(filled, store, copy)]
    assert {(trouble, key) for trouble, done, key in mended if done is Done.MENDED} >= set(troubles.items())
    assert reconcile(filled, store) == []
    assert json.loads((at / "manifest.json").read_bytes()) == json.loads(manifest)
    assert (at / "work" / "a.png").read_bytes() == (copy.root / prefix / execution / "work" / "a.png").read_bytes()
    assert told(filled, store)


def test_a_ledger_that_is_rebuilt_has_all_rows_again(filled: Ledger, store: DirectoryStore, tmp_path: Path) -> None:
    """S10: records and manifests tell it anew; what was archived before stays, and is no part of the new one."""
    work(filled, store).run(LATER)
    with closing(Ledger(f"sqlite:///{tmp_path}/rebuilt.db")) as rebuilt:
        rebuilt.migrate()
        assert take_over(rebuilt, store, NOW).publications == len(RUNS) * UNITS
        assert count(rebuilt, "product") == len(RUNS) * UNITS
        found = work(rebuilt, store).run(LATER)
        assert (len(found.left), len(found.archives)) == (1, 1)
        assert count(rebuilt, "product") == UNITS


def test_a_backup_from_before_is_brought_to_the_same_state(store: DirectoryStore, tmp_path: Path) -> None:
    """S10: what it has again is found in the archive, and leaves it once more."""
    live, old = tmp_path / "live.db", tmp_path / "old.db"
    with closing(Ledger(f"sqlite:///{live}")) as ledger:
        ledger.migrate()
        fill(ledger, store)
        back_up(live, old)
        rows, made = everywhere(ledger, store), work(ledger, store).run(LATER).archives
    with closing(Ledger(f"sqlite:///{old}")) as restored:
        assert count(restored, "product") == len(RUNS) * UNITS
        assert work(restored, store).run(LATER).archives == made
        assert everywhere(restored, store) == rows


# --- being killed ----------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """As if the process had ended."""


@dataclass
class Mortal:
    """A store at whose step `at` the process ends, before that is done."""

    store: ObjectStore
    at: int
    steps: int = 0
    url: str = field(default="file:///mortal")

    def __getattr__(self, name: str) -> Any:
        call = getattr(self.store, name)

        def step(*arguments: Any) -> Any:
            self.steps += 1
            if self.steps == self.at:
                raise Killed(name)
            return call(*arguments)

        return step


def test_killed_at_any_step_the_next_run_completes_it(
    new_ledger: Callable[[], Ledger], tmp_path: Path, database: str
) -> None:
    """S10: nothing is lost and nothing is there twice, whichever access to the store was the last."""
    # One database has all steps; the other sees to it that this is no matter of the database.
    for at in range(1, 200, 1 if database == "sqlite" else 11):
        ledger, store = new_ledger(), DirectoryStore(tmp_path / f"store{at}")
        fill(ledger, store, (1, 2), 1)
        before, rows = told(ledger, store, (1, 2), 1), everywhere(ledger, store)
        mortal = Mortal(store, at)
        try:
            work(ledger, mortal).run(LATER)  # type: ignore[arg-type]
        except Killed:
            assert everywhere(ledger, store) == rows
            assert work(ledger, store).run(LATER).left == ()
        assert everywhere(ledger, store) == rows
        assert told(ledger, store, (1, 2), 1) == before
        assert count(ledger, "product") == 1
        if mortal.steps < at:
            break
    assert mortal.steps in range(25, at)


def test_killed_at_the_end_of_the_transaction_all_is_still_in_the_ledger(
    filled: Ledger, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S10: the rows go in the transaction that notes the archive, or not; the next run takes the same archive."""
    rows, take_out = everywhere(filled, store), archiving.take_out

    def die(*arguments: Any, **words: Any) -> None:
        take_out(*arguments, **words)
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(archiving, "take_out", die)
        with pytest.raises(Killed):
            work(filled, store).run(LATER)
    assert count(filled, "archive") == 0
    assert count(filled, "product") == len(RUNS) * UNITS
    (name,) = archive_files.stored_archives(store)[0]
    assert [one.name for one in work(filled, store).run(LATER).archives] == [name]
    assert everywhere(filled, store) == rows


def test_killed_at_random(new_ledger: Callable[[], Ledger], tmp_path: Path) -> None:
    """S10: by kill -9, with a connection of its own."""
    ledger, store, chance = new_ledger(), DirectoryStore(tmp_path / "store"), random.Random(7)
    url = ledger._engine.url.render_as_string(hide_password=False)

    def archive(begin: Callable[[], None]) -> None:
        with closing(Ledger(url)) as own:
            begin()
            while True:
                work(own, store).run(LATER)

    for run in range(1, 8):
        publish(ledger, store, range(UNITS), run=run)
        with ledger.transaction() as connection:
            close(connection, run)
        rows = everywhere(ledger, store)
        kill_at_random(archive, chance, within_s=0.4)
        assert everywhere(ledger, store) == rows
    work(ledger, store).run(LATER)
    assert everywhere(ledger, store) == rows
    assert count(ledger, "product") == UNITS


def test_what_changed_meanwhile_is_not_removed(
    filled: Ledger, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S10: what is removed is what was written, to the last column; else it is said, and the next run writes anew."""
    verify = archive_files.verify

    def meddle(*arguments: Any) -> None:
        verify(*arguments)
        with filled.transaction() as connection:
            connection.execute(update(schema.product).where(schema.product.c.id == 1).values(title="Other"))

    with monkeypatch.context() as patched:
        patched.setattr(archive_files, "verify", meddle)
        with pytest.raises(Conflict, match="does not hold what the ledger has in product"):
            work(filled, store).run(LATER)
    assert count(filled, "product") == len(RUNS) * UNITS
    found = work(filled, store).run(LATER)
    assert [why for _, why in found.left] == [f"{found.left[0][0]} does not hold what the ledger has in product"]
    assert len(found.archives) == 1
    assert count(filled, "product") == UNITS


def test_an_archive_that_cannot_be_read_back_removes_nothing(
    filled: Ledger, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S10: bytes that a disk has turned are found before anything leaves the ledger."""
    put_file = DirectoryStore.put_file

    def turned(self: DirectoryStore, key: str, path: Path) -> Any:
        found = put_file(self, key, path)
        if key.endswith("/summary_value.parquet"):
            stored = self.root / key
            stored.chmod(0o644)
            stored.write_bytes(stored.read_bytes().swapcase())
        return found

    rows = everywhere(filled, store)
    with monkeypatch.context() as patched:
        patched.setattr(DirectoryStore, "put_file", turned)
        with pytest.raises(StoreError, match="SHA-256"):
            work(filled, store).run(LATER)
    assert everywhere(filled, store) == rows
    assert count(filled, "summary_value") == 2 * len(RUNS) * UNITS


def test_an_archive_that_is_damaged_says_what_to_do(filled: Ledger, store: DirectoryStore) -> None:
    """S10, S8: other groups are read as ever."""
    (one,) = work(filled, store).run(LATER).archives
    overwrite(store.root / one.table("product").key, b"turned")
    with pytest.raises(StoreError, match="p3s reconcile --copies"):
        told(filled, store, (1,))
    told(filled, store, (3,))
    (store.root / one.key).unlink()
    with pytest.raises(StoreError, match="no object archive/"):
        told(filled, store, (2,))


def test_what_was_never_completed_goes_when_it_is_old(filled: Ledger, store: DirectoryStore) -> None:
    """S10: files without a manifest are no archive; somebody may be writing them, so young ones stay."""
    for name, is_old in (("archive/20270101-20270101-aaaaaaaaaaaa", True), ("archive/20270101-20270101-bbbb", False)):
        store.put_bytes(f"{name}/product.parquet", b"half")
        if is_old:
            age(store.root / name / "product.parquet")
    (one,) = work(filled, store).run(LATER).archives
    assert list(archive_files.stored_archives(store)[1]) == ["archive/20270101-20270101-bbbb"]
    # An archive that has lost its manifest is none of these.
    (store.root / one.key).unlink()
    for table in one.tables:
        age(store.root / table.key)
    work(filled, store).run(LATER)
    assert set(archive_files.stored_archives(store)[1]) == {"archive/20270101-20270101-bbbb", one.name}


def test_large_periods_go_in_several_archives(
    filled: Ledger, store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S10, P8: a transaction that a station waits for is bounded."""
    monkeypatch.setattr(station_archiving, "_ROWS_AT_ONCE", 5 * UNITS)
    before, rows = told(filled, store), everywhere(filled, store)
    found = work(filled, store).run(LATER)
    assert [[group.data_id for group in one.groups] for one in found.archives] == [["run=1"], ["run=2"]]
    assert told(filled, store) == before
    assert everywhere(filled, store) == rows
