"""Run totals where subruns were left out: weighted, with errors that cover, and with what is missing stated."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from thinning import SOME, drifting

from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.payload import PRODUCTS, SUMMARY
from p3s_prefect.core.weighting import Sampled, weighted_mean
from p3s_prefect.instruments.lst1.displays import MAX_PNG_BYTES
from p3s_prefect.instruments.lst1.pixels import PixelStatistics, merge, pixel_statistics, without
from p3s_prefect.instruments.lst1.sample import sample
from p3s_prefect.instruments.lst1.totals import choice_errors, run_totals, told_medians
from p3s_prefect.instruments.lst1.trends import Kept

RUN = DataId.of(run=2008)
SUBRUNS = 120
SEEDS = 250


@pytest.fixture(scope="module")
def parts() -> list[PixelStatistics]:
    return drifting(SUBRUNS, SOME)


def falling_chances(subruns: int) -> np.ndarray:
    """From 0.9 at the beginning of the run to 0.2 at its end."""
    return np.linspace(0.9, 0.2, subruns)


def choose(parts: list[PixelStatistics], q: np.ndarray, random: np.random.Generator) -> Kept:
    chosen = np.flatnonzero(random.random(len(parts)) < q)
    return Kept(
        parts={int(subrun): parts[subrun] for subrun in chosen},
        weights={int(subrun): float(1 / q[subrun]) for subrun in chosen},
    )


def merged(kept: Kept) -> PixelStatistics:
    return merge(list(kept.parts.values()), list(kept.weights.values()))


def test_a_part_with_a_weight_counts_as_so_many_parts(parts: list[PixelStatistics]) -> None:
    """P6, P22."""
    weighted = merge(parts[:3], [1, 3, 2])
    repeated = merge([parts[0], *[parts[1]] * 3, *[parts[2]] * 2])
    for name in (field.name for field in fields(PixelStatistics)):
        np.testing.assert_allclose(getattr(weighted, name), getattr(repeated, name), rtol=1e-12)
    with pytest.raises(ValueError, match="2 weights do not fit 3 pixel statistics"):
        merge(parts[:3], [1, 2])


def test_without_takes_back_what_merge_has_taken(parts: list[PixelStatistics]) -> None:
    """P6."""
    weights = [1.0, 3.5, 2.0, 8.0]
    rest = without(merge(parts[:4], weights), parts[3], 8.0)
    expected = merge(parts[:3], weights[:3])
    for name in (field.name for field in fields(PixelStatistics)):
        np.testing.assert_allclose(getattr(rest, name), getattr(expected, name), rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="nothing is left"):
        without(merge(parts[:1]), parts[0], 1.0)


def test_the_error_of_a_pedestal_is_that_of_a_weighted_mean(parts: list[PixelStatistics]) -> None:
    """P6: for subruns of equal size both are the same formula."""
    equal = [pixel_statistics(sample().waveform[first : first + 10][:, :, SOME]) for first in range(0, 50, 10)]
    weights = [1.0, 2.0, 4.0, 4.0, 10.0]
    kept = Kept(parts=dict(enumerate(equal)), weights=dict(enumerate(weights)))
    errors = choice_errors(kept, merged(kept), 16)
    for gain, pixel in ((0, 0), (1, 7), (0, len(SOME) - 1)):
        pairs = zip((part.pedestal[gain, pixel] for part in equal), weights, strict=True)
        found = weighted_mean([Sampled(value=value, weight=weight) for value, weight in pairs])
        assert errors["pedestal"][gain, pixel] == pytest.approx(found.error, rel=1e-9)


@pytest.mark.parametrize("thinning", ["falling", "constant"])
def test_errors_of_pixels_and_summary_values_cover_as_they_say(parts: list[PixelStatistics], thinning: str) -> None:
    """P6: of pedestal, RMS, noise and occupancy of each pixel, and of medians over them, over many seeds."""
    q = falling_chances(SUBRUNS) if thinning == "falling" else np.full(SUBRUNS, 0.3)
    truth, random = merge(parts), np.random.default_rng(3)
    inside: dict[str, list[np.ndarray]] = {}
    for _ in range(SEEDS):
        kept = choose(parts, q, random)
        total = merged(kept)
        found, known = total.summary(), truth.summary()
        for name, error in choice_errors(kept, total, 1).items():
            off = (
                float(found[name]["value"]) - float(known[name]["value"])
                if name in found
                else getattr(total, name) - getattr(truth, name)
            )
            inside.setdefault(name, []).append(np.abs(off) <= error + 1e-9)
    tolerance = 3.5 * math.sqrt(0.68 * 0.32 / SEEDS)
    for name in ("pedestal", "pedestal_rms", "noise", "pedestal_median_high_gain", "noise_median_low_gain", "events"):
        shares = np.mean(inside[name], axis=0)
        # A pixel's share is drawn as that of a coin; of over a hundred pixels a few are further off.
        assert np.quantile(np.abs(shares - 0.68), 0.95) < tolerance, (name, shares)
        assert abs(np.median(shares) - 0.68) < tolerance, (name, shares)


@pytest.mark.parametrize("wrong", ["none", "squared"])
def test_totals_with_other_weights_are_wrong(parts: list[PixelStatistics], wrong: str) -> None:
    """P6: without weights, or with those of a product of two equal q, the drift is not seen as it was."""
    q, truth, random = falling_chances(SUBRUNS), merge(parts), np.random.default_rng(4)
    inside = []
    for _ in range(100):
        kept = choose(parts, q, random)
        weights = {n: SUBRUNS / len(kept.parts) if wrong == "none" else w * w for n, w in kept.weights.items()}
        total = merged(Kept(parts=kept.parts, weights=weights))
        error = choice_errors(Kept(parts=kept.parts, weights=weights), total, 1)["pedestal"]
        inside.append(np.abs(total.pedestal - truth.pedestal) <= error)
    assert np.median(np.mean(inside, axis=0)) < 0.34


def test_errors_are_zero_where_all_were_taken_and_unknown_where_one_stands_for_others(
    parts: list[PixelStatistics],
) -> None:
    """P6."""
    everything = Kept(parts=dict(enumerate(parts[:5])), weights=dict.fromkeys(range(5), 1.0))
    assert all((error == 0).all() for error in choice_errors(everything, merged(everything), 0).values())
    for alone in (
        choice_errors(Kept(parts={3: parts[3]}, weights={3: 8.0}), merge([parts[3]], [8.0]), 7),
        choice_errors(everything, merged(everything), 4),
    ):
        assert all(np.isnan(error).all() for error in alone.values())


@pytest.fixture
def workdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def named(subrun: int) -> DataId:
    return DataId.of(run=2008, subrun=subrun)


def test_the_payload_weighs_and_says_what_is_missing(workdir: Path) -> None:
    """P6, P17, P22: twenty subruns, twelve of them left out at random, one of those that were let through expired."""
    parts = drifting(20, np.arange(1855))
    weights = {named(n): 1.0 if n < 4 else 4.0 for n in (0, 1, 2, 3, 5, 9, 13, 17)}
    there = {unit: parts[int(unit["subrun"])].arrays() for unit in weights if unit["subrun"] != 13}
    result = run_totals(there, RUN, {"done": 7, "shed": 12, "expired": 1}, {"pixel_statistics": weights})
    summary = {name: one.value for name, one in SUMMARY.validate_python(result["summary"], strict=True).items()}
    assert [summary[name] for name in ("subruns", "subruns_left_out", "subruns_missing")] == [7, 12, 1]
    assert summary["missing_share"] == pytest.approx(100 * 4 / 20)
    arrays = result["run_statistics"]
    assert (arrays["subrun"].tolist(), arrays["weight"].tolist()) == ([0, 1, 2, 3, 5, 9, 17], [1.0] * 4 + [4.0] * 3)
    weight = np.array([parts[n].events * (1 if n < 4 else 4) for n in arrays["subrun"]])
    pedestals = np.stack([parts[n].pedestal for n in arrays["subrun"]])
    np.testing.assert_allclose(arrays["pedestal"], np.average(pedestals, axis=0, weights=weight), rtol=1e-12)
    assert arrays["pedestal_error"].shape == (2, 1855)
    assert (arrays["noise_error"] > 0).all()
    # Every pixel is counted once in each of the sixteen subruns that the seven stand for.
    assert arrays["noise_counts"].sum(axis=1).tolist() == [16 * 1855] * 2
    assert (arrays["noise_counts_error"][arrays["noise_counts"] > 7] > 0).mean() > 0.9
    assert np.isnan(arrays["noise_counts_error"][arrays["noise_counts"] == 0]).all()
    # The missing one stands for four, each with as many in a bin as the emptiest, or the fullest, that is there.
    high_gain = [np.histogram(parts[n].noise[0].clip(1, 999), arrays["noise_edges"])[0] for n in arrays["subrun"]]
    for name, extreme in (("lowest", np.min), ("highest", np.max)):
        moved = arrays["noise_counts"][0] + 4 * extreme(high_gain, axis=0)
        np.testing.assert_allclose(arrays[f"noise_counts_{name}"][0], moved)
    # And at most as many events as the largest that is there.
    events = [parts[n].events for n in arrays["subrun"]]
    assert (arrays["events_lowest"], arrays["events_highest"]) == tuple(
        weight.sum() + 4 * extreme(events) for extreme in (min, max)
    )
    share = 4 * max(events) / (weight.sum() + 4 * max(events))
    lowest = (1 - share) * arrays["pedestal"] + share * pedestals.min(axis=0)
    np.testing.assert_allclose(arrays["pedestal_lowest"], lowest, rtol=1e-12)
    for name in ("pedestal", "pedestal_rms", "noise", "occupancy"):
        assert (arrays[f"{name}_lowest"] <= arrays[name]).all()
        assert (arrays[name] <= arrays[f"{name}_highest"]).all()
        assert (arrays[f"{name}_lowest"] < arrays[f"{name}_highest"]).any()
    for name in ("events", "pedestal_median_high_gain", "noise_max_low_gain", "occupancy_high_gain"):
        assert summary[f"{name}_error"] > 0
        # With what is missing there are more events in any case.
        assert (name == "events") == (summary[f"{name}_lowest"] > summary[name])
        assert summary[name] < summary[f"{name}_highest"]
    products = PRODUCTS.validate_python(result["products"], strict=True)
    assert all(Path(product.file).stat().st_size < MAX_PNG_BYTES for product in products)


def test_titles_have_error_and_range_of_what_they_print() -> None:
    """P6, P17: each where there is one; where it cannot be told, they say that."""
    total = drifting(1, np.arange(1855))[0]
    value = float(total.summary()["noise_median_low_gain"]["value"])
    medians = {name: "" for name in total.summary() if name.startswith("noise_median")}
    assert told_medians("noise", total, dict.fromkeys(medians, np.zeros(())), total.summary())[1] == (
        f"median {value:.1f} ADC"
    )
    ranged = total.summary() | {
        f"{name}_{extreme}": {"value": number, "unit": "ADC"}
        for name in medians
        for extreme, number in (("lowest", 3.0), ("highest", 5.25))
    }
    assert told_medians("noise", total, dict.fromkeys(medians, np.array(0.5)), ranged)[1] == (
        f"median {value:.2f} ± 0.50 ADC\nwith what is missing from 3 to 5.25 ADC"
    )
    unknown = total.summary() | {"missing_range": {"value": "not known", "unit": ""}}
    assert told_medians("noise", total, dict.fromkeys(medians, np.array(np.nan)), unknown)[1] == (
        f"median {value:.4g} ± ? ADC\nwith what is missing not known from one subrun"
    )


def test_a_whole_run_has_no_errors_to_tell(workdir: Path, parts: list[PixelStatistics]) -> None:
    """P6."""
    there = {named(n): part.arrays() for n, part in enumerate(drifting(3, np.arange(1855)))}
    result = run_totals(there, RUN, {"done": 3}, {"pixel_statistics": dict.fromkeys(there, 1.0)})
    assert result["summary"]["missing_share"]["value"] == 0.0
    assert not [name for name in result["summary"] if name.endswith(("_error", "_lowest", "_highest"))]
    arrays = result["run_statistics"]
    assert not arrays["noise_error"].any()
    for name in ("events", "pedestal", "pedestal_rms", "noise", "occupancy", "noise_counts"):
        assert (arrays[f"{name}_lowest"] == arrays[name]).all()
        assert (arrays[f"{name}_highest"] == arrays[name]).all()


def test_one_subrun_gives_no_ranges_for_those_that_are_missing(workdir: Path) -> None:
    """P6: in arrays, summary values and pictures; its own values would be limits that are none."""
    there = {named(4): drifting(5, np.arange(1855))[4].arrays()}
    weights = {named(4): 2.0, named(5): 4.0}
    result = run_totals(there, RUN, {"done": 1, "expired": 1, "shed": 4}, {"pixel_statistics": weights})
    summary = {name: one.value for name, one in SUMMARY.validate_python(result["summary"], strict=True).items()}
    assert summary["missing_share"] == pytest.approx(100 * 4 / 6)
    assert summary["missing_range"] == "not known: one value does not tell how much they differ"
    assert not [name for name in summary if name.endswith(("_lowest", "_highest"))]
    arrays = result["run_statistics"]
    for name in ("events", "pedestal", "pedestal_rms", "noise", "occupancy", "noise_counts"):
        for extreme in ("lowest", "highest"):
            assert arrays[f"{name}_{extreme}"].shape == arrays[name].shape
            assert np.isnan(arrays[f"{name}_{extreme}"]).all()
    assert all(Path(one.file).is_file() for one in PRODUCTS.validate_python(result["products"], strict=True))
