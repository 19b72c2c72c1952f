"""`p3s ledger archive` at a home with a station that runs: what people are told before and after is the same (S10)."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest
from pandas.testing import assert_frame_equal
from sites import NewSite, Site, declare, obey, shell, total
from typer.testing import CliRunner

from p3s_prefect.adapters.ledger import schema
from p3s_prefect.api import Bookkeeping, open_experiment
from p3s_prefect.cli.commands import commands
from p3s_prefect.core.errors import BadName

pytestmark = pytest.mark.sockets

_PICTURE = '[{"category": "Text", "title": "Words", "file": "words.txt", "shows": "what was said"}]'
_DRAW = shell(f"cp $P3S_INPUT_RAW words.txt; echo '{_PICTURE}' > products.json")
_STAGES = {"quick": {"steps": [obey(), _DRAW]}, "total": total()}
_UNITS = 3


def _p3s(site: Site, *words: str) -> Any:
    answer = CliRunner().invoke(commands(), [*words, "--home", str(site.path), "--json"], catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    return json.loads(answer.stdout)


def _said(site: Site, *words: str) -> str:
    answer = CliRunner().invoke(commands(), [*words, "--home", str(site.path)], catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    return " ".join(answer.output.split())


def _told(site: Site) -> dict[str, Any]:
    """What commands say of run 1; of what is archived, where it is now is added."""
    found = {
        "unit": _p3s(site, "show", "run=1", "subrun=0"),
        "group": _p3s(site, "show", "run=1"),
        "units": _p3s(site, "list", "units"),
        "groups": _p3s(site, "list", "groups"),
        "journal": _p3s(site, "list", "journal", "--subject", "run=1 subrun=1"),
        "coverage": _p3s(site, "report", "coverage", "run=1"),
        "latency": _p3s(site, "report", "latency", "run=1"),
        "period": _p3s(site, "report", "latency", "--since", "1h", "--by", "subrun"),
    }
    for one in ("unit", "group"):
        found[one].pop("archives")
    found["period"].pop("scope")
    return found


def _frames(books: Bookkeeping) -> list[Any]:
    return [
        books.values("run=1"),
        books.coverage("run=1"),
        books.latency("run=1"),
        books.latency_phases("run=1"),
        books.account(group="run=1"),
        books.groups(),
        books.units(group="run=1"),
    ]


async def test_a_run_is_archived_while_the_station_runs_and_is_told_as_before(new_site: NewSite) -> None:
    """S10: show, list, report and notebooks are equal to the last digit; pages and `p3s why` say where it is."""
    site = new_site(declare(_STAGES, instrument={"closing": {"count": _UNITS}}))
    async with site.running():
        for run in (1, 2):
            for subrun in range(_UNITS):
                site.arrive(subrun, run=run)
            await site.until(lambda run=run: site.count(schema.sub_job, state="done") == (_UNITS + 1) * run, "a run")
        await site.until(lambda: site.count(schema.attempt, is_recorded=False) == 0, "all are recorded")
        told = await asyncio.to_thread(_told, site)
        with open_experiment(site.path) as books:
            frames, before = _frames(books), books.unit("run=1 subrun=0")
            assert [one.title for one in before.products] == ["Words"]
            pictures = [books.product(one.title, "run=1 subrun=0") for one in before.products]
        dry = await asyncio.to_thread(_p3s, site, "ledger", "archive", "--before", "1ms")
        assert (dry["archived"], dry["archives"]) == (False, [])
        assert [(row["data_id"], row["goes"]) for row in dry["groups"]] == [("run=1", True), ("run=2", False)]
        rows = site.count(schema.lineage)
        done = await asyncio.to_thread(_p3s, site, "ledger", "archive", "--before", "1ms", "--yes", "--by", "anna")
        (name,) = (one["name"] for one in done["archives"])
        assert site.count(schema.lineage) < rows
        assert await asyncio.to_thread(_told, site) == told
        with open_experiment(site.path) as books:
            for frame, same in zip(_frames(books), frames, strict=True):
                # How long something that has ended took does not depend on when it is asked.
                assert_frame_equal(frame, same)
            assert books.unit("run=1 subrun=0") == before
            assert [books.product(one.title, "run=1 subrun=0") for one in before.products] == pictures
            assert books.archives("run=1 subrun=0") == books.archives("run=1") == (name,)
            assert books.archives("run=2") == ()
            assert name in [reason.why for reason in books.why("run=1 subrun=0").reasons][-1]
        assert name in await asyncio.to_thread(_said, site, "show", "run=1", "subrun=0")
        address = site.home.station()
        assert address is not None
        async with httpx.AsyncClient(base_url=address.url) as client:
            for page in ("/units/dqm/0/run=1 subrun=0", "/groups/run=1"):
                assert name in (await client.get(page)).text
            assert name not in (await client.get("/groups/run=2")).text
        status = await asyncio.to_thread(_p3s, site, "ledger", "status")
        assert status["archives"] == {"number": 1, "groups": 1, "rows": done["archives"][0]["rows"]}
        # A file that is listed again is known, and a unit that comes late opens the next pass, with all of the others.
        site.arrive(_UNITS, run=1)
        await site.until(lambda: site.count(schema.production_pass, number=1) == 1, "the next pass")
    (line,) = (row for row in site.rows(schema.journal) if row.kind == "ledger.archived")
    assert (line.subject, line.detail["by"]) == (name, "anna")
    assert [one["data_id"] for one in _p3s(site, "reconcile")["findings"]] == []


def test_what_is_asked_wrongly_is_said(new_site: NewSite) -> None:
    """S8: no date, or none that means anything; and nothing to archive is no error."""
    site = new_site(declare(_STAGES))
    with pytest.raises(BadName, match="is no time"):
        _p3s(site, "ledger", "archive", "--before", "yesterday")
    assert _p3s(site, "ledger", "archive", "--before", "1d", "--yes")["groups"] == []
    assert "0 groups with 0 rows archived" in _said(site, "ledger", "archive", "--before", "1d", "--yes")
