"""A gate lets many in, and nobody while it is shut."""

from __future__ import annotations

import asyncio

from p3s_prefect.station.gate import Gate


async def test_it_is_shut_when_all_are_out_and_lets_nobody_in_meanwhile() -> None:
    """S9."""
    gate, told, leave = Gate(), list[str](), asyncio.Event()

    async def work(name: str) -> None:
        async with gate.inside():
            told.append(f"{name} in")
            await leave.wait()
            told.append(f"{name} out")

    async def shut() -> None:
        async with gate.shut():
            told.append("shut")
        told.append("open")

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(work("a"))
        tasks.create_task(work("b"))
        await asyncio.sleep(0)
        tasks.create_task(shut())
        await asyncio.sleep(0)
        tasks.create_task(work("late"))
        leave.set()
    assert told == ["a in", "b in", "a out", "b out", "shut", "open", "late in", "late out"]


async def test_who_fails_inside_is_out_and_who_shuts_it_and_fails_opens_it() -> None:
    """S9: neither a unit that cannot be let in nor a reload that fails stops what comes after."""
    gate = Gate()
    for enter in (gate.inside, gate.shut, gate.inside):
        try:
            async with enter():
                raise ValueError
        except ValueError:
            pass
    async with asyncio.timeout(5), gate.shut():
        pass
    async with asyncio.timeout(5), gate.inside():
        pass
