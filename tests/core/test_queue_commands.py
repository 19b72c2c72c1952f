"""What changes of Prefect's queues ask of a station."""

from __future__ import annotations

from p3s_prefect.core.experiment import Experiment, WorkClass
from p3s_prefect.core.overrides import OverrideKind, Target
from p3s_prefect.core.queue_commands import POOL, QueueSaid, commands

CLASSES = {"alerts": WorkClass(priority=100), "dqm": WorkClass(priority=10, limit=4), "late": WorkClass()}
EXPERIMENT = Experiment.model_construct(classes=CLASSES, pipelines={})


def said(name: str, priority: int = 1, most: int | None = None, is_paused: bool = False) -> QueueSaid:
    return QueueSaid(name=name, priority=priority, most=most, is_paused=is_paused)


def told(before: list[QueueSaid], now: list[QueueSaid]) -> set[tuple[str, str, int | None, bool]]:
    found = commands({one.name: one for one in before}, now, EXPERIMENT)
    return {(one.kind, str(one.target), one.value, one.is_set) for one in found}


RANKED = [said("alerts", 1), said("dqm", 2, most=4), said("late", 3)]


def test_what_merely_stands_there_asks_for_nothing() -> None:
    """S2: nor do the limits that the experiment file declares, nor queues that are no class."""
    assert told([], [*RANKED, said("mine", 4, is_paused=True), said(POOL)]) == set()
    assert told(RANKED, RANKED) == set()


def test_pauses_and_limits_are_those_of_the_class() -> None:
    """S2: also where they were there before anybody looked, and the pool's pause is that of everything."""
    changed = [said("alerts", 1, is_paused=True), said("dqm", 2, most=2), said("late", 3), said(POOL, is_paused=True)]
    asked = {("pause", "class:alerts", None, True), ("limit", "class:dqm", 2, True), ("pause", "all", None, True)}
    assert told([], changed) == told(RANKED, changed) == asked
    lifted = {(kind, target, None, False) for kind, target, _, _ in asked}
    assert told(changed, [*RANKED, said(POOL)]) == lifted


def test_another_order_of_queues_gives_the_classes_the_declared_priorities_in_that_order() -> None:
    """S2: and the declared order lifts them all; a queue that comes in between moves nobody."""
    turned = [said("late", 1), said("alerts", 2), said("dqm", 3, most=4)]
    assert told(RANKED, turned) == {
        ("priority", "class:late", 100, True),
        ("priority", "class:alerts", 10, True),
        ("priority", "class:dqm", 0, True),
    }
    assert told(turned, RANKED) == {("priority", f"class:{name}", None, False) for name in ("alerts", "dqm", "late")}
    moved = [said("alerts", 1), said("mine", 2), said("dqm", 3, most=4), said("late", 4)]
    assert told(RANKED, moved) == set()


def test_commands_name_targets_and_say_why() -> None:
    """S9: the reason is shown wherever it acts."""
    (found,) = commands({}, [said("dqm", is_paused=True, most=4)], EXPERIMENT)
    assert (found.kind, found.target) == (OverrideKind.PAUSE, Target(work_class="dqm"))
    assert found.why == "the queue dqm is paused in Prefect"


def test_queues_in_the_declared_order_ask_for_nothing_however_they_came_there() -> None:
    """S2: classes of one priority stand in the order of the file, which is nobody's command."""
    equal = Experiment.model_construct(classes={"one": WorkClass(), "other": WorkClass()}, pipelines={})
    found = commands({"one": said("one", 1)}, [said("default", 1), said("one", 2), said("other", 3)], equal)
    assert [one for one in found if one.is_set] == []
