"""Watches that the API server refuses: with the real kopf, and what it makes of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator
from typing import Any, cast

import kopf
import pytest
from aiohttp import web
from finetune_operator.app import Operator
from finetune_operator.cluster import Cluster
from finetune_operator.gate import Gate
from finetune_operator.refusals import KOPF_LOGGER, OVER_SECONDS, WatchRefusals

from tests.unit.operator.make import SETTINGS

SAID = 'configmaps "finetune-presets" is forbidden: User "operator" cannot {verb} resource "configmaps" in API group ""'
TOLD = "The operator may not {verb} configmaps in all namespaces"


def served(**kinds: str) -> dict[str, Any]:
    """What the API server says about a version of a group: its resources and their kinds."""
    more = {"namespaced": True, "singularName": "", "verbs": ["get", "list", "watch"]}
    return {"resources": [{"name": name, "kind": kind, **more} for name, kind in kinds.items()]}


CRDS, V1 = "apiextensions.k8s.io", {"version": "v1"}
DISCOVERY: dict[str, Any] = {
    "/api": {"versions": ["v1"]},
    "/api/v1": served(pods="Pod", configmaps="ConfigMap", namespaces="Namespace", events="Event"),
    "/apis": {"groups": [{"name": CRDS, "versions": [V1], "preferredVersion": V1}]},
    f"/apis/{CRDS}/v1": served(customresourcedefinitions="CustomResourceDefinition"),
}
"""kopf does not begin without all of these."""


class ApiServer:
    """Serves empty lists of Pods and ConfigMaps, and refuses a verb for ConfigMaps."""

    def __init__(self, refused: str) -> None:
        self.refused = refused
        self.watched: set[str] = set()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        path, resource = request.path, request.path.rpartition("/")[2]
        verb = "watch" if "watch" in request.query else "list"
        if path in DISCOVERY:
            return web.json_response(DISCOVERY[path])
        if resource == "configmaps" and verb == self.refused:
            status = {"kind": "Status", "code": 403, "reason": "Forbidden", "message": SAID.format(verb=verb)}
            return web.json_response(status, status=403)
        if verb == "list":
            return web.json_response({"metadata": {"resourceVersion": "1"}, "items": []})
        self.watched.add(resource)
        stream = web.StreamResponse()
        await stream.prepare(request)
        await asyncio.sleep(3600)
        return stream


@contextlib.asynccontextmanager
async def watching(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Operator]:
    """An operator whose watches go to the server."""
    app = web.Application()
    app.router.add_get("/{path:.*}", server.answer)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    connection = kopf.ConnectionInfo(server=f"http://127.0.0.1:{runner.addresses[0][1]}")
    monkeypatch.setattr(kopf, "login_via_client", lambda **_: connection)
    own = Operator(SETTINGS, Cluster(cast("Any", None), Gate()))
    own.listed = True
    task = asyncio.create_task(own._watch())
    try:
        yield own
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        logging.getLogger(KOPF_LOGGER).removeFilter(own.refusals)
        await runner.cleanup()


@pytest.mark.parametrize("verb", ["watch", "list"])
async def test_a_watch_that_is_refused_is_told_by_readyz_and_once_by_the_log(
    verb: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    server = ApiServer(verb)
    async with watching(server, monkeypatch) as own:
        async with asyncio.timeout(40):
            while not own.obstacles() or "pods" not in server.watched:
                await asyncio.sleep(0.05)
        [told] = own.obstacles()
        assert TOLD.format(verb=verb) in told
        assert SAID.format(verb=verb) in told
        server.refused = ""
        async with asyncio.timeout(40):
            while "configmaps" not in server.watched:
                await asyncio.sleep(0.05)
        later = own.refusals.clock() + OVER_SECONDS
        own.refusals.clock = lambda: later
        assert own.obstacles() == []
    lines = [record.getMessage() for record in caplog.records if "configmaps" in record.getMessage()]
    assert len([line for line in lines if TOLD.format(verb=verb) in line]) == 1
    assert not [line for line in lines if "Request attempt" in line], "kopf's own lines, one for each try"


class Refused(Exception):
    """As kopf has it."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


def say(noted: WatchRefusals, url: str, status: int = 403, message: str = "no") -> bool:
    """A line as kopf logs it; whether it stays in the log."""
    line = f"Request attempt #1 failed; will retry: GET https://server{url} -> {json.dumps(message)}"
    try:
        raise Refused(status, message)
    except Refused:
        return noted.filter(logging.LogRecord(KOPF_LOGGER, logging.ERROR, "", 0, line, None, None))


def test_a_refusal_names_verb_resource_and_namespace() -> None:
    noted = WatchRefusals(lambda _: False)
    for _ in range(2):
        say(noted, "/apis/batch/v1/namespaces/team/jobs?labelSelector=a&watch=true", message="words of the server")
        say(noted, "/api/v1/namespaces/team/pods?limit=500")
    assert noted.lasting() == [
        "The operator may not watch jobs in namespace team, so it learns of changes late: words of the server",
        "The operator may not list pods in namespace team, so it learns of changes late: no",
    ]


def test_a_single_refusal_is_none_and_two_that_are_far_apart_neither() -> None:
    now = 0.0
    noted = WatchRefusals(lambda _: False, clock=lambda: now)
    say(noted, "/api/v1/pods?watch=true")
    assert noted.lasting() == []
    now = OVER_SECONDS
    say(noted, "/api/v1/pods?watch=true")
    assert noted.lasting() == []
    now += 21
    say(noted, "/api/v1/pods?watch=true")
    assert len(noted.lasting()) == 1
    now += OVER_SECONDS
    assert noted.lasting() == []


def test_a_namespace_that_cannot_be_listed_is_not_told_twice(caplog: pytest.LogCaptureFixture) -> None:
    noted = WatchRefusals(lambda namespace: namespace == "closed", quiet=True)
    for _ in range(3):
        assert not say(noted, "/api/v1/namespaces/closed/pods?watch=true")
    assert noted.lasting() == []
    assert not caplog.records


def test_what_is_no_refusal_stays_in_the_log_unless_it_is_quiet() -> None:
    assert say(WatchRefusals(lambda _: False), "/api/v1/pods?watch=true", status=503)
    assert not say(WatchRefusals(lambda _: False, quiet=True), "/api/v1/pods?watch=true", status=503)
