"""What a group's own stage and the page are told of units that were left out at random."""

from __future__ import annotations

import json

import pytest
from sites import NewSite, declare, obey, shell

from p3s_prefect.adapters.ledger import schema
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.selection import sample_number

pytestmark = pytest.mark.sockets

UNITS = 12
PRESCALE = 0.5


async def test_who_was_let_through_stands_for_who_was_not(new_site: NewSite) -> None:
    """P6, P4, P22: weights reach a command, with those of a unit that failed; the group's values are weighted."""
    stages = {
        "quick": {"steps": [obey()], "retries": 0, "prescale": PRESCALE},
        "total": {
            "per": "group",
            "after": ["quick"],
            "steps": [shell('cp "$P3S_WEIGHTS" "$P3S_OUTPUT_MADE"', inputs={"made": "made-quick"}, made="told")],
        },
    }
    site = new_site(declare(stages, instrument={"closing": {"count": UNITS}}, stream={"list_every_s": 0.2}))
    seed = site.experiment.seed
    kept = [n for n in range(UNITS) if sample_number(DataId.of(run=1, subrun=n), seed) < PRESCALE]
    async with site.running() as running:
        for subrun in range(UNITS):
            site.arrive(subrun, "fail" if subrun == kept[0] else "x" * subrun)
        await site.until_settled(UNITS + 1)
        values = (await running.get("/api/groups/run=1"))["values"]
    (told,) = [row for row in site.rows(schema.dataset) if row.dataset_type == "told"]
    weights = json.loads(site.store.read_bytes(told.key))
    assert weights == {"made": {f"run=1 subrun={n}": 1 / PRESCALE for n in kept}}
    (coverage,) = [row.coverage for row in site.rows(schema.attempt) if row.coverage]
    assert coverage == {"done": len(kept) - 1, "failed": 1, "prescaled": UNITS - len(kept)}
    (length,) = values
    assert length["estimate"]["sampled"] == len(kept) - 1
    assert length["estimate"]["value"] == pytest.approx(sum(kept[1:]) / len(kept[1:]))
    assert (length["seen"], length["left_out"]) == (UNITS, UNITS - len(kept))
    assert length["missing"] == {"failed": 1}
    assert length["missing_share"] == pytest.approx(1 / len(kept))
