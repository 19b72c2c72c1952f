"""The agent as a process: what ends it for good, and what it is started again for."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

import pytest
import typer
from prefect.client.orchestration import PrefectClient
from prefect.settings import temporary_settings
from recorded_books import Books
from typer.testing import CliRunner

from p3s_prefect.adapters.supervision import COMPLAINED
from p3s_prefect.agent import service
from p3s_prefect.agent.quick_retry import QuickRetry
from p3s_prefect.agent.server import PrefectServer
from p3s_prefect.cli.agent import agent

app = typer.Typer()
app.command()(agent)


def exit_code(books: Books, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    return CliRunner().invoke(app, ["--home", str(books.home.path)]).exit_code


def test_a_ledger_that_is_away_does_not_end_the_agent_for_good(books: Books, monkeypatch: pytest.MonkeyPatch) -> None:
    """V20, V21: its supervisor starts it again, as it does for a station; a wrong experiment file is for people."""
    file = books.home.experiment_file
    file.write_text(file.read_text().replace('"prefect": {}', '"ledger": {"url": "sqlite:///gone/ledger.db"}'))
    assert exit_code(books, monkeypatch) == 1
    (books.home.path / "gone").mkdir()
    file.write_text("experiment: 7")
    assert exit_code(books, monkeypatch) == COMPLAINED


async def test_the_agents_client_asks_a_busy_server_again_at_once(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S2: Prefect's own would wait 2 s."""
    clients: list[PrefectClient] = []

    class Noted(PrefectServer):
        def __init__(self, client: PrefectClient) -> None:
            clients.append(client)
            super().__init__(client)

    async def at_once(*parts: Coroutine[Any, Any, None]) -> None:
        for part in parts:
            part.close()

    monkeypatch.setattr(service, "PrefectServer", Noted)
    monkeypatch.setattr(service, "_until_stopped", at_once)
    monkeypatch.setattr(service.WorkerThread, "start", lambda _: None)
    monkeypatch.setattr(service.WorkerThread, "stop", lambda _: None)
    with temporary_settings({"api.url": "http://127.0.0.1:1/api"}):
        await service.serve(books.home)
    (client,) = clients
    assert isinstance(client._client._transport, QuickRetry)
