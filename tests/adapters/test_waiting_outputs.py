"""Outputs wait on their pilot's machine for a store that is away, and go there when it is back (P13)."""

from __future__ import annotations

import errno
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from builders import NOW, command, kill_at_random, order
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from s3_servers import SeaweedServer
from scripted_s3 import says, scripted

from p3s_prefect.adapters import s3_away, s3_client
from p3s_prefect.adapters.directory_store import DirectoryStore
from p3s_prefect.adapters.pilot import own_directory, waiting_outputs
from p3s_prefect.adapters.pilot.draining import Draining
from p3s_prefect.adapters.pilot.stage_runner import StageRunner
from p3s_prefect.adapters.pilot.step import StepCall
from p3s_prefect.adapters.pilot.waiting_outputs import About, OutputStore, WaitingOutputs
from p3s_prefect.adapters.s3_store import S3Store
from p3s_prefect.core.bucket_place import BucketPlace
from p3s_prefect.core.errors import ObjectExists, StoreDisturbed, StoreError, StoreUnreachable
from p3s_prefect.core.experiment import Step
from p3s_prefect.core.records import Failure, Manifest, PublishedObject, StageOrder, StageReport, WaitingTold
from p3s_prefect.core.retry import MOST_DISTURBED

BOUND = 1_000_000
URL = "s3://elsewhere"
MAKES = """
printf '[{"category": "Plot", "title": "One", "file": "a.png", "shows": "all"}]' > products.json
printf 'a picture' > a.png
printf made > "$P3S_OUTPUT_OUT"
echo printed
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "waiting"


@pytest.fixture
def waiting(root: Path) -> WaitingOutputs:
    return WaitingOutputs(root)


def makes(name: str = "work", made: str = "text") -> Step:
    return command("sh", "-c", MAKES, name=name, outputs={"out": made})


def manifest_of(report: StageReport) -> Manifest:
    assert report.failure is None, report.reason
    assert report.manifest is not None
    return report.manifest


def everything(manifest: Manifest) -> list[PublishedObject]:
    assert manifest.log is not None
    return [*manifest.outputs, *manifest.products, manifest.log]


# --- a real server, which goes and comes back -----------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SeaweedServer]:
    """To be killed."""
    monkeypatch.setattr(s3_client, "_ATTEMPTS", 1)
    monkeypatch.setattr(s3_away, "_REMEMBERED_S", 0.2)
    with closing(SeaweedServer(tmp_path / "server")) as found:
        found.start()
        yield found


class _Kills:
    """Takes the server away as a step begins."""

    def __init__(self, server: SeaweedServer, step: str) -> None:
        self._server, self._step = server, step

    def step_begins(self, call: StepCall) -> None:
        if call.step.name == self._step:
            self._server.kill()


def _wanted(server: SeaweedServer, root: Path) -> Callable[..., StageOrder]:
    store = S3Store(server.place())
    return lambda *steps, **fields: order(
        store.url, *steps, **{"waiting_directory": str(root), "waiting_bytes": BOUND} | fields
    )


def drained(waiting: WaitingOutputs) -> None:
    """Drains until nothing waits: a server that has just started refuses what it cannot place yet."""
    draining, tries = Draining(waiting, clock=iter(range(0, 100_000, 100)).__next__), 0
    while waiting.executions():
        draining.look()
        tries += 1
        assert tries < 600
        threading.Event().wait(0.1)


@pytest.mark.sockets
def test_outputs_wait_while_the_server_is_gone_and_go_there_when_it_is_back(
    runner: StageRunner, server: SeaweedServer, waiting: WaitingOutputs, root: Path
) -> None:
    """P13, V18 (waiting_directory): objects under the same keys, log and products too; nothing stays behind."""
    wanted = _wanted(server, root)(makes())
    store = S3Store(server.place(prefix=wanted.store_url.partition("?")[0].rpartition("/")[2]))
    server.kill()
    report = runner.run(wanted)
    manifest = manifest_of(report)
    assert report.waits
    assert waiting.told(wanted.store_url).sizes.keys() == {wanted.prefix}
    assert root.stat().st_mode & 0o077 == 0
    assert Draining(waiting).look() == 0, "the server is still away"
    server.start()
    drained(waiting)
    place = f"{wanted.prefix}/{report.execution}"
    assert Manifest.model_validate_json(store.read_bytes(f"{place}/manifest.json")) == manifest
    for one in everything(manifest):
        assert (len(store.read_bytes(one.key)), one.key.startswith(place)) == (one.size, True)
    assert {path.name for path in root.iterdir()} == {".lock"}
    assert not runner.run(wanted).waits, "the server is there: nothing waits any more"


@pytest.mark.sockets
def test_what_was_stored_before_the_server_went_stays_and_the_rest_follows(
    server: SeaweedServer, waiting: WaitingOutputs, root: Path, runner: StageRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P13: the product of the first step is there already."""
    monkeypatch.setattr(runner, "_observer", _Kills(server, "second"))
    wanted = _wanted(server, root)(makes("first"), makes("second", "text-more"))
    report = runner.run(wanted)
    manifest = manifest_of(report)
    assert report.waits
    (about,) = [waiting.about(execution) for execution in waiting.executions()]
    assert about is not None
    kept = {found.key for found in waiting.objects(about.execution).list("")}
    before = {one.key for one in everything(manifest)} - kept
    assert before == {f"{wanted.prefix}/{report.execution}/first/a.png"}
    server.start()
    drained(waiting)
    store = S3Store(server.place(prefix=wanted.store_url.partition("?")[0].rpartition("/")[2]))
    assert before | kept == {found.key for found in store.list("")}


@pytest.mark.sockets
@pytest.mark.parametrize(("bound", "word"), [(0, "does not answer"), (5, "the bound is 5 B")])
def test_what_has_no_room_to_wait_fails_by_the_store_that_is_away(
    runner: StageRunner, server: SeaweedServer, root: Path, bound: int, word: str
) -> None:
    """P13, V18 (waiting_bytes): 0 is none; a failure that does not count, and nothing stays behind."""
    server.kill()
    report = runner.run(_wanted(server, root)(makes(), waiting_bytes=bound))
    assert (report.failure, report.manifest, report.waits) == (Failure.AWAY, None, False)
    assert word in report.reason
    assert not [path for path in root.glob("*") if path.name != ".lock"]


@pytest.mark.sockets
def test_where_others_can_write_nothing_waits(runner: StageRunner, server: SeaweedServer, root: Path) -> None:
    """P13, S7."""
    root.mkdir()
    root.chmod(0o777)
    server.kill()
    report = runner.run(_wanted(server, root)(makes()))
    assert report.failure is Failure.AWAY
    assert "others can write" in report.reason
    assert list(root.iterdir()) == []


@pytest.mark.sockets
def test_the_log_of_what_has_failed_waits_too_and_nothing_else_of_it(
    runner: StageRunner, server: SeaweedServer, waiting: WaitingOutputs, root: Path
) -> None:
    """P13."""
    wanted = _wanted(server, root)(makes("first"), command("sh", "-c", "echo why; exit 3", name="second"))
    server.kill()
    report = runner.run(wanted)
    assert (report.failure, report.waits) == (Failure.PAYLOAD, False)
    assert report.log is not None
    server.start()
    drained(waiting)
    store = S3Store(server.place(prefix=wanted.store_url.partition("?")[0].rpartition("/")[2]))
    assert [found.key for found in store.list("")] == [report.log.key]
    assert store.read_bytes(report.log.key).startswith(b"printed\nwhy\n")


@pytest.mark.sockets
def test_a_bucket_that_is_away_fails_nothing_for_good(runner: StageRunner, tmp_path: Path) -> None:
    """P13: what cannot be read is tried again."""
    place = BucketPlace(bucket="central", endpoint="http://127.0.0.1:1", credentials=str(tmp_path / "keys"))
    (tmp_path / "keys").write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
    report = runner.run(order(S3Store(place).url, makes()))
    assert report.failure is Failure.AWAY


@pytest.mark.sockets
def test_what_a_server_cannot_serve_is_told_apart_from_one_that_is_away(
    runner: StageRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P7, P13: it may be about this object alone, and never pass."""
    monkeypatch.setattr(s3_client, "_ATTEMPTS", 1)
    with scripted(tmp_path, says(500, "InternalError")) as server:
        report = runner.run(order(S3Store(server.place).url, makes()))
        assert report.failure is Failure.DISTURBED, report.reason
        server.answer = says(503, "SlowDown")
        assert runner.run(order(S3Store(server.place).url, makes())).failure is Failure.AWAY


# --- pilots that are killed, and several at once --------------------------------------------------------------------


class Elsewhere(DirectoryStore):
    """A store that may be away, or slow."""

    is_away = False
    pause_s = 0.0

    def put_file(self, key: str, path: Path) -> PublishedObject:
        return self._unless_away(lambda: DirectoryStore.put_file(self, key, path))

    def put_bytes(self, key: str, content: bytes) -> PublishedObject:
        return self._unless_away(lambda: DirectoryStore.put_bytes(self, key, content))

    def _unless_away(self, put: Callable[[], PublishedObject]) -> PublishedObject:
        if self.is_away:
            raise StoreUnreachable("the store does not answer")
        threading.Event().wait(self.pause_s)
        return put()


def _about(number: int) -> About:
    return About(store_url=URL, prefix=f"runs/a{number}", execution=f"e{number}")


def _content(number: int, part: int) -> bytes:
    return random.Random(f"{number}-{part}").randbytes(50)


def _manifest(number: int, parts: list[PublishedObject]) -> Manifest:
    log, *outputs = parts
    return Manifest(
        attempt_id=number,
        execution=f"e{number}",
        collection="test",
        data_id="run=1",
        stage="quick",
        outputs=[{"dataset_type": f"t{i}", "format": "file", **one.model_dump()} for i, one in enumerate(outputs)],  # type: ignore[list-item]
        products=[],
        summary={},
        lineage=[],
        coverage={},
        steps=[],
        log=log,
        pilot="here",
        started_at=NOW,
        ended_at=NOW,
    )


def write(outputs: OutputStore, number: int, parts: int = 3) -> None:
    """What an execution writes: objects, and its manifest last."""
    place = f"runs/a{number}/e{number}"
    found = [outputs.put_bytes(f"{place}/o{part}", _content(number, part)) for part in range(parts)]
    outputs.put_bytes(f"{place}/manifest.json", _manifest(number, found).model_dump_json().encode())
    outputs.complete()


def output_store(store: Elsewhere, waiting: WaitingOutputs, number: int, bound: int = BOUND) -> OutputStore:
    return OutputStore(store, _about(number), waiting, bound, is_away=lambda: False)


def let_wait(waiting: WaitingOutputs, number: int, elsewhere: Path, parts: int = 3) -> None:
    store = Elsewhere(elsewhere)
    store.is_away = True
    with closing(output_store(store, waiting, number)) as outputs:
        write(outputs, number, parts)
        assert outputs.waits


def is_whole(store: DirectoryStore, number: int, parts: int = 3) -> bool:
    """Whether an execution is in the store as a whole; what is there of it is right in any case."""
    place = f"runs/a{number}/e{number}"
    there = {found.key for found in store.list(f"{place}/")}
    for part in range(parts):
        if f"{place}/o{part}" in there:
            assert store.read_bytes(f"{place}/o{part}") == _content(number, part)
    if f"{place}/manifest.json" not in there:
        return False
    assert len(there) == parts + 1, "the manifest is last"
    return True


def test_killed_while_it_drains_the_next_one_goes_on(waiting: WaitingOutputs, root: Path, tmp_path: Path) -> None:
    """P13, V20: kill -9 at random moments; nothing is lost, and at no time is there a manifest without its objects."""
    chance = random.Random(13)
    slow = Elsewhere(tmp_path / "central")
    slow.pause_s = 0.002
    for number in range(12):
        let_wait(waiting, number, tmp_path / "central")

    def drain(told: Callable[[], None]) -> None:
        told()
        Draining(WaitingOutputs(root), lambda _: slow).look()
        threading.Event().wait(60)

    while waiting.executions():
        kill_at_random(drain, chance, within_s=0.06)
        assert all(is_whole(slow, n) or waiting.about(f"e{n}") is not None for n in range(12))
    assert all(is_whole(slow, number) for number in range(12))
    assert {path.name for path in root.iterdir()} == {".lock"}


def test_killed_while_it_writes_what_it_leaves_is_nothing(root: Path, tmp_path: Path) -> None:
    """P13, V20: kill -9 at random moments; what is not complete is removed, and takes no room for long."""
    chance = random.Random(31)
    away, numbers = Elsewhere(tmp_path / "central"), iter(range(10_000))
    away.is_away = True

    def work(told: Callable[[], None]) -> None:
        told()
        for number in range(first, first + 1000):
            with closing(output_store(away, WaitingOutputs(root), number)) as outputs:
                write(outputs, number)

    for _ in range(6):
        first = 1000 * next(numbers)
        kill_at_random(work, chance, within_s=0.08)
    waiting = WaitingOutputs(root)
    complete = [int(name[1:]) for name in waiting.executions() if waiting.about(name) is not None]
    store = Elsewhere(tmp_path / "central")
    assert Draining(waiting, lambda _: store).look() == len(complete)
    assert all(is_whole(store, number) for number in complete)
    assert {found.key.split("/")[1] for found in store.list("")} == {f"a{number}" for number in complete}
    assert {path.name for path in root.iterdir()} == {".lock"}


def test_several_pilots_drain_each_execution_once(waiting: WaitingOutputs, root: Path, tmp_path: Path) -> None:
    """P13: as many as there are pilots, each at another one."""
    store = Elsewhere(tmp_path / "central")
    store.pause_s = 0.001
    for number in range(20):
        let_wait(waiting, number, tmp_path / "central")
    taken: list[int] = []
    pilots = [
        threading.Thread(target=lambda: taken.append(Draining(WaitingOutputs(root), lambda _: store).look()))
        for _ in range(4)
    ]
    for one in pilots:
        one.start()
    for one in pilots:
        one.join()
    assert sum(taken) == 20
    assert all(is_whole(store, number) for number in range(20))


def test_what_was_damaged_while_it_waited_is_given_up(waiting: WaitingOutputs, root: Path, tmp_path: Path) -> None:
    """P13: its manifest never gets to the store, so that the stage runs again."""
    store = Elsewhere(tmp_path / "central")
    for number in range(3):
        let_wait(waiting, number, tmp_path / "central")
    objects = root / "e1" / "objects" / "runs" / "a1" / "e1"
    (objects / "o1").chmod(0o600)
    (objects / "o1").write_bytes(b"other bytes")
    (root / "e2" / "objects" / "runs" / "a2" / "e2" / "o2").unlink()
    Draining(waiting, lambda _: store).look()
    assert is_whole(store, 0)
    manifests = [found.key for found in store.list("") if found.key.endswith("manifest.json")]
    assert manifests == ["runs/a0/e0/manifest.json"]
    assert waiting.executions() == []


def test_that_nobody_can_tell_whose_outputs_they_are_is_logged(
    waiting: WaitingOutputs, root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """P13, S8: they were complete, and are removed like others that were damaged; what was begun by a pilot that was
    killed is removed without a word."""
    store = Elsewhere(tmp_path / "central")
    let_wait(waiting, 1, tmp_path / "central")
    (root / "e1" / "about.json").write_bytes(b"{")
    waiting.hold("e2").close()
    assert Draining(waiting, lambda _: store).look() == 0
    assert waiting.executions() == []
    assert [("e1" in one.getMessage(), "e2" in one.getMessage()) for one in caplog.records] == [(True, False)]


def test_what_others_could_have_put_there_does_not_wait(waiting: WaitingOutputs, root: Path, tmp_path: Path) -> None:
    """P13, S7: not drained, not told, not touched, until nobody else can write there."""
    store = Elsewhere(tmp_path / "central")
    let_wait(waiting, 1, tmp_path / "central")
    root.chmod(0o777)
    seen = WaitingOutputs(root)
    assert (seen.executions(), seen.told(URL), seen.about("e1")) == ([], WaitingTold(), None)
    assert seen.drop(URL, {"runs/a1"}) == 0
    assert Draining(seen, lambda _: store).look() == 0
    assert (root / "e1" / "about.json").exists()
    (tmp_path / "link").symlink_to(root)
    root.chmod(0o700)
    assert WaitingOutputs(tmp_path / "link").executions() == []
    assert Draining(seen, lambda _: store).look() == 1
    assert is_whole(store, 1)


@pytest.mark.parametrize("name", ["o1", "manifest.json"])
def test_what_a_link_leads_to_goes_to_no_store(waiting: WaitingOutputs, root: Path, tmp_path: Path, name: str) -> None:
    """P13, S7: even if it has the right content; nothing of that execution is sent."""
    store = Elsewhere(tmp_path / "central")
    let_wait(waiting, 1, tmp_path / "central")
    path = root / "e1" / "objects" / "runs" / "a1" / "e1" / name
    path.rename(tmp_path / "private")
    path.symlink_to(tmp_path / "private")
    Draining(waiting, lambda _: store).look()
    assert list(store.list("")) == []
    assert (tmp_path / "private").exists()


def test_nothing_is_drained_into_a_directory(waiting: WaitingOutputs, tmp_path: Path) -> None:
    """P13, S7: a store in a directory is never away, and what says otherwise is not from a pilot."""
    away = Elsewhere(tmp_path / "central")
    away.is_away = True
    other = About(store_url=(tmp_path / "anywhere").as_uri(), prefix="runs/a1", execution="e1")
    with closing(OutputStore(away, other, waiting, BOUND, is_away=lambda: False)) as outputs:
        write(outputs, 1)
    Draining(waiting).look()
    assert not (tmp_path / "anywhere").exists()
    assert waiting.executions() == []


@pytest.mark.parametrize("code", [errno.EROFS, errno.EIO])
def test_a_disk_that_does_not_let_go_costs_no_pilot(
    waiting: WaitingOutputs, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """P13: what was given up is removed later, by whoever drains, as nobody holds it any more."""
    away = Elsewhere(tmp_path / "central")
    away.is_away = True

    def fails(*_: Any, **__: Any) -> None:
        raise OSError(code, "the disk")

    outputs = output_store(away, waiting, 1)
    outputs.put_bytes("runs/a1/e1/o1", b"some")
    with monkeypatch.context() as ill:
        ill.setattr(Path, "unlink", fails)
        outputs.close()
    assert waiting.executions() == ["e1"]
    Draining(waiting).look()
    assert {path.name for path in root.iterdir()} == {".lock"}


class _Disturbed(Elsewhere):
    """It answers, and never takes this."""

    tries = 0

    def put_file(self, key: str, path: Path) -> PublishedObject:
        self.tries += 1
        raise StoreDisturbed("it cannot be served now")


def test_what_a_server_cannot_take_is_not_sent_every_second(waiting: WaitingOutputs, tmp_path: Path) -> None:
    """P13: unless it is away, which is remembered elsewhere: then it goes as soon as the server is back."""
    disturbed, now = _Disturbed(tmp_path / "central"), [0.0]
    let_wait(waiting, 1, tmp_path / "central")
    draining = Draining(waiting, lambda _: disturbed, clock=lambda: now[0])
    for now[0], tries in ((0.0, 1), (1.0, 1), (9.0, 1), (11.0, 2), (20.0, 2), (22.0, 3)):
        assert (draining.look(), disturbed.tries) == (0, tries)
    assert waiting.executions() == ["e1"]
    assert waiting.drop(URL, {"runs/a1"}) == 1
    draining.look()
    assert not draining._not_before, "what is gone is not remembered"


class _TakesOthers(Elsewhere):
    """It never takes what has waited, and others if `takes_others`."""

    tries = 0
    takes_others = True

    def __init__(self, root: Path, error: StoreError) -> None:
        super().__init__(root)
        self._error = error

    def put_file(self, key: str, path: Path) -> PublishedObject:
        self.tries += 1
        raise self._error

    def put_bytes(self, key: str, content: bytes) -> PublishedObject:
        if not self.takes_others:
            raise self._error
        return super().put_bytes(key, content)


@pytest.mark.parametrize("error", [StoreDisturbed, ObjectExists, StoreError])
def test_what_a_store_never_takes_is_given_up_unless_it_takes_nothing(
    waiting: WaitingOutputs, root: Path, tmp_path: Path, error: type[StoreError]
) -> None:
    """P7, P13: after as many tries as a read has, and as long; a store without room, or a wrong key, counts nothing."""
    store, now = _TakesOthers(tmp_path / "central", error("it is bad")), [0.0]
    let_wait(waiting, 1, tmp_path / "central")
    draining = Draining(waiting, lambda _: store, clock=lambda: now[0])

    def tried_for(tries: int) -> float:
        begun_at = now[0]
        while store.tries < tries and waiting.executions():
            now[0] += 5.0
            draining.look()
        return now[0] - begun_at

    store.takes_others = False
    tried_for(2 * MOST_DISTURBED)
    assert (waiting.executions(), waiting.told(URL).given_up) == (["e1"], {})
    store.takes_others = True
    assert tried_for(4 * MOST_DISTURBED) > 18 * 60
    assert (waiting.executions(), store.tries) == ([], 3 * MOST_DISTURBED)
    told = waiting.told(URL)
    assert (told.sizes, told.given_up.keys()) == ({}, {"runs/a1"})
    assert "it is bad" in told.given_up["runs/a1"]
    assert not waiting.told("s3://other").given_up
    assert list(store.list("")) == [], "what it was asked with is removed"
    waiting.drop(URL, {"runs/a1"})
    assert {path.name for path in root.iterdir()} == {".lock"}


def test_what_was_given_up_is_told_for_a_week(waiting: WaitingOutputs, root: Path) -> None:
    """P13, S5: a station that never comes back does not fill the directory."""
    root.mkdir(mode=0o700)
    for number in range(2):
        waiting.give_up(_about(number), "it is bad")
    eight_days_ago = time.time() - 8 * 86400
    os.utime(root / "e0.given-up", (eight_days_ago, eight_days_ago))
    waiting.give_up(_about(2), "it is bad")
    assert waiting.told(URL).given_up.keys() == {"runs/a1", "runs/a2"}


class _Refuses(Elsewhere):
    tries = 0

    def put_file(self, key: str, path: Path) -> PublishedObject:
        self.tries += 1
        raise StoreError("the key is wrong", fix="Correct it.")


def test_what_a_store_refuses_goes_on_waiting_and_keeps_nothing_else_from_going(
    waiting: WaitingOutputs, tmp_path: Path
) -> None:
    """P13, S8: a wrong key is mended by people; it is not tried every second."""
    refuses, good, now = _Refuses(tmp_path / "refuses"), Elsewhere(tmp_path / "central"), [0.0]
    let_wait(waiting, 1, tmp_path / "central")
    away = Elsewhere(tmp_path / "central")
    away.is_away = True
    other = About(store_url="s3://good", prefix="runs/a2", execution="e2")
    with closing(OutputStore(away, other, waiting, BOUND, is_away=lambda: False)) as outputs:
        write(outputs, 2)
    draining = Draining(waiting, lambda url: good if url == "s3://good" else refuses, clock=lambda: now[0])
    assert draining.look() == 1
    assert is_whole(good, 2)
    assert (draining.look(), refuses.tries) == (0, 1)
    now[0] = 61.0
    assert (draining.look(), refuses.tries) == (0, 2)
    assert waiting.executions() == ["e1"]


def test_one_that_cannot_be_looked_at_keeps_no_other_from_going(
    waiting: WaitingOutputs, root: Path, tmp_path: Path
) -> None:
    """P13: the oldest one, too."""
    store = Elsewhere(tmp_path / "central")
    for number in range(2):
        let_wait(waiting, number, tmp_path / "central")
    (root / "e0" / "about.json").rename(tmp_path / "about.json")
    (root / "e0" / "about.json").mkdir()
    assert Draining(waiting, lambda _: store).look() == 1
    assert is_whole(store, 1)
    assert waiting.executions() == ["e0"]
    let_wait(waiting, 2, tmp_path / "central")
    told = waiting.told(URL)
    assert (told.sizes.keys(), told.unreadable.keys()) == ({"runs/a2"}, {"e0"})
    assert told.unreadable["e0"] == told.sizes["runs/a2"]
    assert waiting.drop(URL, {"runs/a2"}) == 1
    (root / "e0" / "about.json").rmdir()
    (tmp_path / "about.json").rename(root / "e0" / "about.json")
    assert Draining(waiting, lambda _: store).look() == 1
    assert is_whole(store, 0)


@pytest.mark.parametrize("name", ["o1", "manifest.json"])
def test_what_cannot_be_read_for_a_while_is_not_given_up(
    waiting: WaitingOutputs, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """P13: a disk that fails, or too many open files; it is tried again."""
    store, now = Elsewhere(tmp_path / "central"), [0.0]
    let_wait(waiting, 1, tmp_path / "central")
    opens, is_ill = Path.open, [True]

    def fails(path: Path, *args: Any, **named: Any) -> Any:
        if is_ill[0] and path.name == name and path.is_relative_to(root):
            raise OSError(errno.EIO, "Input/output error")
        return opens(path, *args, **named)

    monkeypatch.setattr(Path, "open", fails)
    draining = Draining(waiting, lambda _: store, clock=lambda: now[0])
    assert draining.look() == 0
    assert waiting.told(URL).sizes.keys() == {"runs/a1"}
    assert not is_whole(store, 1)
    is_ill[0] = False
    now[0] = 61.0
    assert draining.look() == 1
    assert is_whole(store, 1)


@pytest.mark.parametrize("times", [1, 10_000])
def test_a_place_that_goes_away_is_made_again_and_not_for_ever(
    waiting: WaitingOutputs, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    """P13, S8: somebody empties the directory, once or again and again, just when outputs begin to wait."""
    left = [times]

    def make_and_lose(path: Path) -> None:
        own_directory.make_own(path)
        if left[0]:
            left[0] -= 1
            path.rmdir()

    monkeypatch.setattr(waiting_outputs, "make_own", make_and_lose)
    monkeypatch.setattr(waiting_outputs, "_HOLD_PAUSE_S", 0.0)
    away = Elsewhere(tmp_path / "central")
    away.is_away = True
    with closing(output_store(away, waiting, 1)) as outputs:
        if times > 1:
            with pytest.raises(StoreUnreachable, match="again and again"):
                write(outputs, 1)
        else:
            write(outputs, 1)
    assert waiting.executions() == ([] if times > 1 else ["e1"])


def test_what_matters_no_more_is_dropped(waiting: WaitingOutputs, tmp_path: Path) -> None:
    """P13: of these attempts of this store alone."""
    for number in range(4):
        let_wait(waiting, number, tmp_path / "central")
    assert waiting.drop("s3://other", {"runs/a1"}) == 0
    assert waiting.drop(URL, {"runs/a1", "runs/a3", "runs/a9"}) == 2
    assert waiting.told(URL).sizes.keys() == {"runs/a0", "runs/a2"}


# --- any order of events --------------------------------------------------------------------------------------------


class Outages(RuleBasedStateMachine):
    """Executions that write, and pilots that drain, while the store goes and comes."""

    BOUND = 4000

    def __init__(self) -> None:
        super().__init__()
        self._scratch = TemporaryDirectory()
        self._path = Path(self._scratch.name)
        self._store = Elsewhere(self._path / "central")
        self._waiting = WaitingOutputs(self._path / "waiting")
        self._open: dict[int, tuple[OutputStore, list[PublishedObject]]] = {}
        self._told: set[int] = set()
        self._number = 0

    def teardown(self) -> None:
        for outputs, _ in self._open.values():
            outputs.close()
        self._store.is_away = False
        self.drain()
        assert all(is_whole(self._store, number) for number in self._told)
        manifests = {found.key for found in self._store.list("") if found.key.endswith("manifest.json")}
        assert manifests == {f"runs/a{number}/e{number}/manifest.json" for number in self._told}
        assert self._waiting.executions() == []
        self._scratch.cleanup()

    @rule(is_away=st.booleans())
    def store_goes_or_comes(self, is_away: bool) -> None:
        self._store.is_away = is_away

    @rule()
    def begin(self) -> None:
        self._number += 1
        self._open[self._number] = (output_store(self._store, self._waiting, self._number, self.BOUND), [])

    @precondition(lambda self: self._open)
    @rule(data=st.data())
    def go_on(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self._open)))
        outputs, parts = self._open[number]
        try:
            if len(parts) < 3:
                parts.append(outputs.put_bytes(f"runs/a{number}/e{number}/o{len(parts)}", _content(number, len(parts))))
                return
            manifest = _manifest(number, parts).model_dump_json().encode()
            outputs.put_bytes(f"runs/a{number}/e{number}/manifest.json", manifest)
            outputs.complete()
            self._told.add(number)
        except StoreUnreachable:
            assert self._store.is_away or any(name == f"e{number}" for name in self._waiting.executions())
        outputs.close()
        del self._open[number]

    @rule()
    def drain(self) -> None:
        before = [name for name in self._waiting.executions() if self._waiting.about(name) is not None]
        assert Draining(self._waiting, lambda _: self._store).look() == (0 if self._store.is_away else len(before))

    @invariant()
    def the_bound_holds(self) -> None:
        root = self._path / "waiting"
        kept = [path for path in root.rglob("*") if path.is_file() and "objects" in path.parts]
        assert sum(path.stat().st_size for path in kept) <= self.BOUND

    @invariant()
    def nothing_is_seen_by_halves(self) -> None:
        for number in range(1, self._number + 1):
            is_whole(self._store, number)


TestOutages = Outages.TestCase
TestOutages.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestOutages.__doc__ = "P13, V13: in any order, nothing is lost, nothing is doubled, and the bound holds."
