"""The block of the central store: files below its directory, whole or not at all."""

from __future__ import annotations

import importlib
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from p3s_prefect.adapters.bucket_url import bucket_url
from p3s_prefect.adapters.s3_client import keys_in
from p3s_prefect.adapters.stores import open_store
from p3s_prefect.blocks import CentralStore
from p3s_prefect.core.bucket_place import BucketPlace
from p3s_prefect.core.errors import BadName, ObjectMissing


def test_what_is_written_is_read(tmp_path: Path) -> None:
    """S2: both ways in which Prefect asks."""
    store = CentralStore(directory=str(tmp_path))
    assert store.write_path("a/b.json", b"1") == str(tmp_path / "prefect/a/b.json")
    assert store.read_path("a/b.json") == b"1"


async def test_what_is_written_is_read_asynchronously(tmp_path: Path) -> None:
    """S2: as Prefect's asynchronous tasks ask."""
    store = CentralStore(directory=str(tmp_path))
    await store.awrite_path("a/b.json", b"1")
    assert await store.aread_path("a/b.json") == b"1"


def test_a_later_result_takes_the_place_of_an_earlier_one(tmp_path: Path) -> None:
    """S2: and leaves nothing half-written."""
    store = CentralStore(directory=str(tmp_path))
    store.write_path("a", b"1")
    store.write_path("a", b"2")
    assert store.read_path("a") == b"2"
    assert [path.name for path in (tmp_path / "prefect").iterdir()] == ["a"]


@pytest.mark.parametrize("path", ["../runs/a", "/etc/passwd", "a/../../b", "", "out/secret"])
def test_nothing_outside_is_reached(tmp_path: Path, path: str) -> None:
    """S7: a path, or a link, that leads out of the store is refused, for reading and for writing."""
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "prefect").mkdir()
    (tmp_path / "prefect/out").symlink_to(tmp_path)
    store = CentralStore(directory=str(tmp_path))
    with pytest.raises(BadName):
        store.read_path(path)
    with pytest.raises(BadName):
        store.write_path(path, b"x")
    assert (tmp_path / "secret").read_text() == "secret"


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    """S8: the error names it."""
    with pytest.raises(ObjectMissing, match=r"a\.json"):
        CentralStore(directory=str(tmp_path)).read_path("a.json")


def test_prefect_knows_the_block() -> None:
    """S2: through the entry point that Prefect reads at its start."""
    (found,) = [entry for entry in entry_points(group="prefect.collections") if entry.name == "p3s_prefect"]
    assert importlib.import_module(found.value).CentralStore is CentralStore
    assert CentralStore.get_block_type_slug() == "p3s-central-store"
    assert set(CentralStore.get_block_capabilities()) >= {"read-path", "write-path"}


@pytest.mark.sockets
async def test_results_are_kept_in_a_bucket(s3_place: BucketPlace) -> None:
    """S2, S3: both ways in which Prefect asks; a later result takes the place of an earlier one."""
    keys = keys_in(Path(str(s3_place.credentials)))
    store = CentralStore(
        url=s3_place.address, endpoint=s3_place.endpoint, access_key=keys.access_key, secret_key=keys.secret_key
    )
    assert store.write_path("a/b.json", b"1") == f"{s3_place.address}/prefect/a/b.json"
    await store.awrite_path("a/b.json", b"2")
    assert await store.aread_path("a/b.json") == store.read_path("a/b.json") == b"2"
    with pytest.raises(ObjectMissing, match=r"c\.json"):
        store.read_path("c.json")
    for path in ("../runs/a", "/etc/passwd", "a/../../b", ""):
        with pytest.raises(BadName):
            store.write_path(path, b"x")
    # A stage that runs in this process may use the same bucket, by an order that names no keys.
    order = replace(s3_place, credentials=None)
    assert open_store(bucket_url(order)).put_bytes("runs/a", b"some").size == 4


@pytest.mark.sockets
def test_keys_may_stand_in_a_file(s3_place: BucketPlace) -> None:
    """S2, S7: of which the block names the path alone."""
    store = CentralStore(url=s3_place.address, endpoint=s3_place.endpoint, credentials=s3_place.credentials)
    store.write_path("a", b"1")
    assert store.read_path("a") == b"1"


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"directory": "/a", "url": "s3://night/store"},
        {"url": "https://host/a"},
        {"url": "s3://key:secret@night"},
        {"url": "s3://night", "endpoint": "host:9000"},
        {"url": "s3://night", "access_key": "key"},
    ],
)
def test_a_block_that_is_wrong_is_refused(fields: dict[str, Any]) -> None:
    """S7, S8: when it is made, and without repeating a key."""
    with pytest.raises(ValidationError) as told:
        CentralStore(**fields)
    assert "secret@" not in str(told.value)


def test_a_secret_key_is_never_shown() -> None:
    """S7: not by the block, and not in what Prefect keeps openly."""
    keys = {"access_key": "the-key", "secret_key": "the-secret"}
    store = CentralStore(url="s3://night", **keys)
    assert "the-secret" not in repr(store) + str(store) + store.model_dump_json()
    assert "the-key" not in repr(store) + store.model_dump_json()
