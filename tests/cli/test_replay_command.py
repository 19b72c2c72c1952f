"""`p3s replay`: plays into the watched place, and says what is wrong with it (the plan itself: tests/core)."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from p3s_prefect.cli.init import write_home
from p3s_prefect.cli.replay import replay
from p3s_prefect.core.errors import BadName, P3sError

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
