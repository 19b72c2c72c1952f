"""The work pools of a server that wants to know who asks."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from p3s_prefect.adapters.prefect_pools import pools
from p3s_prefect.cli.look import _add_pools
from p3s_prefect.core.errors import ServiceError

pytestmark = pytest.mark.sockets

_BASIC = f"Basic {base64.b64encode(b'ana:secret').decode()}"
_BEARER = "Bearer key"
_ANSWERS = {
    "/api/deployments/filter": [{"name": "process", "flow_id": "f", "work_pool_name": "north"}],
    "/api/flows/filter": [{"id": "f", "name": "process"}],
    "/api/work_pools/filter": [{"name": "north", "type": "p3s", "status": "READY", "is_paused": False}],
    "/api/flow_runs/count": 2,
}


class _Protected(BaseHTTPRequestHandler):
    """Answers as Prefect does: nothing without a credential, 403 to one that may not."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        given = self.headers["Authorization"]
        status = 200 if given in (_BASIC, _BEARER) else 401 if given is None else 403
        content = json.dumps(_ANSWERS[self.path] if status == 200 else {"exception_message": "Unauthorized"}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def api() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Protected) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/api"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    "credential",
    [
        {"PREFECT_API_AUTH_STRING": "ana:secret"},
        {"PREFECT_API_KEY": "key"},
        {"PREFECT_API_AUTH_STRING": "ana:secret", "PREFECT_API_KEY": "unknown"},
    ],
    ids=["name and password", "key", "of both the first"],
)
def test_whoever_is_known_is_told(api: str, monkeypatch: pytest.MonkeyPatch, credential: dict[str, str]) -> None:
    """P19: the variables are those of Prefect's own client."""
    for name, value in credential.items():
        monkeypatch.setenv(name, value)
    (found,) = pools(api)
    assert (found.name, found.waiting, found.deployments) == ("north", 2, ("process/process",))


@pytest.mark.parametrize(("key", "status"), [("", 401), ("unknown", 403)])
def test_whoever_is_not_known_is_told_so(api: str, monkeypatch: pytest.MonkeyPatch, key: str, status: int) -> None:
    """P19: rows that are missing would look like health."""
    monkeypatch.setenv("PREFECT_API_KEY", key)
    with pytest.raises(ServiceError, match=f"answers {status}"):
        pools(api)
    shown = {"health": [], "status": "ok"}
    _add_pools(shown, api, "p3s")
    (row,) = shown["health"]
    assert (shown["status"], row["status"]) == ("degraded", "degraded")
    assert "PREFECT_API_AUTH_STRING" in row["action"]


def test_nobody_there_is_told_by_the_agent() -> None:
    """P19: and adds nothing here."""
    assert pools("http://127.0.0.1:9/api") == ()
