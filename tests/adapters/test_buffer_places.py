"""Where a file is a second time: told from its URL or path alone, however long or odd its key is."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from p3s_prefect.adapters import buffer_places
from p3s_prefect.adapters.bucket_url import object_url
from p3s_prefect.adapters.buffer_places import BufferPlaces
from p3s_prefect.adapters.buffer_source import BufferSource
from p3s_prefect.adapters.clock import SystemClock
from p3s_prefect.adapters.directory_store import file_sha256
from p3s_prefect.core.bucket_place import BucketPlace
from p3s_prefect.core.experiment import Experiment
from p3s_prefect.core.records import BufferPlace, Identity

BUCKET = BucketPlace(bucket="night", prefix="raw/lst1", endpoint="http://s3:8333")


def experiment(**stream: Any) -> Experiment:
    step = {"name": "work", "command": ["true"], "inputs": {"raw": "raw"}}
    images = {"pattern": "r{run:03d}.fits", "dataset_type": "raw", "rules": [{"pipelines": ["quick"]}]}
    return Experiment.model_validate(
        {
            "experiment": "night",
            "instrument": {"name": "camera", "dimensions": {"run": "int"}, "group": ["run"]},
            "dataset_types": {"raw": {"format": "fits"}},
            "pipelines": {"quick": {"stages": {"quick": {"steps": [step]}}}},
            "streams": {"images": images | {"buffer": {"directory": "lst1"}} | stream},
            "buffer": {"directory": "disk", "max_reads": 3, "bytes_per_s": "50 MB"},
        }
    )


IN_BUCKET = {"bucket": "s3://night/raw/lst1", "endpoint": "http://s3:8333"}


def of(tmp_path: Path, key: str, **stream: Any) -> BufferPlace | None:
    return BufferPlaces(experiment(**IN_BUCKET | stream), tmp_path).of("images", object_url(BUCKET, key))


async def nothing_known(_stream: str, _keys: Sequence[str]) -> set[Identity]:
    return set()


@pytest.mark.parametrize("own", ["r001.fits", "2027/01/r 001+é%.fits", "/".join(["d" * 200] * 8)])
def test_an_object_and_its_file_point_to_each_other(tmp_path: Path, own: str) -> None:
    """P13: also where the ledger keeps the key cut."""
    url, path = object_url(BUCKET, f"raw/lst1/{own}"), str(tmp_path / "disk/lst1" / own)
    places = BufferPlaces(experiment(**IN_BUCKET), tmp_path)
    found = places.of("images", url)
    assert found is not None
    assert found == places.of("images", path)
    assert (found.path, found.bucket, found.is_first) == (path, url, False)
    assert (found.limits.max_reads, found.limits.bytes_per_s) == (3, 50_000_000)


@pytest.mark.parametrize(
    "own", ["../../etc/passwd", "a/../r001.fits", "/etc/passwd", "a//r001.fits", ".", "x" * 256, ""]
)
def test_a_key_that_leads_elsewhere_or_that_no_file_has_is_not_in_the_buffer(tmp_path: Path, own: str) -> None:
    """P13, S7: whoever may upload names no file of the DAQ's machine."""
    assert of(tmp_path, f"raw/lst1/{own}") is None


def test_what_came_from_another_bucket_or_stream_is_not_in_the_buffer(tmp_path: Path) -> None:
    """P13: as after the experiment file was changed."""
    assert of(tmp_path, "raw/lst10/r001.fits") is None
    assert of(tmp_path, "raw/lst1/r001.fits", endpoint="http://other:8333") is None
    places = BufferPlaces(experiment(**IN_BUCKET), tmp_path)
    assert places.of("gone", object_url(BUCKET, "raw/lst1/r001.fits")) is None
    assert places.of("images", str(tmp_path / "incoming/r001.fits")) is None


def test_a_file_in_the_buffer_is_read_under_its_limits_whatever_became_of_its_stream(tmp_path: Path) -> None:
    """P13: and from nowhere else."""
    path = str(tmp_path / "disk/old/r001.fits")
    for stream in ("images", "gone"):
        found = BufferPlaces(experiment(**IN_BUCKET), tmp_path).of(stream, path)
        assert found is not None
        assert (found.path, found.bucket, found.limits.max_reads) == (path, None, 3)


def test_a_buffer_behind_a_link_is_known_by_both_names(tmp_path: Path) -> None:
    """P13: people give files by where they really are; pilots have them as declared."""
    (tmp_path / "daq/lst1").mkdir(parents=True)
    (tmp_path / "disk").symlink_to("daq")
    places = BufferPlaces(experiment(**IN_BUCKET), tmp_path)
    for name in ("daq", "disk"):
        found = places.of("images", str(tmp_path / name / "lst1/r001.fits"))
        assert found is not None
        assert (found.path, found.bucket) == (
            str(tmp_path / "disk/lst1/r001.fits"),
            object_url(BUCKET, "raw/lst1/r001.fits"),
        )
        assert places.of("gone", str(tmp_path / name / "lst1/r001.fits")) is not None


def test_a_disk_that_hangs_keeps_nobody_waiting_who_asks_for_a_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P13: the committer asks, in the middle of a transaction; and whoever starts or reloads the station."""
    is_mended = threading.Event()
    resolve = Path.resolve

    def hang(path: Path) -> Path:
        if path.is_relative_to(tmp_path / "disk"):
            is_mended.wait()
        return resolve(path)

    monkeypatch.setattr(Path, "resolve", hang)
    monkeypatch.setattr(buffer_places, "_PATIENCE_S", 0.1)
    found = experiment(**IN_BUCKET)
    try:
        places = BufferPlaces(found, tmp_path)
        place = places.of("images", object_url(BUCKET, "raw/lst1/r001.fits"))
        assert place is not None
        assert places.of("images", place.path) == place
        assert places.of("images", "/data/r001.fits") is None
        directory = places.directory(found.streams["images"])
        assert directory == tmp_path / "disk/lst1"
        stream = found.streams["images"]
        source = BufferSource(
            *("images", stream, found.instrument, directory),
            clock=SystemClock(),
            known=nothing_known,
            is_open=lambda _: False,
            sha256=lambda path, _: file_sha256(path),
        )
        assert source.root == directory
        assert not is_mended.is_set()
    finally:
        is_mended.set()


def test_a_stream_that_is_fed_from_the_buffer_says_so(tmp_path: Path) -> None:
    """P13: with a bucket as its second place, or without."""
    always = {"buffer": {"directory": "lst1", "always": True}}
    found = of(tmp_path, "raw/lst1/r001.fits", **always)
    assert found is not None
    assert found.is_first
    alone = BufferPlaces(experiment(**always), tmp_path).of("images", str(tmp_path / "disk/lst1/r001.fits"))
    assert alone is not None
    assert (alone.is_first, alone.bucket) == (True, None)
