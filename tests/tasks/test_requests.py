"""Waiting for a station's answer, and for the end of what was asked for."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Coroutine, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from ledger_rows import T0, Rows, StoredBytes

from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.ledger import requests
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.tasks.requests import Asked, await_answer, await_end

_T = TypeVar("_T")
_PATIENCE_S = 60


@pytest.fixture
def granted(tmp_path: Path) -> Asked:
    """A request for a unit that is done, and its answer."""
    experiment = Experiment.model_validate(
        {
            "experiment": "test",
            "instrument": {"name": "Cam", "dimensions": {"run": "int", "subrun": "int"}, "group": ["run"]},
            "dataset_types": {"raw": {"format": "text"}},
            "pipelines": {"dqm": {"stages": {"quick": {"steps": [{"name": "s", "command": ["true"]}]}}}},
            "streams": {
                "s": {"directory": "i", "pattern": "x", "dataset_type": "raw", "rules": [{"pipelines": ["dqm"]}]}
            },
        }
    )
    with closing(Home(tmp_path).ledger(experiment)) as ledger:
        ledger.migrate()
        with ledger.transaction() as connection:
            rows = Rows(connection, StoredBytes())
            unit = rows.unit(rows.production_pass(rows.group("run=1"), "dqm"), "run=1 subrun=1")
            number = requests.ask(connection, "process", by="ana", why="", now=T0)
            (asked,) = requests.open_requests(connection)
            given = {"sub_jobs": [unit]}
            requests.answer(connection, asked, is_granted=True, text="1 unit", now=T0, given=given)
    return Asked(home=tmp_path, experiment=experiment, number=number)


@contextmanager
def _away(asked: Asked) -> Iterator[None]:
    """Another program keeps the ledger to itself; its readers cannot even open it."""
    with asked.books() as ledger:
        file = str(ledger.url).removeprefix("sqlite:///")
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode=EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        other.execute("ROLLBACK")
        yield


async def _during_an_outage(asked: Asked, waiting: Coroutine[Any, Any, _T], caplog: pytest.LogCaptureFixture) -> _T:
    async with asyncio.timeout(_PATIENCE_S):
        with _away(asked):
            task = asyncio.create_task(waiting)
            while not task.done() and "the ledger cannot be read" not in caplog.text:
                await asyncio.sleep(0.02)
        return await task


async def test_a_ledger_that_is_away_for_a_while_fails_no_run(
    granted: Asked, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """V20: what was asked for goes on; the answer and the end are seen when the ledger is back."""
    monkeypatch.setattr("p3s_prefect.adapters.ledger.sqlite.BUSY_TIMEOUT_S", 0.05)
    monkeypatch.setattr("p3s_prefect.tasks.requests.get_run_logger", lambda: logging.getLogger("flow"))
    answer = await _during_an_outage(granted, await_answer(granted), caplog)
    assert answer.is_granted
    caplog.clear()
    (unit,) = await _during_an_outage(granted, await_end(granted, answer), caplog)
    assert (unit.data_id, unit.state) == ("run=1 subrun=1", "done")
