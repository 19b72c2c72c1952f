"""A station whose bucket goes away and comes back: meanwhile its pilots read in the online buffer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from s3_servers import SeaweedServer
from sites import NewSite, Site, declare, shell

from p3s_prefect.adapters.ledger import schema
from p3s_prefect.core.bucket_place import BucketPlace
from p3s_prefect.core.records import BufferUse

pytestmark = pytest.mark.sockets


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SeaweedServer]:
    """One of this test's own, to be killed and started again."""
    with closing(SeaweedServer(tmp_path / "server")) as found:
        found.start()
        yield found


def upload(server: SeaweedServer, place: BucketPlace, site: Site, subrun: int) -> None:
    """As the DAQ does: it stays in the buffer."""
    path = site.path / "disk/camera" / site.name(subrun)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"unit {subrun}")
    named: dict[str, Any] = {"Bucket": place.bucket, "Key": place.key(site.name(subrun))}
    server.client().put_object(**named, Body=path.read_bytes())


async def test_reads_move_to_the_buffer_and_back_while_units_are_under_way(
    new_site: NewSite, server: SeaweedServer, tmp_path: Path
) -> None:
    """P13, V18 (StreamBuffer.directory): stages of units from the bucket begin while the server is away.

    The results are the same, nothing is tried twice, and no arrival is new.
    """
    place, gate = server.place(), tmp_path / "gate"
    copy = 'cp "$P3S_INPUT_RAW" "$P3S_OUTPUT_MADE"'
    wait = f'touch "{tmp_path}/$P3S_UNIT.begun"; until [ -e "{gate}" ]; do sleep 0.05; done'
    stages = {
        "early": {"steps": [shell(f"{wait}; {copy}", made="made-early")]},
        "late": {"after": ["early"], "steps": [shell(copy, made="made-late")]},
    }
    declared = declare(
        stages,
        stream={
            "bucket": place.address,
            "endpoint": place.endpoint,
            "credentials": place.credentials,
            "reconcile_every_s": 1.0,
            "buffer": {"directory": "camera"},
        },
        buffer={"directory": "disk", "max_reads": 1, "bytes_per_s": 1000},
    )
    del declared["streams"]["camera"]["directory"]
    site = new_site(declared)
    async with site.running(slots=2) as running:
        handout = running.station.handout
        for subrun in range(2):
            upload(server, place, site, subrun)
        await site.until(lambda: len(list(tmp_path.glob("*.begun"))) == 2)
        server.kill()
        gate.touch()
        await site.until_done(2)
        assert (handout.buffer_use.reads, handout.buffer_use.bytes) == (2, len("unit 0") * 2)
        server.start()
        for subrun in range(2, 40):
            before = handout.buffer_use
            upload(server, place, site, subrun)
            await site.until_done(subrun + 1)
            if handout.buffer_use == before:
                break
        else:
            pytest.fail("reads do not move back")
    for number in range(subrun + 1):
        assert site.text("made-late", f"run=1 subrun={number}") == f"unit {number}"
    assert site.count(schema.arrival) == site.count(schema.sub_job) == subrun + 1
    assert site.count(schema.attempt) == 2 * (subrun + 1)
    assert handout.buffer_use != BufferUse()
