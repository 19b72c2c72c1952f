"""`p3s replay`: plays into the watched place, and says what is wrong with it (the plan itself: tests/core)."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from p3s_prefect.adapters.home import Home
from p3s_prefect.cli.init import write_home
from p3s_prefect.cli.replay import play, replay, writer
from p3s_prefect.core.errors import BadName, P3sError
from p3s_prefect.core.replay import ReplayPlan, patterns_of

commands = typer.Typer()
commands.command()(replay)


def _replay(home: Path, *words: str) -> str:
    arguments = ["lst1", "--home", str(home), "--rate", "1000", "--runs", "1", *words]
    result = CliRunner().invoke(commands, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_a_run_with_faults_is_played(tmp_path: Path) -> None:
    """P20: all files of a run and its marker are there, but for those that are left out."""
    write_home(tmp_path, "lst1")
    _replay(tmp_path, "--subruns", "3", "--first-run", "7", "--noisy-pixel", "5")
    names = sorted(path.name for path in (tmp_path / "incoming").iterdir())
    assert names == [*(f"LST-1.Run00007.{subrun:04d}.fits" for subrun in range(3)), "LST-1.Run00007.closed"]
    _replay(tmp_path, "--first-run", "8", "--gap", "1")
    assert [path.name for path in (tmp_path / "incoming").glob("*Run00008*")] == ["LST-1.Run00008.closed"]


def test_a_demonstration_that_is_stopped_from_elsewhere_plays_no_more(tmp_path: Path) -> None:
    """P12: `p3s down` ends it; it would go on to write files that nobody takes."""
    write_home(tmp_path, "lst1")
    files, marker = patterns_of(Home(tmp_path).read())
    plan = ReplayPlan(pattern=files, marker=marker, first_run=1, runs=None, rate_hz=1000)
    looks = iter([True, True, False])
    play(Home(tmp_path), Console(quiet=True), plan, writer("lst1")(), while_=lambda: next(looks))
    assert len(list((tmp_path / "incoming").iterdir())) == 3


def test_a_home_of_another_instrument_is_refused(tmp_path: Path) -> None:
    """P20, S8."""
    write_home(tmp_path, "starter")
    with pytest.raises(BadName, match="has run and subrun") as refused:
        _replay(tmp_path)
    assert "--instrument lst1" in refused.value.fix


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """P20, S8."""
    write_home(tmp_path, "lst1")
    (tmp_path / "incoming").rmdir()
    (tmp_path / "incoming").write_text("no directory")
    with pytest.raises(P3sError, match="incoming cannot be written") as refused:
        _replay(tmp_path)
    assert "writable" in refused.value.fix
