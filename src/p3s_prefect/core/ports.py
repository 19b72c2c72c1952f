"""The doors through which input and output enter: small protocols, which tests can stand in for.

The ledger has no protocol: its rules are SQL, and an in-memory SQLite database runs them faster than a fake would.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from p3s_prefect.core.buffer_limits import BufferLimits
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.records import Arrival, PublishedObject, StageOrder, StageReport, WaitingTold


class Clock(Protocol):
    """The time."""

    def now(self) -> float:
        """UTC in seconds since 1970."""
        ...


@dataclass(frozen=True, kw_only=True)
class ObjectInfo:
    """An object as a listing shows it."""

    key: str
    size: int
    modified_at: float


class ObjectStore(Protocol):
    """The central store: objects under keys, written once and never changed."""

    url: str

    def put_file(self, key: str, path: Path) -> PublishedObject:
        """Stores a file's bytes; all of them are durable when it returns, and none are seen before.

        Raises:
            ObjectExists: other bytes are already there. The same bytes again are no error.
        """
        ...

    def put_bytes(self, key: str, content: bytes) -> PublishedObject:
        """Stores these bytes; see `put_file`."""
        ...

    def read_bytes(self, key: str) -> bytes:
        """The object's bytes.

        Raises:
            ObjectMissing: there is none.
        """
        ...

    def fetch(self, key: str, scratch: Path, sha256: str) -> Path:
        """A local file with the object's bytes, verified; it may be the store's own and must not be changed.

        Raises:
            ObjectMissing: there is none.
            ChecksumMismatch: its bytes are not those that were published.
        """
        ...

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """All objects whose keys begin with `prefix`; what is below one ``/`` comes together.

        Otherwise the order is the store's own: some servers sort whole keys, others each part.
        """
        ...

    def delete(self, key: str) -> None:
        """Removes an object; one that is not there is no error."""
        ...

    def sweep_unfinished(self, older_than: float) -> int:
        """Removes what writers that died have left half-written and unseen before `older_than`; returns how many.

        `older_than` is UTC in seconds since 1970.
        """
        ...

    def free_bytes(self) -> int | None:
        """How much room is left; None where the store does not tell."""
        ...


class PilotLost(Exception):
    """The pilot that ran a stage is gone, or was given up; with `by_stage` the stage may have been the cause."""

    def __init__(self, reason: str, *, by_stage: bool) -> None:
        super().__init__(reason)
        self.by_stage = by_stage


class PilotPool(Protocol):
    """Slots that run stages handed to them just in time."""

    async def run(self, order: StageOrder, *, priority: int, patience_s: float) -> StageReport:
        """Runs one attempt of a stage on some pilot, which is given up if it has not answered after `patience_s`.

        The time in which it waits for the online buffer, or reads it, does not count.

        Raises:
            PilotLost: the pilot died, or did not answer in time. Whether the stage had ended is not known.
        """
        ...

    async def stop(self, attempt_id: int) -> None:
        """Kills a running attempt; its report then says that it was stopped. One that is not running is no error."""
        ...

    async def waiting(self) -> WaitingTold | None:
        """What waits on the pilots' machines for the store; None where not everybody who may know has answered."""
        ...

    async def drop_waiting(self, prefixes: Collection[str]) -> None:
        """What waits of these attempts matters no more; who does not hear it takes it to the store: it is swept."""
        ...

    def slots(self) -> int:
        """How many slots there are now."""
        ...


class BufferLeases(Protocol):
    """Counts who reads the online buffer, so that there are never more readers than its limits allow."""

    def acquire(self, limits: BufferLimits, timeout_s: float) -> bool:
        """Whether the caller may read now; waits so long for others to end. Each that may gives it back by `release`.

        Raises:
            StoreUnreachable: whoever keeps the count does not answer.
        """
        ...

    def release(self, limits: BufferLimits) -> None:
        """Gives back what was acquired."""
        ...


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A file that cannot be a unit, and why."""

    stream: str
    key: str
    path: str
    size: int
    mtime_ns: int
    etag: str = ""
    reason: str


@dataclass(frozen=True, kw_only=True)
class MarkerSeen:
    """A group's marker stood in the watched place before a listing that has now ended."""

    group: DataId
    name: str


Seen = Arrival | Refusal | MarkerSeen


class ArrivalSource(Protocol):
    """Where data arrive."""

    def arrivals(self) -> AsyncGenerator[Seen, None]:
        """What is new or was not settled yet; what has been told may be told again."""
        ...
