"""Pixel statistics against an independent computation: the original zfits file, protozfits and `statistics`."""

from __future__ import annotations

from datetime import UTC, datetime
from importlib.resources import as_file
from pathlib import Path
from statistics import fmean, pstdev, variance

import numpy as np
import protozfits
import pytest

from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.payload import SUMMARY
from p3s_prefect.instruments.lst1.camera import DATA, PIXELS
from p3s_prefect.instruments.lst1.convert import ORIGINAL
from p3s_prefect.instruments.lst1.pixels import PixelStatistics, merge, pixel_statistics, statistics
from p3s_prefect.instruments.lst1.sample import sample, sample_subrun, with_noise
from p3s_prefect.instruments.lst1.subruns import write_subrun

# In the centre, at the edge, beside a star, without light.
SOME_PIXELS = (0, 1854, 465, 543, 1000)
DARK = {466, 543, 544, 627, 849, 850, 1688}


@pytest.fixture(scope="module")
def traces() -> dict[tuple[int, int], list[list[int]]]:
    """(gain, pixel) -> its fifty waveforms, from the original file by plain indexing of the flat arrays."""
    with as_file(DATA / ORIGINAL) as path, protozfits.File(str(path)) as file:
        place = {int(pixel): index for index, pixel in enumerate(file.CameraConfig[0].expected_pixels_id)}
        flat = [event.waveform.tolist() for event in file.Events]
    found = {}
    for gain in (0, 1):
        for pixel in SOME_PIXELS:
            start = (gain * PIXELS + place[pixel]) * 40
            found[gain, pixel] = [event[start : start + 40] for event in flat]
    return found


@pytest.fixture
def waveform() -> np.ndarray:
    return sample().waveform[:10].copy()


@pytest.mark.parametrize("gain", [0, 1])
@pytest.mark.parametrize("pixel", SOME_PIXELS)
def test_numbers_agree_with_an_independent_computation(traces, gain: int, pixel: int) -> None:
    found = pixel_statistics(sample().waveform)
    events = traces[gain, pixel]
    baseline = [event[2:12] for event in events]
    everything = [value for event in baseline for value in event]
    mean, rms = fmean(everything), pstdev(everything)
    assert found.pedestal[gain, pixel] == pytest.approx(mean, rel=1e-12)
    assert found.pedestal_rms[gain, pixel] == pytest.approx(rms, rel=1e-12)
    assert found.noise[gain, pixel] == pytest.approx(fmean(map(variance, baseline)) ** 0.5, rel=1e-12)
    assert found.pulses[gain, pixel] == sum(max(event[12:38]) > mean + 5 * rms for event in events)
    assert found.saturated[gain, pixel] == sum(max(event) >= 4095 for event in events)


def test_totals_of_the_subruns_equal_one_computation_over_all_events() -> None:
    """P22."""
    whole = pixel_statistics(sample().waveform)
    # Parts of different sizes, so that a mean of means would not do.
    parts = [pixel_statistics(sample().waveform[part]) for part in (slice(3), slice(3, 20), slice(20, 50))]
    total = merge(parts)
    assert total.events == 50
    for name in ("pedestal", "pedestal_rms", "noise", "saturated"):
        np.testing.assert_allclose(getattr(total, name), getattr(whole, name), rtol=1e-12)
    assert np.array_equal(total.pulses, sum(part.pulses for part in parts))


def test_parts_that_do_not_fit_are_not_merged(waveform: np.ndarray) -> None:
    with pytest.raises(ValueError, match="no pixel statistics to merge"):
        merge([])
    with pytest.raises(ValueError, match="different numbers of baseline samples"):
        merge([pixel_statistics(waveform), pixel_statistics(waveform, baseline=(2, 10))])


@pytest.mark.parametrize("number", range(5))
def test_the_clean_sample_has_no_noisy_and_no_saturated_pixel(number: int) -> None:
    found = pixel_statistics(sample_subrun(1, number).waveform)
    assert not found.noisy().any()
    assert not found.saturated.any()
    assert set(np.nonzero(found.dead()[0])[0]) <= DARK
    assert not found.dead()[1].any()


def test_the_pixels_without_light_are_found_in_the_whole_sample() -> None:
    assert set(np.nonzero(pixel_statistics(sample().waveform).dead()[0])[0]) == DARK


@pytest.mark.parametrize("pixel", [0, 77, 1854])
def test_an_injected_noisy_pixel_is_found_and_no_other(waveform: np.ndarray, pixel: int) -> None:
    found = pixel_statistics(with_noise(waveform, pixel, np.random.default_rng(1)))
    assert np.nonzero(found.noisy()[0])[0].tolist() == np.nonzero(found.noisy()[1])[0].tolist() == [pixel]
    assert found.summary()["noisiest_pixel"]["value"] == str(pixel)


@pytest.mark.parametrize("count", [0, 400])
def test_an_injected_dead_pixel_is_found_in_its_gain(waveform: np.ndarray, count: int) -> None:
    waveform[:, 1, 33] = count
    found = pixel_statistics(waveform)
    assert np.nonzero(found.dead()[1])[0].tolist() == [33]
    assert 33 not in np.nonzero(found.dead()[0])[0]


def test_an_injected_saturated_pixel_is_counted_by_event(waveform: np.ndarray) -> None:
    waveform[[2, 5], 0, 900, 24:27] = 4095
    found = pixel_statistics(waveform)
    assert found.saturated[0, 900] == 2
    assert found.saturated.sum() == 2
    assert found.summary()["saturated_pixels_high_gain"] == {"value": 1, "unit": ""}


def test_an_injected_pulse_raises_the_occupancy_of_its_pixel(waveform: np.ndarray) -> None:
    before = pixel_statistics(waveform)
    waveform[3, 0, 900, 24] += 1000
    after = pixel_statistics(waveform)
    assert after.occupancy[0, 900] == before.occupancy[0, 900] + 0.1
    assert (after.pulses - before.pulses).sum() == 1


def test_half_a_camera_that_is_noisy_does_not_hide_itself(waveform: np.ndarray) -> None:
    noisy = np.random.default_rng(1).normal(0, 300, (10, 2, 900, 40))
    waveform[:, :, :900] = (waveform[:, :, :900] + noisy).clip(0, 4095)
    assert pixel_statistics(waveform).noisy()[0].sum() == 900


def test_a_camera_without_any_signal_is_described(waveform: np.ndarray) -> None:
    found = pixel_statistics(np.zeros_like(waveform))
    assert found.summary()["noise_median_high_gain"] == {"value": 0.0, "unit": "ADC"}
    assert not found.noisy().any()


def test_arrays_round_trip(waveform: np.ndarray) -> None:
    found = pixel_statistics(waveform)
    again = PixelStatistics.from_arrays(found.arrays())
    assert again.events == 10
    assert np.array_equal(again.noise, found.noise)


def test_incomplete_arrays_are_named(waveform: np.ndarray) -> None:
    """S8."""
    arrays = pixel_statistics(waveform).arrays()
    with pytest.raises(ValueError, match="pixel statistics without noise"):
        PixelStatistics.from_arrays({name: array for name, array in arrays.items() if name != "noise"})
    with pytest.raises(ValueError, match=r"noise in the pixel statistics has the shape \(3,\), not \(2, 1855\)"):
        PixelStatistics.from_arrays(arrays | {"noise": np.zeros(3)})


def test_the_payload_reads_a_file_and_describes_itself(tmp_path: Path) -> None:
    """P17."""
    subrun = sample_subrun(2008, 3)
    write_subrun(tmp_path / "a.fits", subrun, written=datetime(2026, 1, 1, tzinfo=UTC))
    result = statistics(tmp_path / "a.fits", DataId.of(run=2008, subrun=3))
    assert np.array_equal(result["pixel_statistics"]["pedestal"], pixel_statistics(subrun.waveform).pedestal)
    summary = SUMMARY.validate_python(result["summary"], strict=True)
    assert summary["events"].value == 10
    assert summary["noise_median_high_gain"].unit == "ADC"


def test_the_payload_says_which_file_is_bad(tmp_path: Path) -> None:
    """S8."""
    path = tmp_path / "a.fits"
    write_subrun(path, sample_subrun(2008, 3), written=datetime(2026, 1, 1, tzinfo=UTC))
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(ValueError, match=r"a\.fits is not a usable LST-1 subrun file: File may have been truncated"):
        statistics(path, DataId.of(run=2008, subrun=3))


def test_a_file_under_the_name_of_another_subrun_is_refused(tmp_path: Path) -> None:
    """S8."""
    path = tmp_path / "a.fits"
    write_subrun(path, sample_subrun(2008, 3), written=datetime(2026, 1, 1, tzinfo=UTC))
    with pytest.raises(ValueError, match=r"a\.fits holds run=2008 subrun=3, but arrived as run=2008 subrun=4"):
        statistics(path, DataId.of(run=2008, subrun=4))
