"""How much of what was seen has been processed, and what became of the rest (P7)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from p3s_prefect.core.reports import Scope, part_order
from p3s_prefect.core.views import AccountRow


@dataclass(frozen=True, kw_only=True)
class CoverageRow(AccountRow):
    """The account of one stage of one pass, or of its sub-jobs where `stage` is None.

    Passes are counted apart: a unit whose configuration changed before it ran is cancelled in one and goes on in the
    next.
    """

    pass_number: int
    per: str
    """``unit`` or ``group``."""
    part: str | None = None
    """Value of the dimension that the report splits by; None without one."""
    on_standby: int = 0
    """Of those that are done: how many overload had left out, and ran as a slot was left. They stand for no others."""
    mean_q: float | None = None
    """Mean probability of having reached this stage, of those that are done and that chance let in; None for sub-jobs,
    or if there is none."""
    effective: float | None = None
    """Effective sample of the same: as many units of equal weight would say as much (Kish 1965)."""

    @property
    def done_share(self) -> float:
        """Of all that were seen."""
        return self.done / self.seen

    @property
    def lost(self) -> int:
        """Those that should have given a result and did not: neither left out beforehand, nor taken over elsewhere."""
        return self.shed + self.expired + self.failed + self.blocked

    @property
    def due(self) -> int:
        """Those that should have given a result, and have settled."""
        return self.done + self.lost


@dataclass(frozen=True, kw_only=True)
class PipelineUnits:
    """The units of a pipeline, each counted once in however many passes it is."""

    pipeline: str
    units: int
    in_several_passes: int
    done: int
    """Done in at least one pass."""


@dataclass(frozen=True, kw_only=True)
class CoverageReport:
    """Coverage of a scope, by pipeline, pass, part and stage; sub-jobs go before their stages."""

    scope: Scope
    rows: tuple[CoverageRow, ...]
    units: tuple[PipelineUnits, ...]

    def tells_more(self, row: CoverageRow) -> bool:
        """Whether a row says what no other does: sub-jobs of a single stage are counted like this stage."""
        return row.stage is not None or len(self._stages[_owner(row)]) > 1

    @cached_property
    def _stages(self) -> Mapping[tuple[object, ...], set[str]]:
        """Those of a pass, of all parts together: one that was over before a stage was added is a part of it too."""
        found: dict[tuple[object, ...], set[str]] = {_owner(row): set() for row in self.rows}
        for row in self.rows:
            if row.stage is not None:
                found[_owner(row)].add(row.stage)
        return found

    @property
    def unbalanced(self) -> tuple[CoverageRow, ...]:
        """Rows whose states do not add up to what was seen. There are none, unless the ledger is damaged."""
        return tuple(row for row in self.rows if not row.balances)


def in_order(rows: Iterable[tuple[CoverageRow, int]]) -> tuple[CoverageRow, ...]:
    """Rows with their stages' positions, in the order of a report."""

    def place(found: tuple[CoverageRow, int]) -> tuple[Any, ...]:
        row, position = found
        return (row.pipeline, row.pass_number, row.per == "group", part_order(row.part), position)

    return tuple(row for row, _ in sorted(rows, key=place))


def coverage_record(row: CoverageRow) -> dict[str, Any]:
    """A row as plain values, with what follows from its counts."""
    names = {name: getattr(row, name) for name in ("pipeline", "pass_number", "per", "part", "stage")}
    return {**names, **asdict(row), "done_share": row.done_share, "balances": row.balances}


def _owner(row: CoverageRow) -> tuple[object, ...]:
    return (row.pipeline, row.pass_number, row.per)
