"""What happens to a station in virtual time: units arrive, groups close, pilots come and go, people act, things fail.

Times are seconds on the clock of the arrivals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.overrides import Controls
from p3s_prefect.core.records import Failure

ServiceTime = Callable[[str, str, DataId], float]
"""How long a pilot takes [s] for a pipeline's stage on a unit or group: ``(pipeline, stage, data_id) -> s``."""
Fate = Callable[[str, str, DataId, int], Failure | None]
"""How an attempt fails, None if it does not: ``(pipeline, stage, data_id, attempt) -> failure``, attempts from 1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UnitArrival:
    """A unit that arrives for a pipeline."""

    at: float
    taken_at: float
    pipeline: str
    group: DataId
    data_id: DataId
    first_q: float = 1.0
    """The share that its stream lets through."""


@dataclass(frozen=True, kw_only=True)
class GroupClosing:
    """A group that closes. What arrives for it later belongs to a new pass, which a later closing closes."""

    at: float
    group: DataId


@dataclass(frozen=True, kw_only=True)
class SlotChange:
    """From now on there are `slots` pilots. When there are fewer than before, what those that go had begun is lost."""

    at: float
    slots: int


@dataclass(frozen=True, kw_only=True)
class ControlChange:
    """From now on these overrides are in force."""

    at: float
    controls: Controls


@dataclass(frozen=True, kw_only=True)
class PartFault:
    """Some units' payloads fail for a while, such as those of one detector part."""

    when: Mapping[str, int | str]
    """Dimension values that must be equal."""
    failure: float = 1.0
    """Probability that a stage's payload fails that begins"""
    since: float = -math.inf
    """from this moment"""
    until: float = math.inf
    """to this one."""

    def hits(self, data_id: DataId, at: float) -> bool:
        """Whether a stage on this unit that begins now is concerned."""
        return self.since <= at < self.until and self.when.items() <= dict(data_id.items).items()


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What goes wrong, as a pure function of `seed`, stage run and attempt: `loss` + `failure` is at most 1."""

    loss: float = 0.0
    """Probability that a stage takes its pilot down with it, half-way. A new pilot is there at once."""
    failure: float = 0.0
    """Probability that a stage's payload fails, at its end."""
    parts: tuple[PartFault, ...] = ()
    """Where it fails more often: the largest probability counts."""
    seed: int = 0

    def failure_of(self, data_id: DataId, at: float) -> float:
        """Probability that a payload that begins now on this unit fails."""
        return max([self.failure, *(part.failure for part in self.parts if part.hits(data_id, at))])
