"""A word from the server that the journal has new lines: a hint, for those who would look again a little later."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import psycopg
from sqlalchemy.engine import Engine

from p3s_prefect.adapters.ledger.postgresql import connection_options

log = logging.getLogger(__name__)

_CHANNEL = "p3s_journal"
# How long the listener waits before it looks whether it is still wanted, and before it connects anew.
_LOOK_UP_S = 1.0


class Listener:
    """Calls a function, in a thread of its own, whenever a transaction with new lines of the journal was committed."""

    def __init__(self, engine: Engine, heard: Callable[[], object]) -> None:
        self._engine = engine
        self._heard = heard
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="journal")
        self._thread.start()

    def close(self) -> None:
        """Listens no more."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                self._listen()
            except psycopg.Error as error:
                log.info("no word of new lines in the journal: %s", error)
                self._ended.wait(_LOOK_UP_S)

    def _listen(self) -> None:
        url = self._engine.url
        arguments, options = self._engine.dialect.create_connect_args(url)
        told = {**connection_options(url), **options}
        with psycopg.connect(*arguments, **told, autocommit=True) as connection:
            connection.execute(f"LISTEN {_CHANNEL}")
            # What was written before may have been seen by nobody.
            self._heard()
            while not self._ended.is_set():
                for _ in connection.notifies(timeout=_LOOK_UP_S, stop_after=1):
                    self._heard()
