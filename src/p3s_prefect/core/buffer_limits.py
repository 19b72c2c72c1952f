"""How fast the online buffer may be read: at most so many readers at once, and so many bytes per second in sum.

Each reader keeps to its share of the bytes, one small block after the other, and never catches up on what it could not
read before. So nobody needs to count what the others read, and a reader that is alone is not faster for it.
"""

from __future__ import annotations

from dataclasses import dataclass

# A second may have two blocks more in it than the pace says: one that comes late at its beginning, and one asked
# for at its end. With blocks of a fortieth, and a pace that leaves room for two, no second has more than its share.
_BLOCKS_PER_S = 40
_ROOM_FOR = 2
# Larger ones are read no faster.
_MOST_BLOCK = 1 << 20


@dataclass(frozen=True, kw_only=True)
class BufferLimits:
    """What all readers of the online buffer keep to together."""

    max_reads: int
    """So many at once."""
    bytes_per_s: float | None = None
    """None for no limit."""

    @property
    def block_bytes(self) -> int:
        """How much a reader asks for at once."""
        if self.bytes_per_s is None:
            return _MOST_BLOCK
        return max(1, min(_MOST_BLOCK, int(self.bytes_per_s / self.max_reads / _BLOCKS_PER_S)))

    def pause_s(self, read_bytes: int, took_s: float) -> float:
        """How long a reader waits after a block, which took so long to come, before it asks for another or ends."""
        if self.bytes_per_s is None:
            return 0.0
        pace = self.bytes_per_s / self.max_reads * (1 - _ROOM_FOR / _BLOCKS_PER_S)
        return max(0.0, read_bytes / pace - took_s)
