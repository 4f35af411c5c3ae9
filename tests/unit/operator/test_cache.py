"""The cache never goes back in time, and a listing repairs what a watch lost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from finetune_operator.cache import Cache, JobStore, Store
from finetune_operator.health import WatchLag
from finetune_operator.views.child_job import ChildJobView
from finetune_operator.views.job import JobView
from finetune_operator.views.metadata import Key
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.operator.make import child_job, job, other

KEY = ("team", "demo")


@given(st.permutations(range(1, 8)))
def test_the_newest_version_stays_in_any_order_of_events(order: list[int]) -> None:
    store: Store[ChildJobView] = Store()
    for version in order:
        store.put(child_job(resource_version=version))
    (kept,) = store.of(KEY)
    assert kept.resource_version == 7


def test_a_late_event_does_not_bring_a_deleted_object_back() -> None:
    store: Store[ChildJobView] = Store()
    store.put(child_job(resource_version=5))
    store.drop(child_job(resource_version=6))
    assert not store.put(child_job(resource_version=5))
    assert store.of(KEY) == ()
    assert store.put(child_job(uid="another", resource_version=9))
    store.drop(child_job(resource_version=6))
    assert len(store.of(KEY)) == 1


def test_a_listing_drops_deleted_objects_and_keeps_newer_versions() -> None:
    store: Store[ChildJobView] = Store()
    store.put(child_job(1, resource_version=3))
    store.put(child_job(2, resource_version=50))
    news = store.replace([child_job(3, resource_version=4)], listed_at=40)
    assert {view.attempt for view in store.of(KEY)} == {2, 3}
    assert news == {KEY}


async def test_a_watch_lags_until_it_shows_the_expected_version() -> None:
    lag = WatchLag()
    lag.expect("a", 5)
    assert lag.oldest() > 0 or lag._missing
    lag.seen("a", 4)
    assert lag._missing
    lag.seen("a", 5)
    assert not lag._missing
    lag.expect("a", 5)
    assert not lag._missing, "the event may come before the answer to the write"
    lag.expect("b", 1)
    lag.gone("b")
    assert lag.oldest() == 0


def changed(view: JobView, version: int, **status: Any) -> JobView:
    return replace(view, resource_version=version, status={**view.status, **status})


def test_a_change_of_a_jobs_summary_wakes_the_jobs_that_wait_for_it() -> None:
    woken: list[Key] = []
    store = JobStore(wake=woken.append)
    ppo, rm = other("ppo", model={"fromJob": "rm"}), other("rm")
    store.put(ppo)
    store.put(other("bystander"))
    assert woken == []
    news: list[dict[str, Any]] = [{}, {"phase": "Running"}, {"progress": {"percent": 12}}, {"phase": "Succeeded"}]
    for version, status in enumerate(news, start=2):
        rm = changed(rm, version, **status)
        store.put(rm)
        assert woken == [ppo.key], f"after {status}"
        woken.clear()
        store.put(changed(rm, version))
        assert woken == []
    for version, quiet in enumerate(({"progress": {"percent": 99}}, {"checkpoint": {"step": 5}}), start=10):
        store.put(changed(rm, version, **quiet))
    assert woken == [], "no news"
    store.drop(rm)
    assert woken == [ppo.key]
    store.put(replace(rm, uid="recreated", resource_version=20))
    assert woken == [ppo.key] * 2


def test_a_job_that_no_longer_waits_is_not_woken() -> None:
    woken: list[Key] = []
    store = JobStore(wake=woken.append)
    ppo = other("ppo", model={"fromJob": "rm"})
    store.put(ppo)
    store.put(changed(ppo, 2, references=[{"job": "rm"}]))
    store.put(replace(other("rm"), resource_version=3))
    assert woken == []
    assert not store.waiting
    late = other("late", model={"fromJob": "rm"})
    store.put(late)
    store.drop(late)
    store.put(changed(other("rm"), 4, phase="Failed"))
    assert woken == []
    assert not store.waiting


def test_a_recreated_job_may_wait_for_other_jobs() -> None:
    woken: list[Key] = []
    store = JobStore(wake=woken.append)
    first = other("ppo", model={"fromJob": "rm"})
    store.put(first)
    store.put(replace(other("ppo", model={"fromJob": "sft"}), uid="recreated", resource_version=5))
    store.drop(first)
    store.put(other("rm"))
    assert woken == []
    store.put(other("sft"))
    assert woken == [("team", "ppo")]


def test_a_listing_wakes_waiting_jobs() -> None:
    woken: list[Key] = []
    store = JobStore(wake=woken.append)
    ppo = other("ppo", model={"fromJob": "rm"})
    store.replace([ppo, other("rm")], listed_at=5)
    assert woken == [ppo.key]
    store.replace([ppo], listed_at=6)
    assert woken == [ppo.key] * 2


def test_child_jobs_without_their_finetunejob_are_orphans() -> None:
    cache = Cache()
    cache.jobs.put(job())
    cache.child_jobs.put(child_job(1))
    assert cache.orphans() == []
    strange: list[dict[str, Any]] = [{"owner_uid": ""}, {"owner_uid": "another"}, {"key": ("team", "gone")}]
    for number, changes in enumerate(strange, 2):
        cache.child_jobs.put(child_job(number, **changes))
    cache.child_jobs.put(child_job(5, owner_uid="another", deleting=True))
    assert sorted(child.attempt for child in cache.orphans()) == [2, 3, 4]


def test_the_answer_to_a_call_corrects_what_an_outdated_watch_shows_of_the_same_version() -> None:
    """A watch from before an upgrade of the CRD leaves out the new fields. A late event of it changes nothing."""
    store = JobStore()
    whole = replace(job(), resource_version=3, status={"resolved": {"digest": "a", "job": "b"}})
    outdated = replace(whole, status={"resolved": {"digest": "a"}})
    assert store.put(outdated, watched=True)
    assert store.put(whole)
    assert not store.put(whole)
    assert not store.put(outdated, watched=True)
    assert store.get(whole.key) == whole
    store.put(replace(outdated, resource_version=4), watched=True)
    assert store.replace([replace(whole, resource_version=4)], listed_at=9) == {whole.key}
