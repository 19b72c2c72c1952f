"""A station whose bucket goes away: new units are found in the online buffer, and are the same when it is back."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from typing import Any

import pytest
from s3_servers import SeaweedServer
from sites import Declared, NewSite, Running, Site, obey, total
from tcp_proxy import TcpProxy
from test_station_buckets import from_bucket, put

from p3s_prefect.adapters import buffered_source
from p3s_prefect.adapters.ledger import schema
from p3s_prefect.core.bucket_place import BucketPlace
from p3s_prefect.core.closing import Sight

pytestmark = pytest.mark.sockets

STAGES = {"quick": {"steps": [obey()]}, "total": total()}


@pytest.fixture
def proxy(seaweed: SeaweedServer) -> Iterator[TcpProxy]:
    """The way to the bucket, which can be cut: then nothing answers, and nothing is refused either."""
    with closing(TcpProxy(seaweed.port)) as found:
        yield found


@pytest.fixture
def place(seaweed: SeaweedServer, proxy: TcpProxy) -> BucketPlace:
    return seaweed.place(endpoint=f"http://127.0.0.1:{proxy.port}")


def buffered(place: BucketPlace, stages: Declared | None = None, **buffer: Any) -> Declared:
    """An experiment whose stream comes from the bucket, and from ``disk/lst1`` below the home."""
    declared = from_bucket(place, stages, list_every_s=0.3, buffer={"directory": "lst1", **buffer})
    return {**declared, "buffer": {"directory": "disk"}}


def lay(site: Site, own: str, content: str) -> None:
    """Into the buffer, renamed into place."""
    path = site.path / "disk" / "lst1" / own
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = path.with_name(f".{path.name}.tmp")
    hidden.write_text(content)
    hidden.rename(path)


def verdicts(site: Site, own: str) -> list[str]:
    return [row.verdict for row in site.rows(schema.arrival) if row.key == own]


async def row_of(running: Running, name: str) -> dict[str, str]:
    status = await running.get("/api/status")
    return next(row for row in status["health"] if row["name"] == name)


async def quiet_time_is_over(site: Site, running: Running, quiet_s: float) -> None:
    """Waits until whoever closes groups has looked after that, twice: the first look has done then what it had to."""
    intake = running.station.intake
    sight, over_at = intake.sight, max(row.arrived_at for row in site.rows(schema.arrival)) + quiet_s
    looks = 0

    def looking() -> Sight:
        nonlocal looks
        looks += time.time() > over_at
        return sight()

    intake.sight = looking
    await site.until(lambda: looks >= 2, "a look after quiet time")


async def test_while_the_bucket_is_away_units_come_from_the_buffer(
    new_site: NewSite, seaweed: SeaweedServer, place: BucketPlace, proxy: TcpProxy
) -> None:
    """P13, P19, P22, V18 (buffer.directory, a stream's buffer.directory): nothing is lost, doubled, or closed twice."""
    declared = buffered(place, STAGES)
    declared["instrument"]["closing"] = {"marker": "r{run:03d}.closed"}
    site = new_site(declared)
    async with site.running() as running:
        assert "cannot be listed" in (await row_of(running, "online buffer"))["cause"]
        for subrun in (0, 1):
            put(seaweed, place, site.name(subrun), f"number {subrun}")
            lay(site, site.name(subrun), f"number {subrun}")
        await site.until_done(2)
        assert (await row_of(running, "source camera"))["status"] == "ok"
        proxy.cut()
        for subrun in (2, 3):
            lay(site, site.name(subrun), f"number {subrun}")
        lay(site, "r001.closed", "")
        await site.until_settled(5)
        row = await row_of(running, "source camera")
        assert (row["status"], "does not answer" in row["cause"]) == ("degraded", True)
        assert row["actual"].startswith("from the buffer for ")
        assert (await row_of(running, "online buffer"))["status"] == "ok"
        proxy.mend()
        for subrun in (2, 3):
            put(seaweed, place, site.name(subrun), f"number {subrun}")
        put(seaweed, place, "r001.closed", "")
        await site.until(lambda: all(verdicts(site, site.name(n)) == ["taken", "same"] for n in (2, 3)))
        await site.until(lambda: not running.station.sources[0].why_buffer, "input moves back")
        put(seaweed, place, site.name(0, run=2), "next run")
        await site.until_done(5)
        assert (await row_of(running, "source camera"))["status"] == "ok"
    assert [verdicts(site, site.name(subrun)) for subrun in (0, 1)] == [["taken"], ["taken"]]
    assert Counter(site.stages().values()) == {"done": 6}
    assert [row.number for row in site.rows(schema.production_pass)] == [0, 0]
    assert site.text("total", "run=1").splitlines()[0] == "done=4"
    paths = {row.key: row.path for row in site.rows(schema.arrival) if row.verdict == "taken"}
    assert paths[site.name(2)] == str(site.path / "disk" / "lst1" / site.name(2))
    assert paths[site.name(1)].startswith("s3://")


async def test_a_group_does_not_become_quiet_while_its_source_moves(
    new_site: NewSite, seaweed: SeaweedServer, place: BucketPlace, proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P13, P22: a unit that came while nobody could look is in the group, however short its quiet time is."""
    monkeypatch.setattr(buffered_source, "_SILENT_S", 3.0)
    declared = buffered(place, STAGES)
    declared["instrument"]["closing"] = {"quiet_s": 1.5}
    site = new_site(declared)
    async with site.running():
        put(seaweed, place, site.name(0), "zero")
        await site.until(lambda: site.count(schema.arrival) == 1)
        proxy.cut()
        lay(site, site.name(1), "one")
        await site.until_done(1)
        proxy.mend()
        await site.until_settled(3, patience_s=60)
    assert [row.number for row in site.rows(schema.production_pass)] == [0]
    assert site.text("total", "run=1").splitlines() == ["done=2", "run=1 subrun=0: ZERO", "run=1 subrun=1: ONE"]


@pytest.mark.parametrize("has_bucket", [True, False])
async def test_a_group_does_not_become_quiet_while_its_only_place_is_away(
    new_site: NewSite, seaweed: SeaweedServer, place: BucketPlace, proxy: TcpProxy, has_bucket: bool
) -> None:
    """P22: a bucket without a buffer, or the buffer alone: what came meanwhile opens no pass of its own."""
    declared = buffered(place, STAGES, always=not has_bucket)
    if has_bucket:
        del declared["buffer"], declared["streams"]["camera"]["buffer"]
    declared["instrument"]["closing"] = {"quiet_s": 1.5}
    site = new_site(declared)
    there, unmounted = site.path / "disk" / "lst1", site.path / "disk" / "unmounted"
    async with site.running() as running:
        bring = partial(put, seaweed, place) if has_bucket else partial(lay, site)
        bring(site.name(0), "zero")
        await site.until(lambda: site.count(schema.arrival) == 1)
        if has_bucket:
            proxy.cut()
        else:
            there.rename(unmounted)
        await quiet_time_is_over(site, running, 1.5)
        assert site.count(schema.data_group, is_open=True) == 1
        if has_bucket:
            bring(site.name(1), "one")
            proxy.mend()
        else:
            unmounted.rename(there)
            bring(site.name(1), "one")
        await site.until_settled(3, patience_s=60)
        assert not running.station.sources[0].trouble
    assert [row.number for row in site.rows(schema.production_pass)] == [0]
    assert site.text("total", "run=1").splitlines()[0] == "done=2"


@pytest.mark.parametrize("has_bucket", [True, False])
async def test_a_stream_may_be_fed_from_the_buffer_always(
    new_site: NewSite, seaweed: SeaweedServer, place: BucketPlace, has_bucket: bool
) -> None:
    """P13, V18 (always): whether it has a bucket, which answers, or none."""
    declared = buffered(place, always=True)
    if not has_bucket:
        for key in ("bucket", "endpoint", "credentials"):
            del declared["streams"]["camera"][key]
    site = new_site(declared)
    async with site.running() as running:
        put(seaweed, place, site.name(0), "in the bucket")
        lay(site, site.name(1), "in the buffer")
        await site.until_done(1)
        listed_at = running.station.sources[0].listed_at
        await site.until(lambda: running.station.sources[0].listed_at > listed_at)
        assert (await row_of(running, "source camera"))["status"] == "ok"
    assert site.units() == {"run=1 subrun=1": "done"}
    assert site.text("made-quick", "run=1 subrun=1") == "IN THE BUFFER"
