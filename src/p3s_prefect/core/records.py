"""Records that pass between rooms. `*_at` is UTC in seconds since 1970, `*_s` a duration in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict

from p3s_prefect.core.buffer_limits import BufferLimits
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.experiment import Format, Step
from p3s_prefect.core.payload import Product, Summary
from p3s_prefect.core.states import StageState

# --- arrival ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, eq=False)
class Identity:
    """What makes a file the one that arrived: its key with size [bytes] and modification time [ns since 1970].

    An object in a bucket is told by its key and ETag alone, as it may be uploaded again with the same bytes.
    """

    key: str
    size: int
    mtime_ns: int
    etag: str = ""
    """Empty for a file in a directory."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Identity) and self._told_by == other._told_by

    def __hash__(self) -> int:
        return hash(self._told_by)

    @property
    def _told_by(self) -> tuple[object, ...]:
        return (self.key, self.etag) if self.etag else (self.key, self.size, self.mtime_ns)


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """A complete file of a stream."""

    stream: str
    dataset_type: str
    path: str
    identity: Identity
    data_id: DataId
    arrived_at: float
    sha256: str | None = None
    """Known beforehand only where a manifest told it, or where it was computed to settle a conflict."""

    @property
    def taken_at(self) -> float:
        """When the data were taken: the file's modification time, or the arrival where a clock runs ahead."""
        return min(self.identity.mtime_ns / 1e9, self.arrived_at)


class Verdict(StrEnum):
    """What became of an arrival."""

    TAKEN = "taken"
    IGNORED = "ignored"
    """No pipeline wants it."""
    SAME = "same"
    """The same bytes again under a changed identity; nothing to do."""
    CONFLICT = "conflict"
    """Another content for a unit that was already taken; kept out, and shown."""
    REFUSED = "refused"
    """It cannot be a unit: a wrong name, or a manifest that does not fit."""


# --- what the dispatcher is told ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class StageFact:
    """A stage run as the ledger has it."""

    id: int
    stage: str
    state: StageState
    q: float = 1.0
    """Probability of having reached it, as it was decided so far."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SubJobFact:
    """An open sub-job with all its stage runs."""

    id: int
    pass_id: int
    pipeline: str
    data_id: DataId
    group: DataId
    per: Literal["unit", "group"]
    taken_at: float
    u: float = 0.0
    """The unit's number, which is compared with every q; 0, as of a group, is never left out."""
    is_asked: bool = False
    """Whether somebody asked for it by hand: it does not stand by, though chance may have left it out."""
    stages: tuple[StageFact, ...]
    earlier_passes: tuple[int, ...] = ()
    """For a group's sub-job: the earlier passes of its job, whose units it gathers too."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Transition:
    """A stage run's change of state, written as a compare-and-set.

    Where `new` is `old`, only `q` changes, and the reason where one is given.
    """

    stage_run_id: int
    old: StageState
    new: StageState
    reason: str = ""
    q: float | None = None
    """Probability of having reached the stage, where it was decided anew."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Thinning:
    """How a stage stands in overload."""

    pipeline: str
    stage: str
    arrival_rate: float
    """Units that ask for it [1/s], before any are left out."""
    service_s: float | None
    """How long it takes a slot; None before the first has ended."""
    wait_s: float
    """How long what is let in now will wait."""
    q: float
    """The share that is let in; 1 if nothing is left out."""


# --- what a pilot is given, and gives back ------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class BufferPlace:
    """Where the bytes of a file that arrived are, or may be, in the online buffer."""

    path: str
    limits: BufferLimits
    bucket: str | None = None
    """URL of the same object in the bucket; None where the stream has none."""
    is_first: bool = False
    """Whether it is read in the buffer even while the bucket can be reached."""


@dataclass(frozen=True, kw_only=True)
class InputFile:
    """One file that a stage reads: in the store (`key`), or where it arrived (`path`)."""

    dataset_type: str
    format: Format
    data_id: DataId
    key: str | None = None
    path: str | None = None
    size: int
    mtime_ns: int | None = None
    etag: str = ""
    """Of an object that arrived in a bucket, where `path` is its URL."""
    buffered: BufferPlace | None = None
    """Of a file that arrived, where its stream has files in the online buffer; `path` is one of the two places."""
    sha256: str | None = None
    dataset_id: int | None = None
    is_gathered: bool = False
    """Whether it is one unit's file among those that a stage per group gathers."""


@dataclass(frozen=True, kw_only=True)
class StageOrder:
    """Everything that a pilot needs to run one attempt of a stage."""

    attempt_id: int
    stage_run_id: int
    data_id: DataId
    per: Literal["unit", "group"]
    pipeline: str
    stage: str
    collection: str
    prefix: str
    steps: tuple[Step, ...]
    formats: Mapping[str, Format]
    """Format of every dataset type that the steps name."""
    inputs: tuple[InputFile, ...]
    store_url: str
    coverage: Mapping[str, int]
    """For a stage per group: the number of its units by state; empty for a unit."""
    weights: Mapping[str, Mapping[DataId, float]] = field(default_factory=dict)
    """For a stage per group: gathered dataset type -> unit -> how many it stands for; see `core.payload`."""
    cache_directory: str | None = None
    """Where a pilot's machine keeps objects of a store that is elsewhere; None for the usual place."""
    cache_bytes: int = 0
    """The most that it keeps there; 0 for none."""
    waiting_directory: str | None = None
    """Where outputs wait on a pilot's machine for a store that is away; None for the usual place."""
    waiting_bytes: int = 0
    """The most that may wait there; 0 for none."""
    stop_at: float | None = None
    """Killed at this moment, where the stage is stopped at its deadline."""

    @property
    def budget_s(self) -> float:
        """The longest that its steps may take together."""
        return sum(step.timeout_s for step in self.steps)


class _Wire(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class PublishedObject(_Wire):
    """An object of an attempt in the store."""

    key: str
    size: int
    sha256: str


class OutputObject(PublishedObject):
    """An output: it becomes a dataset."""

    dataset_type: str
    format: Format


class ProductObject(PublishedObject):
    """A product: worth a look."""

    step: str
    product: Product


class Lineage(_Wire):
    """What was read: a dataset or an arrived file, with the checksum of the bytes that were read."""

    dataset_type: str
    data_id: str
    sha256: str
    dataset_id: int | None = None


class StepTime(_Wire):
    """When a step ran."""

    step: str
    started_at: float
    ended_at: float


class Manifest(_Wire):
    """What one execution of an attempt left in the store. It is written last: where it stands, all it names does."""

    attempt_id: int
    execution: str
    collection: str
    data_id: str
    stage: str
    outputs: list[OutputObject]
    products: list[ProductObject]
    summary: Summary
    lineage: list[Lineage]
    coverage: dict[str, int]
    steps: list[StepTime]
    log: PublishedObject | None
    pilot: str
    started_at: float
    ended_at: float


class Failure(StrEnum):
    """Why an execution gave no results."""

    PAYLOAD = "payload"
    """A step's own code failed."""
    TIMEOUT = "timeout"
    """A step was killed at its limit."""
    DEADLINE = "deadline"
    """The stage was killed at its deadline."""
    INPUT = "input"
    """An input is missing, changed or corrupt: trying again will not help."""
    STORE = "store"
    """The store could not be read or written."""
    AWAY = "away"
    """The store, or the bucket from which data come, could not be reached: no fault of the unit's."""
    DISTURBED = "disturbed"
    """The store, or that bucket, answers and cannot serve something now: an outage, or that object's own trouble."""
    STOPPED = "stopped"
    """It was killed because somebody asked for it."""


@dataclass(frozen=True, kw_only=True)
class WaitingPlace:
    """Where pilots' machines keep outputs that wait for a store."""

    store_url: str
    directory: str | None
    """As an order says it."""


@dataclass(frozen=True, kw_only=True)
class WaitingTold:
    """What pilots tell of the outputs that wait on their machines for a store."""

    sizes: Mapping[str, int] = field(default_factory=dict)
    """In bytes, by the prefix of the attempt."""
    unreadable: Mapping[str, int] = field(default_factory=dict)
    """In bytes, by the execution, where the disk does not let anybody read whose they are."""
    given_up: Mapping[str, str] = field(default_factory=dict)
    """Why the store can never take them, by the prefix of the attempt: they wait no more."""

    def and_those(self, other: WaitingTold) -> WaitingTold:
        """With what another pilot has told; all pilots of a machine tell the same."""
        return WaitingTold(
            sizes={**self.sizes, **other.sizes},
            unreadable={**self.unreadable, **other.unreadable},
            given_up={**self.given_up, **other.given_up},
        )


@dataclass(frozen=True, kw_only=True)
class CacheUse:
    """How often the pilots' local cache had what a stage reads."""

    hits: int = 0
    misses: int = 0
    trouble: str = ""
    """Why it could not be used; empty if it could."""

    def and_then(self, later: CacheUse) -> CacheUse:
        """Both together, with the trouble that is there now."""
        is_silent = not later.hits + later.misses
        trouble = self.trouble if is_silent else later.trouble
        return CacheUse(hits=self.hits + later.hits, misses=self.misses + later.misses, trouble=trouble)


@dataclass(frozen=True, kw_only=True)
class BufferUse:
    """What was read from the online buffer."""

    reads: int = 0
    """Files that were read to their ends."""
    bytes: int = 0
    waited_s: float = 0.0
    """How long they waited for others to have read, all together."""

    def and_then(self, later: BufferUse) -> BufferUse:
        """Both together."""
        return BufferUse(
            reads=self.reads + later.reads,
            bytes=self.bytes + later.bytes,
            waited_s=self.waited_s + later.waited_s,
        )


@dataclass(frozen=True, kw_only=True)
class StageReport:
    """What a pilot hands back: descriptions, not bytes."""

    attempt_id: int
    stage_run_id: int
    execution: str
    pilot: str
    started_at: float
    ended_at: float
    manifest: Manifest | None = None
    waits: bool = False
    """Whether what the manifest names, or it itself, waits on the pilot's machine for the store."""
    failure: Failure | None = None
    reason: str = ""
    log: PublishedObject | None = None
    steps: tuple[StepTime, ...] = ()
    cache: CacheUse = CacheUse()
    buffer: BufferUse = BufferUse()

    @property
    def service_s(self) -> float | None:
        """How long the slot was busy with the stage; None where what it needs was away, as that tells nothing of it.

        Who finds it away gives up within milliseconds: in an outage, stages would seem to take hardly any time.
        """
        return None if self.failure in (Failure.AWAY, Failure.DISTURBED) else self.ended_at - self.started_at
