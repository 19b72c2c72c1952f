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
    monkeypatch.setattr(recording, "_LAST_RETRY_S", 0.02)
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


def _unrecorded(ledger: Ledger) -> list[int]:
    with ledger.reading() as connection:
        return list(execution.unrecorded(connection))


async def test_a_record_that_is_refused_holds_up_no_other(
    empty_ledger: bytes, store: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S8, V13: where other bytes stand in the place of one, the others are written, and health says which is not."""
    monkeypatch.setattr(recording, "_LAST_RETRY_S", 0.02)
    (tmp_path / "ledger.db").write_bytes(empty_ledger)
    with closing(Ledger(f"sqlite:///{tmp_path}/ledger.db")) as ledger:
        records = []
        with ledger.transaction() as connection:
            for subrun in range(3):
                opened = take_and_start(connection, subrun)
                execution.publish(connection, manifest(opened), NOW)
                records.append(commit_record(connection, opened.id))
            lease = acquire(connection, namespace="test", holder="here:1", lease_s=60, now=NOW)
        store.put_bytes(records[0].key, b"of somebody else")
        async with Committer(ledger, lease) as committer, asyncio.timeout(30):
            recorder = Recorder(store, committer, ledger)
            for record in records:
                recorder.add(record)
            running = asyncio.create_task(recorder.run())
            while not {found.key for found in store.list("runs/")} >= {record.key for record in records[1:]}:
                await asyncio.sleep(0.01)
            assert records[0].key in recorder.trouble
            while _unrecorded(ledger) != [records[0].attempt.id]:
                await asyncio.sleep(0.01)
            store.delete(records[0].key)
            while recorder.trouble:
                await asyncio.sleep(0.01)
            running.cancel()


async def test_a_new_record_does_not_wait_for_those_that_are_refused(
    empty_ledger: bytes, store: DirectoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S8, V13: however many they are, and however long they rest; it is noted too, and the others are counted."""
    for name in ("_FIRST_RETRY_S", "_LAST_RETRY_S"):
        monkeypatch.setattr(recording, name, 3600.0)
    (tmp_path / "ledger.db").write_bytes(empty_ledger)
    with closing(Ledger(f"sqlite:///{tmp_path}/ledger.db")) as ledger:
        records = []
        with ledger.transaction() as connection:
            for subrun in range(5):
                opened = take_and_start(connection, subrun)
                execution.publish(connection, manifest(opened), NOW)
                records.append(commit_record(connection, opened.id))
            lease = acquire(connection, namespace="test", holder="here:1", lease_s=60, now=NOW)
        *refused, good = records
        for record in refused:
            store.put_bytes(record.key, b"of somebody else")
        async with Committer(ledger, lease) as committer, asyncio.timeout(60):
            recorder = Recorder(store, committer, ledger)
            running = asyncio.create_task(recorder.run())
            for record in refused:
                recorder.add(record)
            while recorder.refused < len(refused):
                await asyncio.sleep(0.01)
            recorder.add(good)
            while _unrecorded(ledger) != [record.attempt.id for record in refused]:
                await asyncio.sleep(0.01)
            running.cancel()
