"""The table of commands: what `p3s --help` shows, in the order in which a newcomer needs it."""

from __future__ import annotations

from collections.abc import Callable

import typer

from p3s_prefect.cli import agent, look, produce, products, replay, run, steer
from p3s_prefect.cli.adopt import adopt
from p3s_prefect.cli.attempt import try_
from p3s_prefect.cli.check import check
from p3s_prefect.cli.deploy import deploy
from p3s_prefect.cli.init import init
from p3s_prefect.cli.ledger import ledger
from p3s_prefect.cli.purge import purge
from p3s_prefect.cli.reconcile import reconcile
from p3s_prefect.cli.reload import reload
from p3s_prefect.cli.report import report
from p3s_prefect.cli.retry import retry
from p3s_prefect.cli.simulate import simulate
from p3s_prefect.cli.why import why

commands = typer.Typer(
    name="p3s",
    help="Processes detector data as they arrive, and keeps the books.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)

_PANELS: dict[str, list[Callable[..., None]]] = {
    "Begin": [run.demo, init, check],
    "Run": [run.up, run.down, replay.replay, produce.process, deploy, adopt],
    "Look": [look.status, look.list_, look.show, why, report, simulate],
    "Steer": [steer.priority, steer.limits, steer.pause, steer.drain, steer.hold, steer.release, retry, reload],
    "Keep": [reconcile, purge],
    "Develop payloads": [try_, products.check_products],
    "Services": [run.station, agent.agent],
}

for panel, functions in _PANELS.items():
    for function in functions:
        name = function.__name__.rstrip("_").replace("_", "-")
        # A number may be negative, which reads like an option.
        lenient = {"ignore_unknown_options": function in (steer.priority, steer.limits)}
        commands.command(name, rich_help_panel=panel, context_settings=lenient)(function)

commands.add_typer(ledger, name="ledger", rich_help_panel="Keep")
