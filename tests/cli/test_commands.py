"""The table of commands, and that one alone costs no more than its own imports."""

from __future__ import annotations

import subprocess
import sys

import pytest
import typer
from typer.testing import CliRunner

from p3s_prefect.cli.commands import commands

ALL = list(typer.main.get_command(commands()).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ALL)
def test_each_command_alone_is_as_among_all(name: str) -> None:
    alone, among = (CliRunner().invoke(found, [name, "--help"]) for found in (commands(only=name), commands()))
    assert alone.exit_code == among.exit_code == 0
    assert alone.output == among.output
    assert list(typer.main.get_command(commands(only=name)).commands) == [name]  # type: ignore[attr-defined]


def test_who_mistypes_is_told_what_is_near() -> None:
    """S8: all commands are known then."""
    told = CliRunner().invoke(commands(only="statsu"), ["statsu"], env={"COLUMNS": "200"})
    assert told.exit_code == 2
    assert "Did you mean 'status'" in told.output


def test_one_command_imports_nothing_that_others_need() -> None:
    """What takes longest: Dask, Prefect, boto3, NumPy; a terminal waits for each."""
    script = (
        "import sys; from p3s_prefect.cli.commands import commands; commands(only='status');"
        "print(sorted({'distributed', 'prefect', 'boto3', 'numpy', 'matplotlib', 'pandas'} & sys.modules.keys()))"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
