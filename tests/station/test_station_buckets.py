"""A station whose data arrive in a bucket: real pilots, a real S3 server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from s3_servers import SeaweedServer
from sites import Declared, NewSite, Running, Site, declare, obey, total

from p3s_prefect.adapters import s3_server
from p3s_prefect.adapters.free_ports import free_port
from p3s_prefect.adapters.ledger import schema
from p3s_prefect.adapters.s3_client import s3_client
from p3s_prefect.core.bucket_place import BucketPlace
from p3s_prefect.core.experiment import Stream

pytestmark = pytest.mark.sockets


@dataclass
class NotifyingServer(SeaweedServer):
    """SeaweedFS that posts whatever happens to the station at a port."""

    station_port: int = 0

    def _command(self) -> tuple[str, ...]:
        told = f'endpoint = "http://{s3_server.HOST}:{self.station_port}/api/notices"'
        (self.path / "notification.toml").write_text(f"[notification.webhook]\nenabled = true\n{told}\n")
        program, *words = super()._command()
        return (program, f"-config_dir={self.path}", *words)


@pytest.fixture
def notifying(tmp_path: Path) -> Iterator[NotifyingServer]:
    port = free_port()
    with closing(NotifyingServer(tmp_path / "notifying", station_port=port)) as server:
        server.start()
        yield server


def from_bucket(place: BucketPlace, stages: Declared | None = None, **stream: Any) -> Declared:
    """An experiment whose only stream comes from a bucket."""
    declared = declare(stages, stream={"bucket": place.address, "endpoint": place.endpoint, **stream})
    declared["streams"]["camera"] |= {"credentials": place.credentials}
    del declared["streams"]["camera"]["directory"]
    return declared


def put(seaweed: SeaweedServer, place: BucketPlace, own: str, content: str) -> None:
    seaweed.client().put_object(Bucket=place.bucket, Key=place.key(own), Body=content.encode())


def put_in_parts(seaweed: SeaweedServer, place: BucketPlace, own: str, content: str) -> None:
    """The same bytes so have another ETag."""
    client, named = seaweed.client(), {"Bucket": place.bucket, "Key": place.key(own)}
    upload = {**named, "UploadId": client.create_multipart_upload(**named)["UploadId"]}
    part = client.upload_part(**upload, PartNumber=1, Body=content.encode())
    client.complete_multipart_upload(**upload, MultipartUpload={"Parts": [{"ETag": part["ETag"], "PartNumber": 1}]})


async def notify(running: Running, body: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=running.url) as client:
        return await client.post("/api/notices", json=body)


def verdicts(site: Site) -> list[tuple[str, str]]:
    return [(row.key, row.verdict) for row in site.rows(schema.arrival)]


async def test_objects_that_arrive_in_a_bucket_are_processed(
    new_site: NewSite, seaweed: SeaweedServer, s3_place: BucketPlace
) -> None:
    """P1, P2, P22, V18 (bucket, endpoint, credentials): with no command; hints of both forms; re-uploaded objects."""
    stages = {"quick": {"steps": [obey()]}, "total": total()}
    declared = from_bucket(s3_place, stages, list_every_s=0.3, reconcile_every_s=1.0)
    declared["instrument"]["closing"] = {"marker": "r{run:03d}.closed"}
    site = new_site(declared)
    put(seaweed, s3_place, "night/r001_0005.txt", "five")
    async with site.running() as running:
        await site.until_done(1)
        assert site.text("made-quick", "run=1 subrun=5") == "FIVE"
        for subrun in (7, 1, 3):
            put(seaweed, s3_place, f"night/r001_{subrun:04d}.txt", f"number {subrun}")
        record = {"s3": {"bucket": {"name": s3_place.bucket}, "object": {"key": s3_place.key("night/r001_0001.txt")}}}
        answer = await notify(running, {"Records": [record]})
        assert (answer.status_code, answer.json()) == (202, {"taken": 1})
        filer = f"/buckets/{s3_place.bucket}/{s3_place.key('night/r001_0003.txt')}"
        assert (await notify(running, {"key": filer, "event_type": "create"})).json() == {"taken": 1}
        await site.until_done(4)
        put(seaweed, s3_place, "night/r001_0005.txt", "five")
        put_in_parts(seaweed, s3_place, "night/r001_0007.txt", "number 7")
        put(seaweed, s3_place, "night/r001_0003.txt", "number X")
        await site.until(lambda: len(site.rows(schema.arrival)) == 6)
        put(seaweed, s3_place, "r001.closed", "")
        await site.until_settled(5)
        status = await running.get("/api/status")
    assert sorted(verdicts(site)) == [
        ("night/r001_0001.txt", "taken"),
        ("night/r001_0003.txt", "conflict"),
        ("night/r001_0003.txt", "taken"),
        ("night/r001_0005.txt", "taken"),
        ("night/r001_0007.txt", "same"),
        ("night/r001_0007.txt", "taken"),
    ]
    assert site.text("total", "run=1").splitlines() == [
        "done=4",
        *(f"run=1 subrun={n}: {text}" for n, text in ((1, "NUMBER 1"), (3, "NUMBER 3"), (5, "FIVE"), (7, "NUMBER 7"))),
    ]
    source = next(row for row in status["health"] if row["name"] == "source camera")
    assert source["status"] == "ok"


async def test_a_server_s_own_notifications_are_hints(new_site: NewSite, notifying: NotifyingServer) -> None:
    """P2, V18 (notify): where nothing is listed for an hour, what SeaweedFS posts is enough."""
    place = notifying.place()
    declared = from_bucket(place, list_every_s=3600, reconcile_every_s=3600)
    declared["station"]["port"] = notifying.station_port
    site = new_site(declared)
    async with site.running() as running:
        await site.until(lambda: running.station.sources[0].listed_at, "the first listing")
        put(notifying, place, "night/r001_0002.txt", "two")
        await site.until_done(1)
    assert verdicts(site) == [("night/r001_0002.txt", "taken")]


async def test_an_object_that_changed_before_it_was_read_is_not_read(
    new_site: NewSite, seaweed: SeaweedServer, s3_place: BucketPlace
) -> None:
    """P2, S8: the unit fails with its reason, the other content is a conflict, and other units go on."""
    stages = {"quick": {"steps": [{**obey(), "timeout_s": 120}]}}
    declared = from_bucket(s3_place, stages, list_every_s=0.3, reconcile_every_s=0.5)
    declared["pipelines"]["dqm"]["limit"] = 1
    site = new_site(declared)
    put(seaweed, s3_place, "r001_0000.txt", f"until {site.path}/go")
    async with site.running():
        await site.until(lambda: site.stages()["run=1 subrun=0", "quick"] == "running" if site.stages() else False)
        put(seaweed, s3_place, "r001_0001.txt", "first")
        await site.until(lambda: len(site.rows(schema.arrival)) == 2)
        put(seaweed, s3_place, "r001_0001.txt", "other")
        await site.until(lambda: len(site.rows(schema.arrival)) == 3)
        (site.path / "go").touch()
        await site.until_settled(2)
    assert site.units() == {"run=1 subrun=0": "done", "run=1 subrun=1": "failed"}
    assert any("no longer the object that arrived" in (row.reason or "") for row in site.rows(schema.attempt))
    assert sorted(verdicts(site))[1:] == [("r001_0001.txt", "conflict"), ("r001_0001.txt", "taken")]


def test_the_region_is_the_one_that_requests_are_signed_for(seaweed: SeaweedServer) -> None:
    """V18 (region)."""
    stream = Stream(
        bucket="s3://night/in",
        region="eu-north-1",
        credentials=str(seaweed.credentials),
        pattern="r{run}.txt",
        dataset_type="raw",
        rules=[{"pipelines": []}],  # type: ignore[list-item]
    )
    assert isinstance(stream.place, BucketPlace)
    assert s3_client(stream.place).meta.region_name == "eu-north-1"
