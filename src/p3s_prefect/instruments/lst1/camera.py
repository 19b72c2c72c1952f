"""What is fixed by the camera: gains, pixels, samples, and where each pixel is.

The positions are those of the real camera, from the geometry file of the LST collaboration's own event source (see
``data/README.md``). That the pixel ids of the sample mean the same pixels was checked: its list of modules and pixels
and the geometry file's agree for all 1855 (``tests/instruments/lst1/test_lst1_sample.py``).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import as_file, files

import numpy as np
from astropy.io import fits

GAINS = ("high", "low")
"""The gains in the order of the first axis of a waveform; a pulse in the high one is about 17 times as large."""
PIXELS = 1855
"""Photomultipliers: 265 modules of 7."""
SAMPLES = 40
"""Samples in a waveform, 1 ns each."""
FULL_SCALE_ADC = 4095
"""Highest count of the 12-bit converter."""

DATA = files("p3s_prefect.instruments.lst1") / "data"


@dataclass(frozen=True, kw_only=True, eq=False)
class Geometry:
    """Where the pixels are, in the camera frame, in the order of the pixel ids 0 to 1854."""

    x_m: np.ndarray
    """Shape (1855,), float64, metres."""
    y_m: np.ndarray
    """Shape (1855,), float64, metres."""
    module_id: np.ndarray
    """Shape (1855,), int64: the module that reads the pixel, 0 to 264."""
    hardware_id: np.ndarray
    """Shape (1855,), int64: seven times the module's id plus the pixel's place in it."""

    def hexagons(self) -> np.ndarray:
        """The corners of the pixels: shape (1855, 6, 2), metres.

        A pixel's corners lie between the directions of its six neighbours, at the lattice's pitch over sqrt(3).
        """
        dx, dy = self.x_m[1:] - self.x_m[0], self.y_m[1:] - self.y_m[0]
        nearest = int(np.argmin(np.hypot(dx, dy)))
        radius_m = np.hypot(dx[nearest], dy[nearest]) / np.sqrt(3)
        angle = np.arctan2(dy[nearest], dx[nearest]) + np.pi / 6 + np.arange(6) * np.pi / 3
        corners = radius_m * np.stack([np.cos(angle), np.sin(angle)], axis=1)
        centres = np.stack([self.x_m, self.y_m], axis=1)
        return np.asarray(centres[:, None, :] + corners[None, :, :])


@lru_cache(maxsize=1)
def geometry() -> Geometry:
    """The camera's geometry, read once from the file that ships with the package."""
    with as_file(DATA / "LSTCam.camgeom.fits.gz") as path:
        table = fits.getdata(path, 1)
    order = np.argsort(table["pix_id"])
    return Geometry(
        x_m=np.asarray(table["pix_x"], dtype=float)[order],
        y_m=np.asarray(table["pix_y"], dtype=float)[order],
        module_id=np.asarray(table["module_id"], dtype=np.int64)[order],
        hardware_id=np.asarray(table["hardware_pixel_id"], dtype=np.int64)[order],
    )
