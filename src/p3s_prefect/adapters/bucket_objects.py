"""Objects as they arrived in a bucket: whoever reads one gets the bytes that were taken, or an error."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from botocore import exceptions as boto

from p3s_prefect.adapters.bucket_url import object_place
from p3s_prefect.adapters.s3_client import s3_client
from p3s_prefect.adapters.s3_refusals import asking, code_of
from p3s_prefect.core.bucket_place import BucketPlace
from p3s_prefect.core.errors import InputChanged, InputGone, StoreUnreachable
from p3s_prefect.core.other_input import OtherInput

_T = TypeVar("_T")
_BLOCK = 1 << 20
_GONE = {"NoSuchKey", "404", "NotFound"}
_REPLACED = {"412", "PreconditionFailed"}
_KEEP = "Objects must not change in place: upload under a new key."
# Some servers end the answer when the object is replaced: what is there then will tell.
_BROKEN_OFF = (boto.ReadTimeoutError, boto.ResponseStreamingError, boto.IncompleteReadError)
_READS = 3


def is_bucket_path(path: str) -> bool:
    """Whether an arrival's path leads into a bucket."""
    return path.startswith("s3://")


def copy_arrived(url: str, etag: str, target: Path | None = None, *, is_hasty: bool = False) -> tuple[int, str]:
    """Reads an object with this ETag, into `target` if it is given; returns its size [bytes] and SHA-256.

    Whoever is hasty, as the bytes may be had elsewhere, gives up within seconds.

    Raises:
        InputGone: it is not there any more.
        InputChanged: it is another one, or became one while it was read.
        StoreError: it cannot be read.
    """
    place, key = object_place(url)
    reads = 1 if is_hasty else _READS
    with asking(place, key):
        for last in range(1, reads + 1):
            try:
                return _copied(s3_client(place, is_hasty=is_hasty), place, key, etag, target)
            except boto.ClientError as error:
                if code_of(error) in _GONE:
                    raise InputGone(f"{url} is gone", fix="Upload it again under a new key.") from error
                if code_of(error) in _REPLACED:
                    raise InputChanged(f"{url} {OtherInput.REPLACED_OBJECT}", fix=_KEEP) from error
                raise
            except _BROKEN_OFF:
                if last == reads:
                    raise
    raise StoreUnreachable(f"{url} cannot be read", fix="It is tried again.")


def first_bytes(place: BucketPlace, key: str, most: int) -> bytes | None:
    """The beginning of an object; None if there is none."""

    def read(client: Any, named: dict[str, str]) -> bytes:
        with contextlib.closing(client.get_object(**named)["Body"]) as body:
            return bytes(body.read(most))

    return _if_there(place, key, read)


def head(place: BucketPlace, key: str, *, is_hasty: bool = False) -> dict[str, Any] | None:
    """What the server tells of an object; None if there is none."""
    return _if_there(place, key, lambda client, named: dict(client.head_object(**named)), is_hasty=is_hasty)


def ask_bucket(place: BucketPlace) -> None:
    """Asks for next to nothing, once and without patience: whether the bucket can be listed at all.

    Raises:
        StoreUnreachable: it does not answer.
        StoreError: it refuses.
    """
    with asking(place):
        s3_client(place, is_hasty=True).list_objects_v2(Bucket=place.bucket, Prefix=place.key(""), MaxKeys=1)


def _if_there(
    place: BucketPlace, key: str, ask: Callable[[Any, dict[str, str]], _T], *, is_hasty: bool = False
) -> _T | None:
    with asking(place, key):
        try:
            return ask(s3_client(place, is_hasty=is_hasty), {"Bucket": place.bucket, "Key": key})
        except boto.ClientError as error:
            if code_of(error) in _GONE:
                return None
            raise


def _copied(client: Any, place: BucketPlace, key: str, etag: str, target: Path | None) -> tuple[int, str]:
    named = {"Bucket": place.bucket, "Key": key}
    quoted = f'"{etag}"'
    answer = client.get_object(**named, IfMatch=quoted)
    digest, size = hashlib.sha256(), 0
    with contextlib.ExitStack() as opened:
        body = opened.enter_context(contextlib.closing(answer["Body"]))
        file = opened.enter_context(target.open("wb")) if target is not None else None
        for block in body.iter_chunks(_BLOCK):
            digest.update(block)
            size += len(block)
            if file is not None:
                file.write(block)
    # Asked again afterwards, as not every server keeps the old bytes for those who read them.
    if not quoted == answer["ETag"] == client.head_object(**named)["ETag"] or size != answer["ContentLength"]:
        raise InputChanged(f"s3://{place.bucket}/{key} {OtherInput.CHANGED}", fix=_KEEP)
    return size, digest.hexdigest()
