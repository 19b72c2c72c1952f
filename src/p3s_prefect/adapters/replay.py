"""Carries out a replay plan: writes its files into a watched directory, each complete before it bears its name."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.replay import Fault, PlannedFile

Writer = Callable[[Path, DataId, int, float], None]
"""Writes one unit's file: path, data id, version of the content, time (Unix, s)."""

_FLIPPED_BYTES = 16


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """What a replay did."""

    planned: PlannedFile
    """What was to be done."""
    path: Path | None
    """The file that is there now; None where it was left out."""
    size: int
    """Its size in bytes."""
    at: float
    """When it got its name (Unix, s)."""


def replay(
    directory: Path,
    plan: Iterable[PlannedFile],
    write: Writer,
    *,
    seed: int = 0,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], object] = time.sleep,
) -> Iterator[Replayed]:
    """Carries out `plan` as it is iterated over, each file at its time; one that is behind is not skipped.

    A file is written as ``.<name>.tmp``, flushed to the disk and renamed into place. `seed` chooses where files are
    cut and which bytes are flipped. To stop, close the iterator, or let `sleep` raise.

    Raises:
        OSError: the directory cannot be written to.
    """
    directory.mkdir(parents=True, exist_ok=True)
    start = clock()
    for planned in plan:
        wait_s = start + planned.at_s - clock()
        if wait_s > 0:
            sleep(wait_s)
        yield _carry_out(directory, planned, write, seed, clock)


def _carry_out(directory: Path, planned: PlannedFile, write: Writer, seed: int, clock: Callable[[], float]) -> Replayed:
    if planned.fault is Fault.GAP:
        return Replayed(planned=planned, path=None, size=0, at=clock())
    path, part = directory / planned.name, directory / f".{planned.name}.tmp"
    part.unlink(missing_ok=True)
    try:
        _fill(part, path, planned, write, clock)
        _damage(part, planned, random.Random(f"{seed} {planned.name}"))  # noqa: S311 - chance, not secrecy
        size = _flush(part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return Replayed(planned=planned, path=path, size=size, at=clock())


def _fill(part: Path, path: Path, planned: PlannedFile, write: Writer, clock: Callable[[], float]) -> None:
    if planned.marker:
        part.touch()
    elif planned.fault is Fault.RESENT and path.exists():
        part.write_bytes(path.read_bytes())
    else:
        write(part, planned.data_id, planned.version, clock())


def _damage(part: Path, planned: PlannedFile, chance: random.Random) -> None:
    size = part.stat().st_size
    if planned.fault is Fault.TRUNCATED:
        os.truncate(part, chance.randrange(size))
    if planned.fault is Fault.CORRUPTED:
        with part.open("r+b") as file:
            # The second half of a file is data, whatever its format keeps in front.
            for place in chance.sample(range(size // 2, size), min(_FLIPPED_BYTES, size - size // 2)):
                file.seek(place)
                flipped = file.read(1)[0] ^ (1 << chance.randrange(8))
                file.seek(place)
                file.write(bytes([flipped]))


def _flush(part: Path) -> int:
    with part.open("rb") as file:
        os.fsync(file.fileno())
        return os.fstat(file.fileno()).st_size
