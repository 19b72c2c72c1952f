"""Pictures and run totals: valid, small, described, and about the right event."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.payload import PRODUCTS, SUMMARY, Product
from p3s_prefect.instruments.lst1.displays import MAX_PNG_BYTES, brightest_event, camera_displays
from p3s_prefect.instruments.lst1.pixels import pixel_statistics
from p3s_prefect.instruments.lst1.sample import sample, sample_subrun
from p3s_prefect.instruments.lst1.subruns import write_subrun
from p3s_prefect.instruments.lst1.totals import run_totals, share_covered


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def statistics_of_run() -> dict[DataId, dict[str, np.ndarray]]:
    return {
        DataId.of(run=2008, subrun=number): pixel_statistics(sample_subrun(2008, number).waveform).arrays()
        for number in range(5)
    }


def all_taken(parts: dict[DataId, dict[str, np.ndarray]]) -> dict[str, dict[DataId, float]]:
    return {"pixel_statistics": dict.fromkeys(parts, 1.0)}


def check_pictures(found: object) -> list[Product]:
    products = PRODUCTS.validate_python(found, strict=True)
    for product in products:
        assert Path(product.file).stat().st_size < MAX_PNG_BYTES
        with Image.open(product.file) as picture:
            picture.load()
            assert picture.format == "PNG"
            assert min(picture.size) > 300
        assert len(product.shows) > 80
    return products


def test_displays_of_a_subrun(workdir: Path) -> None:
    """P17."""
    subrun = sample_subrun(2008, 3)
    write_subrun(workdir / "a.fits", subrun, written=datetime(2026, 1, 1, tzinfo=UTC))
    arrays = pixel_statistics(subrun.waveform).arrays()
    products = check_pictures(camera_displays(workdir / "a.fits", arrays)["products"])
    assert [product.category for product in products] == ["Pedestal", "Noise", "Event"]
    # The same for every subrun: pages show the newest of each title.
    assert [product.title for product in products] == ["Pedestal", "Noise", "Brightest event"]


def test_a_camera_without_any_signal_is_drawn(workdir: Path) -> None:
    subrun = replace(sample_subrun(2008, 3), waveform=np.zeros((10, 2, 1855, 40), dtype=np.uint16))
    write_subrun(workdir / "a.fits", subrun, written=datetime(2026, 1, 1, tzinfo=UTC))
    check_pictures(camera_displays(workdir / "a.fits", pixel_statistics(subrun.waveform).arrays())["products"])


# Found by eye: showers (7, 87, 143), an arc such as muons make (59), a flash of the whole camera (163).
@pytest.mark.parametrize(("number", "event"), [(0, 7), (1, 59), (2, 87), (3, 143), (4, 163)])
def test_the_brightest_event_is_the_one_that_the_eye_finds(number: int, event: int) -> None:
    subrun = sample_subrun(2008, number)
    index, charge = brightest_event(subrun, pixel_statistics(subrun.waveform))
    assert subrun.event_id[index] == event
    assert charge.shape == (2, 1855)


def test_a_common_shift_of_the_baseline_is_not_light() -> None:
    subrun = sample_subrun(2008, 3)
    shifted = subrun.waveform.copy()
    shifted[0, :, :, 12:] += 60
    index, _ = brightest_event(replace(subrun, waveform=shifted), pixel_statistics(shifted))
    assert subrun.event_id[index] == 143


def test_run_totals(workdir: Path, statistics_of_run: dict[DataId, dict[str, np.ndarray]]) -> None:
    """P17, P22."""
    result = run_totals(statistics_of_run, DataId.of(run=2008), {"done": 5}, all_taken(statistics_of_run))
    products = check_pictures(result["products"])
    assert [product.category for product in products] == ["Pedestal", "Noise", "Noise", "Trend"]
    summary = SUMMARY.validate_python(result["summary"], strict=True)
    assert (summary["subruns"].value, summary["events"].value, summary["coverage"].value) == (5, 50, 100.0)
    np.testing.assert_allclose(
        result["run_statistics"]["pedestal"], sample().waveform[..., 2:12].mean(axis=(0, -1)), rtol=1e-12
    )


def test_totals_state_what_is_missing(workdir: Path, statistics_of_run: dict[DataId, dict[str, np.ndarray]]) -> None:
    """P22."""
    parts = {data_id: arrays for data_id, arrays in statistics_of_run.items() if data_id["subrun"] in (1, 3)}
    weights = all_taken(statistics_of_run)
    del weights["pixel_statistics"][DataId.of(run=2008, subrun=4)]
    result = run_totals(parts, DataId.of(run=2008), {"done": 2, "failed": 1, "expired": 1}, weights)
    assert result["summary"]["subruns_missing"]["value"] == 2
    assert result["summary"]["coverage"] == result["summary"]["missing_share"] == {"value": 50.0, "unit": "%"}
    assert result["run_statistics"]["subrun"].tolist() == [1, 3]


def test_totals_of_nothing_say_so() -> None:
    with pytest.raises(ValueError, match="no subrun of run=7 has statistics"):
        run_totals({}, DataId.of(run=7), {"failed": 1}, {"pixel_statistics": {}})


@pytest.mark.parametrize(
    ("merged", "seen", "missing"),
    [([0], 1, 0), ([0, 1], 4, 2), ([1, 3], 2, 2), ([1, 2, 3], 5, 2)],
    ids=["all", "the last ones failed", "others were never seen", "the first and the last failed"],
)
def test_coverage_counts_what_failed_and_what_never_came(merged: list[int], seen: int, missing: int) -> None:
    """P22."""
    found = share_covered(merged, {"done": len(merged), "failed": seen - len(merged)})
    assert found["subruns_missing"]["value"] == missing
    assert share_covered(merged, {"done": seen, "shed": 3})["subruns_left_out"]["value"] == 3
    assert found["coverage"]["value"] == 100 * len(merged) / (len(merged) + missing)
