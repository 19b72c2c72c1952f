"""Whether the store answers, as the page says it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path

import pytest

from p3s_prefect.adapters import s3_client, s3_server
from p3s_prefect.adapters.s3_store import S3Store
from p3s_prefect.core.bucket_place import BucketPlace
from p3s_prefect.station.store_watch import ASK_EVERY_S, StoreWatch


@pytest.mark.sockets
async def test_a_server_that_is_silent_is_told_within_20_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """P13, S8: it takes connections and says nothing. Times are a tenth here; with all tries it would take 9 s."""
    assert ASK_EVERY_S + s3_client._HASTY_CONNECT_S + s3_client._HASTY_SILENT_S < 20
    for name in ("_CONNECT_S", "_SILENT_S", "_HASTY_CONNECT_S", "_HASTY_SILENT_S"):
        monkeypatch.setattr(s3_client, name, getattr(s3_client, name) / 10)
    credentials = tmp_path / "keys"
    s3_server.write_credentials(credentials, s3_server.new_keys())
    with socket.create_server((s3_server.HOST, 0)) as silent:
        endpoint = f"http://{s3_server.HOST}:{silent.getsockname()[1]}"
        place = BucketPlace(bucket="central", endpoint=endpoint, credentials=str(credentials))
        s3_client.s3_client(place, is_hasty=True)  # which takes a busy machine a second
        watch = StoreWatch(S3Store(place), ask_every_s=ASK_EVERY_S / 10)
        watching = asyncio.create_task(watch.run())
        try:
            async with asyncio.timeout(6.0):
                while not watch.trouble:
                    await asyncio.sleep(0.02)
        finally:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
    assert "does not answer" in watch.trouble
