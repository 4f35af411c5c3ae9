"""Every write passes the gate: when it begins, and again when its connection is there."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
from aiohttp import web
from finetune_operator.cluster import ApiError, Cluster
from finetune_operator.cluster import writes as module
from finetune_operator.cluster.connection import TIMEOUT_SECONDS
from finetune_operator.gate import LEASE_SECONDS, RENEW_SECONDS, Gate, NotLeading
from finetune_operator.views.service import ServiceView
from kubernetes.aio import client

from tests.unit.operator import make

MANIFEST = {
    "apiVersion": "batch/v1",
    "kind": "Job",
    "metadata": {"namespace": "team", "name": "demo", "labels": {"finetune-operator.io/job": "demo"}},
}
WRITES: dict[str, Callable[[Cluster], Awaitable[object]]] = {
    "apply_status": lambda cluster: cluster.apply_status(make.job(), {}),
    "set_progress": lambda cluster: cluster.set_progress(make.job(), None),
    "create": lambda cluster: cluster.create(MANIFEST),
    "create_if_absent": lambda cluster: cluster.create_if_absent(MANIFEST),
    "ensure": lambda cluster: cluster.ensure(MANIFEST),
    "delete_child_job": lambda cluster: cluster.delete_child_job(make.child_job()),
    "delete_service": lambda cluster: cluster.delete_service(ServiceView(("team", "demo"), "demo", "uid", 1)),
}


class Api:
    """The official client, with an API server that has no object. It notes the calls and their timeouts."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, float]] = []

    async def param_serialize(self, method: str, path: str, **_: Any) -> tuple[Any, ...]:
        return method, path, {}, None, None

    async def call_api(self, method: str, *_: Any, _request_timeout: float) -> Any:
        self.calls.append((method, _request_timeout))
        return Answer(404 if method == "GET" else 200)


class Answer:
    def __init__(self, status: int) -> None:
        self.status = status

    async def read(self) -> bytes:
        return b"{}"


def test_every_kind_of_write_is_here() -> None:
    public = {name for name in vars(Cluster) if not name.startswith("_")}
    assert public - {"connect"} == set(WRITES)


@pytest.mark.parametrize("write", WRITES)
async def test_no_write_is_sent_without_the_lease(write: str) -> None:
    api, now = Api(), [100.0]
    gate = Gate(lambda: now[0])
    cluster = Cluster(cast("Any", api), gate)
    for renewed_at in (None, now[0] - RENEW_SECONDS):
        if renewed_at is not None:
            gate.renewed(renewed_at)
        with pytest.raises(NotLeading):
            await WRITES[write](cluster)
    assert {method for method, _ in api.calls} <= {"GET"}


@pytest.mark.parametrize("write", WRITES)
async def test_a_write_ends_before_others_may_take_the_lease(write: str) -> None:
    api, now = Api(), [100.0]
    gate = Gate(lambda: now[0])
    gate.renewed(now[0])
    now[0] += RENEW_SECONDS - 1
    await WRITES[write](Cluster(cast("Any", api), gate))
    timeouts = dict(api.calls)
    assert timeouts.pop("GET", TIMEOUT_SECONDS) == TIMEOUT_SECONDS
    assert list(timeouts.values()) == [LEASE_SECONDS - RENEW_SECONDS + 1]


async def test_a_process_that_was_paused_while_it_connected_sends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The write began in time; the Lease was lost before its first byte was sent."""
    received: list[str] = []

    async def receive(request: web.Request) -> web.Response:
        received.append(request.method)
        return web.json_response({})

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", receive)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    settings = client.Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}")

    async def credentials() -> client.Configuration:
        return settings

    monkeypatch.setattr(module, "credentials", credentials)
    now = [100.0]
    gate = Gate(lambda: now[0])
    cluster = await Cluster.connect(gate)
    serialize = cluster._api.param_serialize

    async def pause(*arguments: Any, **others: Any) -> Any:
        now[0] += pauses.pop()
        return await serialize(*arguments, **others)

    monkeypatch.setattr(cluster._api, "param_serialize", pause)
    try:
        pauses = [0.0]
        gate.renewed(now[0])
        await cluster.apply_status(make.job(), {})
        assert received == ["PATCH"]
        pauses = [float(RENEW_SECONDS)]
        with pytest.raises(NotLeading):
            await cluster.apply_status(make.job(), {})
        assert received == ["PATCH"]
        pauses = [0.0]
        assert await cluster.get_job(("team", "demo")) == {}
    finally:
        await cluster.close()
        await runner.cleanup()


async def test_the_end_of_writes_under_way_is_waited_for() -> None:
    gate = Gate(lambda: 0.0)
    gate.renewed(0.0)
    assert await gate.settled(1)
    with gate.writing():
        gate.close()
        assert not await gate.settled(0.01)
        waiting = asyncio.create_task(gate.settled(60))
        await asyncio.sleep(0)
    assert await waiting


async def test_a_call_that_fails_is_no_longer_under_way() -> None:
    class Broken(Api):
        async def call_api(self, *_: Any, **__: Any) -> Any:
            raise TimeoutError

    gate = Gate(lambda: 0.0)
    gate.renewed(0.0)
    with pytest.raises(ApiError):
        await Cluster(cast("Any", Broken()), gate).create(MANIFEST)
    assert await gate.settled(0)
