"""Overload on real pilots, and the same night in virtual time."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from sites import NewSite

from benchmarks.shedding import station
from benchmarks.shedding.station import slowed
from benchmarks.shedding.traces import RECIPES, cook
from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.ledger.schema import stage_run


@pytest.mark.sockets
@pytest.mark.alone
async def test_real_pilots_do_in_overload_what_the_simulator_foresees(new_site: NewSite) -> None:
    """P5, P21: at three times the capacity of two pilots, the share in time is the simulated one within 5 %."""
    trace = slowed(cook(RECIPES["steady"], "steady", 3.0, 5.0, seed=2, length_s=16.0, slots=2), 0.8)
    # The freshest go first, far from their deadlines: a machine that is busy otherwise does not decide who is in time.
    site = new_site(station.experiment(trace, "fresh"))
    async with site.running(slots=2):
        await asyncio.to_thread(station.feed, trace, site.incoming, nobody_leaves)
        await site.until_settled(len(trace.units))
    both = station.compare(site.home, trace)
    assert both.units == len(trace.units)
    assert 0.2 < both.station < 0.5
    assert both.apart <= station.MOST_APART
    left_out = [row.q for row in site.rows(stage_run) if row.state == "shed"]
    assert len(left_out) > len(trace.units) / 3
    assert all(0 < q < 1 for q in left_out)


def nobody_leaves(slots: int) -> None:
    raise AssertionError(f"{slots} pilots")


@pytest.mark.parametrize("name", RECIPES)
def test_every_trace_can_be_played_for_real(name: str, tmp_path: Path) -> None:
    """P5: its experiment is valid; each unit comes in a file that knows how long every stage takes; pilots go and come.

    In no time at all here: `python -m benchmarks shedding --station` plays them on real pilots.
    """
    trace = slowed(cook(RECIPES[name], name, 3.0, 5.0, seed=2, length_s=16.0, slots=2), 1e-3)
    home, incoming, pilots = Home(tmp_path), tmp_path / "incoming", list[int]()
    incoming.mkdir()
    home.experiment_file.write_text(json.dumps(station.experiment(trace)))
    station.feed(trace, incoming, pilots.append)
    declared = home.read().pipelines
    assert {kind: list(one.stages) for kind, one in declared.items()} == {
        kind: list(one.stages) for kind, one in trace.kinds.items()
    }
    told = [json.loads(path.read_text()) for path in sorted(incoming.iterdir(), key=lambda path: path.stem[-6:])]
    assert [tuple(services_s.values()) for services_s in told] == [unit.services_s for unit in trace.units]
    assert pilots == ([1, 2] if name == "worker loss" else [])
