"""The agent's worker: it runs in a thread and event loop of its own, so that neither it nor the record can be stopped
by the other. While the Prefect server is away, a flow that runs may block its event loop for minutes.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading

from p3s_prefect.agent.worker import P3sWorker

log = logging.getLogger(__name__)

_AGAIN_AFTER_S = 3.0
# What runs is given back to the queue; that takes two requests.
_STOP_S = 5.0


class WorkerThread:
    """A worker of one pool that is started again whenever it ends."""

    def __init__(self, pool: str, experiment: str) -> None:
        self._pool = pool
        self._name = f"agent of {experiment} on {socket.gethostname()}"
        self._thread = threading.Thread(target=self._run, daemon=True, name="worker")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._ready = threading.Event()

    def start(self) -> None:
        """Begins to take runs."""
        self._thread.start()

    def stop(self) -> None:
        """Ends; what runs here goes back to the queue."""
        if self._ready.wait(_STOP_S) and self._loop is not None and self._task is not None:
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join(_STOP_S)

    def _run(self) -> None:
        try:
            asyncio.run(self._keep())
        except asyncio.CancelledError:
            log.info("the worker has stopped")

    async def _keep(self) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        self._ready.set()
        while True:
            worker = P3sWorker(work_pool_name=self._pool, name=self._name)
            try:
                await worker.start(printer=lambda *words: log.info(*words))
            except Exception as error:  # whatever it is: without a worker, runs would wait for ever
                log.warning("the worker has ended, and is started again: %s: %s", type(error).__name__, error)
            await asyncio.sleep(_AGAIN_AFTER_S)
