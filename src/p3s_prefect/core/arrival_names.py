"""How the files of a stream are named, wherever they arrive: units, markers, companions, and what is never read."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable

from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.experiment import Instrument, Stream
from p3s_prefect.core.file_names import FilePattern, is_excluded

_MOST_KEY = 1000
# No more of a manifest than a checksum needs.
MANIFEST_BYTES = 4096


class ArrivalNames:
    """The names of one stream's files."""

    def __init__(self, stream: Stream, instrument: Instrument) -> None:
        self._exclude = stream.exclude
        self._complete = stream.complete
        self._pattern = FilePattern(stream.pattern, instrument.dimensions)
        marker = instrument.closing.marker
        group = {name: instrument.dimensions[name] for name in instrument.group}
        self._marker = FilePattern(marker, group) if marker is not None else None
        self.unfit = f"its name does not fit {stream.pattern}"
        """Why a file of another name is refused."""

    def unit(self, name: str) -> DataId | None:
        """The unit that a file is."""
        return self._pattern.match(name)

    def closed_by(self, name: str) -> DataId | None:
        """The group that a file of this name closes."""
        return self._marker.match(name) if self._marker is not None else None

    def marker(self, group: DataId) -> str:
        """The name of the file that closes a group; empty if none does."""
        return self._marker.format(group) if self._marker is not None else ""

    def is_passed_over(self, name: str) -> bool:
        """Whether a file is a temporary one, or speaks for another one."""
        return is_excluded(name, self._exclude) or self._is_companion(name)

    def is_hidden(self, directories: Iterable[str]) -> bool:
        """Whether nothing below these directories is read, as writers keep there what is not complete."""
        return any(is_excluded(name, self._exclude) for name in directories)

    def companion(self, name: str) -> str:
        """The marker or manifest of a file, where one makes it complete."""
        return name + self._complete.suffix

    def spoken_for(self, name: str) -> str:
        """The file that a marker or manifest is about; every other file is about itself."""
        return name.removesuffix(self._complete.suffix) if self._is_companion(name) else name

    def _is_companion(self, name: str) -> bool:
        return self._complete.by != "name" and name.endswith(self._complete.suffix)


def kept_key(text: str) -> str:
    """A key as the ledger keeps it: what is very long is cut, and still differs."""
    if len(text) <= _MOST_KEY:
        return text
    return f"{text[: _MOST_KEY - 65]}…{hashlib.sha256(text.encode()).hexdigest()}"


def told_sha256(manifest: bytes) -> str | None:
    """The checksum that a manifest begins with; None if it has none."""
    with contextlib.suppress(UnicodeDecodeError, IndexError):
        return manifest.decode("ascii").split()[0].lower()
    return None
