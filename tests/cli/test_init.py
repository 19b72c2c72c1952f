"""`p3s init`: a file to begin from, which is in order and does something (S8, P15)."""

import json
import subprocess
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from p3s_prefect.adapters.experiment_file import payload_mistakes, read_experiment
from p3s_prefect.cli.init import init, template
from p3s_prefect.core.errors import P3sError
from p3s_prefect.core.experiment_checks import remarks

app = typer.Typer()
app.command()(init)
runner = CliRunner()


def test_the_starter_is_in_order_and_its_directory_is_there(tmp_path: Path) -> None:
    """S8."""
    home = tmp_path / "new" / "home"
    result = runner.invoke(app, [str(home)])
    assert result.exit_code == 0
    assert "p3s check" in result.output
    experiment = read_experiment(home / "experiment.yaml", environment={}, also=[payload_mistakes])
    assert remarks(experiment) == []
    assert (home / "incoming").is_dir()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    """S8."""
    (tmp_path / "experiment.yaml").write_text("mine")
    result = runner.invoke(app, [str(tmp_path)])
    assert result.exit_code == 1
    assert "already there" in str(result.exception)
    assert (tmp_path / "experiment.yaml").read_text() == "mine"
    assert not (tmp_path / "incoming").exists()


def test_an_unknown_instrument_names_those_that_exist(tmp_path: Path) -> None:
    """S8."""
    result = runner.invoke(app, [str(tmp_path / "home"), "--instrument", "startre"])
    assert result.exit_code == 1
    assert "Did you mean starter?" in str(result.exception)
    assert not (tmp_path / "home").exists()
    with pytest.raises(P3sError, match="no instrument"):
        template("../cli")


def test_an_instrument_brings_its_own_file(tmp_path: Path) -> None:
    """S8."""
    assert runner.invoke(app, [str(tmp_path), "--instrument", "lst1"]).exit_code == 0
    experiment = read_experiment(tmp_path / "experiment.yaml", environment={})
    assert all((tmp_path / stream.directory).is_dir() for stream in experiment.streams.values())


def test_the_starters_payloads_do_what_their_comments_say(tmp_path: Path) -> None:
    """P15: run as the payload contract says, with nothing but the environment and a working directory."""
    stages = read_experiment(_starter(tmp_path), environment={}).pipelines["count-words"].stages
    arrived = tmp_path / "run00001_000.txt"
    arrived.write_text("to be or\nnot to be\n")
    (tmp_path / "counts").mkdir()
    _run(stages["count"].steps[0].command, tmp_path, TEXT=arrived, WORDS=tmp_path / "counts" / "part=0")
    (tmp_path / "counts" / "part=1").write_text("36\n")
    _run(stages["total"].steps[0].command, tmp_path, WORDS=tmp_path / "counts", TOTAL=tmp_path / "total")
    assert json.loads((tmp_path / "summary.json").read_text()) == {"words": {"value": 6, "unit": "words"}}
    assert json.loads((tmp_path / "total").read_text()) == 42


def _starter(home: Path) -> Path:
    path = home / "experiment.yaml"
    path.write_text(template("starter"))
    return path


def _run(command: list[str] | None, work: Path, **files: Path) -> None:
    """Each file is offered as an input and as an output; the payload takes the one that it needs."""
    assert command
    sides = ("P3S_INPUT", "P3S_OUTPUT")
    environment = {f"{side}_{name}": str(path) for name, path in files.items() for side in sides}
    subprocess.run(command, check=True, cwd=work, env={"PATH": "/usr/bin:/bin", **environment}, timeout=30)
