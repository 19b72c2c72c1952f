"""Groups close, their stages run once with the coverage stated, and what comes late opens a new pass."""

from __future__ import annotations

from typing import Any

import pytest
from sites import NewSite, Site, declare, obey, total

from p3s_prefect.adapters.ledger import schema
from p3s_prefect.core.records import Manifest

pytestmark = pytest.mark.sockets


def declared(closing: dict[str, Any], **stream: Any) -> dict[str, Any]:
    stages = {"quick": {"steps": [obey()], "retries": 0}, "total": total()}
    return declare(stages, instrument={"closing": closing}, stream={"list_every_s": 0.2, **stream})


def totals(site: Site) -> list[str]:
    """What each pass's total holds, in the order of the passes."""
    found = [row for row in site.rows(schema.dataset) if row.dataset_type == "total"]
    return [site.store.read_bytes(row.key).decode() for row in found]


async def until_totals(site: Site, number: int) -> None:
    await site.until(lambda: len(totals(site)) == number, f"{number} totals")


async def test_a_group_closes_by_its_marker(new_site: NewSite) -> None:
    """P22, V18 (closing.marker): all files that stood there are in the total, in the order of their data ids."""
    site = new_site(declared({"marker": "r{run:03d}.closed"}))
    async with site.running():
        for subrun in (3, 1, 2, 0):
            site.arrive(subrun, "fail" if subrun == 2 else f"{subrun}")
        site.arrive(5, run=2)
        site.arrive(0, name="r001.closed")
        await until_totals(site, 1)
        assert site.count(schema.data_group, is_open=True) == 1
    expected = ["done=3 failed=1", *(f"run=1 subrun={n}: {n}" for n in (0, 1, 3))]
    assert totals(site) == ["\n".join(expected)]
    (group,) = [row for row in site.rows(schema.data_group) if not row.is_open]
    assert (group.closed_by, group.arrivals) == ("marker r001.closed", 4)


@pytest.mark.parametrize("notify", [True, False])
async def test_a_marker_that_comes_with_its_files_closes_after_all_of_them(new_site: NewSite, notify: bool) -> None:
    """P22: forty files and the marker at once: one pass, one total, with all forty in it."""
    site = new_site(declared({"marker": "r{run:03d}.closed"}, notify=notify))
    async with site.running():
        for subrun in range(40):
            site.arrive(subrun)
        site.arrive(0, name="r001.closed")
        await until_totals(site, 1)
        await site.until_settled(41)
    assert totals(site)[0].startswith("done=40\n")
    assert len(site.rows(schema.production_pass)) == 1


async def test_a_group_closes_by_count(new_site: NewSite) -> None:
    """P22, V18 (closing.count)."""
    site = new_site(declared({"count": 3}))
    async with site.running():
        for subrun in range(2):
            site.arrive(subrun)
        await site.until_done(2)
        assert site.count(schema.data_group, is_open=True) == 1
        site.arrive(2)
        await until_totals(site, 1)
    assert totals(site)[0].startswith("done=3\n")


async def test_a_group_closes_by_quiet_time(new_site: NewSite) -> None:
    """P22, V18 (closing.quiet_s): counted from the last arrival."""
    site = new_site(declared({"quiet_s": 3.0}))
    async with site.running():
        for subrun in range(3):
            # Work that takes a while lies between two arrivals.
            site.arrive(subrun, "sleep 0.5")
            await site.until_done(subrun + 1)
        await until_totals(site, 1)
    (group,) = site.rows(schema.data_group)
    (closed,) = [row for row in site.rows(schema.journal) if row.kind == "group.closed"]
    assert group.closed_by == "quiet for 3 s"
    assert 3.0 <= closed.at - group.last_arrival_at < 15.0
    assert totals(site)[0].startswith("done=3\n")


async def test_a_late_unit_opens_a_new_pass(new_site: NewSite) -> None:
    """P22, B2: the group's stages run again, over all units; what the earlier pass has made stays byte for byte."""
    site = new_site(declared({"quiet_s": 0.5}))
    async with site.running():
        site.arrive(0)
        site.arrive(1)
        await until_totals(site, 1)
        (first,) = [row for row in site.rows(schema.dataset) if row.dataset_type == "total"]
        before = {row.key: site.store.read_bytes(row.key) for row in site.rows(schema.dataset)}
        site.arrive(2)
        await until_totals(site, 2)
    assert {key: site.store.read_bytes(key) for key in before} == before
    assert first in site.rows(schema.dataset)
    assert [text.splitlines()[0] for text in totals(site)] == ["done=2", "done=3"]
    assert [len(text.splitlines()) for text in totals(site)] == [3, 4]
    passes = site.rows(schema.production_pass)
    assert [row.number for row in passes] == [0, 1]
    assert passes[1].run_collection == f"{passes[0].run_collection}/pass1"
    assert [row.coverage for row in site.rows(schema.attempt) if row.coverage] == [{"done": 2}, {"done": 3}]
    assert [manifest.coverage for manifest in manifests(site) if manifest.stage == "total"] == [
        {"done": 2},
        {"done": 3},
    ]


async def test_a_group_that_was_open_closes_after_a_restart(new_site: NewSite) -> None:
    """P22: quiet time and count go on where the last station ended; nothing closes twice."""
    site = new_site(declared({"count": 2, "quiet_s": 1.5}))
    async with site.running():
        site.arrive(0)
        site.arrive(0, run=2)
        await site.until_done(2)
    async with site.running():
        site.arrive(1)
        await until_totals(site, 2)
    async with site.running():
        site.arrive(7, run=3)
        await site.until_done(4)
    assert sorted(text.splitlines()[0] for text in totals(site)) == ["done=1", "done=2"]


async def test_a_group_without_any_result_says_so(new_site: NewSite) -> None:
    """P22, P7: where no unit gave what the total reads, it is blocked with its reason."""
    site = new_site(declared({"count": 1}))
    async with site.running():
        site.arrive(0, "fail")
        await site.until_settled(2)
    assert site.stages()["run=1", "total"] == "blocked"
    (blocked,) = [row for row in site.rows(schema.stage_run) if row.state == "blocked"]
    assert blocked.reason == "there is no made-quick to read"


def manifests(site: Site) -> list[Manifest]:
    found = [key.key for key in site.store.list("runs/") if key.key.endswith("/manifest.json")]
    read = [Manifest.model_validate_json(site.store.read_bytes(key)) for key in found]
    return sorted(read, key=lambda manifest: manifest.attempt_id)


async def test_coverage_is_that_of_what_is_gathered(new_site: NewSite) -> None:
    """P22: a stage that the total does not come after may still run, or have failed; the total has all units."""
    declared_ = declared({"count": 2})
    declared_["pipelines"]["dqm"]["stages"]["slow"] = {"after": ["quick"], "steps": [obey("slow")], "retries": 0}
    declared_["dataset_types"]["made-slow"] = {"format": "text"}
    site = new_site(declared_)
    async with site.running():
        site.arrive(0, f"slow: until {site.path}/go")
        site.arrive(1, "slow: fail")
        await until_totals(site, 1)
        assert site.stages()["run=1 subrun=0", "slow"] == "running"
        (site.path / "go").touch()
        await site.until_settled(3)
    assert totals(site)[0].startswith("done=2\n")
