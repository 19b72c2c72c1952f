"""The worker type p3s against a real Prefect server."""

from __future__ import annotations

import asyncio
import sys
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from prefect import Flow, flow
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.settings import temporary_settings
from prefect.states import Running
from prefect.workers.base import BaseWorker
from prefect_servers import PrefectProcess

from p3s_prefect.agent import worker as worker_room
from p3s_prefect.agent.quick_retry import QuickRetry
from p3s_prefect.agent.worker import RESUMING, P3sWorker, find_flow
from p3s_prefect.core.errors import ServiceError

pytestmark = pytest.mark.sockets

PROCESS = "p3s_prefect.flows.process.process"
PATIENCE_S = 120.0


@pytest.fixture
async def client(prefect: PrefectProcess) -> AsyncIterator[PrefectClient]:
    # Prefect's threads would go on sending logs to a server that is gone by then.
    with temporary_settings({"api.url": prefect.api, "logging.to_api.enabled": False}):
        async with get_client() as found:
            yield found


@pytest.fixture
def pool() -> str:
    return f"site-{uuid.uuid4().hex[:8]}"


@asynccontextmanager
async def working(client: PrefectClient, pool: str) -> AsyncIterator[P3sWorker]:
    """A worker that takes runs of a pool."""
    found = P3sWorker(work_pool_name=pool, name=f"worker of {pool}")
    task = asyncio.create_task(found.start(printer=lambda *_: None))
    try:
        await until(lambda: found._has_successfully_synced)
        yield found
    finally:
        task.cancel()
        await asyncio.wait([task])


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            answer = condition()
            if asyncio.iscoroutine(answer):
                answer = await answer
            if answer:
                return
            await asyncio.sleep(0.03)


def stand_in(monkeypatch: pytest.MonkeyPatch, own: Callable[..., Any]) -> Flow[..., Any]:
    """Another flow in the place of those of this package."""
    found = flow(own)
    monkeypatch.setattr(worker_room, "find_flow", lambda _: found)
    return found


async def deployed(client: PrefectClient, pool: str, entrypoint: str = PROCESS, of: Any = None) -> uuid.UUID:
    flow_id = await client.create_flow_from_name(f"flow-{pool}")
    return await client.create_deployment(
        flow_id=flow_id, name=uuid.uuid4().hex, work_pool_name=pool, entrypoint=entrypoint
    )


async def state_of(client: PrefectClient, run_id: uuid.UUID) -> Any:
    return (await client.read_flow_run(run_id)).state


async def ended(client: PrefectClient, run_id: uuid.UUID) -> Any:
    async def has_ended() -> bool:
        return bool((await state_of(client, run_id)).is_final())

    await until(has_ended)
    return await state_of(client, run_id)


async def test_it_runs_flows_in_its_own_process(
    client: PrefectClient, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S2: with the parameters of the run, and its result as its state; several at once."""
    met = asyncio.Barrier(2)
    seen: list[int] = []

    async def meet(number: int) -> None:
        await met.wait()
        seen.append(number)

    stand_in(monkeypatch, meet)
    async with working(client, pool):
        made = await deployed(client, pool)
        runs = [await client.create_flow_run_from_deployment(made, parameters={"number": n}) for n in (1, 2)]
        assert [(await ended(client, run.id)).is_completed() for run in runs] == [True, True]
    assert sorted(seen) == [1, 2]


@pytest.mark.parametrize(
    "entrypoint",
    ["flows/mine.py:mine", "somewhere.mine", "p3s_prefect.flows.nothing.nothing", "p3s_prefect.flows.produce.produce"],
)
async def test_other_flows_are_refused_with_the_hint(client: PrefectClient, pool: str, entrypoint: str) -> None:
    """S8: at once, in words; and so is a flow of this package that would block all others."""
    async with working(client, pool):
        run = await client.create_flow_run_from_deployment(await deployed(client, pool, entrypoint))
        state = await ended(client, run.id)
    assert state.is_crashed()
    assert "prefect work-pool create NAME --type process" in state.message
    with pytest.raises(ServiceError):
        find_flow(entrypoint)


async def test_what_is_cancelled_in_prefect_ends_as_cancelled(
    client: PrefectClient, prefect: PrefectProcess, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S2: the flow is interrupted, and no crash is told."""
    begun = asyncio.Event()

    async def wait() -> None:
        begun.set()
        await asyncio.Event().wait()

    stand_in(monkeypatch, wait)
    async with working(client, pool):
        run = await client.create_flow_run_from_deployment(await deployed(client, pool))
        await asyncio.wait_for(begun.wait(), PATIENCE_S)
        cancelling = {"state": {"type": "CANCELLING", "name": "Cancelling"}}
        await asyncio.to_thread(prefect.change, "POST", f"/flow_runs/{run.id}/set_state", cancelling)
        assert (await ended(client, run.id)).is_cancelled()
    names = {state.name for state in await client.read_flow_run_states(run.id)}
    assert "Crashed" not in names


async def test_what_runs_when_the_worker_stops_goes_on_with_the_next(
    client: PrefectClient, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S2, V22: back to the queue, and nothing hangs at Running."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def wait() -> None:
        begun.set()
        await go_on.wait()

    stand_in(monkeypatch, wait)
    async with working(client, pool):
        run = await client.create_flow_run_from_deployment(await deployed(client, pool))
        await asyncio.wait_for(begun.wait(), PATIENCE_S)
    assert (await state_of(client, run.id)).name == RESUMING
    go_on.set()
    async with working(client, pool):
        assert (await ended(client, run.id)).is_completed()


async def test_a_run_whose_worker_was_killed_is_taken_up(
    client: PrefectClient, pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """V20: it stands at Running under a process that is no more."""

    async def nothing() -> None:
        """Ends at once."""

    stand_in(monkeypatch, nothing)
    async with working(client, pool):
        made = await deployed(client, pool)
    gone = await asyncio.create_subprocess_exec(sys.executable, "-c", "")
    await gone.wait()
    run = await client.create_flow_run_from_deployment(made)
    host = worker_room.socket.gethostname()
    await client.set_flow_run_state(run.id, Running(), force=True)
    await client.update_flow_run(run.id, infrastructure_pid=f"{host} {gone.pid} 1.00")
    other = await client.create_flow_run_from_deployment(made)
    await client.set_flow_run_state(other.id, Running(), force=True)
    await client.update_flow_run(other.id, infrastructure_pid=worker_room._identity())
    async with working(client, pool):
        assert (await ended(client, run.id)).is_completed()
        # This process lives: what another worker of it runs is left alone.
        assert (await state_of(client, other.id)).is_running()


def test_a_run_that_has_lost_its_worker_so_often_counts_as_crashed() -> None:
    """V20: it may be what takes each of them down."""
    lost = FlowRun(flow_id=uuid.uuid4(), state=Running(), run_count=4)
    assert worker_room._after_loss(lost).name == RESUMING
    state = worker_room._after_loss(lost.model_copy(update={"run_count": 5}))
    assert (state.is_crashed(), state.message) == (True, "its worker was lost 5 times")


async def test_the_workers_client_asks_a_busy_server_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """S2: else two or three seconds stand now and then between a run's submitting and submitted."""
    clients: list[PrefectClient] = []

    async def start(_: Any, **__: Any) -> None:
        # As a worker does when it is set up.
        clients.append(get_client())

    async def matches(_: PrefectClient) -> None:
        """No server is asked for its version."""

    monkeypatch.setattr(BaseWorker, "start", start)
    monkeypatch.setattr(PrefectClient, "raise_for_api_version_mismatch_once", matches)
    with temporary_settings({"api.url": "http://127.0.0.1:1/api"}):
        await P3sWorker(work_pool_name="site").start()
    (client,) = clients
    assert isinstance(client._client._transport, QuickRetry)


@pytest.mark.parametrize(("busy", "calls", "status"), [(2, 3, 200), (99, 6, 503)])
async def test_a_busy_server_is_asked_again_at_once(busy: int, calls: int, status: int) -> None:
    """S2: Prefect's client would wait 2 s; where the server says when, it is obeyed."""
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(503 if len(seen) <= busy else 200)

    async with httpx.AsyncClient(transport=QuickRetry(httpx.MockTransport(answer))) as asking:
        assert (await asking.get("http://prefect/api")).status_code == status
    assert len(seen) == calls


async def test_a_server_that_says_when_is_obeyed() -> None:
    """S2: during maintenance it tells for how long."""
    transport = QuickRetry(httpx.MockTransport(lambda _: httpx.Response(503, headers={"Retry-After": "30"})))
    async with httpx.AsyncClient(transport=transport) as asking:
        assert (await asking.get("http://prefect/api")).status_code == 503


def test_prefect_knows_the_type() -> None:
    """S2: `prefect work-pool create --type p3s` and `prefect worker start` find it."""
    assert BaseWorker.get_worker_class_from_type("p3s") is P3sWorker
    assert P3sWorker.get_default_base_job_template()["variables"]["properties"]
