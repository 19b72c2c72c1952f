"""Whether the store answers, asked from time to time: people learn that it is away before results are lost to it."""

from __future__ import annotations

import asyncio
import logging

from p3s_prefect.adapters.stores import ask_store
from p3s_prefect.core.errors import StoreError, StoreUnreachable
from p3s_prefect.core.ports import ObjectStore

log = logging.getLogger(__name__)

# One small request; the page shows within this time what has happened.
ASK_EVERY_S = 10.0
# While it is away, work waits for its return.
_ASK_AGAIN_S = 2.0


class StoreWatch:
    """Asks the store; `trouble` says why it cannot be used, and is empty if it can."""

    def __init__(self, store: ObjectStore, ask_every_s: float = ASK_EVERY_S, ask_again_s: float = _ASK_AGAIN_S) -> None:
        """It is asked every `ask_every_s`, and every `ask_again_s` while there is trouble."""
        self._store = store
        self._ask_every_s = ask_every_s
        self._ask_again_s = ask_again_s
        self.trouble = ""

    async def begin(self) -> None:
        """Asks for the first time. What does not answer may come; what refuses will do so again.

        Raises:
            StoreError: it refuses: a wrong key, or no such bucket.
        """
        try:
            await asyncio.to_thread(ask_store, self._store)
        except StoreUnreachable as error:
            self._note(error)

    async def run(self) -> None:
        """Asks until cancelled."""
        while True:
            await asyncio.sleep(self._ask_again_s if self.trouble else self._ask_every_s)
            try:
                # Once and not for long: with all tries, one that is silent would be noticed after a minute and a half.
                await asyncio.to_thread(ask_store, self._store, is_hasty=True)
            except StoreError as error:
                self._note(error)
            else:
                if self.trouble:
                    log.info("the store is back")
                self.trouble = ""

    def _note(self, error: StoreError) -> None:
        if error.what != self.trouble:
            log.error("%s", error)
        self.trouble = error.what
