"""The plain road on what a facility has: its ledger in PostgreSQL, its store in a bucket."""

from __future__ import annotations

from pathlib import Path

import pytest
from batches import Batch
from postgresql import Ledgers
from s3_servers import SeaweedServer
from sqlalchemy import select

from p3s_prefect.adapters.ledger import schema
from p3s_prefect.core.bucket_place import BucketPlace

pytestmark = pytest.mark.sockets


def test_files_are_produced_into_a_bucket_and_a_server_s_ledger(
    prefect_api: str,
    seaweed: SeaweedServer,
    s3_place: BucketPlace,
    postgresql_ledgers: Ledgers,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """S2, S3, S4: results, Prefect's and commit records stand in the bucket; a second run does nothing."""
    from p3s_prefect.flows.produce import produce

    # The cluster that the flow starts inherits it, as on any machine.
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(seaweed.credentials))
    with postgresql_ledgers.new() as name:
        site = {
            "store": {"url": s3_place.address, "endpoint": s3_place.endpoint},
            "ledger": {"url": postgresql_ledgers.server.url(name)},
        }
        batch = Batch.of(tmp_path / "home", {0: "a", 1: "fail", 2: "c"}, site)
        first = produce(batch.files, home=str(batch.path), return_state=True)
        before = batch.rows(select(schema.attempt))
        batch.file(1).unlink()
        again = produce(batch.files, home=str(batch.path), return_state=True)
        store = batch.home.store(batch.home.read())
        assert first.is_failed(), first
        assert again.is_completed(), again
        assert batch.dataset("total") == 'A\nC\n{"done": 2, "failed": 1}\n'
        assert batch.rows(select(schema.attempt)) == before
        records = [f"{row.prefix}/{row.execution}/commit.json" for row in before if row.state == "done"]
        assert len(records) == 5
        kept = {found.key for found in store.list("")}
        (collection,) = {row.run_collection for row in batch.rows(select(schema.production_pass))}
        assert {*records, f"prefect/{collection}/run=1/subrun=0/quick.json"} <= kept
