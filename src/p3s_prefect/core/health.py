"""Is all well? One row for each thing that a shift crew watches: what is normal, what is, why, and what to do."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

# A listing may take a while; three missed periods mean that it no longer happens.
LATE_LISTINGS = 3
# A unit is usually done in seconds. Waits of a minute are seen as delay by a shift crew.
LONG_WAIT_S = 60.0
# Half of the pilots gone still processes; beyond that, data are lost at usual rates.
# A commit takes 2 to 20 ms on a local disk; at 500 ms the disk or its host is in trouble.
SLOW_COMMIT_S = 0.5
# Room for about an hour of pictures and tables at 30 MB/s.
LOW_SPACE_BYTES = 100 * 10**9 // 10**3 * 10**3 // 100


class Status(StrEnum):
    """How bad it is."""

    OK = "ok"
    DEGRADED = "degraded"
    """Something is slower, or less, than it should be."""
    DOWN = "down"
    """It does not work at all."""


@dataclass(frozen=True, kw_only=True)
class HealthRow:
    """One thing that is watched. A row that is not ok names its cause and what to do."""

    name: str
    nominal: str
    actual: str
    status: Status
    cause: str = ""
    action: str = ""
