"""Large objects go to S3 in parts, several at once, each with a checksum of its own."""

from __future__ import annotations

import base64
import contextlib
import hashlib
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

# S3 wants at least 5 MiB. With 8 or 16 MiB and 1, 3 or 6 at once, 64 MB went to a server on a busy machine at 0.8 to
# 1.0 of the speed of boto3's own upload, in no order beyond chance; and all that is under way is held in memory.
_PART_BYTES = 8 << 20
_AT_ONCE = 3
# S3's own limit.
_MOST_PARTS = 10_000


@dataclass(frozen=True, kw_only=True)
class SentParts:
    """What was sent; nobody sees it before the upload is completed."""

    size: int
    sha256: str
    """Of the whole, hex."""
    parts: tuple[Mapping[str, Any], ...]
    """As `complete_multipart_upload` wants them."""
    confirmed: bool
    """Whether the server has compared every checksum."""


def part_bytes(size: int) -> int:
    """How large the parts of a file of this size are, in bytes; what is smaller goes in one piece."""
    return max(_PART_BYTES, -(-size // _MOST_PARTS))


@contextlib.contextmanager
def upload(client: Any, named: Mapping[str, str]) -> Iterator[Mapping[str, str]]:
    """An upload in parts, by the names that its requests bear; given up if anything goes wrong.

    Whoever is killed here leaves parts that nobody sees, for `sweep_unfinished`.
    """
    begun = client.create_multipart_upload(**named, ChecksumAlgorithm="SHA256")
    under = {**named, "UploadId": begun["UploadId"]}
    try:
        yield under
    except BaseException:
        give_up(client, under)
        raise


def give_up(client: Any, under: Mapping[str, str]) -> None:
    """Takes back what was sent, as far as that can be: what led here counts, and what stays is swept."""
    with contextlib.suppress(Exception):
        client.abort_multipart_upload(**under)


def send_parts(client: Any, under: Mapping[str, str], blocks: Iterator[bytes]) -> SentParts:
    """Sends blocks as the parts of an upload."""
    digest, size = hashlib.sha256(), 0
    sent: list[Future[tuple[Mapping[str, Any], bool]]] = []
    running: deque[Future[Any]] = deque()
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="s3-part") as pool:
        for number, block in enumerate(blocks, start=1):
            if len(running) == _AT_ONCE:
                # Bounds the memory, and ends at once when one has failed.
                running.popleft().result()
            sent.append(pool.submit(_send, client, under, number, block))
            running.append(sent[-1])
            digest.update(block)
            size += len(block)
        parts = [one.result() for one in sent]
    return SentParts(
        size=size,
        sha256=digest.hexdigest(),
        parts=tuple(part for part, _ in parts),
        confirmed=all(confirmed for _, confirmed in parts),
    )


def complete(client: Any, under: Mapping[str, str], sent: SentParts) -> None:
    """Makes one object of the parts, unless there is one already."""
    client.complete_multipart_upload(**under, IfNoneMatch="*", MultipartUpload={"Parts": list(sent.parts)})


def checksum_of(content: bytes) -> str:
    """The SHA-256 of bytes, as S3 writes it."""
    return base64.b64encode(hashlib.sha256(content).digest()).decode()


def _send(client: Any, under: Mapping[str, str], number: int, block: bytes) -> tuple[Mapping[str, Any], bool]:
    checksum = checksum_of(block)
    answer = client.upload_part(**under, PartNumber=number, Body=block, ChecksumSHA256=checksum)
    part = {"PartNumber": number, "ETag": answer["ETag"], "ChecksumSHA256": checksum}
    return part, answer.get("ChecksumSHA256") == checksum
