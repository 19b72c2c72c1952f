"""A stream's bucket that goes away and comes back, and its online buffer meanwhile: a real server, real files."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from s3_servers import SeaweedServer
from tcp_proxy import TcpProxy

from p3s_prefect.adapters import buffer_source, buffered_source, s3_client
from p3s_prefect.adapters.bucket_source import BucketSource
from p3s_prefect.adapters.buffer_leases import LocalLeases
from p3s_prefect.adapters.buffer_reader import BufferReader
from p3s_prefect.adapters.buffer_source import BufferSource
from p3s_prefect.adapters.buffered_source import BufferedSource
from p3s_prefect.adapters.clock import SystemClock
from p3s_prefect.adapters.directory_store import file_sha256
from p3s_prefect.adapters.listed_source import ListedSource
from p3s_prefect.core.bucket_place import BucketPlace
from p3s_prefect.core.buffer_limits import BufferLimits
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.errors import InputChanged, StoreUnreachable
from p3s_prefect.core.experiment import Closing, Complete, Instrument, Stream
from p3s_prefect.core.ports import MarkerSeen, Refusal, Seen
from p3s_prefect.core.records import Arrival, Identity
from p3s_prefect.station.sources import source_facts

pytestmark = pytest.mark.sockets

INSTRUMENT = Instrument(
    name="TestCam",
    dimensions={"run": "int", "subrun": "int"},
    group=["run"],
    closing=Closing(marker="r{run:03d}.closed"),
)
LIMITS = BufferLimits(max_reads=1)
SOON_S = 60.0


def read_whole(path: Path, _is_wanted: Callable[[], bool]) -> str:
    return file_sha256(path)


class SteppingClock:
    """A wall clock that somebody sets."""

    ahead_s = 0.0

    def now(self) -> float:
        return SystemClock().now() + self.ahead_s


@dataclass
class Places:
    """A bucket behind a proxy that can be cut, a directory with the same keys, and what the ledger would know."""

    place: BucketPlace
    client: Any
    proxy: TcpProxy
    root: Path
    clock: SteppingClock = field(default_factory=SteppingClock)
    settled: set[Identity] = field(default_factory=set)
    open_groups: set[DataId] = field(default_factory=set)
    told: list[Seen] = field(default_factory=list)

    # --- data ---

    def name(self, subrun: int, run: int = 1) -> str:
        return f"night/r{run:03d}_{subrun:04d}.txt"

    def put(self, own: str, content: str = "data") -> None:
        """Into the bucket."""
        self.client.put_object(Bucket=self.place.bucket, Key=self.place.key(own), Body=content.encode())

    def lay(self, own: str, content: str = "data") -> Path:
        """Into the buffer, renamed into place."""
        path = self.root / own
        path.parent.mkdir(parents=True, exist_ok=True)
        hidden = path.with_name(f".{path.name}.tmp")
        hidden.write_text(content)
        return hidden.rename(path)

    def lay_whole(self, own: str, content: str = "data") -> None:
        """Into the buffer, with its manifest."""
        self.lay(own, content)
        self.lay(f"{own}.ok", hashlib.sha256(content.encode()).hexdigest())

    # --- ledger ---

    async def known(self, _stream: str, keys: Sequence[str]) -> set[Identity]:
        return {identity for identity in self.settled if identity.key in keys}

    def settle(self, seen: Seen) -> None:
        self.told.append(seen)
        if isinstance(seen, Arrival):
            self.settled.add(seen.identity)
            self.open_groups.add(seen.data_id.subset(["run"]))
        elif isinstance(seen, Refusal):
            self.settled.add(Identity(key=seen.key, size=seen.size, mtime_ns=seen.mtime_ns, etag=seen.etag))
        else:
            self.open_groups.discard(seen.group)

    # --- sources ---

    def source(self, **fields: Any) -> BufferedSource:
        stream, given = self._stream(**fields), self._given()
        bucket = BucketSource("camera", stream, INSTRUMENT, self.place, **given)
        buffer = BufferSource("camera", stream, INSTRUMENT, self.root, sha256=read_whole, **given)
        return BufferedSource(bucket, buffer, self.clock)

    def bucket(self) -> BucketSource:
        return BucketSource("camera", self._stream(), INSTRUMENT, self.place, **self._given())

    def buffer(self, **fields: Any) -> BufferSource:
        stream = self._stream(**fields)
        return BufferSource("camera", stream, INSTRUMENT, self.root, sha256=read_whole, **self._given())

    def buffer_read_by(self, sha256: Callable[[Path, Callable[[], bool]], str]) -> BufferSource:
        """It has manifests."""
        stream = self._stream(complete=Complete(by="manifest"))
        return BufferSource("camera", stream, INSTRUMENT, self.root, sha256=sha256, **self._given())

    def manifests(self) -> tuple[BufferSource, LocalLeases]:
        """A buffer with manifests, and the lease without which nothing is read there."""
        leases = LocalLeases()
        reader = BufferReader(leases, patience_s=0.05)
        return self.buffer_read_by(lambda path, _: reader.read(path, LIMITS).sha256), leases

    def _stream(self, **fields: Any) -> Stream:
        given = {"list_every_s": 0.05, "reconcile_every_s": 3600, "notify": False, **fields}
        return Stream(
            bucket=self.place.address,
            pattern="r{run:03d}_{subrun:04d}.txt",
            dataset_type="raw",
            rules=[{"pipelines": ["dqm"]}],  # type: ignore[list-item]
            **given,
        )

    def _given(self) -> dict[str, Any]:
        is_open: Callable[[DataId], bool] = lambda group: group in self.open_groups  # noqa: E731
        return {"clock": self.clock, "known": self.known, "is_open": is_open}

    # --- what was told ---

    def keys(self, *, from_buffer: bool) -> list[str]:
        """Keys that were told from the buffer, or from the bucket, in order."""
        found = [seen for seen in self.told if isinstance(seen, Arrival)]
        return [seen.identity.key for seen in found if (seen.identity.etag == "") == from_buffer]

    @contextlib.asynccontextmanager
    async def following(self, source: BufferedSource | ListedSource) -> AsyncIterator[None]:
        """Everything that the source tells is settled; it ends with nothing left behind."""

        async def follow() -> None:
            async with contextlib.aclosing(source.arrivals()) as arrivals:
                async for seen in arrivals:
                    self.settle(seen)

        before = asyncio.all_tasks()
        task = asyncio.create_task(follow())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            # The loop ends when its threads do, and one may be asking a bucket that is cut off.
            self.proxy.mend()
        assert asyncio.all_tasks() == before

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(SOON_S):
            while not condition():
                await asyncio.sleep(0.02)

    async def until_told(self, own: str, *, from_buffer: bool) -> None:
        await self.until(lambda: own in self.keys(from_buffer=from_buffer))


@pytest.fixture
def places(seaweed: SeaweedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Places]:
    monkeypatch.setattr(buffered_source, "_ASK_EVERY_S", 0.1)
    monkeypatch.setattr(buffered_source, "_SILENT_S", 0.2)
    with contextlib.closing(TcpProxy(seaweed.port)) as proxy:
        place = seaweed.place(endpoint=f"http://127.0.0.1:{proxy.port}")
        yield Places(place=place, client=seaweed.client(), proxy=proxy, root=tmp_path / "disk" / "lst1")


# --- P13 ------------------------------------------------------------------------------------------------------------


async def test_while_the_bucket_is_silent_the_buffer_is_followed_and_then_the_bucket_again(places: Places) -> None:
    """P13, P2: nothing is missed, and nothing told by the bucket is told again by the buffer, nor is it read."""
    found = places.source()
    for subrun in (1, 2):
        places.put(places.name(subrun))
        places.lay(places.name(subrun))
    async with places.following(found):
        await places.until_told(places.name(2), from_buffer=False)
        places.lay(places.name(3), "three")
        assert (found.fed_from, found.why_buffer) == (found.bucket, "")
        places.proxy.cut()
        await places.until_told(places.name(3), from_buffer=True)
        assert found.fed_from is found.buffer
        assert "does not answer" in found.why_buffer
        places.lay(places.name(4), "four")
        await places.until_told(places.name(4), from_buffer=True)
        for subrun, content in ((3, "three"), (4, "four"), (5, "five")):
            places.put(places.name(subrun), content)
        places.proxy.mend()
        await places.until_told(places.name(5), from_buffer=False)
        await places.until(lambda: found.fed_from is found.bucket)
        places.lay(places.name(6))
        places.put(places.name(7))
        await places.until_told(places.name(7), from_buffer=False)
    assert places.keys(from_buffer=True) == [places.name(subrun) for subrun in (3, 4)]
    assert places.keys(from_buffer=False) == [places.name(subrun) for subrun in (1, 2, 3, 4, 5, 7)]


async def test_a_server_that_is_gone_at_the_start_is_not_waited_for(places: Places) -> None:
    """P13: its port is closed; a bucket that is back later is listed as a whole."""
    found = places.source()
    places.put(places.name(1))
    places.lay(places.name(2))
    places.proxy.cut()
    async with places.following(found):
        await places.until_told(places.name(2), from_buffer=True)
        places.proxy.mend()
        await places.until_told(places.name(1), from_buffer=False)


async def test_when_input_has_moved_back_the_bucket_is_listed(places: Places) -> None:
    """P13, P19: the listing that brings it back counts, though the next look may be long in coming."""
    found = places.source(list_every_s=3600)
    places.proxy.cut()
    async with places.following(found):
        await places.until(lambda: found.why_buffer)
        places.proxy.mend()
        await places.until(lambda: not found.why_buffer)
        told = source_facts(found)
    assert told.moved_at is not None
    assert told.listed_at is not None
    assert told.listed_at >= told.moved_at


async def test_a_buffer_that_hangs_keeps_nothing_from_the_bucket(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P13: while it is not needed, but looked at; no thread is lost that others need."""
    is_mended, hanging = threading.Event(), threading.Event()
    scandir = os.scandir

    def hang(path: Path) -> Any:
        if Path(path).is_relative_to(places.root):
            hanging.set()
            is_mended.wait(SOON_S)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", hang)
    monkeypatch.setattr(buffer_source, "_HANGS_S", 0.1)
    monkeypatch.setattr(buffered_source, "_LOOK_IN_EVERY_S", 0.1)
    found = places.source()
    places.root.mkdir(parents=True)
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    try:
        async with places.following(found):
            await places.until(hanging.is_set)
            places.put(places.name(1))
            await places.until_told(places.name(1), from_buffer=False)
            await places.until(lambda: "does not answer" in found.buffer.trouble)
            is_mended.set()
            await places.until(lambda: not found.buffer.trouble)
    finally:
        is_mended.set()


async def test_a_bucket_that_refuses_once_it_is_back_tells_so(places: Places) -> None:
    """P13: that it gave no answer is no longer true; the buffer is followed meanwhile."""
    places.place = replace(places.place, bucket="no-such-bucket")
    found = places.source()
    places.proxy.cut()
    async with places.following(found):
        await places.until(lambda: "does not answer" in found.why_buffer)
        places.proxy.mend()
        await places.until(lambda: "there is no bucket no-such-bucket" in found.why_buffer)
        places.lay(places.name(1))
        await places.until_told(places.name(1), from_buffer=True)


async def test_moving_at_any_moment_loses_nothing_and_tells_no_marker_too_early(places: Places) -> None:
    """P13, P22: files come to both places, later to the bucket; the way there is cut and mended at random."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201
    # A file that comes to the bucket after its group was closed from the buffer may sort before the tail.
    rng, found = random.Random(seed), places.source(reconcile_every_s=1.0)
    waiting: list[str] = []
    all_names = [places.name(subrun, run) for run in (1, 2, 3) for subrun in range(12)]
    async with places.following(found):
        for index, own in enumerate(all_names):
            places.lay(own)
            waiting.append(own)
            if index % 12 == 11:
                places.lay(f"r{index // 12 + 1:03d}.closed", "")
                waiting.append(f"r{index // 12 + 1:03d}.closed")
            while waiting and rng.random() < 0.7:
                await asyncio.to_thread(places.put, waiting.pop(0))
            match rng.random():
                case chance if chance < 0.15:
                    places.proxy.cut()
                case chance if chance < 0.3:
                    places.proxy.mend()
            await asyncio.sleep(rng.random() * 0.2)
        places.proxy.mend()
        for own in waiting:
            await asyncio.to_thread(places.put, own)
        await places.until(lambda: set(all_names) <= set(places.keys(from_buffer=False)) and not places.open_groups)
    told = [str(seen.group) if isinstance(seen, MarkerSeen) else str(seen.data_id) for seen in places.told]  # type: ignore[union-attr]
    for run in (1, 2, 3):
        first = told.index(f"run={run}")
        assert {f"run={run} subrun={subrun}" for subrun in range(12)} <= set(told[:first])
    assert all(places.keys(from_buffer=True).count(own) <= 1 for own in all_names)
    assert all(places.keys(from_buffer=False).count(own) == 1 for own in all_names)


async def test_quiet_time_does_not_count_while_the_source_moves(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P13, P22: what is known ends with the last look at the bucket, and goes on with the first one at the buffer."""
    found = places.source()
    places.put(places.name(1))
    monkeypatch.setattr(buffered_source, "_SILENT_S", 1.0)
    async with places.following(found):
        await places.until_told(places.name(1), from_buffer=False)
        assert found.sight.since < 0
        places.proxy.cut()
        await places.until(lambda: found._silent_since is not None)
        frozen = found.sight.until
        places.lay(places.name(2))
        await places.until(lambda: found.why_buffer)
        assert found.moved_at is not None
        assert found.sight.since == pytest.approx(found.moved_at, abs=0.01)
        assert found.moved_at > frozen
        await places.until_told(places.name(2), from_buffer=True)
        await places.until(lambda: found.sight.until > found.sight.since)
        assert found.buffer.seen_s > found.bucket.seen_s


async def test_quiet_time_does_not_count_while_a_bucket_without_a_buffer_is_away(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P22: and begins anew when it was listed as a whole, as what came meanwhile may sort anywhere."""
    monkeypatch.setattr(s3_client, "_SILENT_S", 0.5)
    monkeypatch.setattr(s3_client, "_ATTEMPTS", 1)
    found = places.bucket()
    places.put(places.name(5))
    async with places.following(found):
        await places.until_told(places.name(5), from_buffer=False)
        await places.until(lambda: found.sight.until > 0)
        assert found.sight.since < 0
        places.proxy.cut()
        places.put(places.name(1))
        await places.until(lambda: found.trouble)
        known_s, mended_at = found.seen_s, places.clock.now()
        places.proxy.mend()
        await places.until(lambda: found.seen_s > known_s)
        assert found.sight.since > mended_at
        assert places.name(1) in places.keys(from_buffer=False)


async def test_quiet_time_does_not_count_while_a_buffer_that_is_the_only_place_is_away(places: Places) -> None:
    """P13, P22: with `always`, its disk is what may be away."""
    found = places.buffer()
    places.lay(places.name(5))
    async with places.following(found):
        await places.until_told(places.name(5), from_buffer=True)
        await places.until(lambda: found.sight.until > 0)
        assert found.sight.since < 0
        elsewhere = places.root.rename(places.root.with_name("unmounted"))
        await places.until(lambda: found.trouble)
        known_s, mended_at = found.seen_s, places.clock.now()
        for _ in range(3):
            found.trouble = ""
            await places.until(lambda: found.trouble)  # it was looked at again, in vain
        assert found.seen_s == known_s
        elsewhere.rename(places.root)
        await places.until(lambda: found.seen_s > known_s)
        assert found.sight.since > mended_at


@pytest.mark.parametrize("step_s", [-3600.0, 3600.0])
async def test_a_clock_that_is_set_in_an_outage_changes_nothing(places: Places, step_s: float) -> None:
    """P13, P22: input moves back when the bucket was listed, and what is known is known as the clock stands now."""
    found = places.source()
    async with places.following(found):
        await places.until(lambda: found.bucket.listed_at)
        places.proxy.cut()
        places.lay(places.name(1))
        await places.until_told(places.name(1), from_buffer=True)
        await places.until(lambda: found.sight.until > found.sight.since)
        places.clock.ahead_s = step_s
        assert abs(found.sight.until - places.clock.now()) < SOON_S
        places.proxy.mend()
        await places.until(lambda: found.fed_from is found.bucket)
        await places.until(lambda: found.sight.until > found.sight.since)
        assert abs(found.sight.until - places.clock.now()) < SOON_S


# --- the buffer itself ----------------------------------------------------------------------------------------------


async def test_what_came_from_the_bucket_is_settled_by_key_and_size_and_never_read(places: Places) -> None:
    """P13, P2: by listing and by hint; another size is told; a file that changed since it was told here is told."""
    reads: list[Path] = []

    def read(path: Path, is_wanted: Callable[[], bool]) -> str:
        reads.append(path)
        return file_sha256(path)

    stream = places._stream(notify=True, complete=Complete(by="manifest"))
    found = BufferSource("camera", stream, INSTRUMENT, places.root, sha256=read, **places._given())
    digest = hashlib.sha256(b"data").hexdigest()
    for subrun, size in ((1, 4), (2, 5)):
        path = places.lay(places.name(subrun))
        path.with_name(f"{path.name}.ok").write_text(digest)
        places.settled.add(Identity(key=places.name(subrun), size=size, mtime_ns=1, etag="of the bucket"))
    async with places.following(found):
        await places.until_told(places.name(2), from_buffer=True)
        (places.root / places.name(1)).touch()
        last = places.lay(places.name(3))
        last.with_name(f"{last.name}.ok").write_text(digest)
        await places.until_told(places.name(3), from_buffer=True)
        (places.root / places.name(3)).touch()
        await places.until(lambda: places.keys(from_buffer=True).count(places.name(3)) == 2)
    assert places.name(1) not in places.keys(from_buffer=True)
    assert {path.name for path in reads} == {"r001_0002.txt", "r001_0003.txt"}


async def test_what_a_manifest_is_about_waits_until_it_may_be_read(places: Places) -> None:
    """P13, P3: and is no trouble meanwhile; what changes while it is read is looked at again."""
    told: list[Exception] = [StoreUnreachable("others read"), InputChanged("changed"), StoreUnreachable("others read")]

    def read(path: Path, is_wanted: Callable[[], bool]) -> str:
        if told:
            raise told.pop()
        return file_sha256(path)

    found = places.buffer_read_by(read)
    places.lay_whole(places.name(1))
    async with places.following(found):
        await places.until(lambda: len(told) < 3)
        await places.until_told(places.name(1), from_buffer=True)
    assert (told, found.trouble) == ([], "")


async def test_a_marker_comes_after_the_files_that_could_not_be_read_yet(places: Places) -> None:
    """P13, P22: others hold the lease; meanwhile the group does not become quiet either."""
    found, leases = places.manifests()
    places.lay_whole(places.name(1))
    async with places.following(found):
        await places.until_told(places.name(1), from_buffer=True)
        assert leases.acquire(LIMITS, 0)
        places.lay_whole(places.name(2))
        places.lay("r001.closed", "")
        await places.until(lambda: found.incomplete)
        known_s = found.seen_s
        for _ in range(3):
            found.incomplete = 0
            await places.until(lambda: found.incomplete)  # it was listed again
        assert (found.seen_s, found.trouble) == (known_s, "")
        assert places.open_groups
        leases.release(LIMITS)
        await places.until(lambda: not places.open_groups)
    assert places.keys(from_buffer=True) == [places.name(1), places.name(2)]
    assert places.told[-1] == MarkerSeen(group=DataId.of(run=1), name="r001.closed")


async def test_files_that_are_read_are_told_one_by_one(places: Places) -> None:
    """P13: what takes long holds up nothing that was read before, and a source that has ended reads no more."""
    reads: list[Path] = []
    ends: list[bool] = []
    go_on = threading.Event()

    def read(path: Path, is_wanted: Callable[[], bool]) -> str:
        assert is_wanted()
        reads.append(path)
        if len(reads) == 2:
            go_on.wait(SOON_S)
            ends.append(is_wanted())
        return file_sha256(path)

    found = places.buffer_read_by(read)
    for subrun in range(4):
        places.lay_whole(places.name(subrun))
    try:
        async with places.following(found):
            await places.until(lambda: len(places.told) == 1 and len(reads) == 2)
    finally:
        go_on.set()
    await found._in_thread(lambda: None)  # its thread has nothing else to do
    assert (len(reads), ends) == (2, [False])


async def test_a_listing_ends_where_something_cannot_be_read_now(places: Places) -> None:
    """P13: all others would wait for the same; the next one goes on, and is not put off by the waiting."""
    reads: list[Path] = []

    def read(path: Path, is_wanted: Callable[[], bool]) -> str:
        reads.append(path)
        if len(reads) % 2:
            raise StoreUnreachable("others read")
        return file_sha256(path)

    found = places.buffer_read_by(read)
    for subrun in range(4):
        places.lay_whole(places.name(subrun))
    assert [seen async for seen in found._list(set())] == []
    assert (len(reads), found.incomplete) == (1, 1)
    async with places.following(found):
        await places.until(lambda: len(places.told) == 4)
    assert len(set(places.keys(from_buffer=True))) == 4


async def test_a_buffer_that_is_not_there_is_told_and_not_made(places: Places) -> None:
    """P13, P19: it is found as soon as it is mounted."""
    found = places.buffer(notify=True)
    async with places.following(found):
        await places.until(lambda: found.trouble)
        assert "cannot be listed" in found.trouble
        assert not places.root.exists()
        places.lay(places.name(1))
        await places.until_told(places.name(1), from_buffer=True)
        await places.until(lambda: not found.trouble)


async def test_nothing_in_the_buffer_is_changed(places: Places) -> None:
    """P13: it is the DAQ's."""
    for subrun in range(5):
        places.lay(places.name(subrun))
    places.lay("night/nonsense.txt")
    for path in [*places.root.rglob("*"), places.root]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = {path: path.lstat() for path in places.root.rglob("*")}
    async with places.following(places.buffer(notify=True)):
        await places.until(lambda: len(places.told) == 6)
    after = {path: path.lstat() for path in places.root.rglob("*")}
    assert {path: (s.st_mtime_ns, s.st_ctime_ns, s.st_mode) for path, s in before.items()} == {
        path: (s.st_mtime_ns, s.st_ctime_ns, s.st_mode) for path, s in after.items()
    }
    for path in [places.root, *places.root.rglob("*")]:
        path.chmod(0o755)
