"""A Dask scheduler and its workers, in processes with the command lines of `p3s up`."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

from p3s_prefect.adapters import supervision
from p3s_prefect.adapters.free_ports import free_port

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """So that a test run that is killed leaves nothing behind."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


@dataclass
class Cluster:
    """A scheduler with workers, in processes with the command lines of `p3s up`."""

    path: Path
    port: int = field(default_factory=free_port)
    scheduler: subprocess.Popen[bytes] | None = None
    workers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    settings: Mapping[str, str] = field(default_factory=lambda: supervision.SERVICE_ENVIRONMENT)

    @property
    def scratch(self) -> Path:
        """Where the pilots keep what they are working on."""
        return supervision.Home(self.path).run / "pilots"

    @property
    def address(self) -> str:
        return f"tcp://127.0.0.1:{self.port}"

    def start_scheduler(self) -> None:
        self.scheduler = self._start(supervision._scheduler(self.port), "scheduler")

    def add_worker(self, slots: int = 1) -> subprocess.Popen[bytes]:
        program = supervision._pilots(supervision.Home(self.path), self.address, 1)
        if slots > 1:
            more = {"slot=1": f"slot={slots}", "1": str(slots)}
            program = replace(program, command=tuple(more.get(word, word) for word in program.command))
        worker = self._start(program, f"worker{len(self.workers)}")
        self.workers.append(worker)
        return worker

    def kill_scheduler(self) -> None:
        assert self.scheduler is not None
        self.scheduler.kill()
        self.scheduler.wait()

    def kill_worker(self, number: int = 0) -> None:
        """Kills one of the workers that are alive."""
        worker = [found for found in self.workers if found.poll() is None][number]
        worker.kill()
        worker.wait()
        self.workers.remove(worker)

    def close(self) -> None:
        for process in [*self.workers, self.scheduler]:
            if process is not None and process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            if process is not None:
                process.wait()

    def _start(self, program: supervision.Program, name: str) -> subprocess.Popen[bytes]:
        here = str(Path(__file__).parent)
        with (self.path / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                program.command,
                env=os.environ | dict(self.settings) | {"PYTHONPATH": here},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )


def below(pid: int) -> list[psutil.Process]:
    """All descendants of a process.

    By parents alone: psutil's own answer also compares times of creation, which it reckons from the time of boot, and
    where that is near the turn of a second, it loses children now and then. What it remembers of numbers that have been
    given to other processes since would be left out, too.
    """
    psutil.process_iter.cache_clear()
    parents = {found.pid: found.info["ppid"] for found in psutil.process_iter(["ppid"])}
    found, generation = [], {pid}
    while generation:
        generation = {child for child, parent in parents.items() if parent in generation}
        found += generation
    return [psutil.Process(child) for child in found if psutil.pid_exists(child)]
