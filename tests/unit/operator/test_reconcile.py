"""What a reconcile does with the answers of the API server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, cast

import pytest
from finetune_api.status import Progress
from finetune_operator.access import Access
from finetune_operator.cache import Cache
from finetune_operator.cluster import ApiError, Cluster, NamespaceTerminatingError
from finetune_operator.event_reader import EventReader
from finetune_operator.health import WatchLag
from finetune_operator.reconcile import AT_ONCE, UNSERVED_SECONDS, Reconciler
from finetune_operator.recorder import Recorder
from finetune_operator.views.child_job import ChildJobView
from finetune_operator.views.job import JobView
from finetune_operator.views.metadata import Key, Raw
from finetune_operator.views.snapshot import Snapshot

from tests.unit.operator import make

KEY: Key = ("team", "demo")


def raw_job(view: JobView, status: Raw, version: int) -> Raw:
    meta = {
        "namespace": view.namespace,
        "name": view.name,
        "uid": view.uid,
        "resourceVersion": str(version),
        "generation": view.generation,
    }
    return {"metadata": meta, "spec": view.spec, "status": status}


def raw_child(child: ChildJobView, version: int) -> Raw:
    labels = {
        "finetune-operator.io/job": "demo",
        "finetune-operator.io/kind": child.kind,
        "finetune-operator.io/attempt": str(child.attempt),
    }
    meta = {
        "namespace": "team",
        "name": child.name,
        "uid": child.uid,
        "resourceVersion": str(version),
        "creationTimestamp": "2026-01-31T12:00:00Z",
        "labels": labels,
        "ownerReferences": [{"uid": make.UID, "controller": True}],
    }
    return {"metadata": meta, "spec": {}}


@dataclass
class Server:
    """An API server with one FineTuneJob; `fails` says what each method answers instead."""

    cache: Cache
    fails: dict[str, Exception] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    child: Raw | None = None
    version: int = 10

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def call(*arguments: Any, **_: Any) -> Any:
            self.calls.append(name)
            if name in self.fails:
                raise self.fails[name]
            return getattr(self, f"on_{name}", lambda *_: None)(*arguments)

        if name.startswith("on_"):
            raise AttributeError(name)
        return call

    def on_apply_status(self, view: JobView, status: Raw) -> Raw:
        self.version += 1
        return raw_job(view, status, self.version)

    def on_set_progress(self, view: JobView, progress: Progress | None) -> Raw:
        self.version += 1
        return raw_job(view, {**view.status, "progress": progress.to_dict() if progress else None}, self.version)

    def on_create(self, manifest: Raw) -> Raw:
        meta = {"uid": "uid", "resourceVersion": "1", "creationTimestamp": "2026-01-31T12:00:00Z"}
        return {**manifest, "metadata": {**manifest["metadata"], **meta}}

    def on_get_job(self, key: Key) -> Raw:
        view = self.cache.job(key)
        assert view is not None
        return raw_job(view, view.status, view.resource_version)

    def on_get_child_job(self, *_: str) -> Raw | None:
        return self.child

    def on_pods_of(self, *_: Any) -> list[Raw]:
        return []


@dataclass
class Clock:
    now: datetime = make.NOW

    def __call__(self) -> datetime:
        return self.now


def world(view: JobView) -> tuple[Reconciler, Server, Clock]:
    cache, clock = Cache(), Clock()
    cache.jobs.put(view)
    server = Server(cache)
    cluster = cast("Cluster", server)
    reader = EventReader(cluster, cache.unreadable, lambda _key: None)
    recorder = Recorder(cluster, lambda _namespace, _error: None)
    lag, access = WatchLag(), Access(cluster, cache)
    own = Reconciler(cache, cluster, reader, make.SETTINGS, lag, clock, make.everywhere, access, recorder)
    return own, server, clock


async def attempt(own: Reconciler, clock: Clock) -> float | Exception | None:
    """A reconcile, and what the worker does when it fails."""
    try:
        return await own.reconcile(KEY)
    except Exception as error:
        await own.report_failure(KEY, error, clock.now)
        return error


def message(own: Reconciler) -> str:
    view = own.cache.job(KEY)
    assert view is not None
    return str(view.status.get("message", ""))


def condemned() -> tuple[JobView, ChildJobView]:
    """A job whose attempt missed its start deadline and is to be deleted."""
    view, child = make.begun(startDeadlineSeconds=60), make.child_job()
    stuck = Snapshot((child,), (make.pod(),))
    return make.with_status(view, make.step(view, stuck, after=61)), child


async def test_a_delete_that_is_answered_409_is_tried_again_with_what_changed() -> None:
    """The watch's event of the change is no news any more, so nothing else would wake the job."""
    view, child = condemned()
    own, server, _ = world(view)
    own.cache.child_jobs.put(child)
    server.fails["delete_child_job"] = ApiError(409, "the object has been modified")
    server.child = raw_child(child, 2)
    assert await own.reconcile(KEY) == AT_ONCE
    [cached] = own.cache.child_jobs.of(KEY)
    assert cached.resource_version == 2
    del server.fails["delete_child_job"]
    server.child = None
    assert await own.reconcile(KEY) == AT_ONCE
    assert server.calls.count("delete_child_job") == 2
    assert own.cache.child_jobs.of(KEY) == ()


async def test_a_delete_that_is_answered_409_although_nothing_changed_is_a_failure() -> None:
    view, child = condemned()
    own, server, _ = world(view)
    own.cache.child_jobs.put(child)
    server.fails["delete_child_job"] = ApiError(409, "no")
    server.child = raw_child(child, 1)
    with pytest.raises(ApiError):
        await own.reconcile(KEY)


async def test_a_write_that_changes_nothing_is_a_failure() -> None:
    """Not one that is made again at once, without end."""
    view = make.job()
    own, server, _ = world(view)
    server.on_apply_status = lambda *_: raw_job(view, view.status, view.resource_version)  # type: ignore[method-assign]
    with pytest.raises(ApiError, match="Install the CRD of the operator's chart"):
        await own.reconcile(KEY)


async def test_a_failure_is_told_once_it_lasts_and_written_once() -> None:
    own, server, clock = world(make.begun())
    server.fails["create"] = ApiError(500, "etcd is full")
    assert isinstance(await attempt(own, clock), ApiError)
    assert "apply_status" not in server.calls
    clock.now += timedelta(seconds=6)
    for _ in range(3):
        assert isinstance(await attempt(own, clock), ApiError)
    assert server.calls.count("apply_status") == 1
    assert "500: etcd is full" in message(own)
    assert own.metrics.failures == {"APIServerError": 4}
    assert 'finetune_operator_reconcile_failures_total{reason="APIServerError"} 4' in own.metrics.render()


async def test_restarts_in_the_same_pods_are_counted_by_reason() -> None:
    told = {"number": 2, "failures": 2, "reason": "Hung", "exitCode": 76, "message": "m", "time": make.MOMENT}
    own, _, _ = world(make.reporting(make.begun(), activity="Loading", restart=told))
    await own.reconcile(KEY)
    await own.reconcile(KEY)
    assert own.metrics.restarts == {"Hung": 2}
    assert 'finetune_operator_trainer_restarts_total{reason="Hung"} 2' in own.metrics.render()


async def test_an_internal_error_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    own, _, clock = world(make.begun())

    def broken(*_: object) -> None:
        raise KeyError("gone")

    monkeypatch.setattr("finetune_operator.plan.agree", broken)
    await attempt(own, clock)
    clock.now += timedelta(seconds=6)
    await attempt(own, clock)
    assert "KeyError: 'gone'" in message(own)
    assert own.metrics.failures == {"OperatorError": 2}


async def test_a_failure_that_cannot_be_written_is_written_later() -> None:
    own, server, clock = world(make.begun())
    server.fails = {"create": ApiError(503, "busy"), "apply_status": TimeoutError()}
    for _ in range(3):
        clock.now += timedelta(seconds=6)
        await attempt(own, clock)
    assert "503" not in message(own)
    del server.fails["apply_status"]
    await attempt(own, clock)
    assert "503: busy" in message(own)


async def test_refusals_back_off_exponentially() -> None:
    """By the time for which they have lasted, so that a restart of the operator changes nothing."""
    own, server, clock = world(make.begun(startDeadlineSeconds=7200))
    server.fails["create"] = ApiError(403, "exceeded quota")
    await own.reconcile(KEY)
    waits = []
    for _ in range(10):
        due = await own.reconcile(KEY)
        assert due is not None
        waits.append(round(due))
        clock.now += timedelta(seconds=due)
    assert waits == [5, 5, 10, 20, 40, 80, 160, 300, 300, 300]
    assert server.calls.count("apply_status") == 1


async def test_an_invalid_object_fails_the_job_unless_a_policy_refuses_it() -> None:
    own, server, _ = world(make.begun())
    server.fails["create"] = ApiError(422, "ValidatingAdmissionPolicy 'p' denied request: no")
    await own.reconcile(KEY)
    assert "Check the namespace's quota and admission policies" in message(own)
    server.fails["create"] = ApiError(422, 'Job.batch "demo" is invalid: spec: Duplicate value')
    await own.reconcile(KEY)
    view = own.cache.job(KEY)
    assert view is not None
    assert (view.status["phase"], view.status["reason"]) == ("Failed", "InvalidSpec")
    assert "Duplicate value" in message(own)


async def test_an_invalid_object_that_is_not_made_from_the_spec_is_a_refusal() -> None:
    own, server, _ = world(make.begun())
    server.fails["ensure"] = ApiError(422, "cannot change roleRef")
    await own.reconcile(KEY)
    assert "cannot change roleRef" in message(own)
    view = own.cache.job(KEY)
    assert view is not None
    assert (view.status["phase"], view.status["reason"]) == ("Starting", "PodsRejected")


async def test_all_work_in_a_namespace_that_is_deleted_ends_at_once() -> None:
    own, server, _ = world(make.begun())
    other = replace(make.begun(), name="other", uid="uid-of-other")
    elsewhere = replace(make.begun(), namespace="elsewhere", uid="uid-elsewhere")
    own.cache.jobs.put(other)
    own.cache.jobs.put(elsewhere)
    server.fails["create"] = NamespaceTerminatingError(403, "because it is being terminated")
    assert await own.reconcile(KEY) is None
    server.calls.clear()
    for key in (KEY, other.key):
        assert await own.reconcile(key) is None
    assert server.calls == []
    del server.fails["create"]
    assert await own.reconcile(elsewhere.key) == AT_ONCE
    own.cache.jobs.drop(other)
    own.cache.jobs.put(replace(other, uid="uid-of-a-new-namespace", resource_version=99))
    assert await own.reconcile(other.key) == AT_ONCE


async def test_a_child_job_whose_labels_somebody_changed_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    own, server, _ = world(make.begun())
    existing = raw_child(make.child_job(), 1)
    existing["metadata"]["labels"] = {}
    monkeypatch.setattr(server, "on_create", lambda _manifest: existing)
    await own.reconcile(KEY)
    assert "somebody changed its labels" in message(own)
    view = own.cache.job(KEY)
    assert view is not None
    assert (view.status["phase"], view.status["reason"]) == ("Starting", "PodsRejected")


async def test_stale_progress_is_removed_before_the_next_attempt_is_created() -> None:
    """By one write, also if the operator restarts in between."""
    own, server, _ = world(make.reporting(make.begun(), 7))
    for _ in range(3):
        await own.reconcile(KEY)
    calls = [call for call in server.calls if call in ("set_progress", "create")]
    assert calls == ["set_progress", "create"]


async def test_a_child_job_that_gets_its_labels_back_is_taken_again() -> None:
    """The watch has reported its deletion when it lost them, and nothing reports that it is back."""
    own, server, _ = world(make.begun())
    own.cache.child_jobs.drop(make.child_job(uid="uid"))
    for _ in range(5):
        await own.reconcile(KEY)
    assert server.calls.count("create") == 1
    assert [child.uid for child in own.cache.child_jobs.of(KEY)] == ["uid"]


async def test_a_status_that_was_planned_from_an_old_version_is_not_written() -> None:
    """Another operator, the trainer or the user has written since. The job is planned again from what they wrote."""
    view = make.job()
    own, server, clock = world(view)
    newer = replace(make.begun(), resource_version=7)
    server.fails["apply_status"] = ApiError(409, "the object has been modified")
    found = raw_job(newer, newer.status, 7)
    server.__dict__["on_get_job"] = lambda _key: found
    assert await attempt(own, clock) == AT_ONCE
    cached = own.cache.job(KEY)
    assert cached is not None
    assert (cached.resource_version, cached.status) == (7, newer.status)
    assert "create" not in server.calls, "no Event about it"
    assert own.metrics.failures.total() == 0


async def test_a_status_that_is_answered_409_although_nothing_changed_is_a_failure() -> None:
    view = make.job()
    own, server, clock = world(view)
    server.fails["apply_status"] = ApiError(409, "no")
    assert isinstance(await attempt(own, clock), ApiError)


async def test_a_job_that_was_recreated_gets_nothing_of_what_was_planned_for_the_first() -> None:
    view = make.job()
    own, server, clock = world(view)
    server.fails["apply_status"] = ApiError(409, "the UID in the precondition differs")
    other = raw_job(replace(view, uid="another"), {}, 9)
    server.__dict__["on_get_job"] = lambda _key: other
    assert await attempt(own, clock) == AT_ONCE
    assert own.cache.job(KEY) is None


async def test_a_job_of_another_installation_is_left_alone_whatever_happens() -> None:
    """Also when it was ours a moment ago, and its reconciles fail since then. A new job is looked at again: the
    other installation may go."""

    async def nowhere(_namespace: str) -> bool:
        return False

    own, server, clock = world(make.job())
    theirs = replace(own, serves=nowhere)
    assert await theirs.reconcile(("team", "demo")) == UNSERVED_SECONDS
    began = clock.now
    clock.now += timedelta(seconds=60)
    await theirs.report_failure(("team", "demo"), ApiError(500, "no"), began)
    assert server.calls == []
