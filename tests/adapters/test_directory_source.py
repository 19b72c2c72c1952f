"""A watched directory, with real files: what is taken, what waits, what is refused."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from p3s_prefect.adapters import directory_source
from p3s_prefect.adapters.clock import SystemClock
from p3s_prefect.adapters.directory_source import DirectorySource
from p3s_prefect.adapters.directory_store import file_sha256
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.experiment import Closing, Complete, Instrument, Stream
from p3s_prefect.core.ports import MarkerSeen, Refusal, Seen
from p3s_prefect.core.records import Arrival, Identity

INSTRUMENT = Instrument(
    name="TestCam",
    dimensions={"run": "int", "subrun": "int"},
    group=["run"],
    closing=Closing(marker="r{run:03d}.closed"),
)
SOON_S = 10.0
Ask = Callable[[str, Sequence[str]], Awaitable[set[Identity]]]


class Books:
    """Stands for the ledger: what was told is settled, unless a test says that it is not."""

    def __init__(self) -> None:
        self.settled: set[Identity] = set()
        self.open_groups: set[DataId] = set()

    async def known(self, _stream: str, keys: Sequence[str]) -> set[Identity]:
        return {identity for identity in self.settled if identity.key in keys}

    def settle(self, seen: Seen) -> None:
        if isinstance(seen, Arrival):
            self.settled.add(seen.identity)
            self.open_groups.add(seen.data_id.subset(["run"]))
        elif isinstance(seen, Refusal):
            self.settled.add(Identity(key=seen.key, size=seen.size, mtime_ns=seen.mtime_ns))
        else:
            self.open_groups.discard(seen.group)


@pytest.fixture
def books() -> Books:
    return Books()


@pytest.fixture
def incoming(tmp_path: Path) -> Path:
    found = tmp_path / "incoming"
    found.mkdir()
    return found


def source(
    incoming: Path, books: Books, *, notify: bool = False, every_s: float = 0.05, **fields: Any
) -> DirectorySource:
    stream = Stream(
        directory=incoming.name,
        pattern="r{run:03d}_{subrun:04d}.txt",
        dataset_type="raw",
        list_every_s=every_s,
        notify=notify,
        rules=[{"pipelines": ["dqm"]}],  # type: ignore[list-item]
        **fields,
    )
    return DirectorySource(
        "camera",
        stream,
        INSTRUMENT,
        incoming,
        clock=SystemClock(),
        known=books.known,
        is_open=lambda group: group in books.open_groups,
    )


async def told(found: DirectorySource, books: Books, enough: Callable[[list[Seen]], object]) -> list[Seen]:
    """What the source tells until it is enough."""
    seen: list[Seen] = []
    async with aclosing(found.arrivals()) as arrivals, asyncio.timeout(SOON_S):
        async for one in arrivals:
            books.settle(one)
            seen.append(one)
            if enough(seen):
                break
    return seen


async def one_listing(found: DirectorySource, books: Books) -> list[Seen]:
    """What the next full listing tells."""
    seen = [one async for one in found._list(set())]
    for one in seen:
        books.settle(one)
    return seen


def put(incoming: Path, subrun: int, content: str = "data", run: int = 1) -> Path:
    path = incoming / f"r{run:03d}_{subrun:04d}.txt"
    path.write_text(content)
    return path


def rename_into_place(path: Path, content: str) -> None:
    hidden = path.with_name(f".{path.name}.tmp")
    hidden.write_text(content)
    hidden.rename(path)


async def until_told(books: Books, key: str, again: Callable[[], None]) -> None:
    """Does something again and again until the file is told: nothing tells from when on the watch stands."""
    async with asyncio.timeout(SOON_S):
        while not any(identity.key == key for identity in books.settled):
            again()
            await asyncio.sleep(0.05)


def keys(seen: Sequence[Seen]) -> list[str]:
    return sorted(
        one.identity.key if isinstance(one, Arrival) else one.key for one in seen if not isinstance(one, MarkerSeen)
    )


# --- P2 -------------------------------------------------------------------------------------------------------------


async def test_listing_alone_finds_everything_once(incoming: Path, books: Books) -> None:
    """P2: with notifications off, files before the start, during it and much later are found, each once."""
    found = source(incoming, books)
    put(incoming, 0)

    def enough(seen: list[Seen]) -> bool:
        if len(seen) < 10:
            # Written while the listing is under way, and with a time that lies in the past or the future.
            path = put(incoming, len(seen))
            at = time.time() + random.Random(len(seen)).choice([-1e6, 0, 1e6])
            os.utime(path, (at, at))
        return len(seen) == 10

    seen = await told(found, books, enough)
    assert keys(seen) == [f"r001_{n:04d}.txt" for n in range(10)]
    assert await one_listing(found, books) == []


async def test_a_notification_is_faster_than_the_listing(incoming: Path, books: Books) -> None:
    """P1, P2, V18 (notify): a file that is renamed into place is told at once; the next listing is an hour away."""
    found = source(incoming, books, notify=True, every_s=3600)
    put(incoming, 0)

    async def later() -> None:
        while found.listed_at is None:
            await asyncio.sleep(0.01)
        await until_told(books, "r001_0001.txt", lambda: rename_into_place(incoming / "r001_0001.txt", "data"))
        rename_into_place(incoming / "r001_0002.txt", "data")

    writer = asyncio.create_task(later())
    seen = await told(found, books, lambda seen: len(set(keys(seen))) == 3)
    await writer
    assert sorted(set(keys(seen))) == [f"r001_{n:04d}.txt" for n in range(3)]


async def test_a_changed_identity_is_told_again(incoming: Path, books: Books) -> None:
    """P2: re-touched, replaced and renamed files have another identity; the ledger compares them."""
    found = source(incoming, books)
    path = put(incoming, 0)
    assert len(await one_listing(found, books)) == 1
    os.utime(path, ns=(1, 1))
    (touched,) = await one_listing(found, books)
    path.write_text("other data")
    (replaced,) = await one_listing(found, books)
    assert isinstance(touched, Arrival)
    assert isinstance(replaced, Arrival)
    assert touched.identity == Identity(key=path.name, size=4, mtime_ns=1)
    assert replaced.identity.size == 10
    assert await one_listing(found, books) == []


async def test_subdirectories_are_watched(incoming: Path, books: Books) -> None:
    """P2: a file in a subdirectory has the path below the watched directory as its key."""
    (incoming / "night1" / "deep").mkdir(parents=True)
    put(incoming / "night1" / "deep", 3)
    (incoming / ".hidden").mkdir()
    put(incoming / ".hidden", 4)
    seen = await one_listing(source(incoming, books), books)
    assert keys(seen) == ["night1/deep/r001_0003.txt"]


async def test_an_unreadable_subdirectory_does_not_hide_the_others(
    incoming: Path, books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P2: one that was just removed is nothing, one that cannot be read is told, and the rest is found."""
    for name in ("gone", "locked", "good"):
        (incoming / name).mkdir()
    put(incoming / "good", 1)
    scandir = os.scandir

    def refusing(path: Path) -> Any:
        if path.name in ("gone", "locked"):
            raise FileNotFoundError(path) if path.name == "gone" else PermissionError(13, "Permission denied")
        return scandir(path)

    # Permissions do not bind a test that runs as root.
    monkeypatch.setattr(directory_source.os, "scandir", refusing)
    found = source(incoming, books)
    assert keys(await one_listing(found, books)) == ["good/r001_0001.txt"]
    assert "locked cannot be listed: Permission denied" in found.trouble
    assert "gone" not in found.trouble


async def test_a_directory_that_vanishes_and_comes_back(incoming: Path, books: Books) -> None:
    """P2: meanwhile the trouble is told; afterwards everything is found."""
    found = source(incoming, books, notify=True)
    put(incoming, 0)
    moved = incoming.with_name("elsewhere")

    async def away_and_back() -> str:
        while found.listed_at is None:
            await asyncio.sleep(0.01)
        incoming.rename(moved)
        while not found.trouble:
            await asyncio.sleep(0.01)
        trouble = found.trouble
        moved.rename(incoming)
        put(incoming, 1)
        return trouble

    moving = asyncio.create_task(away_and_back())
    await told(found, books, lambda seen: len(set(keys(seen))) == 2)
    assert "cannot be listed: No such file or directory" in await moving
    await one_listing(found, books)
    assert found.trouble == ""


async def test_thousands_of_files_are_listed_in_batches(incoming: Path, books: Books) -> None:
    """P2: 3,000 files; those that are known cost no look at their content."""
    for subrun in range(3000):
        put(incoming, subrun)
    asked: list[int] = []
    known = books.known

    async def counted(stream: str, names: Sequence[str]) -> set[Identity]:
        asked.append(len(names))
        return books.settled if len(books.settled) == 3000 else await known(stream, names)

    books.known = counted  # type: ignore[method-assign]
    found = source(incoming, books)
    assert len(await one_listing(found, books)) == 3000
    assert len(await one_listing(found, books)) == 0
    assert max(asked) <= 500
    assert sum(asked) == 6000


async def test_the_period_grows_with_the_listing(incoming: Path, books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    """V18 (list_every_s): a listing that takes long is repeated less often, so that it takes a tenth of the time."""
    found = source(incoming, books)
    put(incoming, 0)
    await one_listing(found, books)
    assert 0.05 <= found.period_s < 5

    def slow(_paths: object, _markers: object) -> dict[Identity, Path]:
        time.sleep(0.5)
        return {}

    monkeypatch.setattr(found, "_identify", slow)
    await one_listing(found, books)
    assert found.period_s >= 5


async def test_what_is_read_once_is_no_reason_to_list_less_often(
    incoming: Path, books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P1, V18 (list_every_s): what does not fit its manifest is read by each listing, and counts."""

    def slow(path: Path) -> str:
        time.sleep(0.5)
        return file_sha256(path)

    monkeypatch.setattr(directory_source, "file_sha256", slow)
    found = source(incoming, books, complete=Complete(by="manifest"))
    manifest = Path(f"{put(incoming, 0)}.ok")
    manifest.write_text(hashlib.sha256(b"data").hexdigest())
    assert len(await one_listing(found, books)) == 1
    assert found.period_s < 5
    books.settled.clear()
    manifest.write_text(hashlib.sha256(b"other").hexdigest())
    assert await one_listing(found, books) == []
    assert found.period_s >= 5


# --- P3 -------------------------------------------------------------------------------------------------------------


async def test_temporary_names_are_never_read(incoming: Path, books: Books) -> None:
    """P3, V18 (exclude): temporary names are passed over, as files and as directories."""
    for name in (".r001_0001.txt", "r001_0001.txt.tmp", "r001_0001.txt.part", "r001_0002.txt~"):
        (incoming / name).write_text("half")
    found = source(incoming, books, exclude=["*.tmp", "*.part", ".*", "*~"])
    assert await one_listing(found, books) == []
    assert found.examine(incoming / ".r001_0001.txt") is None


async def test_a_marker_makes_a_file_complete(incoming: Path, books: Books) -> None:
    """P3, V18 (complete): without its marker a file waits, however old and large it is."""
    path = put(incoming, 0, "x" * 100_000)
    os.utime(path, (1e9, 1e9))
    found = source(incoming, books, complete=Complete(by="marker", suffix=".done"))
    assert await one_listing(found, books) == []
    assert found.incomplete == 1
    (incoming / f"{path.name}.done").touch()
    assert keys(await one_listing(found, books)) == [path.name]
    assert found.incomplete == 0


@pytest.mark.parametrize("by", ["marker", "manifest"])
async def test_the_notification_of_a_companion_speaks_for_its_file(incoming: Path, books: Books, by: str) -> None:
    """P3: the marker comes last, and is what tells."""
    path = put(incoming, 1)
    found = source(incoming, books, notify=True, every_s=3600, complete=Complete(by=by, suffix=".ok"))  # type: ignore[arg-type]

    async def later() -> None:
        while found.listed_at is None:
            await asyncio.sleep(0.01)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        await until_told(books, path.name, lambda: rename_into_place(incoming / f"{path.name}.ok", sha256))

    writer = asyncio.create_task(later())
    seen = await told(found, books, lambda seen: bool(seen))
    await writer
    assert keys(seen) == ["r001_0001.txt"]


async def test_a_manifest_must_fit(incoming: Path, books: Books) -> None:
    """P3, V18 (complete): a file whose bytes are not (yet) its manifest's waits; the checksum goes with the arrival."""
    path = put(incoming, 0, "whole content")
    manifest = incoming / f"{path.name}.ok"
    found = source(incoming, books, complete=Complete(by="manifest"))
    for wrong in (b"", b"\xff\xfe", b"0" * 64, hashlib.sha256(b"other").hexdigest().encode()):
        manifest.write_bytes(wrong)
        assert await one_listing(found, books) == []
        assert found.incomplete == 1
    sha256 = hashlib.sha256(b"whole content").hexdigest()
    manifest.write_text(f"{sha256.upper()}  {path.name}\n")
    (seen,) = await one_listing(found, books)
    assert isinstance(seen, Arrival)
    assert seen.sha256 == sha256


async def test_what_is_settled_is_not_read_again(incoming: Path, books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    """P3: a listing computes no checksum of a file that the ledger knows."""
    path = put(incoming, 0)
    (incoming / f"{path.name}.ok").write_text(hashlib.sha256(b"data").hexdigest())
    found = source(incoming, books, complete=Complete(by="manifest"))
    assert len(await one_listing(found, books)) == 1
    monkeypatch.setattr(directory_source, "file_sha256", lambda path: pytest.fail(f"{path} was read"))
    assert await one_listing(found, books) == []


# --- hostile --------------------------------------------------------------------------------------------------------


async def test_hostile_names_are_refused_or_passed_over(incoming: Path, books: Books) -> None:
    """S8, P2: whatever lies there, good files are taken, and the rest has a reason."""
    good = put(incoming, 1)
    for name in (
        b"r001_0001.txt\nr001_0002.txt",
        b"\xff\xfe.txt",
        b"x" * 250,
        "r００1_0005.txt".encode(),
        b"r001_00003.txt",
    ):
        Path(os.fsdecode(os.fsencode(incoming) + b"/" + name)).write_text("data")
    os.mkfifo(incoming / "r001_0007.txt")
    (incoming / "r001_0008.txt").symlink_to("/etc/passwd")
    (incoming / "r001_0009.txt").mkdir()
    put(incoming / "r001_0009.txt", 10)
    seen = await one_listing(source(incoming, books), books)
    refused = {one.key: one.reason for one in seen if isinstance(one, Refusal)}
    assert keys([one for one in seen if isinstance(one, Arrival)]) == [good.name, "r001_0009.txt/r001_0010.txt"]
    special = {"r001_0007.txt", "r001_0008.txt", "r001_0009.txt"}
    assert {refused[key] for key in special} == {"it is not a plain file"}
    assert set(refused) - special == {
        "r001_0001.txt\nr001_0002.txt",
        "\\xff\\xfe.txt",
        "x" * 250,
        "r００1_0005.txt",
        "r001_00003.txt",
    }
    assert all(key.isprintable() or key == "r001_0001.txt\nr001_0002.txt" for key in keys(seen))
    assert await one_listing(source(incoming, books), books) == []


async def test_a_very_long_path_has_a_key_of_its_own(incoming: Path, books: Books) -> None:
    """S8: keys are at most 1,000 characters, and still differ."""
    for last in ("a", "b"):
        deep = incoming.joinpath(*["d" * 200] * 6, last)
        deep.mkdir(parents=True)
        put(deep, 1)
    seen = await one_listing(source(incoming, books), books)
    assert len(set(keys(seen))) == 2
    assert all(len(key) <= 1000 for key in keys(seen))


# --- markers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("notify", [False, True])
async def test_a_group_is_closed_after_all_its_files(incoming: Path, books: Books, notify: bool) -> None:
    """P22: files that stood there when the marker came are told before the marker is."""
    found = source(incoming, books, notify=notify, every_s=0.2)
    put(incoming, 0)

    def enough(seen: list[Seen]) -> bool:
        if len(seen) == 1:
            for subrun in range(1, 6):
                put(incoming, subrun)
            (incoming / "r001.closed").touch()
        return isinstance(seen[-1], MarkerSeen)

    seen = await told(found, books, enough)
    assert len(set(keys(seen[:-1]))) == 6
    assert seen[-1] == MarkerSeen(group=DataId.of(run=1), name="r001.closed")


async def test_a_marker_waits_for_a_listing_that_tells_everything(
    incoming: Path, books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P22: the directory cannot be listed for a while just after the marker was seen, and files come meanwhile."""
    scandir, looks = os.scandir, 0

    def failing(path: Path) -> Any:
        nonlocal looks
        looks += (incoming / "r001.closed").exists()
        if 2 <= looks <= 4:
            put(incoming, looks)
            raise OSError(errno.EIO, "Input/output error")
        return scandir(path)

    monkeypatch.setattr(directory_source.os, "scandir", failing)
    put(incoming, 0)

    def enough(seen: list[Seen]) -> bool:
        (incoming / "r001.closed").touch()
        return isinstance(seen[-1], MarkerSeen)

    seen = await told(source(incoming, books), books, enough)
    assert keys(seen[:-1]) == [f"r001_{n:04d}.txt" for n in (0, 2, 3, 4)]


@pytest.mark.parametrize("turns", range(6))
async def test_a_source_that_is_cancelled_just_as_a_hint_comes_ends(turns: int, incoming: Path, books: Books) -> None:
    """V22: so many turns of the event loop after the hint; otherwise the station would not stop."""
    found = source(incoming, books, every_s=60)

    async def follow() -> None:
        async with aclosing(found.arrivals()) as arrivals:
            async for seen in arrivals:
                books.settle(seen)

    following = asyncio.create_task(follow())
    async with asyncio.timeout(SOON_S):
        while not found._hints._getters:  # type: ignore[attr-defined]
            await asyncio.sleep(0.01)
        found._hints.put_nowait(str(incoming / "nothing.txt"))
        for _ in range(turns):
            await asyncio.sleep(0)
        following.cancel()
        await asyncio.wait([following])
    assert following.cancelled()
