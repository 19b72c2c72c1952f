"""How much of a pipeline's work is where: what the controller predicts waiting times from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from p3s_prefect.core.estimates import Rate, ServiceTimes
from p3s_prefect.core.plan import Plan

if TYPE_CHECKING:
    from p3s_prefect.core.tiers import Tier

# Over how many times the time that a unit can wait it is looked at whether more asks than can be served: of visits that
# come nearly as seldom as a unit can wait, the mean over once as long swings by a half up and down, over four times as
# long by an eighth.
_LONG = 4.0


@dataclass(slots=True, eq=False)
class Load:
    """A stage's work: how long it takes, how much asks for it, and how many of its runs were let in."""

    waiting: int = 0
    """Runs that wait for their parents."""
    queued: int = 0
    """Runs that wait for a slot, those included that were offered and are not in the ledger yet."""
    standby: int = 0
    """Runs that chance has left out, and that wait for a slot all the same."""
    in_flight: int = 0
    """Runs that are with the pilots."""
    first_at_pilots: set[int] = field(default_factory=set)
    """Those of them that were handed out above all others, so that they begin next."""
    begun: dict[int, float] = field(default_factory=dict)
    """When those began that run now, as far as that can be known."""
    times: ServiceTimes = field(default_factory=ServiceTimes)
    asked: Rate = field(default_factory=Rate)
    """Units that ask for the stage, those counted in that were left out on the way to it."""
    asked_long: Rate = field(default_factory=Rate)
    """The same over a longer time, which tells a bunch from an overload."""
    reached: Rate = field(default_factory=Rate)
    """Units that ask for it."""
    kept: Rate = field(default_factory=Rate)
    """Units that are let in."""
    owed: Rate = field(default_factory=Rate)
    """Units that a floor lets in,"""
    lifted: Rate = field(default_factory=Rate)
    """and those of them that q would not."""
    q: float = 1.0
    """The share that was let in last."""
    age_s: float = 0.0
    """How old the data usually are that ask for it."""
    overloaded: bool = False
    """Whether more has been asking for it, for a while, than can be served."""
    wait_s: float = 0.0
    """How long what was let in last was predicted to wait."""

    def fade(self, short_s: float, long_s: float) -> None:
        """Rates are those of the last `short_s`; of what is let in, which others build on, of the last `long_s`.

        Whether it is an overload is seen over a multiple of that.
        """
        self.asked.fades_s = self.reached.fades_s = short_s
        self.asked_long.fades_s = _LONG * long_s
        self.kept.fades_s = self.owed.fades_s = self.lifted.fades_s = long_s

    def service_s(self, now: float) -> float:
        """How long a run of it will take; never less than what runs now makes likely.

        What has been running for longer than all that ended lately counts as if it ended now: when everything hangs,
        or before the first has ended, that is all that is known.
        """
        mean_s, number, longest_s = self.times.mean_s, len(self.times), self.times.quantile_s(1.0)
        longer = [now - at for at in self.begun.values() if now - at > longest_s]
        return (mean_s * number + sum(longer)) / (number + len(longer)) if longer else mean_s


@dataclass(slots=True, eq=False)
class Flow:
    """A plan with the loads of its stages, by position. Plans of the same pipeline share their loads."""

    plan: Plan
    loads: tuple[Load, ...]
    priorities: tuple[int, ...] = ()
    """By position, as they are set by command or declared."""
    stopped: frozenset[int] = frozenset()
    """Positions of the stages of which a command lets nothing start, or nothing new."""
    tiers: tuple[Tier | None, ...] = ()
    """By position: the tier of each stage; None for one per group, which is never left out."""

    @property
    def first(self) -> Tier | None:
        """The tier of the first stage."""
        return self.tiers[0] if self.tiers else None
