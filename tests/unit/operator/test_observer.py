"""Live reads, and what they change in the cache."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
from finetune_api.status import Attempt
from finetune_operator.cache import Cache, JobStore
from finetune_operator.cluster import Cluster
from finetune_operator.event_reader import EventReader
from finetune_operator.observer import Observer
from finetune_operator.plan import Create, Need
from finetune_operator.reconcile import Decision, decide
from finetune_operator.views.child_job import child_job_view
from finetune_operator.views.claim import ClaimView
from finetune_operator.views.metadata import Key, Raw
from finetune_operator.views.snapshot import Read, Snapshot

from tests.unit.operator import make


def raw_job(name: str, **spec: Any) -> Raw:
    """Another FineTuneJob as the API server returns it."""
    meta = {"namespace": "team", "name": name, "uid": f"uid-of-{name}", "resourceVersion": "7"}
    return {"metadata": meta, "spec": {**make.SPEC, **spec}}


class Served:
    """An API server that has these objects, whatever the watches have shown."""

    def __init__(self, *jobs: Raw, child_jobs: tuple[Raw, ...] = (), claims: tuple[Raw, ...] = ()) -> None:
        self.jobs, self.child_jobs, self.claims = map(by_name, (jobs, child_jobs, claims))

    async def get_job(self, key: Key) -> Raw | None:
        return self.jobs.get(key[1])

    async def pods_of(self, *_: Any) -> list[Raw]:
        return []

    async def get_child_job(self, _namespace: str, name: str) -> Raw | None:
        return self.child_jobs.get(name)

    async def get_claim(self, _namespace: str, name: str) -> Raw | None:
        return self.claims.get(name)

    async def get_presets(self, _namespace: str) -> Raw | None:
        return None


def by_name(raws: tuple[Raw, ...]) -> dict[str, Raw]:
    return {raw["metadata"]["name"]: raw for raw in raws}


def observer(cache: Cache, cluster: Cluster) -> Observer:
    return Observer(cache, cluster, EventReader(cluster, cache.unreadable, lambda _key: None))


async def decided(cache: Cache, served: Served, key: Key) -> Decision:
    """The decision about a job that exists."""
    decision = await decide(observer(cache, cast("Cluster", served)), key, make.NOW, make.SETTINGS)
    assert decision is not None
    return decision


async def test_a_job_that_a_waiting_job_reads_first_is_queued_itself() -> None:
    """Its own watch event comes too late to change the cache."""
    queued: list[Key] = []
    cache = Cache(JobStore(wake=queued.append))
    waiting = make.job(model={"fromJob": "first"})
    cache.jobs.put(waiting)
    served = Served(raw_job("first"))

    decision = await decided(cache, served, waiting.key)
    assert set(decision.snapshot.dependencies.jobs) == {"first"}
    assert ("team", "first") in queued

    queued.clear()
    await decided(cache, served, waiting.key)
    assert ("team", "first") not in queued, "nothing changed"


@pytest.mark.parametrize(
    ("uid", "spec", "cycle"),
    [
        ("uid-of-c", {"model": {"fromJob": "demo"}}, ("demo", "b", "c", "demo")),
        ("another", {}, ()),
    ],
)
async def test_a_cycle_is_confirmed_by_live_reads_of_its_members(uid: str, spec: Raw, cycle: tuple[str, ...]) -> None:
    """demo -> b -> c -> demo, by the watches. They may be late, and c may be recreated."""
    cache = Cache()
    waiting = make.job(model={"fromJob": "b"})
    cache.jobs.put(waiting)
    cache.jobs.put(make.other("c", model={"fromJob": "demo"}))
    third = raw_job("c", **spec)
    third["metadata"]["uid"] = uid
    served = Served(raw_job("b", model={"fromJob": "c"}), third)
    decision = await decided(cache, served, waiting.key)
    assert decision.snapshot.dependencies.cycle == cycle


async def test_claims_are_read_with_the_job_that_owns_them() -> None:
    cache = Cache()
    waiting = make.job(model={"fromJob": "first"}, ppo={"rewardModel": {"fromJob": "second"}}, stage="ppo")
    cache.jobs.put(waiting)
    owner = {"kind": "FineTuneJob", "name": "base", "uid": "1"}
    claims = (
        {"metadata": {"name": "one", "ownerReferences": [owner]}, "spec": {"accessModes": ["ReadWriteMany"]}},
        {"metadata": {"name": "two", "deletionTimestamp": make.MOMENT}, "spec": {"accessModes": ["ReadWriteMany"]}},
    )
    jobs = (raw_job("first", workspace={"claimName": "one"}), raw_job("second", workspace={"claimName": "two"}))
    decision = await decided(cache, Served(*jobs, claims=claims), waiting.key)
    assert decision.snapshot.dependencies.claims == {"one": ClaimView(("ReadWriteMany",), "base", "1")}


async def test_a_wiped_status_is_recovered_from_the_newest_child_job_alone() -> None:
    spec = {"model": {"fromJob": "sft"}}
    accepted = make.with_status(make.job(**spec), make.step(make.job(**spec), make.among(make.succeeded("sft"))))
    planned = make.step(accepted)
    assert isinstance(planned.step, Create)
    manifest = planned.step.manifests[-1]
    manifest["metadata"] |= {"uid": "uid-of-it", "resourceVersion": "8", "creationTimestamp": make.MOMENT}
    cache = Cache()
    cache.jobs.put(make.job(**spec))
    view = child_job_view(manifest)
    assert view is not None
    cache.child_jobs.put(view)

    decision = await decided(cache, Served(child_jobs=(manifest,)), ("team", "demo"))
    terms = decision.snapshot.accepted_terms
    assert terms is not None
    assert [reference.to_dict() for reference in terms.references] == accepted.status["references"]
    assert terms.resolved.to_dict() == accepted.status["resolved"]
    again = decision.plan
    assert (again.step, again.status.prepare_attempt) == (None, 1)
    assert again.status.to_dict()["references"] == accepted.status["references"]


@pytest.mark.parametrize("labels", [{}, {"finetune-operator.io/managed": "false"}])
async def test_a_child_job_without_its_labels_is_found_by_name_and_owner(labels: dict[str, str]) -> None:
    view = make.with_status(make.begun(), make.step(make.begun(), Snapshot((make.child_job(),), (make.running(),))))
    created = make.step(make.begun())
    assert isinstance(created.step, Create)
    manifest = created.step.manifests[-1]
    manifest["metadata"] |= {"uid": "u", "resourceVersion": "8", "creationTimestamp": make.MOMENT, "labels": labels}
    cache = Cache()
    cache.jobs.put(view)
    cache.child_jobs.drop(make.child_job(uid="u"))
    raw = {"metadata": {"namespace": "team", "name": "demo", "uid": view.uid, "resourceVersion": "7", "generation": 1}}
    served = Served({**raw, "spec": view.spec, "status": view.status}, child_jobs=(manifest,))
    decision = await decided(cache, served, view.key)
    [child] = decision.snapshot.child_jobs
    assert (child.kind, child.attempt, child.watched) == ("train", 1, False)
    assert cache.child_jobs.of(view.key) == (), "nothing would update it"
    assert (decision.plan.status.attempts or [])[-1].reason is None


@pytest.mark.parametrize(
    "change",
    [{"ownerReferences": []}, {"name": "demo-fffff-1"}, {"name": "demo-0a1b2-1x"}, {"name": "demo-0a1b2-q1"}],
)
def test_a_job_of_another_name_or_owner_is_no_child_job(change: dict[str, Any]) -> None:
    created = make.step(make.begun())
    assert isinstance(created.step, Create)
    manifest = created.step.manifests[-1]
    manifest["metadata"] |= {"uid": "u", "resourceVersion": "8", "creationTimestamp": make.MOMENT, "labels": {}}
    assert child_job_view(manifest) is not None
    assert child_job_view({**manifest, "metadata": {**manifest["metadata"], **change}}) is None


class Recorded:
    """An API server that has nothing, and records the calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        async def call(*_arguments: Any) -> Any:
            self.calls.append(name)
            return None if name.startswith("get_") else []

        return call


@pytest.mark.parametrize(
    ("read", "calls"),
    [
        (Read.JOB, ["get_job"]),
        (Read.CHILD_JOB, ["get_child_job"]),
        (Read.PODS, ["pods_of"]),
        (Read.WORKSPACE, ["get_claim"]),
        (Read.GPU_MEMORY, ["node_labels"]),
        (Read.DEPENDENCIES, ["get_job"]),
        (Read.ACCEPTED_TERMS, ["get_child_job"]),
    ],
)
async def test_a_need_makes_exactly_its_own_calls(read: Read, calls: list[str]) -> None:
    view = make.job(model={"fromJob": "first"})
    attempt = Attempt(number=1, job=make.child_job().name, state="Starting", start_time=make.MOMENT)
    recorded = Recorded()
    reading = observer(Cache(), cast("Cluster", recorded))
    snapshot = Snapshot((make.child_job(),), (make.pod(),))
    fresh = await reading.read(Need(frozenset({read}), "train", attempt), view, snapshot)
    assert recorded.calls == calls
    assert (fresh is None) == (read is Read.JOB)
    assert fresh is None or fresh[1].reads == {read}


def test_a_snapshot_has_no_children_of_an_earlier_job_of_the_name() -> None:
    cache, view = Cache(), make.job()
    old = f"demo-{'f' * 5}-1"
    for child in (make.child_job(), make.child_job(name=old, uid="old", owner_uid="old")):
        cache.child_jobs.put(child)
    for pod in (make.pod(), make.pod(name=f"{old}-0-abcde", uid="old")):
        cache.pods.put(pod)
    snapshot = observer(cache, cast("Cluster", Recorded())).snapshot(view)
    assert (snapshot.child_jobs, snapshot.pods) == ((make.child_job(),), (make.pod(),))


async def test_a_pod_that_a_live_read_does_not_find_departs_as_the_watch_has_shown_it() -> None:
    cache = Cache()
    view, pod = make.begun(), make.running()
    cache.pods.put(pod)
    own = observer(cache, cast("Cluster", Served()))
    need = Need(frozenset({Read.PODS}), "train", Attempt.model_validate(view.status["attempts"][0]))
    read = await own.read(need, view, own.snapshot(view))
    assert read is not None
    assert (read[1].pods, read[1].departed) == ((), (pod,))
