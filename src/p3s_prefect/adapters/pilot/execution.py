"""One execution of a stage: what it has gathered so far."""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from p3s_prefect.adapters.buffer_reader import BufferReader
from p3s_prefect.adapters.pilot.local_cache import LocalCache
from p3s_prefect.adapters.pilot.payload_process import PayloadProcess
from p3s_prefect.adapters.pilot.step import StepInput, StepOutput
from p3s_prefect.core.payload import Summary
from p3s_prefect.core.records import Lineage, ProductObject, StageOrder, StepTime


@dataclass(frozen=True, kw_only=True)
class Signature:
    """By what a change of a file is noticed; sizes in bytes, times in ns since 1970."""

    size: int
    mtime_ns: int
    inode: int


class Stopped(Exception):
    """Somebody asked for it."""


class DeadlinePassed(Exception):
    """It was killed at its deadline."""


@dataclass(slots=True)
class Execution:
    """Dask may execute an order twice, so each execution has an id, and a prefix in the store, of its own."""

    order: StageOrder
    scratch: Path
    buffer: BufferReader
    """For files in the online buffer."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])
    files: dict[str, StepInput] = field(default_factory=dict)
    arrived: dict[Path, Signature] = field(default_factory=dict)
    outputs: list[tuple[str, str, StepOutput]] = field(default_factory=list)
    products: list[ProductObject] = field(default_factory=list)
    summary: Summary = field(default_factory=dict)
    lineage: list[Lineage] = field(default_factory=list)
    steps: list[StepTime] = field(default_factory=list)
    process: PayloadProcess | None = None
    cache: LocalCache | None = None
    """For objects of a store that is not on this machine."""
    stopped: bool = False
    started_at: float = field(default_factory=time.time)
    _began: float = field(default_factory=time.monotonic)

    def now(self) -> float:
        """The time [s since 1970] by the clock with which it started: a step of it changes no duration."""
        return self.started_at + time.monotonic() - self._began

    @property
    def directory(self) -> Path:
        """Where its files are until they are in the store; removed with it."""
        return self.scratch / f"{self.order.attempt_id}-{self.id}"

    @property
    def log(self) -> Path:
        """What the steps have printed."""
        return self.directory / "log.txt"

    def step_directory(self, step: str) -> Path:
        """The working directory of a step, apart from what else is here, whatever the step's name."""
        return self.directory / "steps" / step

    def room_for(self, name: str) -> Path:
        """Where a copy of a file that arrived goes, under its own name."""
        place = self.directory / "arrived" / uuid.uuid4().hex
        place.mkdir(parents=True)
        return place / name

    @property
    def prefix(self) -> str:
        """Where its objects go."""
        return f"{self.order.prefix}/{self.id}"


def suffix(form: str) -> str:
    """The file-name ending of a format."""
    return {"text": ".txt", "file": ""}.get(form, f".{form}")
