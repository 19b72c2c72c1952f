"""In which sub-jobs goes on what was asked for, against rows in a real database."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from ledger_rows import Rows
from sqlalchemy import select

from p3s_prefect.adapters.ledger import schema
from p3s_prefect.adapters.ledger.asked import follow
from p3s_prefect.adapters.ledger.database import Ledger

Fill = Callable[[Callable[[Rows], None]], None]
# Stages of a unit that has ended in its first pass, and whether the second pass is where it goes on.
_ENDED = [
    (("cancelled",), True),
    (("failed", "cancelled"), True),
    (("expired", "cancelled"), True),
    (("failed", "blocked"), False),
    (("done", "done"), False),
]


def _further_pass(rows: Rows, first: int, number: int) -> int:
    """Another pass of the same job."""
    old = rows.connection.execute(select(schema.production_pass).where(schema.production_pass.c.id == first)).one()
    same = {name: value for name, value in old._mapping.items() if name != "id"}
    return rows.add(schema.production_pass, **same | {"number": number})


@pytest.mark.parametrize(("states", "goes_on"), _ENDED)
def test_what_was_cancelled_is_followed_to_its_newest_pass(
    seen_ledger: Ledger, fill: Fill, states: tuple[str, ...], goes_on: bool
) -> None:
    """P10, V23: whatever became of its other stages; what ended by itself is not left for what others asked for."""
    numbers: list[int] = []

    def write(rows: Rows) -> None:
        group = rows.group("run=1")
        passes = [rows.production_pass(group, "dqm")]
        passes += [_further_pass(rows, passes[0], number) for number in (1, 2)]
        first = rows.unit(passes[0], "run=1 part=0", state=states[0])
        for position, state in enumerate(states):
            rows.stage(first, f"s{position}", state=state, position=position)
        again = [
            rows.unit(one, "run=1 part=0", state=state)
            for one, state in zip(passes[1:], ("cancelled", "arrived"), strict=True)
        ]
        rows.stage(again[0], "s0", state="cancelled")
        rows.stage(again[1], "s0", state="queued")
        # Another unit, and the group's own, are not its successors.
        rows.unit(passes[2], "run=1 part=1", state="arrived")
        rows.unit(passes[2], "run=1 part=0", state="arrived", per="group")
        numbers.extend([first, again[1]])

    fill(write)
    with seen_ledger.reading() as connection:
        assert follow(connection, numbers[:1]) == (([numbers[1]], 1) if goes_on else (numbers[:1], 0))
        assert follow(connection, numbers) == (numbers[1:], 1) if goes_on else (numbers, 1)
        assert follow(connection, []) == ([], 0)


@pytest.mark.parametrize("is_open", [True, False])
def test_totals_that_were_cancelled_come_again_when_their_group_has_closed(
    seen_ledger: Ledger, fill: Fill, is_open: bool
) -> None:
    """V23: until then they have not ended; cancelled by hand in a closed group, they have."""
    numbers: list[int] = []

    def write(rows: Rows) -> None:
        group = rows.group("run=1", is_open=is_open)
        total = rows.unit(rows.production_pass(group, "dqm"), "run=1", state="cancelled", per="group")
        rows.stage(total, "total", state="cancelled")
        numbers.append(total)

    fill(write)
    with seen_ledger.reading() as connection:
        assert follow(connection, numbers) == (numbers, int(is_open))
