"""What only a PostgreSQL server can do wrong: many writers at once, passwords, other databases, being away."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from builders import NOW, arrival, contents, take
from postgresql import Ledgers, Server, server
from sqlalchemy import TextClause, make_url, select, text

from p3s_prefect.adapters.free_ports import free_port
from p3s_prefect.adapters.ledger import journal, schema
from p3s_prefect.adapters.ledger import postgresql as postgresql_ledger
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.core.addresses import without_secrets
from p3s_prefect.core.errors import LedgerAway, LedgerError, LedgerTooNew

_WRITERS = 8
_EACH = 25

pytestmark = pytest.mark.sockets


@pytest.fixture
def database() -> str:
    return "postgresql"


# --- the journal ----------------------------------------------------------------------------------------------------


def _write_many(url: str, gate: int, opener: int) -> int:
    """A process that writes lines in many transactions, some of which it takes back."""
    child = os.fork()
    if child == 0:
        try:
            os.close(opener)
            with closing(Ledger(url)) as ledger:
                os.read(gate, 1)
                for number in range(_EACH):
                    _write_some(ledger, number)
            os._exit(0)
        finally:
            os._exit(1)
    return child


def _write_some(ledger: Ledger, number: int) -> None:
    try:
        with ledger.transaction() as connection:
            journal.write(connection, NOW, "first", "x", number=number)
            # Whoever begins later must not become visible earlier with a higher number, or take the same one.
            time.sleep(0.001 * (number % 3))
            savepoint = connection.begin_nested()
            journal.write(connection, NOW, "undone", "x")
            savepoint.rollback()
            journal.write(connection, NOW, "second", "x", number=number)
            if number % 5 == 0:
                raise InterruptedError
    except InterruptedError:
        return


def test_a_reader_of_the_journal_misses_no_line_of_many_writers(ledger_url: str) -> None:
    """S4: eight processes at once; who follows the numbers sees 1, 2, 3 to the last one."""
    gate, opener = os.pipe()
    children = [_write_many(ledger_url, gate, opener) for _ in range(_WRITERS)]
    os.close(gate)
    os.close(opener)
    expected = _WRITERS * 2 * (_EACH - len(range(0, _EACH, 5)))
    seen: list[int] = []
    until = time.monotonic() + 60
    with closing(Ledger(ledger_url)) as ledger:
        while len(seen) < expected and time.monotonic() < until:
            with ledger.reading() as connection:
                newer = select(schema.journal.c.number).where(schema.journal.c.number > (seen[-1] if seen else 0))
                seen += connection.scalars(newer.order_by(schema.journal.c.number)).all()
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * _WRITERS
    assert seen == list(range(1, expected + 1))


def test_who_listens_hears_of_new_lines(ledger: Ledger) -> None:
    """S4: a word for each commit; what was taken back is not worth one."""
    heard = threading.Event()
    with ledger.listening(heard.set):
        # It looks once by itself, when it has begun to listen.
        assert heard.wait(10)
        heard.clear()
        with ledger.transaction() as connection:
            journal.write(connection, NOW, "one", "x")
            assert not heard.wait(0.2)
        assert heard.wait(10)


def test_who_listens_connects_as_the_url_says(ledger_url: str) -> None:
    """S4: also where it says otherwise than we would."""
    heard = threading.Event()
    url = make_url(ledger_url).update_query_dict({"connect_timeout": "9"})
    with closing(Ledger(url.render_as_string(hide_password=False))) as ledger, ledger.listening(heard.set):
        assert heard.wait(10)


# --- opening --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded() -> Iterator[Server]:
    """A server that wants a password of everybody who comes over loopback."""
    with server(port=free_port()) as found:
        with found.connect() as connection:
            connection.execute("CREATE ROLE guest LOGIN PASSWORD 'tulip'")
            connection.execute("CREATE DATABASE books OWNER guest")
            connection.execute("CREATE DATABASE closed")
            connection.execute("REVOKE CONNECT ON DATABASE closed FROM PUBLIC")
        (found.data / "pg_hba.conf").write_text("local all all trust\nhost all all 127.0.0.1/32 scram-sha-256\n")
        with found.connect() as connection:
            connection.execute("SELECT pg_reload_conf()")
        yield found


@pytest.mark.parametrize(
    ("user", "name", "says", "fix"),
    [
        ("guest:daffodil", "books", "password authentication failed", "Set the right password"),
        ("guest", "books", "no password supplied", "PGPASSWORD"),
        ("guest:tulip", "absent", 'database "absent" does not exist', "createdb"),
        ("guest:tulip", "closed", 'permission denied for database "closed"', "GRANT CONNECT"),
    ],
)
def test_what_a_server_refuses_is_told_with_the_way_out(
    guarded: Server, user: str, name: str, says: str, fix: str
) -> None:
    """S7, S8: what is wrong and what to do about it, without a password in it."""
    ledger = Ledger(guarded.url(name, port=guarded.port, user=user))
    with closing(ledger), pytest.raises(LedgerError, match=says) as refused:
        ledger.migrate()
    assert fix in refused.value.fix
    for shown in (str(refused.value), ledger.url):
        assert "daffodil" not in shown
        assert "tulip" not in shown


def test_a_password_comes_from_the_environment(guarded: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """S7: it need not stand in the experiment file."""
    monkeypatch.setenv("PGPASSWORD", "tulip")
    with closing(Ledger(guarded.url("books", port=guarded.port, user="guest"))) as ledger:
        assert not ledger.exists()
        ledger.migrate()
        assert ledger.exists()


def test_a_server_that_is_starting_has_its_database() -> None:
    """S8: nobody is sent to make what is there."""
    assert "pg_isready" in postgresql_ledger.what_to_do(Exception("FATAL:  the database system is starting up"))


def test_a_server_that_is_not_there_is_named() -> None:
    """S8."""
    ledger = Ledger("postgresql+psycopg://p3s@127.0.0.1:1/books")
    with (
        closing(ledger),
        pytest.raises(LedgerError, match=r"127\.0\.0\.1:1/books cannot be opened: .* refused") as away,
    ):
        ledger.migrate()
    assert "pg_isready" in away.value.fix
    with pytest.raises(LedgerAway, match="the ledger cannot be read: "), ledger.reading() as connection:
        connection.execute(text("SELECT 1"))


def test_a_database_that_cannot_hold_every_text_is_refused(postgresql: Server) -> None:
    """S8."""
    name = postgresql.create("template0", options="ENCODING 'LATIN1' LOCALE 'C'")
    with (
        closing(Ledger(postgresql.url(name))) as ledger,
        pytest.raises(LedgerError, match="encoding LATIN1") as refused,
    ):
        ledger.migrate()
    assert "--encoding=UTF8" in refused.value.fix
    assert not _tables(postgresql, name)


def _tables(postgresql: Server, name: str) -> list[object]:
    with postgresql.connect(name) as connection:
        return connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()


def test_a_ledger_of_a_newer_version_is_left_alone(postgresql: Server, postgresql_ledgers: Ledgers) -> None:
    """S8."""
    name = postgresql.create(postgresql_ledgers.template)
    with postgresql.connect(name) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    with closing(Ledger(postgresql.url(name))) as ledger, pytest.raises(LedgerTooNew, match="9999"):
        ledger.migrate()


def test_processes_that_start_together_migrate_once(postgresql: Server) -> None:
    """V20: one finds the tables that another has just made."""
    url = postgresql.url(postgresql.create())
    ledgers = [Ledger(url) for _ in range(4)]
    found: list[str] = []

    def migrate(ledger: Ledger) -> None:
        with closing(ledger):
            ledger.migrate()
        found.append("done")

    threads = [threading.Thread(target=migrate, args=(ledger,)) for ledger in ledgers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == ["done"] * 4


# --- what is written ------------------------------------------------------------------------------------------------


def test_texts_of_any_length_and_character_are_held_and_sorted_by_their_bytes(ledger: Ledger) -> None:
    """S8: a database's language would sort a/b before a, and its declared lengths would refuse what SQLite takes."""
    names = ["b", "B", "a/b", "a", "a b", "ä", "z" * 700]
    with ledger.transaction() as connection:
        take(connection, arrival(1))
        stored = connection.scalars(select(schema.run_collection.c.configuration_id)).first()
        for name in names:
            connection.execute(schema.run_collection.insert().values(name=name, configuration_id=stored, opened_at=NOW))
        journal.write(connection, NOW, "k" * 100, "nul \0 in it", nul="\0")
        found = select(schema.run_collection.c.name).where(schema.run_collection.c.name.in_(names))
        assert connection.scalars(found.order_by(schema.run_collection.c.name)).all() == sorted(names)
        row = connection.execute(select(schema.journal).where(schema.journal.c.kind == "k" * 100)).one()
    assert (row.subject, row.detail) == ("nul \N{REPLACEMENT CHARACTER} in it", {"nul": "\0"})


def test_every_text_is_sorted_by_its_bytes(ledger: Ledger) -> None:
    """S4: those of later migrations too."""
    query = text(
        "SELECT table_name, column_name FROM information_schema.columns WHERE table_schema = 'public'"
        " AND table_name <> 'alembic_version' AND (data_type = 'character varying'"
        " OR data_type = 'text' AND collation_name IS DISTINCT FROM 'C')"
    )
    with ledger.reading() as connection:
        assert connection.execute(query).all() == []


def test_numbers_are_as_large_as_on_sqlite(ledger: Ledger) -> None:
    """S4: sizes, times and keys have 64 bits."""
    with ledger.transaction() as connection:
        for table, column in ((schema.arrival, "size"), (schema.arrival, "mtime_ns"), (schema.journal, "number")):
            kind = connection.scalar(_type_of(table.name, column))
            assert kind == "bigint", f"{table}.{column}"
        for table in schema.metadata.sorted_tables:
            for column in table.columns:
                if column.name.endswith("id") and column.foreign_keys:
                    target = next(iter(column.foreign_keys)).column
                    same = connection.scalar(_type_of(target.table.name, target.name))
                    assert connection.scalar(_type_of(table.name, column.name)) == same


def _type_of(table: str, column: str) -> TextClause:
    query = "SELECT data_type FROM information_schema.columns WHERE table_name = :table AND column_name = :column"
    return text(query).bindparams(table=table, column=column)


def test_a_server_may_not_answer_before_it_has_written(postgresql: Server, postgresql_ledgers: Ledgers) -> None:
    """V20: a station acts on an answer, and does not look again."""
    name = postgresql.create(postgresql_ledgers.template)
    with postgresql.connect() as connection:
        connection.execute(f'ALTER DATABASE "{name}" SET synchronous_commit = off')  # type: ignore[call-overload]
    with closing(Ledger(postgresql.url(name))) as ledger, ledger.transaction() as connection:
        assert connection.scalar(text("SHOW synchronous_commit")) == "on"
        assert connection.scalar(text("SHOW transaction_isolation")) == "read committed"


def test_readers_of_a_server_that_was_started_again_notice_nothing(guarded: Server) -> None:
    """V20: the connections that they keep are tried before they are used."""
    name = guarded.create()
    with closing(Ledger(guarded.url(name))) as ledger:
        ledger.migrate()
        with ledger.reading() as connection:
            before = contents(connection)
        guarded.stop()
        guarded.start()
        with ledger.reading() as connection:
            assert contents(connection) == before


def test_an_address_is_stored_without_its_password() -> None:
    """S7: in blocks of Prefect; what uses it there must know the password otherwise."""
    address = "postgresql+psycopg://guest:tul@ip@host/books?sslmode=require&sslpassword=tulip"
    assert without_secrets(address) == "postgresql+psycopg://guest@host/books?sslmode=require"
    assert "tul" not in Ledger(address).url
