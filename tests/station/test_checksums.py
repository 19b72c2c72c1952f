"""What the station itself reads of the online buffer: under the lease that the pilots need too."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from sites import declare

from p3s_prefect.adapters.buffer_leases import LocalLeases
from p3s_prefect.adapters.buffer_places import BufferPlaces
from p3s_prefect.adapters.buffer_reader import BufferReader
from p3s_prefect.adapters.ledger.arrivals import Rival
from p3s_prefect.core.buffer_limits import BufferLimits
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.errors import InputChanged, StoreUnreachable
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.core.records import Arrival, Identity
from p3s_prefect.station import checksums
from p3s_prefect.station.checksums import Checksums

LIMITS = BufferLimits(max_reads=1)


@dataclass
class Desk:
    """A home with a watched directory and a buffer, and whoever reads there."""

    home: Path
    leases: LocalLeases
    reader: Checksums
    places: BufferPlaces

    def write(self, name: str, content: str = "raw") -> tuple[Arrival, Rival]:
        """A file, as an arrival and as a rival."""
        path = self.home / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        found = path.stat()
        identity = Identity(key=path.name, size=found.st_size, mtime_ns=found.st_mtime_ns)
        unit = DataId.of(run=1, subrun=0)
        seen = Arrival(
            stream="camera", dataset_type="raw", path=str(path), identity=identity, data_id=unit, arrived_at=0
        )
        return seen, Rival(id=1, path=str(path), identity=identity, sha256=None)

    async def compare(self, seen: Arrival, rival: Rival) -> tuple[str | None, str | None]:
        read, compared = await self.reader.compare(self.places, seen, rival)
        return read.sha256, compared.sha256

    async def is_gone(self, seen: Arrival, rival: Rival) -> bool:
        return (await self.reader.compare(self.places, seen, rival))[1].is_gone

    @contextmanager
    def others_read(self) -> Iterator[None]:
        assert self.leases.acquire(LIMITS, 0)
        yield
        self.leases.release(LIMITS)

    def close(self) -> None:
        self.reader.end()


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setattr(checksums, "_PATIENCE_S", 0.1)
    declared = declare(stream={"bucket": "s3://night/raw", "directory": None, "buffer": {"directory": "camera"}})
    experiment = Experiment.model_validate(declared | {"buffer": {"directory": "disk", "max_reads": 1}})
    leases = LocalLeases()
    with closing(Desk(tmp_path, leases, Checksums(leases), BufferPlaces(experiment, tmp_path))) as found:
        yield found


RAW = hashlib.sha256(b"raw").hexdigest()


async def test_files_of_the_buffer_are_read_when_nobody_else_does(desk: Desk) -> None:
    """P13: what cannot be read now is asked for again at the next listing; what lies elsewhere does not wait."""
    seen, rival = desk.write("disk/camera/r001_0000.txt")
    watched, watched_rival = desk.write("incoming/r001_0000.txt")
    with desk.others_read():
        for pair in [(seen, watched_rival), (watched, rival)]:
            with pytest.raises(StoreUnreachable, match="others read"):
                await desk.compare(*pair)
        assert await desk.compare(watched, watched_rival) == (RAW, RAW)
        known = Rival(id=1, path=rival.path, identity=rival.identity, sha256="known")
        assert await desk.compare(watched, known) == (RAW, "known")
    assert desk.reader.use.reads == 0
    assert await desk.compare(watched, rival) == (RAW, RAW)
    assert (desk.reader.use.reads, desk.reader.use.bytes) == (1, 3)
    assert desk.reader.sha256(desk.places, "camera", Path(seen.path)) == RAW
    assert desk.reader.use.reads == 2


async def test_a_rival_that_changed_or_is_gone_has_no_checksum(desk: Desk) -> None:
    """P13, P2: and is not read for it."""
    watched, _ = desk.write("incoming/r001_0000.txt")
    _, rival = desk.write("disk/camera/r001_0000.txt")
    desk.write("disk/camera/r001_0000.txt", "longer")
    assert await desk.compare(watched, rival) == (RAW, None)
    assert not await desk.is_gone(watched, rival)
    desk.write("disk/camera/r001_0000.txt", "war")
    os.utime(rival.path, ns=(1, 1))
    assert await desk.compare(watched, rival) == (RAW, None)
    assert not await desk.is_gone(watched, rival)
    Path(rival.path).unlink()
    assert await desk.compare(watched, rival) == (RAW, None)
    assert await desk.is_gone(watched, rival)
    assert desk.reader.use.reads == 0


async def test_a_rival_that_changes_while_it_is_read_is_not_gone(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """P13, P2: the same key and size are not enough then."""
    watched, _ = desk.write("incoming/r001_0000.txt")
    _, rival = desk.write("disk/camera/r001_0000.txt")

    def read(*_: object, **__: object) -> None:
        raise InputChanged("it changed while it was read")

    monkeypatch.setattr(BufferReader, "read", read)
    read_by, compared = await desk.reader.compare(desk.places, watched, rival)
    assert (read_by.sha256, compared.sha256, compared.is_gone) == (RAW, None, False)


async def test_a_read_that_nobody_wants_any_more_ends(desk: Desk) -> None:
    """P13: as when the stream's source is another one, after a reload."""
    seen, _ = desk.write("disk/camera/r001_0000.txt")
    asked = iter([True, False])
    with pytest.raises(StoreUnreachable, match="nobody waits"):
        desk.reader.sha256(desk.places, "camera", Path(seen.path), lambda: next(asked))
    assert desk.reader.use.reads == 0
    assert desk.reader.sha256(desk.places, "camera", Path(seen.path)) == RAW


async def test_a_rival_that_the_buffer_does_not_give_now_is_asked_for_again(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P13, P2: that its disk fails does not say that it is gone."""
    watched, _ = desk.write("incoming/r001_0000.txt")
    _, rival = desk.write("disk/camera/r001_0000.txt")

    def failing(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(BufferReader, "read", failing)
    with pytest.raises(StoreUnreachable, match="cannot be read: Input/output error"):
        await desk.compare(watched, rival)


async def test_only_so_many_wait_and_none_once_the_station_ends(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """P13: arrivals that need no look into the buffer pass by."""
    monkeypatch.setattr(checksums, "_MOST_WAITING", 2)
    seen, rival = desk.write("disk/camera/r001_0000.txt")
    with desk.others_read():
        asked = await asyncio.gather(*(desk.compare(seen, rival) for _ in range(3)), return_exceptions=True)
    told = sorted(str(error) for error in asked if isinstance(error, StoreUnreachable))
    assert ["many" in one for one in told] == [True, False, False]
    desk.reader.end()
    with pytest.raises(StoreUnreachable, match="station ends"):
        desk.reader.sha256(desk.places, "camera", Path(seen.path))
