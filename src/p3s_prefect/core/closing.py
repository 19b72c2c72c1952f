"""When a group is complete: by marker, by count, or by quiet time, whichever comes first."""

from __future__ import annotations

import math
from dataclasses import dataclass

from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.experiment import Closing


@dataclass(frozen=True, kw_only=True)
class GroupFact:
    """An open group as the ledger has it."""

    id: int
    data_id: DataId
    last_arrival_at: float
    arrivals: int


def closes_by_count(closing: Closing, group: GroupFact) -> str | None:
    """The reason if the declared number of units has arrived."""
    if closing.count is not None and group.arrivals >= closing.count:
        return f"count: {group.arrivals} of {closing.count} units arrived"
    return None


@dataclass(frozen=True, kw_only=True)
class Sight:
    """From when to when it is known what came, UTC in seconds since 1970: silence is no sign where nobody can look."""

    since: float = -math.inf
    until: float = math.inf


def quiet_at(closing: Closing, group: GroupFact, since: float = -math.inf) -> float:
    """The moment at which the group closes if nothing more of it arrives; infinite if that is not declared.

    Silence counts from `since` on.
    """
    return math.inf if closing.quiet_s is None else max(group.last_arrival_at, since) + closing.quiet_s
