"""How soon the record of a group is complete, and what that costs the Prefect server."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from sqlalchemy import func, select

from benchmarks import rig
from benchmarks.control.server import agent, prefect, until
from benchmarks.table import Row
from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.ledger import agent_cursor, schema

GROUPS, UNITS, EVERY_S = 20, 189, 34.0
WANTED_S, WANTED_SHARE = 5.0, 0.25
_PATIENCE_S = 120.0
_ONE_STAGE = """    stages:
      copy:
"""
_TWO_STAGES = """    stages:
      again:
        after: [copy]
        steps:
          - {name: copy, python: "benchmarks.payloads:kilobyte", inputs: {raw: raw}, outputs: {out: more}}
      copy:
"""


def run(groups: int = GROUPS) -> list[Row]:
    """Groups of 189 units with two stages, one each 34 s: how late the record was, and the server's share of a core."""
    with tempfile.TemporaryDirectory(prefix="p3s-bench-") as folder:
        home = rig.make_home(Path(folder) / "home")
        declared = home.experiment_file.read_text().replace(_ONE_STAGE, _TWO_STAGES)
        home.experiment_file.write_text(
            declared.replace("out: {format: text}}", "out: {format: text}, more: {format: text}}")
        )
        with (
            prefect(home) as server,
            rig.cluster(home) as cluster,
            rig.station(home, cluster.station),
            agent(home, server),
        ):
            _play(home, 0)
            cpu_s, begun = server.cpu_s(), time.monotonic()
            late = [_play_in_time(home, group) for group in range(1, groups + 1)]
            share = (server.cpu_s() - cpu_s) / (time.monotonic() - begun)
    return [
        Row(f"record of {UNITS} units in two stages complete after", f"{max(late):.1f} s", f"(wanted: {WANTED_S:g} s)"),
        Row("Prefect server, share of a core", f"{100 * share:.0f} %", f"(wanted: {100 * WANTED_SHARE:.0f} %)"),
    ]


def _play_in_time(home: Home, group: int) -> float:
    next_at = time.monotonic() + EVERY_S
    late_s = _play(home, group)
    print(f"  group {group}: recorded {late_s:.1f} s after its last stage", flush=True)
    time.sleep(max(0.0, next_at - time.monotonic()))
    return late_s


def _play(home: Home, group: int) -> float:
    """A group arrives at once; returns how long after its last stage the record was complete [s]."""
    for unit in range(UNITS):
        rig.place(home, group, unit)
    until(lambda: rig.number_done(home) >= 2 * UNITS * (group + 1), _PATIENCE_S)
    last, ended_at = _last_done(home)
    until(lambda: _recorded(home) >= last, _PATIENCE_S)
    return max(0.0, time.time() - ended_at)


def _last_done(home: Home) -> tuple[int, float]:
    """Number and time of the last stage that was done."""
    ledger = home.ledger(home.read())
    try:
        with ledger.reading() as connection:
            done = select(func.max(schema.journal.c.number)).where(schema.journal.c.kind == "stage.done")
            number = connection.scalar(done) or 0
            at = connection.scalar(select(schema.journal.c.at).where(schema.journal.c.number == number))
            return number, at or 0.0
    finally:
        ledger.close()


def recorded(home: Home) -> bool:
    """Whether Prefect has everything that the journal has."""
    ledger = home.ledger(home.read())
    try:
        with ledger.reading() as connection:
            return agent_cursor.record_facts(connection, time.time()).behind == 0
    finally:
        ledger.close()


def _recorded(home: Home) -> int:
    ledger = home.ledger(home.read())
    try:
        with ledger.reading() as connection:
            behind = agent_cursor.record_facts(connection, time.time()).behind
            return agent_cursor.newest_number(connection) - behind
    finally:
        ledger.close()
