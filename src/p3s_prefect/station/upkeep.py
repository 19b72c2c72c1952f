"""What the station does besides: it keeps its lease, and sweeps the store."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import TypeVar

import psutil
from sqlalchemy import Connection

from p3s_prefect.adapters.journal_segments import export
from p3s_prefect.adapters.ledger.database import Lease, Ledger, acquire, renew, sign_of_life, time_of
from p3s_prefect.adapters.store_owner import Owner, claim
from p3s_prefect.adapters.this_machine import is_this_machine, this_machine
from p3s_prefect.core.errors import LeaseLost, LedgerAway, P3sError, StoreError, StoreTaken
from p3s_prefect.core.ports import Clock, ObjectStore
from p3s_prefect.station.committer import Committer
from p3s_prefect.station.sweeper import sweep

log = logging.getLogger(__name__)

_T = TypeVar("_T")

_ASK_AGAIN_S = 1.0
# Three signs of life a lease: two may be late before anybody takes over.
RENEWALS = 3
_SWEEPS_PER_AGE = 4
# With many objects a sweep takes seconds of the core that everything else runs on.
_SWEEPING_SHARE = 0.1
_LONGEST_STAGE_S = 86_400.0
# A listing of the segments' names, of which there are some thousands in ten years.
_EXPORT_EVERY_S = 600.0
_OLDEST_LINE_S = 86_400.0


class LeaseWatch:
    """How long the holder of a lease has given no sign of life, by a clock that nobody sets."""

    def __init__(self) -> None:
        self._seen: object = None
        self._since = 0.0

    def silent_s(self, sign: object) -> float:
        """For how long the sign has been the same."""
        if sign != self._seen:
            self._seen, self._since = sign, time.monotonic()
        return time.monotonic() - self._since


async def take_lease(ledger: Ledger, namespace: str, lease_s: float) -> Lease:
    """Waits for the lease and takes it; whose holder's process is gone from this machine is taken over at once."""
    watch = LeaseWatch()
    while True:
        try:
            return await asyncio.to_thread(claim_lease, ledger, namespace, lease_s, watch)
        except (LeaseLost, LedgerAway) as error:
            log.warning("waiting: %s", error.what)
            await asyncio.sleep(_ASK_AGAIN_S)


def claim_lease(ledger: Ledger, namespace: str, lease_s: float, watch: LeaseWatch | None = None) -> Lease:
    """Takes the lease now. It has run out when the database's clock says so, or when the watch says so.

    Raises:
        LeaseLost: another process, which may be alive, holds it.
    """
    with ledger.transaction() as connection:
        # Should the database's clock be set back, a lease would not run out for as long.
        silent_s = 0.0 if watch is None else watch.silent_s(sign_of_life(connection, namespace))
        return acquire(
            connection,
            namespace=namespace,
            holder=f"{this_machine()}:{os.getpid()}",
            lease_s=lease_s,
            now=time_of(connection),
            is_gone=lambda holder: silent_s > lease_s or _is_gone(holder),
        )


@contextmanager
def kept_lease(ledger: Ledger, lease: Lease, lease_s: float) -> Iterator[None]:
    """Renews the lease in a thread of its own, and gives it up at the end."""
    ended = threading.Event()

    def keep() -> None:
        with suppress(LeaseLost):  # every transaction finds that out for itself
            while not ended.wait(lease_s / RENEWALS):
                with suppress(LedgerAway), ledger.transaction() as connection:
                    prolong(connection, lease, lease_s)

    keeper = threading.Thread(target=keep, daemon=True, name="lease")
    keeper.start()
    try:
        yield
    finally:
        ended.set()
        keeper.join()
        with suppress(LeaseLost, LedgerAway), ledger.transaction() as connection:
            release(connection, lease)


async def keep_lease(committer: Committer, lease: Lease, lease_s: float) -> None:
    """Renews the lease until cancelled."""
    while True:
        await asyncio.sleep(lease_s / RENEWALS)
        await committer.do(partial(prolong, lease=lease, lease_s=lease_s))


def prolong(connection: Connection, lease: Lease, lease_s: float) -> None:
    """Renews the lease from now on; raises `LeaseLost` if somebody else has taken it."""
    renew(connection, lease, expires_at=time_of(connection) + lease_s)


def release(connection: Connection, lease: Lease) -> None:
    """Gives the lease up; raises `LeaseLost` if somebody else has taken it."""
    renew(connection, lease, expires_at=0.0)


async def read_patiently(ledger: Ledger, view: Callable[[Connection], _T]) -> _T:
    """The answer of a view, read in a thread, as soon as the ledger can be read."""

    def read() -> _T:
        with ledger.reading() as connection:
            return view(connection)

    while True:
        try:
            return await asyncio.to_thread(read)
        except LedgerAway as error:
            log.error("%s; trying again", error.what)
            await asyncio.sleep(_ASK_AGAIN_S)


def claim_store(store: ObjectStore, owner: Owner) -> None:
    """Claims the store; one that does not answer now is claimed before it is swept.

    Raises:
        StoreTaken: it belongs to another ledger.
    """
    try:
        claim(store, owner)
    except StoreTaken:
        raise
    except StoreError as error:
        log.warning("the store is not claimed yet: %s", error.what)


async def keep_swept(ledger: Ledger, store: ObjectStore, owner: Owner, after_s: float, clock: Clock) -> None:
    """Sweeps the store from time to time until cancelled: all of it at first, then where something was written.

    It takes at most a tenth of the time.

    Raises:
        StoreTaken: it is another ledger's by now; nothing was removed.
    """
    since: float | None = None
    while True:
        begun, older_than = time.monotonic(), clock.now() - after_s
        try:
            await asyncio.to_thread(claim, store, owner)
            removed = await asyncio.to_thread(sweep, ledger, store, older_than, since)
            unfinished = await asyncio.to_thread(store.sweep_unfinished, older_than)
        except StoreTaken:
            raise
        except (OSError, P3sError) as error:
            # What cannot be read or removed costs room, not results.
            log.error("the store was not swept: %s", error)
        else:
            since = older_than - _LONGEST_STAGE_S
            if removed or unfinished:
                log.info("swept %d orphans and %d unfinished objects", len(removed), unfinished)
        took_s = time.monotonic() - begun
        await asyncio.sleep(max(after_s / _SWEEPS_PER_AGE, took_s / _SWEEPING_SHARE - took_s))


async def keep_exported(ledger: Ledger, store: ObjectStore, clock: Clock, every_s: float = _EXPORT_EVERY_S) -> None:
    """Writes the journal to the store until cancelled: segments that are full, and what is older than a day."""
    while True:
        try:
            await asyncio.to_thread(export, ledger, store, spare_since=clock.now() - _OLDEST_LINE_S)
        except (OSError, P3sError) as error:
            # It stands in the ledger; the next time finds it.
            log.error("the journal was not exported: %s", error)
        await asyncio.sleep(every_s)


def _is_gone(holder: str) -> bool:
    host, _, pid = holder.rpartition(":")
    return is_this_machine(host) and pid.isdigit() and not psutil.pid_exists(int(pid))
