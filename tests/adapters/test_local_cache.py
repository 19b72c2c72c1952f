"""The pilots' local cache: bound, order of leaving, sharing, damage, and pilots that are killed."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from builders import command, kill_at_random, order, sha256
from hypothesis import given, settings
from hypothesis import strategies as st

from p3s_prefect.adapters.directory_store import DirectoryStore
from p3s_prefect.adapters.pilot import stage_runner
from p3s_prefect.adapters.pilot.local_cache import LocalCache
from p3s_prefect.adapters.pilot.stage_runner import StageRunner
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.errors import ObjectMissing
from p3s_prefect.core.experiment import Format
from p3s_prefect.core.records import CacheUse, InputFile

BOUND = 1000
SIZES = (10, 150, 300, 400, 400, 999, 1000, 1001)


class Elsewhere(DirectoryStore):
    """A store that hands out copies, as one on another machine does, and counts them."""

    def __init__(self, root: Path, *, pause_s: float = 0.0) -> None:
        super().__init__(root)
        self.fetched: list[str] = []
        self._pause_s = pause_s

    def fetch(self, key: str, scratch: Path, sha256: str) -> Path:
        self.fetched.append(key)
        source = super().fetch(key, scratch, sha256)
        target = scratch / f"fetched-{key}"
        with target.open("wb") as written:
            content = source.read_bytes()
            written.write(content[: len(content) // 2])
            written.flush()
            time.sleep(self._pause_s)
            written.write(content[len(content) // 2 :])
        return target


def content(index: int) -> bytes:
    return random.Random(index).randbytes(SIZES[index])


def file(index: int) -> InputFile:
    return InputFile(
        dataset_type="table",
        format=Format.TEXT,
        data_id=DataId.of(run=1, subrun=index),
        key=f"o{index}.txt",
        size=SIZES[index],
        sha256=sha256(content(index)),
    )


@pytest.fixture(scope="session")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("objects")
    store = DirectoryStore(root)
    for index in range(len(SIZES)):
        store.put_bytes(f"o{index}.txt", content(index))
    return root


@pytest.fixture
def elsewhere(objects: Path) -> Elsewhere:
    return Elsewhere(objects)


@contextmanager
def scratch_in(place: Path) -> Iterator[Path]:
    place.mkdir(parents=True)
    try:
        yield place
    finally:
        shutil.rmtree(place)


def read(cache: LocalCache, store: Elsewhere, index: int, scratch: Path) -> CacheUse:
    """Reads an object once, makes sure of its bytes, and tells what that was for the cache."""
    before = cache.use
    found = cache.fetch(store, file(index), scratch)
    assert found.read_bytes() == content(index)
    assert found.suffix == ".txt"
    return CacheUse(hits=cache.use.hits - before.hits, misses=cache.use.misses - before.misses)


def held(root: Path) -> dict[str, int]:
    """What takes room in a cache that nobody changes, with its size [bytes]."""
    return {path.name: path.stat().st_size for path in root.iterdir() if not path.name.startswith(".")}


def taken(root: Path) -> int:
    """Bytes that a cache takes, while it is being changed."""
    with (root / ".lock").open("ab") as lock:
        # What leaves while others are counted would be counted beside what comes in its place.
        fcntl.flock(lock, fcntl.LOCK_EX)
        files = [Path(directory, name) for directory, _, names in os.walk(root) for name in names]
        return sum(told.st_size for path in files if (told := _stat(path)) is not None and told.st_blocks)


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:
        return None


# --- bound and order ------------------------------------------------------------------------------------------------

STEPS = st.lists(st.tuples(st.integers(0, len(SIZES) - 1), st.integers(0, 3)), min_size=1, max_size=40)


@settings(deadline=None, max_examples=30)
@given(steps=STEPS)
def test_never_above_its_bound_and_least_recently_used_goes_first(
    steps: list[tuple[int, int]], objects: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """V3: a model of the cache, whose entries up to four executions have in use, does the same in every step."""
    place = tmp_path_factory.mktemp("model")
    store, ticks = Elsewhere(objects), iter(range(10**6))
    executions: list[tuple[LocalCache, set[int]]] = []
    model: dict[int, int] = {}  # index -> when it was last used

    def make_room(index: int) -> bool:
        in_use = set[int]().union(*(used for _, used in executions))
        for old in sorted(model, key=lambda one: model[one]):
            if sum(SIZES[one] for one in model) + SIZES[index] <= BOUND:
                break
            if old not in in_use:
                del model[old]
        return sum(SIZES[one] for one in model) + SIZES[index] <= BOUND

    for number, (index, keep) in enumerate(steps):
        cache = LocalCache(place / "cache", BOUND, clock_ns=lambda: next(ticks))
        with scratch_in(place / f"{number}") as scratch:
            use = read(cache, store, index, scratch)
        assert use.hits == (index in model)
        executions.append((cache, {index} & model.keys()))
        if index in model or (SIZES[index] <= BOUND and make_room(index)):
            model[index] = number
            executions[-1][1].add(index)
        while len(executions) > keep:
            executions.pop(0)[0].close()
        found = held(place / "cache")
        assert found == {sha256(content(one)): SIZES[one] for one in model}
        assert sum(found.values()) <= BOUND
    for cache, _ in executions:
        cache.close()


def test_what_was_fetched_once_is_there_after_a_restart(elsewhere: Elsewhere, tmp_path: Path) -> None:
    """V3: nothing but the directory is needed."""
    for expected in (CacheUse(misses=1), CacheUse(hits=1)):
        with (
            closing(LocalCache(tmp_path / "cache", BOUND)) as cache,
            scratch_in(tmp_path / "scratch") as scratch,
        ):
            assert read(cache, elsewhere, 3, scratch) == expected
    assert elsewhere.fetched == ["o3.txt"]


def test_a_smaller_bound_holds_from_the_next_fetch_on(elsewhere: Elsewhere, tmp_path: Path) -> None:
    """V3."""
    for index, bound in ((1, BOUND), (2, BOUND), (3, BOUND), (0, 200)):
        with closing(LocalCache(tmp_path / "cache", bound)) as cache, scratch_in(tmp_path / "scratch") as scratch:
            read(cache, elsewhere, index, scratch)
    assert held(tmp_path / "cache") == {sha256(content(0)): SIZES[0]}


# --- damage ---------------------------------------------------------------------------------------------------------


def test_a_damaged_entry_is_fetched_again(elsewhere: Elsewhere, tmp_path: Path) -> None:
    """V3, S8: by its checksum, whenever it is used."""
    entry = tmp_path / "cache" / sha256(content(2))
    for damage in (b"x" * SIZES[2], b"", content(2) + b"x"):
        with closing(LocalCache(tmp_path / "cache", BOUND)) as cache, scratch_in(tmp_path / "scratch") as scratch:
            read(cache, elsewhere, 2, scratch)
        entry.chmod(0o600)
        entry.write_bytes(damage)
    with closing(LocalCache(tmp_path / "cache", BOUND)) as cache, scratch_in(tmp_path / "scratch") as scratch:
        assert read(cache, elsewhere, 2, scratch) == CacheUse(misses=1)
    assert elsewhere.fetched == ["o2.txt"] * 4


def test_what_the_store_lacks_is_its_error_and_leaves_nothing(elsewhere: Elsewhere, tmp_path: Path) -> None:
    """V3, S8."""
    lacking = InputFile(
        dataset_type="t", format=Format.TEXT, data_id=DataId.of(run=1), key="none.txt", size=5, sha256=sha256(b"other")
    )
    with closing(LocalCache(tmp_path / "cache", BOUND)) as cache, pytest.raises(ObjectMissing):
        cache.fetch(elsewhere, lacking, tmp_path)
    assert held(tmp_path / "cache") == {}


@pytest.mark.parametrize("spoilt", ["writable", "file", "link"])
def test_a_place_that_others_can_write_to_is_not_used(elsewhere: Elsewhere, tmp_path: Path, spoilt: str) -> None:
    """S7: the object is fetched as if there were no cache, and the report says why."""
    place, other = tmp_path / "cache", tmp_path / "other"
    other.mkdir()
    match spoilt:
        case "writable":
            place.mkdir()
            place.chmod(0o777)
        case "file":
            place.write_text("")
        case _:
            place.symlink_to(other)
    with closing(LocalCache(place, BOUND)) as cache, scratch_in(tmp_path / "scratch") as scratch:
        assert read(cache, elsewhere, 3, scratch) == CacheUse(misses=1)
        assert str(place) in cache.use.trouble
    assert list(other.iterdir()) == []


# --- several pilots -------------------------------------------------------------------------------------------------


def use_for_long(objects: Path, place: Path, seed: int, reads: int, begun: Callable[[], None]) -> None:
    """What a pilot does: executions that read a few objects each, whose bytes must be right when they are read."""
    chance, store = random.Random(seed), Elsewhere(objects, pause_s=0.002)
    begun()
    for number in range(reads):
        with (
            closing(LocalCache(place / "cache", BOUND)) as cache,
            scratch_in(place / f"{seed}-{number}") as scratch,
        ):
            wanted = chance.sample(range(len(SIZES)), 3)
            found = [cache.fetch(store, file(index), scratch) for index in wanted]
            time.sleep(chance.uniform(0, 0.005))
            assert [path.read_bytes() for path in found] == [content(index) for index in wanted]
            assert not cache.use.trouble


def test_pilots_share_it_under_load(objects: Path, tmp_path: Path) -> None:
    """V3: three processes read at random; each reads the right bytes, and the bound holds at every look."""
    children = {}
    for seed in range(3):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                use_for_long(objects, tmp_path, seed, 120, lambda: None)
                code = 0
            finally:
                os._exit(code)
        children[child] = -1
    highest = 0
    while -1 in children.values():
        time.sleep(0.005)
        highest = max(highest, taken(tmp_path / "cache"))
        for child in [one for one, code in children.items() if code == -1]:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                children[child] = os.waitstatus_to_exitcode(status)
    assert set(children.values()) == {0}
    assert 0 < highest <= BOUND
    assert set(held(tmp_path / "cache")) <= {sha256(content(index)) for index in range(len(SIZES))}


def test_an_object_that_many_want_is_fetched_once(objects: Path, tmp_path: Path) -> None:
    """V3: others wait for the pilot that fetches it already."""
    store = Elsewhere(objects, pause_s=0.2)
    with closing(LocalCache(tmp_path / "cache", BOUND)) as cache, scratch_in(tmp_path / "scratch") as scratch:
        child = os.fork()
        if child == 0:
            with scratch_in(tmp_path / "other"):
                cache.fetch(store, file(3), tmp_path / "other")
            os._exit(0)
        while not (tmp_path / "cache" / f"{sha256(content(3))}.landing").exists():
            assert os.waitpid(child, os.WNOHANG) == (0, 0)
        assert read(cache, store, 3, scratch) == CacheUse(hits=1)
        os.waitpid(child, 0)
    assert store.fetched == []


def test_killed_pilots_leave_nothing_that_lasts(objects: Path, tmp_path: Path) -> None:
    """V3, V20: after each kill -9 the next pilot gets what it asks for, and the bound holds."""
    chance = random.Random(7)
    for number in range(15):
        kill_at_random(
            lambda begun, number=number: use_for_long(objects, tmp_path, number, 10_000, begun), chance, within_s=0.15
        )
        assert taken(tmp_path / "cache") <= BOUND
    for index in range(len(SIZES)):
        with closing(LocalCache(tmp_path / "cache", BOUND)) as cache, scratch_in(tmp_path / "scratch") as scratch:
            read(cache, Elsewhere(objects), index, scratch)
    assert sum(held(tmp_path / "cache").values()) <= BOUND
    assert {path.name for path in (tmp_path / "cache").iterdir()} - {".lock"} == {sha256(content(6))}


# --- in a stage -----------------------------------------------------------------------------------------------------


def test_a_stage_reads_through_the_cache_and_says_so(
    runner: StageRunner, store: DirectoryStore, objects: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """V3, V18 (cache_bytes, cache_directory): as its order says; a store of this machine needs none."""
    store.put_bytes("o3.txt", content(3))
    step = command("sh", "-c", 'cmp "$P3S_INPUT_TABLE" "$1"', "sh", objects / "o3.txt", inputs={"table": "table"})
    options = {"inputs": [file(3)], "cache_directory": str(tmp_path / "cache"), "cache_bytes": BOUND}
    assert runner.run(order(store.url, step, **options)).cache == CacheUse()
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(stage_runner, "open_store", lambda _: Elsewhere(store.root))
    uses = [runner.run(order("s3://elsewhere", step, **options)).cache for _ in range(2)]
    assert uses == [CacheUse(misses=1), CacheUse(hits=1)]
    assert held(tmp_path / "cache") == {sha256(content(3)): SIZES[3]}
    assert runner.run(order("s3://elsewhere", step, **options | {"cache_bytes": 0})).cache == CacheUse()
