"""Publication of one object: ours, with SHA-256 both ways and a look beforehand, and boto3 as anybody would call it."""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from benchmarks.stores.server import seaweed
from benchmarks.table import Row
from p3s_prefect.adapters.s3_client import keys_in
from p3s_prefect.adapters.s3_store import S3Store
from p3s_prefect.core.bucket_place import BucketPlace

MB = 10**6
# The first hundred objects are slow, as the server makes room for them.
_WARM = 120


def run(is_quick: bool = False) -> list[Row]:
    """The table."""
    with seaweed() as place, tempfile.TemporaryDirectory() as directory:
        _warm(place)
        return [
            _row(place, Path(directory), 64, 4 if is_quick else 12),
            _row(place, Path(directory), 1, 60 if is_quick else 300),
        ]


def _warm(place: BucketPlace) -> None:
    store = S3Store(place)
    for number in range(_WARM):
        store.put_bytes(f"warm/{number}", b"x" * MB)


def _row(place: BucketPlace, directory: Path, megabytes: int, rounds: int) -> Row:
    file = directory / f"{megabytes}"
    file.write_bytes(random.Random(megabytes).randbytes(megabytes * MB))
    store, plain = S3Store(place), _plain(place)
    ours, theirs = [], []
    for number in range(rounds):
        # In turn, and each first as often, as the machine has other things to do.
        tries: list[tuple[list[float], Callable[[], object]]] = [
            (ours, lambda n=number: store.put_file(f"ours/{megabytes}/{n}", file)),
            (theirs, lambda n=number: plain.upload_file(str(file), place.bucket, f"theirs/{megabytes}/{n}")),
        ]
        for taken, publish in tries if number % 2 else reversed(tries):
            taken.append(_timed(publish))
    return Row(
        f"{megabytes} MB: median of {rounds}",
        f"{_speed(megabytes, ours):.0f} MB/s; boto3 {_speed(megabytes, theirs):.0f} MB/s",
        f"{statistics.median(theirs) / statistics.median(ours):.2f} of boto3's speed (at least 0.80 is wanted)",
    )


def _plain(place: BucketPlace) -> Any:
    keys = keys_in(Path(str(place.credentials)))
    return boto3.client(
        "s3",
        endpoint_url=place.endpoint,
        region_name="us-east-1",
        aws_access_key_id=keys.access_key,
        aws_secret_access_key=keys.secret_key,
        config=Config(s3={"addressing_style": "path"}),
    )


def _timed(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _speed(megabytes: int, seconds: Sequence[float]) -> float:
    return megabytes / statistics.median(seconds)
