"""How much is let in when more arrives than can be processed in time: the admission probability q.

As active queue management does, it steers the time that what is let in now will wait to a target that still lets it
end in time; but where a router feels its way by the queue alone, arrival rate and service times are measured here, so
that q is right at once, without the lag from which oscillation comes::

    q = (slots + draining slots (target - predicted) / horizon) / (arrival rate x service time)

At the target as much is let in as is served. With too little work ahead q is 1, so that no slot idles and fluctuations
at a load below 1 leave nobody out; with too much it falls to its least value. Where the freshest go first a backlog is
behind them, and gets a part of the slots only (see `_share_of_backlog`).

Water is filled in by tiers (see `tiers`): the slots of a tier are those that the tiers above leave to it. More may
drain what it has let in: a later stage goes before the first stages of new units, even of those in a tier above.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from p3s_prefect.core.admission import Admission
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.experiment import Order
from p3s_prefect.core.flow import Flow, Load
from p3s_prefect.core.open_work import Run
from p3s_prefect.core.overruling import Overruling
from p3s_prefect.core.plan import Plan, PlannedStage
from p3s_prefect.core.records import Thinning
from p3s_prefect.core.states import StageState
from p3s_prefect.core.tiers import QUANTILE, Tier, make_tiers, rank

# q is never 0, as what could never be chosen cannot be weighted: at most one unit of a thousand is let in for nothing,
# and no weight is above a thousand.
LEAST_Q = 0.001
# The time in which q brings the waiting time back to its target, as a share of what a unit can wait: a shorter one
# makes q follow single events, a longer one overshoots when the load steps.
_HORIZON = 0.25
# The slots that the tiers above always leave to the next one, so that a prediction stays finite.
_LEAST_SLOTS = 0.02
# A pipeline counts as overloaded when of all that asks less than the first share can be served, until it is more than
# the second.
_OVERLOAD = 0.9
_CALM = 0.98
# A slot becomes free once in so many service times over slots, on average; what must not be late reckons with more.
_TURNS = 2.0
# Estimates are looked at again after so many services, or this part of a horizon.
_SERVICES = 4
_PART_OF_HORIZON = 0.1


class Controller:
    """Measures what arrives and how long it takes, and sets the admission probability."""

    def __init__(self, overruling: Overruling) -> None:
        self._overruling = overruling
        self.in_flight = 0
        self.is_turned = False
        """Whether a pipeline has become overloaded, or is so no more, since somebody looked."""
        self.slots = 0
        """Those of the pilots; while there are none, the last that there were."""
        self.version = 0
        """Grows when slots, plans, limits or commands change."""
        self._loads: dict[tuple[str, str], Load] = {}
        self._flows: dict[Plan, Flow] = {}
        self._newest: dict[str, Flow] = {}
        self._tiers: list[Tier] = []
        self._measured = 0
        self._arranged_at = -math.inf
        self._stale_after_s = 0.0
        self._likely_s = 0.0
        """The mean service time of a stage of which nothing is known."""
        self._is_new = False
        self._limits: Mapping[str, float] = {}

    def define(self, plans: Mapping[str, Plan], limits: Mapping[str, float]) -> None:
        """These plans, limits by pipeline, and the commands in force are those of what comes from now on."""
        known = self._flows
        self._flows = {plan: known.get(plan) or self._make_flow(plan) for plan in plans.values()}
        self._newest = {plan.name: flow for plan, flow in self._flows.items()}
        for plan, flow in self._flows.items():
            flow.priorities = tuple(self._overruling.stage_priority(plan, stage) for stage in plan.stages)
            stopped = (stage.position for stage in plan.stages if self._overruling.is_stage_stopped(plan, stage))
            flow.stopped = frozenset(stopped)
        self._limits = limits
        self.version += 1
        self._arrange(self._arranged_at)

    def flow(self, plan: Plan) -> Flow:
        """The flow of a plan."""
        return self._flows[plan]

    def set_slots(self, slots: int) -> None:
        """There are so many slots. While there are none, what is known of the last ones counts."""
        if slots not in (0, self.slots):
            self.slots = slots
            self.version += 1
            for load in self._loads.values():
                load.times.keep(slots)
            self._arrange(self._arranged_at)

    def measured(self, flow: Flow, stage: PlannedStage, service_s: float, *, is_done: bool) -> None:
        """A service has ended."""
        times = flow.loads[stage.position].times
        self._measured += 1 if times else _SERVICES
        times.add(service_s, is_done=is_done)

    def count_offer(self, pipeline: str, admission: Admission, by: int) -> None:
        """Counts what was offered as work that waits."""
        for stage in admission.stages:
            if admission.u >= stage.q:
                continue
            if stage.state is StageState.QUEUED:
                self._loads[pipeline, stage.stage].queued += by
            elif stage.state is StageState.WAITING:
                self._loads[pipeline, stage.stage].waiting += by

    def admit(self, plan: Plan, data_id: DataId, *, first_q: float, taken_at: float, now: float) -> Mapping[int, float]:
        """The share that is let in, by position, at the stages where it is decided now."""
        self._look(now)
        floor = plan.floor(data_id)
        tiers = self._flows[plan].tiers
        kept = {}
        for position in plan.roots:
            tier = tiers[position]
            assert tier is not None  # noqa: S101 -- every stage per unit has one
            kept[position] = self._let_in(tier, position, first_q, floor, taken_at, now)
        return kept

    def thin(self, run: Run, q: float, now: float) -> float:
        """The probability of a stage that has become ready, of a unit that got so far with `q`."""
        self._look(now)
        found = self._place(run)
        if found is None:
            return q
        sub_job = run.sub_job
        floor = sub_job.flow.plan.floor(sub_job.data_id)
        return min(q, self._let_in(*found, q, floor, sub_job.taken_at, now))

    def overfull(self, now: float) -> dict[Tier, float]:
        """Tiers that have let in more than can still end in time, as slots are gone or services take longer.

        Each with the share of its queue that can be kept. Asked again with the same estimates, there are none.
        """
        self._look(now)
        if not (self._is_new and self.slots):
            return {}
        self._is_new = False
        return {
            tier: share
            for tier in self._tiers
            if tier.sheds and tier.head.queued and (share := self._kept_share(tier, now)) < 1
        }

    def in_tier(self, run: Run, tier: Tier) -> bool:
        """Whether a queued run stands in a tier at the point where it is decided."""
        return self._place(run) == (tier, tier.first)

    def rescued_before(self, plan: Plan, now: float) -> float:
        """Where fresh ones go first: what has a deadline before this moment goes before them, else it would be late.

        Minus infinity where more was let in than can end in time.
        """
        tier = self._flows[plan].first
        if tier is None or tier.slack_s == math.inf or not self.slots:
            return -math.inf
        wait_s = self._wait_s(tier)
        return now + wait_s + tier.late_s if wait_s <= tier.slack_s else -math.inf

    @property
    def free_s(self) -> float:
        """How long it takes until one of what is with the pilots has ended, and a slot is free."""
        ends_per_s = sum(load.in_flight / load.times.mean_s for load in self._loads.values() if load.times.mean_s)
        # Of what is short some is handed out before a slot is free.
        serving = min(1.0, self.slots / self.in_flight) if self.in_flight else 1.0
        return _TURNS / (ends_per_s * serving) if ends_per_s and serving else 0.0

    def start_by_s(self, run: Run) -> float:
        """How old a unit may be when a run of its stage begins so that it ends in time.

        As long as none of the stage was done, minus infinity, and infinity if one has begun or will next.
        """
        flow, load, found = run.sub_job.flow, run.load, self._place(run)
        if not load.times.is_known:
            return math.inf if load.begun or load.first_at_pilots else -math.inf
        start_by_s = math.inf if found is None else found[0].start_by_s(flow, run.stage.position)
        return start_by_s if start_by_s < math.inf else run.stage.deadline_s - load.times.quantile_s(QUANTILE)

    @staticmethod
    def is_known(run: Run) -> bool:
        """Whether a run of its stage was done."""
        return run.load.times.is_known

    @staticmethod
    def mean_s(run: Run) -> float:
        """The mean service time of a run's stage."""
        return run.load.times.mean_s

    def last_begin(self, run: Run) -> float:
        """The moment after which a run would hardly end in time: that and its mean service time before it is needed."""
        return run.sub_job.taken_at + run.stage.needed_in_s - run.load.times.mean_s

    def is_overloaded(self, plan: Plan) -> bool:
        """Whether units of the pipeline are thinned, and have been for a while."""
        return any(tier is not None and tier.head.overloaded for tier in self._flows[plan].tiers)

    def thinning(self) -> list[Thinning]:
        """How each stage stands."""
        return [
            Thinning(
                pipeline=tier.flow.plan.name,
                stage=tier.flow.plan.stages[position].name,
                arrival_rate=tier.flow.loads[position].asked.at(self._arranged_at),
                service_s=tier.work_s[position] or None,
                wait_s=tier.head.wait_s,
                q=tier.head.q,
            )
            for tier in self._tiers
            for position in tier.positions
        ]

    # --- the decision ---------------------------------------------------------------------------------------------

    def _let_in(self, tier: Tier, position: int, reached: float, floor: float, taken_at: float, now: float) -> float:
        load = tier.flow.loads[position]
        load.asked.add(1 / reached, now)
        load.asked_long.add(1 / reached, now)
        load.reached.add(1.0, now)
        if floor:
            load.owed.add(min(1.0, floor / reached), now)
        q = 1.0
        if position == tier.positions[0] and self.slots and tier.sheds:
            q = self._share(tier, load, taken_at, now)
            if q < floor:
                load.lifted.add(max(0.0, min(floor, reached) - q) / reached, now)
                q = floor
        load.kept.add(min(1.0, q / reached, tier.flow.plan.stages[position].prescale / reached), now)
        return q

    def _share(self, tier: Tier, head: Load, taken_at: float, now: float) -> float:
        """The q of a unit that was taken at `taken_at`."""
        wait_s = self._wait_s(tier)
        head.wait_s = max(0.0, wait_s)
        age_s = max(0.0, now - taken_at)
        if tier.slack_s <= age_s:
            return 1.0  # It will be late whatever is decided: that is no choice by chance.
        head.age_s += (age_s - head.age_s) / _SERVICES
        asked = self._asked_for(tier, now)
        more = self._more(tier, tier.drain * (self._target_s(tier, head, age_s) - wait_s), asked, now)
        head.q = min(1.0, max(LEAST_Q, _share_for(tier.slots + more, asked)))
        self._note_overload(tier, head, now)
        return head.q

    def _more(self, tier: Tier, missing_s: float, asked: Sequence[tuple[float, float]], now: float) -> float:
        """By how many slots more is let in than there are, as so much work is missing that waits; negative for less."""
        horizon_s = _HORIZON * tier.slack_s
        more = missing_s / horizon_s
        if missing_s >= 0 or not self._is_behind_fresh(tier):
            return more
        # What others have waiting goes before; its own goes behind what is fresh, which need not wait until it is gone.
        own = min(-missing_s, sum(one.queued_s() for one in tier.beside)) / horizon_s
        # What floors let in beyond q takes slots, too, so that q is smaller.
        lifted = sum(one.head.lifted.at(now) * one.unit_s for one in tier.beside)
        return more + max(0.0, own - lifted - tier.slots * _share_of_backlog(tier, asked))

    def _note_overload(self, tier: Tier, head: Load, now: float) -> None:
        """Where the freshest go first in overload, little is kept waiting, as long as more asks than can be served.

        A bunch that comes at once, and is thinned, is no overload: what counts is the mean over a long time.
        """
        fits = _share_for(tier.slots, self._asked_for(tier, now, lately=False))
        before, head.overloaded = head.overloaded, fits < (_CALM if head.overloaded else _OVERLOAD)
        if head.overloaded is not before:
            self.is_turned = self._is_new = True

    def _kept_share(self, tier: Tier, now: float) -> float:
        head = tier.head
        if tier.slack_s <= head.age_s:
            return 1.0
        own_s, wait_s = sum(one.queued_s() for one in tier.beside if one.sheds), self._wait_s(tier)
        target_s = self._target_s(tier, head, head.age_s)
        if self._is_behind_fresh(tier):
            part = _share_of_backlog(tier, self._asked_for(tier, now))
            target_s = max(target_s, part * (tier.slack_s - head.age_s))
        most_s = min(2 * target_s, (target_s + tier.slack_s - head.age_s) / 2)
        if wait_s <= most_s or own_s <= 0:
            return 1.0
        return max(0.0, 1 - (wait_s - target_s) * tier.drain / own_s)

    def _is_behind_fresh(self, tier: Tier) -> bool:
        """Whether its backlog is behind what is fresh; that of a later stage goes before, as what has begun does."""
        return self._is_fresh(tier, tier.head) and not tier.flow.plan.stages[tier.first].parents

    @staticmethod
    def _is_fresh(tier: Tier, head: Load) -> bool:
        plan = tier.flow.plan
        return head.overloaded and (plan.freshest_in_overload or plan.order is Order.FRESHEST_FIRST)

    def _target_s(self, tier: Tier, head: Load, age_s: float) -> float:
        """How long a unit of this age should wait."""
        busy_s = min(tier.busy_s, (tier.slack_s - age_s) / 2)
        in_time_s = tier.in_time_s - age_s
        if in_time_s <= busy_s or self._is_fresh(tier, head):
            return busy_s
        return max(busy_s, in_time_s - tier.unsteady * math.sqrt(in_time_s))

    def _wait_s(self, tier: Tier) -> float:
        """How long what is let in now will wait for its slot; negative while slots are free."""
        ahead_s = (self.in_flight - self.slots) * tier.work_s[tier.positions[0]]
        for one in tier.above:
            # What has a limit below all slots leaves some, however much of it waits.
            if self._limits.get(one.flow.plan.name, math.inf) >= self.slots:
                ahead_s += one.queued_s() + (one.standby_s() if one.priority > tier.priority else 0.0)
        for one in tier.beside:
            ahead_s += one.queued_s()
        return ahead_s / tier.drain

    @staticmethod
    def _asked_for(tier: Tier, now: float, *, lately: bool = True) -> list[tuple[float, float]]:
        asked: list[tuple[float, float]] = []
        for one in tier.beside:
            head = one.head
            rate = head.asked.at(now)
            if rate > 0:
                reached = min(1.0, head.reached.at(now) / rate)
                asked += one.shares(rate if lately else head.asked_long.since_first(now), reached)
        return asked

    def _place(self, run: Run) -> tuple[Tier, int] | None:
        """The tier and position of a run's stage, in today's definition of its pipeline; None if it is not thinned."""
        flow = self._newest[run.sub_job.flow.plan.name]
        position = run.stage.position if flow is run.sub_job.flow else flow.plan.positions.get(run.stage.name)
        tier = None if position is None else flow.tiers[position]
        return None if tier is None or position is None else (tier, position)

    # --- estimates ------------------------------------------------------------------------------------------------

    def _look(self, now: float) -> None:
        """Takes the estimates anew, if there is something new."""
        if self._measured >= _SERVICES or not 0 <= now - self._arranged_at <= self._stale_after_s:
            self._arrange(now)

    def _arrange(self, now: float) -> None:
        self._measured, self._arranged_at, self._is_new = 0, now, True
        tiers = []
        self._likely_s = self._mean_of_all_s()
        for flow in self._flows.values():
            work_s = [load.service_s(now) or self._likely_s for load in flow.loads]
            tiers += make_tiers(flow, work_s, self.slots)
        self._tiers = rank(tiers)
        for tier in self._tiers:
            self._plan_for(tier, now)
        horizons = [_HORIZON * tier.slack_s for tier in self._tiers if tier.sheds and tier.slack_s > 0]
        self._stale_after_s = _PART_OF_HORIZON * min(horizons, default=math.inf)

    def _mean_of_all_s(self) -> float:
        """How long a stage takes of which nothing is known, not even that one runs: as long as others do.

        Else a class that never gets a slot would be let in altogether, to expire.
        """
        known = [load.times.mean_s for load in self._loads.values() if load.times]
        return sum(known) / len(known) if known else 0.0

    def _plan_for(self, tier: Tier, now: float) -> None:
        """What of a tier does not change with every unit."""
        owed = [(one.head.owed.at(now), one.unit_s) for one in tier.below if one.flow.plan.work_class.floors]
        before = [(one.head.kept.at(now), one.unit_s) for one in tier.above if one.goes_before(tier)]
        after = [(one.head.kept.at(now), one.unit_s) for one in tier.above if not one.goes_before(tier)]
        inflow = owed + before + after
        tier.slots, tier.drain = self._left(tier, inflow), self._left(tier, owed + before)
        # As a Poisson process, what comes from above varies by the square root of its number.
        tier.unsteady = math.sqrt(sum(rate * work**2 for rate, work in inflow)) / tier.slots
        if 0 < tier.slack_s < math.inf:
            horizon_s = _HORIZON * tier.slack_s
            # The queue fluctuates by the square root of what passes in a horizon.
            tier.busy_s = 2 * math.sqrt(horizon_s * tier.work_s[tier.first] / tier.slots)
            for position in tier.positions:
                tier.flow.loads[position].fade(horizon_s, tier.slack_s)

    def _left(self, tier: Tier, inflow: Sequence[tuple[float, float]]) -> float:
        """The slots that an inflow of (units in a second, work of each) leaves to a tier."""
        left = self.slots - sum(rate * work for rate, work in inflow)
        left = min(left, self._limits.get(tier.flow.plan.name, math.inf))
        return max(left, _LEAST_SLOTS * self.slots, 1e-9)

    def _make_flow(self, plan: Plan) -> Flow:
        loads = [self._loads.setdefault((plan.name, stage.name), Load()) for stage in plan.stages]
        for load in loads:
            load.times.keep(self.slots)
        return Flow(plan, tuple(loads))


def _share_of_backlog(tier: Tier, asked: Sequence[tuple[float, float]]) -> float:
    """Where freshest first begins with a backlog: the part of the slots that goes to it, and the share of it to keep.

    So nothing is left out for having come just before: q is the same for a whole slack of backlog, and for what comes
    while that is served within another slack; where nothing has a prescale, q (slots + asked) slack = slots slack.
    """
    return min(1.0, _share_for(tier.slots, [(1.0, tier.slots), *asked]))


def _share_for(wanted: float, asked: Sequence[tuple[float, float]]) -> float:
    """The q at which the work that is let in is `wanted` [s of a slot in a second]; 1 or more if all of it fits.

    `asked` are (q above which it grows no more, work at q = 1): with nested choices, a stage with a prescale of its own
    is reached by all that are let in as soon as q is below it.
    """
    if len(asked) == 1:
        return wanted / asked[0][1] if asked[0][1] > 0 else 1.0
    work = sum(one for _, one in asked)
    settled = 0.0
    for share, one in sorted(asked):
        if work <= 0 or settled + share * work >= wanted:
            break
        settled += share * one
        work -= one
    return (wanted - settled) / work if work > 1e-12 else 1.0
