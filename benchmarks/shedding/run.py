"""`python -m benchmarks shedding`: the table, and beside it what was measured, as JSON and as a picture."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.shedding import cells, cost, night, ours, station, step, traces
from benchmarks.shedding.cells import Cell
from benchmarks.table import show

SEEDS = 20
QUICK_SEEDS = 3
QUICK = [
    ("steady", 0.9, 5.0), ("steady", 1.2, 5.0), ("steady", 3.0, 5.0), ("steady", 3.0, 20.0), ("bursty", 1.2, 5.0),
    ("bursty", 1.2, 20.0), ("bursty", 3.0, 5.0), ("ramp", 1.2, 5.0), ("heavy tails", 1.2, 5.0),
    ("heavy tails", 3.0, 5.0), ("two classes", 1.2, 5.0), ("two classes", 3.0, 5.0), ("three stages", 1.2, 5.0),
    ("three stages", 3.0, 5.0), ("worker loss", 0.9, 20.0), ("worker loss", 1.2, 5.0),
]  # fmt: skip
HEADER = (
    "trace", "load", "deadline", "policy", "min", "median", "expired", "most", "latency", "best of the others", "it",
    "ahead", "misses",
)  # fmt: skip


def run(arguments: Sequence[str] = ()) -> None:
    """Plays the cells that are asked for, and prints the table."""
    asked = _parse(arguments)
    seeds = range(1, 1 + (asked.seeds or (QUICK_SEEDS if asked.quick else SEEDS)))
    chosen = [cell for cell in (QUICK if asked.quick else _all()) if _is_asked(cell, asked)]
    played = list(_play(chosen, seeds))
    print(table(played))
    missed = sum(bool(cell.misses(policy)) for cell in played for policy in ours.POLICIES)
    print(f"\n{missed or 'none'} of {len(played) * len(ours.POLICIES)} lines miss something of what is wanted")
    if asked.cost:
        show("What deciding costs", cost.rows())
        show("A whole night in virtual time", night.rows())
    if asked.station:
        show("For real, on some pilots", station.rows(asked.trace))
    if asked.picture is not None:
        step.draw(asked.picture)
    if asked.json is not None:
        asked.json.write_text(json.dumps([_document(cell) for cell in played], indent=1))


def table(played: Iterable[Cell]) -> str:
    """The cells in lines, shares of the bound and of the arrivals in percent."""
    lines = [HEADER, *(_line(cell, policy) for cell in played for policy in ours.POLICIES)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    return "\n".join(
        "  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _line(cell: Cell, policy: str) -> tuple[str, ...]:
    best = cell.best_rival
    return (
        cell.trace,
        f"{cell.load:g}",
        f"{cell.deadline_s:g}",
        policy,
        f"{cell.least(policy):.1%}",
        f"{cell.median(policy):.1%}",
        f"{cell.expired(policy):.2%}",
        f"{cell.most_expired(policy):.2%}",
        f"{cell.latency_s(policy):.2f}",
        best,
        f"{cell.rival(best):.1%}",
        f"{100 * cell.ahead(policy):+.1f}",
        " ".join(cell.misses(policy)),
    )


def _all() -> list[tuple[str, float, float]]:
    return [
        (name, load, deadline_s)
        for name in traces.RECIPES
        for load in traces.LOADS
        for deadline_s in traces.DEADLINES_S
    ]


def _is_asked(cell: tuple[str, float, float], asked: argparse.Namespace) -> bool:
    name, load, deadline_s = cell
    return asked.trace in (None, name) and asked.load in (None, load) and asked.deadline in (None, deadline_s)


def _play(chosen: Sequence[tuple[str, float, float]], seeds: Sequence[int]) -> Iterator[Cell]:
    began = time.monotonic()
    for number, (name, load, deadline_s) in enumerate(chosen, start=1):
        yield cells.play(name, load, deadline_s, seeds)
        spent_s = time.monotonic() - began
        left_s = spent_s / number * (len(chosen) - number)
        told = f"\r{number} of {len(chosen)} cells, {spent_s:.0f} s, about {left_s:.0f} s to go"
        print(f"{told:<60}", end="\n" if number == len(chosen) else "", file=sys.stderr, flush=True)


def _document(cell: Cell) -> dict[str, object]:
    judged = {
        policy: {
            "min": cell.least(policy),
            "median": cell.median(policy),
            "expired": cell.expired(policy),
            "misses": cell.misses(policy),
        }
        for policy in ours.POLICIES
    }
    return asdict(cell) | {"judged": judged}


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks shedding", description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"some cells, {QUICK_SEEDS} seeds, less than a minute")
    parser.add_argument("--trace", choices=list(traces.RECIPES), help="only this one")
    parser.add_argument("--load", type=float, help="only this load")
    parser.add_argument("--deadline", type=float, help="only this deadline, in mean service times")
    parser.add_argument("--seeds", type=int, help=f"how many; default {SEEDS}")
    parser.add_argument(
        "--cost", action="store_true", help="what deciding costs in time and memory, and a night in virtual time, too"
    )
    parser.add_argument("--station", action="store_true", help="small traces on a real station, too: eight minutes")
    parser.add_argument("--picture", type=Path, help="where the step response is drawn, as PNG")
    parser.add_argument("--json", type=Path, help="where all that was measured is written")
    return parser.parse_args(arguments)
