"""The central store in a directory: whole objects or none, whatever happens to their writers (V13)."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders import kill_at_random, sha256
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from p3s_prefect.adapters.directory_store import DirectoryStore, file_sha256
from p3s_prefect.adapters.stores import open_store
from p3s_prefect.core.errors import BadName, ChecksumMismatch, ObjectExists, ObjectMissing, StoreError

HIDDEN = ".writing-"


def _files(store: DirectoryStore) -> list[Path]:
    return [path for path in store.root.rglob("*") if path.is_file()]


def _keys(store: DirectoryStore, prefix: str = "") -> list[str]:
    return [found.key for found in store.list(prefix)]


def _forked(work: Callable[[], None]) -> int:
    """Runs it in a process of its own."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child


# --- whole or not at all --------------------------------------------------------------------------------------------


def test_killed_writers_leave_whole_objects_or_none(store: DirectoryStore, tmp_path: Path) -> None:
    """V13: 120 times kill -9 at random moments, while a reader looks."""
    chance = random.Random(2008)
    source = tmp_path / "source"
    source.write_bytes(chance.randbytes(1 << 20))
    expected = {number: sha256(_content(source, number)) for number in range(8)}

    def write(start: int, begun: Callable[[], None]) -> None:
        for number in range(start, start + 100_000):
            part = tmp_path / f"part{start}"
            part.write_bytes(_content(source, number % 8))
            begun()
            store.put_file(f"{number % 8}/kill{start}/object{number}", part)

    for kill in range(120):
        kill_at_random(lambda begun, start=kill * 100_000: write(start, begun), chance, within_s=0.02)
    found = list(store.list(""))
    assert found, "no writer got as far as its first object"
    for seen in found:
        assert hashlib.sha256(store.read_bytes(seen.key)).hexdigest() == expected[int(seen.key[0])]
        assert seen.size == len(_content(source, int(seen.key[0])))
    _check_swept(store, len(found))


def _content(source: Path, number: int) -> bytes:
    return source.read_bytes()[: (number + 1) << 17]


def _check_swept(store: DirectoryStore, objects: int) -> None:
    left = [path for path in _files(store) if path.name.startswith(HIDDEN)]
    assert left, "no writer was killed in the middle"
    assert store.sweep_unfinished(0.0) == 0
    assert store.sweep_unfinished(time.time() + 1) == len(left)
    assert len(_files(store)) == objects


def test_writers_of_one_key_at_once_leave_one_content_whole(store: DirectoryStore, tmp_path: Path) -> None:
    """V13: four processes, each with a content of its own, the winner is told by the store alone."""
    for number in range(25):
        key = f"same/object{number}"
        gate, opener = os.pipe()

        def write(mark: bytes, key: str = key, gate: int = gate, opener: int = opener) -> None:
            os.close(opener)
            os.read(gate, 1)
            try:
                store.put_bytes(key, mark * 100_000)
            except ObjectExists:
                (tmp_path / f"refused-{key.replace('/', '-')}-{mark.decode()}").touch()

        children = [_forked(lambda mark=mark: write(mark)) for mark in (b"a", b"b", b"c", b"d")]
        os.close(gate)
        os.close(opener)
        for child in children:
            os.waitpid(child, 0)
        content = store.read_bytes(key)
        assert content in {mark * 100_000 for mark in (b"a", b"b", b"c", b"d")}
        assert len(list(tmp_path.glob(f"refused-same-object{number}-*"))) == 3
    assert not any(path.name.startswith(HIDDEN) for path in _files(store))


def test_the_same_bytes_again_are_no_error_and_others_are(store: DirectoryStore, tmp_path: Path) -> None:
    """V13."""
    source = tmp_path / "source"
    source.write_bytes(b"first")
    put = store.put_file("a/b", source)
    assert put == store.put_bytes("a/b", b"first")
    assert (put.key, put.size, put.sha256) == ("a/b", 5, sha256(b"first"))
    with pytest.raises(ObjectExists, match="a/b"):
        store.put_bytes("a/b", b"second")
    assert store.read_bytes("a/b") == b"first"
    assert len(_files(store)) == 1


def test_an_object_cannot_be_changed_by_who_reads_it(store: DirectoryStore, tmp_path: Path) -> None:
    """V13: a payload is given the store's own file; as a plain user it cannot open it for writing."""
    put = store.put_bytes("a/b", b"first")
    path = store.fetch("a/b", tmp_path, put.sha256)
    assert path.stat().st_mode & 0o777 == 0o444


@pytest.mark.parametrize("failing", ["fsync", "link", "write"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_full_or_broken_disk_is_an_error_that_leaves_nothing(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch, failing: str, code: int
) -> None:
    """V13."""

    def fail(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    blocks = iter([b"some"])
    if failing == "write":
        blocks = iter(lambda: fail(), b"")  # type: ignore[arg-type]
    else:
        monkeypatch.setattr(os, failing, fail)
    with pytest.raises(StoreError, match=f"a/b could not be written: {os.strerror(code)}"):
        store._put("a/b", blocks)
    monkeypatch.undo()
    assert _files(store) == []
    store.put_bytes("a/b", b"some")


def test_what_cannot_be_looked_at_is_an_error_of_the_store(store: DirectoryStore) -> None:
    """S8: a link that leads to itself, which nobody can follow, whatever their rights."""
    (store.root / "a").mkdir(parents=True)
    (store.root / "a" / "b").symlink_to("b")
    with pytest.raises(StoreError, match="what is below a/ cannot be listed"):
        list(store.list("a/"))
    with pytest.raises(StoreError, match="a/b cannot be read"):
        store.read_bytes("a/b")


def test_a_key_below_an_object_or_above_one_is_an_error(store: DirectoryStore, tmp_path: Path) -> None:
    """V13, S8."""
    store.put_bytes("a/b", b"some")
    with pytest.raises(StoreError, match="a/b/c"):
        store.put_bytes("a/b/c", b"below")
    with pytest.raises(StoreError, match="a could not"):
        store.put_bytes("a", b"above")
    for missing in ("a", "a/b/c", "a/c", "c"):
        with pytest.raises(ObjectMissing, match=missing):
            store.read_bytes(missing)
        with pytest.raises(ObjectMissing, match=missing):
            store.fetch(missing, tmp_path, sha256(b""))
    assert _keys(store) == ["a/b"]


# --- keys -----------------------------------------------------------------------------------------------------------

HOSTILE = [
    "",
    "/",
    "/etc/passwd",
    "..",
    "../x",
    "a/../../x",
    "a/./b",
    "a//b",
    "a/",
    "a\0b",
    "a\n",
    "a\nb",
    "a b",
    "~root",
    ".hidden",
    "a/.writing-0",
    "-rf",
    "a\\b",
    "é",
    "a" * 300,
]


@pytest.mark.parametrize("key", HOSTILE)
def test_a_hostile_key_is_refused_everywhere(store: DirectoryStore, tmp_path: Path, key: str) -> None:
    """S8."""
    tries: list[Callable[[], object]] = [
        lambda: store.put_bytes(key, b"x"),
        lambda: store.read_bytes(key),
        lambda: store.fetch(key, tmp_path, sha256(b"x")),
        lambda: store.delete(key),
    ]
    for attempt in tries:
        with pytest.raises(BadName):
            attempt()
    assert not store.root.exists()


def test_the_longest_names_of_data_ids_are_keys(store: DirectoryStore) -> None:
    """S8: a dimension and a value of 120 characters each; and a path too long for the system is a clear error."""
    store.put_bytes(f"{'d' * 120}={'v' * 120}/x", b"some")
    assert len(_keys(store)) == 1
    too_long = "/".join(["p" * 200] * 40)
    with pytest.raises(StoreError, match="too long"):
        store.put_bytes(too_long, b"some")
    with pytest.raises(StoreError, match="too long"):
        store.read_bytes(too_long)


def test_a_store_is_found_again_by_its_url(tmp_path: Path) -> None:
    """S8: wherever it is."""
    for name in ("plain", "with blank", "100%", "a#b?c", "é"):
        store = DirectoryStore(tmp_path / name)
        store.put_bytes("a", b"some")
        assert open_store(store.url).read_bytes("a") == b"some"
    with pytest.raises(StoreError, match="ftp://"):
        open_store("ftp://bucket/prefix")


# --- reading --------------------------------------------------------------------------------------------------------


def test_a_flipped_bit_is_found(store: DirectoryStore, tmp_path: Path) -> None:
    """V13."""
    put = store.put_bytes("a/b", b"some bytes")
    path = store.fetch("a/b", tmp_path, put.sha256)
    assert path.read_bytes() == b"some bytes"
    path.chmod(0o644)
    path.write_bytes(b"some bytfs")
    with pytest.raises(ChecksumMismatch, match="a/b"):
        store.fetch("a/b", tmp_path, put.sha256)


KEYS = st.lists(st.text("ab-.0=Z", min_size=1, max_size=3).filter(lambda part: part[0] not in "-.="), max_size=3)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=st.lists(KEYS.filter(bool), max_size=8), prefix=st.text("ab-.0=Z", max_size=2))
def test_a_listing_is_in_the_order_of_keys(tmp_path_factory: Any, parts: list[list[str]], prefix: str) -> None:
    """P2, V13: whoever lists from a key on misses nothing."""
    store = DirectoryStore(tmp_path_factory.mktemp("listed"))
    for key in ("/".join(found) for found in parts):
        try:
            store.put_bytes(key, b"x")
        except StoreError:
            continue  # below or above another one
    put = [path.relative_to(store.root).as_posix() for path in _files(store)]
    assert _keys(store) == sorted(put)
    assert _keys(store, prefix) == sorted(key for key in put if key.startswith(prefix))
    for key in put:
        head = key.rpartition("/")[0] + "/" if "/" in key else ""
        assert _keys(store, head) == sorted(other for other in put if other.startswith(head))


def test_a_listing_shows_objects_only(store: DirectoryStore) -> None:
    """V13: not what is being written, nor what others have left in the directory."""
    store.put_bytes("a/b", b"some")
    (store.root / "a" / f"{HIDDEN}0").write_bytes(b"half")
    (store.root / "a" / "foreign file").write_bytes(b"x")
    assert [(found.key, found.size) for found in store.list("a/")] == [("a/b", 4)]
    assert _keys(store, "a/b/") == _keys(store, "absent/") == []


# --- deleting -------------------------------------------------------------------------------------------------------


def test_deleting_takes_empty_directories_along(store: DirectoryStore) -> None:
    """V13: sweeping."""
    store.put_bytes("a/b/c", b"some")
    store.put_bytes("a/d", b"some")
    store.delete("a/b/c")
    assert sorted(path.name for path in store.root.rglob("*")) == ["a", "d"]
    for absent in ("a/b/c", "a", "a/d/e", "x/y"):
        store.delete(absent)
    assert _keys(store) == ["a/d"]
    store.delete("a/d")
    assert store.root.is_dir()


def test_who_deletes_does_not_disturb_who_writes(store: DirectoryStore) -> None:
    """V13: the sweep takes away directories in which a pilot is just about to write."""
    done = threading.Event()
    failures: list[Exception] = []

    def sweep() -> None:
        while not done.is_set():
            store.delete("a/b/c/gone")
            for found in store.list("a/"):
                assert found.size == 4

    def write(name: str) -> None:
        try:
            for number in range(150):
                key = f"a/b/c/{name}{number}"
                store.put_bytes(key, b"some")
                store.delete(key)
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


def test_a_checksum_is_that_of_the_whole_file(tmp_path: Path) -> None:
    """V13: also of one that is larger than any block."""
    content = random.Random(1).randbytes(5 << 20)
    (tmp_path / "large").write_bytes(content)
    assert file_sha256(tmp_path / "large") == sha256(content)
