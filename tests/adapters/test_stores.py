"""One suite for the central store: in a directory, in SeaweedFS, and in a server that keeps less than S3 promises."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from uuid import uuid4

import pytest
from builders import sha256
from s3_servers import RcloneServer, SeaweedServer

from p3s_prefect.adapters import s3_parts
from p3s_prefect.adapters.directory_store import DirectoryStore
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.adapters.s3_store import S3Store
from p3s_prefect.adapters.store_owner import Owner, adopt, claim
from p3s_prefect.adapters.stores import open_store
from p3s_prefect.core.errors import BadName, ChecksumMismatch, ObjectExists, ObjectMissing, StoreError, StoreTaken
from p3s_prefect.core.ports import ObjectStore

PART = 5 << 20
"""S3's smallest part, so that an object of three parts stays small."""


@pytest.fixture(params=["directory", "seaweed", "rclone"])
def any_store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> DirectoryStore | S3Store:
    monkeypatch.setattr(s3_parts, "_PART_BYTES", PART)
    if request.param == "directory":
        return DirectoryStore(tmp_path / "store")
    server: SeaweedServer | RcloneServer = request.getfixturevalue(request.param)
    return S3Store(server.place())


pytestmark = pytest.mark.sockets


def _keys(store: ObjectStore, prefix: str = "") -> list[str]:
    return sorted(found.key for found in store.list(prefix))


def _file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


SIZES = [0, 1, 1000, PART - 1, PART, 2 * PART + 17]


@pytest.mark.parametrize("size", SIZES)
def test_what_is_put_is_what_is_read(any_store: ObjectStore, tmp_path: Path, size: int) -> None:
    """S3, V13: in one piece and in parts, with its size and SHA-256."""
    content = random.Random(size).randbytes(size)
    put = any_store.put_file("a/b.bin", _file(tmp_path / "source", content))
    assert (put.key, put.size, put.sha256) == ("a/b.bin", size, sha256(content))
    assert any_store.read_bytes("a/b.bin") == content
    fetched = any_store.fetch("a/b.bin", tmp_path, put.sha256)
    assert (fetched.name, fetched.read_bytes()) == ("b.bin", content)
    assert [(found.key, found.size) for found in any_store.list("")] == [("a/b.bin", size)]


def test_the_same_bytes_again_are_no_error_and_others_are(any_store: ObjectStore, tmp_path: Path) -> None:
    """S3, V13: on a server too that would replace them without a word; small and in parts."""
    large, other = random.Random(1).randbytes(PART + 1), random.Random(2).randbytes(PART + 1)
    first = any_store.put_file("a/large", _file(tmp_path / "large", large))
    assert any_store.put_file("a/large", tmp_path / "large") == first
    assert any_store.put_bytes("a/small", b"first") == any_store.put_bytes("a/small", b"first")
    for content in (b"other", b"longer than the first", b""):
        with pytest.raises(ObjectExists, match="a/small"):
            any_store.put_bytes("a/small", content)
    with pytest.raises(ObjectExists, match="a/large"):
        any_store.put_file("a/large", _file(tmp_path / "other", other))
    assert any_store.read_bytes("a/small") == b"first"
    assert any_store.fetch("a/large", tmp_path, first.sha256).read_bytes() == large
    assert any_store.sweep_unfinished(time.time() + 60) == 0


def test_what_is_not_there_is_told(any_store: ObjectStore, tmp_path: Path) -> None:
    """S3, S8."""
    any_store.put_bytes("a/b", b"some")
    for missing in ("a", "a/b/c", "a/c", "c"):
        with pytest.raises(ObjectMissing, match=missing):
            any_store.read_bytes(missing)
        with pytest.raises(ObjectMissing, match=missing):
            any_store.fetch(missing, tmp_path / "scratch", sha256(b""))
    for absent in ("a/c", "c"):
        any_store.delete(absent)
    assert _keys(any_store) == ["a/b"]
    assert _keys(any_store, "a/b/") == _keys(any_store, "absent/") == []
    assert not any(path.is_file() for path in (tmp_path / "scratch").rglob("*"))


def test_other_bytes_than_the_ledger_says_are_never_handed_out(any_store: ObjectStore, tmp_path: Path) -> None:
    """S3, V13: an object that was changed behind our back, whatever checksum the server itself tells."""
    any_store.put_bytes("a/b", b"some bytes")
    with pytest.raises(ChecksumMismatch, match="a/b"):
        any_store.fetch("a/b", tmp_path / "scratch", sha256(b"some bytfs"))
    assert not any(path.is_file() for path in (tmp_path / "scratch").rglob("*"))


HOSTILE = ["", "/", "..", "../x", "a/../../x", "a//b", "a/", "a\0b", "a\nb", "a b", ".hidden", "-rf", "é", "a" * 300]


@pytest.mark.parametrize("key", HOSTILE)
def test_a_hostile_key_is_refused_everywhere(any_store: ObjectStore, tmp_path: Path, key: str) -> None:
    """S3, S8."""
    tries: list[Callable[[], object]] = [
        lambda: any_store.put_bytes(key, b"x"),
        lambda: any_store.read_bytes(key),
        lambda: any_store.fetch(key, tmp_path, sha256(b"x")),
        lambda: any_store.delete(key),
    ]
    for attempt in tries:
        with pytest.raises(BadName):
            attempt()
    assert _keys(any_store) == []


def test_the_longest_names_of_data_ids_are_keys(any_store: ObjectStore) -> None:
    """S3, S8: a dimension and a value of 120 characters each; what is longer than a store takes is told."""
    longest = f"{'d' * 120}={'v' * 120}/x"
    any_store.put_bytes(longest, b"some")
    assert _keys(any_store) == [longest]
    with pytest.raises(StoreError, match="too long"):
        any_store.put_bytes("/".join(["p" * 200] * 40), b"some")


def test_what_lies_together_is_listed_together(any_store: ObjectStore) -> None:
    """S3, V13: more than one page of a listing, each key once, and only those below the prefix."""
    for name in ("run=1", "run=10", "run=1-x", "run=1.x"):
        for stage in range(3):
            any_store.put_bytes(f"runs/{name}/stage{stage}/attempt0/x", b"1")
    found = [one.key for one in any_store.list("runs/")]
    directories = [key.split("/")[1] for key in found]
    assert len(found) == len(set(found)) == 12
    changes = sum(one != other for one, other in pairwise(directories))
    assert changes == 3, f"a directory is interrupted: {found}"
    assert _keys(any_store, "runs/run=1/") == [f"runs/run=1/stage{stage}/attempt0/x" for stage in range(3)]
    assert len(_keys(any_store, "runs/run=1")) == 12


def test_times_of_objects_are_those_of_writing(any_store: ObjectStore) -> None:
    """S3: sweeping goes by them; S3 knows whole seconds."""
    before = time.time()
    any_store.put_bytes("a", b"1")
    (found,) = any_store.list("a")
    assert before - 1.1 <= found.modified_at <= time.time() + 0.1


def test_deleting_what_is_read_and_written_disturbs_nobody(any_store: ObjectStore) -> None:
    """S3, V13."""
    done, failures = threading.Event(), []
    # rclone loses an object from sight where two writers make its directory at once.
    any_store.put_bytes("a/b/c/first", b"some")

    def sweep() -> None:
        while not done.is_set():
            any_store.delete("a/b/c/gone")
            assert all(found.size == 4 for found in any_store.list("a/"))

    def write(name: str) -> None:
        try:
            for number in range(20):
                any_store.put_bytes(f"a/b/c/{name}{number}", b"some")
                any_store.delete(f"a/b/c/{name}{number}")
        except Exception as error:
            failures.append(error)

    sweeper = threading.Thread(target=sweep)
    writers = [threading.Thread(target=write, args=(name,)) for name in ("x", "y")]
    for thread in (sweeper, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    sweeper.join()
    assert failures == []
    assert _keys(any_store) == ["a/b/c/first"]


def test_a_store_is_found_again_by_its_url(any_store: DirectoryStore | S3Store) -> None:
    """S3: as a pilot opens it from its order, where no secret stands."""
    any_store.put_bytes("a", b"some")
    assert open_store(any_store.url).read_bytes("a") == b"some"
    child = os.fork()
    if child == 0:
        # A forked process must not use the connections of the other.
        os._exit(0 if open_store(any_store.url).read_bytes("a") == b"some" else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_any_store_belongs_to_the_ledger_that_has_marked_it(any_store: ObjectStore, ledger: Ledger) -> None:
    """S3, V13: another is refused, until it adopts the store; objects stay as they are."""
    first, second = (Owner(ledger=uuid4(), experiment="night", home=home) for home in ("/first", "/second"))
    claim(any_store, first)
    any_store.put_bytes("runs/a", b"1")
    claim(any_store, first)
    with pytest.raises(StoreTaken, match="'night' in /first"):
        claim(any_store, second)
    assert adopt(any_store, second, ledger, 0.0) == str(first)
    claim(any_store, second)
    with pytest.raises(StoreTaken, match="'night' in /second"):
        claim(any_store, first)
    assert any_store.read_bytes("runs/a") == b"1"
