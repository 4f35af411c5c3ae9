"""What looking at one job brings to light of others."""

from __future__ import annotations

from typing import Any, cast

import pytest
from finetune_operator.cache import Cache, Jobs
from finetune_operator.cluster import Cluster
from finetune_operator.observe import Observer
from finetune_operator.observed import ClaimView, Key, Raw, batch_view
from finetune_operator.plan import Create

from tests.unit.operator import make


def raw_job(name: str, **spec: Any) -> Raw:
    """Another FineTuneJob as the API server has it."""
    meta = {"namespace": "team", "name": name, "uid": f"uid-of-{name}", "resourceVersion": "7"}
    return {"metadata": meta, "spec": {**make.SPEC, **spec}}


class Served:
    """An API server that has these, whatever the watches have shown."""

    def __init__(self, *jobs: Raw, batches: tuple[Raw, ...] = (), claims: tuple[Raw, ...] = ()) -> None:
        self.jobs, self.batches, self.claims = map(by_name, (jobs, batches, claims))

    async def get_job(self, key: Key) -> Raw | None:
        return self.jobs.get(key[1])

    async def get_batch(self, _namespace: str, name: str) -> Raw | None:
        return self.batches.get(name)

    async def get_claim(self, _namespace: str, name: str) -> Raw | None:
        return self.claims.get(name)


def by_name(raws: tuple[Raw, ...]) -> dict[str, Raw]:
    return {raw["metadata"]["name"]: raw for raw in raws}


def observer(cache: Cache, served: Served) -> Observer:
    return Observer(cache, cast("Cluster", served))


async def test_a_job_that_is_first_seen_by_one_that_waits_for_it_is_looked_after_itself() -> None:
    """Its own watch event then comes too late to be news."""
    queued: list[Key] = []
    cache = Cache(Jobs(wake=queued.append))
    waiting = make.job(model={"fromJob": "first"})
    cache.jobs.put(waiting)
    looks = observer(cache, Served(raw_job("first")))

    seen = await looks.observe(waiting.key, make.NOW)
    assert seen is not None
    assert set(seen[1].others.jobs) == {"first"}
    assert ("team", "first") in queued

    queued.clear()
    await looks.observe(waiting.key, make.NOW)
    assert ("team", "first") not in queued, "nothing new was seen of it"


@pytest.mark.parametrize(
    ("uid", "spec", "ring"),
    [
        ("uid-of-c", {"model": {"fromJob": "demo"}}, ("demo", "b", "c", "demo")),
        ("another", {}, ()),
    ],
)
async def test_a_ring_is_one_only_if_its_members_are_still_so(uid: str, spec: Raw, ring: tuple[str, ...]) -> None:
    """demo -> b -> c -> demo, by the watches; but they may be late, and c have been made anew."""
    cache = Cache()
    waiting = make.job(model={"fromJob": "b"})
    cache.jobs.put(waiting)
    cache.jobs.put(make.other("c", model={"fromJob": "demo"}))
    third = raw_job("c", **spec)
    third["metadata"]["uid"] = uid
    served = Served(raw_job("b", model={"fromJob": "c"}), third)
    seen = await observer(cache, served).observe(waiting.key, make.NOW)
    assert seen is not None
    assert seen[1].others.ring == ring


async def test_claims_are_seen_with_whom_they_go() -> None:
    cache = Cache()
    waiting = make.job(model={"fromJob": "first"}, ppo={"rewardModel": {"fromJob": "second"}}, stage="ppo")
    cache.jobs.put(waiting)
    owner = {"kind": "FineTuneJob", "name": "base", "uid": "1"}
    claims = (
        {"metadata": {"name": "one", "ownerReferences": [owner]}, "spec": {"accessModes": ["ReadWriteMany"]}},
        {"metadata": {"name": "two", "deletionTimestamp": make.MOMENT}, "spec": {"accessModes": ["ReadWriteMany"]}},
    )
    jobs = (raw_job("first", workspace={"claimName": "one"}), raw_job("second", workspace={"claimName": "two"}))
    seen = await observer(cache, Served(*jobs, claims=claims)).observe(waiting.key, make.NOW)
    assert seen is not None
    assert seen[1].others.claims == {"one": ClaimView(("ReadWriteMany",), "base")}


async def test_a_wiped_status_is_made_up_from_the_newest_job_and_nobody_else_is_asked() -> None:
    spec = {"model": {"fromJob": "sft"}}
    accepted = make.with_status(make.job(**spec), make.step(make.job(**spec), make.among(make.succeeded("sft"))))
    planned = make.step(accepted)
    assert isinstance(planned.step, Create)
    made = planned.step.children[-1]
    made["metadata"] |= {"uid": "uid-of-it", "resourceVersion": "8", "creationTimestamp": make.MOMENT}
    cache = Cache()
    cache.jobs.put(make.job(**spec))
    view = batch_view(made)
    assert view is not None
    cache.batches.put(view)

    seen = await observer(cache, Served(batches=(made,))).observe(("team", "demo"), make.NOW)
    assert seen is not None
    fixed = seen[1].fixed
    assert fixed is not None
    assert [one.to_dict() for one in fixed.references] == accepted.status["references"]
    assert fixed.resolved.to_dict() == accepted.status["resolved"]
    again = make.step(seen[0], seen[1])
    assert (again.step, again.status.prepare_attempt) == (None, 1)
    assert again.status.to_dict()["references"] == accepted.status["references"]
