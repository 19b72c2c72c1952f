"""What the benchmarks run: as little as a stage can do and still publish something."""

from __future__ import annotations

import json
import time
from pathlib import Path


def kilobyte(raw: Path) -> dict[str, str]:
    """A text of 1 kB made from the input."""
    return {"out": raw.read_text().ljust(1000, ".")}


def asleep(raw: Path, stage: str) -> dict[str, str]:
    """Sleeps for as many seconds as the input says of the stage."""
    seconds: float = json.loads(raw.read_text())[stage]
    time.sleep(seconds)
    return {"out": str(seconds)}
