"""The table of commands: what `p3s --help` shows, in the order in which a newcomer needs it."""

from __future__ import annotations

from importlib import import_module

import typer

# Modules of this package, and what is a command in them.
_PANELS = {
    "Begin": ["run:demo", "init:init", "check:check"],
    "Run": ["run:up", "run:down", "replay:replay", "produce:process", "deploy:deploy", "adopt:adopt"],
    "Look": ["look:status", "look:list_", "look:show", "why:why", "report:report", "simulate:simulate"],
    "Steer": [
        "steer:priority",
        "steer:limits",
        "steer:pause",
        "steer:drain",
        "steer:hold",
        "steer:release",
        "request:request",
        "retry:retry",
        "reload:reload",
    ],
    "Keep": ["reconcile:reconcile", "purge:purge", "ledger:ledger"],
    "Develop payloads": ["attempt:try_", "products:check_products"],
    "Services": ["run:station", "agent:agent"],
}
# A number may be negative, which reads like an option.
_TAKE_NUMBERS = ("priority", "limits")


def commands(only: str | None = None) -> typer.Typer:
    """All commands, or that of one name where there is one: to import all modules takes two seconds."""
    table = {_name(place): (place, panel) for panel, places in _PANELS.items() for place in places}
    found = typer.Typer(
        name="p3s",
        help="Processes detector data as they arrive, and keeps the books.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_show_locals=False,
    )
    # With it, one command alone is still named on the line.
    found.callback()(_nothing)
    for name in [only] if only in table else table:
        place, panel = table[name]
        module, _, function = place.partition(":")
        command = getattr(import_module(f"p3s_prefect.cli.{module}"), function)
        if isinstance(command, typer.Typer):
            found.add_typer(command, name=name, rich_help_panel=panel)
        else:
            lenient = {"ignore_unknown_options": name in _TAKE_NUMBERS}
            found.command(name, rich_help_panel=panel, context_settings=lenient)(command)
    return found


def _name(place: str) -> str:
    return place.partition(":")[2].rstrip("_").replace("_", "-")


def _nothing() -> None:
    pass
