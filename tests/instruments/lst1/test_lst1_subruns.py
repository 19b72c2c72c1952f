"""The subrun file: what was written is read back, and what is damaged is refused with its reason."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from p3s_prefect.instruments.lst1.sample import sample_subrun
from p3s_prefect.instruments.lst1.subruns import event_time, read_subrun, write_subrun

WRITTEN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "LST-1.Run02008.0003.fits"
    write_subrun(path, sample_subrun(2008, 3), written=WRITTEN)
    return path


def test_round_trip(path: Path) -> None:
    found, asked = read_subrun(path), sample_subrun(2008, 3)
    assert (found.run, found.subrun, found.taken) == (asked.run, asked.subrun, asked.taken)
    for name in ("event_id", "time_s", "pixel_status", "waveform"):
        assert np.array_equal(getattr(found, name), getattr(asked, name))
        assert getattr(found, name).dtype.isnative
    assert event_time(found, 0) == asked.taken


def test_the_file_says_what_it_holds(path: Path) -> None:
    with fits.open(path, checksum=True) as hdus:
        primary, events = hdus[0].header, hdus["EVENTS"]
        assert (primary["RUN"], primary["SUBRUN"], primary["TELESCOP"]) == (2008, 3, "LST-1")
        assert primary["DATE-OBS"].startswith("2020-02-18T21:03:09.52")
        assert primary["DATE"].startswith("2026-01-02T03:04:05")
        assert "run 2008" in primary["ORIGIN"]
        assert (events.columns["WAVEFORM"].unit, events.columns["TIME"].unit) == ("adu", "s")
        assert events.data["WAVEFORM"].shape == (10, 2, 1855, 40)
        assert np.array_equal(events.data["WAVEFORM"], sample_subrun(2008, 3).waveform)


@pytest.mark.alone
def test_writing_takes_less_than_a_tenth_of_a_second(tmp_path: Path) -> None:
    subrun, took_s = sample_subrun(1, 0), []
    for number in range(5):
        start = time.perf_counter()
        write_subrun(tmp_path / f"{number}.fits", subrun, written=WRITTEN)
        took_s.append(time.perf_counter() - start)
    assert min(took_s) < 0.1


@pytest.mark.parametrize("seed", range(12))
def test_a_truncated_file_is_refused(path: Path, seed: int) -> None:
    """S8."""
    whole = path.read_bytes()
    path.write_bytes(whole[: random.Random(seed).randrange(len(whole))])
    with pytest.raises(ValueError, match=r"LST-1\.Run02008\.0003\.fits is not a usable LST-1 subrun file: \w"):
        read_subrun(path)


@pytest.mark.parametrize("seed", range(12))
def test_a_flipped_bit_is_noticed(path: Path, seed: int) -> None:
    """S8."""
    content, chance = bytearray(path.read_bytes()), random.Random(seed)
    place = chance.randrange(len(content))
    content[place] ^= 1 << chance.randrange(8)
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a usable LST-1 subrun file: "):
        read_subrun(path)


@pytest.mark.parametrize("place", [0, 40, 100, 400, 900, 2900, 3300, 4000, 5000])
def test_a_damaged_header_is_refused(path: Path, place: int) -> None:
    """S8."""
    content = bytearray(path.read_bytes())
    content[place : place + 4] = b"\xff\x00~A"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a usable LST-1 subrun file: "):
        read_subrun(path)


@pytest.mark.parametrize("content", [b"", b"\n", b"SIMPLE  = T", bytes(10_000), b"SIMPLE  =" + b" " * 2900])
def test_what_is_no_fits_file_is_refused(path: Path, content: bytes) -> None:
    """S8."""
    path.write_bytes(content)
    with pytest.raises(ValueError, match="not a usable LST-1 subrun file: "):
        read_subrun(path)


def table(*columns: fits.Column) -> fits.BinTableHDU:
    return fits.BinTableHDU.from_columns(columns, name="EVENTS", nrows=3)


@pytest.mark.parametrize(
    ("hdus", "reason"),
    [
        ([], "it holds the HDUs PRIMARY instead of PRIMARY, EVENTS"),
        ([table(fits.Column("TIME", "D"))], "column EVENT_ID, PIXEL_STATUS, WAVEFORM is missing"),
        (
            [
                table(
                    fits.Column("EVENT_ID", "K"),
                    fits.Column("TIME", "D"),
                    fits.Column("PIXEL_STATUS", "1855B"),
                    fits.Column("WAVEFORM", "12I", dim="(4,3)", bzero=32768),
                )
            ],
            r"header card RUN, SUBRUN, DATE-OBS is missing",
        ),
    ],
)
def test_another_structure_is_named(tmp_path: Path, hdus: list[fits.BinTableHDU], reason: str) -> None:
    """S8."""
    fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(tmp_path / "a.fits", checksum=True)
    with pytest.raises(ValueError, match=reason):
        read_subrun(tmp_path / "a.fits")


def test_a_file_without_checksums_is_refused(path: Path, tmp_path: Path) -> None:
    """S8."""
    with fits.open(path) as hdus:
        for hdu in hdus:
            del hdu.header["CHECKSUM"], hdu.header["DATASUM"]
        hdus.writeto(tmp_path / "bare.fits")
    with pytest.raises(ValueError, match="its checksum does not fit"):
        read_subrun(tmp_path / "bare.fits")


def test_another_camera_is_refused(path: Path, tmp_path: Path) -> None:
    """S8."""
    with fits.open(path) as hdus:
        columns = [column for column in hdus["EVENTS"].columns if column.name != "WAVEFORM"]
        columns.append(fits.Column("WAVEFORM", "12I", dim="(4,3)", bzero=32768))
        other = fits.BinTableHDU.from_columns(columns, name="EVENTS")
        fits.HDUList([fits.PrimaryHDU(header=hdus[0].header), other]).writeto(tmp_path / "b.fits", checksum=True)
    with pytest.raises(ValueError, match=r"waveform is uint16 \(10, 3, 4\), not uint16 \(10, 2, 1855, 40\)"):
        read_subrun(tmp_path / "b.fits")


def test_a_subrun_without_events_cannot_be_made() -> None:
    """S8."""
    subrun = sample_subrun(1, 0)
    with pytest.raises(ValueError, match="there is no event in it"):
        replace(subrun, event_id=subrun.event_id[:0])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """S8."""
    with pytest.raises(ValueError, match=r"gone\.fits is not a usable LST-1 subrun file: .*No such file"):
        read_subrun(tmp_path / "gone.fits")
