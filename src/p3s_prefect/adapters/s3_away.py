"""Servers of S3 that did not answer when they were last asked, as this process remembers it.

Whoever has another way need not ask them in vain (`is_away`), and who asks does not wait as long as usual
(`was_away`). What asks a server notes here how that went (`s3_refusals.asking`).
"""

from __future__ import annotations

import time
from collections.abc import Callable

from p3s_prefect.core.bucket_place import BucketPlace

# Asking in vain costs up to 20 s with all tries, and 2 s in haste. After an outage everything goes its usual way this
# much later at most; sooner where somebody looks whether the server is back.
_REMEMBERED_S = 10.0
_Server = tuple[str | None, str | None]


class AwayServers:
    """What is known about the servers of places; all buckets of a server are away together."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._noted_at: dict[_Server, float] = {}

    def note(self, place: BucketPlace, *, answers: bool) -> None:
        """A place was asked; that it refused is an answer too."""
        if answers:
            self._noted_at.pop(_server(place), None)
        else:
            self._noted_at[_server(place)] = self._clock()

    def is_away(self, place: BucketPlace) -> bool:
        """Whether it gave no answer a moment ago, so that asking is most likely in vain."""
        noted_at = self._noted_at.get(_server(place))
        return noted_at is not None and self._clock() - noted_at < _REMEMBERED_S

    def was_away(self, place: BucketPlace) -> bool:
        """Whether it gave no answer when it was last asked, however long ago."""
        return _server(place) in self._noted_at


AWAY_SERVERS = AwayServers()
"""Those of this process."""


def _server(place: BucketPlace) -> _Server:
    return place.endpoint, place.region
