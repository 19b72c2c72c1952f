"""Who may read the online buffer: the count is kept by the Dask scheduler, whom pilots and station have in common."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError
from threading import BoundedSemaphore, Lock
from typing import Any, TypeVar

import distributed

from p3s_prefect.core.buffer_limits import BufferLimits
from p3s_prefect.core.errors import StoreUnreachable

log = logging.getLogger(__name__)

_T = TypeVar("_T")
# Beyond what was asked for, until a scheduler that does not answer is given up.
_ANSWER_S = 5.0
# The last two where this process, or its connection, is being closed.
_NO_ANSWER = (OSError, TimeoutError, ValueError, RuntimeError, CancelledError)


class LocalLeases:
    """Counts the readers of this process alone."""

    def __init__(self) -> None:
        self._free: dict[int, BoundedSemaphore] = {}
        self._making = Lock()

    def acquire(self, limits: BufferLimits, timeout_s: float) -> bool:
        """See `BufferLeases.acquire`."""
        return self._of(limits).acquire(timeout=timeout_s)

    def release(self, limits: BufferLimits) -> None:
        """See `BufferLeases.release`."""
        self._of(limits).release()

    def _of(self, limits: BufferLimits) -> BoundedSemaphore:
        with self._making:
            return self._free.setdefault(limits.max_reads, BoundedSemaphore(limits.max_reads))


class DaskLeases:
    """Counts the readers of a whole cluster; to be called from threads other than that of Dask's event loop.

    `member` gives the worker or client through which the scheduler is asked. The scheduler forgets the leases of a
    process that died after half a minute.
    """

    def __init__(self, member: Callable[[], Any] = distributed.get_worker) -> None:
        self._member = member
        self._held: list[tuple[int, Any, distributed.Semaphore]] = []
        self._taking = Lock()

    def acquire(self, limits: BufferLimits, timeout_s: float) -> bool:
        """See `BufferLeases.acquire`."""
        try:
            member = self._member()
            semaphore = _semaphore(member, limits)
        except _NO_ANSWER as error:
            raise _unanswered(error) from error
        is_held = False
        try:
            is_held = bool(_ask(member, lambda: semaphore.acquire(timeout_s), timeout_s + _ANSWER_S))
        except _NO_ANSWER as error:
            raise _unanswered(error) from error
        finally:
            if not is_held:
                _refresh_no_more(member, semaphore)
        if is_held:
            with self._taking:
                self._held.append((limits.max_reads, member, semaphore))
        return is_held

    def release(self, limits: BufferLimits) -> None:
        """See `BufferLeases.release`; one that cannot be given back is forgotten as that of a dead process."""
        with self._taking:
            number = next(number for number, held in enumerate(self._held) if held[0] == limits.max_reads)
            _, member, semaphore = self._held.pop(number)
        try:
            _ask(member, semaphore.release, _ANSWER_S)
        except _NO_ANSWER as error:
            log.warning("a lease of the online buffer lapses, as it cannot be given back: %r", error)
        finally:
            _refresh_no_more(member, semaphore)


def _semaphore(member: Any, limits: BufferLimits) -> distributed.Semaphore:
    """One for each lease, which it refreshes in the event loop; those of the same name count together.

    Another number of reads has another name. Each registers itself, as the scheduler may be another one by now.
    """
    name = f"p3s-buffer-{limits.max_reads}"
    return distributed.Semaphore(limits.max_reads, name=name, scheduler_rpc=member.scheduler, loop=member.loop)


def _refresh_no_more(member: Any, semaphore: distributed.Semaphore) -> None:
    """The event loop would keep it, and with it a lease that nobody knows of, until the process ends."""
    # After its start, which is called there too. Where leases never lapse there is none.
    if (refreshing := getattr(semaphore, "refresh_callback", None)) is not None:
        member.loop.add_callback(refreshing.stop)


def _unanswered(error: BaseException) -> StoreUnreachable:
    return StoreUnreachable(
        f"the scheduler does not tell whether the online buffer may be read: {error or type(error).__name__}",
        fix="It is tried again; look whether the scheduler runs.",
    )


def _ask(member: Any, what: Callable[[], Coroutine[Any, Any, _T]], timeout_s: float) -> _T:
    """Called in the event loop, Dask's methods are asynchronous; called here, they would wait for ever."""

    async def ask() -> _T:
        return await what()

    asked = asyncio.run_coroutine_threadsafe(ask(), member.loop.asyncio_loop)
    try:
        return asked.result(timeout_s)
    finally:
        asked.cancel()
