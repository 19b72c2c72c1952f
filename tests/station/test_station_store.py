"""Whose a store is, and how often it is swept."""

from __future__ import annotations

import asyncio
import contextlib
import time
from pathlib import Path

import pytest
from sites import NewSite, declare

from p3s_prefect.adapters.clock import SystemClock
from p3s_prefect.adapters.directory_store import DirectoryStore
from p3s_prefect.adapters.ledger import schema
from p3s_prefect.adapters.store_owner import owner_of
from p3s_prefect.adapters.supervision import COMPLAINED
from p3s_prefect.cli.adopt import adopt
from p3s_prefect.core.errors import StoreTaken
from p3s_prefect.station import production, upkeep

pytestmark = pytest.mark.sockets


async def test_two_ledgers_do_not_share_a_store(
    new_site: NewSite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """V13, S8: the second is refused by name, on both roads; once it has adopted the store, the first one ends."""
    shared = declare(store={"directory": str(tmp_path / "shared"), "sweep_after_s": 2})
    first, second = new_site(shared, home="first"), new_site(shared, home="second")
    first.arrive(0)
    second.arrive(1)
    station = first.spawn()
    await first.until_done(1)
    with pytest.raises(StoreTaken, match=f"that of 'test' in {first.path}"):
        async with second.running():
            pass
    with pytest.raises(StoreTaken), production.opened(second.path, second.experiment):
        pass
    assert second.count(schema.arrival) == 0
    adopt(second.path)
    told = " ".join(capsys.readouterr().out.split())
    assert f"is this ledger's now; before, it was that of 'test' in {first.path}" in told
    # It is told before it sweeps the next time.
    assert station.join() == COMPLAINED
    complaint = first.home.complaint()
    assert complaint is not None
    assert f"that of 'test' in {second.path}" in complaint.text
    assert not complaint.is_tried_again
    async with second.running():
        await second.until_done(1)
    assert first.text("made-quick", "run=1 subrun=0")


class SlowStore(DirectoryStore):
    """It takes its time to look for what is unfinished, and notes when."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.times: list[tuple[float, float]] = []

    def sweep_unfinished(self, older_than: float) -> int:
        begun = time.monotonic()
        time.sleep(0.05)
        self.times.append((begun, time.monotonic()))
        return super().sweep_unfinished(older_than)


async def test_a_store_that_takes_long_to_sweep_is_swept_more_seldom(new_site: NewSite, tmp_path: Path) -> None:
    """V20's kind: sweeping takes at most a tenth of the time, however soon orphans are to go."""
    site, store, clock = new_site(declare()), SlowStore(tmp_path / "slow"), SystemClock()
    owner = owner_of(site.ledger, site.home, site.experiment, clock.now())
    sweeping = asyncio.create_task(upkeep.keep_swept(site.ledger, store, owner, 0.001, clock))
    await site.until(lambda: len(store.times) >= 3, "three sweeps")
    sweeping.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await sweeping
    for (begun, ended), (next_begun, _) in zip(store.times, store.times[1:], strict=False):
        assert next_begun - ended >= 8 * (ended - begun)
