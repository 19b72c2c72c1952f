"""`p3s up --store s3`: an S3 server of the home's own, for those who want to try."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from sites import Site, declare
from supervised import family, p3s

from p3s_prefect.adapters import s3_server
from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.ledger import schema
from p3s_prefect.adapters.own_place import OwnServer
from p3s_prefect.adapters.own_store import choose_own_store, own_store_programs
from p3s_prefect.adapters.s3_client import keys_in
from p3s_prefect.adapters.supervision import Services
from p3s_prefect.core.bucket_place import BucketPlace
from p3s_prefect.core.errors import ServiceError, StoreError

pytestmark = pytest.mark.sockets


async def test_up_with_a_store_of_its_own(prepared: Callable[..., Site]) -> None:
    """S3, S7, P12: results lie in its bucket, and are found there; keys are nobody else's; down ends it."""
    site = prepared(declare(pilots={"workers": 1}))
    up = p3s("up", "--store", "s3", "--home", str(site.path))
    assert up.returncode == 0, up.stdout + up.stderr
    site.arrive(0, "hello")
    await site.until_done(1)
    assert site.text("made-quick", "run=1 subrun=0") == "HELLO"
    assert site.store.url.startswith("s3://results?endpoint=http://127.0.0.1:")
    assert not (site.path / "store").exists()
    own = OwnServer(site.path)
    _nobody_else_has_the_keys(site, own)
    assert own.place() == site.home.place(site.experiment)
    assert p3s("down", "--home", str(site.path)).returncode == 0
    assert family(site) == []
    assert Services(site.home).processes() == []
    with pytest.raises(StoreError, match="does not answer"):
        site.store.read_bytes(site.rows(schema.dataset)[0].key)


def _nobody_else_has_the_keys(site: Site, own: OwnServer) -> None:
    secret = keys_in(own.credentials).secret_key
    holders = {path for path in site.path.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()}
    # The server's own database is its own business, and lies below s3/ with what it keeps.
    assert {path for path in holders if own.data not in path.parents} == {
        own.credentials,
        own.config / "identities.json",
    }
    assert {path.stat().st_mode & 0o777 for path in holders if own.data not in path.parents} == {0o600}
    for process in family(site):
        assert secret not in " ".join(process.cmdline())
        assert secret not in process.environ().values()


def test_a_store_of_its_own_is_for_homes_without_results(tmp_path: Path) -> None:
    """S3, S8: results that are elsewhere would be lost from sight."""
    site = Site(tmp_path / "home", "", declare())
    site.store.put_bytes("runs/a", b"some")
    with pytest.raises(ServiceError, match="results of this home are in file://"):
        choose_own_store(site.home, site.experiment)
    site.store.delete("runs/a")
    choose_own_store(site.home, site.experiment)
    assert isinstance(site.home.place(site.experiment), BucketPlace)
    choose_own_store(site.home, site.experiment)
    OwnServer(site.path).address_file.write_text("{}")
    with pytest.raises(StoreError, match=r"server\.json cannot be read"):
        site.home.place(site.experiment)


def test_a_declared_bucket_goes_before_a_store_of_its_own(tmp_path: Path) -> None:
    """S3, S8."""
    site = Site(tmp_path / "home", "", declare(store={"url": "s3://night/store"}))
    with pytest.raises(ServiceError, match="has its store in s3://night/store"):
        choose_own_store(site.home, site.experiment)
    assert own_store_programs(site.home) == []


def test_a_server_that_is_not_installed_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S8: with what to install."""
    monkeypatch.setattr(s3_server.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    site = Site(tmp_path / "home", "", declare())
    with pytest.raises(ServiceError, match="not installed") as told:
        choose_own_store(site.home, site.experiment)
    assert "p3s-prefect[s3-server]" in told.value.fix
    assert isinstance(site.home.place(site.experiment), Path)


def test_a_port_that_is_taken_is_left_to_others(tmp_path: Path) -> None:
    """S3: keys stay, as a notebook may have them; the port changes, and whoever asks is told."""
    home = Home(tmp_path)
    own = OwnServer(tmp_path)
    own.address_file.parent.mkdir()
    with socket.create_server((s3_server.HOST, 0)) as taken:
        own.address_file.write_text(json.dumps({"port": taken.getsockname()[1]}))
        (program,) = own_store_programs(home)
        before = keys_in(own.credentials)
        place = own.place()
        assert place is not None
        assert f"-s3.port={str(place.endpoint).rpartition(':')[2]}" in program.command
        assert place.endpoint != f"http://{s3_server.HOST}:{taken.getsockname()[1]}"
    own_store_programs(home)
    assert keys_in(own.credentials) == before
    assert not any(before.secret_key in word for word in program.command)
