"""The central store in a bucket: any server that speaks S3."""

from __future__ import annotations

import hashlib
import uuid
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from botocore import exceptions as boto

from p3s_prefect.adapters.bucket_url import bucket_url
from p3s_prefect.adapters.directory_store import file_sha256
from p3s_prefect.adapters.s3_client import s3_client
from p3s_prefect.adapters.s3_parts import checksum_of, complete, give_up, part_bytes, send_parts, upload
from p3s_prefect.adapters.s3_refusals import asking, code_of
from p3s_prefect.core.bucket_place import BucketPlace
from p3s_prefect.core.errors import ChecksumMismatch, ObjectExists, StoreError, StoreUnreachable
from p3s_prefect.core.object_keys import key_parts
from p3s_prefect.core.ports import ObjectInfo
from p3s_prefect.core.records import PublishedObject

_T = TypeVar("_T")
_BLOCK = 1 << 20
# botocore asks again for an answer that does not come, but not for one that breaks off.
_READS = 3
_BROKEN_OFF = (boto.ReadTimeoutError, boto.ResponseStreamingError, boto.IncompleteReadError, boto.ConnectionClosedError)
# S3's own limit, in bytes.
_LONGEST_KEY = 1024
# Somebody was there first; perhaps we ourselves, and the answer was lost.
_TAKEN = {"PreconditionFailed", "ConditionalRequestConflict", "412", "NoSuchUpload"}
_NOT_FOUND = 404


class S3Store:
    """Objects in a bucket, below a prefix.

    S3 shows an object when all of it is there. That none is replaced is looked up before writing, and the server is
    told so (If-None-Match). Some ignore that: where two writers of one key meet at such a server, the last one wins.
    Nothing rests on it, as every execution writes under its own prefix, and whoever reads compares with the SHA-256
    that stands in the ledger.
    """

    def __init__(self, place: BucketPlace) -> None:
        self._place = place
        self.url = bucket_url(place)

    def put_file(self, key: str, path: Path) -> PublishedObject:
        """See `ObjectStore.put_file`; what is large goes in parts, several at once."""
        length = part_bytes(path.stat().st_size)
        with path.open("rb") as source:
            first = source.read(length)
            if len(first) < length:
                return self.put_bytes(key, first)
            named = self._named(key)
            if (size := self._size(key)) is not None:
                return self._unless_other(PublishedObject(key=key, size=size, sha256=file_sha256(path)))
            return self._put_parts(key, named, _blocks(first, lambda: source.read(length)))

    def put_bytes(self, key: str, content: bytes) -> PublishedObject:
        """See `ObjectStore.put_bytes`."""
        checksum = checksum_of(content)
        ours = PublishedObject(key=key, size=len(content), sha256=b64decode(checksum).hex())
        named = self._named(key)
        if self._size(key) is not None:
            return self._unless_other(ours)
        with asking(self._place, key):
            try:
                answer = self._client.put_object(**named, Body=content, ChecksumSHA256=checksum, IfNoneMatch="*")
            except boto.ClientError as error:
                return self._unless_refused(ours, error)
        return self._confirmed(ours, answer.get("ChecksumSHA256") == checksum)

    def read_bytes(self, key: str) -> bytes:
        """See `ObjectStore.read_bytes`; compared with the checksum that the server keeps, if it does.

        Raises:
            ChecksumMismatch: they differ.
        """
        return self._read(key, lambda body: bytes(body.read()), ChecksumMode="ENABLED")

    def fetch(self, key: str, scratch: Path, sha256: str) -> Path:
        """See `ObjectStore.fetch`; the answer is a copy below `scratch`, in a directory of its own."""
        target = scratch / f"fetched-{uuid.uuid4().hex}" / key_parts(key)[-1]
        target.parent.mkdir(parents=True)

        def copy(body: Any) -> str:
            digest = hashlib.sha256()
            with target.open("wb") as file:
                for block in body.iter_chunks(_BLOCK):
                    file.write(block)
                    digest.update(block)
            return digest.hexdigest()

        try:
            _must_be(key, sha256, self._read(key, copy))
        except StoreError:
            target.unlink(missing_ok=True)
            target.parent.rmdir()
            raise
        target.chmod(0o444)
        return target

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """See `ObjectStore.list`."""
        for found in self._pages("list_objects_v2", "Contents", prefix):
            yield ObjectInfo(
                key=self._place.own_key(found["Key"]),
                size=found["Size"],
                modified_at=found["LastModified"].timestamp(),
            )

    def delete(self, key: str) -> None:
        """See `ObjectStore.delete`."""
        named = self._named(key)
        with asking(self._place, key):
            self._client.delete_object(**named)

    def sweep_unfinished(self, older_than: float) -> int:
        """See `ObjectStore.sweep_unfinished`: uploads in parts that nobody ended."""
        removed = 0
        for found in self._pages("list_multipart_uploads", "Uploads", ""):
            if found["Initiated"].timestamp() < older_than:
                under = {"Bucket": self._place.bucket, "Key": found["Key"], "UploadId": found["UploadId"]}
                with asking(self._place):
                    self._client.abort_multipart_upload(**under)
                removed += 1
        return removed

    def free_bytes(self) -> int | None:
        """See `ObjectStore.free_bytes`; S3 does not tell."""
        return None

    # --- inside -------------------------------------------------------------------------------------------------

    @property
    def _client(self) -> Any:
        return s3_client(self._place)

    def _named(self, key: str) -> dict[str, str]:
        key_parts(key)
        full = self._place.key(key)
        if len(full) > _LONGEST_KEY:
            raise StoreError(f"{full[:80]}… is too long for a key in S3", fix="Use shorter names in the data ids.")
        return {"Bucket": self._place.bucket, "Key": full}

    def _pages(self, operation: str, part: str, prefix: str) -> Iterator[Any]:
        pages = self._client.get_paginator(operation).paginate(
            Bucket=self._place.bucket, Prefix=self._place.key(prefix)
        )
        with asking(self._place):
            for page in pages:
                yield from page.get(part, ())

    def _size(self, key: str) -> int | None:
        """How large the object is; None if there is none."""
        with asking(self._place, key):
            try:
                return int(self._client.head_object(**self._named(key))["ContentLength"])
            except boto.ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] == _NOT_FOUND:
                    return None
                # The answer to HEAD has no words. The same is asked in a way that has.
                self._client.list_objects_v2(Bucket=self._place.bucket, Prefix=self._place.key(key), MaxKeys=1)
                raise

    def _read(self, key: str, use: Callable[[Any], _T], **asked: str) -> _T:
        named = self._named(key)
        with asking(self._place, key):
            for _ in range(_READS - 1):
                try:
                    return use(self._client.get_object(**named, **asked)["Body"])
                except _BROKEN_OFF:
                    continue
            return use(self._client.get_object(**named, **asked)["Body"])

    def _put_parts(self, key: str, named: dict[str, str], blocks: Iterator[bytes]) -> PublishedObject:
        with asking(self._place, key), upload(self._client, named) as under:
            sent = send_parts(self._client, under, blocks)
            ours = PublishedObject(key=key, size=sent.size, sha256=sent.sha256)
            try:
                complete(self._client, under, sent)
            except boto.ClientError as error:
                give_up(self._client, under)
                return self._unless_refused(ours, error)
        return self._confirmed(ours, sent.confirmed)

    def _unless_refused(self, ours: PublishedObject, error: boto.ClientError) -> PublishedObject:
        if code_of(error) not in _TAKEN:
            # For `asking` to note and to translate.
            raise error
        return self._unless_other(ours)

    def _unless_other(self, ours: PublishedObject) -> PublishedObject:
        """Ours, if those are the bytes that are there.

        Raises:
            ObjectExists: others are.
            StoreUnreachable: none are, though the server said so.
        """
        if (size := self._size(ours.key)) is None:
            raise StoreUnreachable(
                f"the server refused {ours.key} as taken, and it is not there",
                fix="Another writer may have been at it, or its upload was given up; it is tried again.",
            )
        if size != ours.size or self._sha256(ours.key) != ours.sha256:
            raise ObjectExists(
                f"another object is already under {ours.key}", fix="Objects never change: publish under another key."
            )
        return ours

    def _confirmed(self, ours: PublishedObject, by_server: bool) -> PublishedObject:
        """Ours, when its bytes are there; a server that did not compare the checksum has them read back."""
        if not by_server:
            try:
                _must_be(ours.key, ours.sha256, self._sha256(ours.key))
            except ChecksumMismatch:
                # Else nobody could write there any more.
                with suppress(StoreError):
                    self.delete(ours.key)
                raise
        return ours

    def _sha256(self, key: str) -> str:
        def digested(body: Any) -> str:
            digest = hashlib.sha256()
            for block in body.iter_chunks(_BLOCK):
                digest.update(block)
            return digest.hexdigest()

        return self._read(key, digested)


def _blocks(first: bytes, read: Callable[[], bytes]) -> Iterator[bytes]:
    yield first
    yield from iter(read, b"")


def _must_be(key: str, wanted: str, found: str) -> None:
    if found != wanted:
        raise ChecksumMismatch(
            f"{key} has the SHA-256 {found[:12]}… instead of {wanted[:12]}…",
            fix="The object was changed after it was written; reprocess what it was made from in a new pass.",
        )
