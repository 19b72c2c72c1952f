"""The logs of what failed, as people read them in Prefect."""

from __future__ import annotations

from collections.abc import Iterator

from p3s_prefect.agent.record import TaskRunRecord
from p3s_prefect.core.errors import StoreError
from p3s_prefect.core.ports import ObjectStore
from p3s_prefect.core.views import printable

# The end of a log tells why; the whole of it is in the store.
MOST_LINES = 200
_MOST_LOG_BYTES = 50_000
_INFO, _ERROR = 20, 40


def log_lines(task_run: TaskRunRecord, store: ObjectStore) -> Iterator[tuple[int, str]]:
    """The end of a failed attempt's log, line by line, and then why it failed; each with its level."""
    if task_run.log_key is not None:
        try:
            text = store.read_bytes(task_run.log_key)[-_MOST_LOG_BYTES:].decode(errors="replace")
        except StoreError as error:
            text = f"the log cannot be read: {error.what}"
        for line in text.splitlines()[-MOST_LINES:]:
            yield _INFO, printable(line)
    yield _ERROR, f"{task_run.name}: {task_run.states[-1].message}"
