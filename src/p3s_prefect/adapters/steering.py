"""What people set by command: read, checked, and written into the ledger with who and why (S9).

It needs no running station. One that runs takes it within a second; one that starts counts it from its start.
"""

from __future__ import annotations

import getpass
import math
from collections.abc import Callable, Iterable, Mapping
from operator import index
from typing import Any

from p3s_prefect.adapters.clock import SystemClock
from p3s_prefect.adapters.ledger import asked, overrides
from p3s_prefect.adapters.ledger.asked import Scope
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.core.errors import BadName, NoSuchRecord
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.core.overrides import BREAKER, STOPPING, Controls, Override, OverrideKind, Target
from p3s_prefect.core.ports import Clock
from p3s_prefect.core.states import StageState
from p3s_prefect.core.targets import pipelines_of, read_target


class Steering:
    """Sets and lifts overrides of one experiment. `by` is who is told to have done it; default: this user.

    Targets are named as in `core.targets`: ``waveform-dqm/quick``, ``class:dqm``, ``run=2008 subrun=3``, ``all``.
    With ``for_s`` an override ends by itself after so long.
    """

    def __init__(self, experiment: Experiment, ledger: Ledger, *, by: str = "", clock: Clock | None = None) -> None:
        self._experiment = experiment
        self._ledger = ledger
        self._by = by or user()
        self._clock = clock or SystemClock()

    def in_force(self) -> tuple[Override, ...]:
        """All overrides in force, in the order in which they were given."""
        with self._ledger.reading() as connection:
            return overrides.in_force(connection, self._clock.now())

    def controls(self) -> Controls:
        """The overrides in force, to be asked."""
        return Controls(self.in_force())

    def priority(self, target: str, value: int, *, why: str, for_s: float | None = None) -> Override:
        """Sets the priority of what is waiting and of what comes; nothing running is touched (P10).

        Raises:
            BadName: there is no such target, or no reason is given.
            NoSuchRecord: the ledger has no such group or unit.
        """
        return self.give(OverrideKind.PRIORITY, target, why, for_s, value)

    def limit(self, target: str, value: int, *, why: str, for_s: float | None = None) -> Override:
        """Lets at most `value` stages of a pipeline or class run at once; more wait (P14). Raises as `priority`."""
        return self.give(OverrideKind.LIMIT, target, why, for_s, value)

    def pause(self, target: str, *, why: str, for_s: float | None = None) -> Override:
        """Lets nothing of it start. It waits in the queue, and its deadlines count on. Raises as `priority`."""
        return self.give(OverrideKind.PAUSE, target, why, for_s)

    def drain(self, target: str, *, why: str, for_s: float | None = None) -> Override:
        """Lets no new unit begin; what has begun goes on to its end. Raises as `priority`."""
        return self.give(OverrideKind.DRAIN, target, why, for_s)

    def hold(self, target: str, *, why: str, for_s: float | None = None) -> Override:
        """Puts aside what has not started, and what comes: in the state `held`. Raises as `priority`."""
        return self.give(OverrideKind.HOLD, target, why, for_s)

    def release(self, target: str, *, why: str = "") -> tuple[Override, ...]:
        """Lifts pause, drain and hold of exactly this target, and returns what was lifted.

        Raises:
            BadName: there is no such target.
            NoSuchRecord: none of them is in force there; the message names those around it.
        """
        return self.clear(STOPPING, target, why=why)

    def clear(self, kinds: Iterable[OverrideKind], target: str, *, why: str = "") -> tuple[Override, ...]:
        """Lifts overrides of these kinds; raises as `release`."""
        kinds, now = tuple(kinds), self._clock.now()
        with self._ledger.transaction() as connection:
            found = self._known(target, overrides.in_force(connection))
            ended = overrides.clear(connection, kinds=kinds, target=found, by=self._by, why=why, now=now)
            if not ended:
                raise _not_in_force(kinds, found, overrides.in_force(connection, now))
        return ended

    def give(
        self, kind: OverrideKind, target: str, why: str, for_s: float | None = None, value: int | None = None
    ) -> Override:
        """Sets an override of any kind; raises as `priority`."""
        found, now = self._target(target), self._clock.now()
        if not isinstance(why, str) or not why.strip():
            raise BadName("no reason is given", fix='Say why, for those who come after: `--why "..."`.')
        if for_s is not None and not (isinstance(for_s, int | float) and 0 < for_s < math.inf):
            fix = "Give seconds above 0, such as for_s=7200, or none: until it is lifted."
            raise BadName(f"{for_s!r} is no time that could pass", fix=fix)
        with self._ledger.transaction() as connection:
            overrides.check_data(connection, found)
            return overrides.set_override(
                connection,
                kind=kind,
                target=found,
                value=_whole(value),
                by=self._by,
                why=why.strip(),
                now=now,
                expires_at=None if for_s is None else now + for_s,
            )

    def check(self, kind: OverrideKind, target: str, value: int | None = None) -> None:
        """Refuses what `give` would refuse, and sets nothing: for those who have a reason still to ask for."""
        found = self._target(target)
        with self._ledger.reading() as connection:
            overrides.check_data(connection, found)
        Override(id=0, kind=kind, target=found, value=value, by=self._by, why="", set_at=self._clock.now())

    def open_stages(self, target: str) -> Mapping[StageState, int]:
        """How many stage runs are open that a command on this target is about, by state; raises as `priority`."""
        found = self._target(target)
        scope = Scope(target=found, pipelines=pipelines_of(found, self._experiment))
        with self._ledger.reading() as connection:
            return asked.open_stages(connection, scope)

    def _target(self, target: str) -> Target:
        if self._by == BREAKER:
            # Those are lifted again when the pipeline has recovered.
            raise BadName(f"{BREAKER!r} is who gives the orders of circuit breakers", fix="Say who you are: --by NAME.")
        return read_target([_text(target)], self._experiment)

    def _known(self, target: str, given: Iterable[Override]) -> Target:
        # By its words first: the experiment file may have lost the pipeline since.
        words = " ".join(_text(target).split())
        named = next((one.target for one in given if str(one.target) == words), None)
        return read_target([target], self._experiment) if named is None else named


def _text(target: object) -> str:
    if not isinstance(target, str):
        raise BadName(f"{target!r} names nothing", fix='Give text, such as "waveform-dqm/quick" or "run=2008".')
    return target


def _whole(value: Any) -> Any:
    """A whole number of NumPy as Python's own; anything else as it is."""
    return index(value) if hasattr(value, "__index__") and not isinstance(value, bool) else value


def _not_in_force(kinds: Iterable[OverrideKind], target: Target, others: Iterable[Override]) -> NoSuchRecord:
    there = [one for one in others if one.kind in kinds]
    listed = "; ".join(f"{one.effect} (`{one.lift}`)" for one in there)
    return NoSuchRecord(
        f"no {' or '.join(kinds)} of {target} is in force",
        fix=f"In force: {listed}." if there else "`p3s limits` shows what is in force.",
    )


def user(name: Callable[[], str] = getpass.getuser) -> str:
    """Who this process belongs to."""
    try:
        return name()
    except (OSError, KeyError):
        # A user without a name, as in a container.
        return "unknown"
