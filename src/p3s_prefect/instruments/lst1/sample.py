"""The fifty real events that ship with the package, and subruns of them under new names for a replay.

``data/sample.fits`` is made from the telescope's original file by `convert`; a test compares the two waveform for
waveform. Reading the original needs protozfits (60 MB of libraries), reading the sample needs astropy only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from importlib.resources import as_file
from pathlib import Path

import numpy as np
from astropy.io import fits

from p3s_prefect.core.data_id import DataId
from p3s_prefect.instruments.lst1.camera import DATA, FULL_SCALE_ADC
from p3s_prefect.instruments.lst1.subruns import Subrun, write_subrun

EVENTS_PER_SUBRUN = 10
SUBRUNS_PER_LOOP = 5
"""After this many subruns the fifty events begin again."""
NOISE_ADC = 300.0
"""Standard deviation of what `replay_writer` adds to a noisy pixel: about 14 times the camera's median noise."""


@lru_cache(maxsize=1)
def sample() -> Subrun:
    """All fifty real events, as subrun 0 of run 2008; the arrays cannot be written to."""
    with as_file(DATA / "sample.fits") as path, fits.open(path, memmap=False) as hdus:
        events, header = hdus["EVENTS"].data, hdus["WAVEFORM"].header
        return Subrun(
            run=int(header["RUN"]),
            subrun=0,
            taken=datetime.fromisoformat(header["DATE-OBS"]).replace(tzinfo=UTC),
            event_id=_shared(events["EVENT_ID"], np.int64),
            time_s=_shared(events["TIME"], np.float64),
            pixel_status=_shared(events["PIXEL_STATUS"], np.uint8),
            waveform=_shared(hdus["WAVEFORM"].data, np.uint16),
        )


def _shared(array: np.ndarray, dtype: type[np.generic]) -> np.ndarray:
    copy = np.array(array, dtype=dtype)
    copy.setflags(write=False)
    return copy


def sample_subrun(run: int, subrun: int, *, noisy_pixel: int | None = None, seed: int = 0) -> Subrun:
    """Ten real events under a new run and subrun number; subrun n holds the n-th ten of the fifty, in a loop.

    `noisy_pixel` gets Gaussian noise of `NOISE_ADC` in both gains; the choice of it follows from `seed`, run and
    subrun.
    """
    first = subrun % SUBRUNS_PER_LOOP * EVENTS_PER_SUBRUN
    events, everything = slice(first, first + EVENTS_PER_SUBRUN), sample()
    waveform = everything.waveform[events]
    if noisy_pixel is not None:
        waveform = with_noise(waveform, noisy_pixel, np.random.default_rng([seed, run, subrun]))
    return replace(
        everything,
        run=run,
        subrun=subrun,
        taken=everything.taken + timedelta(seconds=float(everything.time_s[first])),
        event_id=everything.event_id[events],
        time_s=everything.time_s[events] - everything.time_s[first],
        pixel_status=everything.pixel_status[events],
        waveform=waveform,
    )


def with_noise(waveform: np.ndarray, pixel: int, random: np.random.Generator) -> np.ndarray:
    """A copy of `waveform` [event, gain, pixel, sample] with noise on one pixel, clipped to the converter's range."""
    noisy = waveform.astype(float)
    noisy[:, :, pixel] += random.normal(0.0, NOISE_ADC, noisy[:, :, pixel].shape)
    return np.asarray(noisy.round().clip(0, FULL_SCALE_ADC).astype(np.uint16))


def replay_writer(*, noisy_pixel: int | None = None, seed: int = 0) -> Callable[[Path, DataId, int, float], None]:
    """What `p3s_prefect.adapters.replay.replay` calls to write a subrun: path, data id, version, time (Unix, s).

    Version 0 is the subrun itself; another version holds other events under the same name.
    """

    def write(path: Path, data_id: DataId, version: int, now_s: float) -> None:
        run, number = int(data_id["run"]), int(data_id["subrun"])
        content = sample_subrun(run, number + version, noisy_pixel=noisy_pixel, seed=seed)
        write_subrun(path, replace(content, subrun=number), written=datetime.fromtimestamp(now_s, UTC))

    return write
