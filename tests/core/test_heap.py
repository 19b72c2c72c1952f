"""Heaps whose entries grow stale: what comes up is live, and what is stale is not kept for long."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from p3s_prefect.core.heap import Heap


class _Item:
    """Stands in one entry at a time, or in none."""

    def __init__(self) -> None:
        self.entry: tuple[float, int, _Item] | None = None


def _is_live(entry: tuple[float, int, _Item]) -> bool:
    return entry[2].entry is entry


@given(st.lists(st.tuples(st.sampled_from(["push", "leave", "pop"]), st.integers(0, 9)), max_size=300))
def test_the_smallest_live_entry_comes_up(doings: list[tuple[str, int]]) -> None:
    """P7: whatever is pushed again with another key, leaves, or is taken, in any order."""
    heap: Heap[_Item] = Heap(_is_live)
    items = [_Item() for _ in range(10)]
    for number, (doing, key) in enumerate(doings):
        item = items[number % 7]
        if doing == "push":
            item.entry = (float(key), number, item)
            heap.push(item.entry)
        elif doing == "leave":
            item.entry = None
        elif (first := heap.first()) is not None:
            heap.pop()
            first[2].entry = None
        live = [one.entry for one in items if one.entry is not None]
        assert heap.first() == min(live, default=None)
        assert set(heap) == {one for one in items if one.entry is not None}


def test_what_is_stale_behind_a_live_entry_is_not_kept() -> None:
    """P7: memory follows what is live, though nothing that left ever comes up."""
    heap: Heap[_Item] = Heap(_is_live)
    staying = [_Item() for _ in range(1000)]
    for number, item in enumerate(staying):
        item.entry = (0.0, number, item)
        heap.push(item.entry)
    for number in range(20_000):
        passing = _Item()
        passing.entry = (1.0, number, passing)
        heap.push(passing.entry)
        passing.entry = None
    assert len(heap) < 1.2 * len(staying)
    assert heap.first() == staying[0].entry
