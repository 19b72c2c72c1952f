"""What people look at in Prefect beside the graph: the table of a pass, and its pictures. The same on both roads."""

from __future__ import annotations

import base64
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from p3s_prefect.adapters.ledger.pass_facts import MOST_ROWS, PassFacts, Picture, StageTotal
from p3s_prefect.core.errors import StoreError
from p3s_prefect.core.ports import ObjectStore
from p3s_prefect.core.views import StageRow, UnitRow, printable

# Prefect keeps pictures as text in its database and sends them with every list.
MOST_BYTES = 100_000


@dataclass(frozen=True, kw_only=True)
class ArtifactRecord:
    """An artifact of a flow run, of which each key stands once and is replaced."""

    key: str
    kind: str
    description: str
    data: Any


def table(facts: PassFacts) -> ArtifactRecord:
    """The table of a pass: each unit and stage with its state and times, what went wrong first."""
    rows = [(unit, stage) for unit in facts.units for stage in unit.stages]
    rows.sort(key=lambda row: row[1].state not in ("failed", "expired", "blocked"))
    all_runs = sum(sum(total.counts.values()) for total in facts.totals)
    left_out = f" The table shows {len(rows[:MOST_ROWS])} of {all_runs} stage runs." if all_runs > len(rows) else ""
    return ArtifactRecord(
        key=slug(facts.pipeline, "units"),
        kind="table",
        description=f"{facts.pipeline} {facts.group}, pass {facts.number}: {account(facts)}.{left_out}",
        data=[_row(unit, stage) for unit, stage in rows[:MOST_ROWS]],
    )


def account(facts: PassFacts) -> str:
    """What became of each stage, in one line."""
    return "; ".join(f"{total.stage}: {counted(total)}" for total in facts.totals)


def counted(total: StageTotal) -> str:
    """How many units of a stage are in which state, the most first."""
    return ", ".join(f"{units} {state}" for state, units in sorted(total.counts.items(), key=lambda item: -item[1]))


def pictures(facts: PassFacts, store: ObjectStore, titles: Collection[str] | None) -> Iterator[ArtifactRecord]:
    """The latest picture of each kind with one of these titles, as far as it is small enough; None means all."""
    for picture in facts.pictures:
        if titles is not None and picture.title not in titles:
            continue
        if picture.size * 4 / 3 < MOST_BYTES - 100:
            try:
                yield _picture(facts, picture, store.read_bytes(picture.key))
            except StoreError:
                continue  # what the store cannot give, the station's health rows tell


def _row(unit: UnitRow, stage: StageRow) -> dict[str, Any]:
    started_at = min((a.started_at for a in stage.attempts if a.started_at is not None), default=None)
    ended_at = stage.attempts[-1].ended_at if stage.attempts else None
    return {
        "unit": unit.data_id,
        "stage": stage.stage,
        "state": stage.state,
        "tries": len(stage.attempts),
        "arrived": _clock(unit.arrived_at),
        "started": _clock(started_at),
        "ended": _clock(ended_at),
        "seconds": "" if started_at is None or ended_at is None else round(ended_at - started_at, 3),
        "why": printable(stage.reason),
    }


def _picture(facts: PassFacts, picture: Picture, content: bytes) -> ArtifactRecord:
    return ArtifactRecord(
        key=slug(facts.pipeline, picture.stage, picture.category, picture.title),
        kind="image",
        description=f"**{picture.title}**, {picture.data_id}: {picture.shows}",
        data=f"data:image/png;base64,{base64.b64encode(content).decode()}",
    )


def slug(*words: str) -> str:
    """A key as Prefect takes it: small letters, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", "-".join(words).lower()).strip("-")


def _clock(at: float | None) -> str:
    return "" if at is None else f"{datetime.fromtimestamp(at, tz=UTC):%Y-%m-%d %H:%M:%S.%f}"[:-3]
