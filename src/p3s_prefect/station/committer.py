"""The station's only writer: what waits while one ledger commit is under way goes into the next, all in one."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from p3s_prefect.adapters.ledger.database import Lease, Ledger, newest_batch, note_batch
from p3s_prefect.core.errors import LedgerAway

log = logging.getLogger(__name__)

_T = TypeVar("_T")
_RETRY_S = 1.0
# A commit takes milliseconds. A server that was cut off without a word is given up after 11 s.
_PATIENCE_S = 5.0


@dataclass(slots=True)
class _Operation:
    write: Callable[[Connection], Any]
    done: asyncio.Future[Any] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


@dataclass(slots=True)
class _Batch:
    """What is committed together."""

    number: int
    operations: list[_Operation]
    answers: list[Any] | None = None
    """Known once all were carried out: whether they are committed, only the ledger knows then."""


class Committer:
    """Commits operations in the order in which they were handed in.

    Each stands in a savepoint of its own, so that one that raises is undone alone. A ledger that cannot be written is
    tried again until it can; `trouble` says so meanwhile. Where the connection was lost at the commit itself, the
    number of the batch, which is written with it, tells whether it was done: nothing is done twice.
    """

    def __init__(self, ledger: Ledger, lease: Lease) -> None:
        self._ledger = ledger
        self.lease = lease
        self._waiting: list[_Operation] = []
        self._wake = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._task: asyncio.Task[None] | None = None
        self._trouble = ""
        self._begun_at: float | None = None
        self.latency_s = 0.0
        self.lost: Exception | None = None

    @property
    def trouble(self) -> str:
        """Why the ledger cannot be written; empty if it can."""
        waited_s = 0.0 if self._begun_at is None else time.perf_counter() - self._begun_at
        if not self._trouble and waited_s > _PATIENCE_S:
            return f"the ledger has not answered for {waited_s:.0f} s"
        return self._trouble

    async def __aenter__(self) -> Committer:
        """Begins to commit."""
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Ends; whoever waits for an operation has waited, so nothing is under way."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._thread.shutdown()

    async def do(self, write: Callable[[Connection], _T]) -> _T:
        """Runs `write` inside the next transaction, and returns its answer when that is durable.

        Raises:
            LeaseLost: another station has taken over.
            Exception: whatever `write` raised; nothing of it was written.
        """
        if self.lost is not None:
            raise self.lost
        operation = _Operation(write)
        self._waiting.append(operation)
        self._wake.set()
        answer: _T = await operation.done
        return answer

    async def _run(self) -> None:
        loop, number = asyncio.get_running_loop(), 0
        while self.lost is None:
            await self._wake.wait()
            self._wake.clear()
            number += 1
            operations, self._waiting = self._waiting, []
            try:
                answers = await self._commit_until_done(loop, _Batch(number, operations))
            except Exception as error:
                # Nothing can be written any more: whoever waits, or comes, must know, or it would wait forever.
                self.lost = error
                operations += self._waiting
                answers = [error] * len(operations)
            for operation, answer in zip(operations, answers, strict=True):
                _resolve(operation.done, answer)

    async def _commit_until_done(self, loop: asyncio.AbstractEventLoop, batch: _Batch) -> list[Any]:
        while True:
            begun = self._begun_at = time.perf_counter()
            try:
                answers = await loop.run_in_executor(self._thread, self._commit, batch)
            except LedgerAway as error:
                self._trouble = error.what
                log.error("%s; trying again", self._trouble)
                await asyncio.sleep(_RETRY_S)
            else:
                self._trouble, self.latency_s = "", time.perf_counter() - begun
                return answers
            finally:
                self._begun_at = None

    def _commit(self, batch: _Batch) -> list[Any]:
        with self._ledger.transaction(self.lease) as connection:
            if batch.answers is None or newest_batch(connection, self.lease) != batch.number:
                batch.answers = [self._one(connection, operation) for operation in batch.operations]
                note_batch(connection, self.lease, batch.number)
            return batch.answers

    def _one(self, connection: Connection, operation: _Operation) -> Any:
        savepoint = connection.begin_nested()
        try:
            answer = operation.write(connection)
        except Exception as error:
            if isinstance(error, DBAPIError) and self._ledger.is_away(error):
                # Not the operation's fault: the whole batch is tried again.
                raise
            savepoint.rollback()
            return error
        savepoint.commit()
        return answer


def _resolve(done: asyncio.Future[Any], answer: Any) -> None:
    if done.cancelled():
        return
    if isinstance(answer, Exception):
        done.set_exception(answer)
    else:
        done.set_result(answer)
