"""Where data arrive: the sources of the experiment's streams, and what is to be told of all of them."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from p3s_prefect.adapters.bucket_source import BucketSource
from p3s_prefect.adapters.buffer_places import BufferPlaces
from p3s_prefect.adapters.buffer_source import BufferSource
from p3s_prefect.adapters.buffered_source import BufferedSource
from p3s_prefect.adapters.directory_source import DirectorySource
from p3s_prefect.adapters.home import Home
from p3s_prefect.adapters.listed_source import ListedSource
from p3s_prefect.core.bucket_place import BucketPlace
from p3s_prefect.core.closing import Sight
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.core.health import SourceFacts
from p3s_prefect.core.notices import Notice
from p3s_prefect.core.ports import Clock
from p3s_prefect.core.records import Identity
from p3s_prefect.station.checksums import Checksums

Source = ListedSource | BufferedSource
Known = Callable[[str, Sequence[str]], Awaitable[set[Identity]]]


@dataclass(frozen=True, kw_only=True)
class SourceMaker:
    """Makes the source of a stream; see `ListedSource` for what it is told."""

    home: Home
    clock: Clock
    known: Known
    is_open: Callable[[DataId], bool]
    checksums: Checksums

    def make(self, experiment: Experiment, name: str) -> Source:
        """A directory, a bucket, the online buffer, or a bucket with the buffer in its place while it is away."""
        stream, instrument = experiment.streams[name], experiment.instrument
        told: dict[str, Any] = {"clock": self.clock, "known": self.known, "is_open": self.is_open}
        places = BufferPlaces(experiment, self.home.path.resolve())
        place, buffered_in = stream.place, places.directory(stream)
        bucket = None
        if isinstance(place, BucketPlace) and not stream.is_buffered_always:
            bucket = BucketSource(name, stream, instrument, self.home.bucket(place), **told)
        if buffered_in is None:
            return bucket or DirectorySource(name, stream, instrument, self.home.path / str(place), **told)
        sha256 = partial(self.checksums.sha256, places, name)
        buffer = BufferSource(name, stream, instrument, buffered_in, sha256=sha256, **told)
        return buffer if bucket is None else BufferedSource(bucket, buffer, self.clock)


def hint(sources: Sequence[Source], notices: Sequence[Notice]) -> int:
    """Hands hints to the streams that watch there; returns how many were any stream's concern."""
    watching = [source for source in sources if isinstance(source, BucketSource | BufferedSource)]
    return sum(source.hint(one) for one in notices for source in watching)


def sight(sources: Sequence[Source]) -> Sight:
    """From when to when all of those know what came whose place may be away: buckets, and the online buffer."""
    found = [source.sight for source in sources if isinstance(source, BucketSource | BufferSource | BufferedSource)]
    return Sight(
        since=max((one.since for one in found), default=-math.inf),
        until=min((one.until for one in found), default=math.inf),
    )


def source_facts(source: Source) -> SourceFacts:
    """How a source stands."""
    place = source.fed_from if isinstance(source, BufferedSource) else source
    return SourceFacts(
        stream=source.name,
        directory=place.place,
        list_every_s=place.looks_every_s,
        listed_at=place.listed_at,
        incomplete=place.incomplete,
        problem=place.trouble,
        why_buffer=source.why_buffer if isinstance(source, BufferedSource) else "",
        moved_at=source.moved_at if isinstance(source, BufferedSource) else None,
    )


def buffer_problem(sources: Sequence[Source]) -> str:
    """Why the online buffer cannot be listed; empty if it can."""
    buffers = [source.buffer if isinstance(source, BufferedSource) else source for source in sources]
    return next((found.trouble for found in buffers if isinstance(found, BufferSource) and found.trouble), "")
