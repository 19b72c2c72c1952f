"""A watched bucket: keys after the last one are looked up often, all of them now and then; notifications are hints.

An object is there as a whole or not at all, also when it is uploaded in parts. What makes a file complete is the same
as in a directory (P3).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from p3s_prefect.adapters.bucket_objects import copy_arrived, first_bytes, head
from p3s_prefect.adapters.bucket_url import object_url
from p3s_prefect.adapters.listed_source import LISTING_SHARE, ListedSource, Tally
from p3s_prefect.adapters.s3_client import s3_client
from p3s_prefect.adapters.s3_refusals import asking
from p3s_prefect.core.arrival_names import MANIFEST_BYTES, kept_key, told_sha256
from p3s_prefect.core.bucket_place import BucketPlace
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.errors import InputChanged, StoreDisturbed, StoreError, StoreUnreachable
from p3s_prefect.core.experiment import Instrument, Stream
from p3s_prefect.core.notices import Notice
from p3s_prefect.core.ports import Clock, MarkerSeen, Refusal, Seen
from p3s_prefect.core.records import Arrival, Identity

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class _Object:
    """An object as a listing shows it; `own` is its key below the stream's prefix."""

    key: str
    own: str
    identity: Identity

    @property
    def name(self) -> str:
        return self.own.rpartition("/")[2]


class BucketSource(ListedSource):
    """One stream's bucket, or what is below a prefix in it, as `ListedSource` says."""

    def __init__(
        self,
        name: str,
        stream: Stream,
        instrument: Instrument,
        bucket: BucketPlace,
        *,
        clock: Clock,
        known: Callable[[str, Sequence[str]], Awaitable[set[Identity]]],
        is_open: Callable[[DataId], bool],
    ) -> None:
        super().__init__(
            name,
            stream,
            instrument,
            clock=clock,
            known=known,
            is_open=is_open,
            place=bucket.address,
            list_every_s=stream.reconcile_every_s,
        )
        self.bucket = bucket
        self._tail_from = ""
        """The key after which the next look at the tail begins."""
        self._tail_every_s = stream.list_every_s

    @property
    def looks_every_s(self) -> float:
        """See `ListedSource`; the tail counts."""
        return self._tail_every_s

    def hint(self, notice: Notice) -> bool:
        """Something may have happened to an object; False if it is no concern of this stream."""
        prefix = self.bucket.key("")
        if not self._stream.notify or notice.bucket != self.bucket.bucket or not notice.key.startswith(prefix):
            return False
        self._take_hint(notice.key.removeprefix(prefix))
        return True

    # --- listing ------------------------------------------------------------------------------------------------

    async def _list(self, markers: set[DataId]) -> AsyncIterator[Seen]:
        begun, tally = time.monotonic(), Tally()
        try:
            self._tail_from = ""
            async for seen in self._pages(markers, tally):
                yield seen
        except StoreError as error:
            self._was_away = True
            tally.complain(error.what)
        else:
            self._looked(begun, tally)
        self._listed(begun, tally)

    async def _meanwhile(self, moment: float) -> AsyncIterator[Seen]:
        """Hints, and the tail again and again; a marker of an open group asks for a full listing."""
        while (now := time.monotonic()) < moment:
            async for seen in self._hinted_until(min(moment, now + self._tail_every_s)):
                if isinstance(seen, MarkerSeen):
                    return
                yield seen
            markers: set[DataId] = set()
            begun, tally = time.monotonic(), Tally()
            try:
                async for seen in self._pages(markers, tally):
                    yield seen
            except StoreError as error:
                self._was_away, self.trouble = True, error.what
            else:
                # Whatever came while nobody could look may sort anywhere.
                if self._was_away:
                    return
                self._tailed(begun, tally)
                if not tally.is_partial and any(self._is_open(group) for group in markers):
                    return

    def _tailed(self, begun: float, tally: Tally) -> None:
        self._looked(begun, tally)
        self._tail_every_s = max(self._stream.list_every_s, (time.monotonic() - begun) / LISTING_SHARE)

    async def _pages(self, markers: set[DataId], tally: Tally) -> AsyncIterator[Seen]:
        """What comes after the tail's beginning, which moves on as far as everything could be told."""
        waits = False
        following: asyncio.Task[dict[str, Any]] | None
        following = self._ask({"StartAfter": self._tail_from} if self._tail_from else {})
        try:
            while following is not None:
                page = await following
                # Asked for while this one is looked through, which else would add a third to the time of a listing.
                more = bool(page.get("IsTruncated"))
                following = self._ask({"ContinuationToken": page["NextContinuationToken"]}) if more else None
                for one in await self._unknown(page, markers):
                    seen = await asyncio.to_thread(self._examine, one, tally)
                    if seen is None:
                        waits = True
                    else:
                        yield seen
                if page.get("Contents") and not waits:
                    self._tail_from = page["Contents"][-1]["Key"]
        finally:
            if following is not None:
                following.cancel()

    async def _unknown(self, page: dict[str, Any], markers: set[DataId]) -> list[_Object]:
        found = await asyncio.to_thread(self._identify, page.get("Contents", ()), markers)
        settled = await self._settled(list(found))
        return [one for identity, one in found.items() if identity not in settled]

    def _ask(self, after: dict[str, str]) -> asyncio.Task[dict[str, Any]]:
        return asyncio.create_task(asyncio.to_thread(self._page, after))

    def _page(self, after: dict[str, str]) -> dict[str, Any]:
        with asking(self.bucket):
            page: dict[str, Any] = s3_client(self.bucket).list_objects_v2(
                Bucket=self.bucket.bucket, Prefix=self.bucket.key(""), **after
            )
            return page

    def _identify(self, contents: Sequence[dict[str, Any]], markers: set[DataId]) -> dict[Identity, _Object]:
        """What may be a unit, by identity. Whether it is complete, which may cost reading it, is not asked yet."""
        found = {}
        for one in contents:
            directories, _, name = self.bucket.own_key(one["Key"]).rpartition("/")
            # What is called like a directory marks one.
            if not name or (directories and self._names.is_hidden(directories.split("/"))):
                continue
            if (group := self._names.closed_by(name)) is not None:
                markers.add(group)
            elif not self._names.is_passed_over(name):
                shown = self._object(one["Key"], one["ETag"], one["Size"], one["LastModified"])
                found[shown.identity] = shown
        return found

    # --- hints --------------------------------------------------------------------------------------------------

    def _name_of(self, hint: str) -> str:
        return hint.rpartition("/")[2]

    def _examine_hinted(self, hint: str) -> Arrival | Refusal | None:
        directories, slash, name = hint.rpartition("/")
        if not name or (directories and self._names.is_hidden(directories.split("/"))):
            return None
        name = self._names.spoken_for(name)
        if self._names.is_passed_over(name):
            return None
        key = self.bucket.key(f"{directories}{slash}{name}")
        try:
            found = head(self.bucket, key)
        except StoreError as error:
            log.warning("%s could not be looked at: %s; the listing finds it", key, error.what)
            return None
        if found is None:
            return None
        shown = self._object(key, found["ETag"], found["ContentLength"], found["LastModified"])
        return self._examine(shown, Tally())

    # --- one object ---------------------------------------------------------------------------------------------

    def _object(self, key: str, etag: str, size: int, modified_at: datetime) -> _Object:
        own = self.bucket.own_key(key)
        # Servers tell whole seconds, or thousandths.
        mtime_ns = round(modified_at.timestamp() * 1000) * 1_000_000
        identity = Identity(key=kept_key(own), size=size, mtime_ns=mtime_ns, etag=etag.strip('"'))
        return _Object(key=key, own=own, identity=identity)

    def _examine(self, found: _Object, tally: Tally) -> Arrival | Refusal | None:
        url = object_url(self.bucket, found.key)
        data_id = self._names.unit(found.name)
        if data_id is None:
            return self._refusal(found, url, self._names.unfit)
        try:
            is_complete, sha256 = self._completed(found, url)
        except InputChanged:
            return None  # the next listing shows what is there now
        except StoreError as error:
            tally.complain(error.what)
            # What this object alone meets may last for ever, and would keep all groups open.
            tally.is_partial |= isinstance(error, StoreUnreachable) and not isinstance(error, StoreDisturbed)
            return None
        if not is_complete:
            tally.incomplete += 1
            return None
        return self._arrival(found.identity, data_id, url, sha256)

    def _completed(self, found: _Object, url: str) -> tuple[bool, str | None]:
        """Whether it is complete, and its checksum where a manifest tells it."""
        companion = self._names.companion(found.key)
        match self._stream.complete.by:
            case "name":
                return True, None
            case "marker":
                return head(self.bucket, companion) is not None, None
            case "manifest":
                told = first_bytes(self.bucket, companion, MANIFEST_BYTES)
                sha256 = None if told is None else told_sha256(told)
                return sha256 is not None and copy_arrived(url, found.identity.etag)[1] == sha256, sha256

    def _refusal(self, found: _Object, url: str, reason: str) -> Refusal:
        told = found.identity
        return Refusal(
            stream=self.name,
            key=told.key,
            path=url,
            size=told.size,
            mtime_ns=told.mtime_ns,
            etag=told.etag,
            reason=reason,
        )
