"""Looking through a bucket of known keys: what the source and the ledger add to a bare listing, in time and memory."""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import psutil
from sqlalchemy import insert

from benchmarks.stores.server import seaweed
from benchmarks.table import Row
from p3s_prefect.adapters.bucket_source import BucketSource
from p3s_prefect.adapters.clock import SystemClock
from p3s_prefect.adapters.ledger import arrivals, schema
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.adapters.s3_client import s3_client
from p3s_prefect.core.bucket_place import BucketPlace
from p3s_prefect.core.experiment import Instrument, Rule, Stream
from p3s_prefect.core.ports import Seen
from p3s_prefect.core.records import Arrival, Identity

KEYS = 100_000
QUICK_KEYS = 10_000
_WRITERS = 8
_ROUNDS = 3
INSTRUMENT = Instrument(name="Camera", dimensions={"run": "int", "subrun": "int"}, group=["run"])


def run(is_quick: bool) -> list[Row]:
    """Times of listing so many keys, the shortest of a few rounds each, taken in turn; and resident memory."""
    keys = QUICK_KEYS if is_quick else KEYS
    with tempfile.TemporaryDirectory(prefix="p3s-bench-") as folder, seaweed() as place:
        _fill(place, keys)
        with closing(Ledger(f"sqlite:///{folder}/ledger.db")) as ledger:
            ledger.migrate()
            source = _source(place, ledger)
            asyncio.run(_learn(source, ledger))
            before = _memory()
            rounds = [(_timed(lambda: _bare(place)), _timed(lambda: _known(source))) for _ in range(_ROUNDS)]
            grown = _memory() - before
    bare, ours = (min(times) for times in zip(*rounds, strict=True))
    return [
        Row(f"bare listing of {keys:,} keys", f"{bare:.2f} s", ""),
        Row(f"looking through {keys:,} known keys", f"{ours:.2f} s", f"{ours / bare:.2f} (wanted: 1.3)"),
        Row(f"memory after {_ROUNDS} more rounds", f"{grown / 2**20:+.1f} MiB", ""),
    ]


# --- inside ---------------------------------------------------------------------------------------------------------


def _fill(place: BucketPlace, keys: int) -> None:
    def put(number: int) -> None:
        key = place.key(f"r{number // 10_000:03d}_{number % 10_000:04d}.txt")
        s3_client(place).put_object(Bucket=place.bucket, Key=key, Body=b"data")

    with ThreadPoolExecutor(_WRITERS) as writers:
        for _ in writers.map(put, range(keys)):
            pass


def _source(place: BucketPlace, ledger: Ledger) -> BucketSource:
    stream = Stream(
        bucket=place.address,
        pattern="r{run:03d}_{subrun:04d}.txt",
        dataset_type="raw",
        rules=[Rule(pipelines=["quick"])],
    )

    async def known(name: str, keys: Sequence[str]) -> set[Identity]:
        return await asyncio.to_thread(_look_up, ledger, name, keys)

    return BucketSource("camera", stream, INSTRUMENT, place, clock=SystemClock(), known=known, is_open=lambda _: False)


def _look_up(ledger: Ledger, name: str, keys: Sequence[str]) -> set[Identity]:
    with ledger.reading() as connection:
        return arrivals.known(connection, name, keys)


async def _learn(source: BucketSource, ledger: Ledger) -> None:
    """What an intake would write, without the pipelines."""
    seen = [_row(one) async for one in source._list(set()) if isinstance(one, Arrival)]
    with ledger.transaction() as connection:
        for begin in range(0, len(seen), 1000):
            connection.execute(insert(schema.arrival), seen[begin : begin + 1000])


def _row(seen: Arrival) -> dict[str, object]:
    told = seen.identity
    return {
        "stream": seen.stream,
        "key": told.key,
        "size": told.size,
        "mtime_ns": told.mtime_ns,
        "etag": told.etag,
        "path": seen.path,
        "data_id": str(seen.data_id),
        "dataset_type": seen.dataset_type,
        "arrived_at": seen.arrived_at,
        "verdict": "taken",
        "reason": "",
    }


def _bare(place: BucketPlace) -> None:
    pages = s3_client(place).get_paginator("list_objects_v2").paginate(Bucket=place.bucket, Prefix=place.key(""))
    for page in pages:
        page["Contents"]


def _known(source: BucketSource) -> None:
    async def listed() -> list[Seen]:
        return [one async for one in source._list(set())]

    if asyncio.run(listed()):
        raise AssertionError("known keys were told again")


def _timed(work: Callable[[], None]) -> float:
    begun = time.monotonic()
    work()
    return time.monotonic() - begun


def _memory() -> int:
    return int(psutil.Process().memory_info().rss)
