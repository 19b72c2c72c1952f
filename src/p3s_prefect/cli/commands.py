"""The table of commands: what `p3s --help` shows, in the order in which a newcomer needs it."""

from __future__ import annotations

from collections.abc import Callable

import typer

from p3s_prefect.cli import look, produce, products, replay, run
from p3s_prefect.cli.attempt import try_
from p3s_prefect.cli.check import check
from p3s_prefect.cli.init import init

commands = typer.Typer(
    name="p3s",
    help="Processes detector data as they arrive, and keeps the books.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)

_PANELS: dict[str, list[Callable[..., None]]] = {
    "Begin": [run.demo, init, check],
    "Run": [run.up, run.down, replay.replay, produce.process],
    "Look": [look.status, look.list_, look.show],
    "Develop payloads": [try_, products.check_products],
    "Services": [run.station],
}

for panel, functions in _PANELS.items():
    for function in functions:
        name = function.__name__.rstrip("_").replace("_", "-")
        commands.command(name, rich_help_panel=panel)(function)
