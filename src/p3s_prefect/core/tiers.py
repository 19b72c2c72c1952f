"""Who is thinned first: stages in tiers, by priority, then by what they are worth for each second of a slot."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from p3s_prefect.core.flow import Flow, Load

# A later stage that is worth nearly as much as the one before is decided together with it, as complete units are worth
# more to people than pieces. 0.8 costs at most a tenth of the value; with means of 64 services, 0.9 would take stages
# that are equal for different now and then, and begin units that are not ended.
_AS_GOOD = 0.8
# Waiting times are planned such that nearly all services still end in time. The quantile that 64 of them can tell is
# the third longest; 3 times as far above the mean leaves room for it and for the error of the prediction. Measured in
# bursts of three times the capacity, deadline at 5 services: with 2.5 times twice as many are stopped, and 0.6 % less
# of the bound is reached; with 3.5 nothing is gained, as standby fills what a smaller backlog leaves. Where services
# spread so much that hardly any time is left then, half of what the quantile leaves is used.
QUANTILE = 0.98
_BEYOND = 3.0
# What of it is room for the error of the prediction was measured with 16 slots. As services that are waited for are
# spread over the slots, it falls with the square root of their number.
_MEASURED_SLOTS = 16
# What a floor owes a slot gets it when it would be late otherwise. It must not be as early as what is let in begins
# anyway, else it takes the turn of those that came before it, which are late then: so much of that room is left to it.
_OWED = 0.5
# A stage that comes later in its unit finds the pilots busy with what has just begun.
_AT_PILOTS = 0.5


@dataclass(slots=True, eq=False, kw_only=True)
class Tier:
    """Stages of one pipeline about which is decided at once, when its first one asks for a slot."""

    flow: Flow = field(repr=False)
    positions: tuple[int, ...]
    """The first one is where it is decided."""
    priority: int
    is_stopped: bool
    """Whether a command lets nothing of it start. Such a tier takes no slots from others."""
    is_cut_off: bool
    """Whether a command stops the stages before it, so that what waits for them does not come."""
    density: float
    """Value for each second of a slot."""
    work_s: Mapping[int, float]
    """Mean service time by position."""
    slack_s: float
    """How long a fresh unit may wait on average; infinite if nothing has a deadline."""
    in_time_s: float
    """How long it may wait so that it ends in time even if it takes long."""
    late_s: float
    """How long it takes if it takes long."""
    owed_beyond: float
    """How many times its spread the room is that is left to what a floor owes a slot."""
    above: tuple[Tier, ...] = field(default=(), repr=False)
    """Those that are thinned later than it, and whose work goes before."""
    beside: tuple[Tier, ...] = field(default=(), repr=False)
    """Those that are as good, itself included."""
    below: tuple[Tier, ...] = field(default=(), repr=False)
    slots: float = 1.0
    """Those that the tiers above leave to it."""
    drain: float = 1.0
    """Those that empty its queue: more than `slots` where a tier above goes after it (see `goes_before`)."""
    unsteady: float = 0.0
    """How much longer than predicted it may have to wait, for the square root of each second of waiting."""
    busy_s: float = 0.0
    """How long units must wait so that no slot idles."""
    starts_by_s: dict[tuple[Flow, int], float] = field(default_factory=dict, repr=False)
    """What `start_by_s` has found."""

    @property
    def first(self) -> int:
        """The position at which it is decided."""
        return self.positions[0]

    @property
    def head(self) -> Load:
        """The load of the stage at which it is decided."""
        return self.flow.loads[self.positions[0]]

    @property
    def sheds(self) -> bool:
        """Whether it is thinned at all."""
        return self.slack_s < math.inf and self.flow.plan.work_class.shed

    @property
    def unit_s(self) -> float:
        """Work that a unit brings which is let in here [s of a slot]."""
        stages, head = self.flow.plan.stages, self.positions[0]
        q = max(1e-9, min(self.head.q, stages[head].prescale))
        return sum(work * min(1.0, stages[position].prescale / q) for position, work in self.work_s.items())

    def queued_s(self) -> float:
        """Work that was let in and no pilot has begun [s of a slot]."""
        loads, work_s = self.flow.loads, self.work_s
        first = self.positions[0]
        total = loads[first].queued * work_s[first]
        for position in self.positions[1:]:
            load = loads[position]
            total += (load.queued + (0 if self.is_cut_off else load.waiting)) * work_s[position]
        return total

    def standby_s(self) -> float:
        """Work that chance has left out, and that goes before lower priorities all the same [s of a slot]."""
        return sum(self.flow.loads[position].standby * work for position, work in self.work_s.items())

    def goes_before(self, other: Tier) -> bool:
        """Whether its work is served before that of a tier below: of the same priority, what has begun goes first."""
        return self.priority > other.priority or self._has_begun >= other._has_begun

    @property
    def _has_begun(self) -> bool:
        return bool(self.flow.plan.stages[self.first].parents)

    def start_by_s(self, flow: Flow, position: int) -> float:
        """How old a unit may be when a stage of it begins so that what a floor owes a slot ends in time.

        `flow` is the one with which the unit began, whose deadlines it keeps, and `position` that of the stage there.
        """
        found = self.starts_by_s.get((flow, position))
        if found is None:
            stages, own = flow.plan.stages, {self.flow.plan.stages[one].name: work for one, work in self.work_s.items()}
            work_s = {
                one.position: own[one.name]
                for one in stages
                if one.name in own and (one.position == position or position in one.ancestors)
            }
            ends = _ends(flow, list(work_s), work_s)
            found = min((end.start_by_s(self.owed_beyond) for end in ends), default=math.inf)
            self.starts_by_s[flow, position] = found
        return found

    def shares(self, rate: float, reached: float) -> Iterable[tuple[float, float]]:
        """(Largest q that changes anything, work in a second at q = 1) for each stage; `rate` units ask for it."""
        stages = self.flow.plan.stages
        for position in self.positions:
            yield min(reached, stages[position].prescale), rate * self.work_s[position]


def make_tiers(flow: Flow, work_s: Sequence[float], slots: int) -> list[Tier]:
    """The tiers of a pipeline, from the mean service times of its stages and the slots; sets `flow.tiers`.

    A later stage never stands above the one that it follows: one that is worth as much, or has a higher priority,
    belongs to the tier of the stage before; not so where a command stops one of the two.
    """
    groups = _groups(flow, work_s)
    flow_tiers: list[Tier | None] = [None] * len(flow.plan.stages)
    tiers = []
    for positions in groups:
        tier = _tier(flow, positions, work_s, slots)
        tiers.append(tier)
        for position in positions:
            flow_tiers[position] = tier
    flow.tiers = tuple(flow_tiers)
    return tiers


def rank(tiers: Sequence[Tier]) -> list[Tier]:
    """Sorts tiers, the best first, and tells each which stand above and beside it.

    One that is stopped finds its place among all, for when it goes on; to the others it is not there.
    """
    ordered = _ranked(tiers)
    if any(tier.is_stopped for tier in tiers):
        _ranked([tier for tier in tiers if not tier.is_stopped])
    return ordered


def _ranked(tiers: Sequence[Tier]) -> list[Tier]:
    ordered = sorted(tiers, key=lambda tier: (-tier.priority, -tier.density))
    pools: list[list[Tier]] = []
    for tier in ordered:
        best = pools[-1][0] if pools else None
        if best is not None and best.priority == tier.priority and tier.density >= _AS_GOOD * best.density:
            pools[-1].append(tier)
        else:
            pools.append([tier])
    above: list[Tier] = []
    for pool in pools:
        for tier in pool:
            tier.above, tier.beside = tuple(above), tuple(pool)
        above += pool
    for tier in ordered:
        tier.below = tuple(ordered[len(tier.above) + len(tier.beside) :])
    return ordered


def _groups(flow: Flow, work_s: Sequence[float]) -> list[list[int]]:
    """Positions that are decided at once, each list in topological order."""
    stages = flow.plan.stages
    groups: dict[int, list[int]] = {stage.position: [stage.position] for stage in stages if stage.per == "unit"}
    of = {position: position for position in groups}
    # From the last to the first: what comes after is merged before its own parent is looked at.
    for stage in reversed(stages):
        if stage.per == "group" or not stage.parents:
            continue
        own = of[stage.position]
        if own != stage.position:
            continue
        before = of[max(stage.parents)]
        if _is_better(flow, groups[own], groups[before], work_s):
            for position in groups[own]:
                of[position] = before
            groups[before] = sorted(groups[before] + groups.pop(own))
    return list(groups.values())


def _is_better(flow: Flow, after: list[int], before: list[int], work_s: Sequence[float]) -> bool:
    if (after[0] in flow.stopped) != (before[0] in flow.stopped):
        return False
    if flow.priorities[after[0]] != flow.priorities[before[0]]:
        return flow.priorities[after[0]] > flow.priorities[before[0]]
    if not all(flow.loads[position].times for position in after):
        return True
    return _density(flow, after, work_s) >= _AS_GOOD * _density(flow, before, work_s)


def _density(flow: Flow, positions: Sequence[int], work_s: Sequence[float]) -> float:
    stages = flow.plan.stages
    value = sum(stages[position].value * stages[position].prescale for position in positions)
    work = sum(work_s[position] * stages[position].prescale for position in positions)
    return value / work if work > 0 else math.inf


def _tier(flow: Flow, positions: list[int], work_s: Sequence[float], slots: int) -> Tier:
    ends = list(_ends(flow, positions, work_s))
    beyond = 1 + (_BEYOND - 1) * min(1.0, math.sqrt(_MEASURED_SLOTS / max(1, slots)))
    return Tier(
        flow=flow,
        positions=tuple(positions),
        priority=flow.priorities[positions[0]],
        is_stopped=positions[0] in flow.stopped,
        is_cut_off=bool(flow.plan.stages[positions[0]].ancestors & flow.stopped),
        density=_density(flow, positions, work_s),
        work_s={position: work_s[position] for position in positions},
        slack_s=min((end.deadline_s - end.mean_s for end in ends), default=math.inf),
        in_time_s=min((end.wait_s(beyond) for end in ends), default=math.inf),
        late_s=max((end.mean_s + _BEYOND * end.spread_s for end in ends), default=0.0),
        owed_beyond=1 + _OWED * (beyond - 1),
    )


@dataclass(slots=True)
class _End:
    """A deadline on the way."""

    deadline_s: float
    mean_s: float
    """From the begin of the tier's first stage to the end of the one that has the deadline."""
    spread_s: float
    """By how much the quantile is above the mean."""

    def start_by_s(self, beyond: float) -> float:
        """How old a unit may be when the tier's first stage begins, with so many times the spread as room."""
        return self.deadline_s - self.mean_s - beyond * self.spread_s

    def wait_s(self, beyond: float) -> float:
        """How long a unit may wait before it begins, with so many times the spread as room."""
        left_s = self.deadline_s - self.mean_s
        return max(left_s - beyond * self.spread_s, (left_s - self.spread_s) / 2)


def _ends(flow: Flow, positions: Sequence[int], work_s: Sequence[float] | Mapping[int, float]) -> Iterable[_End]:
    """Along the critical path means add up, and what may come on top of them adds up in squares."""
    paths: dict[int, tuple[float, float]] = {}
    for position in positions:
        stage = flow.plan.stages[position]
        before = max((paths[parent] for parent in stage.parents if parent in paths), default=None)
        start, squares = (0.0, 0.0) if before is None else before
        mean = start + work_s[position] * (1 if before is None else 1 + _AT_PILOTS)
        squares += max(0.0, flow.loads[position].times.quantile_s(QUANTILE) - work_s[position]) ** 2
        paths[position] = mean, squares
        if stage.deadline_s < math.inf:
            yield _End(stage.deadline_s, mean, math.sqrt(squares))
