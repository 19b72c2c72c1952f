"""Which arrived files may be removed from the watched place, and why the others stay."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from p3s_prefect.core.states import SubJobState


@dataclass(frozen=True, kw_only=True)
class PurgeFacts:
    """What is known of a file that was taken; of it, not of its copies."""

    arrived_at: float
    sha256: str | None
    states: tuple[str, ...]
    """Of the newest sub-job in each pipeline that took it."""
    is_group_open: bool
    has_damage: bool
    """Whether something that was made from it is damaged, and was not made anew."""
    trouble: str
    """Why the file itself cannot be removed: it changed, say; empty if it can."""


def why_kept(facts: PurgeFacts, *, now: float, older_than_s: float) -> str:
    """Why a file stays before anybody looks for a copy; empty if it may go once there is one."""
    if facts.trouble:
        return facts.trouble
    if now - facts.arrived_at < older_than_s:
        return "it is not old enough"
    if facts.is_group_open:
        return "its group has not closed"
    if not facts.states:
        return "nothing was made from it"
    if others := sorted({state for state in facts.states if state != SubJobState.DONE}):
        return f"it is not processed: {', '.join(others)}"
    if facts.has_damage:
        return "a result is damaged, and must be made from it anew"
    if facts.sha256 is None:
        return "its checksum is not known, so no copy can be told to be one"
    return ""


@dataclass(frozen=True, kw_only=True)
class PurgeRow:
    """One file, and what becomes of it."""

    arrival_id: int
    stream: str
    data_id: str
    path: str
    size: int
    mtime_ns: int
    goes: bool
    why: str
    copy: str = ""
    """Where the same bytes are."""
    is_file_copy: bool = False
    """Whether the copy is a file, which is read in place of the one that goes."""

    def record(self) -> dict[str, Any]:
        """JSON-ready."""
        names = ("stream", "data_id", "path", "size", "goes", "why", "copy")
        return {name: getattr(self, name) for name in names}


def freed_bytes(rows: Iterable[PurgeRow]) -> int:
    """How much room those that go take."""
    return sum(row.size for row in rows if row.goes)
