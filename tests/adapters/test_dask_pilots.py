"""The pilot pool against a real scheduler and real workers, which come, go, hang and are killed."""

from __future__ import annotations

import asyncio
import itertools
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from uuid import uuid4

import distributed
import pytest
from builders import command, order
from clusters import Cluster

from p3s_prefect.adapters import s3_server
from p3s_prefect.adapters.bucket_url import bucket_url
from p3s_prefect.adapters.dask_pilots import DaskPilots
from p3s_prefect.adapters.directory_store import DirectoryStore
from p3s_prefect.adapters.pilot import worker
from p3s_prefect.adapters.pilot.waiting_outputs import About, OutputStore, WaitingOutputs
from p3s_prefect.core.bucket_place import BucketPlace
from p3s_prefect.core.experiment import Step
from p3s_prefect.core.ports import PilotLost
from p3s_prefect.core.records import Failure, StageOrder, StageReport, WaitingPlace, WaitingTold

pytestmark = pytest.mark.sockets

PATIENCE_S = 30.0
_NUMBERS = itertools.count()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with closing(Cluster(tmp_path_factory.mktemp("cluster"))) as found:
        found.start_scheduler()
        yield found


@pytest.fixture
def fresh_cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A scheduler without workers, for a test of its own."""
    (tmp_path / "cluster").mkdir()
    with closing(Cluster(tmp_path / "cluster")) as found:
        found.start_scheduler()
        yield found


@pytest.fixture
async def pilots(cluster: Cluster) -> AsyncIterator[DaskPilots]:
    async with DaskPilots(cluster.address) as found:
        yield found


OrderOf = Callable[..., StageOrder]


@pytest.fixture
def sleeping(store: DirectoryStore) -> OrderOf:
    """An order that sleeps, and leaves a note when it begins."""

    def make(seconds: float) -> StageOrder:
        return numbered(store, lambda notes: command("sh", "-c", f'touch "$0" && exec sleep {seconds}', notes))

    return make


def numbered(store: DirectoryStore, step: Callable[[Path], Step]) -> StageOrder:
    """An order of a step, which is told where to leave its note, with a number of its own."""
    number = next(_NUMBERS)
    found = order(store.url, step(note(store.root, number)), attempt_id=number)
    return replace(found, prefix=f"runs/test/{number}/attempt0")


async def test_a_pool_that_is_left_while_it_connects_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """P12: a station may stop while its scheduler is silent."""
    made: list[distributed.Client] = []

    class Noted(distributed.Client):
        def __init__(self, *args: object, **values: object) -> None:
            super().__init__(*args, **values)
            made.append(self)

    monkeypatch.setattr(distributed, "Client", Noted)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with DaskPilots(f"tcp://127.0.0.1:{silent.getsockname()[1]}"):
            found, _ = await asyncio.to_thread(silent.accept)
        found.close()
    assert [client.status for client in made] == ["closed"]


def note(beside: Path, number: int) -> Path:
    return beside.with_name(f"begun{number}")


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.02)


async def slots(cluster: Cluster, pilots: DaskPilots, number: int) -> None:
    """Waits until there are so many slots, adding workers if need be."""
    await until(lambda: pilots.slots() >= sum(worker.poll() is None for worker in cluster.workers))
    for _ in range(number - pilots.slots()):
        cluster.add_worker()
    await until(lambda: pilots.slots() == number)


def run(
    pilots: DaskPilots, wanted: StageOrder, *, patience_s: float = PATIENCE_S, priority: int = 0
) -> asyncio.Task[StageReport]:
    return asyncio.create_task(pilots.run(wanted, priority=priority, patience_s=patience_s))


async def begun(store: DirectoryStore, *orders: StageOrder) -> None:
    """Waits until the payloads of all these run."""
    await until(lambda: all(note(store.root, wanted.attempt_id).exists() for wanted in orders))


async def handed_over(pilots: DaskPilots, wanted: StageOrder) -> None:
    """Waits until the scheduler has it."""
    assert pilots._client is not None
    async with asyncio.timeout(PATIENCE_S):
        while f"-{wanted.attempt_id}-" not in str(await pilots._client.processing()):
            await asyncio.sleep(0.02)


async def test_slots_come_and_go(cluster: Cluster, pilots: DaskPilots) -> None:
    """P12: each worker that appears or vanishes is noticed, and told; none spends time on profiles of itself."""
    await slots(cluster, pilots, 2)
    assert pilots.changed.is_set()
    assert pilots._client is not None
    told = await pilots._client.run(lambda dask_worker: "profile" in dask_worker.periodic_callbacks)
    assert list(told.values()) == [False, False]
    pilots.changed.clear()
    cluster.kill_worker()
    await until(lambda: pilots.slots() == 1)
    assert pilots.changed.is_set()
    await slots(cluster, pilots, 2)


async def test_a_stage_runs_and_reports(
    cluster: Cluster, pilots: DaskPilots, sleeping: OrderOf, store: DirectoryStore, tmp_path: Path
) -> None:
    """P12, P11: one stage at a time on each slot, the one with the higher priority first."""
    await slots(cluster, pilots, 2)
    gate = tmp_path / "gate"
    script = 'touch "$0"; until [ -e "$1" ]; do sleep 0.02; done'
    orders = [numbered(store, lambda notes: command("sh", "-c", script, notes, gate)) for _ in range(2)]
    first = [run(pilots, wanted) for wanted in orders]
    await begun(store, *orders)
    waiting = [(sleeping(0.2), priority) for priority in (0, 0, 9)]
    low, low_too, high = (run(pilots, wanted, priority=priority) for wanted, priority in waiting)
    # Both slots are taken until the scheduler knows of all three, however slow this machine is.
    for wanted, _ in waiting:
        await handed_over(pilots, wanted)
    gate.touch()
    reports = await asyncio.gather(*first, low, low_too, high)
    assert [report.failure for report in reports] == [None] * 5
    assert reports[4].started_at <= max(reports[2].started_at, reports[3].started_at)
    for pilot in {report.pilot for report in reports}:
        spans = sorted((r.started_at, r.ended_at) for r in reports if r.pilot == pilot)
        assert all(before[1] <= after[0] for before, after in pairwise(spans))


async def test_a_killed_worker_is_a_lost_pilot(
    cluster: Cluster, pilots: DaskPilots, sleeping: OrderOf, store: DirectoryStore
) -> None:
    """P12: Dask does not try again by itself; the dispatcher is told, and counts it."""
    await slots(cluster, pilots, 2)
    orders = [sleeping(60), sleeping(60)]
    tasks = [run(pilots, wanted) for wanted in orders]
    await begun(store, *orders)
    for _ in range(2):
        cluster.kill_worker()
    for task in tasks:
        with pytest.raises(PilotLost) as lost:
            await task
        assert lost.value.by_stage
    await until(lambda: pilots.slots() == 0)


async def test_a_killed_pilot_leaves_nothing_once_another_has_started(
    cluster: Cluster, pilots: DaskPilots, sleeping: OrderOf, store: DirectoryStore
) -> None:
    """P12: what it was working on goes with the directory that Dask gave to it."""
    await slots(cluster, pilots, 1)
    wanted = sleeping(60)
    task = run(pilots, wanted)
    await begun(store, wanted)
    (left,) = cluster.scratch.rglob(f"{wanted.attempt_id}-*")
    assert (left / "log.txt").exists()
    cluster.kill_worker()
    with pytest.raises(PilotLost):
        await task
    assert left.exists()
    await until(lambda: pilots.slots() == 0)
    await slots(cluster, pilots, 1)
    assert not left.parent.exists()
    assert not list(cluster.scratch.rglob(f"{wanted.attempt_id}-*"))


async def test_a_cluster_of_others_tries_nothing_again_by_itself(tmp_path: Path, store: DirectoryStore) -> None:
    """P12, V18 (pilots.address): a scheduler that was started without our settings loses one pilot an attempt."""
    killer = 'touch "$0"; up() { cut -d" " -f4 /proc/$1/stat; }; kill -KILL $(up $(up $PPID))'
    with closing(Cluster(tmp_path, settings={})) as theirs:
        theirs.start_scheduler()
        async with DaskPilots(theirs.address) as pilots:
            await slots(theirs, pilots, 3)
            for left in (2, 1):
                wanted = numbered(store, lambda notes: command("sh", "-c", killer, notes))
                with pytest.raises(PilotLost) as lost:
                    await run(pilots, wanted)
                assert lost.value.by_stage
                # The loss is told before the operating system has buried the process.
                await until(lambda left=left: pilots.slots() == left)  # type: ignore[misc]
                await until(lambda left=left: _alive(theirs) <= left)  # type: ignore[misc]
                assert _alive(theirs) == left


def _alive(cluster: Cluster) -> int:
    return sum(worker.poll() is None for worker in cluster.workers)


async def test_a_pilot_that_hangs_is_ended(cluster: Cluster, pilots: DaskPilots, sleeping: OrderOf) -> None:
    """P12: one that does not answer in time leaves; its slot is gone, and so is its payload."""
    await slots(cluster, pilots, 1)
    # Long enough that the scheduler has handed it out on a busy machine too.
    task = run(pilots, sleeping(60), patience_s=3.0)
    with pytest.raises(PilotLost, match="did not answer within 3 s") as lost:
        await task
    assert lost.value.by_stage
    await until(lambda: all(worker.poll() is not None for worker in cluster.workers))
    await until(lambda: pilots.slots() == 0)


async def test_stopping_what_runs_and_what_waits(
    cluster: Cluster, pilots: DaskPilots, sleeping: OrderOf, store: DirectoryStore
) -> None:
    """V22: a running attempt is killed and says so; one that waits never begins; one that has ended is no error."""
    await slots(cluster, pilots, 1)
    running, waiting = sleeping(60), sleeping(0)
    first = run(pilots, running)
    await begun(store, running)
    second = run(pilots, waiting)
    await handed_over(pilots, waiting)
    await pilots.stop(waiting.attempt_id)
    await pilots.stop(running.attempt_id)
    with pytest.raises(PilotLost, match="taken back before it began") as lost:
        await second
    assert not lost.value.by_stage
    report = await first
    assert (report.failure, report.reason) == (Failure.STOPPED, "it was stopped")
    await pilots.stop(running.attempt_id)
    assert (await run(pilots, sleeping(0))).manifest is not None


async def test_a_worker_that_is_frozen_keeps_nobody(
    cluster: Cluster, pilots: DaskPilots, sleeping: OrderOf, store: DirectoryStore
) -> None:
    """V22, P12: stopping does not wait for a pilot that hears nothing."""
    await slots(cluster, pilots, 1)
    wanted = sleeping(60)
    task = run(pilots, wanted)
    await begun(store, wanted)
    worker = next(worker for worker in cluster.workers if worker.poll() is None)
    worker.send_signal(signal.SIGSTOP)
    await pilots.stop(wanted.attempt_id)
    with pytest.raises(PilotLost, match="taken back before it began"):
        await task
    assert pilots.slots() == 1, "nobody has given the pilot up yet"
    cluster.kill_worker()
    await until(lambda: pilots.slots() == 0)


async def test_pilots_tell_what_waits_for_a_store_and_forget_what_matters_no_more(
    fresh_cluster: Cluster, tmp_path: Path
) -> None:
    """P13: what a pilot does not say is not taken for nothing."""
    keys = tmp_path / "keys"
    s3_server.write_credentials(keys, s3_server.new_keys())
    away = BucketPlace(bucket="elsewhere", endpoint="http://127.0.0.1:1", credentials=str(keys))
    place = WaitingPlace(store_url=bucket_url(away), directory=str(tmp_path / "waiting"))
    for number in range(2):
        _let_wait(place, f"runs/a{number}", tmp_path)
    async with DaskPilots(fresh_cluster.address, waiting=place) as pilots:
        assert await pilots.waiting() is None, "there are no pilots yet"
        await slots(fresh_cluster, pilots, 2)
        await until_waiting(pilots, {"runs/a0": 4, "runs/a1": 4})
        async with asyncio.timeout(PATIENCE_S):
            # What is just tried to be taken to the store is not dropped.
            while await pilots.waiting() != WaitingTold(sizes={"runs/a0": 4}):
                await pilots.drop_waiting(["runs/a1", "runs/a7"])
        fresh_cluster.workers[0].send_signal(signal.SIGSTOP)
        assert await pilots.waiting() is None
        fresh_cluster.workers[0].send_signal(signal.SIGCONT)
        await until_waiting(pilots, {"runs/a0": 4})
        assert fresh_cluster.scheduler is not None
        fresh_cluster.scheduler.send_signal(signal.SIGSTOP)
        async with asyncio.timeout(PATIENCE_S):
            assert await pilots.waiting() is None, "who asks is not held up"
        fresh_cluster.scheduler.send_signal(signal.SIGCONT)
        await until_waiting(pilots, {"runs/a0": 4})


def _let_wait(place: WaitingPlace, prefix: str, path: Path) -> None:
    waiting = WaitingOutputs(Path(str(place.directory)))
    about = About(store_url=place.store_url, prefix=prefix, execution=prefix.replace("/", "-"))
    with closing(OutputStore(DirectoryStore(path), about, waiting, 100, is_away=lambda: True)) as outputs:
        outputs.put_bytes(f"{prefix}/one", b"some")
        outputs.complete()


async def until_waiting(pilots: DaskPilots, wanted: dict[str, int]) -> None:
    """Waits until all pilots have told this, within the time that they have for it."""
    async with asyncio.timeout(PATIENCE_S):
        while await pilots.waiting() != WaitingTold(sizes=wanted):
            await asyncio.sleep(0.02)


async def test_the_scheduler_killed_and_back(
    cluster: Cluster, pilots: DaskPilots, sleeping: OrderOf, store: DirectoryStore
) -> None:
    """P12, V20: what was in flight is given back at once, without blame; the pool finds the next scheduler."""
    for _ in range(2):
        await slots(cluster, pilots, 1)
        wanted = sleeping(60)
        task = run(pilots, wanted)
        await begun(store, wanted)
        cluster.kill_scheduler()
        with pytest.raises(PilotLost) as lost:
            await task
        assert not lost.value.by_stage
        await until(lambda: pilots.slots() == 0)
        with pytest.raises(PilotLost, match="cannot be reached"):
            await pilots.run(sleeping(0), priority=0, patience_s=5)
        await pilots.stop(1)
        for process in cluster.workers:  # without a scheduler they end by themselves too, at any moment
            process.kill()
            process.wait()
        cluster.start_scheduler()
    await slots(cluster, pilots, 1)
    assert (await run(pilots, sleeping(0))).manifest is not None


async def test_what_an_earlier_station_has_begun_is_ended_and_its_slots_are_not_free_before(
    cluster: Cluster, pilots: DaskPilots, sleeping: OrderOf, store: DirectoryStore
) -> None:
    """V20: who takes over may start nothing in a slot whose pilot has not confirmed the end."""
    await slots(cluster, pilots, 2)
    orders = [sleeping(20), sleeping(20)]
    theirs = [run(pilots, wanted) for wanted in orders]
    await begun(store, *orders)
    waiting = sleeping(20)
    theirs.append(run(pilots, waiting))
    # Both are of the same station, as far as the scheduler is told.
    async with DaskPilots(cluster.address) as successor:
        await until(lambda: successor.slots() == 2)
        client = successor._client
        assert client is not None
        assert set((await client.run(worker.count_running)).values()) == {0}
        mine = sleeping(0.1)
        assert (await run(successor, mine)).manifest is not None
    assert not note(store.root, waiting.attempt_id).exists()
    for one in theirs:
        # Nobody tells a station that was replaced: its next transaction is refused.
        one.cancel()
    await asyncio.gather(*theirs, return_exceptions=True)


async def test_a_station_that_was_replaced_does_not_take_its_pilots_back(
    fresh_cluster: Cluster, sleeping: OrderOf, store: DirectoryStore, caplog: pytest.LogCaptureFixture
) -> None:
    """B7: it was paused, so that its connection is lost, and looks for its pilots before it looks at its lease."""
    ledger = uuid4()
    async with DaskPilots(fresh_cluster.address, ledger=ledger, token=1) as replaced:
        await slots(fresh_cluster, replaced, 1)
        async with DaskPilots(fresh_cluster.address, ledger=ledger, token=2) as successor:
            await until(lambda: successor.slots() == 1)
            order = sleeping(3)
            mine = run(successor, order)
            await begun(store, order)
            assert replaced._client is not None
            await replaced._client.close()
            await until(lambda: "has taken the Dask cluster" in caplog.text)
            assert (await mine).manifest is not None
            assert replaced.slots() == 0
