"""What people set by command: it wins over the experiment file until it is cleared or expires (S9).

An `Override` acts on a `Target`; `Controls` are all that are in force, asked by the dispatcher and shown wherever they
act. Of several of one kind that match, the narrowest target wins, and of equally narrow ones the newest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.errors import BadName

EVERYTHING = "all"
"""How a command names the whole station."""
BREAKER = "breaker"
"""Who is told to have given what a pipeline's breaker sets."""
PREFECT = "prefect"
"""Who is told to have given what people do in Prefect."""
CLASS_PREFIX = "class:"
"""Stands before a class's name in a command; no name and no data id has a colon."""

PIPELINE_PREFIX = "pipeline:"
"""May stand before a pipeline's name; must, if that is ``all``."""


class OverrideKind(StrEnum):
    """What an override does to its target."""

    PRIORITY = "priority"
    """`value` takes the place of the declared priority."""
    LIMIT = "limit"
    """At most `value` of its stages run at once; 0 lets none run. Only for a class or a pipeline."""
    PAUSE = "pause"
    """Nothing of it starts. It waits in the queue, and its deadlines count on."""
    DRAIN = "drain"
    """No new unit begins; what has begun goes on to its end."""
    HOLD = "hold"
    """Its stage runs that have not started are put aside in the state `held`, those that come later too."""


_TOO_LARGE = 2**31
"""What a database keeps as a whole number is smaller."""
STOPPING = (OverrideKind.PAUSE, OverrideKind.DRAIN, OverrideKind.HOLD)
"""The kinds that `release` lifts."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """What an override acts on: everything that agrees with all that is given; nothing given is the whole station."""

    work_class: str | None = None
    pipeline: str | None = None
    stage: str | None = None
    """Only together with a pipeline."""
    group: DataId | None = None
    unit: DataId | None = None

    def __post_init__(self) -> None:
        if self.stage is not None and self.pipeline is None:
            raise BadName(f"a stage {self.stage!r} without its pipeline", fix="Name it as PIPELINE/STAGE.")

    def __str__(self) -> str:
        """As it is written in a command: ``waveform-dqm/quick run=2008``."""
        code = self.pipeline if self.stage is None else f"{self.pipeline}/{self.stage}"
        code = f"{PIPELINE_PREFIX}{code}" if code == EVERYTHING else code
        parts = (self.work_class and f"{CLASS_PREFIX}{self.work_class}", code, self.group, self.unit)
        return " ".join(str(part) for part in parts if part is not None) or EVERYTHING

    @property
    def narrowness(self) -> tuple[bool, ...]:
        """Greater is narrower; whatever is given in addition makes it greater.

        What has nothing in common is ordered too: a unit before a group, data before code.
        """
        given = (self.unit, self.group, self.stage, self.pipeline, self.work_class)
        return tuple(part is not None for part in given)

    def covers(self, work: Work) -> bool:
        """Whether the work is part of it."""
        return (
            self.work_class in (None, work.work_class)
            and self.pipeline in (None, work.pipeline)
            and self.stage in (None, work.stage)
            and self.group in (None, work.group)
            and self.unit in (None, work.unit)
        )


@dataclass(frozen=True, kw_only=True)
class Work:
    """A stage run as overrides look at it. `unit` is None for a stage per group, both are for a stage as such."""

    work_class: str
    pipeline: str
    stage: str
    group: DataId | None
    unit: DataId | None


@dataclass(frozen=True, kw_only=True)
class Override:
    """One command that is in force."""

    id: int
    """Counts up: the greater was given later."""
    kind: OverrideKind
    target: Target
    value: int | None = None
    by: str
    """Who gave it."""
    why: str
    set_at: float
    expires_at: float | None = None

    def __post_init__(self) -> None:
        if (self.value is not None) != (self.kind in _WITH_VALUE):
            raise BadName(f"{self.kind} of {self.target} with the value {self.value}", fix=_FIXES[self.kind])
        if self.value is not None:
            # Callers in Python may give anything.
            if not isinstance(self.value, int) or isinstance(self.value, bool):
                raise BadName(f"{self.kind} {self.value!r} is no whole number", fix=_FIXES[self.kind])
            if abs(self.value) >= _TOO_LARGE:
                raise BadName(f"{self.value} is out of range", fix="Give a smaller number.")
        if self.kind is OverrideKind.LIMIT:
            _check_limit(self.target, self.value or 0)

    @property
    def effect(self) -> str:
        """What it does, and to what: ``pause of waveform-dqm``, ``priority 10 of class:dqm``."""
        what = str(self.kind) if self.value is None else f"{self.kind} {self.value}"
        return f"{what} of {self.target}"

    @property
    def reason(self) -> str:
        """What it does, who gave it and why."""
        return f"{self.effect} by {self.by}" + (f": {self.why}" if self.why else "")

    @property
    def command(self) -> str:
        """The command that sets it."""
        return f"{self._verb} {self.target}" + ("" if self.value is None else f" {self.value}")

    @property
    def lift(self) -> str:
        """The command that ends it."""
        if self.kind in STOPPING:
            return f"p3s release {self.target}"
        return f"{self._verb} {self.target} --clear"

    @property
    def _verb(self) -> str:
        return f"p3s {'limits' if self.kind is OverrideKind.LIMIT else self.kind}"

    @property
    def stops(self) -> bool:
        """Whether nothing of its target starts, or nothing new."""
        return self.kind in STOPPING or (self.kind is OverrideKind.LIMIT and self.value == 0)

    def shown(self) -> dict[str, Any]:
        """For people and programs: JSON-ready, with its target as a command names it."""
        return {
            "id": self.id,
            "kind": self.kind.value,
            "target": str(self.target),
            "value": self.value,
            "by": self.by,
            "why": self.why,
            "set_at": self.set_at,
            "expires_at": self.expires_at,
            "lift": self.lift,
        }

    def is_over(self, now: float) -> bool:
        """Whether its time has passed."""
        return self.expires_at is not None and self.expires_at <= now


class Controls:
    """The overrides in force, ready to be asked many times."""

    def __init__(self, overrides: Iterable[Override] = ()) -> None:
        self.overrides = tuple(sorted(overrides, key=lambda one: (one.target.narrowness, one.id), reverse=True))
        """The narrowest first, and of equally narrow ones the newest: the first that covers the work counts."""
        self._of_kind = {kind: [one for one in self.overrides if one.kind is kind] for kind in OverrideKind}
        self.kinds = frozenset(one.kind for one in self.overrides)
        """Of which kinds there are any: a long queue is not asked about the others."""
        self.priorities_of_data = frozenset(
            one.value or 0
            for one in self._of_kind[OverrideKind.PRIORITY]
            if one.target.group is not None or one.target.unit is not None
        )
        """Those that single groups and units have of their own, so that they cannot be told by the stage."""

    def __bool__(self) -> bool:
        return bool(self.overrides)

    def priority(self, work: Work) -> Override | None:
        """The one that sets the work's priority."""
        return self._first(OverrideKind.PRIORITY, work)

    def limit(self, *, work_class: str, pipeline: str | None = None) -> Override | None:
        """The one that sets the limit of this class, or of this pipeline."""
        for one in self._of_kind[OverrideKind.LIMIT]:
            if one.target.pipeline == pipeline and one.target.work_class in (None, work_class):
                return one
        return None

    def stopped(self, work: Work, *, begun: bool) -> Override | None:
        """The pause, or where its unit has not begun the drain, for which the work may not start."""
        pause = self._first(OverrideKind.PAUSE, work)
        return pause if pause is not None or begun else self._first(OverrideKind.DRAIN, work)

    def held(self, work: Work) -> Override | None:
        """The hold that puts the work aside."""
        return self._first(OverrideKind.HOLD, work)

    def acting_on(self, work: Work) -> tuple[Override, ...]:
        """All that cover the work, the narrowest first; limits of its pipeline and class too."""
        return tuple(one for one in self.overrides if one.target.covers(work))

    def _first(self, kind: OverrideKind, work: Work) -> Override | None:
        return next((one for one in self._of_kind[kind] if one.target.covers(work)), None)


_WITH_VALUE = frozenset({OverrideKind.PRIORITY, OverrideKind.LIMIT})
_FIXES = dict.fromkeys(OverrideKind, "It takes no number.") | {
    OverrideKind.PRIORITY: "Give a whole number; higher goes first.",
    OverrideKind.LIMIT: "Give a whole number from 0.",
}


def _check_limit(target: Target, value: int) -> None:
    if value < 0:
        raise BadName(f"a limit of {value}", fix=_FIXES[OverrideKind.LIMIT])
    if (target.work_class is None) == (target.pipeline is None) or target.stage or target.group or target.unit:
        fix = f"{_instead_of_limit(target, value)} Limits are those of a pipeline, or of a class (class:NAME)."
        raise BadName(f"a limit of {target}", fix=fix)


def _instead_of_limit(target: Target, value: int) -> str:
    """What comes nearest to a limit, for what can have none (decision 0013 says why)."""
    if target.group or target.unit:
        return f"`p3s priority {target} -1` puts it behind others, `p3s pause {target}` lets nothing of it start."
    if target.stage:
        return f"`p3s limits {target.pipeline} {value}` limits its pipeline, `p3s pause {target}` stops the stage."
    return f"`p3s limits class:NAME {value}` limits one class; `p3s limits` lists them."
