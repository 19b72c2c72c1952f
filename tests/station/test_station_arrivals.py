"""From a file that appears to results that are published, with nobody giving a command."""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import shutil
import threading
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sites import PATIENCE_S, NewSite, Site, declare, shell

from p3s_prefect.adapters.ledger import schema
from p3s_prefect.adapters.replay import replay
from p3s_prefect.adapters.steering import Steering
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.health import Status
from p3s_prefect.core.replay import Fault, PlannedFile, ReplayPlan, patterns_of
from p3s_prefect.instruments.lst1.sample import replay_writer
from p3s_prefect.station.checksums import Checksums

pytestmark = pytest.mark.sockets


def verdicts(site: Site) -> dict[str, list[str]]:
    """What became of the arrivals, by key."""
    found: dict[str, list[str]] = {}
    for row in site.rows(schema.arrival):
        found.setdefault(row.key, []).append(row.verdict)
    return found


# --- P1 -------------------------------------------------------------------------------------------------------------


async def test_a_file_appears_and_its_results_are_published(new_site: NewSite) -> None:
    """P1: no command is given."""
    site = new_site()
    async with site.running():
        site.arrive(0, "hello")
        await site.until_done(1)
    assert site.text("made-quick", "run=1 subrun=0") == "HELLO"


async def test_the_telescope_camera_from_end_to_end(new_site: NewSite, tmp_path: Path) -> None:
    """P1, P17, P22: real events in, pictures and run totals with their coverage out."""
    site = new_site()
    text = files("p3s_prefect.instruments.lst1").joinpath("experiment.yaml").read_text()
    site.home.experiment_file.write_text(text + "\nstation: {port: 0, grace_s: 0}\n")
    names, marker = patterns_of(site.experiment)
    plan = ReplayPlan(pattern=names, marker=marker, first_run=2008, runs=1, subruns_per_run=3, rate_hz=100, burst=1)
    async with site.running() as running:
        await asyncio.to_thread(list, replay(site.incoming, plan, replay_writer(noisy_pixel=None, seed=1)))
        await site.until_settled(4, patience_s=90)
        status = await running.get("/api/status")
        unit = await running.get("/api/units/waveform-dqm/0/run=2008")
    assert set(site.stages().values()) == {"done"}
    (total,) = [row for row in site.rows(schema.dataset) if row.dataset_type == "run_statistics"]
    with np.load(site.store.fetch(total.key, tmp_path, total.sha256)) as arrays:
        assert arrays["subrun"].tolist() == [0, 1, 2]
    (attempt,) = [row for row in site.rows(schema.attempt) if row.coverage]
    assert attempt.coverage == {"done": 3}
    assert len(site.rows(schema.product)) > 6
    assert unit["unit"]["state"] == "done"
    assert [row["done"] for row in status["account"]] == [3, 1]


async def test_what_is_wrong_with_a_telescope_file_is_said_and_touches_no_other(new_site: NewSite) -> None:
    """P2, P3, P22, S8: cut, damaged, empty, sent again, written anew and late subruns among good ones."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201
    site = new_site()
    text = files("p3s_prefect.instruments.lst1").joinpath("experiment.yaml").read_text()
    site.home.experiment_file.write_text(text + "\nstation: {port: 0, grace_s: 0}\n")
    names, marker = patterns_of(site.experiment)
    assert marker is not None

    def planned(subrun: int, fault: Fault | None = None, *, version: int = 0) -> PlannedFile:
        data_id = DataId.of(run=2008, subrun=subrun)
        return PlannedFile(at_s=0, name=names.format(data_id), data_id=data_id, fault=fault, version=version)

    def play(*plan: PlannedFile) -> None:
        list(replay(site.incoming, plan, replay_writer(noisy_pixel=None, seed=1), seed=seed))

    run = DataId.of(run=2008)
    first = (planned(0), planned(1, Fault.TRUNCATED), planned(2, Fault.CORRUPTED), planned(3), planned(4), planned(5))
    second = (planned(3, Fault.RESENT), planned(4, Fault.REWRITTEN, version=1))
    closed = PlannedFile(at_s=0, name=marker.format(run), data_id=run, marker=True)
    empty = site.incoming / planned(6).name
    async with site.running():
        await asyncio.to_thread(play, *first)
        empty.touch()
        await site.until_settled(7, patience_s=90)
        await asyncio.to_thread(play, *second)
        await site.until(lambda: len(site.rows(schema.arrival)) == 9, "what came again is known")
        await asyncio.to_thread(play, closed)
        await site.until(lambda: site.count(schema.data_group, is_open=False) == 1, "the run is closed")
        await asyncio.to_thread(play, planned(7, Fault.LATE))
        await site.until_settled(10, patience_s=90)
    found = verdicts(site)
    assert found[second[0].name] == ["taken", "same"]
    assert found[second[1].name] == ["taken", "conflict"]
    states = {data_id.removeprefix("run=2008 subrun="): state for data_id, state in site.units().items()}
    assert states == {**dict.fromkeys("03457", "done"), **dict.fromkeys("126", "failed")}
    said = sorted(row.reason for row in site.rows(schema.stage_run) if row.state == "failed")
    for subrun, reason in zip("126", said, strict=True):
        told = f"step statistics: ValueError: LST-1.Run02008.000{subrun}.fits is not a usable LST-1 subrun file: "
        assert reason.startswith(told)
        assert len(reason) > len(told)
    # The late one opens a second pass of the run; what was totalled before stays.
    coverages = [row.coverage for row in site.rows(schema.attempt) if row.coverage]
    assert coverages == [{"done": 4, "failed": 3}, {"done": 5, "failed": 3}]


# --- P2, P3 ---------------------------------------------------------------------------------------------------------


async def test_each_unit_is_taken_once_whatever_is_heard_of_it(new_site: NewSite) -> None:
    """P2: late, early, renamed, re-touched, copied and replaced files, with notifications and listings at once."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201
    chance = random.Random(seed)
    site = new_site(declare(stream={"list_every_s": 0.1}))
    for subrun in range(5):
        site.arrive(subrun)  # before the station is there
    async with site.running():
        for subrun in range(5, 20):
            site.arrive(subrun, age_s=chance.choice([0, 3600, 1e7, -3600]))
        await site.until_done(20)
        touched, replaced = site.incoming / site.name(0), site.incoming / site.name(1)
        os.utime(touched)
        site.arrive(1, "other content")
        (site.incoming / "again").mkdir()
        (site.incoming / site.name(2)).rename(site.incoming / "again" / site.name(2))
        shutil.copy(site.incoming / site.name(3), site.incoming / "again" / site.name(3))
        await site.until(lambda: len(site.rows(schema.arrival)) == 24, "all identities are known")
        site.arrive(20)
        await site.until_done(21)
    found = verdicts(site)
    assert found[touched.name] == ["taken", "same"]
    assert found[replaced.name] == ["taken", "conflict"]
    assert found[f"again/{site.name(2)}"] == found[f"again/{site.name(3)}"] == ["same"]
    assert len(site.rows(schema.sub_job)) == 21
    assert site.text("made-quick", "run=1 subrun=1") == "DATA OF 1 1"


async def test_a_conflict_is_shown(new_site: NewSite) -> None:
    """P2: it stands in the ledger with its reason, and in the status with what to do."""
    site = new_site()
    async with site.running() as running:
        site.arrive(0, "first")
        await site.until_done(1)
        site.arrive(0, "second")
        await site.until(lambda: len(site.rows(schema.arrival)) == 2)
        status = await running.get("/api/status")
    (_, conflict) = site.rows(schema.arrival)
    assert conflict.reason == f"other bytes than {site.name(0)}, which was taken before; the first one stays"
    assert conflict.sha256 == hashlib.sha256(b"second").hexdigest()
    (row,) = [row for row in status["health"] if row["name"] == "arrivals"]
    assert row["status"] == Status.DEGRADED
    assert row["actual"].startswith("0 refused, 1 conflicting")


async def test_nobody_waits_while_a_file_is_compared(new_site: NewSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """P2, P22: neither another arrival, nor a marker, nor who shuts the gate; and what is found out is not lost."""
    closing = {"closing": {"marker": "r{run:03d}.closed"}}
    site = new_site(declare(instrument=closing, stream={"list_every_s": 0.1}))
    begun, may_end = threading.Event(), threading.Event()
    both = Checksums.both

    def slow(*given: Any) -> Any:
        begun.set()
        may_end.wait()
        return both(*given)

    monkeypatch.setattr(Checksums, "both", slow)
    async with site.running() as running:
        try:
            site.arrive(0, "first")
            await site.until_done(1)
            site.arrive(0, "second")
            await site.until(begun.is_set)
            async with asyncio.timeout(PATIENCE_S), running.station.intake.gate.shut():
                pass
            site.arrive(1)
            await site.until_done(2)
            (site.incoming / "r001.closed").touch()
            await site.until(lambda: site.count(schema.data_group, is_open=False) == 1)
            assert verdicts(site)[site.name(0)] == ["taken"]
        finally:
            may_end.set()
        await site.until(lambda: verdicts(site)[site.name(0)] == ["taken", "conflict"])


async def test_a_file_is_not_read_before_it_is_complete(new_site: NewSite) -> None:
    """P3: a manifest that does not fit keeps its file out, and the status says that something waits."""
    site = new_site(declare(stream={"complete": {"by": "manifest", "suffix": ".sha256"}, "list_every_s": 0.1}))
    async with site.running() as running:
        path = site.arrive(0, "half")
        manifest = path.with_name(f"{path.name}.sha256")
        manifest.write_text(hashlib.sha256(b"half and the rest").hexdigest())
        site.arrive(1)
        await site.until(lambda: running.station.sources[0].incomplete == 2)
        status = await running.get("/api/status")
        assert "2 incomplete" in next(row["actual"] for row in status["health"] if row["name"] == "source camera")
        assert site.rows(schema.arrival) == []
        site.arrive(0, "half and the rest")
        await site.until_done(1)
    (arrival,) = site.rows(schema.arrival)
    assert arrival.sha256 == hashlib.sha256(b"half and the rest").hexdigest()


async def test_hostile_files_do_no_harm(new_site: NewSite) -> None:
    """S8, P2: refused with a reason, each once; the next good file is taken."""
    site = new_site(declare(stream={"list_every_s": 0.1}))
    for name in (b"\xff\xfe", b"r001_0001.txt\n", b"..", b"r001_0001.txt;rm -rf", b"y" * 250):
        if name != b"..":
            Path(os.fsdecode(os.fsencode(site.incoming) + b"/" + name)).write_text("x")
    os.mkfifo(site.incoming / site.name(2))
    (site.incoming / site.name(3)).symlink_to(site.home.experiment_file)
    async with site.running() as running:
        site.arrive(7)
        await site.until_done(1)
        listed_at = running.station.sources[0].listed_at
        await site.until(lambda: (running.station.sources[0].listed_at or 0) > (listed_at or 0))
        await running.get("/api/arrivals")
    assert sorted(verdict for found in verdicts(site).values() for verdict in found) == ["refused"] * 6 + ["taken"]


async def test_a_file_that_changes_after_it_was_taken_fails_clearly(new_site: NewSite) -> None:
    """P2, S8: the unit says that its file is no longer the one that arrived; the next one is not affected."""
    site = new_site(declare(pipeline={"limit": 1}))
    async with site.running():
        site.arrive(0, f"until {site.path}/go")
        await site.until(lambda: site.stages().get(("run=1 subrun=0", "quick")) == "running")
        changing = site.arrive(1, "before")
        await site.until(lambda: ("run=1 subrun=1", "quick") in site.stages(), "it waits behind the other")
        changing.write_text("after, and longer")
        (site.path / "go").touch()
        site.arrive(2)
        await site.until_settled(3)
    (failed,) = [row for row in site.rows(schema.stage_run) if row.state == "failed"]
    assert failed.reason == f"{changing.name} is no longer the file that arrived"
    assert site.units()["run=1 subrun=2"] == "done"


async def test_a_file_that_is_sent_again_while_its_unit_waits_is_processed(new_site: NewSite) -> None:
    """P1, P2: in overload units wait for a minute, and transfers try again; neither the unit nor the file is lost."""
    site = new_site(declare(stream={"list_every_s": 0.1}))
    async with site.running() as running:
        steering = Steering(site.experiment, site.ledger, by="ana")
        steering.pause("dqm", why="so that it waits")
        await running.until_steered()
        site.arrive(0, "the same")
        await site.until(lambda: site.units(), "it is taken")
        again = site.arrive(0, "the same")
        os.utime(again, (5, 5))
        await site.until(lambda: len(site.rows(schema.arrival)) > 1, "it is seen again")
        steering.release("dqm", why="go on")
        await site.until_done(1)
    assert set(verdicts(site)[again.name]) == {"taken", "same"}
    assert site.text("made-quick", "run=1 subrun=0") == "THE SAME"


# --- P15, P17 -------------------------------------------------------------------------------------------------------


async def test_a_shell_script_is_a_step(new_site: NewSite) -> None:
    """P15, V18 (command, inputs, outputs): with no import of ours; its log and its exit code are kept."""
    site = new_site()
    script = site.path / "count.sh"
    script.write_text(
        '#!/bin/sh\necho "counting $P3S_UNIT"\nwc -c < "$P3S_INPUT_RAW" > "$P3S_OUTPUT_COUNT"\n'
        'grep -q bad "$P3S_INPUT_RAW" && exit 7\nexit 0\n'
    )
    script.chmod(0o755)
    step = {
        "name": "count",
        "command": ["./count.sh"],
        "inputs": {"raw": "raw"},
        "outputs": {"count": "count"},
    }
    site.declare(declare({"quick": {"steps": [step], "retries": 0}}))
    async with site.running() as running:
        site.arrive(0, "12345")
        site.arrive(1, "bad")
        await site.until_settled(2)
        answers = await running.get("/api/units/dqm/0/run=1/subrun=1")
    assert site.text("count", "run=1 subrun=0").strip() == "5"
    assert site.units() == {"run=1 subrun=0": "done", "run=1 subrun=1": "failed"}
    (failed,) = [row for row in site.rows(schema.attempt) if row.state == "failed"]
    assert failed.reason.endswith("count.sh exited with 7")
    assert site.store.read_bytes(failed.log_key).startswith(b"counting run=1 subrun=1")
    assert answers["unit"]["state"] == "failed"


async def test_products_and_summary_values_describe_themselves(new_site: NewSite) -> None:
    """P17: what a script writes beside its outputs is in the ledger and on the page, with no page code."""
    script = """
printf '{"noise": {"value": 4.5, "unit": "ADC"}, "good": {"value": true}}' > summary.json
printf '[{"category": "Camera", "title": "A picture", "file": "a.txt", "shows": "all"}]' > products.json
echo picture > a.txt
"""
    site = new_site(declare({"quick": {"steps": [shell(script)]}}))
    async with site.running() as running:
        site.arrive(0)
        await site.until_done(1)
        unit = await running.get("/api/units/dqm/0/run=1/subrun=0")
    assert {row.name: (row.value, row.unit) for row in site.rows(schema.summary_value)} == {
        "noise": (4.5, "ADC"),
        "good": (True, ""),
    }
    (product,) = site.rows(schema.product)
    assert (product.category, product.title, product.shows) == ("Camera", "A picture", "all")
    assert site.store.read_bytes(product.key) == b"picture\n"
    assert "A picture" in str(unit)
