"""Clients of S3: whose keys they have, and how patient they are."""

from __future__ import annotations

import configparser
import os
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

from p3s_prefect.adapters.s3_away import AWAY_SERVERS
from p3s_prefect.adapters.s3_refusals import preparing
from p3s_prefect.core.bucket_place import BucketPlace
from p3s_prefect.core.errors import StoreError

# A server in the same building answers within 10 ms; one that is gone is noticed at once or after this.
_CONNECT_S = 3.0
# Between two pieces of an answer; a server that is growing its volumes was silent for 2 s.
_SILENT_S = 20.0
# With botocore's own back-off (0 to 1, 2, 4 s): a server that is started again within a few seconds is not noticed.
_ATTEMPTS = 4
# Of a server that gave no answer when it was last asked nobody expects one; if it is there again, it has 5 s for it.
_HASTY_CONNECT_S = 1.0
_HASTY_SILENT_S = 5.0
_CONNECTIONS = 16
_ANY_REGION = "us-east-1"
# Sessions are not made by two threads at once.
_making = Lock()
_lent: dict[BucketPlace, Keys] = {}


@dataclass(frozen=True, kw_only=True)
class Keys:
    """What proves who we are; never shown."""

    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    token: str | None = field(default=None, repr=False)


def s3_client(place: BucketPlace, *, is_hasty: bool = False) -> Any:
    """The client of a place's server, one for all its buckets and all threads of a process, with the keys that were
    lent for the place, that stand in its file, or that boto3 finds. It tries once, and not for long, if `is_hasty` or
    while the server is known to be away.

    Raises:
        StoreError: the keys cannot be read.
    """
    # Connections must not be shared with the process that this one was forked from.
    with _making, preparing(place):
        server = _Server(
            endpoint=place.endpoint, region=place.region, credentials=place.credentials, keys=_lent.get(place)
        )
        return _client(os.getpid(), server, is_hasty or AWAY_SERVERS.was_away(place))


def lend_keys(place: BucketPlace, keys: Keys) -> None:
    """Lets this process use keys that it was handed, wherever it asks this place."""
    _lent[place] = keys


def keys_in(file: Path) -> Keys:
    """The keys in a file of Amazon's format, under ``[default]``.

    Raises:
        StoreError: it cannot be read.
    """
    found = configparser.ConfigParser(interpolation=None)
    try:
        found.read_string(file.read_text())
        section = found["default"]
        return Keys(access_key=section["aws_access_key_id"], secret_key=section["aws_secret_access_key"])
    except (OSError, KeyError, configparser.Error) as error:
        raise StoreError(
            f"the keys to the store cannot be read from {file} ({type(error).__name__})",
            fix="It is a file as `aws configure` writes it, readable for whoever runs this.",
        ) from error


# --- inside ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class _Server:
    """What two places have in common that have the same client."""

    endpoint: str | None
    region: str | None
    credentials: str | None
    keys: Keys | None


# One takes 12 MB, and half a second to be made.
@lru_cache(maxsize=16)
def _client(_pid: int, server: _Server, is_hasty: bool) -> Any:
    # Half a second to import, which nobody should pay whose store is a directory.
    import boto3
    from botocore.config import Config

    keys = server.keys or (keys_in(Path(server.credentials)) if server.credentials else None)
    session = boto3.session.Session()
    return session.client(
        "s3",
        endpoint_url=server.endpoint,
        region_name=server.region or session.region_name or _ANY_REGION,
        aws_access_key_id=keys and keys.access_key,
        aws_secret_access_key=keys and keys.secret_key,
        aws_session_token=keys and keys.token,
        config=Config(
            connect_timeout=_HASTY_CONNECT_S if is_hasty else _CONNECT_S,
            read_timeout=_HASTY_SILENT_S if is_hasty else _SILENT_S,
            retries={"mode": "standard", "total_max_attempts": 1 if is_hasty else _ATTEMPTS},
            max_pool_connections=_CONNECTIONS,
            # Checksums are ours, SHA-256 each; a header that is signed carries them, which spares a second one.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
            s3={"payload_signing_enabled": False, "addressing_style": "path" if server.endpoint else "auto"},
        ),
    )
