"""The block of the central store: files below its directory, whole or not at all."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from p3s_prefect.blocks import CentralStore
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
