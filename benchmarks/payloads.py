"""What the benchmarks run: as little as a stage can do and still publish something."""

from __future__ import annotations

import time
from pathlib import Path


def kilobyte(raw: Path) -> dict[str, str]:
    """A text of 1 kB made from the input."""
    return {"out": raw.read_text().ljust(1000, ".")}


def asleep(raw: Path) -> dict[str, str]:
    """Sleeps for as many seconds as the input says."""
    seconds = raw.read_text()
    time.sleep(float(seconds))
    return {"out": seconds}
