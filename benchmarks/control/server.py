"""A Prefect server and an agent as `p3s up` starts them, and questions to the server."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from p3s_prefect.adapters import prefect_server
from p3s_prefect.adapters.free_ports import free_port
from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.supervision import SERVICE_ENVIRONMENT

_START_S = 300


@dataclass(frozen=True)
class Server:
    """A server that runs."""

    api: str
    process: psutil.Process
    environment: dict[str, str]

    def ask(self, path: str, content: dict[str, Any] | None = None) -> Any:
        """A request; asked again where the server was busy for a moment."""
        while True:
            answer = httpx.post(f"{self.api}{path}", json=content or {}, timeout=60)
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                answer.raise_for_status()
                return answer.json()
            time.sleep(0.02)

    def cpu_s(self) -> float:
        """The time that it has computed so far."""
        times = self.process.cpu_times()
        return float(times.user + times.system)


@contextmanager
def prefect(home: Home) -> Iterator[Server]:
    """A server whose database is in the home."""
    port = free_port()
    program = prefect_server._server(home, port)
    api = f"http://127.0.0.1:{port}/api"
    environment = os.environ | {"PREFECT_API_URL": api, "PREFECT_HOME": str(home.path / "prefect"), "DO_NOT_TRACK": "1"}
    with kept(program.command, os.environ | dict(program.environment), home.path / "prefect.log") as process:
        until(lambda: _is_up(api), _START_S)
        yield Server(api, psutil.Process(process.pid), environment)


@contextmanager
def agent(home: Home, server: Server) -> Iterator[subprocess.Popen[bytes]]:
    """The agent of a home."""
    command = [sys.executable, "-m", "p3s_prefect.cli", "agent", "--home", str(home.path)]
    with kept(command, server.environment, home.path / "agent.log") as process:
        yield process


@contextmanager
def kept(command: Sequence[str], environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process, ended at the end."""
    with log.open("wb") as file:
        # As for everything that `p3s up` starts; it also bounds the memory pools of the C library.
        service = environment | SERVICE_ENVIRONMENT
        process = subprocess.Popen(command, env=service, stdout=file, stderr=subprocess.STDOUT)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def until(condition: Callable[[], Any], patience_s: float, every_s: float = 0.01) -> Any:
    """Waits for a condition, and returns its answer."""
    end = time.monotonic() + patience_s
    while not (answer := condition()):
        if time.monotonic() > end:
            raise TimeoutError("it did not happen")
        time.sleep(every_s)
    return answer


def _is_up(api: str) -> bool:
    try:
        return httpx.get(f"{api}/health", timeout=5).is_success
    except httpx.HTTPError:
        return False
