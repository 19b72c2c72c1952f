"""`p3s`: everything that is done at a terminal. Each command is a function of its own; errors end with what to do."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.text import Text

from p3s_prefect.core.errors import P3sError


def app() -> None:
    """The `p3s` command."""
    from p3s_prefect.cli.commands import commands

    try:
        commands(only=next(iter(sys.argv[1:]), None))()
    except P3sError as error:
        Console(stderr=True, soft_wrap=True).print(Text(str(error), style="red"))
        sys.exit(1)
