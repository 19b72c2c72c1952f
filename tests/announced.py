"""The address of a station, as one leaves it in its home."""

from __future__ import annotations

import json

from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.this_machine import this_machine


def announce(home: Home, pid: int, url: str = "http://127.0.0.1:1", machine: str | None = None) -> None:
    """As if this process were the station, on this machine unless another is named."""
    home.run.mkdir(exist_ok=True)
    told = {"url": url, "pid": pid, "machine": machine or this_machine()}
    (home.run / "station.json").write_text(json.dumps(told))
