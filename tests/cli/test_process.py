"""`p3s process`: without a station, without a Prefect server."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from announced import announce
from clusters import below

from p3s_prefect.adapters.home import Home

pytestmark = pytest.mark.sockets

QUICK = """
read word < "$P3S_INPUT_RAW"
test "$word" = hang && setsid sleep 100 &
test "$word" = hang && { echo $$ > "$HERE/hangs.new"; mv "$HERE/hangs.new" "$HERE/hangs"; sleep 100; }
test "$word" != bad && cp "$P3S_INPUT_RAW" "$P3S_OUTPUT_MADE"
"""
TOTAL = 'cat "$P3S_INPUT_MADE"/*; echo "$P3S_COVERAGE" > "$P3S_OUTPUT_TOTAL"'


def _stage(script: str, needed: str, made: str, **fields: Any) -> dict[str, Any]:
    step = {"name": "shell", "command": ["/bin/sh", "-c", script], "inputs": {needed: needed}, "outputs": {made: made}}
    return {"steps": [step], "retries": 0, **fields}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with a good file and a bad one."""
    return _home(tmp_path_factory.mktemp("process"), "good", "bad")


def _home(path: Path, *words: str) -> Path:
    stages = {
        "quick": _stage(f"HERE={path}; {QUICK}", "raw", "made"),
        "total": _stage(TOTAL, "made", "total", per="group", after=["quick"]),
    }
    declared = {
        "experiment": "batch",
        "instrument": {"name": "TestCam", "dimensions": {"run": "int", "subrun": "int"}, "group": ["run"]},
        "dataset_types": {kind: {"format": "text"} for kind in ("raw", "made", "total")},
        "pipelines": {"dqm": {"stages": stages}},
        "streams": {
            "s": {
                "directory": "incoming",
                "pattern": "r{run}.{subrun}.txt",
                "dataset_type": "raw",
                "rules": [{"pipelines": ["dqm"]}],
            }
        },
        "pilots": {"workers": 1},
    }
    (path / "experiment.yaml").write_text(json.dumps(declared))
    (path / "incoming").mkdir()
    for number, word in enumerate(words):
        (path / f"incoming/r1.{number}.txt").write_text(f"{word}\n")
    return path


def p3s(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "p3s_prefect.cli", *arguments]
    # As `make test` may be run where a server is configured: here there is none.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_API")}
    return subprocess.run(command, cwd=home, env=environment, capture_output=True, text=True, timeout=150, check=False)


@pytest.fixture(scope="module")
def processed(home: Path) -> subprocess.CompletedProcess[str]:
    """Both files, once."""
    return p3s(home, "process", "incoming/r1.0.txt", "incoming/r1.1.txt", "--json")


def test_files_are_processed_and_a_failure_is_told(processed: subprocess.CompletedProcess[str]) -> None:
    """S2, P22: the good unit and the group's stage are done; the bad one is named; the exit code is 1."""
    assert processed.returncode == 1, processed.stderr
    told = json.loads(processed.stdout)
    assert not told["ok"]
    assert told["problem"].startswith("1 stage runs failed")
    assert {(row["data_id"], row["stage"]): row["state"] for row in told["stages"]} == {
        ("run=1 subrun=0", "quick"): "done",
        ("run=1 subrun=1", "quick"): "failed",
        ("run=1", "total"): "done",
    }


def test_the_terminal_is_quiet(processed: subprocess.CompletedProcess[str]) -> None:
    """S2: a line at once, progress, and nothing of what Prefect and Dask log."""
    assert processed.stderr.splitlines()[0] == "2 files; starting Prefect takes some seconds"
    assert "Traceback" not in processed.stderr
    assert " | " not in processed.stderr
    assert "distributed" not in processed.stderr


def test_a_second_time_it_says_what_had_been_done_before(
    home: Path, processed: subprocess.CompletedProcess[str]
) -> None:
    """S2: what is done is not computed again, and whoever asks again is told so."""
    assert processed.returncode == 1
    ended = p3s(home, "process", "incoming/r1.0.txt", "--group", "open")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    told = " ".join(ended.stdout.split())
    assert "stages had been done before, and are as they were; nothing was computed." in told


def test_a_later_stage_is_tried_with_what_is_in_the_store(
    home: Path, processed: subprocess.CompletedProcess[str], tmp_path: Path
) -> None:
    """P16: by a data id that the ledger knows, with a group's inputs and coverage; the ledger is as before."""
    before = (home / "ledger.db").read_bytes()
    ended = p3s(home, "try", "dqm/total/shell", "run=1", "--directory", str(tmp_path))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "\ngood\n" in ended.stdout
    assert 'P3S_COVERAGE={"done": 1, "failed": 1}' in ended.stdout
    assert (home / "ledger.db").read_bytes() == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_everything(tmp_path: Path, number: signal.Signals) -> None:
    """S2: payloads with what they have started, workers and the temporary server end; the books tell it."""
    home = _home(tmp_path, "hang", "good")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_API")}
    command = [sys.executable, "-m", "p3s_prefect.cli", "process", "incoming/r1.0.txt", "incoming/r1.1.txt", "--json"]
    running = subprocess.Popen(
        command, cwd=home, env=environment, stdout=subprocess.PIPE, start_new_session=True, text=True
    )
    with running:
        while not (home / "hangs").exists():
            assert running.poll() is None
            time.sleep(0.05)
        below_it = below(running.pid)
        # As a terminal does it: Ctrl-C reaches the whole group, `kill` only the process itself.
        os.killpg(running.pid, number) if number == signal.SIGINT else running.send_signal(number)
        told, _ = running.communicate(timeout=90)
    assert running.returncode == 130
    assert "It was stopped" in json.loads(told)["problem"]
    psutil.wait_procs(below_it, timeout=30)
    assert [found.cmdline() for found in below_it if found.is_running()] == []
    assert len(below_it) > 6, "payloads, keepers, workers, and the server"
    states = {(row["data_id"], row["stage"]): row["state"] for row in json.loads(told)["stages"]}
    assert states["run=1 subrun=0", "quick"] == "queued"
    with sqlite3.connect(home / "ledger.db") as ledger:
        assert ("stopped",) in ledger.execute("select state from attempt").fetchall()
    ledger.close()


def test_a_wrong_name_costs_no_start_of_prefect(home: Path) -> None:
    """S8: all wrong files are named, before anything is started."""
    ended = p3s(home, "process", "incoming/r1.0.txt", "nonsense", "experiment.yaml")
    assert ended.returncode == 1
    assert "2 of 3 files cannot be processed" in ended.stderr
    assert "there is no such file" in ended.stderr
    assert "its name does not fit r{run}.{subrun}.txt" in ended.stderr


def test_an_unknown_pipeline_is_said(home: Path, processed: subprocess.CompletedProcess[str]) -> None:
    """S8: with what was perhaps meant."""
    ended = p3s(home, "process", "incoming/r1.0.txt", "--pipeline", "dqn")
    assert ended.returncode == 1
    assert "there is no pipeline 'dqn'" in ended.stderr


def test_beside_a_station_nothing_is_started(tmp_path: Path) -> None:
    """S8: it is said at once, and not when Prefect and Dask run."""
    home = _home(tmp_path, "good")
    announce(Home(home), os.getpid())
    ended = p3s(home, "process", "incoming/r1.0.txt")
    assert ended.returncode == 1
    assert f"a station works on this home (process {os.getpid()})" in ended.stderr
    assert "p3s down" in ended.stderr
    assert not list(home.rglob("*.db"))
