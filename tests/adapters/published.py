"""A ledger and a store with publications as pilots and station leave them, for tests that damage them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from builders import NOW, manifest, sha256, take_and_start

from p3s_prefect.adapters.directory_store import DirectoryStore
from p3s_prefect.adapters.ledger import execution
from p3s_prefect.adapters.ledger.commit_records import commit_record
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.core.experiment import Format
from p3s_prefect.core.ports import ObjectInfo, ObjectStore
from p3s_prefect.core.records import OutputObject, ProductObject
from p3s_prefect.station.recorder import RecordWriter


class BusyStore(DirectoryStore):
    """While it is read, somebody else writes to the ledger: who reads it within a transaction keeps them waiting."""

    def __init__(self, root: Path, ledger: Ledger) -> None:
        super().__init__(root)
        self._ledger = ledger

    def read_bytes(self, key: str) -> bytes:
        self._somebody_writes()
        return super().read_bytes(key)

    def fetch(self, key: str, scratch: Path, sha256: str) -> Path:
        self._somebody_writes()
        return super().fetch(key, scratch, sha256)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        self._somebody_writes()
        return super().list(prefix)

    def _somebody_writes(self) -> None:
        with self._ledger.transaction():
            pass


def publish(
    ledger: Ledger, store: ObjectStore, subruns: Iterable[int], content: str = "made of {}", **fields: Any
) -> None:
    """A unit each, with one output, one product and a log; all of it recorded."""
    writer = RecordWriter(store, ledger)
    for subrun in subruns:
        with ledger.transaction() as connection:
            opened = take_and_start(connection, subrun, **fields)
            place = f"{opened.prefix}/e1"
            made = store.put_bytes(f"{place}/work/quick.json", content.format(subrun).encode())
            shown = store.put_bytes(f"{place}/work/a.png", f"png {subrun}".encode())
            whole = manifest(opened)
            whole = whole.model_copy(
                update={
                    "outputs": [OutputObject(**made.model_dump(), dataset_type="quick", format=Format.JSON)],
                    "products": [ProductObject(**shown.model_dump(), step="work", product=whole.products[0].product)],
                    "log": store.put_bytes(f"{place}/log.txt", b"all well"),
                }
            )
            store.put_bytes(f"{place}/manifest.json", whole.model_dump_json().encode())
            execution.publish(connection, whole, NOW)
        with ledger.transaction() as connection:
            writer.write(commit_record(connection, opened.id))
            execution.mark_recorded(connection, [opened.id])


def overwrite(path: Path, content: bytes) -> None:
    """As a disk that fails, or a hand that slips."""
    path.chmod(0o644)
    path.write_bytes(content)


def age(path: Path) -> None:
    """Makes it old enough to be swept."""
    os.utime(path, (1, 1))


def good_bytes(store: DirectoryStore) -> set[str]:
    """The checksums of everything in the store."""
    return {sha256(store.read_bytes(one.key)) for one in store.list("")}
