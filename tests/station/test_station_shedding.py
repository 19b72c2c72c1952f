"""Overload on real pilots, and the same night in virtual time."""

from __future__ import annotations

import asyncio

import pytest
from sites import NewSite

from benchmarks.shedding import station
from benchmarks.shedding.traces import RECIPES, cook
from p3s_prefect.adapters.ledger.schema import stage_run

pytestmark = [pytest.mark.sockets, pytest.mark.alone]


async def test_real_pilots_do_in_overload_what_the_simulator_foresees(new_site: NewSite) -> None:
    """P5, P21: at three times the capacity of two pilots, the share in time is the simulated one within 5 %."""
    trace = cook(RECIPES["steady"], "steady", 3.0, 5.0, seed=2, length_s=16.0, slots=2)
    # The freshest go first, far from their deadlines: a machine that is busy otherwise does not decide who is in time.
    site = new_site(station.experiment(trace, "fresh"))
    async with site.running(slots=2):
        await asyncio.to_thread(station.feed, trace, site.incoming)
        await site.until_settled(len(trace.units))
    both = station.compare(site.home)
    assert both.units == len(trace.units)
    assert 0.2 < both.station < 0.5
    assert both.apart <= station.MOST_APART
    left_out = [row.q for row in site.rows(stage_run) if row.state == "shed"]
    assert len(left_out) > len(trace.units) / 3
    assert all(0 < q < 1 for q in left_out)
