"""The prompt path: sub-jobs a second, and the time from a visible file to its first step."""

from __future__ import annotations

import asyncio
import math
import tempfile
import time
from pathlib import Path

from benchmarks import rig, rivals
from benchmarks.table import Row, percentile
from p3s_prefect.core.data_id import DataId

FILES = 1000
PACED_FILES = 200
FILES_PER_S = 5


def run() -> list[Row]:
    """All rows, from one run on one cluster."""
    with tempfile.TemporaryDirectory(prefix="p3s-bench-") as folder:
        home = rig.make_home(Path(folder) / "home")
        for unit in range(FILES):
            rig.place(home, 0, unit)
        with rig.cluster(home) as cluster:
            in_flight = math.ceil(1.5 * rig.WORKERS)
            round_trip = asyncio.run(rivals.round_trip_s(cluster.address))
            limited = asyncio.run(rivals.limited_rate(cluster.address, FILES, in_flight))
            bulk = asyncio.run(rivals.bulk_rate(cluster.address, FILES))
            with rig.station(home, cluster.station):
                rate = _station_rate(home)
                delays = _paced_delays(home)
    p50, p99 = percentile(delays, 50), percentile(delays, 99)
    return [
        Row("sub-jobs a second, station", f"{rate:.0f}/s", ""),
        Row(f"  against bare submit, {in_flight} in flight", f"{limited:.0f}/s", f"{rate / limited:.2f} (wanted: 0.5)"),
        Row("  against bulk submit", f"{bulk:.0f}/s", f"{rate / bulk:.2f}"),
        Row("bare Dask round trip, median", f"{1e3 * round_trip:.1f} ms", ""),
        Row(
            f"file visible to first step, p50 at {FILES_PER_S}/s",
            f"{1e3 * p50:.1f} ms",
            f"{p50 / round_trip:.1f} (wanted: 6)",
        ),
        Row("file visible to first step, p99", f"{1e3 * p99:.1f} ms", f"{p99 / round_trip:.1f} (wanted: 25)"),
    ]


def _station_rate(home: rig.Home) -> float:
    rig.until(lambda: rig.number_done(home) >= FILES, 300)
    ends = [published_at for _, _, published_at in rig.published(home)]
    return (len(ends) - 1) / (ends[-1] - ends[0])


def _paced_delays(home: rig.Home) -> list[float]:
    visible: dict[str, float] = {}
    begun = time.monotonic()
    for unit in range(PACED_FILES):
        time.sleep(max(0.0, begun + unit / FILES_PER_S - time.monotonic()))
        visible[str(DataId.of(run=1, unit=unit))] = rig.place(home, 1, unit)
    rig.until(lambda: rig.number_done(home) >= FILES + PACED_FILES, 60)
    # By data id: each has waited for its own start, in whatever order they began.
    started = {data_id: started_at for data_id, started_at, _ in rig.published(home)}
    return [started[data_id] - seen for data_id, seen in visible.items()]
