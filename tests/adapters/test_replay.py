"""The replay writes what was planned, atomically, and says what it did."""

from __future__ import annotations

from pathlib import Path

import pytest

from p3s_prefect.adapters.replay import Replayed, replay
from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.file_names import FilePattern
from p3s_prefect.core.replay import Fault, FaultShares, PlannedFile, ReplayPlan
from p3s_prefect.instruments.lst1.sample import replay_writer
from p3s_prefect.instruments.lst1.subruns import read_subrun

PATTERN = FilePattern("LST-1.Run{run:05d}.{subrun:04d}.fits", {"run": "int", "subrun": "int"})
MARKER = FilePattern("LST-1.Run{run:05d}.closed", {"run": "int"})


class Clock:
    """Time that passes only in `sleep`."""

    def __init__(self) -> None:
        self.now = 1.7e9

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def play(directory: Path, plan: ReplayPlan | list[PlannedFile], **options: object) -> list[Replayed]:
    clock = Clock()
    return list(replay(directory, plan, replay_writer(), clock=clock, sleep=clock.sleep, **options))


def one(fault: Fault | None = None, **fields: object) -> PlannedFile:
    data_id = DataId.of(run=2008, subrun=0)
    return PlannedFile(at_s=0, name=PATTERN.format(data_id), data_id=data_id, fault=fault, **fields)


def test_a_clean_run_is_readable_in_full_and_on_time(tmp_path: Path) -> None:
    """P20."""
    plan = ReplayPlan(pattern=PATTERN, marker=MARKER, runs=2, rate_hz=2, subruns_per_run=5)
    done = play(tmp_path / "incoming", plan)
    assert [item.planned for item in done] == list(plan)
    assert [item.at - 1.7e9 for item in done] == pytest.approx([item.planned.at_s for item in done])
    assert len(list((tmp_path / "incoming").iterdir())) == 12
    for item in done:
        assert item.path is not None
        assert item.path.stat().st_size == item.size
        if not item.planned.marker:
            found = read_subrun(item.path)
            assert DataId.of(run=found.run, subrun=found.subrun) == item.planned.data_id


def test_a_file_bears_its_name_only_when_it_is_complete(tmp_path: Path) -> None:
    """P3, P20."""
    seen: list[list[str]] = []
    write = replay_writer()

    def spy(path: Path, data_id: DataId, version: int, now_s: float) -> None:
        write(path, data_id, version, now_s)
        seen.append(sorted(item.name for item in tmp_path.iterdir()))

    list(replay(tmp_path, [one()], spy))
    assert seen == [[".LST-1.Run02008.0000.fits.tmp"]]
    assert [item.name for item in tmp_path.iterdir()] == ["LST-1.Run02008.0000.fits"]


def test_a_writer_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    """P3."""

    def broken(path: Path, data_id: DataId, version: int, now_s: float) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        list(replay(tmp_path, [one()], broken))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fault", [Fault.TRUNCATED, Fault.CORRUPTED])
@pytest.mark.parametrize("seed", range(4))
def test_damaged_files_are_damaged(tmp_path: Path, fault: Fault, seed: int) -> None:
    """P20."""
    (done,) = play(tmp_path, [one(fault)], seed=seed)
    assert done.path is not None
    with pytest.raises(ValueError, match="not a usable LST-1 subrun file"):
        read_subrun(done.path)


def test_damage_follows_from_the_seed(tmp_path: Path) -> None:
    sizes = [play(tmp_path, [one(Fault.TRUNCATED)], seed=seed)[0].size for seed in (1, 1, 2)]
    assert sizes[0] == sizes[1] != sizes[2]


def test_a_gap_is_told_and_nothing_is_written(tmp_path: Path) -> None:
    """P20."""
    (done,) = play(tmp_path, [one(Fault.GAP)])
    assert (done.path, done.size) == (None, 0)
    assert list(tmp_path.iterdir()) == []


def test_what_is_resent_has_the_same_bytes_in_a_new_file(tmp_path: Path) -> None:
    """P2, P20."""
    (first,) = play(tmp_path, [one()])
    assert first.path is not None
    content, before = first.path.read_bytes(), first.path.stat()
    play(tmp_path, [one(Fault.RESENT)])
    assert first.path.read_bytes() == content
    after = first.path.stat()
    assert (before.st_ino, before.st_mtime_ns) != (after.st_ino, after.st_mtime_ns)


def test_what_is_rewritten_is_readable_and_has_other_events(tmp_path: Path) -> None:
    """P2, P20."""
    (first,) = play(tmp_path, [one()])
    assert first.path is not None
    before = read_subrun(first.path).event_id.tolist()
    play(tmp_path, [one(Fault.REWRITTEN, version=1)])
    assert read_subrun(first.path).event_id.tolist() != before


def test_a_resent_file_that_is_gone_is_written_again(tmp_path: Path) -> None:
    (done,) = play(tmp_path, [one(Fault.RESENT)])
    assert done.path is not None
    assert len(read_subrun(done.path).event_id) == 10


def test_every_file_is_told_as_it_comes(tmp_path: Path) -> None:
    """P20: what is left out too."""
    plan, clock = ReplayPlan(pattern=PATTERN, runs=1, faults=FaultShares(gap=0.5), seed=1), Clock()
    there, faults = [], set()
    for done in replay(tmp_path, plan, replay_writer(), clock=clock, sleep=clock.sleep):
        there += [] if done.path is None else [done.path]
        assert sorted(tmp_path.iterdir()) == there
        faults.add(done.planned.fault)
    assert faults == {None, Fault.GAP}


def test_closing_the_iterator_stops_an_endless_replay(tmp_path: Path) -> None:
    clock = Clock()
    endless = replay(tmp_path, ReplayPlan(pattern=PATTERN), replay_writer(), clock=clock, sleep=clock.sleep)
    names = [next(endless).planned.name for _ in range(7)]
    endless.close()
    assert sorted(item.name for item in tmp_path.iterdir()) == names
    assert names[-1] == "LST-1.Run02009.0001.fits"
