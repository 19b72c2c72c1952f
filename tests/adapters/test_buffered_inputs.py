"""Which place of a file is read, the bucket or the online buffer: a real S3 server that is killed and started again."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from builders import command, order, sha256
from s3_servers import SeaweedServer

from p3s_prefect.adapters import bucket_objects, s3_away, s3_client
from p3s_prefect.adapters.bucket_url import object_url
from p3s_prefect.adapters.buffer_leases import LocalLeases
from p3s_prefect.adapters.buffer_reader import BufferReader
from p3s_prefect.adapters.directory_store import DirectoryStore
from p3s_prefect.adapters.pilot.payload_process import PayloadProcesses
from p3s_prefect.adapters.pilot.stage_runner import StageRunner
from p3s_prefect.core.bucket_place import BucketPlace
from p3s_prefect.core.buffer_limits import BufferLimits
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.errors import InputChanged, StoreError, StoreUnreachable
from p3s_prefect.core.experiment import Format
from p3s_prefect.core.records import BufferPlace, Failure, InputFile, StageReport

pytestmark = pytest.mark.sockets

PATIENCE_S = 60.0
LIMITS = BufferLimits(max_reads=1)
KEY = "night/run1.txt"


@pytest.fixture(scope="module")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedServer]:
    """A server of this module's own, to be killed and started again."""
    with closing(SeaweedServer(tmp_path_factory.mktemp("mortal"))) as server:
        server.start()
        yield server


@dataclass
class Places:
    """A bucket and a buffer, and a stage that shows what it reads, and where."""

    server: SeaweedServer
    bucket: BucketPlace
    buffer: Path
    store: DirectoryStore
    runner: StageRunner
    leases: LocalLeases

    @property
    def file(self) -> Path:
        return self.buffer / KEY

    def write(self, content: str = "raw") -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(content)

    def upload(self, content: str = "raw") -> str:
        """Returns its ETag."""
        client = self.server.client()
        named = {"Bucket": self.bucket.bucket, "Key": self.bucket.key(KEY)}
        return str(client.put_object(**named, Body=content.encode())["ETag"]).strip('"')

    def taken_from_bucket(self, content: str = "raw", **fields: Any) -> InputFile:
        return self._taken(object_url(self.bucket, self.bucket.key(KEY)), content, **fields)

    def taken_from_buffer(self, content: str = "raw", **fields: Any) -> InputFile:
        return self._taken(str(self.file), content, **{"mtime_ns": self.file.stat().st_mtime_ns} | fields)

    def _taken(self, path: str, content: str, **fields: Any) -> InputFile:
        place = BufferPlace(path=str(self.file), limits=LIMITS, bucket=object_url(self.bucket, self.bucket.key(KEY)))
        values = {
            "dataset_type": "raw",
            "format": Format.TEXT,
            "data_id": DataId.of(run=1, subrun=3),
            "path": path,
            "size": len(content),
            "buffered": place,
        }
        return InputFile(**values | fields)

    def run(self, file: InputFile, **fields: Any) -> StageReport:
        shown = 'realpath "$P3S_INPUT_RAW" > "$P3S_OUTPUT_OUT"; cat "$P3S_INPUT_RAW" >> "$P3S_OUTPUT_OUT"'
        step = command("sh", "-c", shown, inputs={"raw": "raw"}, outputs={"out": "text"})
        self._runs = getattr(self, "_runs", 0) + 1
        return self.runner.run(order(self.store.url, step, inputs=[file], prefix=f"runs/{self._runs}", **fields))

    def read(self, report: StageReport, *, from_buffer: bool) -> str:
        """What a good report's payload was given: never a file of the buffer itself."""
        assert report.failure is None, report.reason
        assert report.manifest is not None
        path, _, content = self.store.read_bytes(report.manifest.outputs[0].key).decode().partition("\n")
        assert not Path(path).is_relative_to(self.buffer)
        assert (report.buffer.reads, report.buffer.bytes) == ((1, len(content)) if from_buffer else (0, 0))
        assert [read.sha256 for read in report.manifest.lineage] == [sha256(content.encode())]
        return content


@pytest.fixture
def places(
    mortal: SeaweedServer, processes: PayloadProcesses, store: DirectoryStore, tmp_path: Path
) -> Iterator[Places]:
    leases = LocalLeases()
    runner = StageRunner(processes, tmp_path / "scratch", leases=leases)
    yield Places(mortal, mortal.place(), tmp_path / "buffer", store, runner, leases)
    if mortal.process is not None and mortal.process.poll() is not None:
        mortal.start()
    s3_away.AWAY_SERVERS.note(mortal.place(), answers=True)


def until(condition: Callable[[], object]) -> None:
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < PATIENCE_S
        time.sleep(0.05)


# --- which place ----------------------------------------------------------------------------------------------------


def test_reads_move_to_the_buffer_while_the_server_is_away_and_back(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P13: the server is killed, and started again; the payload never reads the buffer itself.

    Who asks the server meanwhile does so once, and in haste.
    """
    etag = places.upload()
    places.write()
    taken = places.taken_from_bucket(etag=etag)
    assert places.read(places.run(taken), from_buffer=False) == "raw"
    places.server.kill()
    tries: list[int] = []

    def client(*args: Any, **fields: Any) -> Any:
        made = s3_client.s3_client(*args, **fields)
        tries.append(made.meta.config.retries["total_max_attempts"])
        return made

    with monkeypatch.context() as watched:
        watched.setattr(bucket_objects, "s3_client", client)
        assert places.read(places.run(taken), from_buffer=True) == "raw"
    assert tries == [1]
    places.server.start()
    until(lambda: places.run(taken).buffer.reads == 0)
    assert places.read(places.run(taken), from_buffer=False) == "raw"


def test_a_server_that_hangs_is_away_too(places: Places) -> None:
    """P13: it takes connections, and answers nothing; who comes next does not wait for it at all."""
    etag = places.upload()
    places.write()
    assert places.server.process is not None
    places.server.process.send_signal(signal.SIGSTOP)
    try:
        taken = places.taken_from_bucket(etag=etag)
        assert places.read(places.run(taken), from_buffer=True) == "raw"
        assert s3_away.AWAY_SERVERS.is_away(places.bucket)
        assert places.read(places.run(taken), from_buffer=True) == "raw"
    finally:
        places.server.process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize("known", [None, sha256(b"raw")])
def test_another_file_in_the_buffer_is_not_read_in_the_place_of_the_object(places: Places, known: str | None) -> None:
    """P13: the size decides, and the checksum where it is known; then it waits for the server."""
    etag = places.upload()
    taken = places.taken_from_bucket(etag=etag, sha256=known)
    places.server.kill()
    for content in [None, "longer", "war" if known else "wa"]:
        if content is not None:
            places.write(content)
        report = places.run(taken)
        assert report.failure is not Failure.INPUT, report.reason
        assert "does not answer" in report.reason
        assert report.manifest is None


def test_an_object_that_was_replaced_is_not_had_from_the_buffer(places: Places) -> None:
    """P13, P2: that it changed is a fact, not an outage."""
    etag = places.upload()
    places.write()
    places.upload("war")
    report = places.run(places.taken_from_bucket(etag=etag))
    assert (report.failure, report.buffer.reads) == (Failure.INPUT, 0)


def test_an_object_that_is_gone_is_had_from_the_buffer(places: Places) -> None:
    """P13: what is gone from both is gone; where the buffer is away too, it may be there later."""
    taken = places.taken_from_bucket(etag=places.upload())
    places.write()
    places.server.client().delete_object(Bucket=places.bucket.bucket, Key=places.bucket.key(KEY))
    assert places.read(places.run(taken), from_buffer=True) == "raw"
    assert taken.buffered is not None
    first = replace(taken, buffered=replace(taken.buffered, is_first=True))
    for content in ["longer", None]:
        places.file.unlink() if content is None else places.write(content)
        for file in (taken, first):
            report = places.run(file)
            assert (report.failure, report.reason) == (Failure.INPUT, f"{taken.path} is gone"), report.reason
    places.file.parent.rmdir()
    assert places.run(taken).failure is Failure.AWAY


def test_what_was_taken_in_the_buffer_is_read_in_the_bucket_once_it_is_there(places: Places) -> None:
    """P13: not before; and only if it is the same, as far as is known."""
    places.write()
    taken = places.taken_from_buffer()
    assert places.read(places.run(taken), from_buffer=True) == "raw"
    places.upload("longer")
    assert places.read(places.run(taken), from_buffer=True) == "raw"
    places.upload("war")
    known = replace(taken, sha256=sha256(b"raw"))
    assert places.run(known).buffer.reads == 1
    places.upload()
    assert places.read(places.run(known), from_buffer=False) == "raw"
    assert places.read(places.run(taken), from_buffer=False) == "raw"
    places.file.unlink()
    assert places.read(places.run(taken), from_buffer=False) == "raw"


def test_what_changed_in_the_buffer_where_it_was_taken_is_no_longer_the_unit(places: Places) -> None:
    """P13, P2: as in a watched directory; touched, it is the same as long as its checksum is known."""
    places.write()
    taken = places.taken_from_buffer()
    os.utime(places.file, ns=(1, 1))
    assert places.run(taken).failure is Failure.INPUT
    assert places.read(places.run(replace(taken, sha256=sha256(b"raw"))), from_buffer=True) == "raw"
    places.write("war")
    assert places.run(replace(taken, sha256=sha256(b"raw"))).failure is Failure.INPUT
    places.write("longer")
    assert places.run(taken).failure is Failure.INPUT
    places.file.unlink()
    report = places.run(taken)
    assert (report.failure, "is gone" in report.reason) == (Failure.INPUT, True), report.reason


def test_a_stream_that_is_fed_from_the_buffer_reads_it_while_the_bucket_is_there(places: Places) -> None:
    """P13, V18 (StreamBuffer.always): the bucket is the second place, or there is none."""
    places.upload()
    places.write()
    taken = places.taken_from_buffer()
    assert taken.buffered is not None
    first = replace(taken, buffered=replace(taken.buffered, is_first=True))
    assert places.read(places.run(first), from_buffer=True) == "raw"
    places.file.unlink()
    assert places.read(places.run(first), from_buffer=False) == "raw"
    places.write()
    alone = replace(places.taken_from_buffer(), buffered=replace(taken.buffered, bucket=None))
    assert places.read(places.run(alone), from_buffer=True) == "raw"
    places.file.unlink()
    assert places.run(alone).failure is Failure.INPUT
    places.file.parent.rmdir()
    report = places.run(alone)
    assert report.failure is not Failure.INPUT, report.reason
    assert "in the online buffer" in report.reason


def test_the_trouble_of_one_file_is_not_taken_for_that_of_the_buffer(places: Places) -> None:
    """P13, P12: what does not pass by itself is counted; only a buffer that cannot be listed is away."""
    places.write()
    alone = places.taken_from_buffer()
    assert alone.buffered is not None
    alone = replace(alone, buffered=replace(alone.buffered, bucket=None))
    places.file.rename(places.file.with_suffix(".other"))
    places.file.symlink_to(places.file.with_suffix(".other"))
    report = places.run(alone)
    assert report.failure is Failure.STORE, report.reason
    assert "cannot be read in the online buffer" in report.reason
    directory = places.file.parent
    directory.rename(directory.with_name("elsewhere"))
    assert places.run(alone).failure is Failure.AWAY
    directory.touch()
    report = places.run(alone)
    assert report.failure is Failure.AWAY
    assert "cannot be listed" in report.reason


# --- waiting for a lease --------------------------------------------------------------------------------------------


def test_who_waits_for_the_buffer_can_be_stopped_and_has_its_deadline(places: Places) -> None:
    """P13, V22: another reader is in the way all the time."""
    places.write()
    alone = places.taken_from_buffer()
    assert places.leases.acquire(LIMITS, 0)
    report = places.run(alone, stop_at=time.time() + 0.2)
    assert report.failure is Failure.DEADLINE, report.reason
    assert report.buffer.waited_s > 0
    assert places.runner.buffer_quiet_s() < PATIENCE_S
    found: list[StageReport] = []
    waiting = threading.Thread(target=lambda: found.append(places.run(alone)))
    waiting.start()
    until(lambda: places.runner.stop(1))
    waiting.join(PATIENCE_S)
    assert [report.failure for report in found] == [Failure.STOPPED]
    places.leases.release(LIMITS)
    assert places.read(places.run(alone), from_buffer=True) == "raw"


# --- the reader itself ----------------------------------------------------------------------------------------------


def test_what_is_no_plain_file_or_changes_meanwhile_is_refused(tmp_path: Path) -> None:
    """P13, S7: a link leads anywhere, and a pipe would keep the reader waiting."""
    leases = LocalLeases()
    real = tmp_path / "real"
    real.write_bytes(b"x" * 300)
    (tmp_path / "link").symlink_to(real)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="symbolic"):
        BufferReader(leases).read(tmp_path / "link", LIMITS)
    with pytest.raises(IsADirectoryError):
        BufferReader(leases).read(tmp_path, LIMITS)
    with pytest.raises(InputChanged, match="no longer the file"):
        BufferReader(leases).read(tmp_path / "pipe", LIMITS)
    written = iter([b"", b"more"])

    def write() -> None:
        with real.open("ab") as file:
            file.write(next(written, b""))

    with pytest.raises(InputChanged, match="changed while"):
        BufferReader(leases, write).read(real, LIMITS)
    with pytest.raises(InputChanged, match="no longer the file"):
        BufferReader(leases).read(real, LIMITS, size=300)
    found = BufferReader(leases).read(real, LIMITS, tmp_path / "copy", size=304)
    assert (found.size, found.sha256) == (304, sha256(b"x" * 300 + b"more"))
    assert (tmp_path / "copy").read_bytes() == real.read_bytes()


@pytest.mark.parametrize(("target", "why"), [("/dev/full", "No space left"), ("gone/file", "No such file")])
def test_a_copy_that_cannot_be_written_is_no_trouble_of_the_buffer(tmp_path: Path, target: str, why: str) -> None:
    """P13, P12: a full disk, or a directory that is gone; the pilot's own, so it is counted."""
    (tmp_path / "file").write_bytes(b"x" * 100)
    leases = LocalLeases()
    with pytest.raises(StoreError, match=f"cannot be copied .*{why}") as raised:
        BufferReader(leases).read(tmp_path / "file", LIMITS, tmp_path / target)
    assert not isinstance(raised.value, StoreUnreachable)
    assert leases.acquire(LIMITS, 0)


def test_whoever_may_not_wait_for_ever_gives_up(tmp_path: Path) -> None:
    """P13: and has read nothing."""
    (tmp_path / "file").touch()
    leases = LocalLeases()
    assert leases.acquire(LIMITS, 0)
    reader = BufferReader(leases, patience_s=0.1)
    with pytest.raises(StoreUnreachable, match="others read"):
        reader.read(tmp_path / "file", LIMITS)
    assert reader.use.reads == 0
    assert reader.use.waited_s >= 0.1
    leases.release(LIMITS)
    reader.read(tmp_path / "file", LIMITS)
    assert reader.use.reads == 1
