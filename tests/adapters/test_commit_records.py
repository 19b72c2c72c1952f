"""Commit records are written behind the publications, whatever is away meanwhile."""

from __future__ import annotations

import asyncio
from contextlib import closing
from pathlib import Path

import pytest
from builders import NOW, manifest, take_and_start

from p3s_prefect.adapters.directory_store import DirectoryStore
from p3s_prefect.adapters.ledger import execution
from p3s_prefect.adapters.ledger.commit_records import commit_record
from p3s_prefect.adapters.ledger.database import Ledger, acquire
from p3s_prefect.station import recorder as recording
from p3s_prefect.station.committer import Committer
from p3s_prefect.station.recorder import Recorder


async def test_records_wait_for_a_ledger_that_cannot_be_read(
    empty_ledger: bytes,
    store: DirectoryStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """V20: the first of a configuration needs the ledger; the station does not end because it is away just then."""
    monkeypatch.setattr(recording, "_RETRY_S", 0.02)
    there, away = tmp_path / "there", tmp_path / "away"
    there.mkdir()
    (there / "ledger.db").write_bytes(empty_ledger)
    with (
        closing(Ledger(f"sqlite:///{there}/ledger.db")) as ledger,
        closing(Ledger(f"sqlite:///{away}/ledger.db")) as other,
    ):
        with ledger.transaction() as connection:
            opened = take_and_start(connection, 0)
            execution.publish(connection, manifest(opened), NOW)
            record = commit_record(connection, opened.id)
            lease = acquire(connection, namespace="test", holder="here:1", lease_s=60, now=NOW)
        async with Committer(ledger, lease) as committer, asyncio.timeout(30):
            recorder = Recorder(store, committer, other)
            recorder.add(record)
            running = asyncio.create_task(recorder.run())
            while "the ledger cannot be read" not in caplog.text:
                await asyncio.sleep(0.01)
            away.symlink_to(there)
            while not any(found.key == record.key for found in store.list("runs/")):
                await asyncio.sleep(0.01)
            running.cancel()
