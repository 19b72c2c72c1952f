"""A place in S3: which bucket of which server, and where in it. No key is part of it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Self

from p3s_prefect.core.errors import BadName
from p3s_prefect.core.object_keys import is_part

_ADDRESS = re.compile(r"s3://(?P<bucket>[^/?#@:]*)(?P<prefix>(/[^?#@]*)?)")
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_LABEL = r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)"
_ENDPOINT = re.compile(
    rf"https?://(\[(?P<ipv6>[0-9a-fA-F:]+)\]|(?P<host>{_LABEL}(\.{_LABEL})*)\.?)(:(?P<port>[0-9]{{1,5}}))?/?"
)
_LONGEST_HOST = 253
_LAST_PORT = 65535
_REGION = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


@dataclass(frozen=True, kw_only=True)
class BucketPlace:
    """A bucket, or what is below a prefix in it. What is wrong with it is told when it is made, as BadName."""

    bucket: str
    prefix: str = ""
    """What stands before every key, without slashes at its ends; empty is the whole bucket."""
    endpoint: str | None = None
    """URL of the server; None is Amazon's own."""
    region: str | None = None
    """None is what boto3 finds on the machine, else us-east-1."""
    credentials: str | None = None
    """Path of a file with the keys, in Amazon's format; None is what boto3 finds on the machine."""

    def __post_init__(self) -> None:
        if not _BUCKET.fullmatch(self.bucket):
            fix = "Names of buckets have 3 to 63 small letters, digits, '-' and '.'."
            raise BadName(f"{self.bucket[:70]!r} is no bucket's name", fix=fix)
        if self.prefix and not all(map(is_part, self.prefix.split("/"))):
            fix = "It has parts of letters, digits and '_.+=-', and no slash at its ends."
            raise BadName(f"{self.prefix[:120]!r} is no prefix in a bucket", fix=fix)
        if self.endpoint is not None:
            checked_endpoint(self.endpoint)
        if self.region is not None:
            checked_region(self.region)

    @classmethod
    def named(cls, address: str, **other: str | None) -> Self:
        """From ``s3://bucket/prefix``, and the rest by name.

        Raises:
            BadName: it is no such address.
        """
        found = _ADDRESS.fullmatch(address)
        if found is None:
            # Not quoted: people write keys into it.
            fix = "Write s3://bucket/prefix: a server is its endpoint, and keys never stand in an address."
            raise BadName("the address of a bucket is s3://, its name, and perhaps a prefix", fix=fix)
        return cls(bucket=found["bucket"], prefix=found["prefix"].strip("/"), **other)

    @property
    def address(self) -> str:
        """Bucket and prefix, for people."""
        return f"s3://{self.bucket}/{self.prefix}".rstrip("/")

    @property
    def server(self) -> str:
        """The server, for people."""
        return self.endpoint or "Amazon S3"

    def key(self, key: str) -> str:
        """A key of ours as the bucket has it; also the beginning of one."""
        return f"{self.prefix}/{key}" if self.prefix else key

    def own_key(self, key: str) -> str:
        """The other way round."""
        return key.removeprefix(f"{self.prefix}/") if self.prefix else key


def checked_endpoint(text: str) -> str:
    """The address of a server.

    Raises:
        BadName: it is none.
    """
    found = _ENDPOINT.fullmatch(text)
    if found is None or not _is_server(found["host"], found["ipv6"], found["port"]):
        # Not quoted: people write keys into it.
        fix = "Write http:// or https://, host and port, and nothing else: keys never stand in an address."
        raise BadName("the endpoint is no address of a server", fix=fix)
    return text


def _is_server(host: str | None, ipv6: str | None, port: str | None) -> bool:
    if port is not None and not 1 <= int(port) <= _LAST_PORT:
        return False
    if ipv6 is None:
        return host is not None and len(host) <= _LONGEST_HOST
    try:
        IPv6Address(ipv6)
    except ValueError:
        return False
    return True


def checked_region(text: str) -> str:
    """The name of a region.

    Raises:
        BadName: it is none.
    """
    if not _REGION.fullmatch(text):
        raise BadName(f"{text[:70]!r} is no region", fix="Write one such as us-east-1.")
    return text


def checked_address(text: str) -> str:
    """The address of a bucket, perhaps with a prefix.

    Raises:
        BadName: it is none.
    """
    return BucketPlace.named(text).address
