"""A watched bucket on a real server: what is taken, what waits, what is refused, and what changes while it is read."""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from s3_servers import SeaweedServer

from p3s_prefect.adapters import bucket_source
from p3s_prefect.adapters.bucket_objects import copy_arrived
from p3s_prefect.adapters.bucket_source import BucketSource
from p3s_prefect.adapters.bucket_url import object_place, object_url
from p3s_prefect.adapters.clock import SystemClock
from p3s_prefect.core.bucket_place import BucketPlace
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.errors import InputChanged, InputGone, StoreDisturbed, StoreError, StoreUnreachable
from p3s_prefect.core.experiment import Closing, Complete, Instrument, Stream
from p3s_prefect.core.notices import Notice
from p3s_prefect.core.ports import MarkerSeen, Refusal, Seen
from p3s_prefect.core.records import Arrival, Identity

pytestmark = pytest.mark.sockets

INSTRUMENT = Instrument(
    name="TestCam",
    dimensions={"run": "int", "subrun": "int"},
    group=["run"],
    closing=Closing(marker="r{run:03d}.closed"),
)
SOON_S = 60.0


@dataclass
class Bucket:
    """A place in a real bucket, with a stand-in for the ledger: what was told is settled."""

    place: BucketPlace
    client: Any
    settled: set[Identity] = field(default_factory=set)
    open_groups: set[DataId] = field(default_factory=set)
    asked: list[int] = field(default_factory=list)

    def put(self, subrun: int, content: str = "data", *, run: int = 1, below: str = "") -> str:
        return self.put_as(f"{below}r{run:03d}_{subrun:04d}.txt", content)

    def put_as(self, own: str, content: str = "data") -> str:
        self.client.put_object(Bucket=self.place.bucket, Key=self.place.key(own), Body=content.encode())
        return own

    async def known(self, _stream: str, keys: Sequence[str]) -> set[Identity]:
        self.asked.append(len(keys))
        return {identity for identity in self.settled if identity.key in keys}

    def settle(self, seen: Seen) -> None:
        if isinstance(seen, Arrival):
            self.settled.add(seen.identity)
            self.open_groups.add(seen.data_id.subset(["run"]))
        elif isinstance(seen, Refusal):
            self.settled.add(Identity(key=seen.key, size=seen.size, mtime_ns=seen.mtime_ns, etag=seen.etag))
        else:
            self.open_groups.discard(seen.group)

    def source(self, *, every_s: float = 0.05, reconcile_every_s: float = 3600, **fields: Any) -> BucketSource:
        stream = Stream(
            bucket=self.place.address,
            pattern="r{run:03d}_{subrun:04d}.txt",
            dataset_type="raw",
            list_every_s=every_s,
            reconcile_every_s=reconcile_every_s,
            rules=[{"pipelines": ["dqm"]}],  # type: ignore[list-item]
            **fields,
        )
        return BucketSource(
            "camera",
            stream,
            INSTRUMENT,
            self.place,
            clock=SystemClock(),
            known=self.known,
            is_open=lambda group: group in self.open_groups,
        )

    async def told(self, found: BucketSource, enough: Callable[[list[Seen]], object]) -> list[Seen]:
        """What the source tells until it is enough."""
        seen: list[Seen] = []
        async with aclosing(found.arrivals()) as arrivals, asyncio.timeout(SOON_S):
            async for one in arrivals:
                self.settle(one)
                seen.append(one)
                if enough(seen):
                    break
        return seen

    async def one_listing(self, found: BucketSource) -> list[Seen]:
        """What the next full listing tells."""
        return await self._all(found._list(set()))

    async def one_tail(self, found: BucketSource) -> list[Seen]:
        """What the next look at the tail tells."""
        return await self._all(found._pages(set(), bucket_source.Tally()))

    async def _all(self, told: AsyncIterator[Seen]) -> list[Seen]:
        seen = [one async for one in told]
        for one in seen:
            self.settle(one)
        return seen


@pytest.fixture
def bucket(s3_place: BucketPlace, seaweed: SeaweedServer) -> Bucket:
    return Bucket(place=s3_place, client=seaweed.client())


def keys(seen: Sequence[Seen]) -> list[str]:
    return sorted(
        one.identity.key if isinstance(one, Arrival) else one.key for one in seen if not isinstance(one, MarkerSeen)
    )


# --- P2 -------------------------------------------------------------------------------------------------------------


async def test_listing_alone_finds_everything_once(bucket: Bucket) -> None:
    """P2: with notifications off, objects before the start and after it are found, in whatever order they come."""
    found = bucket.source(notify=False, reconcile_every_s=0.3)
    order = list(range(8))
    random.Random(5).shuffle(order)
    bucket.put(order[0])
    assert not found.hint(Notice(bucket=bucket.place.bucket, key=bucket.place.key("r001_0001.txt")))

    def enough(seen: list[Seen]) -> bool:
        if len(seen) < len(order):
            bucket.put(order[len(seen)])
        return len(seen) == len(order)

    seen = await bucket.told(found, enough)
    assert keys(seen) == [f"r001_{n:04d}.txt" for n in range(8)]
    assert await bucket.one_listing(found) == []


async def test_the_tail_finds_new_keys_and_the_full_listing_those_that_sort_lower(bucket: Bucket) -> None:
    """P2, V18 (list_every_s, reconcile_every_s): a look at the tail asks nothing about what it has seen."""
    found = bucket.source()
    for subrun in (5, 6):
        bucket.put(subrun)
    assert len(await bucket.one_listing(found)) == 2
    bucket.put(7)
    bucket.put(1)
    bucket.asked.clear()
    assert keys(await bucket.one_tail(found)) == ["r001_0007.txt"]
    assert bucket.asked == [1]
    assert await bucket.one_tail(found) == []
    assert keys(await bucket.one_listing(found)) == ["r001_0001.txt"]


async def test_hints_that_are_lost_late_doubled_and_shuffled(bucket: Bucket) -> None:
    """P2: each object once, by hint or by listing; a hint is told at once, though the next listing is far away."""
    chance = random.Random(3)
    found = bucket.source(every_s=0.4, reconcile_every_s=1.0)
    written: list[int] = []

    async def write() -> None:
        while found.listed_at is None:
            await asyncio.sleep(0.01)
        hints: list[str] = []
        for subrun in chance.sample(range(25), 25):
            own = await asyncio.to_thread(bucket.put, subrun)
            written.append(subrun)
            if chance.random() < 0.6:
                hints += [own] * chance.choice([1, 1, 2])
            chance.shuffle(hints)
            while hints and chance.random() < 0.7:
                found.hint(Notice(bucket=bucket.place.bucket, key=bucket.place.key(hints.pop())))
        for nonsense in ("r001_9999.txt", "other", "", "r001_0001.txt/x", ".hidden/r001_0001.txt"):
            found.hint(Notice(bucket=bucket.place.bucket, key=bucket.place.key(nonsense)))

    writer = asyncio.create_task(write())
    seen = await bucket.told(found, lambda seen: len(set(keys(seen))) == 25)
    await writer
    assert sorted(set(keys(seen))) == [f"r001_{n:04d}.txt" for n in range(25)]
    assert await bucket.one_listing(found) == []


async def test_a_hint_is_faster_than_the_listings(bucket: Bucket) -> None:
    """P1, P2, V18 (notify)."""
    found = bucket.source(every_s=3600)

    async def later() -> None:
        while found.listed_at is None:
            await asyncio.sleep(0.01)
        own = await asyncio.to_thread(bucket.put, 3)
        assert not found.hint(Notice(bucket="other", key=bucket.place.key(own)))
        assert not found.hint(Notice(bucket=bucket.place.bucket, key=f"elsewhere/{own}"))
        assert found.hint(Notice(bucket=bucket.place.bucket, key=bucket.place.key(own)))

    writer = asyncio.create_task(later())
    seen = await bucket.told(found, bool)
    await writer
    assert keys(seen) == ["r001_0003.txt"]


async def test_the_same_bytes_again_are_nothing_and_others_are_told(bucket: Bucket) -> None:
    """P2: an object is told by its key and ETag, whatever its time."""
    found = bucket.source()
    bucket.put(0)
    (first,) = await bucket.one_listing(found)
    await asyncio.sleep(1.1)  # servers may tell times in whole seconds
    bucket.put(0)
    assert await bucket.one_listing(found) == []
    bucket.put(0, "atad")
    (other,) = await bucket.one_listing(found)
    assert isinstance(first, Arrival)
    assert isinstance(other, Arrival)
    assert first.identity.key == other.identity.key
    assert first.identity != other.identity
    assert first.data_id == other.data_id == DataId.of(run=1, subrun=0)


async def test_an_upload_in_parts_is_seen_when_it_is_complete(bucket: Bucket) -> None:
    """P3."""
    found = bucket.source()
    named = {"Bucket": bucket.place.bucket, "Key": bucket.place.key("r001_0001.txt")}
    upload = {**named, "UploadId": bucket.client.create_multipart_upload(**named)["UploadId"]}
    part = bucket.client.upload_part(**upload, PartNumber=1, Body=b"x" * 1000)
    assert await bucket.one_listing(found) == []
    parts = {"Parts": [{"ETag": part["ETag"], "PartNumber": 1}]}
    bucket.client.complete_multipart_upload(**upload, MultipartUpload=parts)
    assert keys(await bucket.one_listing(found)) == ["r001_0001.txt"]


async def test_pages_are_asked_about_one_by_one(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """P2: the source keeps nothing for each key; what lies below the prefix is found in every depth."""
    for subrun in range(25):
        bucket.put(subrun, below="night1/" if subrun % 2 else "")
    found = bucket.source()
    page = found._page
    monkeypatch.setattr(found, "_page", lambda after: page({**after, "MaxKeys": 10}))
    assert len(await bucket.one_listing(found)) == 25
    assert bucket.asked == [10, 10, 5]
    assert await bucket.one_listing(found) == []
    assert await bucket.one_tail(found) == []


async def test_a_server_that_is_away_is_told_and_then_forgotten(bucket: Bucket) -> None:
    """P2, S8: the source says why, and goes on."""
    found = bucket.source(every_s=0.05, reconcile_every_s=0.2)
    bucket.put(0)
    page = found._page
    found._page = lambda _after: (_ for _ in ()).throw(StoreError("it is away"))  # type: ignore[assignment]
    assert await bucket.one_listing(found) == []
    assert (found.trouble, found.listed_at) == ("it is away", None)
    found._page = page  # type: ignore[method-assign]
    assert len(await bucket.told(found, bool)) == 1
    assert await bucket.one_listing(found) == []
    assert found.trouble == ""
    assert found.listed_at is not None


# --- P3 -------------------------------------------------------------------------------------------------------------


async def test_one_object_that_cannot_be_looked_at_does_not_make_all_be_listed(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P2: it is told, looked at again with the tail, and taken when it can be; others are taken meanwhile."""
    forbidden = bucket.put(1)
    bucket.put_as(f"{forbidden}.done", "")
    looked, listed, may = bucket_source.head, [0], [False]

    def head(place: BucketPlace, key: str) -> Any:
        if forbidden in key and not may[0]:
            raise StoreError("it may not be looked at", fix="Give the right.")
        return looked(place, key)

    monkeypatch.setattr(bucket_source, "head", head)
    found = bucket.source(complete=Complete(by="marker", suffix=".done"))
    whole = found._list

    def list_all(markers: set[DataId]) -> AsyncIterator[Seen]:
        listed[0] += 1
        return whole(markers)

    monkeypatch.setattr(found, "_list", list_all)

    async def later() -> None:
        while found.trouble != "it may not be looked at":
            await asyncio.sleep(0.01)
        for subrun in (2, 3):
            bucket.put_as(f"{bucket.put(subrun)}.done", "")
            while len(bucket.settled) < subrun - 1:
                await asyncio.sleep(0.01)
        may[0] = True

    writer = asyncio.create_task(later())
    seen = await bucket.told(found, lambda seen: len(seen) == 3)
    await writer
    assert [one.identity.key for one in seen if isinstance(one, Arrival)][-1] == forbidden
    assert listed == [1]


@pytest.mark.parametrize("by", ["marker", "manifest"])
async def test_a_companion_makes_an_object_complete(bucket: Bucket, by: str) -> None:
    """P3: until then it waits, and the tail begins before it; other bytes than the manifest's wait too."""
    found = bucket.source(complete=Complete(by=by, suffix=".ok"))  # type: ignore[arg-type]
    own = bucket.put(0, "whole content")
    if by == "manifest":
        bucket.put_as(f"{own}.ok", hashlib.sha256(b"half").hexdigest())
    bucket.put_as("r001_0009.txt")
    assert await bucket.one_listing(found) == []
    assert found.incomplete == 2
    sha256 = hashlib.sha256(b"whole content").hexdigest()
    bucket.put_as(f"{own}.ok", f"{sha256.upper()}  {own}\n")
    (seen,) = await bucket.one_tail(found)
    assert isinstance(seen, Arrival)
    assert seen.identity.key == own
    assert seen.sha256 == (sha256 if by == "manifest" else None)


async def test_a_hint_about_the_companion_speaks_for_its_object(bucket: Bucket) -> None:
    """P3: the marker comes last, and is what tells."""
    found = bucket.source(every_s=3600, complete=Complete(by="marker"))
    own = bucket.put(1)

    async def later() -> None:
        while found.listed_at is None:
            await asyncio.sleep(0.01)
        await asyncio.to_thread(bucket.put_as, f"{own}.ok")
        found.hint(Notice(bucket=bucket.place.bucket, key=bucket.place.key(f"{own}.ok")))

    writer = asyncio.create_task(later())
    assert keys(await bucket.told(found, bool)) == [own]
    await writer


async def test_hostile_and_temporary_keys(bucket: Bucket) -> None:
    """P3, S8: whatever lies there, good objects are taken, and the rest has a reason or is never read."""
    good = bucket.put(1, below="deep/er/")
    for own in ("r001_0002.txt.tmp", ".r001_0002.txt", ".staging/r001_0002.txt", "x.tmp/r001_0002.txt"):
        bucket.put_as(own)
    refused = ["r001_00003.txt", "r001 0004.txt", "r%30%301_0005.txt", "ü.txt", "x" * 250]
    for own in refused:
        bucket.put_as(own)
    seen = await bucket.one_listing(bucket.source())
    assert keys([one for one in seen if isinstance(one, Arrival)]) == [good]
    assert keys([one for one in seen if isinstance(one, Refusal)]) == sorted(refused)
    assert await bucket.one_listing(bucket.source()) == []


# --- markers of groups ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hinted", [False, True])
async def test_a_group_is_closed_after_all_its_objects(bucket: Bucket, hinted: bool) -> None:
    """P22: objects that stood there when the marker came are told before the marker is, those that sort low too."""
    found = bucket.source(every_s=3600 if hinted else 0.1)
    bucket.put(5)

    def enough(seen: list[Seen]) -> bool:
        if len(seen) == 1:
            for subrun in range(5):
                bucket.put(subrun)
            bucket.put_as("r001_x/r001.closed")
            if hinted:
                found.hint(Notice(bucket=bucket.place.bucket, key=bucket.place.key("r001_x/r001.closed")))
        return isinstance(seen[-1], MarkerSeen)

    seen = await bucket.told(found, enough)
    assert len(set(keys(seen[:-1]))) == 6
    assert seen[-1] == MarkerSeen(group=DataId.of(run=1), name="r001.closed")


async def test_a_marker_comes_after_the_objects_that_could_not_be_read_yet(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P22: nor is it known before then what came; what one object alone meets for ever keeps no group open."""
    copied, refused = bucket_source.copy_arrived, 0
    errors: list[StoreError] = [StoreUnreachable("it does not answer")] * 3 + [StoreDisturbed("error 500")] * 100

    def copy_arrived(url: str, tag: str) -> tuple[int, str]:
        nonlocal refused
        if "r001_0000.txt" in url:
            return copied(url, tag)
        refused += 1
        raise errors.pop(0)

    monkeypatch.setattr(bucket_source, "copy_arrived", copy_arrived)
    found = bucket.source(complete=Complete(by="manifest"))

    def put_whole(subrun: int) -> None:
        bucket.put_as(f"{bucket.put(subrun)}.ok", hashlib.sha256(b"data").hexdigest())

    put_whole(0)
    refused_when_known: list[int] = []

    def enough(seen: list[Seen]) -> bool:
        if len(seen) == 1:
            put_whole(1)
            bucket.put_as("r001_x/r001.closed")
        return isinstance(seen[-1], MarkerSeen)

    looked = found._looked

    def noted(begun: float, tally: bucket_source.Tally) -> None:
        known_s = found.seen_s
        looked(begun, tally)
        if found.seen_s > known_s and refused:
            refused_when_known.append(refused)

    monkeypatch.setattr(found, "_looked", noted)
    seen = await bucket.told(found, enough)
    assert keys(seen) == ["r001_0000.txt"]
    assert refused_when_known[0] == 4


# --- reading --------------------------------------------------------------------------------------------------------


def test_any_key_has_a_url(s3_place: BucketPlace) -> None:
    """S8."""
    for key in ("a/b c.txt", "ü?x=1#y%20z+&.txt", "/lead//double/../up", "s3://other/?endpoint=http://evil"):
        place, found = object_place(object_url(s3_place, key))
        assert found == key
        assert (place.bucket, place.endpoint, place.credentials, place.prefix) == (
            *(s3_place.bucket, s3_place.endpoint, s3_place.credentials),
            "",
        )


def etag(bucket: Bucket, own: str) -> str:
    return str(bucket.client.head_object(Bucket=bucket.place.bucket, Key=bucket.place.key(own))["ETag"]).strip('"')


def test_the_object_that_was_taken_is_read(bucket: Bucket, tmp_path: Path) -> None:
    """P2: or none is."""
    own = bucket.put(0, "content")
    url, taken = object_url(bucket.place, bucket.place.key(own)), etag(bucket, own)
    assert copy_arrived(url, taken, tmp_path / "copy") == (7, hashlib.sha256(b"content").hexdigest())
    assert (tmp_path / "copy").read_bytes() == b"content"
    bucket.put(0, "tnetnoc")
    with pytest.raises(InputChanged, match="no longer the object") as raised:
        copy_arrived(url, taken)
    assert not isinstance(raised.value, InputGone)
    bucket.client.delete_object(Bucket=bucket.place.bucket, Key=bucket.place.key(own))
    with pytest.raises(InputGone, match="is gone"):
        copy_arrived(url, taken)


def test_an_object_that_changes_under_a_reader(bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S8: the reader is told, and never has a mixture."""
    own = bucket.put_as("r001_0001.txt", "a" * 3_000_000)
    url, taken = object_url(bucket.place, bucket.place.key(own)), etag(bucket, own)

    class ChangingTarget(type(tmp_path)):  # type: ignore[misc]
        def open(self, *args: Any, **options: Any) -> Any:
            bucket.put_as(own, "b" * 3_000_000)
            return super().open(*args, **options)

    with pytest.raises(InputChanged):
        copy_arrived(url, taken, ChangingTarget(tmp_path / "copy"))


def test_a_server_that_cannot_be_reached_is_not_a_changed_object(seaweed: SeaweedServer) -> None:
    """S8: it is tried again, then."""
    place = BucketPlace(bucket="central", endpoint="http://127.0.0.1:9", credentials=str(seaweed.credentials))
    with pytest.raises(StoreError, match="does not answer"):
        copy_arrived(object_url(place, "key"), "0" * 32)
