"""Where outputs go: run collections named by content, with their configuration."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from sites import NewSite, Site, declare, obey, total

from p3s_prefect.adapters.ledger import schema
from p3s_prefect.adapters.software import resolve_command, software
from p3s_prefect.core.experiment import Pipeline
from p3s_prefect.core.naming import content_id

pytestmark = pytest.mark.sockets


def script_step(site_path: Path, content: str) -> dict[str, Any]:
    site_path.mkdir(parents=True, exist_ok=True)
    script = site_path / "step.sh"
    script.write_text(f"#!/bin/sh\n{content}\n")
    script.chmod(0o755)
    return {"name": "work", "command": ["./step.sh"], "inputs": {"raw": "raw"}}


async def process(site: Site, run: int) -> str:
    """Processes one unit of a run, and returns the name of its collection."""
    before = len(site.rows(schema.production_pass))
    async with site.running():
        site.arrive(0, run=run)
        await site.until_done(len(site.units()) + 1)
    return str(site.rows(schema.production_pass)[before].run_collection)


async def test_the_same_content_has_the_same_name_and_any_change_another(new_site: NewSite, tmp_path: Path) -> None:
    """V23: order of keys and a restart change nothing, parameters and programs do; each is stored once."""
    home = tmp_path / "home"
    step = script_step(home, "true")
    site = new_site(declare({"quick": {"steps": [step]}}))
    first = await process(site, 1)
    assert await process(site, 2) == first
    site.declare(declare({"quick": {"steps": [dict(reversed(step.items()))]}}))
    assert await process(site, 3) == first
    site.declare(declare({"quick": {"steps": [{**step, "params": {"threshold": 5}}]}}))
    other_params = await process(site, 4)
    site.declare(declare({"quick": {"steps": [step]}}))
    script_step(home, "true # and a word more")
    other_program = await process(site, 5)
    assert len({first, other_params, other_program}) == 3
    rows = site.rows(schema.configuration)
    assert len(rows) == 3
    for row in rows:
        assert content_id(row.content) == row.id
    assert {row.name.split("/")[-1] for row in site.rows(schema.run_collection)} == {row.id[:12] for row in rows}
    assert first.split("/")[:2] == ["TestCam", "dqm"]


async def test_the_day_rolls_and_a_group_keeps_its_own(new_site: NewSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """V23, V18 (day.rolls_at, day.zone): a night is one day, and a run that goes on past the roll stays in it."""
    site = new_site(declare(instrument={"day": {"rolls_at": "12:00", "zone": "America/Santiago"}}))
    noon = datetime(2027, 3, 5, 12, tzinfo=ZoneInfo("America/Santiago")).timestamp()
    now = noon - 100.0
    async with site.running() as running:
        monkeypatch.setattr(running.station.clock.__class__, "now", lambda _: now)
        site.arrive(0, run=1, age_s=1e6)
        await site.until_done(1)
        now = noon + 100.0
        site.arrive(1, run=1, age_s=1e6)
        site.arrive(0, run=2, age_s=1e6)
        await site.until_done(3)
        monkeypatch.undo()
    days = {row.data_id: row.day for row in site.rows(schema.data_group)}
    assert days == {"run=1": "20270304", "run=2": "20270305"}
    assert {row.name.split("/")[2] for row in site.rows(schema.run_collection)} == {"20270304", "20270305"}
    assert datetime.fromtimestamp(noon, tz=UTC).hour == 15


def test_software_is_what_is_installed_or_what_the_program_holds(tmp_path: Path) -> None:
    """V23: distributions for a Python payload; a hash for a command and each of its arguments that is a file."""
    (tmp_path / "work.sh").write_text("#!/bin/sh\n")
    (tmp_path / "table.txt").write_text("1 2 3")
    commands = [["./work.sh", "./table.txt", "--fast"], ["sh", "-c", "true"]]
    for words in commands:
        pipeline = Pipeline(stages={"a": {"steps": [{"name": "s", "command": words}]}})  # type: ignore[dict-item]
        found = software(pipeline, tmp_path)
        step = pipeline.stages["a"].steps[0]
        assert all(value.startswith("sha256:") for value in found.values())
        assert set(found) == ({"./work.sh", "./table.txt"} if words[0] == "./work.sh" else {"sh"})
        assert (resolve_command(step, tmp_path).command or [])[0] == words[0].replace("./", f"{tmp_path}/")
    python = Pipeline(stages={"a": {"steps": [{"name": "s", "python": "json:loads"}]}})  # type: ignore[dict-item]
    assert {"numpy", "distributed", "p3s-prefect"} <= set(software(python, tmp_path))


async def test_a_reprocessed_group_uses_the_names_of_its_day(new_site: NewSite) -> None:
    """V23, P22: a later pass adds its number to the name, and its configuration is the one of now."""
    stages = {"quick": {"steps": [obey()]}, "total": total()}
    site = new_site(declare(stages, instrument={"closing": {"count": 1}}))
    async with site.running():
        site.arrive(0)
        await site.until_settled(2)
    stages["quick"]["retries"] = 7
    site.declare(declare(stages, instrument={"closing": {"count": 1}}))
    async with site.running():
        site.arrive(1)
        await site.until_settled(4)
    first, second = [row.run_collection for row in site.rows(schema.production_pass)]
    assert second.endswith("/pass1")
    assert second.split("/")[:3] == first.split("/")[:3]
    assert second.split("/")[3] != first.split("/")[3]


async def test_what_waits_when_the_configuration_changes_goes_on_in_a_new_pass(
    new_site: NewSite, tmp_path: Path
) -> None:
    """V23, P7: nothing that the new configuration makes stands under the old name; the old account is settled."""
    stages = {"quick": {"steps": [obey()]}, "total": total()}
    rule = {"closing": {"count": 2}}
    site = new_site(declare(stages, instrument=rule, station={"grace_s": 0.1}))
    async with site.running():
        site.arrive(0)
        await site.until_done(1)
        site.arrive(1, f"until {tmp_path}/go")
        await site.until(lambda: "running" in site.stages("quick").values())
    (tmp_path / "go").touch()
    site.declare(declare({"swift": {"steps": [obey("swift")]}, "total": total("swift")}, instrument=rule))
    async with site.running():
        await site.until(lambda: all(row.settled_at for row in site.rows(schema.sub_job)), "all is settled")
        await site.until(lambda: len(site.rows(schema.production_pass)) == 2)
        await site.until(lambda: not any(row.is_open for row in site.rows(schema.data_group)), "the group has closed")
        await site.until(lambda: all(row.settled_at for row in site.rows(schema.sub_job)), "its totals are made")
    old, new = site.rows(schema.production_pass)
    assert old.run_collection.split("/")[3] != new.run_collection.split("/")[3]
    made = {(row.dataset_type, row.data_id): row.run_collection for row in site.rows(schema.dataset)}
    assert made["made-quick", "run=1 subrun=0"] == old.run_collection
    assert made["made-swift", "run=1 subrun=1"] == new.run_collection
    cancelled = [row for row in site.rows(schema.stage_run) if row.state == "cancelled"]
    assert {(row.stage, row.reason) for row in cancelled} == {
        ("quick", "the configuration changed before it ran"),
        ("total", "the configuration changed before it ran"),
    }


async def test_a_pipeline_that_is_gone_leaves_its_units_cancelled(new_site: NewSite, tmp_path: Path) -> None:
    """S8, P7: the station starts, and says what became of them."""
    site = new_site(declare(station={"grace_s": 0.1}))
    async with site.running():
        site.arrive(0, f"until {tmp_path}/go")
        await site.until(lambda: "running" in site.stages("quick").values())
    site.declare(json.loads(json.dumps(declare()).replace('"dqm"', '"other"')))
    async with site.running():
        await site.until(lambda: set(site.units().values()) == {"cancelled"})
