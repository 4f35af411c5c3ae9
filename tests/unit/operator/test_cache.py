"""The cache never goes back in time, and a listing repairs what a watch lost."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from finetune_operator.cache import Jobs, Shelf
from finetune_operator.health import WatchLag
from finetune_operator.observed import BatchView, JobView, Key
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.operator.make import batch, job, other

KEY = ("team", "demo")


@given(st.permutations(range(1, 8)))
def test_whatever_the_order_of_events_the_newest_stays(order: list[int]) -> None:
    shelf: Shelf[BatchView] = Shelf()
    for version in order:
        shelf.put(batch(resource_version=version))
    (kept,) = shelf.of(KEY)
    assert kept.resource_version == 7


def test_the_deleted_do_not_come_back_by_a_late_event_but_a_new_one_of_the_name_does() -> None:
    shelf: Shelf[BatchView] = Shelf()
    shelf.put(batch(resource_version=5))
    shelf.drop(batch(resource_version=6))
    assert not shelf.put(batch(resource_version=5))
    assert shelf.of(KEY) == ()
    assert shelf.put(batch(uid="another", resource_version=9))
    shelf.drop(batch(resource_version=6))
    assert len(shelf.of(KEY)) == 1


def test_a_listing_drops_what_is_gone_and_keeps_what_is_newer_than_it() -> None:
    shelf: Shelf[BatchView] = Shelf()
    shelf.put(batch(1, resource_version=3))
    shelf.put(batch(2, resource_version=50))
    news = shelf.replace([batch(3, resource_version=4)], listed_at=40)
    assert {view.attempt for view in shelf.of(KEY)} == {2, 3}
    assert news == {KEY}


def test_only_the_operators_own_changes_are_news() -> None:
    before = job({"phase": "Running", "attempt": 1})
    progress = replace(before, resource_version=2, status={**before.status, "progress": {"step": 5}})
    phase = replace(before, resource_version=2, status={"phase": "Failed", "attempt": 1})
    assert progress.same_for_us(before)
    assert not phase.same_for_us(before)
    assert not replace(before, deleting=True).same_for_us(before)
    assert not before.same_for_us(None)


async def test_the_watch_lags_until_it_shows_what_is_known() -> None:
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


def test_those_who_wait_for_a_job_are_woken_by_what_they_would_say_of_it() -> None:
    woken: list[Key] = []
    shelf = Jobs(wake=woken.append)
    ppo, rm = other("ppo", model={"fromJob": "rm"}), other("rm")
    shelf.put(ppo)
    shelf.put(other("bystander"))
    assert woken == []
    news: list[dict[str, Any]] = [{}, {"phase": "Running"}, {"progress": {"percent": 12}}, {"phase": "Succeeded"}]
    for version, status in enumerate(news, start=2):
        rm = changed(rm, version, **status)
        shelf.put(rm)
        assert woken == [ppo.key], f"after {status}"
        woken.clear()
        shelf.put(changed(rm, version))
        assert woken == []
    for version, quiet in enumerate(({"progress": {"percent": 99}}, {"checkpoint": {"step": 5}}), start=10):
        shelf.put(changed(rm, version, **quiet))
    assert woken == [], "no news"
    shelf.drop(rm)
    assert woken == [ppo.key]
    shelf.put(replace(rm, uid="anew", resource_version=20))
    assert woken == [ppo.key] * 2


def test_who_waits_no_longer_is_left_alone() -> None:
    woken: list[Key] = []
    shelf = Jobs(wake=woken.append)
    ppo = other("ppo", model={"fromJob": "rm"})
    shelf.put(ppo)
    shelf.put(changed(ppo, 2, references=[{"job": "rm"}]))
    shelf.put(replace(other("rm"), resource_version=3))
    assert woken == []
    assert not shelf.waiting
    late = other("late", model={"fromJob": "rm"})
    shelf.put(late)
    shelf.drop(late)
    shelf.put(changed(other("rm"), 4, phase="Failed"))
    assert woken == []
    assert not shelf.waiting


def test_another_job_of_the_name_may_wait_for_others() -> None:
    woken: list[Key] = []
    shelf = Jobs(wake=woken.append)
    first = other("ppo", model={"fromJob": "rm"})
    shelf.put(first)
    shelf.put(replace(other("ppo", model={"fromJob": "sft"}), uid="anew", resource_version=5))
    shelf.drop(first)
    shelf.put(other("rm"))
    assert woken == []
    shelf.put(other("sft"))
    assert woken == [("team", "ppo")]


def test_a_listing_wakes_them_too() -> None:
    woken: list[Key] = []
    shelf = Jobs(wake=woken.append)
    ppo = other("ppo", model={"fromJob": "rm"})
    shelf.replace([ppo, other("rm")], listed_at=5)
    assert woken == [ppo.key]
    shelf.replace([ppo], listed_at=6)
    assert woken == [ppo.key] * 2
