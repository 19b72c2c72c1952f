"""A store belongs to one ledger: the mark is left once, found by others, and taken over by name only."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from p3s_prefect.adapters.directory_store import DirectoryStore
from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.ledger import schema
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.adapters.store_owner import MARK, Owner, adopt, claim, owner_of
from p3s_prefect.core.errors import StoreError, StoreTaken

_EXPERIMENT = Path(__file__).parent.parent / "core" / "good_experiment.yaml"


def _owner(home: str = "/data/night", ledger: UUID | None = None) -> Owner:
    return Owner(ledger=ledger or uuid4(), experiment="night", home=home)


def test_a_store_is_claimed_once(store: DirectoryStore) -> None:
    """V13: by the first ledger, for good; also where its home has moved."""
    first = _owner()
    claim(store, first)
    claim(store, first)
    claim(store, _owner("/moved", first.ledger))
    with pytest.raises(StoreTaken, match="belongs to another ledger, that of 'night' in /data/night") as refused:
        claim(store, _owner("/data/other"))
    assert "p3s adopt" in refused.value.fix


def test_of_many_that_claim_at_once_one_gets_it(store: DirectoryStore) -> None:
    """V13."""

    def got(owner: Owner) -> bool:
        try:
            claim(store, owner)
        except StoreTaken:
            return False
        return True

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(got, [_owner(f"/home{number}") for number in range(8)])) == 1


def test_a_mark_that_cannot_be_read_refuses_everybody(store: DirectoryStore, ledger: Ledger) -> None:
    """V13, S8: until somebody says whose it is."""
    store.put_bytes(MARK, b"{")
    owner = _owner()
    with pytest.raises(StoreTaken, match="does not say which ledger"):
        claim(store, owner)
    assert "nobody knows" in adopt(store, owner, ledger, 0.0)
    claim(store, owner)


def test_a_store_that_cannot_be_written_is_not_taken(tmp_path: Path) -> None:
    """V13: its trouble is told as it is."""
    (tmp_path / "store").write_text("no directory")
    with pytest.raises(StoreError, match="could not be written") as refused:
        claim(DirectoryStore(tmp_path / "store"), _owner())
    assert not isinstance(refused.value, StoreTaken)


def test_a_store_is_adopted_by_name(store: DirectoryStore, ledger: Ledger, tmp_path: Path, programs: None) -> None:
    """V13: the new ledger goes on with it, which its journal tells; the old one is refused from then on."""
    (tmp_path / "experiment.yaml").write_text(_EXPERIMENT.read_text())
    home, old = Home(tmp_path), _owner()
    new = owner_of(ledger, home, home.read(), 5.0)
    assert owner_of(ledger, home, home.read(), 6.0) == new != old
    claim(store, old)
    assert adopt(store, new, ledger, 7.0) == str(old)
    claim(store, new)
    assert adopt(store, new, ledger, 8.0) == str(new)
    with pytest.raises(StoreTaken):
        claim(store, old)
    with ledger.reading() as connection:
        (row,) = connection.execute(schema.journal.select()).all()
    assert (row.at, row.kind, row.subject) == (7.0, "store.adopted", store.url)
    assert row.detail == {"before": str(old)}
