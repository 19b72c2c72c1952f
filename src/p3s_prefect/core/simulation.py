"""What would this change do? A load under one policy, or under two side by side (P21)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from p3s_prefect.core.errors import P3sError
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.core.incidents import SlotChange
from p3s_prefect.core.loads import Load, arrivals
from p3s_prefect.core.simulation_results import PolicyResult, result_of, tally_record
from p3s_prefect.core.virtual_time import simulate


@dataclass(frozen=True, kw_only=True)
class Policy:
    """What may be changed: an experiment file and, if other than the load's, the number of slots."""

    name: str
    experiment: Experiment
    slots: int | None = None
    changes: tuple[str, ...] = ()
    """What it changes, for people."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A load under one policy, or under two."""

    load: str
    notes: tuple[str, ...]
    units: int
    a: PolicyResult
    b: PolicyResult | None


Progress = Callable[[str, float], None]
"""Told how far a policy is: its name, and the share of the load that has arrived."""


def compare(load: Load, a: Policy, b: Policy | None = None, *, progress: Progress | None = None) -> Comparison:
    """Plays the load under one policy, or under two."""
    return Comparison(
        load=load.about,
        notes=load.notes,
        units=len(load.units),
        a=run(load, a, progress=progress),
        b=None if b is None else run(load, b, progress=progress),
    )


def run(load: Load, policy: Policy, *, progress: Progress | None = None) -> PolicyResult:
    """What a load becomes under a policy.

    Raises:
        P3sError: none of the experiment's pipelines takes anything of it, or no worker would be left.
    """
    experiment = policy.experiment
    incoming = tuple(arrivals(load, experiment))
    if not incoming:
        raise P3sError(
            f"no pipeline of policy {policy.name} takes anything of this load",
            fix="Look at the rules of its streams: `p3s check` says what they choose.",
        )
    span_s = max(load.ends_at - load.begins_at, 1e-9)

    def tell(now: float) -> None:
        if progress is not None:
            progress(policy.name, min(max((now - load.begins_at) / span_s, 0.0), 1.0))

    slots, changes = load.slots if policy.slots is None else policy.slots, slot_changes(load, policy)
    outcome = simulate(
        experiment.pipelines,
        incoming,
        classes=experiment.classes,
        service_s=load.service_s,
        slots=slots,
        slot_changes=changes,
        closings=load.closings,
        fate=load.fate,
        seed=experiment.seed,
        progress=tell,
    )
    tell(load.ends_at)
    steps = [(load.begins_at, slots), *((change.at, change.slots) for change in changes)]
    return result_of(load, policy.name, policy.changes, outcome, steps)


def slot_changes(load: Load, policy: Policy) -> tuple[SlotChange, ...]:
    """The load's, moved by as many slots as the policy begins with more or fewer.

    Raises:
        P3sError: fewer than none would be left.
    """
    shift = 0 if policy.slots is None else policy.slots - load.slots
    moved = tuple(SlotChange(at=change.at, slots=change.slots + shift) for change in load.slot_changes)
    if any(change.slots < 0 for change in moved):
        raise P3sError(f"policy {policy.name} would lose more workers than it has", fix="Give it more slots.")
    return moved


def comparison_record(found: Comparison) -> dict[str, Any]:
    """As mappings and lists, for JSON."""
    record = asdict(found)
    for name, result in (("a", found.a), ("b", found.b)):
        if result is not None:
            record[name]["classes"] = [tally_record(tally) for tally in result.classes]
            record[name]["stages"] = [tally_record(tally) for tally in result.stages]
    return record
