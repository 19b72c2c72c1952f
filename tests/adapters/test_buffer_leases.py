"""The online buffer's limits hold over all workers of a real cluster: seen from outside, by what they have open."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import dask
import distributed
import pytest
from builders import command, order, raw_file
from clusters import Cluster
from open_files import OpenFiles

from p3s_prefect.adapters import buffer_leases, supervision
from p3s_prefect.adapters.buffer_leases import DaskLeases
from p3s_prefect.adapters.buffer_reader import BufferReader
from p3s_prefect.adapters.dask_pilots import DaskPilots
from p3s_prefect.adapters.directory_store import DirectoryStore
from p3s_prefect.core.buffer_limits import BufferLimits
from p3s_prefect.core.errors import StoreUnreachable
from p3s_prefect.core.ports import PilotLost
from p3s_prefect.core.records import BufferPlace, Failure, StageOrder

pytestmark = pytest.mark.sockets

PATIENCE_S = 90.0
WORKERS, SLOTS = 4, 3
READERS = WORKERS * SLOTS
LIMITS = BufferLimits(max_reads=3, bytes_per_s=2_000_000)
FILE_BYTES = 600_000
# A killed worker's lease is free after 4 s, and not after half a minute.
_QUICK = {"LEASE_TIMEOUT": "3s", "LEASE_VALIDATION_INTERVAL": "1s"}
SETTINGS = supervision.SERVICE_ENVIRONMENT | {
    f"DASK_DISTRIBUTED__SCHEDULER__LOCKS__{name}": value for name, value in _QUICK.items()
}


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    (tmp_path / "cluster").mkdir()
    with closing(Cluster(tmp_path / "cluster", settings=SETTINGS)) as found:
        found.start_scheduler()
        yield found


@pytest.fixture
async def pilots(cluster: Cluster) -> AsyncIterator[DaskPilots]:
    async with DaskPilots(cluster.address) as found:
        yield found


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.02)


@dataclass
class Buffer:
    """A directory with files, and orders that read one each."""

    directory: Path
    store: DirectoryStore
    orders: list[StageOrder] = field(default_factory=list)

    def order(self, limits: BufferLimits, size: int = FILE_BYTES) -> StageOrder:
        number = len(self.orders)
        path = self.directory / f"run{number}.raw"
        path.write_bytes(bytes(size))
        file = raw_file(path, buffered=BufferPlace(path=str(path), limits=limits))
        step = command("true", inputs={"raw": "raw"}, timeout_s=1)
        self.orders.append(
            order(self.store.url, step, inputs=[file], attempt_id=number, prefix=f"runs/{number}/attempt0")
        )
        return self.orders[-1]


@pytest.fixture
def buffer(tmp_path: Path, store: DirectoryStore) -> Buffer:
    (tmp_path / "buffer").mkdir()
    return Buffer(tmp_path / "buffer", store)


def looking(cluster: Cluster, buffer: Buffer) -> OpenFiles:
    return OpenFiles(buffer.directory, lambda: [worker.pid for worker in cluster.workers])


async def test_no_more_readers_and_bytes_than_allowed_over_all_workers(
    cluster: Cluster, pilots: DaskPilots, buffer: Buffer
) -> None:
    """P13, V18 (Buffer.max_reads, Buffer.bytes_per_s): measured at the files that the workers have open."""
    for _ in range(WORKERS):
        cluster.add_worker(SLOTS)
    await until(lambda: pilots.slots() == READERS)
    orders = [buffer.order(LIMITS) for _ in range(READERS)]
    leases = pilots.buffer_leases
    with looking(cluster, buffer) as reads:
        # Nobody begins before all have asked.
        held = [await asyncio.to_thread(leases.acquire, LIMITS, 1.0) for _ in range(LIMITS.max_reads)]
        assert all(held)
        running = [asyncio.create_task(pilots.run(one, priority=0, patience_s=PATIENCE_S)) for one in orders]
        async with asyncio.timeout(PATIENCE_S):
            while await _waiting(pilots) < READERS:
                await asyncio.sleep(0.02)
        for _ in held:
            await asyncio.to_thread(leases.release, LIMITS)
        reports = await asyncio.gather(*running)
    assert [report.failure for report in reports] == [None] * READERS, [report.reason for report in reports]
    assert [(report.buffer.reads, report.buffer.bytes) for report in reports] == [(1, FILE_BYTES)] * READERS
    assert len({report.pilot for report in reports}) == WORKERS
    assert LIMITS.bytes_per_s is not None
    assert reads.most_at_once == LIMITS.max_reads
    assert reads.read_bytes >= FILE_BYTES * (READERS - LIMITS.max_reads)
    assert reads.most_per_s(1.0) <= LIMITS.bytes_per_s
    # They wait for each other: some begin at once, the others after one read, or two, or three.
    least_s = FILE_BYTES / (LIMITS.bytes_per_s / LIMITS.max_reads)
    assert sum(report.buffer.waited_s > 0.9 * least_s for report in reports) >= READERS - LIMITS.max_reads


async def _waiting(pilots: DaskPilots) -> int:
    """How many have asked for a lease that they do not have yet."""
    assert pilots._client is not None
    return await pilots._client.run_on_scheduler(
        lambda dask_scheduler: sum(dask_scheduler.extensions["semaphores"].metrics["pending"].values())
    )


async def test_a_pilot_that_reads_for_long_is_not_taken_to_hang_and_one_that_hangs_is(
    cluster: Cluster, pilots: DaskPilots, buffer: Buffer
) -> None:
    """P13, P12: neither the one that reads, nor the one behind it at its worker; a frozen one reads no more."""
    patience_s = 8.0
    slow = BufferLimits(max_reads=1, bytes_per_s=10_000)
    worker = cluster.add_worker()
    await until(lambda: pilots.slots() == 1)
    assert (await pilots.run(buffer.order(slow, size=1), priority=0, patience_s=PATIENCE_S)).failure is None
    orders = [buffer.order(slow, size=int(patience_s * 10_000)) for _ in range(2)]
    begun = time.monotonic()
    reports = await asyncio.gather(*(pilots.run(one, priority=0, patience_s=patience_s) for one in orders))
    assert [report.failure for report in reports] == [None, None], [report.reason for report in reports]
    assert time.monotonic() - begun > 2 * patience_s
    hanging = asyncio.create_task(pilots.run(buffer.order(slow), priority=0, patience_s=patience_s))
    with looking(cluster, buffer) as reads:
        await until(lambda: reads.most_at_once)
    worker.send_signal(signal.SIGSTOP)
    with pytest.raises(PilotLost, match="did not answer"):
        await hanging


async def test_the_lease_of_a_killed_worker_is_given_to_another(
    cluster: Cluster, pilots: DaskPilots, buffer: Buffer
) -> None:
    """P13: and only after it can read no more."""
    slow = BufferLimits(max_reads=1, bytes_per_s=10_000)
    cluster.add_worker()
    await until(lambda: pilots.slots() == 1)
    first = asyncio.create_task(pilots.run(buffer.order(slow), priority=0, patience_s=PATIENCE_S))
    with looking(cluster, buffer) as reads:
        await until(lambda: reads.most_at_once)
    cluster.add_worker()
    await until(lambda: pilots.slots() == 2)
    second = asyncio.create_task(pilots.run(buffer.order(slow, size=100), priority=0, patience_s=PATIENCE_S))
    cluster.kill_worker()
    report = await second
    assert report.failure is None, report.reason
    assert report.buffer.waited_s > 0
    with pytest.raises(PilotLost):
        await first


async def test_who_waits_and_who_reads_can_be_stopped(cluster: Cluster, pilots: DaskPilots, buffer: Buffer) -> None:
    """P13, V22: at once, and the lease is free again."""
    slow = BufferLimits(max_reads=1, bytes_per_s=10_000)
    cluster.add_worker(2)
    await until(lambda: pilots.slots() == 2)
    orders = [buffer.order(slow) for _ in range(2)]
    running = [asyncio.create_task(pilots.run(one, priority=0, patience_s=PATIENCE_S)) for one in orders]
    with looking(cluster, buffer) as reads:
        await until(lambda: reads.most_at_once == 1)
    for one in orders:
        await pilots.stop(one.attempt_id)
    reports = await asyncio.gather(*running)
    assert [report.failure for report in reports] == [Failure.STOPPED] * 2, [report.reason for report in reports]
    good = await pilots.run(buffer.order(slow, size=100), priority=0, patience_s=PATIENCE_S)
    assert good.failure is None


async def test_the_station_has_its_leases_from_the_same_scheduler(
    cluster: Cluster, pilots: DaskPilots, buffer: Buffer
) -> None:
    """P13: what it reads itself counts, through a client; without a scheduler it reads nothing."""
    limits = BufferLimits(max_reads=1)
    await until(lambda: pilots._client is not None and pilots._client.status == "running")
    assert await asyncio.to_thread(pilots.buffer_leases.acquire, limits, 1.0)
    file = buffer.directory / "file"
    file.touch()
    async with distributed.Client(cluster.address, asynchronous=True, set_as_default=False) as another:
        theirs = BufferReader(DaskLeases(lambda: another), patience_s=0.1)
        with pytest.raises(StoreUnreachable, match="others read"):
            await asyncio.to_thread(theirs.read, file, limits)
        await asyncio.to_thread(pilots.buffer_leases.release, limits)
        await asyncio.to_thread(theirs.read, file, limits)
    cluster.kill_scheduler()
    with pytest.raises(StoreUnreachable, match="scheduler does not tell"):
        await asyncio.to_thread(pilots.buffer_leases.acquire, limits, 1.0)
    cluster.start_scheduler()
    # Another one, which knows nothing of the last one's semaphores.
    reader = BufferReader(pilots.buffer_leases)

    def is_read() -> bool:
        with suppress(StoreUnreachable):
            reader.read(file, limits)
        return reader.use.reads > 0

    async with asyncio.timeout(PATIENCE_S):
        while not await asyncio.to_thread(is_read):
            await asyncio.sleep(0.1)


async def test_a_lease_that_was_not_given_back_in_time_lapses(
    cluster: Cluster, pilots: DaskPilots, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P13: nor does it stay if somebody else in the process got no answer; the buffer can be read again."""
    limits, leases = BufferLimits(max_reads=1), pilots.buffer_leases
    await until(lambda: pilots._client is not None and pilots._client.status == "running")

    def is_mine() -> bool:
        with suppress(StoreUnreachable):
            return leases.acquire(limits, 1.0)
        return False

    async def acquire() -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not await asyncio.to_thread(is_mine):
                pass

    with dask.config.set({"distributed.scheduler.locks.lease-timeout": _QUICK["LEASE_TIMEOUT"]}):
        await acquire()
        with monkeypatch.context() as impatient:
            impatient.setattr(buffer_leases, "_ANSWER_S", -0.9)
            with pytest.raises(StoreUnreachable, match="scheduler does not tell"):
                await asyncio.to_thread(leases.acquire, limits, 1.0)
        await asyncio.to_thread(leases.release, limits)
        await acquire()
        with monkeypatch.context() as impatient:
            impatient.setattr(buffer_leases, "_ANSWER_S", 0.1)
            releasing = threading.Thread(target=leases.release, args=(limits,))
            releasing.start()
            releasing.join()  # the event loop stands still meanwhile
        await acquire()
        await asyncio.to_thread(leases.release, limits)
