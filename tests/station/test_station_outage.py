"""P13 as a whole: the S3 server is stopped in the middle of a run, and started again.

A real server with the stream's bucket and the store, real pilots, and a station; what is read of the online buffer is
measured in the kernel's tables of open files.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from clusters import Cluster
from open_files import OpenFiles
from s3_servers import BUCKET, SeaweedServer
from sites import Declared, NewSite, Running, Site, declare, obey, total

from p3s_prefect.adapters.ledger import schema

pytestmark = pytest.mark.sockets

UNITS = 10
BEFORE = 3
"""How many come before the server is stopped."""
MAX_READS = 1
BYTES_PER_S = 100_000
SIZE = 150_000
# A server that was started again, and pilots that ask whether it is.
PATIENCE_S = 150.0


def _declared(server: SeaweedServer, tmp_path: Path) -> Declared:
    stages = {"quick": {"steps": [obey()], "retries": 0}, "total": total()}
    declared = declare(
        stages,
        stream={"bucket": f"s3://{BUCKET}/raw", "endpoint": server.endpoint, "buffer": {"directory": "lst1"}}
        | {"list_every_s": 0.5, "reconcile_every_s": 2.0},
        instrument={"closing": {"marker": "r{run:03d}.closed", "quiet_s": 600}},
        store={"url": f"s3://{BUCKET}/site", "endpoint": server.endpoint},
        pilots={"cache_directory": str(tmp_path / "cache"), "waiting_directory": str(tmp_path / "waiting")},
    )
    del declared["streams"]["camera"]["directory"]
    limits = {"max_reads": MAX_READS, "bytes_per_s": BYTES_PER_S}
    return {**declared, "buffer": {"directory": str(tmp_path / "disk"), **limits}}


class Daq:
    """Lays every file on its disk, and sends it to the bucket while that can be reached."""

    def __init__(self, server: SeaweedServer, disk: Path, chance: random.Random) -> None:
        self._server = server
        self._disk = disk
        self._chance = chance
        self._unsent: list[str] = []
        self.written: dict[str, tuple[int, str]] = {}
        """What it has laid there, and when [ns]: whoever looks there would be measured."""
        disk.mkdir(parents=True)

    def take(self, site: Site, subrun: int, run: int = 1) -> None:
        line = self._chance.randbytes(SIZE // 4).hex()
        self.write(site.name(subrun, run), f"sleep 0.1\nstage other: {line}\n{subrun}".ljust(SIZE, "."))

    def write(self, name: str, content: str = "") -> None:
        hidden = self._disk / f".{name}.tmp"
        hidden.write_text(content)
        self.written[name] = hidden.stat().st_mtime_ns, content
        hidden.rename(self._disk / name)
        self._unsent.append(name)

    def send(self) -> None:
        client = self._server.client()
        for name in self._unsent:
            client.put_object(Bucket=BUCKET, Key=f"raw/{name}", Body=self.written[name][1].encode())
        self._unsent.clear()


async def _row(running: Running, name: str) -> dict[str, str]:
    status = await running.get("/api/status")
    return next(row for row in status["health"] if row["name"] == name)


def _waiting(site: Site) -> int:
    return sum(row.waits_since is not None and row.state == "running" for row in site.rows(schema.attempt))


def _counted(site: Site) -> dict[str, int]:
    return Counter(row.verdict for row in site.rows(schema.arrival))


def _verdicts(site: Site) -> dict[str, list[str]]:
    found = defaultdict(list)
    for row in site.rows(schema.arrival):
        found[row.key].append(row.verdict)
    return found


async def test_an_outage_of_the_store_in_the_middle_of_a_run(
    own_server: SeaweedServer, pilots: Cluster, new_site: NewSite, tmp_path: Path
) -> None:
    """P13: new units are still discovered, from the buffer, and reads move there within seconds, never above its limits
    of concurrent reads and bytes/s; outputs wait locally; then reads move back, outputs drain, data seen again in the
    store are the same arrival, and nothing is lost or doubled (P7, V18: max_reads, bytes_per_s)."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201
    disk = tmp_path / "disk" / "lst1"
    daq = Daq(own_server, disk, random.Random(seed))
    site = new_site(_declared(own_server, tmp_path), scheduler=pilots.address)
    with OpenFiles(disk, lambda: [os.getpid(), *(worker.pid for worker in pilots.workers)]) as reads:
        async with site.running(slots=2) as running:
            for subrun in range(BEFORE):
                daq.take(site, subrun)
            daq.send()
            await site.until_done(BEFORE, patience_s=PATIENCE_S)
            assert reads.read_bytes == 0  # the bucket answers

            own_server.kill()
            for subrun in range(BEFORE, UNITS):
                daq.take(site, subrun)
            daq.write("r001.closed")
            await site.until(lambda: _waiting(site) == UNITS - BEFORE, "all results wait", PATIENCE_S)
            await site.until(lambda: site.count(schema.data_group, is_open=False) == 1, "the run is closed")
            assert site.count(schema.sub_job, state="done", per="unit") == BEFORE
            assert (await _row(running, "source camera"))["actual"].startswith("from the buffer for ")
            row = await _row(running, "online buffer")
            assert (row["status"], row["actual"].split(",")[0]) == ("ok", f"{UNITS - BEFORE} files read")
            in_outage = reads.read_bytes

            own_server.start()
            daq.send()
            await site.until_settled(UNITS + 1, patience_s=PATIENCE_S)
            await site.until(lambda: _counted(site) == _ONCE, "all are the same", PATIENCE_S)
            await site.until(lambda: not running.station.sources[0].why_buffer, "input moves back")
            so_far = reads.read_bytes
            assert so_far <= 2 * (UNITS - BEFORE) * SIZE  # what comes again is compared once, if at all
            daq.take(site, 0, run=2)
            daq.send()
            await site.until_done(UNITS + 1, patience_s=PATIENCE_S)
            assert reads.read_bytes == so_far  # the bucket answers again
            await site.until(lambda: not site.count(schema.attempt, state="done", is_recorded=False), "all is recorded")
            assert (await _row(running, "source camera"))["status"] == "ok"
    # Whoever looks from outside may be late, and miss something, but not much.
    assert (UNITS - BEFORE) * SIZE / 2 < in_outage <= (UNITS - BEFORE) * SIZE
    assert reads.most_at_once == MAX_READS
    assert BYTES_PER_S / 2 < reads.most_per_s(1.0) <= BYTES_PER_S
    _nothing_is_lost_or_doubled(site)
    assert {path.name: (path.stat().st_mtime_ns, path.read_text()) for path in disk.iterdir()} == daq.written


_ONCE = Counter(taken=UNITS, same=UNITS - BEFORE)


def _nothing_is_lost_or_doubled(site: Site) -> None:
    """Each unit was taken once, processed once, and published once; the group closed once with all of them."""
    for key, found in _verdicts(site).items():
        came_in_outage = key in map(site.name, range(BEFORE, UNITS))
        assert found == (["taken", "same"] if came_in_outage else ["taken"]), key
    assert [row.number for row in site.rows(schema.production_pass)] == [0, 0]
    assert Counter(site.stages("quick").values()) == {"done": UNITS + 1}
    attempts = site.rows(schema.attempt)
    assert len({row.stage_run_id for row in attempts if row.state == "done"}) == UNITS + 2
    assert {(row.failures, row.losses) for row in site.rows(schema.stage_run)} == {(0, 0)}
    assert site.text("total", "run=1").splitlines()[0] == f"done={UNITS}"
    datasets = site.rows(schema.dataset)
    assert len({(row.dataset_type, row.data_id) for row in datasets}) == len(datasets) == UNITS + 2
    for row in datasets:
        assert hashlib.sha256(site.store.read_bytes(row.key)).hexdigest() == row.sha256
    kept = {found.key for found in site.store.list("runs/")}
    for row in attempts:
        if row.state == "done":
            place = f"{row.prefix}/{row.execution}"
            assert {f"{place}/manifest.json", f"{place}/commit.json"} <= kept
            assert json.loads(site.store.read_bytes(f"{place}/commit.json"))["attempt"]["id"] == row.id
