"""`p3s down` where nothing runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from p3s_prefect.cli.commands import commands
from p3s_prefect.core.errors import ExperimentFileErrors


def test_where_there_is_no_home_that_is_said(tmp_path: Path) -> None:
    """S8: as other commands do."""
    with pytest.raises(ExperimentFileErrors, match="there is no such file") as refused:
        CliRunner().invoke(commands(), ["down", "--home", str(tmp_path / "nowhere")], catch_exceptions=False)
    assert "--home" in refused.value.fix
    assert list(tmp_path.iterdir()) == []


def test_in_a_home_where_nothing_runs_its_file_is_not_read(tmp_path: Path) -> None:
    """S8: what runs can be stopped whatever has become of the experiment file."""
    (tmp_path / "experiment.yaml").write_text("damaged: {")
    told = CliRunner().invoke(commands(), ["down", "--home", str(tmp_path)], catch_exceptions=False)
    assert (told.exit_code, told.output) == (0, "Nothing was running here.\n")
