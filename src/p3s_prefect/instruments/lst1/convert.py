"""Makes ``sample.fits`` from the telescope's own file: ``python -m p3s_prefect.instruments.lst1.convert [OUT]``.

Needs protozfits (``pip install p3s-prefect[lst1]``). The sample holds the same counts, its pixels sorted by id:

- HDU ``WAVEFORM``: uint16 [event, gain, pixel, sample], ADC counts, losslessly Rice-compressed;
- HDU ``EVENTS``: ``EVENT_ID``, ``TIME`` (s after ``DATE-OBS``) and ``PIXEL_STATUS``, as in a subrun file.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from importlib.resources import as_file
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io import fits

from p3s_prefect.instruments.lst1.camera import DATA, PIXELS, SAMPLES
from p3s_prefect.instruments.lst1.subruns import ORIGIN, WAVEFORM_SHAPE, Subrun

ORIGINAL = "LST-1.1.Run02008.0000_first50.fits.fz"
QUARTER_NS_S = 0.25e-9
"""The original counts fractions of a second in quarters of a nanosecond."""


def read_original(path: Path) -> Subrun:
    """The events of an original zfits file, pixels sorted by id."""
    from protozfits import File

    with File(str(path)) as file:
        config = file.CameraConfig[0]
        order = np.argsort(config.expected_pixels_id)
        events = [_event(event, order) for event in file.Events]
    ids, seconds, quarters, status, waveform = zip(*events, strict=True)
    time_s = (np.array(seconds) - seconds[0]) + (np.array(quarters) - quarters[0]) * QUARTER_NS_S
    return Subrun(
        run=int(config.configuration_id),
        subrun=0,
        taken=datetime.fromtimestamp(seconds[0] + quarters[0] * QUARTER_NS_S, UTC),
        event_id=np.array(ids, dtype=np.int64),
        time_s=time_s,
        pixel_status=np.stack(status),
        waveform=np.stack(waveform),
    )


def _event(event: Any, order: np.ndarray) -> tuple[int, int, int, np.ndarray, np.ndarray]:
    waveform = np.array(event.waveform, dtype=np.uint16).reshape(WAVEFORM_SHAPE)[:, order]
    status = np.array(event.pixel_status, dtype=np.uint8)[order]
    return int(event.event_id), int(event.trigger_time_s), int(event.trigger_time_qns), status, waveform


def write_sample(path: Path, events: Subrun) -> None:
    """Writes the sample, replacing a file that is there."""
    image = fits.CompImageHDU(
        events.waveform, name="WAVEFORM", compression_type="RICE_1", tile_shape=(1, 1, PIXELS, SAMPLES)
    )
    image.header["BUNIT"] = ("adu", "ADC counts")
    image.header["RUN"] = (events.run, "run of the telescope")
    image.header["DATE-OBS"] = (events.taken.replace(tzinfo=None).isoformat(), "UTC of the first event")
    image.header["ORIGIN"] = ORIGIN
    columns = [
        fits.Column("EVENT_ID", "K", array=events.event_id),
        fits.Column("TIME", "D", unit="s", array=events.time_s),
        fits.Column("PIXEL_STATUS", f"{PIXELS}B", array=events.pixel_status),
    ]
    table = fits.BinTableHDU.from_columns(columns, name="EVENTS")
    fits.HDUList([fits.PrimaryHDU(), image, table]).writeto(path, overwrite=True, checksum=True)


def main(out: str | None = None) -> None:
    """Converts the original that ships with the package."""
    with as_file(DATA / ORIGINAL) as original:
        write_sample(Path(out) if out else original.with_name("sample.fits"), read_original(original))


if __name__ == "__main__":
    main(*sys.argv[1:2])
