"""A pipeline's DAG as text: one line a stage, with rails that fork and join."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def draw_dag(parents: Mapping[str, Sequence[str]], labels: Mapping[str, str], marks: Mapping[str, str]) -> list[str]:
    """The lines of the drawing.

    Args:
        parents: each node's parents; nodes in an order in which parents come first.
        labels: what stands behind each node.
        marks: the one character that stands for each node.
    """
    children = {node: [other for other in parents if node in parents[other]] for node in parents}
    lanes: list[str | None] = []  # for each rail, the node that it leads to
    lines: list[tuple[str, str]] = []
    for node in parents:
        incoming = [index for index, target in enumerate(lanes) if target == node]
        if len(incoming) > 1:
            lines.append((_bridge(lanes, incoming, "┴", "╯"), ""))
        elif incoming and lines and lines[-1][1]:
            lines.append((_rails(lanes), ""))
        lane = incoming[0] if incoming else _free(lanes)
        for index in incoming:
            lanes[index] = None
        lines.append((_rails(lanes, lane, marks[node]), labels[node]))
        outgoing = _fork(lanes, lane, children[node])
        if len(outgoing) > 1:
            before = [target if index not in outgoing[1:] else None for index, target in enumerate(lanes)]
            lines.append((_bridge(before, outgoing, "┬", "╮"), ""))
    width = max(len(rails) for rails, _ in lines)
    return [f"{rails:<{width}} {label}".rstrip() for rails, label in lines]


def _free(lanes: list[str | None], after: int = -1) -> int:
    for index in range(after + 1, len(lanes)):
        if lanes[index] is None:
            return index
    lanes.append(None)
    return len(lanes) - 1


def _fork(lanes: list[str | None], lane: int, children: Sequence[str]) -> list[int]:
    """Give each child a rail, the first one the node's own."""
    taken: list[int] = []
    for child in children:
        index = _free(lanes, lane) if taken else lane
        lanes[index] = child
        taken.append(index)
    return sorted(taken)


def _rails(lanes: Sequence[str | None], lane: int = -1, mark: str = "") -> str:
    cells = [mark if index == lane else "│" if target else " " for index, target in enumerate(lanes)]
    return " ".join(cells).rstrip()


def _bridge(lanes: Sequence[str | None], ends: Sequence[int], middle: str, last: str) -> str:
    """A horizontal line from the first to the last end, across the rails between them."""
    cells = []
    for index, target in enumerate(lanes):
        if index in ends:
            cells.append("├" if index == ends[0] else last if index == ends[-1] else middle)
        elif ends[0] < index < ends[-1]:
            cells.append("┼" if target else "─")
        else:
            cells.append("│" if target else " ")
    text = cells[0]
    for index, cell in enumerate(cells[1:], start=1):
        text += ("─" if ends[0] < index <= ends[-1] else " ") + cell
    return text.rstrip()
