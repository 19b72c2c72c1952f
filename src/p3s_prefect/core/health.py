"""Is all well? One row for each thing that a shift crew watches: what is normal, what is, why, and what to do."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from p3s_prefect.core.buffer_limits import BufferLimits
from p3s_prefect.core.overrides import BREAKER, Override, OverrideKind
from p3s_prefect.core.records import BufferUse

# One listing may fall into a busy moment; when three in a row are missing, listing has stopped.
LATE_LISTINGS = 3
# Units are usually done in seconds. LST-1 gives a subrun up 60 s after it was taken: told at half of that, there is
# still time to act before units are lost; told at 60 s, they are lost already.
LONG_WAIT_S = 30.0
# A commit takes 2 to 20 ms on a local disk; at half a second the disk, or what shares it, is in trouble.
SLOW_COMMIT_S = 0.5
# One unit in twenty may be damaged by itself; more have a cause in common. So have three that fail in a row, and when
# five in a row give nothing, the next will not either.
TOLERATED_LOSS = 0.05
FAILED_IN_A_ROW = 3
LOST_IN_A_ROW = 5
# Units that overload leaves out are given up about a deadline after they came; ten minutes bridge the pauses of bursts.
OVERLOAD_S = 600.0
# About ten minutes of results at 10 MB/s: enough to call somebody.
LOW_SPACE_BYTES = 6 * 10**9


class Status(StrEnum):
    """How bad it is."""

    OK = "ok"
    DEGRADED = "degraded"
    """Something is slower, or less, than it should be; data are still processed."""
    DOWN = "down"
    """It does not work."""


@dataclass(frozen=True, kw_only=True)
class HealthRow:
    """One thing that is watched. A row that is not ok names its cause and what to do."""

    name: str
    nominal: str
    actual: str
    status: Status
    cause: str = ""
    action: str = ""


@dataclass(frozen=True, kw_only=True)
class SourceFacts:
    """A stream's source as the station sees it."""

    stream: str
    directory: str
    list_every_s: float
    """Period of the full listing as it is now."""
    listed_at: float | None
    """End of the last full listing; None before the first."""
    incomplete: int = 0
    """Files that are seen but not complete, such as those without their marker."""
    problem: str = ""
    """Why it cannot be listed; empty if it can."""
    why_buffer: str = ""
    """Why it is the online buffer instead of the bucket; empty if it is not."""
    moved_at: float | None = None
    """When the stream moved here; None if it never moved."""


@dataclass(frozen=True, kw_only=True)
class BufferFacts:
    """The online buffer, and what was read there since the station started."""

    directory: str
    limits: BufferLimits
    use: BufferUse
    problem: str = ""
    """Why it cannot be read; empty if it can."""


@dataclass(frozen=True, kw_only=True)
class BreakerFacts:
    """A breaker that is not closed, for those who look."""

    pipeline: str
    state: str
    """``open`` or ``half-open``."""
    since: float
    why: str
    lift: str
    """The command that lets the pipeline run again."""
    canary_at: float | None
    """When one unit is let through, while it is open; None if only a command closes it."""


@dataclass(frozen=True, kw_only=True)
class StationFacts:
    """What the station knows about itself at one moment. `*_at` is UTC in seconds since 1970."""

    at: float
    started_at: float
    version: str
    state: str = "running"
    """``running`` or ``stopping``."""
    slots_nominal: int
    """Pilot slots that the experiment file asks for; 0 where an outer cluster decides."""
    slots_actual: int
    running: int
    """Stage runs that are with the pilots."""
    queued: int
    """Stage runs that wait for a slot."""
    oldest_taken_at: float | None = None
    """When the oldest data among them were taken, without those on standby; None if nothing else waits."""
    freshest_first: Mapping[str, float | None] = field(default_factory=dict)
    """The pipelines whose freshest units go first now, as declared or in overload. What would be late goes before them:
    what has a deadline before the moment that is given; None where there is none."""
    owed_until: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    """The stages, as ``pipeline/stage``, of which some that floors let in go before everything else now: in the order
    of their data, up to the one that was taken at the given moment, with the given number of its stage run."""
    sources: tuple[SourceFacts, ...] = ()
    store_url: str
    store_problem: str = ""
    """Why the store cannot be used; empty if it can."""
    store_free_bytes: int | None = None
    """Room on its disk; None where that has no meaning."""
    refused_records: int = 0
    """Commit records that the store does not take now,"""
    record_problem: str = ""
    """and why the first of them is refused; empty if there is none."""
    waiting_attempts: int = 0
    """Attempts whose outputs wait on the pilots' machines for the store,"""
    waiting_bytes: int = 0
    """and how much they are together."""
    commit_s: float = 0.0
    """Duration of the latest ledger commit; 0 before the first."""
    ledger_problem: str = ""
    """Why the ledger cannot be written; empty if it can."""
    breakers: tuple[BreakerFacts, ...] = ()
    """Those that are not closed."""
    is_supervised: bool | None = None
    """Whether what has started it, and would start it again, still lives; None if that is nobody of ours."""
    cache_hits: int = 0
    """Reads of the store since the start that the pilots' local caches served,"""
    cache_misses: int = 0
    """and those that they did not."""
    cache_problem: str = ""
    """Why a local cache could not be used; empty if all could."""
    buffer: BufferFacts | None = None
    """The online buffer; None where there is none."""


@dataclass(frozen=True, kw_only=True)
class KeptOut:
    """Files that were seen and kept out, counted over `window_s`."""

    refused: int
    conflicts: int
    window_s: float


@dataclass(frozen=True, kw_only=True)
class Outcomes:
    """How the sub-jobs ended that settled over `window_s`; those that were left out on purpose do not count."""

    done: int
    failed: int
    expired: int
    blocked: int
    shed: int = 0
    """Left out at random in overload."""
    by_hand: int = 0
    """Of those that were not, how many somebody had let in: chance had no part in them."""
    shed_s: float = math.inf
    """How long ago the last of these was given up."""
    latest: tuple[str, ...]
    """States of the last `LOST_IN_A_ROW`, newest first."""
    reason: str
    """Why the newest one that is not done is not; empty if all are."""
    window_s: float

    @property
    def lost(self) -> int:
        """Those that gave no result though they should."""
        return self.failed + self.expired + self.blocked


def health_rows(
    facts: StationFacts, kept_out: KeptOut, outcomes: Outcomes, given: Sequence[Override] = ()
) -> tuple[HealthRow, ...]:
    """All rows, in the order in which they are shown; `given` is what is in force by command."""
    # What breakers have set has rows of its own.
    by_hand = [one for one in given if one.by != BREAKER]
    return (
        *station_rows(facts, [one for one in by_hand if one.kind is not OverrideKind.PRIORITY]),
        arrivals(kept_out),
        results(outcomes),
        overload(outcomes),
        *(breaker(facts, one) for one in facts.breakers),
        *supervision(facts),
        *steering(by_hand),
    )


def station_rows(facts: StationFacts, stopped: Sequence[Override] = ()) -> tuple[HealthRow, ...]:
    """What the station knows without its ledger; `stopped` is what lets less start, by command."""
    return (
        pilots(facts),
        *(source(facts, stream) for stream in facts.sources),
        backlog(facts, stopped),
        store(facts),
        *commit_records(facts),
        *waiting_outputs(facts),
        *local_cache(facts),
        *online_buffer(facts),
        ledger(facts),
    )


def overall(rows: Iterable[HealthRow]) -> Status:
    """The worst of them."""
    order = list(Status)
    return max((row.status for row in rows), key=order.index, default=Status.OK)


START_STATION = "Start it with `p3s up`. What arrives meanwhile is found by its first listing."


def station_down(reason: str, action: str = START_STATION) -> HealthRow:
    """The row that stands for a station that does not answer."""
    return HealthRow(
        name="station",
        nominal="answers",
        actual="down",
        status=Status.DOWN,
        cause=reason,
        action=action,
    )


def supervision(facts: StationFacts) -> tuple[HealthRow, ...]:
    """A row if the supervisor is gone: everything works, until something dies."""
    if facts.is_supervised is not False:
        return ()
    row = HealthRow(name="supervisor", nominal="starts again what dies", actual="gone", status=Status.OK)
    cause = "the supervisor was killed: what dies now is not started again"
    action = "`p3s down` and then `p3s up`, when an interruption suits; what is queued stays queued."
    return (_bad(row, Status.DEGRADED, cause, action),)


def pilots(facts: StationFacts) -> HealthRow:
    """Slots that are there, against those that were asked for."""
    row = HealthRow(
        name="pilots",
        nominal=_slots(facts.slots_nominal) if facts.slots_nominal else "at least 1 slot",
        actual=f"{_slots(facts.slots_actual)}, {facts.running} in flight",
        status=Status.OK,
    )
    missing = facts.slots_nominal - facts.slots_actual
    if facts.slots_actual == 0:
        action = "Look at the pilots' log (`p3s up` restarts pilots that die); units wait until one is back."
        return _bad(row, Status.DOWN, "no pilot is connected to the scheduler", action)
    if missing > 0:
        cause = f"{missing} pilot slot{'s are' if missing > 1 else ' is'} missing"
        return _bad(row, Status.DEGRADED, cause, "Look at the pilots' log; work goes on with the rest.")
    return row


def source(facts: StationFacts, stream: SourceFacts) -> HealthRow:
    """Whether the stream's place is still being listed."""
    since = facts.started_at if stream.moved_at is None else stream.moved_at
    is_listed = stream.listed_at is not None and stream.listed_at >= since
    age_s = facts.at - (stream.listed_at if stream.listed_at is not None and is_listed else since)
    seen = f"listed {duration(age_s)} ago" if is_listed else "not listed yet"
    place = f"from the buffer for {duration(facts.at - since)}, " if stream.why_buffer else ""
    row = HealthRow(
        name=f"source {stream.stream}",
        nominal=f"listed every {duration(stream.list_every_s)}",
        actual=place + (f"{seen}, {stream.incomplete} incomplete" if stream.incomplete else seen),
        status=Status.OK,
    )
    if stream.problem:
        cause = " and ".join(filter(None, (stream.problem, stream.why_buffer)))
        return _bad(row, Status.DOWN, cause, f"Make {stream.directory} readable; listing goes on by itself.")
    if age_s > LATE_LISTINGS * stream.list_every_s + 1:
        action = f"Look whether the file system of {stream.directory} hangs (`ls` it)."
        return _bad(row, Status.DEGRADED, "the listing takes too long or hangs", action)
    if stream.why_buffer:
        action = "Look at the bucket's server, and at the way to it; input moves back by itself, and nothing is lost."
        return _bad(row, Status.DEGRADED, stream.why_buffer, action)
    return row


def backlog(facts: StationFacts, stopped: Sequence[Override] = ()) -> HealthRow:
    """How old the data are that wait for a slot; `stopped` is what lets less start, by command."""
    age_s = 0.0 if facts.oldest_taken_at is None else facts.at - facts.oldest_taken_at
    row = HealthRow(
        name="backlog",
        nominal=f"data younger than {duration(LONG_WAIT_S)}",
        actual=_queued(facts, age_s),
        status=Status.OK,
    )
    if age_s > LONG_WAIT_S and stopped:
        told = "; ".join(one.reason for one in stopped)
        action = "`p3s limits` shows how each is lifted."
        return _bad(row, Status.DEGRADED, f"a command lets less start: {told}", action)
    if age_s > LONG_WAIT_S:
        action = (
            "Look at the row `overload`, and at `commands` where there is one. If it grows: add pilots, or lower a "
            "prescale in the file."
        )
        return _bad(row, Status.DEGRADED, "work arrives faster than it is started", action)
    return row


def _queued(facts: StationFacts, age_s: float) -> str:
    if not facts.queued:
        return "nothing queued"
    oldest = "on standby" if facts.oldest_taken_at is None else f"oldest data {duration(age_s)} old"
    return f"{facts.queued} queued, {oldest}"


def store(facts: StationFacts) -> HealthRow:
    """Whether results can be kept."""
    free = facts.store_free_bytes
    room = "writable" if free is None else f"{size(free)} free"
    row = HealthRow(
        name="store",
        nominal="writable",
        actual="fails" if facts.store_problem else room,
        status=Status.OK,
    )
    if facts.store_problem:
        action = f"Make {facts.store_url} writable; publication is tried again."
        return _bad(row, Status.DOWN, facts.store_problem, action)
    if free is not None and free < LOW_SPACE_BYTES:
        return _bad(row, Status.DEGRADED, "the store's disk is nearly full", "Make room, or move the store.")
    return row


def commit_records(facts: StationFacts) -> tuple[HealthRow, ...]:
    """Whether the store is told what was published, as a rebuild needs it; nothing where it is."""
    number = facts.refused_records
    if not number:
        return ()
    row = HealthRow(name="commit records", nominal="written", actual=f"{number} refused", status=Status.OK)
    action = f"Look at {facts.store_url}; writing is tried again. What was published is in the ledger, and is shown."
    return (_bad(row, Status.DEGRADED, facts.record_problem, action),)


def waiting_outputs(facts: StationFacts) -> tuple[HealthRow, ...]:
    """How much waits on the pilots' machines for the store; nothing where none does."""
    number = facts.waiting_attempts
    if not number:
        return ()
    row = HealthRow(
        name="waiting outputs",
        nominal="none",
        actual=f"of {number} stage{'' if number == 1 else 's'}, {size(facts.waiting_bytes)} on the pilots' machines",
        status=Status.OK,
    )
    if facts.store_problem:
        action = "Start the store: they go there by themselves. Pilots go on while `pilots.waiting_bytes` has room."
        return (_bad(row, Status.DEGRADED, "the store cannot be reached", action),)
    action = "Nothing: they are on their way to the store. If it takes long, look at the pilots' logs."
    return (_bad(row, Status.DEGRADED, "they have waited for the store", action),)


def local_cache(facts: StationFacts) -> tuple[HealthRow, ...]:
    """How much of what pilots read of a store elsewhere was on their machines already; nothing where none is used."""
    reads = facts.cache_hits + facts.cache_misses
    if not reads:
        return ()
    row = HealthRow(
        name="local cache",
        nominal="serves what is read again",
        actual=f"served {facts.cache_hits} of {reads} reads ({100 * facts.cache_hits / reads:.0f} %)",
        status=Status.OK,
    )
    if facts.cache_problem:
        action = "Mend it, or name another place in `pilots.cache_directory`; the store is read meanwhile."
        return (_bad(row, Status.DEGRADED, facts.cache_problem, action),)
    return (row,)


def online_buffer(facts: StationFacts) -> tuple[HealthRow, ...]:
    """How much was read on the DAQ's own disk, within which limits, and whether it is there."""
    if facts.buffer is None:
        return ()
    limits, use = facts.buffer.limits, facts.buffer.use
    rate = "" if limits.bytes_per_s is None else f", {size(limits.bytes_per_s)}/s"
    waited = f", waited {duration(use.waited_s)} for one another" if use.waited_s else ""
    row = HealthRow(
        name="online buffer",
        nominal=f"at most {limits.max_reads} read{'' if limits.max_reads == 1 else 's'} at once{rate}",
        actual=f"{use.reads} files read, {size(use.bytes)}{waited}" if use.reads else "nothing read",
        status=Status.OK,
    )
    if facts.buffer.problem:
        action = f"Mount {facts.buffer.directory} where station and pilots run, readable for them."
        return (_bad(row, Status.DEGRADED, facts.buffer.problem, action),)
    return (row,)


def ledger(facts: StationFacts) -> HealthRow:
    """Whether the books can be kept, and how fast."""
    if facts.ledger_problem:
        return ledger_away(facts.ledger_problem)
    commit_s = facts.commit_s
    row = _ledger(f"commits in {duration(commit_s)}" if commit_s else "no commit yet")
    if commit_s > SLOW_COMMIT_S:
        return _bad(row, Status.DEGRADED, "the ledger's disk is slow", "Find out what else writes to that disk.")
    return row


def ledger_away(reason: str) -> HealthRow:
    """The row of a ledger that cannot be read or written now."""
    action = "Look whether its server runs, and whether its disk is full or read-only; the station tries again."
    return _bad(_ledger("fails"), Status.DOWN, reason, action)


def _ledger(actual: str) -> HealthRow:
    nominal = f"commits in less than {duration(SLOW_COMMIT_S)}"
    return HealthRow(name="ledger", nominal=nominal, actual=actual, status=Status.OK)


def arrivals(kept_out: KeptOut) -> HealthRow:
    """Files that were refused, or that contradict one that was taken."""
    within = f"in {duration(kept_out.window_s)}"
    row = HealthRow(
        name="arrivals",
        nominal=f"none kept out {within}",
        actual=f"{kept_out.refused} refused, {kept_out.conflicts} conflicting {within}",
        status=Status.OK,
    )
    if kept_out.refused or kept_out.conflicts:
        action = "See the list of files that were kept out: each has its reason (`p3s list arrivals --kept-out`)."
        return _bad(row, Status.DEGRADED, "files arrived that cannot be processed as they are", action)
    return row


def results(outcomes: Outcomes) -> HealthRow:
    """Whether units give results, or are lost."""
    within = f"in {duration(outcomes.window_s)}"
    counts = {"failed": outcomes.failed, "expired": outcomes.expired, "blocked": outcomes.blocked}
    lost = [f", {count} {state}" for state, count in counts.items() if count]
    row = HealthRow(
        name="results",
        nominal=f"at most {100 * TOLERATED_LOSS:g} % lost {within}",
        actual=f"{outcomes.done} done{''.join(lost)} {within}",
        status=Status.OK,
    )
    status = _lost(outcomes)
    if status is Status.OK:
        return row
    most = max(counts, key=lambda state: counts[state])
    cause = f"{outcomes.lost} of {outcomes.done + outcomes.lost} units gave no result; most of them {most}"
    newest = f"; the newest: {outcomes.reason}" if outcomes.reason else ""
    look = f"`p3s list units --state {most}` shows them."
    action = f"Add pilots, or lower a prescale in the experiment file; {look}" if most == "expired" else look
    return _bad(row, status, cause + newest, action)


def overload(outcomes: Outcomes) -> HealthRow:
    """Whether units are left out, as more arrive than can be processed in time; an overload that is over is told."""
    within = f"in {duration(outcomes.window_s)}"
    seen = outcomes.done + outcomes.lost + outcomes.shed - outcomes.by_hand
    last = f"{outcomes.shed} of {seen} units shed {within}, the last {duration(outcomes.shed_s)} ago"
    row = HealthRow(
        name="overload",
        nominal=f"no unit shed in {duration(OVERLOAD_S)}",
        actual=last if outcomes.shed else f"none shed {within}",
        status=Status.OK,
    )
    if outcomes.shed_s > OVERLOAD_S:
        return row
    cause = f"{100 * outcomes.shed / seen:.0f} % were left out at random, so that the others end in time"
    action = (
        "What is kept is weighted, so statistics stay honest. To keep more: add pilots, lower a prescale, or lift a "
        "limit (`p3s limits`). `p3s report coverage` shows where, `p3s list units --state standby` what may still be "
        "done, `p3s why UNIT` explains one."
    )
    return _bad(row, Status.DEGRADED, cause, action)


def _lost(outcomes: Outcomes) -> Status:
    if len(outcomes.latest) >= LOST_IN_A_ROW and "done" not in outcomes.latest:
        return Status.DOWN
    last = outcomes.latest[:FAILED_IN_A_ROW]
    in_a_row = len(last) == FAILED_IN_A_ROW and set(last) == {"failed"}
    if in_a_row or outcomes.lost > TOLERATED_LOSS * (outcomes.done + outcomes.lost):
        return Status.DEGRADED
    return Status.OK


def breaker(facts: StationFacts, found: BreakerFacts) -> HealthRow:
    """A pipeline that has paused itself."""
    since, when = duration(facts.at - found.since), ""
    if found.canary_at is not None:
        when = f" One stage is let through in {duration(max(0.0, found.canary_at - facts.at))}, to see whether it does."
    elif found.state == "half-open":
        when = " The next stage that ends decides whether it goes on by itself."
    return HealthRow(
        name=f"pipeline {found.pipeline}",
        nominal="runs",
        actual=f"{'paused itself' if found.state == 'open' else 'lets one stage at a time through'}, for {since}",
        status=Status.DOWN if found.state == "open" else Status.DEGRADED,
        cause=found.why,
        action=f"`p3s list units --state failed --pipeline {found.pipeline}` shows what failed, with reasons and logs. "
        f"When it is mended, `{found.lift}` lets the pipeline run again.{when}",
    )


def steering(given: Sequence[Override]) -> tuple[HealthRow, ...]:
    """What is in force by command, if anything is; what stops work is not normal, though somebody wants it."""
    if not given:
        return ()
    stopping = [one for one in given if one.stops]
    newest = (stopping or given)[-1]
    others = f", and {len(given) - 1} more" if len(given) > 1 else ""
    row = HealthRow(
        name="commands",
        nominal="nothing is stopped by hand",
        actual=f"{newest.effect}{others} in force",
        status=Status.OK,
    )
    if not stopping:
        return (row,)
    others = " `p3s limits` shows all." if len(given) > 1 else ""
    return (_bad(row, Status.DEGRADED, newest.reason, f"`{newest.lift}` lifts it.{others}"),)


def duration(seconds: float) -> str:
    """A duration for people: ``12 ms``, ``3.4 s``, ``5 min``, ``2 h``, ``3 d``."""
    if seconds < 1:
        return f"{max(0.0, seconds) * 1000:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    for limit, divisor, name in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{seconds / divisor:.0f} {name}"
    return f"{seconds / 86_400:.0f} d"


def size(size_bytes: float) -> str:
    """A size for people, in decimal units: ``12.3 GB``."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} PB"


def _slots(count: int) -> str:
    return f"{count} slot{'' if count == 1 else 's'}"


def _bad(row: HealthRow, status: Status, cause: str, action: str) -> HealthRow:
    return HealthRow(name=row.name, nominal=row.nominal, actual=row.actual, status=status, cause=cause, action=action)
