"""Names by content: configurations, run collections, processing days and object keys."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import UTC, date, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from p3s_prefect.core.data_id import DataId
from p3s_prefect.core.experiment import Day


def content_id(content: object) -> str:
    """SHA-256 (hex) of a JSON value in canonical form: the same content has the same id, whatever its key order."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def processing_day(at: float, day: Day) -> date:
    """The processing day of a moment (UTC, seconds since 1970): it begins at `day.rolls_at` in `day.zone`.

    A day that rolls at noon or later bears the date on which its night begins; one that rolls earlier, the date of
    its morning. The roll follows the wall clock, but no day comes twice where clocks are set back.
    """
    zone = ZoneInfo(day.zone)
    today = datetime.fromtimestamp(at, tz=UTC).astimezone(zone).date()
    # Compared as moments: where clocks are set back, the wall clock passes the roll twice.
    rolls_at = datetime.combine(today, time.fromisoformat(day.rolls_at), zone).timestamp()
    return today if at >= rolls_at else today - timedelta(days=1)


def configuration(
    pipeline: Mapping[str, Any], dataset_types: Mapping[str, Any], software: Mapping[str, str]
) -> dict[str, Any]:
    """What decides about a pipeline's results: its definition, the formats that it uses and its software's versions."""
    return {"dataset_types": dict(dataset_types), "pipeline": dict(pipeline), "software": dict(software)}


def run_collection(instrument: str, pipeline: str, day: date, configuration_id: str, pass_number: int) -> str:
    """The name of a run collection, ``instrument/pipeline/day/configuration``.

    Pass 0 has the plain name. A later pass, which must leave the earlier one's outputs as they are, adds ``/pass1``.
    Twelve hex digits of the configuration's id keep names short; the full id stands in the ledger.
    """
    name = f"{instrument}/{pipeline}/{day:%Y%m%d}/{configuration_id[:12]}"
    return f"{name}/pass{pass_number}" if pass_number else name


def attempt_of(key: str) -> str:
    """The attempt's prefix in the key of one of its objects; the whole key if it is none (see `attempt_prefix`).

    The attempt comes two parts after the last part of the data id, which alone has an equals sign: a stage may be
    called ``attempt1``.
    """
    parts = key.split("/")
    ends = [place for place, part in enumerate(parts) if "=" in part]
    return "/".join(parts[: ends[-1] + 3]) if ends else key


def attempt_prefix(collection: str, data_id: DataId, stage: str, attempt: int) -> str:
    """Where the objects of an attempt go. Each execution adds a part of its own, as Dask may run an attempt twice."""
    return f"runs/{collection}/{data_id.path}/{stage}/attempt{attempt}"
