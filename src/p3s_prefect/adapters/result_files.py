"""What Prefect keeps of tasks, beside the published objects and unlike them: a later result replaces an earlier one."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol

from p3s_prefect.adapters.s3_client import s3_client
from p3s_prefect.adapters.s3_parts import checksum_of
from p3s_prefect.adapters.s3_refusals import asking
from p3s_prefect.core.bucket_place import BucketPlace
from p3s_prefect.core.errors import BadName, ObjectMissing

# Published datasets lie under ``runs/``.
_BELOW = "prefect"


class ResultFiles(Protocol):
    """Small files under names; nobody sees half of one."""

    def read(self, path: str) -> bytes:
        """The content of a file.

        Raises:
            ObjectMissing: there is none.
            BadName: the path leads out of the store.
        """
        ...

    def write(self, path: str, content: bytes) -> str:
        """Writes a file, in place of an older one, and returns where it is.

        Raises:
            BadName: the path leads out of the store.
        """
        ...


@dataclass(frozen=True)
class DirectoryFiles:
    """Below the directory of the store; each is written under a hidden name and renamed."""

    directory: Path

    def read(self, path: str) -> bytes:
        """See `ResultFiles.read`."""
        try:
            return self._place(path).read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
            raise _missing(path) from error

    def write(self, path: str, content: bytes) -> str:
        """See `ResultFiles.write`."""
        place = self._place(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        hidden = place.with_name(f".writing-{uuid.uuid4().hex}")
        try:
            hidden.write_bytes(content)
            hidden.replace(place)
        finally:
            hidden.unlink(missing_ok=True)
        return str(place)

    def _place(self, path: str) -> Path:
        root = (self.directory / _BELOW).resolve()
        place = (root / path).resolve()
        if root not in place.parents:
            raise _outside(path)
        return place


@dataclass(frozen=True)
class BucketFiles:
    """In the bucket of the store, below its prefix."""

    place: BucketPlace

    def read(self, path: str) -> bytes:
        """See `ResultFiles.read`."""
        try:
            with asking(self.place, path):
                answer = s3_client(self.place).get_object(**self._named(path), ChecksumMode="ENABLED")
                return bytes(answer["Body"].read())
        except ObjectMissing as error:
            raise _missing(path) from error

    def write(self, path: str, content: bytes) -> str:
        """See `ResultFiles.write`."""
        named = self._named(path)
        with asking(self.place, path):
            s3_client(self.place).put_object(**named, Body=content, ChecksumSHA256=checksum_of(content))
        return f"s3://{named['Bucket']}/{named['Key']}"

    def _named(self, path: str) -> dict[str, str]:
        parts = PurePosixPath(path).parts
        if not parts or ".." in parts or path.startswith("/") or "\0" in path:
            raise _outside(path)
        return {"Bucket": self.place.bucket, "Key": self.place.key("/".join((_BELOW, *parts)))}


def result_files(place: Path | BucketPlace) -> ResultFiles:
    """The files of a store in this place."""
    return BucketFiles(place) if isinstance(place, BucketPlace) else DirectoryFiles(place)


def _missing(path: str) -> ObjectMissing:
    return ObjectMissing(f"there is no result {path}", fix="It was never kept, or was removed.")


def _outside(path: str) -> BadName:
    return BadName(f"{path[:120]!r} leads out of the store", fix="Give a path below the store.")
