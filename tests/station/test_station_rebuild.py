"""A ledger that was lost is filled again from what the station has left in the store (S10)."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sites import NewSite, Site, declare, obey, total
from sqlalchemy import Table, select

from p3s_prefect.adapters.ledger import schema
from p3s_prefect.adapters.ledger.adoption import NOT_RECORDED
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.core.agreement import Trouble
from p3s_prefect.core.commit_record import configuration_key
from p3s_prefect.core.records import Manifest
from p3s_prefect.station import replacing
from p3s_prefect.station.taking_over import TakenOver, take_over

pytestmark = pytest.mark.sockets

NOW = 1_900_000_000.0
STAGES = {
    "quick": {"steps": [obey("quick")]},
    "deep": {"after": ["quick"], "steps": [obey("deep")]},
    "rare": {"after": ["quick"], "steps": [obey("rare")], "prescale": 0.5},
    "total": total(),
}


async def _a_run(site: Site) -> None:
    """Eight units, one of which fails in its second stage, and their total."""
    async with site.running():
        for subrun in range(8):
            site.arrive(subrun, "deep: fail" if subrun == 5 else f"data of {subrun}")
        await site.until_settled(9)
        await site.until(lambda: site.count(schema.attempt, state="done", is_recorded=False) == 0, "all are recorded")


@pytest.fixture
def new_ledger(tmp_path: Path) -> Iterator[Ledger]:
    with closing(Ledger(f"sqlite:///{tmp_path}/rebuilt.db")) as ledger:
        ledger.migrate()
        yield ledger


def _rows(ledger: Ledger, table: Table, *without: str, **where: Any) -> list[dict[str, Any]]:
    query = select(*(column for column in table.c if column.name not in without)).order_by(*table.primary_key.columns)
    for name, value in where.items():
        query = query.where(table.c[name] == value)
    with ledger.reading() as connection:
        return [dict(row._mapping) for row in connection.execute(query)]


def _troubles(taken: TakenOver) -> Counter[Trouble]:
    return Counter(one.trouble for one in taken.findings)


async def test_datasets_lineage_and_configurations_are_those_of_the_lost_ledger(
    new_site: NewSite, new_ledger: Ledger
) -> None:
    """S10, P2: rebuilt from the store of a real station: the same rows with the same numbers; only ends are unknown."""
    site = new_site(declare(STAGES, instrument={"closing": {"count": 8}}))
    await _a_run(site)
    taken = take_over(new_ledger, site.store, NOW)
    assert taken.findings == []
    assert taken.publications == len(_rows(site.ledger, schema.attempt, state="done"))
    for table, without in (
        (schema.dataset, ()),
        (schema.lineage, ("id",)),
        (schema.product, ("id",)),
        (schema.summary_value, ()),
        (schema.configuration, ("stored_at",)),
        (schema.run_collection, ()),
        (schema.job, ()),
        (schema.production_pass, ()),
        (schema.data_group, ()),
        (schema.arrival, ()),
    ):
        assert _rows(new_ledger, table, *without) == _rows(site.ledger, table, *without), table.name
    done = {"state": "done"}
    assert _rows(new_ledger, schema.attempt, **done) == _rows(site.ledger, schema.attempt, **done)
    # Its q with it, from which the weights follow; a stage that failed after the last record of its unit is unknown.
    old, new = _rows(site.ledger, schema.stage_run), _rows(new_ledger, schema.stage_run)
    unlike = [(was["state"], now["state"], now["reason"]) for was, now in zip(old, new, strict=True) if was != now]
    assert unlike == [("failed", "cancelled", NOT_RECORDED)]
    assert taken.not_recorded == 1
    assert {row["state"] for row in new} == {"done", "cancelled", "prescaled"}


async def test_a_station_goes_on_with_a_rebuilt_ledger(new_site: NewSite) -> None:
    """S10, P2, V13: what was processed is known by its file; what comes next goes into a pass of its own."""
    site = new_site(declare(STAGES, instrument={"closing": {"count": 8}}))
    await _a_run(site)
    before = {row.key: row.sha256 for row in site.rows(schema.dataset)}
    site.close()
    site._ledger = None
    for file in site.path.glob("ledger.db*"):
        file.unlink()
    # With the id of the old one, to which the store belongs.
    assert replacing.rebuild(site.home, replace=False, progress=lambda *_: None).taken.findings == []
    async with site.running():
        site.arrive(20)
        await site.until(lambda: site.units().get("run=1 subrun=20") == "done", "the next unit is done")
    assert site.count(schema.arrival) == 9
    # In the pass after the one that had closed.
    assert {row.number for row in site.rows(schema.production_pass)} == {0, 1}
    after = {row.key: row.sha256 for row in site.rows(schema.dataset)}
    assert before.items() < after.items()
    assert take_over(site.ledger, site.store, NOW).publications == 0


async def test_what_cannot_be_told_is_reported_and_not_guessed(new_site: NewSite, new_ledger: Ledger) -> None:
    """S10: damage of every kind to what a rebuild rests on."""
    site = new_site(declare({"quick": {"steps": [obey()]}}))
    async with site.running():
        for subrun in range(8):
            site.arrive(subrun)
        await site.until_done(8)
        await site.until(lambda: site.count(schema.attempt, is_recorded=False) == 0, "all are recorded")
    attempts = site.rows(schema.attempt)
    places = [f"{row.prefix}/{row.execution}" for row in attempts]
    file = {place: site.path / "store" / place for place in places}
    made = {row.attempt_id: site.path / "store" / row.key for row in site.rows(schema.dataset)}
    (file[places[0]] / "commit.json").unlink()  # a manifest without commit record
    (file[places[1]] / "manifest.json").unlink()  # a commit record without manifest
    made[attempts[2].id].unlink()  # a commit record without its objects
    _overwrite(made[attempts[3].id], made[attempts[3].id].read_bytes().swapcase())  # another checksum
    _overwrite(file[places[4]] / "commit.json", b'{"version": 2}')
    _publish_again(site, places[5])  # two attempts both committed
    taken = take_over(new_ledger, site.store, NOW)
    assert _troubles(taken) == {
        Trouble.UNRECORDED: 1,
        Trouble.NO_MANIFEST: 1,
        Trouble.MISSING: 1,
        Trouble.CHECKSUM: 1,
        Trouble.UNREADABLE: 1,
        Trouble.TWICE: 2,
    }
    assert all(one.told for one in taken.findings)
    assert (taken.publications, len(_rows(new_ledger, schema.dataset, damage=None))) == (4, 2)
    # With a word from somebody who knows, the second look takes over one of the two, and nothing twice.
    again = take_over(new_ledger, site.store, NOW, prefer="later")
    assert (again.publications, again.known) == (1, 4)
    (row,) = _rows(new_ledger, schema.attempt, number=1)
    assert row["prefix"].endswith("attempt1")


async def test_without_the_configuration_nothing_is_made_up(new_site: NewSite, new_ledger: Ledger) -> None:
    """S10: a collection is named by its configuration, whose content nobody can guess."""
    site = new_site(declare())
    async with site.running():
        site.arrive(0)
        await site.until_done(1)
        await site.until(lambda: site.count(schema.attempt, is_recorded=False) == 0, "it is recorded")
    (row,) = site.rows(schema.configuration)
    _overwrite(site.path / "store" / configuration_key(row.id), json.dumps(row.content | {"software": {}}).encode())
    taken = take_over(new_ledger, site.store, NOW)
    assert (taken.publications, _troubles(taken)) == (0, {Trouble.UNREADABLE: 1})
    assert row.id in taken.findings[0].what


def _overwrite(path: Path, content: bytes) -> None:
    path.chmod(0o644)
    path.write_bytes(content)


def _publish_again(site: Site, place: str) -> None:
    """As a ledger would that was restored and not reconciled: the next attempt at the same, committed too."""
    prefix, _, execution = place.rpartition("/")
    other = prefix.removesuffix("0") + "1"
    record = json.loads(site.store.read_bytes(f"{place}/commit.json"))
    manifest = Manifest.model_validate_json(site.store.read_bytes(f"{place}/manifest.json"))
    record["attempt"] |= {
        "id": 900,
        "number": 1,
        "prefix": other,
        "published_at": record["attempt"]["published_at"] + 9,
    }
    record["datasets"] = dict.fromkeys(record["datasets"], 900)
    moved = [one.model_copy(update={"key": one.key.replace(prefix, other)}) for one in manifest.outputs]
    manifest = manifest.model_copy(update={"attempt_id": 900, "outputs": moved, "log": None})
    for one, old in zip(moved, site.store.list(f"{place}/obey"), strict=True):
        site.store.put_bytes(one.key, site.store.read_bytes(old.key))
    site.store.put_bytes(f"{other}/{execution}/manifest.json", manifest.model_dump_json().encode())
    site.store.put_bytes(f"{other}/{execution}/commit.json", json.dumps(record).encode())
