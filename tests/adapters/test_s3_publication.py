"""A publisher killed at each request to a bucket: readers see all or nothing, what was complete is finished (V13)."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from botocore.httpsession import URLLib3Session
from builders import arrival, order, python, take
from s3_servers import SeaweedServer

from p3s_prefect.adapters import s3_parts
from p3s_prefect.adapters.ledger import execution, schema
from p3s_prefect.adapters.ledger.database import Ledger
from p3s_prefect.adapters.ledger.execution import Attempt
from p3s_prefect.adapters.pilot.payload_process import PayloadProcesses
from p3s_prefect.adapters.pilot.stage_runner import StageRunner
from p3s_prefect.adapters.pilot.step import StepCall
from p3s_prefect.adapters.s3_store import S3Store
from p3s_prefect.core.experiment import Format
from p3s_prefect.core.records import Manifest
from p3s_prefect.station.recovery import manifests, recover
from p3s_prefect.station.sweeper import sweep

pytestmark = pytest.mark.sockets

PART = 5 << 20
LARGE = b"x" * (PART + 1)
SMALL = b"a picture"


class WritesAtOnce:
    """In place of payload processes, which would take longer to start than the killed process lives."""

    @contextmanager
    def borrow(self) -> Iterator[WritesAtOnce]:
        yield self

    def run(self, call: StepCall, _timeout_s: float) -> str:
        call.outputs["made"].path.write_bytes(LARGE)
        (call.directory / "plot.png").write_bytes(SMALL)
        product = {"category": "quality", "title": "Plot", "file": "plot.png", "shows": "what was seen"}
        (call.directory / "products.json").write_text(json.dumps([product]))
        call.log.write_text("it ran\n")
        return ""

    def kill(self) -> None:
        raise AssertionError("nobody stops it")


class KilledAt:
    """Kills this process with -9 at the request of a number, before it is sent or when it is answered."""

    def __init__(self, number: int, *, answered: bool) -> None:
        self._number = number
        self._answered = answered
        self._count = itertools.count(1)
        self._send = URLLib3Session.send

    def __call__(self, session: URLLib3Session, request: Any) -> Any:
        is_it = next(self._count) == self._number
        if is_it and not self._answered:
            os.kill(os.getpid(), signal.SIGKILL)
        answer = self._send(session, request)
        if is_it:
            os.kill(os.getpid(), signal.SIGKILL)
        return answer


def _publish(store: S3Store, attempt: Attempt, scratch: Path, killed: KilledAt) -> bool:
    """Runs the attempt in a process of its own; whether it was killed."""
    child = os.fork()
    if child == 0:
        try:
            URLLib3Session.send = lambda session, request: killed(session, request)
            step = python("draw", outputs={"made": "quick"})
            told = order(
                store.url,
                step,
                attempt_id=attempt.id,
                stage_run_id=attempt.stage_run_id,
                data_id=attempt.data_id,
                collection=attempt.collection,
                prefix=attempt.prefix,
                formats={"quick": Format.FILE},
            )
            report = StageRunner(cast(PayloadProcesses, WritesAtOnce()), scratch).run(told)
            os._exit(0 if report.manifest is not None else 1)
        finally:
            os._exit(2)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.waitstatus_to_exitcode(status) == 0
    return False


@pytest.mark.parametrize("answered", [False, True])
def test_a_publisher_killed_at_each_request(
    seaweed: SeaweedServer, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answered: bool
) -> None:
    """V13 on S3: every request of a publication in turn, in parts and in one piece."""
    monkeypatch.setattr(s3_parts, "_PART_BYTES", PART)
    store = S3Store(seaweed.place())
    published = 0
    for number in itertools.count(1):
        with ledger.transaction() as connection:
            taken = take(connection, arrival(number))
            # As the pilot's times are real ones.
            attempt = execution.start(connection, taken.sub_jobs[0].stages[0].id, time.time())
        was_killed = _publish(store, attempt, tmp_path / "scratch", KilledAt(number, answered=answered))
        complete = _look(store, attempt)
        assert complete or was_killed
        with ledger.reading() as connection:
            found = manifests(connection, store)
        with ledger.transaction() as connection:
            assert recover(connection, found, time.time()) == ((1, 0) if complete else (0, 1))
        published += complete
        if not was_killed:
            break
    # Two for each small object; for the large one a look, a beginning, two parts and an end.
    assert number == 1 + 2 * 3 + 5
    assert published == (2 if answered else 1)
    _nothing_else_is_left(store, ledger, published)


def _look(store: S3Store, attempt: Attempt) -> bool:
    """Whether there is a manifest; whatever is seen is whole, and so is everything that a manifest names."""
    seen = {found.key: found.size for found in store.list(f"{attempt.prefix}/")}
    digests = {key: hashlib.sha256(store.read_bytes(key)).hexdigest() for key in seen}
    wholes = {"made": LARGE, "plot.png": SMALL, "log.txt": b"it ran\n"}
    manifests = [key for key in seen if key.endswith("/manifest.json")]
    for key in seen.keys() - set(manifests):
        assert digests[key] == hashlib.sha256(wholes[key.rpartition("/")[2]]).hexdigest()
    for key in manifests:
        manifest = Manifest.model_validate_json(store.read_bytes(key))
        named = [*manifest.outputs, *manifest.products, *([manifest.log] if manifest.log else [])]
        assert {one.key: (one.size, one.sha256) for one in named} == {
            key: (size, digests[key]) for key, size in seen.items() if key not in manifests
        }
        assert len(named) == 3
    return bool(manifests)


def _nothing_else_is_left(store: S3Store, ledger: Ledger, published: int) -> None:
    """Sweeping takes what no publication names, and uploads that nobody ended; and nothing else."""
    later = time.time() + 60
    assert store.sweep_unfinished(0.0) == 0
    assert store.sweep_unfinished(later) > 0
    assert store.sweep_unfinished(later) == 0
    assert sweep(ledger, store, later)
    left = {found.key for found in store.list("")}
    with ledger.reading() as connection:
        datasets = {row.key for row in connection.execute(schema.dataset.select())}
    assert len(datasets) == published
    assert datasets < left
    assert len(left) == 4 * published
