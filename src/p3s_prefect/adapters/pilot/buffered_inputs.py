"""Files that arrived in a bucket or in the online buffer, and may be in both: read where they can be had.

The bucket is asked first, and in haste, unless the stream says otherwise. In the place where a file was taken it must
be the one that was taken, unless it is an object that is gone from its bucket. In the other one it counts only if it is
the same, as far as anybody knows: same size, and the same SHA-256 where that is known already; the first reader's goes
into the lineage, and binds those after it.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path, PurePosixPath

from p3s_prefect.adapters.bucket_objects import copy_arrived, head, is_bucket_path
from p3s_prefect.adapters.bucket_url import object_place
from p3s_prefect.adapters.buffer_reader import BufferCopy
from p3s_prefect.adapters.pilot.execution import Execution
from p3s_prefect.adapters.s3_away import AWAY_SERVERS
from p3s_prefect.core.errors import InputChanged, InputGone, P3sError, StoreError, StoreUnreachable
from p3s_prefect.core.other_input import OtherInput
from p3s_prefect.core.records import BufferPlace, InputFile


class _NotHere(Exception):
    """The other place may have it; if not, `error` says why it is not had here."""

    def __init__(self, error: P3sError) -> None:
        super().__init__(str(error))
        self.error = error


def fetch_buffered(file: InputFile, place: BufferPlace, execution: Execution) -> tuple[Path, str]:
    """A copy of the file, with its checksum.

    Raises:
        InputChanged: it is no longer the one that was taken, or is nowhere any more.
        StoreError: neither place can be read.
    """
    target = execution.room_for(PurePosixPath(place.path).name)
    sha256 = _sha256(file, place, execution, target)
    target.chmod(0o444)
    return target, sha256


# --- inside ---------------------------------------------------------------------------------------------------------


def _sha256(file: InputFile, place: BufferPlace, execution: Execution, target: Path) -> str:
    if place.bucket is not None and not place.is_first:
        with contextlib.suppress(_NotHere):
            return _in_haste(file, place.bucket, target)
    try:
        return _from_buffer(file, place, execution, target)
    except _NotHere as missing:
        if place.bucket is None:
            raise missing.error from missing
        # Nobody else has it: now as patiently as if there were no buffer.
        try:
            return _from_bucket(file, place.bucket, target, is_hasty=False)
        except _NotHere as also:
            # That it is not there either is no news, where it was an object that is gone.
            is_no_news = isinstance(also.error, InputGone) and isinstance(missing.error, InputChanged)
            raise (also if is_no_news else missing).error from also


def _in_haste(file: InputFile, url: str, target: Path) -> str:
    bucket = object_place(url)[0]
    if AWAY_SERVERS.is_away(bucket):
        raise _NotHere(StoreUnreachable(f"{bucket.server} gave no answer a moment ago", fix="It is tried again."))
    try:
        return _from_bucket(file, url, target, is_hasty=True)
    except StoreUnreachable as error:
        raise _NotHere(error) from error


def _from_bucket(file: InputFile, url: str, target: Path, *, is_hasty: bool) -> str:
    if is_bucket_path(str(file.path)):
        try:
            size, sha256 = copy_arrived(url, file.etag, target, is_hasty=is_hasty)
        except InputGone as error:
            raise _NotHere(error) from error
        if size != file.size or file.sha256 not in (None, sha256):
            raise InputChanged(f"{url} {OtherInput.BYTES}", fix="Upload it under a new key.")
        return sha256
    another = InputChanged(f"{url} {OtherInput.NOT_THE_SAME} in the buffer", fix="See what was uploaded there.")
    found = head(*object_place(url), is_hasty=is_hasty)
    if found is None or found["ContentLength"] != file.size:
        raise _NotHere(another)
    try:
        sha256 = copy_arrived(url, found["ETag"].strip('"'), target, is_hasty=is_hasty)[1]
    except InputChanged as error:
        raise _NotHere(error) from error
    if file.sha256 not in (None, sha256):
        raise _NotHere(another)
    return sha256


def _from_buffer(file: InputFile, place: BufferPlace, execution: Execution, target: Path) -> str:
    is_taken_here = not is_bucket_path(str(file.path))
    changed = InputChanged(f"{place.path} {OtherInput.NOT_THE_SAME}", fix="Files must not change in place.")
    try:
        found = _read(place, file.size, execution, target)
    except InputChanged as error:
        if is_taken_here:
            raise
        raise _NotHere(error) from error
    # Where the checksum is known it decides: the same bytes may have been touched, or brought again.
    knows_by = (file.sha256, found.sha256) if file.sha256 is not None else (file.mtime_ns, found.mtime_ns)
    if is_taken_here and knows_by[0] != knows_by[1]:
        raise changed
    if file.sha256 not in (None, found.sha256):
        raise _NotHere(changed)
    return found.sha256


def _read(place: BufferPlace, size: int, execution: Execution, target: Path) -> BufferCopy:
    path = Path(place.path)
    try:
        return execution.buffer.read(path, place.limits, target, size=size)
    except OSError as error:
        raise _NotHere(_trouble(path, error)) from error
    except StoreUnreachable as error:
        raise _NotHere(error) from error


def _trouble(path: Path, error: OSError) -> P3sError:
    """The buffer is away only if its directory is; one file's own trouble does not pass by itself."""
    try:
        with os.scandir(path.parent) as listed:
            next(listed, None)
    except FileNotFoundError:
        fix = "Mount the buffer where the pilots run; it is tried again."
        return StoreUnreachable(f"there is no {path.parent} in the online buffer", fix=fix)
    except OSError as also:
        fix = "Look at the buffer's disk, and whether the pilots may read there; it is tried again."
        what = f"{path.parent} in the online buffer cannot be listed: {also.strerror or also}"
        return StoreUnreachable(what, fix=fix)
    if isinstance(error, FileNotFoundError):
        return InputChanged(f"{path} is gone", fix="Bring it back under a new name.")
    fix = "Look at the buffer's disk, and whether the pilots may read the file."
    return StoreError(f"{path} cannot be read in the online buffer: {error.strerror or error}", fix=fix)
