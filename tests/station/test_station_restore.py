"""Backups of a ledger that is written, and restoring one in front of a store that has gone on (S10)."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from postgresql import Server, programs
from sites import NewSite, Site, declare, obey
from sqlalchemy import select
from typer.testing import CliRunner

from p3s_prefect.adapters.ledger import schema
from p3s_prefect.adapters.ledger.backups import back_up, verified
from p3s_prefect.cli.commands import commands
from p3s_prefect.core.errors import LedgerError, ServiceError, StoreTaken
from p3s_prefect.station.sweeper import sweep

pytestmark = pytest.mark.sockets


def _p3s(site: Site, *words: str) -> Any:
    result = CliRunner().invoke(commands(), [*words, "--home", str(site.path), "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def _close(site: Site) -> None:
    site.close()
    site._ledger = None


async def test_a_backup_taken_while_the_station_writes_is_whole(new_site: NewSite) -> None:
    """S10: again and again while units are taken and published: whole, and one state of everything."""
    site = new_site(declare({"quick": {"steps": [obey()]}}))
    async with site.running():
        for subrun in range(30):
            site.arrive(subrun)
        files: list[Path] = []
        while site.count(schema.sub_job, state="done") < 30:
            files.append(site.path / f"backup{len(files)}.db")
            await site.until(_in_thread(lambda: back_up(site.path / "ledger.db", files[-1])), "a backup")
    assert len(files) > 2
    for file in files:
        with closing(sqlite3.connect(file)) as copy:
            done = copy.execute("SELECT count(*) FROM attempt WHERE state = 'done'").fetchone()
            # One transaction makes a dataset, and the attempt done.
            assert copy.execute("SELECT count(*) FROM dataset").fetchone() == done
        assert not file.with_name(f"{file.name}-wal").exists()


def _in_thread(work: Callable[[], object]) -> Callable[[], bool]:
    """As a condition to wait for: the work is begun once."""
    thread = threading.Thread(target=work)
    thread.start()
    return lambda: not thread.is_alive()


async def test_what_was_published_after_the_backup_is_found_again(new_site: NewSite) -> None:
    """S10, P2, V13: nothing is run twice, no number is used twice, and nothing that was published is swept."""
    site = new_site(declare({"quick": {"steps": [obey()], "retries": 0}}, store={"sweep_after_s": 0.2}))
    async with site.running():
        for subrun in range(3):
            site.arrive(subrun)
        await site.until_done(3)
        _p3s(site, "ledger", "backup", str(site.path / "monday.db"))
        for subrun in range(3, 6):
            site.arrive(subrun)
        site.arrive(6, "fail")
        await site.until_settled(7)
        await site.until(lambda: site.count(schema.attempt, state="done", is_recorded=False) == 0, "all are recorded")
    lost = {row.key: (row.id, row.attempt_id, row.sha256) for row in site.rows(schema.dataset)}
    objects = {found.key for found in site.store.list("runs/") if "subrun=6" not in found.key}
    told = _p3s(site, "ledger", "export-journal")
    assert told["number"] == told["newest"] == len(site.rows(schema.journal))
    _close(site)
    done = _p3s(site, "ledger", "restore", str(site.path / "monday.db"), "--replace")
    assert (done["publications"], done["known"], done["findings"]) == (3, 3, [])
    assert Path(done["aside"]).is_file()
    lines = site.rows(schema.journal)
    assert [row.number for row in lines] == list(range(1, len(lines) + 1))
    assert {row.kind for row in lines[told["newest"] :]} == {"ledger.taken-over", "ledger.restored"}
    assert "stage.failed" in {row.kind for row in lines[: told["newest"]]}
    assert {row.key: (row.id, row.attempt_id, row.sha256) for row in site.rows(schema.dataset)} == lost
    async with site.running():
        site.arrive(7)
        # What failed after the backup left no record: its file is still there, and is taken again.
        await site.until_settled(8)
        await site.until_done(7)
    attempts = site.rows(schema.attempt)
    assert len({row.id for row in attempts}) == len({row.prefix for row in attempts}) == 8
    assert objects <= {found.key for found in site.store.list("runs/")}
    assert _p3s(site, "ledger", "backup")["rows"]["dataset"] == 7
    status = _p3s(site, "ledger", "status")
    assert (status["rows"]["dataset"], status["journal"]["number"], len(status["backups"])) == (7, told["newest"], 1)


async def test_a_dump_of_a_server_taken_while_the_station_writes_is_restored(
    new_site: NewSite, postgresql: Server, tmp_path: Path
) -> None:
    """S10, S4: by the very commands that `p3s ledger backup` names for a ledger on PostgreSQL; units go on meanwhile,
    and what was published after the dump is found again in the store."""
    names = [postgresql.create() for _ in range(2)]
    declared = declare({"quick": {"steps": [obey()]}}, ledger={"url": postgresql.url(names[0])})
    site, dump = new_site(declared), tmp_path / "monday.dump"
    async with site.running():
        for subrun in range(20):
            site.arrive(subrun)
        await site.until_done(5)
        refused = CliRunner().invoke(commands(), ["ledger", "backup", "--home", str(site.path)])
        assert isinstance(refused.exception, LedgerError)
        pg_dump, pg_restore = re.findall("`(pg_[^`]+)`", refused.exception.fix)
        await asyncio.to_thread(_run, pg_dump, {"FILE": str(dump)})
        at_dump = site.count(schema.dataset)
        await site.until_done(20)
        await site.until(lambda: site.count(schema.attempt, state="done", is_recorded=False) == 0, "all are recorded")
    published = {(row.key, row.sha256) for row in site.rows(schema.dataset)}
    _close(site)
    await asyncio.to_thread(_run, pg_restore, {"FILE": str(dump), f"/{names[0]}": f"/{names[1]}"})
    site.declare(declared | {"ledger": {"url": postgresql.url(names[1])}})
    restored = site.count(schema.dataset)
    assert 5 <= restored <= at_dump
    # One transaction makes a dataset, and the attempt done.
    assert site.count(schema.attempt, state="done") == restored
    numbers = [row.number for row in site.rows(schema.journal)]
    assert numbers == list(range(1, len(numbers) + 1))
    # The station had it when the dump was made.
    await site.until(lambda: site.rows(schema.lease)[0].expires_at < time.time(), "the lease has run out")
    _p3s(site, "reconcile")
    assert {(row.key, row.sha256) for row in site.rows(schema.dataset)} == published
    async with site.running():
        await site.until_done(20)
    assert {(row.key, row.sha256) for row in site.rows(schema.dataset)} == published
    _close(site)
    for name in names:
        postgresql.drop(name)


def _run(line: str, replaced: dict[str, str]) -> None:
    """Runs one of PostgreSQL's own programs."""
    for old, new in replaced.items():
        line = line.replace(old, new)
    program, *words = shlex.split(line)
    ended = subprocess.run([programs() / program, *words], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


async def test_the_sweeper_spares_what_a_ledger_that_is_too_old_does_not_know(new_site: NewSite) -> None:
    """S10, V13: an old ledger put back by hand opens the same attempt again; what was committed there stays."""
    site = new_site(declare({"quick": {"steps": [obey()]}}))
    async with site.running():
        pass
    old = site.path / "old.db"
    back_up(site.path / "ledger.db", old)
    async with site.running():
        site.arrive(0)
        await site.until_done(1)
        await site.until(lambda: site.count(schema.attempt, is_recorded=False) == 0, "it is recorded")
    objects = {found.key for found in site.store.list("runs/")}
    prefixes = {row.prefix for row in site.rows(schema.attempt)}
    _close(site)
    for file in site.path.glob("ledger.db*"):
        file.unlink()
    old.rename(site.path / "ledger.db")
    async with site.running():
        await site.until_done(1)
    assert {row.prefix for row in site.rows(schema.attempt)} == prefixes
    sweep(site.ledger, site.store, older_than=time.time() + 60)
    assert objects < {found.key for found in site.store.list("runs/")}


async def test_a_backup_of_another_ledger_is_not_put_in_front_of_a_store(new_site: NewSite) -> None:
    """S10, S8: the ledger that is there stays, and so does the store."""
    site, other = new_site(declare()), new_site(declare(), home="other")
    for one in (site, other):
        async with one.running():
            one.arrive(0)
            await one.until_done(1)
    _p3s(other, "ledger", "backup", str(site.path / "other.db"))
    _close(site)
    with pytest.raises(StoreTaken, match="another ledger"):
        _p3s(site, "ledger", "restore", str(site.path / "other.db"), "--replace")
    assert site.count(schema.dataset) == 1
    assert not list(site.path.glob(".ledger*"))


async def test_a_ledger_that_is_in_use_or_has_content_is_not_replaced(new_site: NewSite) -> None:
    """S10, S8: each refusal says what to do, and nothing has changed."""
    site = new_site(declare({"quick": {"steps": [obey()]}}))
    file = site.path / "b.db"
    async with site.running():
        site.arrive(0)
        await site.until_done(1)
        _p3s(site, "ledger", "backup", str(file))
        with pytest.raises(ServiceError, match="run here"):
            _p3s(site, "ledger", "restore", str(file), "--replace")
        with pytest.raises(LedgerError, match="exists"):
            _p3s(site, "ledger", "backup", str(file))
    with pytest.raises(LedgerError, match="with content") as refused:
        _p3s(site, "ledger", "restore", str(file))
    assert "--replace" in refused.value.fix
    (site.path / "cut.db").write_bytes(file.read_bytes()[:-5000])
    (site.path / "text.db").write_text("no ledger" * 1000)
    for name in ("cut.db", "text.db", "none.db"):
        with pytest.raises(LedgerError):
            _p3s(site, "ledger", "restore", str(site.path / name), "--replace")
    assert site.count(schema.dataset) == 1
    # The lease that was taken meanwhile is free again.
    (row,) = site.rows(schema.lease)
    assert row.expires_at <= time.time()
    assert not list(site.path.glob(".ledger*"))


async def test_a_ledger_that_is_broken_is_put_aside_and_rebuilt(new_site: NewSite) -> None:
    """S10, S8."""
    site = new_site(declare({"quick": {"steps": [obey()]}}))
    async with site.running():
        site.arrive(0)
        await site.until_done(1)
    _close(site)
    for file in site.path.glob("ledger.db-*"):
        file.unlink()
    (site.path / "ledger.db").write_bytes(b"rubbish" * 1000)
    with pytest.raises(LedgerError, match="cannot be read"):
        _p3s(site, "ledger", "rebuild")
    done = _p3s(site, "ledger", "rebuild", "--replace")
    assert (done["publications"], done["findings"]) == (1, [])
    assert Path(done["aside"]).read_bytes().startswith(b"rubbish")
    assert site.read(lambda connection: connection.scalar(select(schema.dataset.c.data_id))) == "run=1 subrun=0"
    assert verified(site.path / "ledger.db").rows["dataset"] == 1
