"""A station whose central store is a bucket: real pilots, a real S3 server, which is taken away and brought back."""

from __future__ import annotations

import asyncio
import json
import socket
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from clusters import Cluster
from s3_servers import BUCKET, SeaweedServer
from sites import Declared, NewSite, Running, Site, declare, obey, shell, total
from typer.testing import CliRunner

from p3s_prefect.adapters import s3_client
from p3s_prefect.adapters.ledger import schema
from p3s_prefect.api import open_experiment
from p3s_prefect.cli.commands import commands
from p3s_prefect.core.errors import StoreError
from p3s_prefect.station import service
from p3s_prefect.station.store_watch import StoreWatch

pytestmark = pytest.mark.sockets

PICTURE = """
printf '[{"category": "Camera", "title": "A picture", "file": "a.png", "shows": "all"}]' > products.json
printf '\\211PNG\\r\\n\\032\\nrest' > a.png
echo drawn
"""
STAGES = {
    "quick": {"steps": [obey()], "retries": 50, "backoff_s": 0.2},
    "picture": {"steps": [shell(PICTURE)], "retries": 50, "backoff_s": 0.2},
    "total": total(),
}


def _bucket(endpoint: str, **other: str) -> Declared:
    return {"url": f"s3://{BUCKET}/site", "endpoint": endpoint, **other}


async def _store_row(running: Running) -> dict[str, str]:
    status = await running.get("/api/status")
    return next(row for row in status["health"] if row["name"] == "store")


async def test_results_go_to_a_bucket_and_wait_for_it(
    own_server: SeaweedServer, pilots: Cluster, new_site: NewSite, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """P1, S3, V3, V18 (url, endpoint, cache_bytes, cache_directory), V20 (store), S7.

    Results, pages, commands, and the pilots' local cache; the server killed meanwhile.
    """
    monkeypatch.setattr(service, "StoreWatch", partial(StoreWatch, ask_every_s=0.2, ask_again_s=0.2))
    declared = declare(
        STAGES,
        instrument={"closing": {"count": 3}},
        pipeline={"breaker": None},
        store=_bucket(own_server.endpoint),
        pilots={
            "cache_bytes": "1 MB",
            "cache_directory": str(tmp_path / "cache"),
            "waiting_directory": str(tmp_path / "waiting"),
        },
    )
    site = new_site(declared, scheduler=pilots.address)
    async with site.running(slots=2) as running:
        site.arrive(0, "hello")
        await site.until_done(1)
        await _pages_show(site, running)
        own_server.kill()
        site.arrive(1)
        site.arrive(2)

        await site.until(lambda: running.station.store_watch.trouble, "the store is missed")
        row = await _store_row(running)
        assert (row["status"], "does not answer" in row["cause"]) == ("down", True)
        await site.until(lambda: len(site.units()) == 3, "arrivals are taken without the store")
        assert site.count(schema.dataset) == 1
        own_server.start()
        await site.until_settled(4, patience_s=90)
        await site.until(lambda: site.count(schema.attempt, state="done", is_recorded=False) == 0, "all are recorded")
        assert (await _store_row(running))["status"] == "ok"
        told = await running.get("/api/status")
        assert told["station"]["cache_misses"] == 3
        assert "local cache" in {row["name"] for row in told["health"]}
    made = {row.sha256 for row in site.rows(schema.dataset) if row.dataset_type == "made-quick"}
    assert made == {path.name for path in (tmp_path / "cache").iterdir() if not path.name.startswith(".")}
    _everything_is_there(site)
    _no_key_is_told(site, own_server)


async def test_a_server_that_hangs_and_a_bucket_that_is_deleted(
    own_server: SeaweedServer, pilots: Cluster, new_site: NewSite, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """S3, S8, V20: both are said. Units wait for the server, uncounted; for the bucket they are tried again."""
    monkeypatch.setattr(service, "StoreWatch", partial(StoreWatch, ask_every_s=0.2, ask_again_s=0.2))
    site = new_site(
        declare(
            {"quick": {"steps": [obey()], "retries": 50, "backoff_s": 0.2}},
            pipeline={"breaker": None},
            store=_bucket(own_server.endpoint),
            pilots={"waiting_directory": str(tmp_path / "waiting")},
        ),
        scheduler=pilots.address,
    )
    client = own_server.client()
    async with site.running(slots=2) as running:
        site.arrive(0)
        await site.until_done(1)
        assert own_server.process is not None
        frozen = psutil.Process(own_server.process.pid)
        frozen.suspend()
        site.arrive(1)
        await site.until(lambda: running.station.store_watch.trouble, "the store is missed", 60)
        assert (await _store_row(running))["status"] == "down"
        frozen.resume()
        await site.until_done(2, patience_s=90)
        assert {row.failures for row in site.rows(schema.stage_run)} == {0}
        await site.until(lambda: not running.station.store_watch.trouble, "the store is there", 60)
        await asyncio.to_thread(_delete_bucket, client)
        site.arrive(2)
        await site.until(lambda: running.station.store_watch.trouble, "the bucket is missed", 60)
        row = await _store_row(running)
        assert (row["status"], "bucket" in row["cause"]) == ("down", True), row
        await asyncio.to_thread(client.create_bucket, Bucket=BUCKET)
        await site.until_done(3, patience_s=90)
        await site.until(lambda: not running.station.store_watch.trouble, "the store is there")
    assert set(site.units().values()) == {"done"}


async def _pages_show(site: Site, running: Running) -> None:
    """The page, the commands and notebooks read what is in the bucket."""
    (product,) = site.rows(schema.product)
    async with httpx.AsyncClient(base_url=running.url) as client:
        answer = await client.get(f"/api/products/{product.id}")
        log = await client.get(f"/api/logs/{product.attempt_id}")
    assert answer.headers["content-type"] == "image/png"
    assert answer.content.startswith(b"\x89PNG")
    assert "drawn" in log.text
    shown = CliRunner().invoke(commands(), ["show", "run=1 subrun=0", "--home", str(site.path)], catch_exceptions=False)
    assert "A picture" in shown.output
    with open_experiment(site.path) as books:
        assert books.dataset("made-quick", "run=1 subrun=0") == "HELLO"
        assert books.product("A picture", "run=1 subrun=0").startswith(b"\x89PNG")


def _everything_is_there(site: Site) -> None:
    assert Counter(site.stages().values()) == {"done": 7}
    kept = {row.key for table in (schema.dataset, schema.product) for row in site.rows(table)}
    for row in site.rows(schema.attempt):
        if row.state == "done":
            kept |= {f"{row.prefix}/{row.execution}/{name}" for name in ("manifest.json", "commit.json")}
    assert kept <= {found.key for found in site.store.list("runs/")}
    assert site.text("total", "run=1").startswith("done=3")
    assert not (site.path / "store").exists()


def _delete_bucket(client: Any) -> None:
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
        for found in page.get("Contents", []):
            client.delete_object(Bucket=BUCKET, Key=found["Key"])
    client.delete_bucket(Bucket=BUCKET)


def _no_key_is_told(site: Site, server: SeaweedServer) -> None:
    told = "".join(path.read_text(errors="replace") for path in site.path.rglob("*") if path.is_file())
    told += "".join(str(row) for table in schema.metadata.sorted_tables for row in site.rows(table))
    assert server.keys.secret_key not in told
    assert server.keys.access_key not in told


async def test_a_station_that_its_store_refuses_does_not_start(
    seaweed: SeaweedServer, new_site: NewSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S8: a wrong key will not become right by itself, and every result would be lost to it."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "wrong")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    site = new_site(declare(store=_bucket(seaweed.endpoint)))
    with pytest.raises(StoreError, match="does not know the access key"):
        async with site.running():
            pass


async def test_a_station_starts_without_its_store_and_says_so(
    new_site: NewSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3, S8: data that arrive meanwhile are taken; `p3s check` says it too."""
    monkeypatch.setattr(s3_client, "_ATTEMPTS", 1)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = f"http://127.0.0.1:{taken.getsockname()[1]}"
    site = new_site(declare(store=_bucket(endpoint)))
    checked = CliRunner().invoke(commands(), ["check", str(site.home.experiment_file)], catch_exceptions=False)
    assert checked.exit_code == 0
    said = " ".join(checked.output.split())
    assert f"s3://{BUCKET}/site at {endpoint}" in said
    assert "from this machine, the store does not answer" in said
    machine = CliRunner().invoke(commands(), ["check", str(site.path), "--json"], catch_exceptions=False)
    assert "store.url" in [remark["key"] for remark in json.loads(machine.output)["remarks"]]
    async with site.running() as running:
        row = await _store_row(running)
        assert (row["status"], "does not answer" in row["cause"]) == ("down", True)
        site.arrive(0)
        await site.until(lambda: site.count(schema.arrival) == 1, "the arrival is taken")
