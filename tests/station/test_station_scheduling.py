"""Who runs, who waits and who is given up, as the ledger has it after a run on real pilots."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from itertools import compress, pairwise
from typing import Any

import pytest
from sites import NewSite, Site, declare, obey, shell, total

from p3s_prefect.adapters.ledger import schema, views
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.selection import sample_number

pytestmark = pytest.mark.sockets

STOP_STATES = ("running", "done")


def account(site: Site) -> dict[str | None, Counter[str]]:
    """The account's rows by stage; None is that of the sub-jobs. Each balances."""
    rows = site.read(lambda connection: [*views.account(connection), *views.sub_job_account(connection)])
    assert all(row.balances and row.open == 0 for row in rows)
    states = ("seen", "done", "prescaled", "shed", "expired", "failed", "blocked", "superseded", "cancelled")
    return {row.stage: Counter({state: getattr(row, state) for state in states if getattr(row, state)}) for row in rows}


def begun(site: Site) -> list[str]:
    """Data ids of attempts in the order in which they were opened."""
    stage_of = {row.id: row.sub_job_id for row in site.rows(schema.stage_run)}
    unit_of = {row.id: row.data_id for row in site.rows(schema.sub_job)}
    return [unit_of[stage_of[row.stage_run_id]] for row in site.rows(schema.attempt)]


# --- P4 -------------------------------------------------------------------------------------------------------------


async def test_prescales_choose_by_hash_and_are_stored(new_site: NewSite) -> None:
    """P4, V18 (seed, prescale of stream and stage): the chosen sets are nested, and q is in the ledger."""
    stages = {
        "quick": {"steps": [shell("true")]},
        "deep": {"after": ["quick"], "prescale": 0.3, "steps": [shell("true")]},
    }
    site = new_site(declare(stages, stream={"prescale": 0.6}, seed=7))
    async with site.running():
        for subrun in range(60):
            site.arrive(subrun)
        await site.until_settled(60)
    u = {str(unit): sample_number(unit, 7) for unit in (DataId.of(run=1, subrun=n) for n in range(60))}
    expected = {
        (name, stage): "done" if u[name] < q else "prescaled"
        for name in u
        for stage, q in (("quick", 0.6), ("deep", 0.3))
    }
    assert site.stages() == expected
    assert {(row.stage, row.q) for row in site.rows(schema.stage_run)} == {("quick", 0.6), ("deep", 0.3)}
    assert all(row.u == u[row.data_id] for row in site.rows(schema.sub_job))
    assert "is not below q = 0.3" in next(
        row.reason for row in site.rows(schema.stage_run) if row.state == "prescaled" and row.stage == "deep"
    )
    assert len(site.rows(schema.attempt)) == sum(state == "done" for state in expected.values())


# --- P7, P9 ---------------------------------------------------------------------------------------------------------


async def test_the_account_balances_over_all_ends(new_site: NewSite) -> None:
    """P7: done, failed, expired, blocked and prescaled units, from one query for stages and one for sub-jobs."""
    stages = {
        "quick": {"steps": [obey("quick")], "retries": 0, "deadline_s": 600},
        "deep": {"after": ["quick"], "prescale": 0.5, "steps": [obey("deep")], "retries": 0},
    }
    site = new_site(declare(stages, seed=3))
    kept = [n for n in range(200) if sample_number(DataId.of(run=1, subrun=n), 3) < 0.5]
    left_out = [n for n in range(200) if n not in kept]
    async with site.running():
        site.arrive(kept[0])
        site.arrive(kept[1], "quick: fail")
        site.arrive(kept[2], "deep: fail")
        site.arrive(kept[3], age_s=3600)
        site.arrive(left_out[0])
        site.arrive(left_out[1], "quick: fail")
        await site.until_settled(6)
    assert account(site) == {
        "quick": Counter(seen=6, done=3, failed=2, expired=1),
        "deep": Counter(seen=6, done=1, failed=1, blocked=2, prescaled=2),
        None: Counter(seen=6, done=2, failed=3, expired=1),
    }
    blocked = {row.reason for row in site.rows(schema.stage_run) if row.state == "blocked"}
    assert blocked == {"quick is failed", "quick is expired"}


async def test_a_failing_branch_of_a_diamond_blocks_its_descendants_only(new_site: NewSite) -> None:
    """P9, V18 (after): the join waits for all its parents; what does not come after the failure is done."""

    def stage(name: str, after: list[str], **inputs: str) -> dict[str, Any]:
        return {"after": after, "steps": [obey(name)], "retries": 0}

    stages = {
        "top": stage("top", []),
        "left": stage("left", ["top"]),
        "right": stage("right", ["top"]),
        "join": stage("join", ["left", "right"]),
        "aside": stage("aside", ["right"]),
    }
    site = new_site(declare(stages))
    async with site.running():
        site.arrive(0, "left: sleep 0.3")
        site.arrive(1, "left: fail")
        await site.until_settled(2)
    states = site.stages()
    assert {stage: states["run=1 subrun=0", stage] for stage in stages} == dict.fromkeys(stages, "done")
    assert {stage: states["run=1 subrun=1", stage] for stage in stages} == {
        "top": "done",
        "left": "failed",
        "right": "done",
        "join": "blocked",
        "aside": "done",
    }
    times = {(row.data_id, row.dataset_type): row for row in site.rows(schema.dataset)}
    attempts = {row.id: row for row in site.rows(schema.attempt)}
    made = {kind: attempts[times["run=1 subrun=0", f"made-{kind}"].attempt_id] for kind in stages}
    assert made["join"].opened_at >= max(made["left"].published_at, made["right"].published_at)
    assert ("run=1 subrun=1", "made-right") in times


# --- P8 -------------------------------------------------------------------------------------------------------------


async def test_a_late_unit_is_expired_before_it_takes_a_slot(new_site: NewSite) -> None:
    """P8, V18 (deadline_s): one that arrives too late, and one whose deadline passes while it waits."""
    stages = {"quick": {"steps": [obey()], "deadline_s": 1.5}}
    site = new_site(declare(stages, pipeline={"limit": 1}))
    async with site.running():
        site.arrive(0, "sleep 2.5")
        await site.until(lambda: site.stages().get(("run=1 subrun=0", "quick")) == "running")
        site.arrive(1)
        site.arrive(2, age_s=60)
        await site.until(lambda: list(site.units().values()).count("expired") == 2)
        assert site.stages()["run=1 subrun=0", "quick"] == "running"
        await site.until_settled(3)
    assert site.units() == {"run=1 subrun=0": "done", "run=1 subrun=1": "expired", "run=1 subrun=2": "expired"}
    assert begun(site) == ["run=1 subrun=0"]
    reasons = {row.reason.partition(" passed")[0] for row in site.rows(schema.stage_run) if row.state == "expired"}
    assert reasons == {"its deadline"}


async def test_a_stage_is_killed_at_its_deadline_where_it_says_so(new_site: NewSite) -> None:
    """P8, V18 (stop_at_deadline): it ends as expired, and is not tried again."""
    quick = {"steps": [obey()], "deadline_s": 6.0, "stop_at_deadline": True, "retries": 5}
    site = new_site(
        declare(
            stream={"rules": [{"when": {"run": 9}, "pipelines": ["calm"]}, {"pipelines": ["dqm"]}]},
            pipelines={"dqm": {"stages": {"quick": quick}}, "calm": {"stages": {"quick": {"steps": [obey()]}}}},
        )
    )
    async with site.running():
        site.arrive(0, "hang")
        await site.until_settled(1)
        # The pilot goes on.
        site.arrive(0, run=9)
        await site.until_done(1)
    attempt = site.rows(schema.attempt)[0]
    assert (attempt.state, attempt.reason) == ("expired", "step obey was killed at the deadline")
    # It would have gone on until its limit of 20 s.
    assert attempt.ended_at - attempt.started_at < 15
    assert site.units()["run=1 subrun=0"] == "expired"
    assert len(site.rows(schema.attempt)) == 2


# --- P11, P14 -------------------------------------------------------------------------------------------------------


async def test_work_is_bound_to_a_pilot_only_when_a_slot_is_free(new_site: NewSite) -> None:
    """P11, V18 (priority): 10,000 queued; never more than ceil(1.5 x 2) in flight; what is most urgent goes next."""
    site = new_site(
        declare(
            stream={
                "rules": [{"when": {"run": 9}, "pipelines": ["urgent"]}, {"pipelines": ["dqm"]}],
                "list_every_s": 3600,
            },
            pipelines={
                "dqm": {"order": "oldest-first", "stages": {"quick": {"steps": [obey()]}}},
                "urgent": {"priority": 5, "stages": {"quick": {"steps": [obey()]}}},
            },
        )
    )
    for subrun in range(10_000):
        site.arrive(subrun, "sleep 0.2")
    most = 0
    async with site.running() as running:
        dispatcher = running.station.handout.dispatcher

        def watch() -> int:
            nonlocal most
            with_pilots = site.count(schema.stage_run, state="running")
            most = max(most, with_pilots, dispatcher.in_flight)
            return with_pilots

        await site.until(lambda: watch() and site.count(schema.sub_job) == 10_000, "10,000 units are taken", 240)
        site.arrive(0, run=9)
        await site.until(lambda: watch() and site.count(schema.sub_job, data_id="run=9 subrun=0"))
        queued_before = site.count(schema.attempt)
        await site.until(lambda: watch() and site.units().get("run=9 subrun=0") == "done")
        assert site.count(schema.stage_run, state="queued") > 9_000
        until = time.monotonic() + 2
        while time.monotonic() < until:
            watch()
            await asyncio.sleep(0.01)
    assert 0 < most <= math.ceil(1.5 * 2)
    # What was in flight when it came, and what was just being opened, was there before it.
    assert begun(site).index("run=9 subrun=0") <= queued_before + 1


async def test_a_limit_queues_and_does_not_discard(new_site: NewSite) -> None:
    """P14, V18 (limit): ten arrive, one runs, nine wait; all are done in the end."""
    site = new_site(declare(pipeline={"limit": 1}))
    async with site.running():
        for subrun in range(10):
            site.arrive(subrun, "sleep 0.15")
        most = 0

        def done() -> bool:
            nonlocal most
            states = Counter(site.stages().values())
            most = max(most, states["running"])
            return states["done"] == 10

        await site.until(done)
    assert most == 1
    spans = sorted((row.started_at, row.ended_at) for row in site.rows(schema.attempt))
    assert all(before[1] <= after[0] for before, after in pairwise(spans))


@pytest.mark.parametrize("order", ["freshest-first", "oldest-first", "earliest-deadline", "first-come"])
async def test_the_order_is_the_pipelines_choice(new_site: NewSite, order: str) -> None:
    """V18 (order), B4: by the time at which the data were taken, the deadline that follows from it, or as they came."""
    stages = {"quick": {"steps": [obey()], "deadline_s": 86_400}}
    site = new_site(declare(stages, pipeline={"limit": 1, "order": order}))
    async with site.running():
        site.arrive(99, f"until {site.path}/go")
        await site.until(lambda: begun(site) == ["run=1 subrun=99"])
        ages = [30, 10, 50, 20, 40]
        for age in ages:
            site.arrive(age, age_s=age * 60)
        await site.until(lambda: len(site.rows(schema.sub_job)) == 6)
        (site.path / "go").touch()
        await site.until_done(6)
    came = [row.data_id for row in site.rows(schema.sub_job)][1:]
    by_age = [f"run=1 subrun={age}" for age in sorted(ages, reverse=order != "freshest-first")]
    assert begun(site)[1:] == (came if order == "first-come" else by_age)


# --- classes --------------------------------------------------------------------------------------------------------


async def test_a_class_has_a_priority_and_a_limit(new_site: NewSite) -> None:
    """P11, P14, V18 (class; priority and limit of a class): it goes first, one at a time, beside the others."""
    rules = [{"when": {"run": 9}, "pipelines": ["alert"]}, {"pipelines": ["dqm"]}]
    stages = {"quick": {"steps": [obey()]}}
    site = new_site(
        declare(
            stream={"rules": rules},
            pipelines={"dqm": {"stages": stages}, "alert": {"class": "urgent", "stages": stages}},
            classes={"urgent": {"priority": 5, "limit": 1}},
        )
    )
    async with site.running():
        for subrun in range(2):
            site.arrive(subrun, f"until {site.path}/go")
        await site.until(lambda: len(begun(site)) == 2)
        for subrun in range(2, 5):
            site.arrive(subrun)
        for subrun in range(3):
            site.arrive(subrun, f"until {site.path}/alerts", run=9)
        await site.until(lambda: len(site.rows(schema.sub_job)) == 8)
        (site.path / "go").touch()
        # The limit of the one class holds up no other: all of run 1 ends while the first of run 9 runs.
        await site.until_done(5)
        order = begun(site)
        (site.path / "alerts").touch()
        await site.until_done(8)
    assert order[2].startswith("run=9")
    assert Counter(unit.split()[0] for unit in order) == {"run=1": 5, "run=9": 1}
    alerts = [unit.startswith("run=9") for unit in begun(site)]
    spans = sorted((row.started_at, row.ended_at) for row in compress(site.rows(schema.attempt), alerts))
    assert all(before[1] <= after[0] for before, after in pairwise(spans))


async def test_overload_leaves_out_at_random_and_says_with_which_probability(new_site: NewSite) -> None:
    """P5, P6, V18 (shed, floors): of 300 that come at once few can end in time; the rest is shed, by its number.

    A class that is not thinned lets its units expire. What a floor lets in is not shed, and done in time before what is
    fresher: most of it, as it begins late enough for a machine that stalls to spoil it.
    """
    stages = {"quick": {"steps": [obey()], "deadline_s": 8}}
    rules = [{"when": {"run": 9}, "pipelines": ["kept"]}, {"pipelines": ["dqm"]}]
    site = new_site(
        declare(
            stream={"rules": rules},
            pipelines={
                "dqm": {"class": "dqm", "stages": stages},
                "kept": {"class": "kept", "stages": stages},
            },
            classes={
                "dqm": {"priority": 1, "floors": [{"when": {"run": 2}, "share": 0.5}]},
                "kept": {"shed": False},
            },
            seed=5,
        )
    )
    async with site.running():
        site.arrive(999)
        await site.until_done(1)
        for subrun in range(150):
            site.arrive(subrun, "sleep 0.1")
        for subrun in range(12):
            site.arrive(subrun, run=2)
        for subrun in range(150, 300):
            site.arrive(subrun, "sleep 0.1")
        for subrun in range(60):
            site.arrive(subrun, "sleep 0.3", run=9)
        await site.until_settled(373)
    u = {row.id: row.u for row in site.rows(schema.sub_job)}
    unit = {row.id: row.data_id for row in site.rows(schema.sub_job)}
    runs = site.rows(schema.stage_run)
    # Who is left out may be done nevertheless, where a slot was idle.
    assert all(u[row.sub_job_id] >= row.q for row in runs if row.state == "shed")
    states = Counter(row.state for row in runs if unit[row.sub_job_id].startswith("run=1 "))
    assert states["shed"] > 100
    # Where the freshest go first, few are kept of what comes at once, and what stands by goes behind the other class.
    assert states["done"] > 5
    assert {row.q for row in runs if unit[row.sub_job_id].startswith("run=9 ")} == {1.0}
    floored = [row for row in runs if unit[row.sub_job_id].startswith("run=2 ")]
    assert min(row.q for row in floored) == 0.5
    owed = [row for row in floored if u[row.sub_job_id] < 0.5]
    taken_at = {row.id: row.taken_at for row in site.rows(schema.sub_job)}
    done_at = {row.stage_run_id: row.ended_at for row in site.rows(schema.attempt) if row.state == "done"}
    in_time = [row for row in owed if done_at.get(row.id, math.inf) - taken_at[row.sub_job_id] <= 8]
    assert len(owed) == 5
    assert {row.state for row in owed} <= {"done", "expired"}
    assert len(in_time) >= 3
    # Chance alone would have left some of them out.
    assert any(u[row.sub_job_id] < 0.5 for row in runs if row.state == "shed")
    assert all("in overload: u = " in row.reason for row in runs if row.state == "shed")


# --- retries --------------------------------------------------------------------------------------------------------


async def test_a_failed_stage_is_tried_again_after_a_while(new_site: NewSite) -> None:
    """V18 (retries, backoff_s): each try is an attempt, and each waits twice as long as the one before."""
    site = new_site(declare({"quick": {"steps": [obey()], "retries": 2, "backoff_s": 0.3}}))
    async with site.running():
        site.arrive(0, "fail")
        await site.until_settled(1)
    attempts = site.rows(schema.attempt)
    assert [row.state for row in attempts] == ["failed"] * 3
    waits = [after.opened_at - before.ended_at for before, after in pairwise(attempts)]
    assert waits[0] >= 0.3
    assert waits[1] >= 0.6
    assert attempts[0].reason == "step obey: ValueError: the data asked for it"
    assert all(b"the data asked for it" in site.store.read_bytes(row.log_key) for row in attempts)


async def test_a_step_is_killed_at_its_limit_and_the_slot_is_clean(new_site: NewSite) -> None:
    """P12, V18 (timeout_s): a payload that hangs in native code is killed; the next unit runs on the same pilot."""
    hanging = {**obey(), "timeout_s": 0.7}
    site = new_site(declare({"quick": {"steps": [hanging], "retries": 0}}))
    async with site.running():
        for subrun in range(3):
            site.arrive(subrun, "hang")
        await site.until_settled(3)
        for subrun in range(3, 7):
            site.arrive(subrun)
        await site.until_done(4)
    attempts = site.rows(schema.attempt)
    assert {row.reason for row in attempts if row.state == "failed"} == {"step obey was killed after its 0.7 s"}
    # It would have gone on for an hour.
    assert all(row.ended_at - row.started_at < 20 for row in attempts)
    hung, went_well = ({row.pilot for row in attempts if row.state == state} for state in ("failed", "done"))
    assert hung & went_well


async def test_a_stage_per_group_has_the_priority_that_it_names(new_site: NewSite) -> None:
    """V18 (priority of a stage, per, after): totals of a closed run overtake what waits."""
    site = new_site(
        declare(
            {"quick": {"steps": [obey()]}, "total": total(priority=3)},
            pipeline={"limit": 1},
            instrument={"closing": {"count": 2}},
        )
    )
    async with site.running():
        site.arrive(0, f"until {site.path}/go")
        await site.until(lambda: begun(site) == ["run=1 subrun=0"])
        site.arrive(1)
        await site.until(lambda: len(site.rows(schema.sub_job)) == 3)
        for subrun in range(6):
            site.arrive(subrun, run=2 + subrun)
        await site.until(lambda: len(site.rows(schema.sub_job)) == 9)
        (site.path / "go").touch()
        await site.until(lambda: ("run=1", "total") in site.stages() and site.stages()["run=1", "total"] == "done")
        assert begun(site).index("run=1") <= 4
