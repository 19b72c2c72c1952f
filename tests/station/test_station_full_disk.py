"""A station whose ledger finds no room: SQLite's own refusal, as a full disk brings it about."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sites import NewSite, Running
from sqlalchemy import event

from p3s_prefect.adapters.ledger import schema
from p3s_prefect.adapters.ledger.database import Ledger

pytestmark = pytest.mark.sockets


@contextmanager
def full(ledger: Ledger) -> Iterator[None]:
    """No page more than there are: `database or disk is full`, from SQLite itself, in every connection."""
    engine = ledger._engine

    def most_pages(number: int) -> Any:
        def limit(connection: Any, *_: Any) -> None:
            # 0 asks only; a number below that of the pages there are means these.
            connection.execute(f"PRAGMA max_page_count = {number}")

        return limit

    lifted = most_pages(2**30)
    limited = most_pages(1)
    event.listen(engine, "checkout", limited)
    try:
        yield
    finally:
        event.remove(engine, "checkout", limited)
        event.listen(engine, "checkout", lifted)


async def _row(running: Running, name: str) -> dict[str, str]:
    status = await running.get("/api/status")
    return next(dict(row) for row in status["health"] if row["name"] == name)


async def test_a_full_disk_under_the_ledger_is_said_and_costs_no_unit(new_site: NewSite) -> None:
    """S8, V20, P1, P7: what arrives meanwhile is taken once there is room, and what ran is booked, once each."""
    site, number = new_site(), 2
    async with site.running(slots=2) as running:
        site.arrive(0)
        await site.until_done(1)
        gate = site.path / "gate"
        site.arrive(1, f"until {gate}")
        await site.until(lambda: site.count(schema.attempt, state="running") == 1, "one runs")
        with full(running.station.ledger):
            # Some rows find room in pages that are there.
            while (row := await _row(running, "ledger"))["status"] == "ok":
                site.arrive(number, "sleep 0.05")
                number += 1
            assert (row["status"], "full" in row["cause"]) == ("down", True), row
            assert "disk is full" in row["action"]
            gate.touch()
            site.arrive(number)
            number += 1
        await site.until_done(number, patience_s=90)
        assert (await _row(running, "ledger"))["status"] == "ok"
    assert site.count(schema.arrival) == site.count(schema.dataset) == number
    assert {row.state for row in site.rows(schema.attempt)} == {"done"}
