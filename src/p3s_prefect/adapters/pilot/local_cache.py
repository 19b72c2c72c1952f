"""Objects of a store that is not on this machine, kept on its disk for all of its pilots, within a bound.

An entry is a file whose name is the SHA-256 of its bytes; its modification time is when it was last used. Who uses an
entry holds a shared `flock` on it; who fetches one holds an exclusive one on a file that is as long as the entry will
be, so that the bound holds meanwhile too. The kernel forgets both with their process. Entries come and go under a lock
on `.lock`, which is held for milliseconds.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from io import BufferedReader
from pathlib import Path

from p3s_prefect.adapters.pilot.own_directory import locked, make_own, still_named
from p3s_prefect.core.ports import ObjectStore
from p3s_prefect.core.records import CacheUse, InputFile

log = logging.getLogger(__name__)

_RESERVED = ".fetching"
_LANDING = ".landing"
_LOOK_AGAIN_S = 0.02
# Another pilot may be fetching the same object: 1 GB takes 10 s at 100 MB/s. A pilot that takes longer may be frozen.
_PATIENCE_S = 30.0


class LocalCache:
    """The cache below `root` as one execution has it: what it was handed stays there until `close`."""

    def __init__(self, root: Path, bound_bytes: int, *, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._root = root
        self._bound_bytes = bound_bytes
        self._clock_ns = clock_ns
        self._in_use = ExitStack()
        self._hits = 0
        self._misses = 0
        self._trouble = ""

    def close(self) -> None:
        """What was handed out may be removed from now on."""
        self._in_use.close()

    @property
    def use(self) -> CacheUse:
        """How often the cache had what was asked for, so far."""
        return CacheUse(hits=self._hits, misses=self._misses, trouble=self._trouble)

    def fetch(self, store: ObjectStore, file: InputFile, scratch: Path) -> Path:
        """A local file with the object's bytes, verified, under the last part of its key; see `ObjectStore.fetch`.

        Where the cache has no room, or fails, the object is fetched for this execution alone.
        """
        key, sha256 = str(file.key), str(file.sha256)
        entry = None
        try:
            make_own(self._root)
            entry = self._entry(store, key, sha256, file.size)
        except OSError as error:
            self._trouble = f"the local cache in {self._root} fails: {error.strerror or error}"
            log.warning("%s", self._trouble)
        if entry is None:
            self._misses += 1
            return store.fetch(key, scratch, sha256)
        # Under its own name, whose ending tells programs what it is.
        link = scratch / "cached" / sha256 / key.rpartition("/")[2]
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(entry)
        return link

    # --- entries ------------------------------------------------------------------------------------------------

    def _entry(self, store: ObjectStore, key: str, sha256: str, size: int) -> Path | None:
        """The entry, in use from now on; None if there is no room, or somebody else takes too long to fetch it."""
        entry = self._root / sha256
        until = time.monotonic() + _PATIENCE_S
        while size <= self._bound_bytes and time.monotonic() < until:
            if self._hold(entry):
                self._hits += 1
                return entry
            with _alone(entry) as is_ours:
                # Nobody else makes this entry as long as it is ours to do; somebody may just have done it.
                if is_ours and not entry.exists():
                    if not self._reserve(entry, size):
                        return None
                    self._fetch(store, key, entry)
                    self._misses += 1
                    return entry
            time.sleep(_LOOK_AGAIN_S)
        return None

    def _hold(self, entry: Path) -> bool:
        """Uses an entry from now on; False if it is not there. One that was damaged is removed."""
        file = locked(entry, fcntl.LOCK_SH)
        if file is None:
            return False
        if hashlib.file_digest(file, "sha256").hexdigest() != entry.name:
            log.warning("an entry of the local cache was damaged, and is fetched again: %s", entry)
            with file, self._entries_change():
                if still_named(file, entry):
                    entry.unlink()
            return False
        self._use(file)
        return True

    def _use(self, file: BufferedReader) -> None:
        now_ns = self._clock_ns()
        os.utime(file.fileno(), ns=(now_ns, now_ns))
        self._in_use.enter_context(file)

    def _fetch(self, store: ObjectStore, key: str, entry: Path) -> None:
        landing = _landing(entry)
        landing.mkdir()
        fetched = store.fetch(key, landing, entry.name)
        fetched.chmod(0o400)
        file = locked(fetched, fcntl.LOCK_SH)
        if file is None:
            raise FileNotFoundError(f"{fetched} was taken away")
        self._use(file)
        with self._entries_change():
            fetched.rename(entry)

    # --- room ---------------------------------------------------------------------------------------------------

    def _reserve(self, entry: Path, size: int) -> bool:
        """Keeps room for an entry, for which those go that were not used for longest; False if too much is in use."""
        with self._entries_change():
            files = sorted(self._files())
            taken = sum(found for _, _, found in files)
            for _, name, found in files:
                if taken + size <= self._bound_bytes:
                    break
                if self._remove(self._root / name):
                    taken -= found
            if taken + size > self._bound_bytes:
                return False
            os.truncate(_reserved(entry), size)
            return True

    def _files(self) -> Iterator[tuple[int, str, int]]:
        """Everything that takes room: when it was last used [ns since 1970], its name, its size [bytes]."""
        with os.scandir(self._root) as found:
            for one in found:
                try:
                    told = one.stat(follow_symlinks=False)
                except FileNotFoundError:
                    # Whoever has made an entry gives back the room that was kept for it, at any time.
                    continue
                if stat.S_ISREG(told.st_mode):
                    yield told.st_mtime_ns, one.name, told.st_size

    def _remove(self, path: Path) -> bool:
        """Removes what nobody uses, or fetches; called while names change."""
        file = locked(path, fcntl.LOCK_EX)
        if file is None:
            return False
        with file:
            if path.name.endswith(_RESERVED):
                shutil.rmtree(_landing(path.with_suffix("")), ignore_errors=True)
            path.unlink()
        return True

    @contextmanager
    def _entries_change(self) -> Iterator[None]:
        with (self._root / ".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


@contextmanager
def _alone(entry: Path) -> Iterator[bool]:
    """Whether it is for this execution to make an entry; nobody else does meanwhile."""
    place = locked(_reserved(entry), fcntl.LOCK_EX, os.O_CREAT)
    if place is None:
        yield False
        return
    with place:
        # Whoever was killed while it made the entry has left something there.
        shutil.rmtree(_landing(entry), ignore_errors=True)
        try:
            yield True
        finally:
            shutil.rmtree(_landing(entry), ignore_errors=True)
            _reserved(entry).unlink(missing_ok=True)


def _reserved(entry: Path) -> Path:
    return entry.with_suffix(_RESERVED)


def _landing(entry: Path) -> Path:
    return entry.with_suffix(_LANDING)
