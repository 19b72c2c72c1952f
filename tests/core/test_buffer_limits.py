"""The online buffer's limits hold in every second, however the readers' files and the disk's answers fall."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p3s_prefect.core.buffer_limits import BufferLimits

SIZES = st.lists(st.integers(0, 300_000), min_size=1, max_size=12)
LIMITS = st.builds(BufferLimits, max_reads=st.integers(1, 5), bytes_per_s=st.floats(50_000, 1_000_000, allow_nan=False))


def blocks_of(limits: BufferLimits, sizes: list[int], quick_s: float, slow: set[int]) -> list[tuple[float, float, int]]:
    """When each block of files that one reader reads one after the other was asked for and came, in virtual time."""
    now, found = 0.0, []
    for size in sizes:
        left = size
        while left > 0:
            block = min(left, limits.block_bytes)
            took_s = 0.3 if len(found) in slow else quick_s
            found.append((now, now + took_s, block))
            now += took_s + limits.pause_s(block, took_s)
            left -= block
    return found


@given(
    limits=LIMITS,
    sizes=SIZES,
    quick_s=st.sampled_from([0.0, 0.0001, 0.01]),
    slow=st.sets(st.integers(0, 100), max_size=4),
)
def test_no_second_has_more_than_the_limit(
    limits: BufferLimits, sizes: list[int], quick_s: float, slow: set[int]
) -> None:
    """P13: whatever part of a block falls into a second, at its beginning or its end, all readers stay below it.

    Each reader has its share of the limit, so that it is enough to look at one of them.
    """
    blocks = blocks_of(limits, sizes, quick_s, slow)
    assert limits.bytes_per_s is not None
    share = limits.bytes_per_s / limits.max_reads
    for begin in [came for _, came, _ in blocks]:
        # The worst: all of what came at the very beginning, and all of what was asked for just before the end.
        within = sum(size for asked, came, size in blocks if came >= begin and asked <= begin + 1)
        assert within <= share * (1 + 1e-9)


@given(limits=LIMITS, size=st.integers(1, 3_000_000))
def test_a_reader_gets_most_of_its_share(limits: BufferLimits, size: int) -> None:
    """P13: where the disk is quick, at least nine tenths of what a reader may have."""
    assert limits.bytes_per_s is not None
    blocks, rest = divmod(size, limits.block_bytes)
    needed_s = blocks * limits.pause_s(limits.block_bytes, 0) + limits.pause_s(rest, 0)
    assert size / needed_s >= 0.9 * limits.bytes_per_s / limits.max_reads


@pytest.mark.parametrize("bytes_per_s", [None, 1e12])
def test_blocks_are_bounded_and_without_a_limit_nobody_waits(bytes_per_s: float | None) -> None:
    """P13: no limit is no wait; a high one asks for no more at once than is of use."""
    limits = BufferLimits(max_reads=2, bytes_per_s=bytes_per_s)
    assert limits.block_bytes == 1 << 20
    assert limits.pause_s(1 << 20, took_s=0.01) == 0


def test_a_low_limit_is_a_limit_too() -> None:
    """P13: a byte at a time, if need be; what came late is not caught up on."""
    limits = BufferLimits(max_reads=4, bytes_per_s=40)
    assert limits.block_bytes == 1
    assert limits.pause_s(1, took_s=0) == pytest.approx(1 / 9.5)
    assert limits.pause_s(1, took_s=5) == 0
