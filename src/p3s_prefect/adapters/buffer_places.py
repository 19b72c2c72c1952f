"""Where the bytes of a file that arrived are a second time: in the online buffer, or in the bucket that it feeds."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from threading import Thread

from p3s_prefect.adapters.bucket_objects import is_bucket_path
from p3s_prefect.adapters.bucket_url import object_place, object_url
from p3s_prefect.adapters.home import Home
from p3s_prefect.core.bucket_place import BucketPlace
from p3s_prefect.core.buffer_limits import BufferLimits
from p3s_prefect.core.experiment import Buffer, Experiment, Stream
from p3s_prefect.core.records import BufferPlace

# More than any file system takes.
_MOST_NAME_BYTES = 255
# To follow links takes milliseconds, unless the disk is away. Whoever asks holds a transaction of the ledger open.
_PATIENCE_S = 1.0


class BufferPlaces:
    """The places of one experiment at its home.

    Directories are called as they were declared, so that nobody waits for a disk that is away. What a path calls by
    where their links lead is known too, once that could be found out.
    """

    def __init__(self, experiment: Experiment, home: Path) -> None:
        self._experiment = experiment
        self._home = Home(home)
        self._real: dict[Path, Path] = {}
        """Where the declared directories really are, as far as that is known."""
        self._patience_until = time.monotonic() + _PATIENCE_S
        # One that the end of the process does not wait for.
        self._finding = Thread(target=self._find_real, name="buffer-places", daemon=True)
        if experiment.buffer is not None:
            self._finding.start()

    def directory(self, stream: Stream) -> Path | None:
        """Where a stream's files lie in the buffer; None if they do not."""
        declared = self._experiment.buffer_directory(stream)
        return None if declared is None else self._home.path / declared

    def of(self, stream: str, path: str) -> BufferPlace | None:
        """Where else a file is, by its stream and its path or URL; None where the buffer has nothing to do with it.

        A key that no file can have, or that would lead out of the stream's directory, is not in the buffer.
        """
        buffer = self._experiment.buffer
        if buffer is None:
            return None
        declared = self._experiment.streams.get(stream)
        root = None if declared is None else self.directory(declared)
        if declared is None or root is None:
            return self._alone(buffer, path)
        bucket = self._bucket(declared)
        key = _key(path, bucket) if is_bucket_path(path) else self._below(root, path)
        if key is None:
            return self._alone(buffer, path)
        url = None if bucket is None else object_url(bucket, bucket.key(key))
        is_first = declared.is_buffered_always
        return BufferPlace(path=str(root / key), limits=_limits(buffer), bucket=url, is_first=is_first)

    def _alone(self, buffer: Buffer, path: str) -> BufferPlace | None:
        """A file in the buffer whose stream says so no more is read under the limits too."""
        if is_bucket_path(path) or self._below(self._home.path / buffer.directory, path) is None:
            return None
        return BufferPlace(path=path, limits=_limits(buffer))

    def _below(self, root: Path, path: str) -> str | None:
        """What a path is called below a directory; None if it is not there."""
        if Path(path).is_relative_to(root):
            return Path(path).relative_to(root).as_posix()
        self._finding.join(max(0.0, self._patience_until - time.monotonic()))
        real = self._real.get(root)
        if real is None or not Path(path).is_relative_to(real):
            return None
        return Path(path).relative_to(real).as_posix()

    def _find_real(self) -> None:
        declared = map(self.directory, self._experiment.streams.values())
        directories = [found for found in declared if found is not None]
        if self._experiment.buffer is not None:
            directories.append(self._home.path / self._experiment.buffer.directory)
        for directory in directories:
            with contextlib.suppress(OSError):
                self._real[directory] = directory.resolve()

    def _bucket(self, stream: Stream) -> BucketPlace | None:
        place = stream.place
        return self._home.bucket(place) if isinstance(place, BucketPlace) else None


def _limits(buffer: Buffer) -> BufferLimits:
    return BufferLimits(max_reads=buffer.max_reads, bytes_per_s=buffer.bytes_per_s)


def _key(url: str, bucket: BucketPlace | None) -> str | None:
    """The key below the stream's prefix, as bucket and buffer have it."""
    place, key = object_place(url)
    prefix = "" if bucket is None else bucket.key("")
    if (
        bucket is None
        or (place.bucket, place.endpoint) != (bucket.bucket, bucket.endpoint)
        or prefix != key[: len(prefix)]
    ):
        return None
    own = bucket.own_key(key)
    return own if all(map(_is_name, own.split("/"))) else None


def _is_name(part: str) -> bool:
    return part not in {"", ".", ".."} and "\0" not in part and len(part.encode()) <= _MOST_NAME_BYTES
