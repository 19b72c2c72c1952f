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
RUN_9 = "run=9 subrun=0"


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


async def test_what_runs_on_standby_is_published_and_has_no_weight(new_site: NewSite) -> None:
    """P5, P6, P22: a slot that would idle does what chance had left out; no total of the group reads it."""
    told = shell('cp "$P3S_WEIGHTS" "$P3S_OUTPUT_MADE"', inputs={"made": "made-quick"}, made="told")
    stages = {
        "quick": {"steps": [obey()], "deadline_s": 10},
        "total": {"per": "group", "after": ["quick"], "steps": [told]},
    }
    site = new_site(declare(stages, instrument={"closing": {"count": UNITS}}, stream={"list_every_s": 0.2}))
    async with site.running() as running:
        # The one service that is known was a long one, so that of a dozen at once hardly any is let in.
        site.arrive(0, "sleep 4", run=9)
        await site.until_done(1)
        for subrun in range(UNITS):
            site.arrive(subrun, "x" * subrun)
        await site.until_settled(UNITS + 2)
        values = (await running.get("/api/groups/run=1"))["values"]
    u = {row.id: row.u for row in site.rows(schema.sub_job)}
    unit = {row.id: row.data_id for row in site.rows(schema.sub_job)}
    quick = [row for row in site.rows(schema.stage_run) if row.stage == "quick" and unit[row.sub_job_id] != RUN_9]
    sample = {unit[row.sub_job_id]: 1 / row.q for row in quick if u[row.sub_job_id] < row.q}
    stood_by = [unit[row.sub_job_id] for row in quick if row.state == "done" and u[row.sub_job_id] >= row.q]
    assert stood_by
    assert {site.units()[name] for name in stood_by} == {"done"}
    assert all(site.text("made-quick", name).startswith("X") or name.endswith("=0") for name in stood_by)
    (kept,) = [row for row in site.rows(schema.dataset) if row.dataset_type == "told"]
    assert json.loads(site.store.read_bytes(kept.key)) == {"made": sample}
    (coverage,) = [row.coverage for row in site.rows(schema.attempt) if row.coverage]
    assert coverage == {"done": len(sample), "shed": UNITS - len(sample)}
    (length,) = values
    assert (length["seen"], length["left_out"], length["estimate"]["sampled"]) == (
        UNITS,
        UNITS - len(sample),
        len(sample),
    )
