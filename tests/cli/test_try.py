"""`p3s try`: one step, by hand, as on a pilot."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ledger_rows import Rows, StoredBytes
from sqlalchemy import update

from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.ledger import schema
from p3s_prefect.core.other_input import REMEDY

SHOW = 'env | grep ^P3S_ | sort; pwd; echo made > "$P3S_OUTPUT_MADE"; echo seen "$(cat "$P3S_INPUT_RAW")"'
# Two lines, far apart: what is printed first must be on the terminal before the second is.
SLOW = 'echo first; until test -e go; do sleep 0.05; done; echo second; cp "$P3S_INPUT_MADE" "$P3S_OUTPUT_FINE"'
SUMMARY = 'echo \'{"level": {"value": 2.5, "unit": "ADC"}}\' > summary.json; exit 7'


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with one file, and a stage of three steps."""

    def step(name: str, script: str, inputs: dict[str, str], outputs: dict[str, str]) -> dict[str, object]:
        command = ["/bin/sh", "-c", script]
        return {"name": name, "command": command, "inputs": inputs, "outputs": outputs, "params": {"cut": 3}}

    steps = [
        step("show", SHOW, {"raw": "raw"}, {"made": "made"}),
        step("slow", SLOW, {"made": "made"}, {"fine": "fine"}),
        step("wrong", SUMMARY, {"fine": "fine"}, {}),
    ]
    total = {"per": "group", "after": ["quick"], "steps": [step("add", "true", {"made": "made"}, {})]}
    declared = {
        "experiment": "by-hand",
        "instrument": {"name": "TestCam", "dimensions": {"run": "int"}, "group": ["run"]},
        "dataset_types": {kind: {"format": "text"} for kind in ("raw", "made", "fine")},
        "pipelines": {"dqm": {"stages": {"quick": {"steps": steps}, "total": total}}},
        "streams": {
            "s": {"directory": "in", "pattern": "r{run}.txt", "dataset_type": "raw", "rules": [{"pipelines": ["dqm"]}]}
        },
    }
    path = tmp_path / "home"
    path.mkdir()
    (path / "experiment.yaml").write_text(json.dumps(declared))
    (path / "r5.txt").write_text("data")
    return path


def p3s_try(home: Path, step: str, *unit: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "p3s_prefect.cli", "try", step, *(unit or ("r5.txt",))]
    command += ["--directory", str(home.parent / "work")]
    return subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=60, check=False)


def test_a_step_runs_with_its_environment_shown_as_it_has_it(home: Path) -> None:
    """P16: what is shown before the step runs is what the step finds."""
    ended = p3s_try(home, "dqm/quick/show")
    assert ended.returncode == 0, ended.stderr
    shown = re.findall(r"^  (P3S_\w+=.*?) *$", ended.stdout, re.MULTILINE)
    printed = re.findall(r"^(P3S_.*)$", ended.stdout, re.MULTILINE)
    assert sorted(shown) == sorted(printed)
    assert {line.partition("=")[0] for line in shown} == {
        "P3S_INPUT_RAW",
        "P3S_OUTPUT_MADE",
        "P3S_UNIT",
        "P3S_PARAMS",
    }
    assert "P3S_UNIT=run=5" in printed
    assert 'P3S_PARAMS={"cut": 3}' in printed
    assert "seen data" in ended.stdout


def test_what_it_leaves_is_kept_and_nothing_else_is_touched(home: Path) -> None:
    """P16: the working directory stays; neither ledger nor store come into being."""
    ended = p3s_try(home, "dqm/quick/show")
    (kept,) = re.findall(r"^kept: (\S+)", ended.stdout, re.MULTILINE)
    assert kept in ended.stdout.splitlines()
    assert (Path(kept) / "made.txt").read_text() == "made\n"
    assert sorted(path.name for path in home.iterdir()) == ["experiment.yaml", "r5.txt"]


def _in_a_temporary_directory(home: Path, unit: str) -> tuple[subprocess.CompletedProcess[str], list[Path]]:
    """Tries a step without saying where it shall work; with what it leaves."""
    temporary = home.parent / "temporary"
    temporary.mkdir()
    ended = subprocess.run(
        [sys.executable, "-m", "p3s_prefect.cli", "try", "dqm/quick/show", unit],
        cwd=home,
        env=os.environ | {"TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return ended, list(temporary.glob("p3s-try-*"))


def test_a_file_that_was_replaced_is_refused_with_what_to_do_and_nothing_is_left(home: Path) -> None:
    """P16, S8: no step has begun, so that there is nothing to look at."""
    ledger = Home(home).ledger(Home(home).read())
    ledger.migrate()
    with ledger.transaction() as connection:
        rows = Rows(connection, StoredBytes())
        unit = rows.unit(rows.production_pass(rows.group("run=5"), "dqm"), "run=5", state="arrived")
        arrived = rows.arrival("r5.txt", stream="s", path=str(home / "r5.txt"), data_id="run=5", dataset_type="raw")
        connection.execute(update(schema.sub_job).where(schema.sub_job.c.id == unit).values(arrival_id=arrived))
    ledger.close()
    ended, left = _in_a_temporary_directory(home, "run=5")
    assert ended.returncode == 1
    assert "r5.txt is no longer the file that arrived" in ended.stdout
    assert REMEDY in " ".join(ended.stdout.split())
    assert "`p3s try dqm/quick/show FILE`" in " ".join(ended.stdout.split())
    assert "kept" not in ended.stdout
    assert left == []


@pytest.mark.parametrize(("unit", "is_kept"), [("r5.txt", True), ("r6.txt", False)])
def test_a_temporary_directory_is_kept_once_a_step_has_begun(home: Path, unit: str, is_kept: bool) -> None:
    """P16."""
    ended, left = _in_a_temporary_directory(home, unit)
    assert len(left) == is_kept
    assert (f"kept: {left[0]}" in ended.stdout) if left else ("kept" not in ended.stdout)


def test_the_log_is_on_the_terminal_while_the_step_runs(home: Path) -> None:
    """P16: the first line is there before the step may print the second; steps before it run first."""
    work = home.parent / "work"
    command = [sys.executable, "-m", "p3s_prefect.cli", "try", "dqm/quick/slow", "r5.txt", "--directory", str(work)]
    with subprocess.Popen(command, cwd=home, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if line == "first\n":
                (directory,) = work.glob("*/steps/slow")
                (directory / "go").touch()
                break
        rest = running.stdout.read()
    assert "second" in rest
    assert running.returncode == 0


def test_the_exit_code_is_that_of_the_payload(home: Path) -> None:
    """P16, P15: and the reason stands at the end."""
    work = home.parent / "work"
    command = [sys.executable, "-m", "p3s_prefect.cli", "try", "dqm/quick/wrong", "r5.txt", "--directory", str(work)]
    with subprocess.Popen(command, cwd=home, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        printed = ""
        for line in running.stdout:
            printed += line
            for directory in work.glob("*/steps/slow"):
                (directory / "go").touch()
    assert running.returncode == 7
    assert "step wrong: /bin/sh exited with 7" in printed


@pytest.mark.parametrize(
    ("step", "unit", "told"),
    [
        ("dqm/quick/sho", "r5.txt", "there is no step 'dqm/quick/sho'"),
        ("dqm/quick/show", "r6.txt", "there is no such file"),
        ("dqm/quick/show", "run=5", "the ledger knows no raw of run=5"),
        ("dqm/total/add", "r5.txt", "there is no made to read"),
    ],
)
def test_what_cannot_be_tried_is_said_with_what_to_do(home: Path, step: str, unit: str, told: str) -> None:
    """S8, P16: a step, a file, a data id or an input that is not there."""
    ended = p3s_try(home, step, unit)
    assert ended.returncode == 1
    assert told in ended.stderr
    assert len(ended.stderr.strip().splitlines()) >= 2
    assert sorted(path.name for path in home.iterdir()) == ["experiment.yaml", "r5.txt"]


def test_a_data_id_is_given_as_in_other_commands(home: Path) -> None:
    """P16, S8: in several words; and what cannot be one is named."""
    ended = p3s_try(home, "dqm/quick/show", "run=5", "part=1")
    assert ended.returncode == 1
    assert "run=5 part=1" in ended.stderr
