"""Outputs that have waited go to the store: what each pilot does beside its work, for all of its machine."""

from __future__ import annotations

import logging
import stat
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

from p3s_prefect.adapters.directory_store import DirectoryStore
from p3s_prefect.adapters.pilot.waiting_outputs import About, WaitingOutputs
from p3s_prefect.adapters.stores import is_known_away, is_local, open_store
from p3s_prefect.core.errors import ObjectMissing, P3sError, StoreDisturbed, StoreError, StoreUnreachable
from p3s_prefect.core.object_keys import key_parts
from p3s_prefect.core.ports import ObjectStore
from p3s_prefect.core.records import Manifest, PublishedObject
from p3s_prefect.core.retry import MOST_DISTURBED, away_s

log = logging.getLogger(__name__)

# A look is one listing of a directory, mostly of none. How often a store that is away is asked, `s3_away` decides.
_LOOK_EVERY_S = 1.0
# What a store refuses, such as a wrong key, people mend; as they do a disk that cannot be read.
_REFUSED_S = 60.0
# A server that answers, and cannot take this one: it was started a moment ago, or will never take it. Twice as long
# each time (`away_s`), so that what is given up after `MOST_DISTURBED` has been tried for as long as a read is.
_DISTURBED_S = 10.0


class Draining:
    """Takes what waits on this machine to its stores, the oldest first; each execution is one pilot's at a time."""

    def __init__(
        self,
        waiting: WaitingOutputs,
        open_store: Callable[[str], ObjectStore] = open_store,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._waiting = waiting
        self._open_store = open_store
        self._clock = clock
        self._not_before: dict[str, float] = {}
        self._tries: dict[str, int] = {}
        """How often a store did not take an execution while it took others."""

    def begin(self) -> None:
        """Looks from now on, in a thread of its own, until the process ends."""
        threading.Thread(target=self._run, daemon=True, name="waiting-outputs").start()

    def look(self) -> int:
        """Takes away what can be; returns of how many executions."""
        executions = self._waiting.executions()
        for noted in (self._not_before, self._tries):
            for execution in noted.keys() - set(executions):
                del noted[execution]
        return sum(self._try(execution) for execution in executions)

    def _run(self) -> None:
        while True:
            try:
                self.look()
            except Exception:
                # Without this thread the outputs would wait for as long as the pilot lives.
                log.exception("outputs that wait cannot be looked for")
            time.sleep(_LOOK_EVERY_S)

    def _try(self, execution: str) -> bool:
        """Whatever is wrong with one, the others go."""
        if self._clock() < self._not_before.get(execution, 0):
            return False
        try:
            return self._see_to(execution)
        except (OSError, P3sError) as error:
            log.error("outputs of the execution %s go on waiting: %s", execution, error)
            self._not_before[execution] = self._clock() + _REFUSED_S
            return False

    def _see_to(self, execution: str) -> bool:
        with suppress(ValueError):
            about = self._waiting.about(execution)
            if about is not None and is_known_away(about.store_url):
                return False
        with self._waiting.alone(execution) as is_ours:
            if not is_ours:
                return False
            about = self._undamaged(execution)
            if about is not None and not self._take(about):
                return False
            self._waiting.remove(execution)
            return about is not None

    def _undamaged(self, execution: str) -> About | None:
        """What an execution has left; None if that is worth nothing."""
        try:
            return self._waiting.about(execution)
        except ValueError as error:
            log.error("outputs of the execution %s are given up, as whose they are was damaged: %s", execution, error)
            return None

    def _take(self, about: About) -> bool:
        """Whether what waits of an execution is in the store now, or is worth nothing."""
        try:
            if is_local(about.store_url):
                raise _Damaged(f"nothing waits for {about.store_url}, which is never away")
            self._upload(about, self._open_store(about.store_url), self._waiting.objects(about.execution))
        except _Damaged as error:
            log.error("outputs of %s were damaged while they waited, and are given up: %s", about.prefix, error)
        except StoreError as error:
            return self._is_given_up(about, error)
        return True

    def _is_given_up(self, about: About, error: StoreError) -> bool:
        """Whether a store that takes others has not taken an execution so often that it never will."""
        if isinstance(error, StoreDisturbed) or not isinstance(error, StoreUnreachable):
            self._tries[about.execution] = self._tries.get(about.execution, 0) + self._takes_others(about)
        tries = self._tries.get(about.execution, 0)
        if tries >= MOST_DISTURBED:
            reason = f"the store, which takes others, did not take its outputs {tries} times: {error.what}"
            log.error("outputs of %s are given up: %s", about.prefix, reason)
            self._waiting.give_up(about, reason)
            return True
        if not isinstance(error, StoreUnreachable):
            log.error("outputs of %s go on waiting: %s", about.prefix, error)
            self._not_before[about.execution] = self._clock() + _REFUSED_S
        else:
            log.info("outputs of %s go on waiting: %s", about.prefix, error.what)
            if not is_known_away(about.store_url):
                self._not_before[about.execution] = self._clock() + max(_DISTURBED_S, away_s(tries))
        return False

    def _takes_others(self, about: About) -> bool:
        """Whether the store takes anything now: one whose key is wrong, or whose disks are full or away, does not."""
        # Where it is swept, should this process be killed before it removes it.
        key = f"{about.prefix}/{uuid.uuid4().hex}"
        try:
            store = self._open_store(about.store_url)
            store.put_bytes(key, b"does it take this?")
        except StoreError as error:
            log.info("nor does the store take anything else: %s", error.what)
            return False
        with suppress(StoreError):
            store.delete(key)
        return True

    @staticmethod
    def _upload(about: About, store: ObjectStore, kept: DirectoryStore) -> None:
        paths = _paths(kept)
        _must_be_files(paths)
        manifest = _manifest(kept, about)
        named = {} if manifest is None else _named(manifest)
        for key, path in paths.items():
            if key != about.manifest_key:
                _must_be(named.get(key), _sent(store, key, path))
        _must_be_there(store, named, [key for key in named if key not in paths])
        if manifest is not None:
            store.put_file(about.manifest_key, paths[about.manifest_key])


class _Damaged(Exception):
    """What waited is no longer what its manifest says."""


def _sent(store: ObjectStore, key: str, path: Path) -> PublishedObject:
    try:
        return store.put_file(key, path)
    except FileNotFoundError as error:
        raise _Damaged(f"{key} is gone") from error


def _paths(kept: DirectoryStore) -> Mapping[str, Path]:
    """The files of what waits, by key.

    Raises:
        OSError: this machine's disk does not tell, of which the store to which they go knows nothing.
    """
    try:
        return {found.key: kept.root.joinpath(*key_parts(found.key)) for found in kept.list("")}
    except StoreError as error:
        raise OSError(error.what) from error


def _manifest(kept: DirectoryStore, about: About) -> Manifest | None:
    try:
        return Manifest.model_validate_json(kept.read_bytes(about.manifest_key))
    except ObjectMissing:
        return None
    except ValueError as error:
        raise _Damaged("its manifest is none") from error


def _named(manifest: Manifest) -> Mapping[str, PublishedObject]:
    log_object = [manifest.log] if manifest.log is not None else []
    return {one.key: one for one in [*manifest.outputs, *manifest.products, *log_object]}


def _must_be_files(paths: Mapping[str, Path]) -> None:
    """What a link leads to was not made by the stage."""
    for key, path in paths.items():
        if not stat.S_ISREG(path.lstat().st_mode):
            raise _Damaged(f"{key} is not a file")


def _must_be(wanted: PublishedObject | None, sent: PublishedObject) -> None:
    if wanted is not None and (wanted.size, wanted.sha256) != (sent.size, sent.sha256):
        raise _Damaged(f"{sent.key} has the SHA-256 {sent.sha256[:12]}… instead of {wanted.sha256[:12]}…")


def _must_be_there(store: ObjectStore, named: Mapping[str, PublishedObject], keys: list[str]) -> None:
    """Those that went to the store before it was away; one of them may have been swept from it."""
    for key in keys:
        found = next((one for one in store.list(key) if one.key == key), None)
        if found is None or found.size != named[key].size:
            raise _Damaged(f"{key} went to the store before, and is not there any more")
