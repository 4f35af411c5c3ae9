"""What /healthz and /readyz report, and to whom."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import aiohttp
import pytest
from finetune_operator import health
from finetune_operator.app import Operator
from finetune_operator.cluster import ApiError, Cluster
from finetune_operator.gate import Gate
from finetune_operator.metrics import Metrics

from tests.unit.operator.make import SETTINGS


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


HOSTS = ["127.0.0.1", pytest.param("[::1]", marks=pytest.mark.skipif(not has_ipv6(), reason="no IPv6 here"))]


@pytest.mark.parametrize("host", HOSTS)
async def test_probes_are_answered_on_every_address_family(host: str) -> None:
    problems: dict[str, list[str]] = {"alive": [], "ready": ["not yet"]}
    runner = await health.serve(0, lambda: problems["alive"], lambda: problems["ready"], Metrics())
    port = runner.addresses[0][1]
    try:
        async with aiohttp.ClientSession() as session:

            async def get(path: str) -> tuple[int, str]:
                async with session.get(f"http://{host}:{port}/{path}") as answer:
                    return answer.status, await answer.text()

            assert await get("healthz") == (200, "ok\n")
            assert await get("readyz") == (503, "not yet\n")
            problems["alive"] = ["a worker hangs"]
            assert await get("healthz") == (503, "a worker hangs\n")
            assert await get("readyz") == (503, "a worker hangs\nnot yet\n")
            assert (await get("metrics"))[0] == 200
    finally:
        await runner.cleanup()


def test_a_node_without_ipv6_is_served_on_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.create_server

    def without_ipv6(address: tuple[str, int], **options: Any) -> socket.socket:
        if options.get("family") == socket.AF_INET6:
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
        return real(address, **options)

    monkeypatch.setattr(socket, "create_server", without_ipv6)
    with health.listen(0) as listening:
        assert listening.family == socket.AF_INET


def test_a_port_that_is_taken_is_an_error() -> None:
    with health.listen(0) as listening, pytest.raises(OSError, match="in use"):
        health.listen(listening.getsockname()[1])


class Slow:
    """The official client, with an API server that answers as told."""

    def __init__(self, answer: Callable[[], Any]) -> None:
        self.answer = answer

    async def param_serialize(self, method: str, path: str, **_: Any) -> tuple[Any, ...]:
        return method, path, {}, None, None

    async def call_api(self, *_: Any, **__: Any) -> Any:
        return self.answer()


def response(status: int) -> Any:
    async def read() -> bytes:
        return b'{"message": "words"}'

    return SimpleNamespace(status=status, read=read)


def timeout() -> Any:
    raise TimeoutError


def operator(answer: Callable[[], Any]) -> Operator:
    return Operator(SETTINGS, Cluster(cast("Any", Slow(answer)), Gate()))


@pytest.fixture
def flying(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """[seconds] that are added to the clock of the event loop."""
    ahead = [0.0]
    real = asyncio.BaseEventLoop.time
    monkeypatch.setattr(asyncio.BaseEventLoop, "time", lambda loop: real(loop) + ahead[0])
    return ahead


@pytest.mark.parametrize("answer", [lambda: response(503), lambda: response(429), timeout])
async def test_a_brown_out_of_the_api_server_costs_readiness_and_not_the_life(
    answer: Callable[[], Any], flying: list[float]
) -> None:
    own = operator(answer)
    own.listed = True
    assert (own.problems(), own.obstacles()) == ([], [])
    own.lag.expect("uid", 5)
    for number in range(100):
        own.queue.add(("team", f"job-{number}"))
    for _ in range(10):
        key = await own.queue.get()
        flying[0] += 50
        with pytest.raises(ApiError):
            await own.cluster.get_job(key)
        own.queue.done(key, failed=True)
        assert own.problems() == []
        assert own.obstacles() == ["The API server is overloaded or does not answer."]
    flying[0] += 30
    own.queue.done(await own.queue.get())
    assert (own.problems(), own.obstacles()) == ([], [])


async def test_a_watch_is_stuck_if_the_api_server_answers_and_the_watch_does_not(flying: list[float]) -> None:
    own = operator(lambda: response(200))
    own.lag.expect("uid", 5)
    flying[0] += 61
    assert await own.cluster.get_job(("team", "demo"))
    assert own.problems() == [], "a watch that is not open yet owes nothing"
    own.listed = True
    assert own.problems() == ["a watch is stuck: it has not shown a change for 61 s"]
    own.lag.begin()
    assert own.problems() == []


async def test_the_queue_is_stuck_if_a_worker_hangs_or_none_takes_a_key(flying: list[float]) -> None:
    own = operator(lambda: response(200))
    own.workers.at_work = True
    own.queue.add(("team", "taken"))
    own.queue.add(("team", "ready"))
    key = await own.queue.get()
    flying[0] += 181
    assert own.problems() == ["the queue is stuck: no worker has made progress for 181 s"]
    own.queue.done(key)
    assert own.problems() == ["the queue is stuck: no worker has made progress for 181 s"]
    await own.queue.get()
    assert own.problems() == []
