"""The memory of Prefect's server, agent and station: does it follow the history that they have recorded?"""

from __future__ import annotations

import tempfile
from pathlib import Path

import psutil

from benchmarks import rig
from benchmarks.control.record import recorded
from benchmarks.control.server import agent, prefect, until
from benchmarks.table import Row
from p3s_prefect.adapters.home import Home

FEW, MANY = 200, 2_000
UNITS = 2
WANTED = 1.10
# Portions are equal, so that the backlog is.
_AT_ONCE = 100
_PATIENCE_S = 1_200.0
_CLOSING = "closing: {quiet_s: 3600}"


def run(many: int = MANY) -> list[Row]:
    """Resident memory of each process after few and after many groups that are closed and recorded."""
    with tempfile.TemporaryDirectory(prefix="p3s-bench-") as folder:
        home = rig.make_home(Path(folder) / "home")
        declared = home.experiment_file.read_text()
        home.experiment_file.write_text(declared.replace(_CLOSING, f"closing: {{count: {UNITS}}}"))
        with (
            prefect(home) as server,
            rig.cluster(home) as cluster,
            rig.station(home, cluster.station) as station,
            agent(home, server) as recording,
        ):
            processes = {
                "Prefect server": server.process,
                "agent": psutil.Process(recording.pid),
                "station": psutil.Process(station.pid),
            }
            after_few = _after(home, processes, 0, FEW)
            after_many = _after(home, processes, FEW, many)
    return [
        Row(
            f"{name}: memory after {FEW:,} and {many:,} groups",
            f"{after_few[name] / 2**20:.0f} MiB, {after_many[name] / 2**20:.0f} MiB",
            f"{after_many[name] / after_few[name]:.2f} (wanted: {WANTED:.2f})",
        )
        for name in processes
    ]


def _after(home: Home, processes: dict[str, psutil.Process], first: int, last: int) -> dict[str, int]:
    """Feeds groups in portions, each when the one before is recorded, and reads the memory at the end."""
    for begin in range(first, last, _AT_ONCE):
        end = min(begin + _AT_ONCE, last)
        for group in range(begin, end):
            for unit in range(UNITS):
                rig.place(home, group, unit)
        until(lambda end=end: rig.number_done(home) >= UNITS * end, _PATIENCE_S, every_s=0.5)
        until(lambda: recorded(home), _PATIENCE_S, every_s=0.5)
        told = ", ".join(f"{name} {process.memory_info().rss / 2**20:.0f} MiB" for name, process in processes.items())
        print(f"  {end:,} groups: {told}", flush=True)
    return {name: int(process.memory_info().rss) for name, process in processes.items()}
