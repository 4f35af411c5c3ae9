"""The cache never goes back in time, and a listing repairs what a watch lost."""

from __future__ import annotations

from dataclasses import replace

from finetune_operator.cache import Shelf
from finetune_operator.health import WatchLag
from finetune_operator.observed import BatchView
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.operator.make import batch, job

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
