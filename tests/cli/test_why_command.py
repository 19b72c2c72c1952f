"""`p3s why`, as text and as JSON, without a station."""

from __future__ import annotations

import json
from io import StringIO
from pathlib import Path

import pytest
import typer
from ledger_rows import Rows, StoredBytes
from rich.console import Console
from typer.testing import CliRunner

from p3s_prefect.adapters.home import Home
from p3s_prefect.cli.why import _print_line, why
from p3s_prefect.core.errors import BadName, LedgerError, NoSuchRecord

_EXPERIMENT = Path(__file__).parent.parent / "core" / "good_experiment.yaml"
_HOSTILE = "\x1b]0;owned\x07[bold red]name[/]"

commands = typer.Typer()
commands.command("why")(why)


def test_a_command_to_be_copied_stays_on_its_line() -> None:
    """B12: as narrow as the terminal may be, it wraps by itself."""
    command = "`p3s request waveform-dqm run=2008 subrun=3` asks for it whatever the load."
    out = StringIO()
    _print_line(Console(file=out, width=30), command, 6)
    assert out.getvalue() == f"      {command}\n"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home with a unit that failed, and what comes after it."""
    (tmp_path / "experiment.yaml").write_text(_EXPERIMENT.read_text())
    home = Home(tmp_path)
    ledger = home.ledger(home.read())
    ledger.migrate()
    with ledger.transaction() as connection:
        rows = Rows(connection, StoredBytes())
        pass_id = rows.production_pass(rows.group("run=1", arrivals=1), "quality")
        unit = rows.unit(pass_id, "run=1 part=1", state="failed")
        reason = f"subtract: exited with 3 {_HOSTILE}"
        rows.attempt(rows.stage(unit, "clean", state="failed", reason=reason), state="failed", reason=reason)
        rows.stage(unit, "noise", state="blocked", reason="clean is failed", position=1)
    ledger.close()
    return home


def run(home: Home, *arguments: str) -> str:
    result = CliRunner().invoke(commands, [*arguments, "--home", str(home.path)], catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_it_tells_why_by_which_rule_and_what_to_do(home: Home) -> None:
    """B12."""
    lines = [line.rstrip() for line in run(home, "part=1", "run=1").splitlines()]
    assert lines[0] == "run=1 part=1"
    assert "in quality, pass 0: failed" in lines
    assert any(line.startswith("  clean is failed ") and line.endswith(" ago") for line in lines)
    assert (
        "    It failed, and to try again would not help: subtract: exited with 3 \\x1b]0;owned\\x07[bold red]name[/]."
        in lines
    )
    assert "      rule: pipelines.quality.stages.noise.after: [clean]" in lines
    assert any("`p3s try quality/clean/subtract 'run=1 part=1'`" in line for line in lines)
    assert any(line.startswith("    It needs clean, which is failed: ") for line in lines)
    assert "\x1b" not in "".join(lines)


def test_for_programs(home: Home) -> None:
    """B12: the same as JSON."""
    found = json.loads(run(home, "quality/noise run=1 part=1", "--json"))
    assert (found["data_id"], found["reasons"]) == ("run=1 part=1", [])
    (sub_job,) = found["sub_jobs"]
    assert (sub_job["pipeline"], sub_job["pass_number"], sub_job["state"]) == ("quality", 0, "failed")
    (stage,) = sub_job["stages"]
    (reason,) = stage["reasons"]
    assert (stage["stage"], stage["state"]) == ("noise", "blocked")
    assert reason["rule"] == "pipelines.quality.stages.noise.after: [clean]"


def test_a_group_and_what_never_came(home: Home) -> None:
    """B12."""
    assert "closes when the file run00001.closed appears in incoming" in run(home, "run=1")
    never = run(home, "run=1", "part=2")
    assert "stream images would bring it as run00001.002.fits" in never
    assert "like it: run=1 part=1" in never
    assert "No station runs here." in never


@pytest.mark.parametrize("words", [["quality"], ["run=1", "par=2"], ["all"], ["quality/clean", "run=1"], ["run=1;ls"]])
def test_what_names_nothing_is_refused(home: Home, words: list[str]) -> None:
    """S8."""
    with pytest.raises(BadName):
        run(home, *words)


def test_a_pass_that_is_not_there(home: Home) -> None:
    with pytest.raises(NoSuchRecord, match="not in that pipeline and pass"):
        run(home, "run=1", "part=1", "--pass", "7")


def test_a_home_where_nothing_was_ever_processed(tmp_path: Path) -> None:
    (tmp_path / "experiment.yaml").write_text(_EXPERIMENT.read_text())
    with pytest.raises(LedgerError, match="there is no ledger"):
        run(Home(tmp_path), "run=1")
