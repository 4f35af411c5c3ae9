"""What looking at one job brings to light of others."""

from __future__ import annotations

from typing import Any, cast

from finetune_operator.cache import Cache, Jobs
from finetune_operator.cluster import Cluster
from finetune_operator.observe import Observer
from finetune_operator.observed import Key, Raw

from tests.unit.operator import make


class Served:
    """An API server that has one other job, which no watch has shown yet."""

    def __init__(self, name: str) -> None:
        self.raw = {
            "metadata": {"namespace": "team", "name": name, "uid": f"uid-of-{name}", "resourceVersion": "7"},
            "spec": make.SPEC,
        }

    async def get_job(self, key: Key) -> Raw | None:
        return cast("Raw", self.raw) if key == ("team", self.raw["metadata"]["name"]) else None

    async def get_claim(self, *_: Any) -> None:
        return None


async def test_a_job_that_is_first_seen_by_one_that_waits_for_it_is_looked_after_itself() -> None:
    """Its own watch event then comes too late to be news."""
    queued: list[Key] = []
    cache = Cache(Jobs(wake=queued.append))
    waiting = make.job(model={"fromJob": "first"})
    cache.jobs.put(waiting)
    observer = Observer(cache, cast("Cluster", Served("first")))

    seen = await observer.observe(waiting.key, make.NOW)
    assert seen is not None
    assert set(seen[1].others.jobs) == {"first"}
    assert ("team", "first") in queued

    queued.clear()
    await observer.observe(waiting.key, make.NOW)
    assert ("team", "first") not in queued, "nothing new was seen of it"
