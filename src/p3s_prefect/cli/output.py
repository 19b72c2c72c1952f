"""From records to a table for people or JSON for programs."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from p3s_prefect.core.health import duration
from p3s_prefect.core.views import printable

INTERRUPTED = 128 + signal.SIGINT
"""The exit code of a command that Ctrl-C has ended, as shells have it."""

_STYLES = {
    "done": "green",
    "ok": "green",
    "taken": "green",
    "running": "blue",
    "queued": "blue",
    "arrived": "blue",
    "open": "blue",
    "failed": "bold red",
    "lost": "red",
    "down": "bold red",
    "conflict": "bold red",
    "degraded": "yellow",
    "expired": "yellow",
    "shed": "yellow",
    "held": "yellow",
    "blocked": "yellow",
    "refused": "yellow",
}
# Where output goes into a pipe there is no width to fit into, and nothing may be cut.
_PIPE_WIDTH = 240


def console() -> Console:
    """The terminal, or a pipe, which gets no colour."""
    terminal = Console(highlight=False)
    return terminal if terminal.is_terminal else Console(highlight=False, width=_PIPE_WIDTH)


def print_json(value: Any) -> None:
    """JSON on standard output."""
    Console(soft_wrap=True, highlight=False, markup=False).out(json.dumps(value, indent=2), highlight=False)


def table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "") -> Table:
    """A table; a column whose name ends in ``>`` is set right. Cells are texts that come from anywhere, or `Text`."""
    made = Table(title=Text(title, style="bold") if title else None, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        right = column.endswith(">")
        made.add_column(column.rstrip(">"), justify="right" if right else "left", overflow="fold", header_style="dim")
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else plain_text(cell) for cell in row))
    return made


def plain_text(value: object) -> Text:
    """A value as text that cannot move the cursor or change colours."""
    return Text("" if value is None else printable(str(value)))


def state(name: str) -> Text:
    """A state in its colour."""
    return Text(name, style=_STYLES.get(name, ""))


def ago(at: float | None, now: float) -> str:
    """How long ago."""
    return "" if at is None else f"{duration(max(0.0, now - at))} ago"


def in_force_table(given: Iterable[Mapping[str, Any]], now: float) -> Table:
    """What is set by command, as `Override.shown` gives it."""
    return table(
        ["set by command", "target", "by", "since>", "until>", "why", "lift it with"],
        [
            (
                one["kind"] if one["value"] is None else f"{one['kind']} {one['value']}",
                one["target"],
                one["by"],
                ago(one["set_at"], now),
                "" if one["expires_at"] is None else f"in {duration(max(0.0, one['expires_at'] - now))}",
                one["why"],
                one["lift"],
            )
            for one in given
        ],
    )
