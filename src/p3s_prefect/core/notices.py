"""What servers of buckets send when something has changed there: hints, and nothing more."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from p3s_prefect.core.errors import BadName

_HEX = re.compile(rb"%([0-9A-Fa-f]{2})")
_FILER_ROOT = "/buckets/"
_EXAMPLE = 'Send the event of S3, {"Records": [{"s3": {"bucket": ..., "object": ...}}]}, or that of SeaweedFS.'


@dataclass(frozen=True, kw_only=True)
class Notice:
    """Something may have happened to an object."""

    bucket: str
    key: str


def read_notices(body: bytes) -> tuple[Notice, ...]:
    """The objects that a notification is about: the event of S3, or that of SeaweedFS.

    Raises:
        BadName: it is neither.
    """
    try:
        told = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise BadName("the notification is no JSON", fix=_EXAMPLE) from error
    if isinstance(told, dict) and isinstance(told.get("Records"), list):
        return tuple(_of_records(told["Records"]))
    if isinstance(told, dict) and isinstance(told.get("key"), str):
        return tuple(_of_filer(told["key"]))
    raise BadName("the notification is of no kind that is known", fix=_EXAMPLE)


def _of_records(records: list[Any]) -> Iterator[Notice]:
    for record in records:
        try:
            bucket, key = record["s3"]["bucket"]["name"], record["s3"]["object"]["key"]
        except (KeyError, TypeError) as error:
            raise BadName("a record of the notification names no object", fix=_EXAMPLE) from error
        if isinstance(bucket, str) and isinstance(key, str):
            yield Notice(bucket=bucket, key=_as_in_a_form(key))


def _of_filer(path: str) -> Iterator[Notice]:
    # The server tells of everything that it keeps, also outside of buckets.
    if path.startswith(_FILER_ROOT):
        bucket, _, key = path.removeprefix(_FILER_ROOT).partition("/")
        if key:
            yield Notice(bucket=bucket, key=key)


def _as_in_a_form(text: str) -> str:
    """S3 writes keys so: a space is a plus, and every other byte may be two digits after a per cent sign."""
    spaced = text.replace("+", " ").encode(errors="replace")
    return _HEX.sub(lambda found: bytes.fromhex(found[1].decode()), spaced).decode(errors="replace")
