"""Opening the ledger: migrations, and the lease of the one who may write."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import alembic.command
import pytest
import sqlalchemy
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from builders import NOW, arrival, contents, take
from postgresql import Server
from sqlalchemy import CheckConstraint, Connection, func, inspect, select

from p3s_prefect.adapters.ledger import database as opening
from p3s_prefect.adapters.ledger import schema
from p3s_prefect.adapters.ledger.database import Lease, Ledger, acquire, renew
from p3s_prefect.core.errors import LeaseLost, LedgerError, LedgerTooNew


def _url(path: Path) -> str:
    return f"sqlite:///{path}"


def _acquire(ledger: Ledger, holder: str, now: float = NOW) -> Lease:
    with ledger.transaction() as connection:
        return acquire(connection, namespace="station", holder=holder, lease_s=15, now=now)


# --- migrations -----------------------------------------------------------------------------------------------------


def test_the_migrations_make_what_the_schema_declares(ledger: Ledger) -> None:
    """V13: the ledger has exactly the constraints that publication relies on."""
    with ledger.reading() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, schema.metadata) == []
        found = {
            (table, constraint["name"])
            for table in inspect(connection).get_table_names()
            for constraint in inspect(connection).get_check_constraints(table)
        }
    declared = {
        (table.name, constraint.name)
        for table in schema.metadata.tables.values()
        for constraint in table.constraints
        if isinstance(constraint, CheckConstraint)
    }
    assert found == declared


def test_migrating_again_keeps_what_is_there(ledger: Ledger) -> None:
    """B10."""
    with ledger.transaction() as connection:
        take(connection, arrival(1))
        before = contents(connection)
    ledger.migrate()
    with ledger.reading() as connection:
        assert contents(connection) == before


@pytest.fixture
def old_ledger(database: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Ledger]:
    """A ledger as the first version left it."""
    url = _url(tmp_path / "old.db")
    if database == "postgresql":
        server: Server = request.getfixturevalue("postgresql")
        url = server.url(server.create())
    with closing(Ledger(url)) as ledger:
        config = opening._alembic_config()
        with ledger.transaction() as connection:
            config.attributes["connection"] = connection
            alembic.command.upgrade(config, "0001")
        yield ledger


def test_an_old_ledger_is_upgraded_in_place(old_ledger: Ledger) -> None:
    """S4: what stands in it stays, and it is used as a new one."""
    with old_ledger.transaction() as connection:
        for statement in _OLD_ROWS:
            connection.exec_driver_sql(statement)
    old_ledger.migrate()
    with old_ledger.transaction() as connection:
        found = contents(connection)
        assert found["lease"] == [("station", "old:1", 7, 5.0, 0)]
        assert [row[:4] for row in found["journal"]] == [(1, NOW, "arrival.taken", "run=1 subrun=1")]
        assert take(connection, arrival(1, key="old.fits")).verdict is None
        assert take(connection, arrival(2)).sub_jobs
        assert connection.scalar(select(func.max(schema.journal.c.number))) == 3


_OLD_ROWS = (
    "INSERT INTO lease VALUES ('station', 'old:1', 7, 5.0)",
    "INSERT INTO journal VALUES (1, 1800000000.0, 'arrival.taken', 'run=1 subrun=1', '{}')",
    "INSERT INTO arrival (stream, key, size, mtime_ns, path, data_id, dataset_type, arrived_at, verdict, reason)"
    " VALUES ('raw', 'old.fits', 3, 1800000000000000000, '/old', 'run=1 subrun=1', 'raw', 1800000000.0, 'taken', '')",
)


def test_processes_that_start_together_migrate_once(tmp_path: Path) -> None:
    """V20: one finds the tables that another has just made; each time four of them on a new file."""
    for number in range(15):
        gate, opener = os.pipe()
        children = [_migrating(_url(tmp_path / f"ledger{number}.db"), gate, opener) for _ in range(4)]
        os.close(gate)
        os.close(opener)
        assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 4


def _migrating(url: str, gate: int, opener: int) -> int:
    """A process that migrates once the gate is opened: when nobody holds its other end any more."""
    child = os.fork()
    if child == 0:
        try:
            os.close(opener)
            os.read(gate, 1)
            Ledger(url).migrate()
            os._exit(0)
        finally:
            os._exit(1)
    return child


def test_a_ledger_of_a_newer_version_is_left_alone(ledger: Ledger) -> None:
    """S8."""
    with ledger.transaction() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(LedgerTooNew, match="9999") as refused:
        ledger.migrate()
    assert "Install that version" in str(refused.value)
    with ledger.reading() as connection:
        assert connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar() == "9999"


def test_a_file_that_is_no_database_is_named_and_kept(tmp_path: Path) -> None:
    """S8."""
    path = tmp_path / "notes.txt"
    path.write_bytes(b"these are the notes of last night, and no database at all" * 100)
    before = path.read_bytes()
    ledger = Ledger(_url(path))
    with pytest.raises(LedgerError, match=r"notes\.txt is not a ledger"):
        ledger.migrate()
    ledger.close()
    assert path.read_bytes() == before


@pytest.mark.parametrize("place", ["absent/ledger.db", "file/ledger.db", "folder"])
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, place: str) -> None:
    """S8."""
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    ledger = Ledger(_url(tmp_path / place))
    with pytest.raises(LedgerError, match="cannot be opened") as refused:
        ledger.migrate()
    ledger.close()
    assert "Check that its directory exists" in str(refused.value)


def test_a_place_that_nobody_may_write_is_named() -> None:
    """S8: not even root can make a file there."""
    ledger = Ledger("sqlite:////proc/ledger.db")
    with pytest.raises(LedgerError, match=r"/proc/ledger\.db cannot be opened"):
        ledger.migrate()
    ledger.close()


# --- lease ----------------------------------------------------------------------------------------------------------


def test_one_holds_the_lease_and_others_are_told_for_how_long(ledger: Ledger) -> None:
    """V20."""
    _acquire(ledger, "first")
    with pytest.raises(LeaseLost, match=r"first holds the lease on 'station' for another 5\.0 s"):
        _acquire(ledger, "second", NOW + 10)


def test_who_was_replaced_writes_nothing_more(ledger: Ledger) -> None:
    """V20: a holder who slept through the end of its lease and wakes up."""
    old = _acquire(ledger, "first")
    new = _acquire(ledger, "second", NOW + 15)
    assert new.holder == "second"
    assert new.token > old.token
    with ledger.reading() as connection:
        before = contents(connection)
    with pytest.raises(LeaseLost, match="first no longer holds"), ledger.transaction(old) as connection:
        take(connection, arrival(1))
    with pytest.raises(LeaseLost), ledger.transaction() as connection:
        renew(connection, old, expires_at=NOW + 1000)
    with ledger.reading() as connection:
        assert contents(connection) == before
    with ledger.transaction(new) as connection:
        assert take(connection, arrival(1)).sub_jobs


def test_a_lease_that_never_was_writes_nothing(ledger: Ledger) -> None:
    """V20."""
    made_up = Lease(namespace="station", holder="nobody", token=1)
    with pytest.raises(LeaseLost), ledger.transaction(made_up) as connection:
        take(connection, arrival(1))
    with ledger.reading() as connection:
        assert contents(connection)["arrival"] == []


def test_a_renewed_lease_is_kept_and_a_released_one_is_free_at_once(ledger: Ledger) -> None:
    """V20, V22."""
    lease = _acquire(ledger, "first")
    with ledger.transaction(lease) as connection:
        renew(connection, lease, expires_at=NOW + 100)
    with pytest.raises(LeaseLost):
        _acquire(ledger, "second", NOW + 99)
    with ledger.transaction(lease) as connection:
        renew(connection, lease, expires_at=NOW + 99)
    assert _acquire(ledger, "second", NOW + 99).token > lease.token


def test_who_comes_later_is_told_by_the_token_whatever_became_of_the_ledger(tmp_path: Path) -> None:
    """V20, B9: also after a rebuild, or where a backup was put back by hand; and where the clock was set back."""
    tokens = []
    for number, now in enumerate((NOW, NOW + 60)):
        with closing(Ledger(f"sqlite:///{tmp_path / f'{number}.sqlite'}")) as ledger:
            ledger.migrate()
            tokens += [_acquire(ledger, "first", now).token, _acquire(ledger, "second", now + 16).token]
    assert tokens == sorted(set(tokens))
    with closing(Ledger(f"sqlite:///{tmp_path / '1.sqlite'}")) as ledger, ledger.transaction() as connection:
        again = acquire(
            connection, namespace="station", holder="third", lease_s=15, now=NOW - 3600, is_gone=lambda _: True
        )
    assert again.token > tokens[-1]


def test_namespaces_do_not_wait_for_each_other(ledger: Ledger) -> None:
    """V20."""
    with ledger.transaction() as connection:
        for namespace in ("processing", "production"):
            lease = acquire(connection, namespace=namespace, holder="me", lease_s=15, now=NOW)
            assert lease.holder == "me"


# --- transactions ---------------------------------------------------------------------------------------------------


def _take_and_fail(connection: Connection) -> None:
    take(connection, arrival(1))
    raise RuntimeError("afterwards")


def test_what_fails_in_a_transaction_leaves_nothing(ledger: Ledger) -> None:
    """V13."""
    with ledger.reading() as connection:
        before = contents(connection)
    with pytest.raises(RuntimeError, match="afterwards"), ledger.transaction() as connection:
        _take_and_fail(connection)
    with ledger.reading() as connection:
        assert contents(connection) == before


def test_a_reader_sees_one_state_and_waits_for_no_writer(ledger: Ledger) -> None:
    """V13."""
    with ledger.reading() as reader:
        before = contents(reader)
        with ledger.transaction() as writer:
            take(writer, arrival(1))
            assert contents(reader) == before
        assert contents(reader) == before
    with ledger.reading() as reader:
        assert len(contents(reader)["arrival"]) == 1


def test_the_ledger_refuses_states_and_references_that_cannot_be(ledger: Ledger) -> None:
    """P7: the database holds the rules too, whoever writes."""
    with ledger.transaction() as connection:
        take(connection, arrival(1))
    for statement in (
        schema.stage_run.update().values(state="half-done"),
        schema.stage_run.update().values(sub_job_id=99),
        schema.sub_job.update().values(state="half-done"),
    ):
        with pytest.raises(sqlalchemy.exc.IntegrityError), ledger.transaction() as connection:
            connection.execute(statement)
    with ledger.reading() as connection:
        assert connection.scalars(select(schema.stage_run.c.state)).all() == ["queued"]
