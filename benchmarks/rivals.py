"""Bare Dask on the same cluster, with stock settings: what the station is compared with."""

from __future__ import annotations

import asyncio
import statistics
import time

import distributed


def nothing(number: int) -> int:
    """The rival does not even write a file."""
    return number


async def round_trip_s(address: str, calls: int = 200) -> float:
    """Median time from submit to result, one at a time."""
    async with distributed.Client(address, asynchronous=True, set_as_default=False) as client:
        times = []
        for number in range(calls):
            begun = time.perf_counter()
            await client.submit(nothing, number, pure=False)
            times.append(time.perf_counter() - begun)
        return statistics.median(times)


async def limited_rate(address: str, calls: int, in_flight: int) -> float:
    """Calls a second with at most `in_flight` submitted at once, as the station keeps it."""
    async with distributed.Client(address, asynchronous=True, set_as_default=False) as client:
        room = asyncio.Semaphore(in_flight)

        async def one(number: int) -> None:
            async with room:
                await client.submit(nothing, number, pure=False)

        begun = time.perf_counter()
        await asyncio.gather(*(one(number) for number in range(calls)))
        return calls / (time.perf_counter() - begun)


async def bulk_rate(address: str, calls: int) -> float:
    """Calls a second, all submitted at once."""
    async with distributed.Client(address, asynchronous=True, set_as_default=False) as client:
        begun = time.perf_counter()
        await client.gather(client.map(nothing, range(calls), pure=False))
        return calls / (time.perf_counter() - begun)
