"""What Prefect leaves behind in a process, and would carry from one test to the next."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

# Prefect 3.8 leaves connections to its server, and their event loops, to the garbage collector.
UNCLOSED = "ignore:unclosed:ResourceWarning"


def let_pass(items: Sequence[pytest.Item], folder: Path) -> None:
    """Lets pass, in the tests of a folder, what Prefect leaves to the garbage collector, and nothing else."""
    for item in items:
        if folder in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings(UNCLOSED))


@contextmanager
def cleared() -> Iterator[None]:
    """What Prefect has left is ended and collected here, not during somebody else's test.

    Its threads for events and logs are made once a process, for the server of that moment: they would tell it what
    belongs to the next test's.
    """
    yield
    from prefect.events import related
    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogWorker

    for worker in (EventsWorker, APILogWorker):
        worker.drain_all(timeout=30, at_exit=False)
    related.RESOURCE_CACHE.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
