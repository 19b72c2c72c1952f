"""What is known about a unit or group, and what is answered to the question why (see `core.why`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.overrides import Controls, Override, Work
from p3s_prefect.core.views import ArrivalRow, GroupRow, StageRow, UnitRow

# --- what is known --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class StationCase:
    """The station, as whoever asks finds it."""

    trouble: str = ""
    """Why it does not answer; empty if it does."""
    remedy: str = ""
    slots: int | None = None
    """Its pilot slots; None where it does not answer."""
    started_at: float | None = None
    """When it started; None where it does not answer."""
    freshest_first: Mapping[str, float | None] = field(default_factory=dict)
    """The pipelines whose freshest units go first now, as declared or in overload. What would be late goes before them:
    what has a deadline before the moment that is given; None where there is none."""
    owed_until: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    """The stages, as ``pipeline/stage``, of which some that floors let in go before everything else now: in the order
    of their data, up to the one that was taken at the given moment, with the given number of its stage run."""


@dataclass(frozen=True, kw_only=True)
class Queued:
    """A stage run that waits for a slot, as the order of the queue needs it."""

    id: int
    sub_job_id: int
    pipeline: str
    stage: str
    per: str
    group: str
    data_id: str
    taken_at: float
    begun: bool
    """Whether a stage of its unit has begun."""
    u: float
    """The unit's number."""
    q: float
    """The share that could be let in so far."""
    is_asked: bool
    """Whether somebody asked for it by hand."""

    @property
    def left_out(self) -> bool:
        """Whether chance has left it out, in overload."""
        return self.u >= self.q and not self.is_asked


@dataclass(frozen=True, kw_only=True)
class Awaited:
    """An open stage run of a unit, for which a stage per group waits."""

    data_id: str
    stage: str
    state: str


@dataclass(frozen=True, kw_only=True)
class SubJobCase:
    """One sub-job of the data id."""

    unit: UnitRow
    u: float
    stream: str | None
    """Where its file arrived; None for a group."""
    others: tuple[tuple[int, str], ...] = ()
    """Number and state of its other passes, newest first."""
    awaited: tuple[Awaited, ...] = ()
    """Of a group: what of its units is open."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """All that is known about one data id at one moment."""

    at: float
    data_id: DataId
    group: GroupRow | None
    """The group that it is, or belongs to; None before anything of it arrived."""
    sub_jobs: tuple[SubJobCase, ...] = ()
    """Its newest pass in each pipeline."""
    arrivals: tuple[ArrivalRow, ...] = ()
    """The files that came for it, oldest first."""
    archives: tuple[str, ...] = ()
    """The archives in which its products, summary values, lineage and journal are."""
    standing: frozenset[str] = frozenset()
    """The streams in whose directory a file of its name stands, taken or not."""
    near: tuple[str, ...] = ()
    """Where nothing came for it: the known data ids that are most like it."""
    queue: tuple[Queued, ...] = ()
    """Everything that is queued."""
    running: Mapping[str, int]
    """Number of stage runs that are with the pilots, by pipeline."""
    controls: Controls
    stops: tuple[tuple[Override, float | None], ...] = ()
    """Where something of it expired: the commands that let things not start since it arrived, with their ends."""
    station: StationCase = StationCase()

    def work(self, unit: UnitRow, stage: str, work_class: str) -> Work:
        """A stage run as overrides look at it."""
        return Work(
            work_class=work_class,
            pipeline=unit.pipeline,
            stage=stage,
            group=DataId.parse(unit.group),
            unit=DataId.parse(unit.data_id) if unit.per == "unit" else None,
        )


# --- what is answered -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Reason:
    """One answer to the question why."""

    why: str
    """A sentence without its full stop."""
    rule: str = ""
    """The key of the experiment file, with its value, or the command that it follows from; empty if there is none."""
    release: str = ""
    """What would release it, or what to do; empty where nothing is to be done. Commands stand between backticks."""


@dataclass(frozen=True, kw_only=True)
class StageWhy:
    """A stage of a sub-job, and why it is in its state; the reason that matters most comes first."""

    stage: str
    state: str
    """That of the stage run; ``not begun`` for a stage per group before the group has closed."""
    since: float | None
    reasons: tuple[Reason, ...]


@dataclass(frozen=True, kw_only=True)
class SubJobWhy:
    """A sub-job, stage by stage."""

    data_id: str
    pipeline: str
    pass_number: int | None
    """None where there is no pass yet."""
    state: str
    others: tuple[tuple[int, str], ...]
    """Number and state of its other passes, newest first."""
    stages: tuple[StageWhy, ...]


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """Why a unit or group is as it is."""

    data_id: str
    at: float
    reasons: tuple[Reason, ...]
    """What is to be said about it as a whole: of a group, its closing; of a unit, what became of its files."""
    sub_jobs: tuple[SubJobWhy, ...]


def since(stage: StageRow) -> float | None:
    """When a stage run entered the state in which it is, as far as the ledger tells."""
    if stage.settled_at is not None:
        return stage.settled_at
    if stage.state == "running":
        return stage.attempts[-1].opened_at if stage.attempts else None
    return stage.queued_at if stage.state == "queued" else None


def units_named(names: Iterator[str], most: int = 5) -> str:
    """A list for people, cut where it gets long."""
    every = list(dict.fromkeys(names))
    more = len(every) - most
    return ", ".join(every[:most]) + (f" and {more} more" if more > 0 else "")
