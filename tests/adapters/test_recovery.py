"""What a new station makes of what ran when the last one ended, from what stands in the store."""

from __future__ import annotations

from pathlib import Path

import pytest
from builders import NOW, manifest, take_and_start
from damaged_stores import OneIsBad

from p3s_prefect.adapters.directory_store import DirectoryStore
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.core.errors import ChecksumMismatch, ObjectMissing, StoreError, StoreUnreachable
from p3s_prefect.station.recovery import manifests, recover


def _two_ran(ledger: Ledger, root: Path) -> tuple[str, str]:
    """The prefixes of two attempts with their manifests in the store."""
    store = DirectoryStore(root)
    with ledger.transaction() as connection:
        bad, good = (take_and_start(connection, subrun) for subrun in (0, 1))
    for one in (bad, good):
        store.put_bytes(f"{one.prefix}/e1/manifest.json", manifest(one).model_dump_json().encode())
    return bad.prefix, good.prefix


@pytest.mark.parametrize("error", [ChecksumMismatch, ObjectMissing, StoreError])
def test_a_manifest_that_cannot_be_read_keeps_no_station_from_starting(
    ledger: Ledger, tmp_path: Path, error: type[StoreError]
) -> None:
    """S8, V13: its stage runs again, and what else ran is published."""
    bad, _ = _two_ran(ledger, tmp_path)
    with ledger.reading() as connection:
        found = manifests(connection, OneIsBad(tmp_path, bad, error("it is bad")))
    with ledger.transaction() as connection:
        assert recover(connection, found, NOW + 60) == (1, 1)


def test_a_place_that_cannot_be_listed_keeps_no_station_from_starting(ledger: Ledger, tmp_path: Path) -> None:
    """S8, V13: a link that leads to itself, which nobody can follow."""
    bad, _ = _two_ran(ledger, tmp_path)
    path = tmp_path / bad / "e1" / "manifest.json"
    path.unlink()
    path.symlink_to(path.name)
    with ledger.reading() as connection:
        found = manifests(connection, DirectoryStore(tmp_path))
    with ledger.transaction() as connection:
        assert recover(connection, found, NOW + 60) == (1, 1)


def test_what_a_store_that_is_away_has_is_not_taken_for_nothing(ledger: Ledger, tmp_path: Path) -> None:
    """V13, P13: else what was made would be made again."""
    bad, _ = _two_ran(ledger, tmp_path)
    with ledger.reading() as connection, pytest.raises(StoreUnreachable):
        manifests(connection, OneIsBad(tmp_path, bad, StoreUnreachable("it is away")))
