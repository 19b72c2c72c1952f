"""`p3s purge` at a home with a real station: what goes is processed, copied and aged, and stays known (S10, P2)."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from sites import NewSite, Site, declare, obey, shell
from sqlalchemy import select, update
from typer.testing import CliRunner

from p3s_prefect.adapters.clock import SystemClock
from p3s_prefect.adapters.ledger import requests, schema
from p3s_prefect.cli.commands import commands
from p3s_prefect.core.asking import PROCESS
from p3s_prefect.core.errors import BadName
from p3s_prefect.station.purging import Purge

pytestmark = pytest.mark.sockets


def _purge(site: Site, *words: str, old: str = "1ms") -> dict[str, Any]:
    words = ("purge", "--older-than", old, "--home", str(site.path), "--json", *words)
    answer = CliRunner().invoke(commands(), list(words), catch_exceptions=False)
    assert answer.exit_code == 0
    return dict(json.loads(answer.stdout))


def _why(found: dict[str, Any]) -> dict[str, str]:
    return {one["data_id"]: "" if one["goes"] else one["why"] for one in found["files"]}


async def test_only_what_is_processed_copied_and_aged_goes(new_site: NewSite) -> None:
    """S10: each of the others stays, with its reason; a dry run is the default and removes nothing."""
    site = new_site(declare({"quick": {"steps": [obey()]}}, instrument={"closing": {"count": 7}}))
    copies = site.path / "tape"
    copies.mkdir()
    async with site.running():
        files = [site.arrive(subrun, "fail" if subrun == 1 else f"data of {subrun}") for subrun in range(7)]
        files.append(site.arrive(0, run=2))
        await site.until_settled(8)
        await site.until(lambda: site.count(schema.data_group, is_open=True) == 1, "run 1 is closed")
        for file in (*files[:2], *files[4:]):
            shutil.copy2(file, copies)
        (copies / files[4].name).write_text("data of X")  # of the same size
        os.utime(files[5], (1, 1))  # touched since
        files[6].unlink()
        files[6].symlink_to(copies / files[6].name)
        found = await asyncio.to_thread(_purge, site, "--copied-to", str(copies))
        assert (found["removed"], [file.exists() for file in files]) == (False, [True] * 8)
        assert _why(found) == {
            "run=1 subrun=0": "",
            "run=1 subrun=1": "it is not processed: failed",
            "run=1 subrun=2": "no copy of it was found",
            "run=1 subrun=3": "no copy of it was found",
            "run=1 subrun=4": "no copy of it was found",
            "run=1 subrun=5": "it is not the file that was taken any more",
            "run=1 subrun=6": "it is not the file that was taken any more",
            "run=2 subrun=0": "its group has not closed",
        }
        assert set(_why(await asyncio.to_thread(_purge, site, old="1h")).values()) >= {"it is not old enough"}
        done = await asyncio.to_thread(_purge, site, "--copied-to", str(copies), "--yes", "--by", "anna")
        assert (done["removed"], done["bytes"]) == (True, len("data of 0"))
    assert [file.exists() for file in files] == [False] + [True] * 7
    (row,) = (row for row in site.rows(schema.journal) if row.kind == "arrival.purged")
    assert (row.subject, row.detail["by"], row.detail["path"]) == ("run=1 subrun=0", "anna", str(files[0]))
    # The watched directory itself is no place of copies.
    assert set(_why(_purge(site, "--copied-to", str(site.incoming))).values()) >= {"no copy of it was found"}
    with pytest.raises(BadName, match="no directory"):
        _purge(site, "--copied-to", str(site.path / "absent"))


async def test_what_was_purged_stays_known_and_is_read_from_its_copy(new_site: NewSite) -> None:
    """S10, P2, B2: listed again it is not taken again; processed anew it is read where its copy is."""
    site = new_site(declare({"quick": {"steps": [obey()]}}, instrument={"closing": {"count": 1}}))
    copies = site.path / "tape"
    copies.mkdir()
    async with site.running():
        file = site.arrive(0)
        await site.until_done(1)
        await site.until(lambda: site.count(schema.data_group, is_open=True) == 0, "it is closed")
        shutil.copy2(file, copies)
        await asyncio.to_thread(_purge, site, "--copied-to", str(copies), "--yes")
        assert not file.exists()
        shutil.copy2(copies / file.name, file)  # the same identity
        site.arrive(1)
        await site.until_done(2)
        file.touch()  # another one, with the same bytes
        await site.until(lambda: site.count(schema.arrival, verdict="same") == 1, "it is compared")
        assert site.count(schema.sub_job) == 2
        file.unlink()
        detail = {"pipeline": "dqm", "group": "run=1", "units": ["run=1 subrun=0"], "which": "all"}
        with site.ledger.transaction() as connection:
            requests.ask(connection, PROCESS, by="me", why="", now=0.0, detail=detail)
        await site.until_done(3)
    read = site.read(lambda connection: list(connection.scalars(select(schema.lineage.c.sha256))))
    assert len(read) == 3
    assert len(set(read)) == 2


async def test_a_file_whose_bytes_are_in_the_store_is_copied(new_site: NewSite) -> None:
    """S10: a stage that publishes the data as they came; and one that was killed between removing and noting."""
    keep = shell('cp "$P3S_INPUT_RAW" "$P3S_OUTPUT_MADE"', made="kept")
    site = new_site(declare({"keep": {"steps": [keep]}}, instrument={"closing": {"count": 2}}))
    async with site.running():
        files = [site.arrive(subrun) for subrun in range(2)]
        await site.until_done(2)
        await site.until(lambda: site.count(schema.data_group, is_open=True) == 0, "it is closed")
    files[1].unlink()
    done = _purge(site, "--yes")
    assert set(_why(done).values()) == {""}
    assert all(one["copy"].startswith("file://") for one in done["files"])
    assert not any(file.exists() for file in files)
    assert [row.purged_at is not None for row in site.rows(schema.arrival)] == [True, True]
    assert {Path(row.path) for row in site.rows(schema.arrival)} == set(files)


def _work(site: Site, *copied_to: Path) -> Purge:
    return Purge(
        ledger=site.ledger,
        store=site.store,
        clock=SystemClock(),
        roots={"camera": site.incoming},
        copied_to=copied_to,
        older_than_s=0.001,
        by="anna",
    )


async def test_a_file_for_which_work_was_asked_meanwhile_stays(new_site: NewSite, tmp_path: Path) -> None:
    """S10, P7: the plan may be hours old, and a stage reads the file in its place if its copy is an object."""
    script = f'while [ -e {tmp_path}/stop ]; do sleep 0.1; done; cp "$P3S_INPUT_RAW" "$P3S_OUTPUT_MADE"'
    keep = shell(script, made="kept")
    site = new_site(declare({"keep": {"steps": [keep]}}, instrument={"closing": {"count": 1}}))
    async with site.running():
        file = site.arrive(0)
        await site.until_done(1)
        await site.until(lambda: site.count(schema.data_group, is_open=True) == 0, "it is closed")
        work = _work(site)
        (row,) = await asyncio.to_thread(lambda: list(work.plan()))
        assert (row.goes, row.copy.startswith("file://"), row.is_file_copy) == (True, True, False)
        (tmp_path / "stop").touch()
        detail = {"pipeline": "dqm", "group": "run=1", "units": ["run=1 subrun=0"], "which": "all"}
        with site.ledger.transaction() as connection:
            requests.ask(connection, PROCESS, by="me", why="", now=0.0, detail=detail)
        await site.until(lambda: site.count(schema.sub_job) == 2, "it is asked for")
        kept = await asyncio.to_thread(work.remove, row)
        assert (kept.goes, kept.why, file.exists()) == (False, "it is not processed: arrived", True)
        (tmp_path / "stop").unlink()
        await site.until_done(2)
        assert (await asyncio.to_thread(work.remove, row)).goes
        assert not file.exists()
        assert (await asyncio.to_thread(work.remove, row)).why == "it was removed or archived meanwhile"


async def test_a_file_whose_copy_was_found_damaged_meanwhile_stays(new_site: NewSite) -> None:
    """S10, V13: the object is in the store still, and is no copy any more."""
    keep = shell('cp "$P3S_INPUT_RAW" "$P3S_OUTPUT_MADE"', made="kept")
    site = new_site(declare({"keep": {"steps": [keep]}}, instrument={"closing": {"count": 1}}))
    async with site.running():
        file = site.arrive(0)
        await site.until_done(1)
        await site.until(lambda: site.count(schema.data_group, is_open=True) == 0, "it is closed")
    work = _work(site)
    (row,) = work.plan()
    with site.ledger.transaction() as connection:
        connection.execute(update(schema.dataset).values(damage="it is gone"))
    assert (work.remove(row).goes, file.exists()) == (False, True)


async def test_the_ledger_can_be_written_while_a_copy_is_looked_at(
    new_site: NewSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S10, V20: copies may be on a mount that hangs, and the station's commits do not hang with it."""
    site = new_site(declare({"quick": {"steps": [obey()]}}, instrument={"closing": {"count": 2}}))
    copies = site.path / "tape"
    copies.mkdir()
    async with site.running():
        files = [site.arrive(subrun) for subrun in range(2)]
        await site.until_done(2)
        await site.until(lambda: site.count(schema.data_group, is_open=True) == 0, "it is closed")
    for file in files:
        shutil.copy2(file, copies)
    work = _work(site, copies)
    rows = sorted(work.plan(), key=lambda row: row.data_id)
    (copies / files[1].name).unlink()
    looked_at, is_file = [], Path.is_file

    def looked(path: Path) -> bool:
        if path.parent == copies:
            with site.ledger.transaction() as connection:
                requests.ask(connection, PROCESS, by="me", why="", now=0.0, detail={})
            looked_at.append(path)
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", looked)
    assert [work.remove(row).why for row in rows] == ["processed, copied and old enough", "its copy is gone"]
    assert [path.name for path in looked_at] == [file.name for file in files]
    assert [file.exists() for file in files] == [False, True]
