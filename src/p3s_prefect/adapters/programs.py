"""What a supervisor keeps running."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Program:
    """One program that is kept running; `copies` of it."""

    name: str
    command: tuple[str, ...]
    order: int
    copies: int = 1
    stop_wait_s: int = 5
    settles_s: int = 0
    """If it ends within so many seconds, it is started again after a pause that grows; 0: always at once."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Beside that of the supervisor."""
