"""Payload processes: killed with everything that they have started, whatever that does (P12), and never in the way."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from builders import command, python
from clusters import below

from p3s_prefect.adapters.pilot import payload_process
from p3s_prefect.adapters.pilot.payload_process import PayloadProcess, PayloadProcesses
from p3s_prefect.adapters.pilot.step import StepCall, StepOutput
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.errors import PayloadFailed, PayloadTimeout
from p3s_prefect.core.experiment import Format, Step

Caller = Callable[[Step], StepCall]


@pytest.fixture
def call(tmp_path: Path) -> Caller:
    def make(step: Step) -> StepCall:
        directory = tmp_path / step.name
        directory.mkdir(exist_ok=True)
        return StepCall(
            step=step,
            data_id=DataId.of(run=1, subrun=3),
            coverage={},
            inputs={},
            outputs={name: StepOutput(path=directory / f"{name}.txt", format=Format.TEXT) for name in step.outputs},
            directory=directory,
            log=tmp_path / "log.txt",
        )

    return make


@pytest.fixture
def process(processes: PayloadProcesses) -> Iterator[PayloadProcess]:
    with processes.borrow() as found:
        yield found


def _gone(pids: Path) -> bool:
    numbers = [int(line) for line in pids.read_text().split()]
    assert numbers
    return not any(psutil.pid_exists(number) for number in numbers)


def _until(condition: Callable[[], bool], patience_s: float = 90.0) -> None:
    until = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < until, "it never came true"
        time.sleep(0.01)


GOOD = python("nothing", name="good")

HANGING = [
    "sleep",
    "native sleep",
    "native sleep, lock held",
    "native loop",
    "native loop, lock held",
    "ignores signals",
    "catches everything",
]


@pytest.mark.parametrize("how", HANGING)
def test_a_hanging_payload_is_killed_at_its_limit(
    processes: PayloadProcesses, call: Caller, tmp_path: Path, how: str
) -> None:
    """P12, V18: in native code too, with Python's lock held or not; the slot then runs the next."""
    started = tmp_path / "started"
    step = python("hangs", params={"how": how, "started": str(started)})
    with processes.borrow() as process:
        process.is_ready()
        began = time.monotonic()
        with pytest.raises(PayloadTimeout, match=r"killed after its 0\.4 s"):
            process.run(call(step), 0.4)
        assert time.monotonic() - began >= 0.4
        assert not process.is_alive
    assert started.exists()
    with processes.borrow() as process:
        assert process.run(call(GOOD), 30) == ""


@pytest.mark.parametrize("how", ["fork", "detached", "command", "many"])
@pytest.mark.parametrize("then", ["return", "raise"])
def test_what_a_payload_leaves_running_ends_with_its_step(
    process: PayloadProcess, call: Caller, tmp_path: Path, how: str, then: str
) -> None:
    """P12, P15: also what has left its session and ignores signals; the process itself goes on."""
    pids = tmp_path / "pids"
    params = {"how": how, "then": then, "pids": str(pids)}
    complaint = process.run(call(python("starts", outputs={"out": "text"}, params=params)), 30)
    assert complaint == ("" if then == "return" else "ValueError: left something")
    assert _gone(pids)
    assert process.is_alive


@pytest.mark.parametrize(
    ("how", "then"),
    [("detached", "hang"), ("many", "hang"), ("detached", "segfault"), ("command", "segfault"), ("fork", "exit 0")],
)
def test_what_a_payload_leaves_running_ends_with_its_process(
    processes: PayloadProcesses, call: Caller, tmp_path: Path, how: str, then: str
) -> None:
    """P12, P15: when it is killed, and when it takes its process with it."""
    pids = tmp_path / "pids"
    params = {"how": how, "then": then, "pids": str(pids)}
    expected = PayloadTimeout if then == "hang" else PayloadFailed
    with processes.borrow() as process, pytest.raises(expected):
        process.run(call(python("starts", outputs={"out": "text"}, params=params)), 1.0 if then == "hang" else 30)
    assert _gone(pids)


@pytest.mark.parametrize(
    ("how", "cause"),
    [
        ("exit 0", "exit code 0"),
        ("exit 3", "exit code 3"),
        ("segfault", "SIGSEGV"),
        ("abort", "SIGABRT"),
        ("kill", "SIGKILL"),
    ],
)
def test_a_payload_that_ends_its_process_fails_at_once_and_says_how(
    processes: PayloadProcesses, call: Caller, how: str, cause: str
) -> None:
    """P12: one that exits with 0 too, long before its limit."""
    with (
        processes.borrow() as process,
        pytest.raises(PayloadFailed, match=rf"step work ended its process \({cause}\)"),
    ):
        process.run(call(python("dies", params={"how": how})), 100)
    with processes.borrow() as process:
        assert process.run(call(GOOD), 30) == ""


def test_a_command_and_all_below_it_is_killed_at_the_limit(
    processes: PayloadProcesses, call: Caller, tmp_path: Path
) -> None:
    """P15: a script that ignores signals, with children in the background and in sessions of their own."""
    script = tmp_path / "hang.sh"
    script.write_text(
        "#!/bin/sh\ntrap '' TERM HUP INT\n"
        "sleep 1000 & echo $! >> $1\nsetsid sleep 1000 & echo $! >> $1\necho $$ >> $1\nsleep 1000\n"
    )
    script.chmod(0o755)
    pids = tmp_path / "pids"
    with processes.borrow() as process, pytest.raises(PayloadTimeout):
        process.run(call(command(script, pids)), 1.0)
    assert len(pids.read_text().split()) == 3
    assert _gone(pids)


def test_kill_ends_what_runs_in_another_thread(processes: PayloadProcesses, call: Caller, tmp_path: Path) -> None:
    """V22."""
    started = tmp_path / "started"
    ended: list[BaseException] = []

    def run(process: PayloadProcess) -> None:
        try:
            process.run(call(python("hangs", params={"how": "native sleep", "started": str(started)})), 100)
        except PayloadFailed as error:
            ended.append(error)

    with processes.borrow() as process:
        thread = threading.Thread(target=run, args=(process,))
        thread.start()
        _until(started.exists)
        process.kill()
        process.kill()
        thread.join(10)
        assert not thread.is_alive()
        assert "SIGKILL" in str(ended[0])


def test_a_killed_process_runs_nothing_any_more(call: Caller, tmp_path: Path) -> None:
    """V22: whoever kills it just before it is given its step is obeyed."""
    started = tmp_path / "started"
    with closing(PayloadProcess()) as process:
        process.kill()
        with pytest.raises(PayloadFailed):
            process.run(call(python("hangs", params={"how": "sleep", "started": str(started)})), 30)
    assert not started.exists()


def test_one_that_dies_while_idle_is_replaced(processes: PayloadProcesses, call: Caller) -> None:
    """P12: the system's memory was short."""
    with processes.borrow() as process:
        process.is_ready()
        keeper = psutil.Process(process._keeper.pid)
        (payload,) = below(keeper.pid)
    payload.send_signal(signal.SIGKILL)
    _until(lambda: not process.is_alive)
    with processes.borrow() as other:
        assert other is not process
        assert other.run(call(GOOD), 30) == ""


@pytest.mark.parametrize(
    "fault", ["import os; os._exit(0)", "raise SystemExit", "1 / 0", "import time; time.sleep(99)"]
)
def test_a_module_that_cannot_be_imported_beforehand_is_no_harm_to_others(
    call: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """V15: it fails when its own step runs."""
    monkeypatch.setattr(payload_process, "START_TIMEOUT_S", 2.5)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "spoilt.py").write_text(fault)
    with closing(PayloadProcesses(("spoilt", "payloads"))) as processes:
        processes.warm()
        with processes.borrow() as process:
            assert process.run(call(GOOD), 30) == ""


def test_a_process_is_warm_before_its_first_step() -> None:
    """P12, V2: it has imported the payloads by the time it is needed."""
    with closing(PayloadProcesses(("payloads",))) as processes:
        processes.warm()
        (idle,) = processes._idle
        _until(lambda: idle._connection.poll())
        assert idle.is_ready()


def test_a_limit_of_a_year_is_a_limit(process: PayloadProcess, call: Caller) -> None:
    """V18."""
    assert process.run(call(GOOD), 31_536_000) == ""


WORKER = """
import sys
from pathlib import Path
from p3s_prefect.adapters.pilot.payload_process import PayloadProcess
from p3s_prefect.adapters.pilot.step import StepCall
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.experiment import Step

directory = Path(sys.argv[1])
step = Step.model_validate_json(sys.argv[2])
call = StepCall(step=step, data_id=DataId.of(run=1), coverage={}, inputs={}, outputs={}, directory=directory,
                log=directory / "log.txt")
sys.path.append(sys.argv[3])
PayloadProcess().run(call, 100)
"""


@pytest.mark.parametrize("kind", ["python", "native", "command"])
def test_payloads_die_with_their_worker(tmp_path: Path, kind: str) -> None:
    """P12, V20: kill -9 of the worker; nothing that it has started stays, and no descriptor holds it."""
    pids = tmp_path / "pids"
    script = f"sleep 1000 & echo $! >> {pids}; echo $$ >> {pids}; sleep 1000"
    step = {
        "python": python("starts", params={"how": "detached", "then": "hang", "pids": str(pids)}),
        "native": python("hangs", params={"how": "native loop, lock held", "started": str(tmp_path / "started")}),
        "command": command("sh", "-c", script),
    }[kind]
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(tmp_path), step.model_dump_json(), str(Path(__file__).parent)]
    )
    sign, lines = (tmp_path / "started", 0) if kind == "native" else (pids, 2 if kind == "command" else 1)
    _until(lambda: sign.exists() and sign.read_text().count("\n") >= lines)
    family = below(worker.pid)
    assert len(family) >= 2
    worker.kill()
    worker.wait()
    _until(lambda: not any(found.is_running() for found in family))
    if kind != "native":
        assert _gone(pids)
