"""The station's memory: does it follow the backlog, as it should, or the history?"""

from __future__ import annotations

import tempfile
from pathlib import Path

import psutil

from benchmarks import rig
from benchmarks.table import Row

FEW, MANY = 1_000, 100_000
_AT_ONCE = FEW


def run(many: int = MANY) -> list[Row]:
    """Resident memory of the station's process after few and after many finished units."""
    with tempfile.TemporaryDirectory(prefix="p3s-bench-") as folder:
        home = rig.make_home(Path(folder) / "home")
        with rig.cluster(home) as cluster, rig.station(home, cluster.station) as station:
            process = psutil.Process(station.pid)
            after_few = _after(home, process, 0, FEW)
            after_many = _after(home, process, FEW, many)
    return [
        Row(f"station memory after {FEW:,} units", f"{after_few / 2**20:.0f} MiB", ""),
        Row(
            f"station memory after {many:,} units",
            f"{after_many / 2**20:.0f} MiB",
            f"{after_many / after_few:.2f} (wanted: 1.10)",
        ),
    ]


def _after(home: rig.Home, process: psutil.Process, first: int, last: int) -> int:
    """Feeds units in portions, so that the backlog stays the same, and reads the memory when all are done."""
    for begin in range(first, last, _AT_ONCE):
        end = min(begin + _AT_ONCE, last)
        for unit in range(begin, end):
            rig.place(home, unit // 10_000, unit % 10_000)
        rig.until(lambda end=end: rig.number_done(home) >= end, 1200)
        print(f"  {end:,} units, {process.memory_info().rss / 2**20:.0f} MiB", flush=True)
    return int(process.memory_info().rss)
