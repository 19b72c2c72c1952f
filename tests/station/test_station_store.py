"""A store that belongs to another ledger is neither written nor swept."""

from __future__ import annotations

from pathlib import Path

import pytest
from sites import NewSite, declare

from p3s_prefect.adapters.ledger import schema
from p3s_prefect.adapters.supervision import COMPLAINED
from p3s_prefect.cli.adopt import adopt
from p3s_prefect.core.errors import StoreTaken
from p3s_prefect.station import production

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
