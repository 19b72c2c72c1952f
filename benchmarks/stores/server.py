"""SeaweedFS as `p3s up --store s3` starts it."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.control.server import kept
from p3s_prefect.adapters import s3_server
from p3s_prefect.adapters.free_ports import free_port
from p3s_prefect.adapters.s3_client import s3_client
from p3s_prefect.adapters.s3_refusals import asking
from p3s_prefect.core.bucket_place import BucketPlace
from p3s_prefect.core.errors import StoreUnreachable

_START_S = 120


@contextmanager
def seaweed() -> Iterator[BucketPlace]:
    """A bucket of a server that is ended at the end."""
    with tempfile.TemporaryDirectory(prefix="p3s-stores-") as directory:
        path, keys = Path(directory), s3_server.new_keys()
        port = free_port()
        (path / "data").mkdir()
        s3_server.write_identities(path, keys)
        s3_server.write_credentials(path / "credentials", keys)
        endpoint = f"http://{s3_server.HOST}:{port}"
        place = BucketPlace(bucket="benchmark", endpoint=endpoint, credentials=str(path / "credentials"))
        with kept(s3_server.command(path / "data", path, port), dict(os.environ), path / "log"):
            _until_up(place)
            yield place


def _until_up(place: BucketPlace) -> None:
    until = time.monotonic() + _START_S
    while True:
        try:
            with asking(place):
                s3_client(place).create_bucket(Bucket=place.bucket)
            return
        except StoreUnreachable:
            if time.monotonic() > until:
                raise
            time.sleep(0.2)
