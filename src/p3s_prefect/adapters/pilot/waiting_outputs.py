"""Outputs that wait on their pilot's machine for a store that is away: within a bound, in a place of all its pilots.

Of each execution there is a directory, in which its objects are kept under the keys that they will have in the store,
and beside it a file `.held`, which is as long as they are together, so that the bound holds. Who writes them, or takes
them to the store, holds a lock on that file. `about.json` is written last: what lacks it was begun by a pilot that is
gone, and is nothing.

Of what the store can never take, a file `.given-up` is left, which says so until the station has heard it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import stat
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from p3s_prefect.adapters.directory_store import DirectoryStore, sync_directory
from p3s_prefect.adapters.pilot.own_directory import is_own, locked, make_own
from p3s_prefect.core.errors import StoreError, StoreUnreachable
from p3s_prefect.core.health import size
from p3s_prefect.core.ports import ObjectStore
from p3s_prefect.core.records import PublishedObject, WaitingTold

log = logging.getLogger(__name__)

_HELD = ".held"
_ABOUT = "about.json"
_GIVEN_UP = ".given-up"
# A station that was away for longer takes them for lost, and has them made again.
_TOLD_FOR_S = 7 * 86400.0
# Where a machine keeps what is to outlast its restart; the directory for temporary files is emptied then.
_USUAL = "/var/tmp"  # noqa: S108 -- that nobody else can write there is looked at
# Who is in the way there is so for a moment: a second is long.
_HOLD_TRIES = 100
_HOLD_PAUSE_S = 0.01
_ASK_FOR_ROOM = "Start the store; or give `pilots.waiting_bytes` more, if the disks of the pilots' machines have it."


class About(BaseModel):
    """Whose outputs they are, and where they go."""

    model_config = ConfigDict(frozen=True)

    store_url: str
    prefix: str
    """Of the attempt."""
    execution: str

    @property
    def manifest_key(self) -> str:
        """Under which the manifest goes, if there is one: of what has failed only the log waits."""
        return f"{self.prefix}/{self.execution}/manifest.json"


class GivenUp(BaseModel):
    """Outputs that were given up, and why."""

    model_config = ConfigDict(frozen=True)

    about: About
    reason: str


def waiting_root(directory: str | None) -> Path:
    """Where outputs wait on this machine; `directory` is None for the usual place."""
    return Path(directory or f"{_USUAL}/p3s-waiting-{os.getuid()}")


class WaitingOutputs:
    """All outputs that wait below `root`; none as long as others can write there, who could have made them up."""

    def __init__(self, root: Path) -> None:
        self._root = root
        # What is complete does not change; with thousands, to read them again takes longer than to list them.
        self._known: dict[str, About] = {}

    def executions(self) -> list[str]:
        """Whatever is there, the oldest first."""
        return [name for _, name, _ in sorted(self._held())]

    def told(self, store_url: str) -> WaitingTold:
        """What waits for a store, as far as it is complete; what nobody can read may be for any."""
        known: dict[str, About] = {}
        sizes: dict[str, int] = {}
        unreadable: dict[str, int] = {}
        for _, execution, length in self._held():
            try:
                about = self._known.get(execution) or self.about(execution)
            except (OSError, ValueError):
                unreadable[execution] = length
                continue
            if about is None:
                continue
            known[execution] = about
            if about.store_url == store_url:
                sizes[about.prefix] = sizes.get(about.prefix, 0) + length
        self._known = known
        given_up = {found.about.prefix: found.reason for _, found in self._given_up(store_url)}
        return WaitingTold(sizes=sizes, unreadable=unreadable, given_up=given_up)

    def about(self, execution: str) -> About | None:
        """What an execution has left; None if that is not complete, or has gone.

        Raises:
            ValueError: it was damaged.
            OSError: it cannot be read.
        """
        if not is_own(self._root):
            return None
        try:
            return About.model_validate_json((self._root / execution / _ABOUT).read_bytes())
        except FileNotFoundError:
            return None

    def objects(self, execution: str) -> DirectoryStore:
        """The objects of an execution."""
        return DirectoryStore(self._root / execution / "objects")

    @contextmanager
    def alone(self, execution: str) -> Iterator[bool]:
        """Whether this execution is for nobody else to touch meanwhile; False if somebody is at it, or it has gone."""
        file = locked(self._root / f"{execution}{_HELD}", fcntl.LOCK_EX) if is_own(self._root) else None
        if file is None:
            yield False
            return
        with file:
            yield True

    def remove(self, execution: str) -> None:
        """Removes what an execution has left; called by who is alone with it."""
        # First: what is half removed is nothing.
        (self._root / execution / _ABOUT).unlink(missing_ok=True)
        shutil.rmtree(self._root / execution, ignore_errors=True)
        (self._root / f"{execution}{_HELD}").unlink(missing_ok=True)

    def drop(self, store_url: str, prefixes: Collection[str]) -> int:
        """Removes what waits of attempts that matter no more; what is on its way just now goes on, and is swept."""
        dropped = 0
        for execution in self.executions():
            about = self._known.get(execution)
            if about is None:
                with suppress(OSError, ValueError):
                    about = self.about(execution)
            if about is not None and about.store_url == store_url and about.prefix in prefixes:
                with self.alone(execution) as is_ours:
                    if is_ours:
                        self.remove(execution)
                        dropped += 1
        for path, found in self._given_up(store_url):
            if found.about.prefix in prefixes:
                path.unlink(missing_ok=True)
        return dropped

    def give_up(self, about: About, reason: str) -> None:
        """Leaves word that outputs can never be taken; called by who is alone with them, and then removes them."""
        for old in self._root.glob(f"*{_GIVEN_UP}*"):
            with suppress(FileNotFoundError):
                if old.stat().st_mtime < time.time() - _TOLD_FOR_S:
                    old.unlink()
        self._write(self._root / f"{about.execution}{_GIVEN_UP}", GivenUp(about=about, reason=reason))

    def hold(self, execution: str) -> BufferedReader:
        """Begins an execution, which nobody else touches as long as this file is open.

        Raises:
            OSError: it cannot be, or others could write there; or, for a second, somebody was in the way.
        """
        path = self._root / f"{execution}{_HELD}"
        for _ in range(_HOLD_TRIES):
            make_own(self._root)
            # Between the name and the lock somebody may take it for what a pilot that was killed has left, or remove
            # the whole place.
            if (file := locked(path, fcntl.LOCK_EX, os.O_CREAT)) is not None:
                return file
            time.sleep(_HOLD_PAUSE_S)
        raise OSError(f"{path} cannot be held: others hold it, or remove it, again and again")

    def reserve(self, execution: str, length: int, bound_bytes: int) -> int | None:
        """Keeps room for an object of an execution; otherwise tells how much waits already, in bytes."""
        with (self._root / ".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            taken = sum(found for _, _, found in self._held())
            if taken + length > bound_bytes:
                return taken
            held = self._root / f"{execution}{_HELD}"
            os.truncate(held, held.stat().st_size + length)
            return None

    def empty(self, execution: str) -> None:
        """Removes the objects of an execution that goes on; called by who holds it."""
        shutil.rmtree(self._root / execution, ignore_errors=True)
        os.truncate(self._root / f"{execution}{_HELD}", 0)

    def complete(self, execution: str, about: About) -> None:
        """Everything is there; durable when it returns."""
        directory = self._root / execution
        directory.mkdir(exist_ok=True)
        self._write(directory / _ABOUT, about)
        sync_directory(self._root)

    @staticmethod
    def _write(path: Path, content: BaseModel) -> None:
        hidden = path.with_name(f"{path.name}.new")
        with hidden.open("w") as file:
            file.write(content.model_dump_json())
            file.flush()
            os.fsync(file.fileno())
        hidden.rename(path)
        sync_directory(path.parent)

    def _given_up(self, store_url: str) -> Iterator[tuple[Path, GivenUp]]:
        """What is left of what a store could not take; what cannot be read tells nothing."""
        if not is_own(self._root):
            return
        for path in self._root.glob(f"*{_GIVEN_UP}"):
            with suppress(OSError, ValueError):
                found = GivenUp.model_validate_json(path.read_bytes())
                if found.about.store_url == store_url:
                    yield path, found

    def _held(self) -> Iterator[tuple[int, str, int]]:
        """When each execution was begun or grew last [ns since 1970], its id, its size [bytes]."""
        if not is_own(self._root):
            return
        try:
            found = list(os.scandir(self._root))
        except FileNotFoundError:
            return
        for one in found:
            if one.name.endswith(_HELD):
                try:
                    told = one.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                if stat.S_ISREG(told.st_mode):
                    yield told.st_mtime_ns, one.name.removesuffix(_HELD), told.st_size


class OutputStore:
    """Where the objects of one execution go: to the store, and from when that is away on into this machine's place."""

    def __init__(
        self,
        store: ObjectStore,
        about: About,
        waiting: WaitingOutputs,
        bound_bytes: int,
        is_away: Callable[[], bool],
    ) -> None:
        self._store = store
        self._about = about
        self._waiting = waiting
        self._bound_bytes = bound_bytes
        self._is_away = is_away
        self._held: BufferedReader | None = None
        self._no_answer = ""
        self._is_complete = False

    @property
    def waits(self) -> bool:
        """Whether something of this execution waits."""
        return self._is_complete

    def put_file(self, key: str, path: Path) -> PublishedObject:
        """See `ObjectStore.put_file`.

        Raises:
            StoreUnreachable: the store is away, and there is no room here to wait for it.
        """
        return self._put(lambda store: store.put_file(key, path), path.stat().st_size)

    def put_bytes(self, key: str, content: bytes) -> PublishedObject:
        """See `put_file`."""
        return self._put(lambda store: store.put_bytes(key, content), len(content))

    def complete(self) -> None:
        """This was all. If any of it waits, it may be taken to the store from now on."""
        if self._held is not None:
            with _kept_here(self._no_answer):
                self._waiting.complete(self._about.execution, self._about)
            self._is_complete = True

    def empty(self) -> None:
        """What waits of it so far is worth nothing: a log may follow."""
        if self._held is not None:
            with _kept_here(self._no_answer):
                self._waiting.empty(self._about.execution)

    def close(self) -> None:
        """What waits and is not complete is given up; where it cannot be removed now, whoever drains does so later."""
        if self._held is None:
            return
        with self._held:
            if not self._is_complete:
                try:
                    self._waiting.remove(self._about.execution)
                except OSError as error:
                    log.warning("outputs of %s that are given up cannot be removed: %s", self._about.prefix, error)

    def _put(self, put: Callable[[ObjectStore], PublishedObject], length: int) -> PublishedObject:
        if self._held is None:
            try:
                if not self._is_away():
                    return put(self._store)
                raise StoreUnreachable("the store does not answer", fix=_ASK_FOR_ROOM)
            except StoreUnreachable as error:
                self._begin(error)
        with _kept_here(self._no_answer):
            taken = self._waiting.reserve(self._about.execution, length, self._bound_bytes)
            if taken is not None:
                raise StoreUnreachable(
                    f"{self._no_answer}; {size(taken)} of outputs wait for it already, and another {size(length)} may "
                    f"not: the bound is {size(self._bound_bytes)}",
                    fix=_ASK_FOR_ROOM,
                )
            return put(self._waiting.objects(self._about.execution))

    def _begin(self, error: StoreUnreachable) -> None:
        if not self._bound_bytes:
            raise error
        self._no_answer = error.what
        with _kept_here(error.what):
            self._held = self._waiting.hold(self._about.execution)


@contextmanager
def _kept_here(no_answer: str) -> Iterator[None]:
    """What cannot be kept here either was lost to the store that is away."""
    try:
        yield
    except StoreUnreachable:
        raise
    except (OSError, StoreError) as error:
        reason = error.what if isinstance(error, StoreError) else str(error)
        raise StoreUnreachable(
            f"{no_answer}; nor can outputs wait for it on their pilot's machine: {reason}",
            fix="Start the store; mend the place, or name another one in `pilots.waiting_directory`.",
        ) from error
