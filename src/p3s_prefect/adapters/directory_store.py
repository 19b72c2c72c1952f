"""The central store in a directory: the embedded default."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from p3s_prefect.core.errors import ChecksumMismatch, ObjectExists, ObjectMissing, StoreError
from p3s_prefect.core.object_keys import is_part, key_parts
from p3s_prefect.core.ports import ObjectInfo
from p3s_prefect.core.records import PublishedObject

_TEMPORARY = ".writing-"
_BLOCK = 1 << 20
# A directory that is taken away more often than this in a row is not taken away by chance.
_MOST_REMOVALS = 100


class DirectoryStore:
    """Objects as files below `root`.

    A file is written under a hidden name, made durable, and then linked to its final name, which fails if there is
    one already: nobody sees half an object, and none is ever replaced.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.url = self.root.as_uri()

    def put_file(self, key: str, path: Path) -> PublishedObject:
        """See `ObjectStore.put_file`."""
        with path.open("rb") as source:
            return self._put(key, iter(lambda: source.read(_BLOCK), b""))

    def put_bytes(self, key: str, content: bytes) -> PublishedObject:
        """See `ObjectStore.put_bytes`."""
        return self._put(key, iter([content]))

    def read_bytes(self, key: str) -> bytes:
        """See `ObjectStore.read_bytes`."""
        with _reading(key):
            return self._path(key).read_bytes()

    def fetch(self, key: str, scratch: Path, sha256: str) -> Path:
        """See `ObjectStore.fetch`; the answer is the store's own file."""
        del scratch
        path = self._path(key)
        with _reading(key):
            found = file_sha256(path)
        if found != sha256:
            raise ChecksumMismatch(
                f"{key} has the SHA-256 {found[:12]}… instead of {sha256[:12]}…",
                fix="The object was damaged after it was published; reprocess what it was made from in a new pass.",
            )
        return path

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `ObjectStore.list`."""
        head = prefix.rpartition("/")[0]
        try:
            for path in _walk(self._path(head) if head else self.root):
                key = path.relative_to(self.root).as_posix()
                if key.startswith(prefix):
                    # One that was deleted since the directory was read is no error.
                    with contextlib.suppress(FileNotFoundError):
                        stat = path.stat()
                        yield ObjectInfo(key=key, size=stat.st_size, modified_at=stat.st_mtime)
        except OSError as error:
            raise StoreError(
                f"what is below {prefix} cannot be listed: {error.strerror or error}", fix="Look at the store's disk."
            ) from error

    def delete(self, key: str) -> None:
        """See `ObjectStore.delete`; directories that are empty then go too."""
        path = self._path(key)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError):
            path.unlink()
        with contextlib.suppress(OSError):
            for parent in path.parents:
                if parent == self.root:
                    break
                parent.rmdir()

    def sweep_unfinished(self, older_than: float) -> int:
        """See `ObjectStore.sweep_unfinished`: files under hidden names."""
        removed = 0
        for directory, _, files in os.walk(self.root):
            for name in files:
                path = Path(directory, name)
                with contextlib.suppress(FileNotFoundError):
                    if name.startswith(_TEMPORARY) and path.stat().st_mtime < older_than:
                        path.unlink()
                        removed += 1
        return removed

    def free_bytes(self) -> int | None:
        """See `ObjectStore.free_bytes`."""
        with contextlib.suppress(OSError):
            return shutil.disk_usage(self.root).free
        return None

    def _path(self, key: str) -> Path:
        return self.root.joinpath(*key_parts(key))

    def _put(self, key: str, blocks: Iterator[bytes]) -> PublishedObject:
        path = self._path(key)
        hidden = path.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}")
        try:
            size, sha256 = self._write(hidden, blocks)
            self._reveal(hidden, path, sha256)
        except OSError as error:
            raise StoreError(
                f"{key} could not be written: {error.strerror or error}",
                fix="Look whether the store's disk is full or was mounted read-only.",
            ) from error
        finally:
            with contextlib.suppress(OSError):
                hidden.unlink()
        return PublishedObject(key=key, size=size, sha256=sha256)

    def _write(self, hidden: Path, blocks: Iterator[bytes]) -> tuple[int, str]:
        digest = hashlib.sha256()
        size = 0
        with _create(hidden) as target:
            for block in blocks:
                target.write(block)
                digest.update(block)
                size += len(block)
            target.flush()
            # `fetch` hands out the object itself.
            os.fchmod(target.fileno(), 0o444)
            os.fsync(target.fileno())
        return size, digest.hexdigest()

    def _reveal(self, hidden: Path, path: Path, sha256: str) -> None:
        try:
            os.link(hidden, path)
        except FileExistsError as error:
            if file_sha256(path) != sha256:
                raise ObjectExists(
                    f"another object is already under {path.relative_to(self.root)}",
                    fix="Objects never change: publish under another key.",
                ) from error
        sync_directory(path.parent)


def file_sha256(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def _create(hidden: Path) -> BinaryIO:
    # Whoever deletes the last object of a directory takes it away, perhaps just when we have made it.
    for _ in range(_MOST_REMOVALS):
        try:
            return hidden.open("xb")
        except FileNotFoundError:
            # It "exists" where it was taken away again between the attempt to make it and a look at what is there.
            with contextlib.suppress(FileNotFoundError, FileExistsError):
                hidden.parent.mkdir(parents=True, exist_ok=True)
    return hidden.open("xb")


def _walk(directory: Path) -> Iterator[Path]:
    """All objects below a directory, in the order of their keys, in which a directory's name ends with a slash."""
    try:
        with os.scandir(directory) as entries:
            found = sorted((f"{e.name}/" if e.is_dir(follow_symlinks=False) else e.name) for e in entries)
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in found:
        if name.endswith("/"):
            yield from _walk(directory / name)
        elif is_part(name):
            yield directory / name


@contextlib.contextmanager
def _reading(key: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise ObjectMissing(
            f"there is no object {key}", fix="It was never published, or was removed from the store."
        ) from error
    except OSError as error:
        raise StoreError(f"{key} cannot be read: {error.strerror or error}", fix="Look at the store's disk.") from error


def sync_directory(directory: Path) -> None:
    """Makes the names in it durable: a file's name is so only once its directory is."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
