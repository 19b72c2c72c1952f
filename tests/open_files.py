"""Who reads what below a directory, as the kernel tells: independent of what the readers say of themselves."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

_EVERY_S = 0.005
_Open = tuple[int, str, str]
"""Process, number of the descriptor, path."""


@dataclass
class OpenFiles:
    """Looks at the open files of some processes, again and again, in a thread of its own."""

    below: Path
    pids: Callable[[], Iterable[int]]
    most_at_once: int = 0
    looks: list[tuple[float, float, int]] = field(default_factory=list)
    """From when to when it looked, by the monotonic clock, and how many bytes were read since the look before."""
    _before: dict[_Open, int] = field(default_factory=dict)
    _stop: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> OpenFiles:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def read_bytes(self) -> int:
        return sum(number for *_, number in self.looks)

    def most_per_s(self, over_s: float) -> float:
        """The most bytes per second on average over any time that is at least so long, from one look to another.

        However late a look was, and however long it took: what it found was read since the one before began.
        """
        most, first, read = 0.0, 0, 0
        for _, ended, number in self.looks:
            read += number
            while first + 1 < len(self.looks) and ended - self.looks[first + 1][0] >= over_s:
                first += 1
                read -= self.looks[first][2]
            if (took_s := ended - self.looks[first][0]) >= over_s:
                most = max(most, read / took_s)
        return most

    def _watch(self) -> None:
        while not self._stop.wait(_EVERY_S):
            self._look()

    def _look(self) -> None:
        begun = time.monotonic()
        found = dict(one for pid in self.pids() for one in self._open(pid))
        # Open at both looks, and so all at once between them: a look goes from process to process, and may find one
        # reader that has just ended and the next that has just begun.
        self.most_at_once = max(self.most_at_once, len(found.keys() & self._before.keys()))
        new = sum(max(0, position - self._before.get(one, 0)) for one, position in found.items())
        # What is open no more was read to its end, as far as can be told.
        ended = {one: position for one, position in self._before.items() if one not in found}
        new += sum(max(0, Path(path).stat().st_size - position) for (_, _, path), position in ended.items())
        self._before = found
        self.looks.append((begun, time.monotonic(), new))

    def _open(self, pid: int) -> Iterator[tuple[_Open, int]]:
        # It may be closed, or its process gone, while it is looked at.
        with contextlib.suppress(OSError):
            for entry in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    path = str(entry.readlink())
                    if path.startswith(f"{self.below}/") and Path(path).is_file():
                        told = dict(line.split(":", 1) for line in _lines(f"/proc/{pid}/fdinfo/{entry.name}"))
                        # Whoever writes there is not meant.
                        if int(told["flags"], 8) & os.O_ACCMODE == os.O_RDONLY:
                            yield (pid, entry.name, path), int(told["pos"])


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()
