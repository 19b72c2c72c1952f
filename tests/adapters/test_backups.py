"""Backups of a ledger in SQLite, while others write to it (S10)."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest
from builders import NOW, manifest, take_and_start
from sqlalchemy import make_url

from p3s_prefect.adapters.ledger import backups, execution
from p3s_prefect.adapters.ledger.backups import back_up, sqlite_file
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.core.errors import LedgerError


@pytest.fixture
def database() -> str:
    """Another one has tools of its own."""
    return "sqlite"


def test_a_backup_is_one_state_and_ends_though_somebody_writes_all_the_time(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S10: page by page beside a writer, it goes on and never begins anew."""
    monkeypatch.setattr(backups, "_PAGES_AT_ONCE", 3)
    ended, written = threading.Event(), threading.Event()

    def write() -> None:
        subrun = 0
        with closing(Ledger(ledger.url)) as own:
            while not ended.is_set():
                with own.transaction() as connection:
                    execution.publish(connection, manifest(take_and_start(connection, subrun)), NOW)
                subrun += 1
                written.set()

    writer = threading.Thread(target=write)
    writer.start()
    source = sqlite_file(ledger.url)
    try:
        for number in range(5):
            told: list[tuple[int, int]] = []
            written.clear()
            found = back_up(source, tmp_path / f"{number}.db", lambda *pages, told=told: told.append(pages))
            assert written.wait(10)
            assert [done for done, _ in told] == sorted(done for done, _ in told)
            assert len({total for _, total in told}) == 1
            assert len(told) > 10
            with closing(sqlite3.connect(found.file)) as copy:
                (done,) = copy.execute("SELECT count(*) FROM attempt WHERE state = 'done'").fetchone()
                assert copy.execute("SELECT count(*) FROM summary_value").fetchone() == (2 * done,)
            assert found.rows["dataset"] == found.rows["attempt"] == done
    finally:
        ended.set()
        writer.join()


def test_half_a_backup_has_no_name(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S10, S8: what ends half-way leaves nothing behind, and a copy that lies is refused."""
    with ledger.transaction() as connection:
        take_and_start(connection, 1)
    source, target = sqlite_file(ledger.url), tmp_path / "place" / "b.db"

    def interrupted(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        back_up(source, target, interrupted)
    monkeypatch.setattr(backups, "_rows", lambda connection: {"attempt": id(connection)})
    with pytest.raises(LedgerError, match="other numbers of rows"):
        back_up(source, target)
    assert list(target.parent.iterdir()) == []


def test_where_it_cannot_be_is_said(ledger: Ledger, tmp_path: Path) -> None:
    """S8."""
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="cannot be written"):
        back_up(sqlite_file(ledger.url), tmp_path / "file" / "b.db")
    with pytest.raises(LedgerError, match="no ledger"):
        back_up(tmp_path / "absent.db", tmp_path / "b.db")


def test_another_database_has_its_own_tools() -> None:
    """S10, S7: the command is said, without the password."""
    url = make_url("postgresql+psycopg://p3s:secret@db/ledger").render_as_string(hide_password=False)
    with pytest.raises(LedgerError, match="in postgresql") as refused:
        sqlite_file(url)
    assert "pg_dump --format=custom" in refused.value.fix
    assert "secret" not in str(refused.value)


def test_the_unit_of_a_backup_is_the_whole_ledger(ledger: Ledger, tmp_path: Path) -> None:
    """S10: a copy can be opened as a ledger, and goes on from where it was taken."""
    with ledger.transaction() as connection:
        first = take_and_start(connection, 1)
    found = back_up(sqlite_file(ledger.url), tmp_path / "b.db")
    with closing(Ledger(f"sqlite:///{found.file}")) as copy, copy.transaction() as connection:
        execution.publish(connection, manifest(first), NOW)
        assert take_and_start(connection, 2).id == first.id + 1
