"""What Prefect has by itself: a flow with one task that notes when it began."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from prefect import flow, task


@task
def note(path: str) -> None:
    """The one stage."""
    Path(path).write_text(repr(time.time()))


@flow
def one_stage(path: str) -> None:
    """A pipeline of one stage."""
    note(path)


@flow
def one_stage_on_dask(path: str) -> None:
    """The same where its task runner is Dask's."""
    note.submit(path).wait()


if __name__ == "__main__":
    one_stage.serve(name=sys.argv[1], pause_on_shutdown=False)
