"""The shipped data: the sample is the original, and the geometry is the camera's."""

from __future__ import annotations

from importlib.resources import as_file
from pathlib import Path

import numpy as np
import protozfits
import pytest

from p3s_prefect.core.data_id import DataId
from p3s_prefect.instruments.lst1 import convert
from p3s_prefect.instruments.lst1.camera import DATA, geometry
from p3s_prefect.instruments.lst1.sample import NOISE_ADC, replay_writer, sample, sample_subrun
from p3s_prefect.instruments.lst1.subruns import read_subrun


@pytest.fixture(scope="module")
def original():
    with as_file(DATA / convert.ORIGINAL) as path, protozfits.File(str(path)) as file:
        yield file.CameraConfig[0], list(file.Events)


def test_sample_equals_the_original_waveform_for_waveform(original) -> None:
    config, events = original
    assert len(events) == len(sample().event_id) == 50
    for index, event in enumerate(events):
        flat = sample().waveform[index][:, np.asarray(config.expected_pixels_id)]
        assert np.array_equal(flat.ravel(), event.waveform)
        assert sample().event_id[index] == event.event_id
        status = sample().pixel_status[index][np.asarray(config.expected_pixels_id)]
        assert np.array_equal(status, event.pixel_status)


def test_trigger_times_are_those_of_the_original(original) -> None:
    _, events = original
    start = events[0].trigger_time_s + events[0].trigger_time_qns / 4e9
    assert sample().taken.timestamp() == pytest.approx(start, abs=1e-6)
    for time_s, event in zip(sample().time_s, events, strict=True):
        assert start + time_s == pytest.approx(event.trigger_time_s + event.trigger_time_qns / 4e9, abs=1e-6)


def test_conversion_makes_the_shipped_sample_again(tmp_path: Path) -> None:
    convert.main(str(tmp_path / "sample.fits"))
    # The cards of the checksums carry the time of writing; all else is the same.
    made, shipped = (tmp_path / "sample.fits").read_bytes(), (DATA / "sample.fits").read_bytes()
    assert len(made) == len(shipped)
    assert made[-10_000:] == shipped[-10_000:]


def test_pixel_ids_of_the_events_are_those_of_the_geometry(original) -> None:
    config, _ = original
    in_module = np.tile(np.arange(7), 265)
    hardware = np.repeat(np.asarray(config.lstcam.expected_modules_id, dtype=int), 7) * 7 + in_module
    assert np.array_equal(geometry().hardware_id[np.asarray(config.expected_pixels_id)], hardware)


def test_pixels_are_a_lattice_of_hexagons_of_5_cm() -> None:
    x, y = geometry().x_m, geometry().y_m
    distance = np.hypot(x[:, None] - x, y[:, None] - y)
    np.fill_diagonal(distance, np.inf)
    assert distance.min(axis=1) == pytest.approx(0.05, abs=1e-5)
    neighbours = (distance < 0.051).sum(axis=1)
    assert neighbours.max() == 6
    assert np.bincount(geometry().module_id).tolist() == [7] * 265


def test_hexagons_of_neighbours_share_an_edge() -> None:
    hexagons = geometry().hexagons()
    nearest = 1 + int(np.argmin(np.hypot(geometry().x_m[1:], geometry().y_m[1:])))
    gaps = np.linalg.norm(hexagons[0][:, None] - hexagons[nearest][None, :], axis=-1)
    assert (gaps < 1e-6).sum() == 2


def test_five_subruns_hold_the_fifty_events_once() -> None:
    events = np.concatenate([sample_subrun(7, number).event_id for number in range(5)])
    assert np.array_equal(events, sample().event_id)
    assert np.array_equal(sample_subrun(7, 5).event_id, sample_subrun(7, 0).event_id)


def test_a_replayed_file_bears_its_new_number_and_the_real_time(tmp_path: Path) -> None:
    """P20."""
    replay_writer()(tmp_path / "a.fits", DataId.of(run=3000, subrun=2), 0, 1.7e9)
    found = read_subrun(tmp_path / "a.fits")
    assert (found.run, found.subrun) == (3000, 2)
    assert found.taken == sample_subrun(3000, 2).taken
    assert np.array_equal(found.waveform, sample().waveform[20:30])


def test_another_version_has_the_same_name_and_other_events(tmp_path: Path) -> None:
    """P20."""
    replay_writer()(tmp_path / "a.fits", DataId.of(run=3000, subrun=2), 1, 1.7e9)
    found = read_subrun(tmp_path / "a.fits")
    assert (found.run, found.subrun) == (3000, 2)
    assert np.array_equal(found.waveform, sample().waveform[30:40])


def test_a_noisy_pixel_is_the_only_one_that_changes(tmp_path: Path) -> None:
    """P20."""
    replay_writer(noisy_pixel=1234)(tmp_path / "a.fits", DataId.of(run=1, subrun=0), 0, 1.7e9)
    change = read_subrun(tmp_path / "a.fits").waveform.astype(int) - sample().waveform[:10]
    assert set(np.nonzero(change.any(axis=(0, 1, 3)))[0]) == {1234}
    # Clipping at zero takes some of it.
    assert change[:, :, 1234].std() == pytest.approx(NOISE_ADC, rel=0.1)
