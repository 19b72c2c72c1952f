"""What the controls tell of a work pool."""

from __future__ import annotations

import logging
import uuid
from typing import Any

import pytest
from recorded_books import Books

from p3s_prefect.adapters.clock import SystemClock
from p3s_prefect.agent.controls import Controls


class Pool:
    """A server with one work pool, which has no queues and no runs."""

    limit: int | None = None

    async def get(self, path: str) -> Any:
        assert path == "/work_pools/north"
        return {"is_paused": False, "concurrency_limit": self.limit}

    async def post(self, _path: str, _content: Any) -> Any:
        return []


async def test_a_limit_of_the_pool_itself_is_told_not_to_act(books: Books, caplog: pytest.LogCaptureFixture) -> None:
    """S2, S8: once for each limit, with what limits stages instead."""
    caplog.set_level(logging.WARNING)
    pool = Pool()
    controls = Controls(books.home.read(), books.ledger, pool, SystemClock(), pool="north", site=uuid.uuid4())  # type: ignore[arg-type]

    async def told(limit: int | None) -> list[str]:
        pool.limit = limit
        caplog.clear()
        for _ in range(4):
            await controls.step()
        return [record.getMessage() for record in caplog.records]

    (warning,) = await told(3)
    assert "the work pool north has the limit 3" in warning
    assert "limit the queue of a class instead" in warning
    assert await told(3) == []
    assert ["has the limit 5" in line for line in await told(5)] == [True]
    assert await told(None) == []
