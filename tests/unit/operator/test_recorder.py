"""Events are posted behind the work, and none is lost without a word."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from finetune_operator import recorder
from finetune_operator.cluster import ApiError, Cluster, NamespaceTerminatingError
from finetune_operator.recorder import Recorder
from finetune_operator.views.metadata import Raw


def event(name: str) -> Raw:
    about = {"namespace": "team", "name": "demo"}
    return {
        "metadata": {"namespace": "team", "name": name},
        "involvedObject": about,
        "reason": "Running",
        "message": name,
    }


class Server:
    """Answers each creation with the next of its answers, and then with success."""

    def __init__(self, *answers: Exception) -> None:
        self.answers, self.created = list(answers), list[str]()

    async def create(self, manifest: Raw) -> Raw:
        if self.answers:
            raise self.answers.pop(0)
        self.created.append(manifest["metadata"]["name"])
        return manifest


async def posted(server: Server, *names: str) -> list[str]:
    """Post Events; the namespaces that are being deleted."""
    terminating: list[str] = []
    own = Recorder(cast("Cluster", server), lambda namespace, _error: terminating.append(namespace))
    for name in names:
        own.add(event(name))
    running = asyncio.create_task(own.run())
    await own.posted(10)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    return terminating


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "PAUSE_SECONDS", 0)


async def test_an_event_that_exists_is_posted(caplog: pytest.LogCaptureFixture) -> None:
    server = Server(ApiError(409, "exists"))
    await posted(server, "one", "two")
    assert server.created == ["two"]
    assert not caplog.records


async def test_an_api_server_that_does_not_answer_is_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    server = Server(ApiError(0, "no answer"), ApiError(503, "busy"))
    await posted(server, "one")
    assert server.created == ["one"]
    assert not caplog.records


@pytest.mark.parametrize("answers", [[ApiError(403, "no")], [ApiError(500, "broken")] * recorder.TRIES])
async def test_an_event_that_cannot_be_posted_is_in_the_log(
    answers: list[Exception], caplog: pytest.LogCaptureFixture
) -> None:
    server = Server(*answers)
    await posted(server, "one")
    assert server.created == []
    assert "team/demo: Running: one" in caplog.text


async def test_a_namespace_that_is_being_deleted_is_reported() -> None:
    assert await posted(Server(NamespaceTerminatingError(403, "terminating")), "one") == ["team"]


async def test_what_an_operator_cannot_post_any_more_is_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    class Silent(Server):
        async def create(self, manifest: Raw) -> Raw:
            await asyncio.sleep(60)
            return manifest

    own = Recorder(cast("Cluster", Silent()), lambda *_: None)
    running = asyncio.create_task(own.run())
    for name in ("one", "two", "three"):
        own.add(event(name))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert [name for name in ("one", "two", "three") if f"Running: {name}" not in caplog.text] == []


async def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(recorder, "LIMIT", 2)
    server: Any = Server()
    await posted(server, "one", "two", "three")
    assert server.created == ["one", "two"]
    assert "Running: three" in caplog.text
