"""`p3s reconcile` at a home with a real station: damaged results are told, not read, and made anew (B11)."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from sites import NewSite, Running, Site, declare, obey, total
from sqlalchemy import select
from typer.testing import CliRunner

from p3s_prefect.adapters.ledger import schema
from p3s_prefect.cli.commands import commands

pytestmark = pytest.mark.sockets


def _reconcile(site: Site, *words: str) -> tuple[int, Any]:
    answer = CliRunner().invoke(
        commands(), ["reconcile", *words, "--home", str(site.path), "--json"], catch_exceptions=False
    )
    return answer.exit_code, json.loads(answer.stdout)


async def test_a_damaged_result_is_told_left_out_and_made_anew(new_site: NewSite) -> None:
    """B11: beside a running station: marked, named in its health, not gathered, and processed again in a new pass."""
    stages = {"quick": {"steps": [obey()]}, "total": total()}
    site = new_site(declare(stages, instrument={"closing": {"count": 3}}))
    async with site.running() as running:
        for subrun in range(3):
            site.arrive(subrun)
        await site.until_settled(4)
        await site.until(lambda: site.count(schema.attempt, is_recorded=False) == 0, "all are recorded")
        code, found = await asyncio.to_thread(_reconcile, site)
        assert (code, found["compared"], found["findings"]) == (0, 4, [])
        (row,) = (
            r for r in site.rows(schema.dataset) if (r.dataset_type, r.data_id) == ("made-quick", "run=1 subrun=1")
        )
        (site.path / "store" / row.key).unlink()
        code, shown = await asyncio.to_thread(_reconcile, site, "--dry-run")
        assert (code, shown["counts"], shown["damaged"]) == (1, {"missing object": {"shown": 1}}, [])
        code, found = await asyncio.to_thread(_reconcile, site)
        assert (code, found["counts"]) == (0, {"missing object": {"marked": 1}})
        (health,) = await _health(running)
        assert (health["status"], "`p3s reconcile`" in health["action"]) == ("degraded", True)
        code, found = await asyncio.to_thread(_reconcile, site, "--again")
        assert (code, found["counts"]) == (0, {})
        assert [one["data_id"] for one in found["damaged"]] == ["run=1 subrun=1"]
        assert "in pass 1" in found["again"][0]
        # The new pass has the unit and the total again; the total reads the good one of the unit.
        await site.until_settled(6)
        assert await _health(running) == []
        assert (await asyncio.to_thread(_reconcile, site))[1]["counts"] == {}
    made = {row.id: row for row in site.rows(schema.dataset)}
    total_ = [row for row in made.values() if row.dataset_type == "total"][-1]
    read = site.read(
        lambda connection: list(
            connection.scalars(
                select(schema.lineage.c.dataset_id).where(schema.lineage.c.attempt_id == total_.attempt_id)
            )
        )
    )
    assert len(read) == 3
    assert row.id not in read
    assert made[row.id].damage == "it is not in the store"


async def _health(running: Running) -> list[Any]:
    rows = (await running.get("/api/status"))["health"]
    return [row for row in rows if row["name"] == "stored results"]
