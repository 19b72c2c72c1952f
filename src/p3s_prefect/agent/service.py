"""The agent as a process: it follows one home's journal until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Coroutine
from typing import Any

from prefect.client.orchestration import get_client

from p3s_prefect.adapters.clock import SystemClock
from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.ledger import agent_cursor
from p3s_prefect.agent.controls import Controls
from p3s_prefect.agent.prefect_record import PrefectRecord
from p3s_prefect.agent.process_runs import WorkerThread
from p3s_prefect.agent.projector import Projector
from p3s_prefect.agent.quick_retry import retry_quickly
from p3s_prefect.agent.recorded_flows import RecordedFlows
from p3s_prefect.agent.server import PrefectServer


async def serve(home: Home, pool: str | None = None) -> None:
    """Runs the agent until SIGTERM or SIGINT. The server is the one that Prefect's settings name.

    It records, follows what people do in Prefect, and runs flows of the work pool `pool`; if none is given, of that
    which the experiment file names.

    Raises:
        LedgerAway: the ledger cannot be opened now.
        P3sError: the experiment file or the ledger cannot be read.
    """
    experiment = home.in_force()
    pool = pool or experiment.prefect.pool
    ledger = home.ledger(experiment)
    ledger.migrate()
    clock = SystemClock()
    with ledger.transaction() as connection:
        site = agent_cursor.open_cursor(connection, clock.now()).site
    worker = WorkerThread(pool, experiment.experiment)
    try:
        async with get_client() as client:
            retry_quickly(client)
            server = PrefectServer(client)
            flows = RecordedFlows(server, home, experiment, pool)
            record = PrefectRecord(server, home.store(experiment), flows, pictures=experiment.prefect.pictures)
            projector = Projector(experiment, ledger, record, clock)
            controls = Controls(experiment, ledger, server, clock, pool=pool, site=site)
            worker.start()
            await _until_stopped(projector.run(), controls.run())
    finally:
        await asyncio.to_thread(worker.stop)
        ledger.close()


async def _until_stopped(*parts: Coroutine[Any, Any, None]) -> None:
    """Runs them together; if one fails, all end, and the agent is started anew."""
    together = asyncio.gather(*parts)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, together.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await together
