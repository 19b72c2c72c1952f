"""The time."""

from __future__ import annotations

import time


class SystemClock:
    """This machine's clock; it must be kept right, as deadlines compare it with the data's times."""

    def now(self) -> float:
        """UTC in seconds since 1970."""
        return time.time()
