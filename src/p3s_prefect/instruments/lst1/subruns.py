"""The subrun file: a FITS file with one binary table of events.

===========================  =================================================================================
Primary HDU                  no data; ``TELESCOP``, ``RUN``, ``SUBRUN``, ``DATE-OBS`` (UTC, first event, when the
                             telescope took it), ``DATE`` (UTC, when this file was written), ``ORIGIN``
HDU ``EVENTS``, a row each
``EVENT_ID``                 int64: the camera's event number
``TIME``                     float64, s: seconds of the trigger after ``DATE-OBS``
``PIXEL_STATUS``             uint8 [pixel]: the camera's status bits (4: high gain stored, 8: low gain stored)
``WAVEFORM``                 uint16 [gain, pixel, sample], ADC counts: high gain first, pixels by id 0 to 1854,
                             40 samples of 1 ns
===========================  =================================================================================

Both HDUs carry ``CHECKSUM`` and ``DATASUM``, so that a byte that changed on the way is noticed.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from astropy.io import fits

from p3s_prefect.instruments.lst1.camera import GAINS, PIXELS, SAMPLES

WAVEFORM_SHAPE = (len(GAINS), PIXELS, SAMPLES)
ORIGIN = "LST-1 run 2008 of 2020-02-18, first 50 events (protozfits test data, BSD-3-Clause)"

_ROW = np.dtype(
    [
        ("EVENT_ID", ">i8"),
        ("TIME", ">f8"),
        ("PIXEL_STATUS", "u1", (PIXELS,)),
        ("WAVEFORM", ">i2", WAVEFORM_SHAPE),
    ]
)
_UNSIGNED = np.uint16(2**15)
"""FITS knows no unsigned integers: it stores them less this, which is the same as flipping the highest bit."""
_BLOCK_BYTES = 2880
"""FITS fills headers and data up to a multiple of this."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Subrun:
    """Some consecutive events of a run.

    Raises:
        ValueError: an array has another shape or type than declared, or there is no event.
    """

    run: int
    subrun: int
    taken: datetime
    """When the first event was triggered, with time zone."""
    event_id: np.ndarray
    """Shape (events,), int64."""
    time_s: np.ndarray
    """Shape (events,), float64: seconds after `taken`."""
    pixel_status: np.ndarray
    """Shape (events, 1855), uint8."""
    waveform: np.ndarray
    """Shape (events, 2, 1855, 40), uint16, ADC counts."""

    def __post_init__(self) -> None:
        events = len(self.event_id)
        if events == 0:
            raise ValueError("there is no event in it")
        for name, array, shape, dtype in (
            ("event_id", self.event_id, (events,), np.int64),
            ("time_s", self.time_s, (events,), np.float64),
            ("pixel_status", self.pixel_status, (events, PIXELS), np.uint8),
            ("waveform", self.waveform, (events, *WAVEFORM_SHAPE), np.uint16),
        ):
            if array.shape != shape or array.dtype != dtype:
                raise ValueError(f"{name} is {array.dtype} {array.shape}, not {np.dtype(dtype)} {shape}")


def write_subrun(path: Path, subrun: Subrun, *, written: datetime) -> None:
    """Writes `subrun` to `path`, which must not exist; `written` becomes its ``DATE``."""
    hdus = fits.HDUList([_primary(subrun, written), _events(subrun)])
    hdus.writeto(path, checksum=True)


def read_subrun(path: Path) -> Subrun:
    """The events of a subrun file, checked: structure, checksums, columns, shapes.

    Raises:
        ValueError: what is wrong with which file.
    """
    try:
        # What astropy only warns of, such as a file that is shorter than its header says, makes it unusable here.
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            content = path.read_bytes()
            with fits.open(io.BytesIO(content), memmap=False, lazy_load_hdus=False) as hdus:
                subrun = _read(hdus)
            _check_sum(content)
            return subrun
    # A damaged file makes the FITS reader fail in many ways, down to TypeError and RecursionError: all mean the same.
    except Exception as error:
        raise ValueError(f"{path.name} is not a usable LST-1 subrun file: {error or type(error).__name__}") from error


def _primary(subrun: Subrun, written: datetime) -> fits.PrimaryHDU:
    hdu = fits.PrimaryHDU()
    hdu.header["TELESCOP"] = ("LST-1", "Large-Sized Telescope 1, La Palma")
    hdu.header["RUN"] = (subrun.run, "run number (that of the replay)")
    hdu.header["SUBRUN"] = (subrun.subrun, "number of this piece of the run, from 0")
    hdu.header["DATE-OBS"] = (_fits_time(subrun.taken), "UTC of the first event, as taken")
    hdu.header["DATE"] = (_fits_time(written), "UTC when this file was written")
    hdu.header["ORIGIN"] = ORIGIN
    return hdu


def _events(subrun: Subrun) -> fits.BinTableHDU:
    rows = np.empty(len(subrun.event_id), dtype=_ROW)
    rows["EVENT_ID"], rows["TIME"] = subrun.event_id, subrun.time_s
    rows["PIXEL_STATUS"], rows["WAVEFORM"] = subrun.pixel_status, subrun.waveform ^ _UNSIGNED
    header = _table_header()
    header["NAXIS2"] = len(rows)
    # Handed over as the bytes of the file: from numpy columns astropy swaps the whole table twice, which takes 0.3 s.
    return fits.BinTableHDU.fromstring(header.tostring().encode() + rows.tobytes() + bytes(-rows.nbytes % _BLOCK_BYTES))


def _table_header() -> fits.Header:
    samples, dim = int(np.prod(WAVEFORM_SHAPE)), ",".join(str(size) for size in reversed(WAVEFORM_SHAPE))
    columns = [
        fits.Column("EVENT_ID", "K"),
        fits.Column("TIME", "D", unit="s"),
        fits.Column("PIXEL_STATUS", f"{PIXELS}B"),
        fits.Column("WAVEFORM", f"{samples}I", unit="adu", dim=f"({dim})", bzero=int(_UNSIGNED)),
    ]
    return fits.BinTableHDU.from_columns(columns, nrows=0, name="EVENTS").header


def _read(hdus: fits.HDUList) -> Subrun:
    names = [hdu.name for hdu in hdus]
    if names != ["PRIMARY", "EVENTS"]:
        raise ValueError(f"it holds the HDUs {', '.join(names)} instead of PRIMARY, EVENTS")
    header, table = hdus[0].header, hdus[1].data
    if missing := [name for name in _ROW.names or () if name not in table.names]:
        raise ValueError(f"column {', '.join(missing)} is missing")
    if missing := [key for key in ("RUN", "SUBRUN", "DATE-OBS") if key not in header]:
        raise ValueError(f"header card {', '.join(missing)} is missing")
    return Subrun(
        run=int(header["RUN"]),
        subrun=int(header["SUBRUN"]),
        taken=datetime.fromisoformat(header["DATE-OBS"]).replace(tzinfo=UTC),
        event_id=_native(table["EVENT_ID"]),
        time_s=_native(table["TIME"]),
        pixel_status=_native(table["PIXEL_STATUS"]),
        waveform=_native(table["WAVEFORM"]),
    )


def _check_sum(content: bytes) -> None:
    """Every bit of the file counts: the 32-bit words of each HDU add up to all ones, carries added at the low end.

    So says the FITS standard (version 4.0, section 4.4.2.7 and appendix J) of an HDU with ``CHECKSUM``, and then the
    whole file adds up to the same. `astropy` instead sums what it understood of the header.
    """
    total = int(np.frombuffer(content, dtype=">u4").sum(dtype=np.uint64))
    while total >> 32:
        total = (total & 0xFFFFFFFF) + (total >> 32)
    if total != 0xFFFFFFFF:
        raise ValueError("its checksum does not fit: bytes changed after it was written")


def _native(array: np.ndarray) -> np.ndarray:
    # FITS is big-endian; arithmetic on swapped bytes is several times slower.
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))


def _fits_time(time: datetime) -> str:
    return time.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds")


def event_time(subrun: Subrun, index: int) -> datetime:
    """When event `index` of `subrun` was triggered."""
    return subrun.taken + timedelta(seconds=float(subrun.time_s[index]))
