"""What running attempts need to report is restored, for as few requests as possible."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, cast

import pytest
from finetune_operator import access
from finetune_operator.access import Access, restore_access
from finetune_operator.cache import Cache
from finetune_operator.cluster import ApiError, Cluster
from finetune_operator.manifests.access import role_binding
from finetune_operator.views.metadata import Raw

from tests.unit.operator import make


class Served(Cluster):
    """An API server with these objects. It records its requests."""

    def __init__(self, *objects: str, refuse: str = "") -> None:
        self.objects, self.refuse = set(objects), refuse
        self.requests: list[str] = []

    async def _call(self, method: str, path: str, *more: Any, **_: Any) -> Raw:
        verb = "LIST" if method == "GET" and path.endswith("s") else method
        self.requests.append(f"{verb} {path.split('/v1/')[1]}")
        if self.refuse and self.refuse in path:
            raise ApiError(403, "no")
        if verb == "LIST":
            spaces = [{"metadata": {"namespace": path.split("/")[1]}} for path in sorted(self.objects) if "acc" in path]
            return {"metadata": {"resourceVersion": "1"}, "items": spaces}
        if method == "PATCH":
            return dict(more[1])
        if path.split("/v1/")[1] not in self.objects:
            raise ApiError(404, "not found")
        account = path.rsplit("/", 1)[1].removeprefix("finetune-trainer").strip("-") or "finetune-trainer"
        return role_binding(path.split("/")[5], account, make.SETTINGS)


def running_jobs(*namespaces: str, jobs: int = 1, **changes: Any) -> Cache:
    cache = Cache()
    for namespace in namespaces:
        for number in range(jobs):
            key, uid = (namespace, f"demo{number}"), f"{namespace}-{number}"
            cache.jobs.put(replace(make.job(), namespace=namespace, name=key[1], uid=uid, **changes))
            cache.child_jobs.put(make.child_job(key=key, uid=f"of-{uid}", owner_uid=uid))
    return cache


async def requests(cache: Cache, *objects: str, refuse: str = "") -> list[str]:
    served = Served(*objects, refuse=refuse)
    await restore_access(cache, cast("Cluster", served), make.SETTINGS, make.everywhere)
    return served.requests


def account(namespace: str) -> str:
    return f"namespaces/{namespace}/serviceaccounts/finetune-trainer"


def binding(namespace: str, name: str = "finetune-trainer") -> str:
    return f"namespaces/{namespace}/rolebindings/{name}"


async def test_what_is_there_costs_a_read_for_each_namespace_and_one_for_all() -> None:
    there = [one for namespace in ("a", "b") for one in (account(namespace), binding(namespace))]
    made = await requests(running_jobs("a", "b", jobs=50), *there)
    assert made == ["LIST serviceaccounts", f"GET {binding('a')}", f"GET {binding('b')}"]


async def test_without_a_running_attempt_nothing_is_read() -> None:
    cache = running_jobs("a")
    [child] = cache.child_jobs.of(("a", "demo0"))
    cache.child_jobs.put(replace(child, resource_version=2, complete=True))
    assert await requests(cache) == []
    assert await requests(running_jobs("a", deleting=True)) == []


async def test_what_is_missing_is_made_again() -> None:
    made = await requests(running_jobs("a"))
    assert [one for one in made if one.startswith("PATCH")] == [f"PATCH {binding('a')}", f"PATCH {account('a')}"]


async def test_an_account_of_the_users_own_is_not_made() -> None:
    cache = running_jobs("a", spec={**make.SPEC, "resources": {"serviceAccountName": "robot"}})
    made = await requests(cache)
    assert [one for one in made if one.startswith("PATCH")] == [f"PATCH {binding('a', 'finetune-trainer-robot')}"]


async def test_a_namespace_that_refuses_does_not_hold_up_the_others() -> None:
    made = await requests(running_jobs("a", "b"), refuse="namespaces/a/")
    assert f"PATCH {binding('b')}" in made
    assert await requests(running_jobs("a"), refuse="serviceaccounts") == ["LIST serviceaccounts"]


async def test_an_operator_of_some_namespaces_reads_nothing_of_the_cluster_and_binds_a_role() -> None:
    async def serves(namespace: str) -> bool:
        return namespace != "theirs"

    served, settings = Served(), make.SETTINGS.model_copy(update={"watch_namespaces": ["a", "theirs"]})
    await restore_access(running_jobs("a", "theirs"), cast("Cluster", served), settings, serves)
    bound = binding("a", "finetune-trainer:finetune-trainer")
    assert served.requests == [f"GET {bound}", f"PATCH {bound}", f"GET {account('a')}", f"PATCH {account('a')}"]


async def test_access_is_read_before_the_first_child_job_and_once_after_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(access, "LOOK_SECONDS", 0.01)
    served = Served(binding("a"))
    own = Access(cast("Cluster", served), running_jobs("a"))
    manifest = role_binding("a", "finetune-trainer", make.SETTINGS)
    await own.ensure(manifest)
    assert served.requests == [f"GET {binding('a')}"]
    for _ in range(5):
        await own.ensure(manifest)
    assert len(served.requests) == 1
    served.objects.clear()  # somebody recreated the namespace
    looking = asyncio.create_task(own.run())
    async with asyncio.timeout(10):
        while len(served.requests) < 3:
            await asyncio.sleep(0)
    looking.cancel()
    assert served.requests[1:] == [f"GET {binding('a')}", f"PATCH {binding('a')}"]


async def test_what_is_owed_for_jobs_that_are_gone_is_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who has deleted the jobs of a namespace may have deleted their access, too."""
    monkeypatch.setattr(access, "LOOK_SECONDS", 0.01)
    served = Served(binding("a"), binding("b"))
    own = Access(cast("Cluster", served), running_jobs("b"))
    for _ in range(2):
        for namespace in ("a", "b"):
            await own.ensure(role_binding(namespace, "finetune-trainer", make.SETTINGS))
    served.objects.clear()
    looking = asyncio.create_task(own.run())
    async with asyncio.timeout(10):
        while f"PATCH {binding('b')}" not in served.requests:
            await asyncio.sleep(0)
    looking.cancel()
    assert f"PATCH {binding('a')}" not in served.requests
