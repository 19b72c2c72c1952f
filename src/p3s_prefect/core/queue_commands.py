"""What a change of Prefect's queues asks of a station. A queue stands for the class of its name, the pool for all.

Only what differs from what was seen before is a command: so the last change wins, whether somebody made it in Prefect
or by `p3s pause`, and nobody's is undone by a queue that merely stands there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from p3s_prefect.core.deployment import class_queues
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.core.overrides import OverrideKind, Target
from p3s_prefect.core.targets import classes_of

POOL = ""
"""The name under which the pool itself is kept."""


@dataclass(frozen=True, kw_only=True)
class QueueSaid:
    """What a queue of the work pool says, or the pool itself."""

    name: str
    priority: int | None
    """Smaller goes first, as Prefect has it."""
    most: int | None
    """At most so many at once; None is no limit."""
    is_paused: bool


@dataclass(frozen=True, kw_only=True)
class QueueCommand:
    """An override to be set, or lifted."""

    kind: OverrideKind
    target: Target
    is_set: bool
    value: int | None = None
    why: str


def commands(
    before: Mapping[str, QueueSaid], now: Sequence[QueueSaid], experiment: Experiment
) -> tuple[QueueCommand, ...]:
    """What the queues ask that they did not ask before; queues that are no class are passed over.

    A queue that is seen for the first time asks what differs from a new one: to be paused, or limited.
    """
    classes = classes_of(experiment)
    known = [said for said in now if said.name == POOL or said.name in classes]
    found = [command for said in known for command in _own(before.get(said.name), said, experiment)]
    return (*found, *_priorities(before, [said for said in known if said.name != POOL], experiment))


def _own(before: QueueSaid | None, said: QueueSaid, experiment: Experiment) -> Iterator[QueueCommand]:
    target = Target() if said.name == POOL else Target(work_class=said.name)
    where = "the work pool" if said.name == POOL else f"the queue {said.name}"
    if said.is_paused != (before is not None and before.is_paused):
        why = f"{where} is {'paused' if said.is_paused else 'not paused any more'} in Prefect"
        yield QueueCommand(kind=OverrideKind.PAUSE, target=target, is_set=said.is_paused, why=why)
    most = _most(said, experiment)
    if said.name != POOL and most != _most(before, experiment):
        why = f"{where} has {'no limit of its own' if most is None else f'the limit {most}'} in Prefect"
        yield QueueCommand(kind=OverrideKind.LIMIT, target=target, is_set=most is not None, value=most, why=why)


def _most(said: QueueSaid | None, experiment: Experiment) -> int | None:
    """A queue's limit; None where it has none, or that which the experiment file declares for its class."""
    if said is None or said.name == POOL:
        return None
    declared = experiment.classes.get(said.name)
    return None if declared is not None and said.most == declared.limit else said.most


def _priorities(
    before: Mapping[str, QueueSaid], now: Sequence[QueueSaid], experiment: Experiment
) -> Iterator[QueueCommand]:
    """Where the queues were put into another order, the classes get the declared priorities in that order.

    Prefect counts 1, 2, 3 and moves others on; what counts here is which goes before which.
    """
    names = _in_order(now)
    if names == _in_order([before[name] for name in names if name in before]):
        return
    if not any(name in before for name in names):
        return
    declared = {name: _declared(experiment, name) for name in names}
    as_declared = [queue.name for queue in class_queues(experiment) if queue.name in declared]
    wanted = list(declared.values()) if names == as_declared else _distinct(sorted(declared.values()))
    for name, value in zip(names, wanted, strict=True):
        yield QueueCommand(
            kind=OverrideKind.PRIORITY,
            target=Target(work_class=name),
            is_set=value != declared[name],
            value=value if value != declared[name] else None,
            why=f"the queue {name} was put into another place in Prefect",
        )


def _in_order(queues: Sequence[QueueSaid]) -> list[str]:
    return [said.name for said in sorted(queues, key=lambda said: (said.priority or 0, said.name))]


def _declared(experiment: Experiment, name: str) -> int:
    found = experiment.classes.get(name)
    return 0 if found is None else found.priority


def _distinct(rising: Sequence[int]) -> list[int]:
    """The same values from the greatest on, each greater than the one after it."""
    found: list[int] = []
    for value in rising:
        found.append(max(value, found[-1] + 1) if found else value)
    return found[::-1]
