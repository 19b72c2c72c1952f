"""Statistics of each pixel and gain, and the payload that computes them for a subrun.

All arrays have the shape (2, 1855): gain (high, low), pixel by id; counts are ADC counts.

With :math:`x_{es}` the baseline samples of one pixel and gain, E events of S samples each:

- pedestal: :math:`m = \\sum x_{es} / (E S)`;
- its RMS: :math:`\\sqrt{\\sum (x_{es} - m)^2 / (E S)}`, so drifts of the baseline between events are in it;
- noise: :math:`\\sqrt{\\sum (x_{es} - \\bar x_e)^2 / (E (S - 1))}`, the spread inside an event's own waveform, which
  such drifts leave alone (the analysis of variance calls its square the mean square within groups). The whole camera's
  baseline moves by 9 counts RMS from event to event in the sample, more than the low gain's noise of 6.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np

from p3s_prefect.core.data_id import DataId
from p3s_prefect.instruments.lst1.camera import FULL_SCALE_ADC, GAINS, PIXELS
from p3s_prefect.instruments.lst1.subruns import read_subrun

# Of the 40 samples, 0, 1 and 39 are off by up to 40 counts (the edges of the readout window; sample 1 in 132 pixels of
# the low gain), and from sample 12 on early pulses raise the spread: measured over all pixels of the sample.
BASELINE = (2, 12)
PULSE_WINDOW = (12, 38)
# Chance alone puts a baseline sample 5 RMS above the pedestal once in 5,000 (10 samples: 0.2 % of the events).
PULSE_SIGMA = 5.0
# Starlight raises a pixel to 4.1 times the camera's median noise in the sample; electronics in order stay far below.
NOISY_RATIO = 5.0
# The seven pixels without night-sky light are at 0.26 to 0.57 of the median noise in ten events, 0.31 to 0.40 in fifty;
# the next ones follow at 0.58 and 0.76.
DEAD_RATIO = 0.5


@dataclass(frozen=True, kw_only=True, eq=False)
class PixelStatistics:
    """What was seen in some events; mergeable with `merge`.

    After a merge with weights it is an estimate of what all events would have shown, and counts events in fractions.
    """

    events: float
    """Number of events."""
    baseline_samples: int
    """Baseline samples of one waveform."""
    pedestal: np.ndarray
    """Mean of the baseline samples, float64, ADC counts."""
    pedestal_rms: np.ndarray
    """RMS of the baseline samples about the pedestal, float64, ADC counts."""
    noise: np.ndarray
    """RMS of the baseline samples about their own waveform's mean, float64, ADC counts."""
    pulses: np.ndarray
    """Number of events with a pulse, int64, or float64 after a merge with weights."""
    saturated: np.ndarray
    """Number of events with a saturated sample, int64, or float64 after a merge with weights."""

    @property
    def occupancy(self) -> np.ndarray:
        """Share of the events with a pulse."""
        return np.asarray(self.pulses / self.events)

    def noisy(self, ratio: float = NOISY_RATIO) -> np.ndarray:
        """Which pixels have more than `ratio` times the median noise of their gain.

        A ratio and not a number of standard deviations: it means the same for ten events and for ten thousand. The
        median stays in place while fewer than half of the pixels misbehave (breakdown point 50 %: P. J. Huber and
        E. M. Ronchetti, Robust Statistics, 2nd ed., Wiley 2009).
        """
        return np.asarray(self.noise > ratio * np.median(self.noise, axis=1, keepdims=True))

    def dead(self, ratio: float = DEAD_RATIO) -> np.ndarray:
        """Which pixels have less than `ratio` times the median noise of their gain.

        The light of the night sky makes most of the noise in the high gain: a pixel without it has its photomultiplier
        off or its channel dead.
        """
        return np.asarray(self.noise < ratio * np.median(self.noise, axis=1, keepdims=True))

    def arrays(self) -> dict[str, np.ndarray]:
        """As named arrays, with ``noisy``, ``dead``, ``occupancy`` and the pixel ids for readers."""
        derived = {"occupancy": self.occupancy, "noisy": self.noisy(), "dead": self.dead()}
        return (
            {name: np.asarray(value) for name, value in asdict(self).items()} | derived | {"pixel": np.arange(PIXELS)}
        )

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """The inverse of `arrays`.

        Raises:
            ValueError: an array is missing or has another shape.
        """
        if missing := [field.name for field in fields(cls) if field.name not in arrays]:
            raise ValueError(f"pixel statistics without {', '.join(missing)}")
        values: dict[str, Any] = {field.name: np.asarray(arrays[field.name]) for field in fields(cls)}
        for name, value in values.items():
            shape = () if name in ("events", "baseline_samples") else (len(GAINS), PIXELS)
            if value.shape != shape:
                raise ValueError(f"{name} in the pixel statistics has the shape {value.shape}, not {shape}")
        return cls(**values | {name: values[name].item() for name in ("events", "baseline_samples")})

    def summary(self) -> dict[str, dict[str, float | int | str]]:
        """The scalars that describe it, with units."""
        noisy, dead = self.noisy(), self.dead()
        values: dict[str, tuple[float | int | str, str]] = {"events": (self.events, "")}
        for gain, name in enumerate(GAINS):
            values[f"pedestal_median_{name}_gain"] = (float(np.median(self.pedestal[gain])), "ADC")
            values[f"noise_median_{name}_gain"] = (float(np.median(self.noise[gain])), "ADC")
            values[f"noise_max_{name}_gain"] = (float(self.noise[gain].max()), "ADC")
            values[f"noisy_pixels_{name}_gain"] = (int(noisy[gain].sum()), "")
            values[f"dead_pixels_{name}_gain"] = (int(dead[gain].sum()), "")
            values[f"saturated_pixels_{name}_gain"] = (int((self.saturated[gain] > 0).sum()), "")
        # A text, as it names a pixel: the mean of two of them is none.
        values["noisiest_pixel"] = (str(self.noise[0].argmax()), "")
        values["occupancy_high_gain"] = (float(self.occupancy[0].mean() * 100), "%")
        return {name: {"value": value, "unit": unit} for name, (value, unit) in values.items()}


def pixel_statistics(
    waveform: np.ndarray,
    *,
    baseline: Sequence[int] = BASELINE,
    pulse_sigma: float = PULSE_SIGMA,
    saturation_adc: int = FULL_SCALE_ADC,
) -> PixelStatistics:
    """Statistics of `waveform`: uint16 [event, gain, pixel, sample], ADC counts.

    A pulse is a sample of `PULSE_WINDOW` that is more than `pulse_sigma` pedestal RMS above the pedestal; a sample is
    saturated from `saturation_adc` on. `baseline` is the first baseline sample and the one after the last.
    """
    samples = waveform[..., slice(*baseline)].astype(float)
    own_mean = samples.mean(axis=-1)
    pedestal = own_mean.mean(axis=0)
    rms = np.sqrt(np.square(samples - pedestal[:, :, None]).mean(axis=(0, -1)))
    peak = waveform[..., slice(*PULSE_WINDOW)].max(axis=-1)
    return PixelStatistics(
        events=len(waveform),
        baseline_samples=samples.shape[-1],
        pedestal=pedestal,
        pedestal_rms=rms,
        noise=np.sqrt(samples.var(axis=-1, ddof=1).mean(axis=0)),
        pulses=(peak > pedestal + pulse_sigma * rms).sum(axis=0),
        saturated=(waveform.max(axis=-1) >= saturation_adc).sum(axis=0),
    )


def merge(parts: Sequence[PixelStatistics], weights: Sequence[float] | None = None) -> PixelStatistics:
    """The statistics of all events of `parts` together, exactly as if computed at once.

    Except for `pulses`: each part counts them above its own pedestal. With `weights`, a part counts as so many parts
    like it: numbers of events become totals of all that the parts stand for, and everything else a ratio of totals.

    Means are weighted with the number n of samples; variances are added with the parts' distances from the common mean,
    :math:`n s^2 = \\sum_i n_i (s_i^2 + (m_i - m)^2)`, which does not cancel as a difference of squares would
    (T. F. Chan, G. H. Golub, R. J. LeVeque, The American Statistician 37 (1983) 242). The squared noise is averaged
    with the degrees of freedom as weights.

    Raises:
        ValueError: there is nothing to merge, the parts have different numbers of baseline samples, or there is not one
            weight for each.
    """
    if not parts:
        raise ValueError("there are no pixel statistics to merge")
    if len({part.baseline_samples for part in parts}) > 1:
        raise ValueError("pixel statistics with different numbers of baseline samples cannot be merged")
    times = np.ones(len(parts), dtype=int) if weights is None else np.array(weights, dtype=float)
    if times.shape != (len(parts),):
        raise ValueError(f"{len(times)} weights do not fit {len(parts)} pixel statistics")
    weight = times * np.array([part.events for part in parts])
    pedestals = np.stack([part.pedestal for part in parts])
    pedestal = np.average(pedestals, axis=0, weights=weight)
    spread = np.square(pedestals - pedestal)
    squares = np.stack([np.square(part.pedestal_rms) for part in parts])
    return PixelStatistics(
        events=weight.sum().item(),
        baseline_samples=parts[0].baseline_samples,
        pedestal=pedestal,
        pedestal_rms=np.sqrt(np.average(squares + spread, axis=0, weights=weight)),
        noise=np.sqrt(np.average(np.stack([np.square(part.noise) for part in parts]), axis=0, weights=weight)),
        pulses=np.tensordot(times, [part.pulses for part in parts], axes=1),
        saturated=np.tensordot(times, [part.saturated for part in parts], axes=1),
    )


def without(total: PixelStatistics, part: PixelStatistics, weight: float) -> PixelStatistics:
    """What `merge` would have made of all the parts of `total` but this one, which it took with this weight.

    Raises:
        ValueError: it was the only part.
    """
    taken, left = weight * part.events, total.events - weight * part.events
    if left <= 0:
        raise ValueError("nothing is left of pixel statistics without their only part")
    apart = part.pedestal - total.pedestal
    shift = taken * apart / left
    squares = (total.events * total.pedestal_rms**2 - taken * (part.pedestal_rms**2 + apart**2)) / left - shift**2
    noise = (total.events * total.noise**2 - taken * part.noise**2) / left
    return PixelStatistics(
        events=left,
        baseline_samples=total.baseline_samples,
        pedestal=total.pedestal - shift,
        # Rounding may leave a pixel that never moved a little below nothing.
        pedestal_rms=np.sqrt(squares.clip(0)),
        noise=np.sqrt(noise.clip(0)),
        pulses=total.pulses - weight * part.pulses,
        saturated=total.saturated - weight * part.saturated,
    )


def statistics(
    events: Path,
    unit: DataId,
    *,
    baseline: Sequence[int] = BASELINE,
    pulse_sigma: float = PULSE_SIGMA,
    saturation_adc: int = FULL_SCALE_ADC,
) -> dict[str, Any]:
    """Payload: a subrun file in, ``pixel_statistics`` (npz) and summary values out.

    Raises:
        ValueError: the file is damaged, or is of another subrun than `unit`, which its name was read as.
    """
    subrun = read_subrun(events)
    if (subrun.run, subrun.subrun) != (unit["run"], unit["subrun"]):
        raise ValueError(f"{events.name} holds run={subrun.run} subrun={subrun.subrun}, but arrived as {unit}")
    found = pixel_statistics(subrun.waveform, baseline=baseline, pulse_sigma=pulse_sigma, saturation_adc=saturation_adc)
    return {"pixel_statistics": found.arrays(), "summary": found.summary()}
