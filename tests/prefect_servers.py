"""A Prefect server with the command line and settings of `p3s up`, and questions to it."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import pytest
from clusters import die_with_parent

from p3s_prefect.adapters import prefect_server
from p3s_prefect.adapters.free_ports import free_port
from p3s_prefect.adapters.home import Home

# On two cores with fifteen processes that wanted them it took more than two minutes.
_START_S = 300
_ANSWER_S = 60
_POLL_S = 0.1
_PAGE = 200


@dataclass
class PrefectProcess:
    """A server in a process of its own, to be killed and started again on the same port and database."""

    path: Path
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    @cached_property
    def _client(self) -> httpx.Client:
        # It takes 30 ms to make; with a connection for each request, as servers are killed.
        return httpx.Client(trust_env=False, timeout=_ANSWER_S, limits=httpx.Limits(max_keepalive_connections=0))

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def api(self) -> str:
        return f"{self.url}/api"

    def start(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        program = prefect_server._server(Home(self.path), self.port)
        with (self.path / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                program.command,
                env=os.environ | dict(program.environment),
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent,
            )

    def until_up(self) -> None:
        until = time.monotonic() + _START_S
        while time.monotonic() < until:
            assert self.process is not None
            assert self.process.poll() is None, (self.path / "server.log").read_text()[-2000:]
            try:
                if self._client.get(f"{self.api}/health", timeout=5).is_success:
                    return
            except httpx.HTTPError:
                time.sleep(_POLL_S)
        raise AssertionError("the Prefect server does not come up")

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self._client.close()
        if self.process is not None and self.process.poll() is None:
            self.kill()

    # --- what it shows ---

    def ask(self, path: str, content: dict[str, Any] | None = None) -> Any:
        return self.change("POST", path, content or {})

    def get(self, path: str) -> Any:
        return self.change("GET", path, None)

    def change(self, method: str, path: str, content: Any) -> Any:
        """A request; asked again where the server was busy for a moment, as its own clients do."""
        while True:
            answer = self._client.request(method, f"{self.api}{path}", json=content)
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
                answer.raise_for_status()
                return answer.json() if answer.content else None
            time.sleep(_POLL_S)

    def every(self, path: str, content: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """All pages of an answer."""
        found: list[dict[str, Any]] = []
        while True:
            page = self.ask(path, {"limit": _PAGE, "offset": len(found), **(content or {})})
            found += page
            # A page that is not full is the last one: asked for more, a server that goes on repeats what has moved.
            if len(page) < _PAGE:
                return found

    def flow_runs(self, of: str) -> dict[str, dict[str, Any]]:
        """The flow runs of one ledger or experiment, by name."""
        found = self.every("/flow_runs/filter", {"flow_runs": {"tags": {"all_": [f"experiment:{of}"]}}})
        names = [run["name"] for run in found]
        assert len(names) == len(set(names)), names
        return {run["name"]: run for run in found}

    def task_runs(self, flow_run: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """The task runs of a flow run, by name."""
        found = self.every("/task_runs/filter", {"flow_runs": {"id": {"any_": [flow_run["id"]]}}})
        names = [run["name"] for run in found]
        assert len(names) == len(set(names)), names
        return {run["name"]: run for run in found}

    def states(self, task_run: dict[str, Any]) -> list[tuple[str, str]]:
        """The history of a task run: types and names, oldest first."""
        answer = self.get(f"/task_run_states/?task_run_id={task_run['id']}")
        found = sorted(answer, key=lambda state: state["timestamp"])
        return [(state["type"], state["name"]) for state in found]

    def artifacts(self, flow_run: dict[str, Any]) -> dict[str, dict[str, Any]]:
        """The artifacts of a flow run, by key."""
        found = self.every("/artifacts/filter", {"artifacts": {"flow_run_id": {"any_": [flow_run["id"]]}}})
        keys = [artifact["key"] for artifact in found]
        assert len(keys) == len(set(keys)), keys
        return {artifact["key"]: artifact for artifact in found}

    def logs(self, task_run: dict[str, Any]) -> list[str]:
        """The lines that were logged for a task run."""
        found = self.every("/logs/filter", {"logs": {"task_run_id": {"any_": [task_run["id"]]}}})
        return [line["message"] for line in found]

    def edges(self, flow_run: dict[str, Any]) -> set[tuple[str, str]]:
        """The arrows of the graph that the page draws, by names."""
        nodes = dict(self.get(f"/flow_runs/{flow_run['id']}/graph-v2")["nodes"])
        return {(nodes[parent["id"]]["label"], node["label"]) for node in nodes.values() for parent in node["parents"]}


@pytest.fixture(scope="session")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrefectProcess]:
    """A server that no test harms: one for all that take names of their own in it, as it takes seconds to start."""
    os.environ |= {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    with closing(PrefectProcess(tmp_path_factory.mktemp("prefect"))) as server:
        server.start()
        server.until_up()
        yield server
