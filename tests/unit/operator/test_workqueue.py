"""What the keyed queue guarantees, with real workers and a clock that the test moves."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from finetune_operator.workqueue import BACKOFF_MAX, WorkQueue


@pytest.fixture
def flying_time(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """[seconds]: the queue's clock, which a test moves."""
    now = [0.0]
    monkeypatch.setattr(WorkQueue, "_now", staticmethod(lambda: now[0]))
    return now


async def test_a_key_has_one_worker_at_a_time_and_no_change_is_lost() -> None:
    queue: WorkQueue[str] = WorkQueue()
    working: Counter[str] = Counter()
    done: Counter[str] = Counter()

    async def worker() -> None:
        while True:
            key = await queue.get()
            working[key] += 1
            assert working[key] == 1
            await asyncio.sleep(0)
            working[key] -= 1
            done[key] += 1
            queue.done(key)

    workers = [asyncio.create_task(worker()) for _ in range(4)]
    for _ in range(50):
        for key in "abc":
            queue.add(key)
        await asyncio.sleep(0)
    async with asyncio.timeout(5):
        while queue.standstill() or not all(done[key] for key in "abc"):
            await asyncio.sleep(0)
    before = done["a"]
    queue.add("a")
    async with asyncio.timeout(5):
        while done["a"] == before:
            await asyncio.sleep(0)
    for task in workers:
        task.cancel()


async def test_a_key_that_is_added_while_busy_is_worked_on_again() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    assert await queue.get() == "a"
    queue.add("a")
    queue.add("a")
    queue.done("a")
    assert await asyncio.wait_for(queue.get(), 1) == "a"
    queue.done("a")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.get(), 0.01)


async def test_first_come_first_served() -> None:
    queue: WorkQueue[int] = WorkQueue()
    for key in range(5):
        queue.add(key)
    assert [await queue.get() for _ in range(5)] == list(range(5))


async def test_routine_work_comes_after_all_other_but_is_not_starved() -> None:
    """A new job does not wait for two thousand that an operator only looks at again."""
    queue: WorkQueue[int] = WorkQueue()
    for key in range(100):
        queue.add(key, routine=True)
    queue.add(1000)
    queue.add(50)
    assert [await queue.get() for _ in range(2)] == [1000, 50], "news about a key of routine work are news"
    turns = []
    for key in range(2000, 2009):
        queue.add(key)
        turns.append(await queue.get())
    assert sum(key < 100 for key in turns) >= 2
    queue.add(99, routine=True)
    rest = [await queue.get() for _ in range(99 + 9 - len(turns))]
    assert len({*turns, *rest, 1000, 50}) == 110, "each key once"
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.get(), 0.01)


async def test_keys_are_done_when_no_worker_has_them_any_more() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("new")
    queue.add("routine", routine=True)
    waiting = asyncio.create_task(queue.until_done({"new", "other"}))
    assert await queue.get() == "new"
    queue.add("new")
    queue.done("new")
    await asyncio.sleep(0.01)
    assert not waiting.done(), "it was added once more"
    assert await queue.get() == "new"
    queue.done("new")
    await asyncio.wait_for(waiting, 1)


async def test_a_delayed_key_is_due_at_its_earliest_time(flying_time: list[float]) -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add_after("a", 100)
    queue.add_after("a", 10)
    queue.add_after("a", 50)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.get(), 0.01)
    flying_time[0] = 10.5
    assert await queue.get() == "a"
    queue.done("a")
    flying_time[0] = 1000
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.get(), 0.01)


async def test_errors_back_off_exponentially_and_a_success_resets(flying_time: list[float]) -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add("a")
    waits = []
    for _ in range(10):
        assert await queue.get() == "a"
        started = flying_time[0]
        queue.done("a", failed=True)
        flying_time[0] = queue._due["a"]
        waits.append(flying_time[0] - started)
    assert waits[0] < 1
    assert waits[4] > 4 * waits[0]
    assert max(waits) <= BACKOFF_MAX * 1.25
    assert await queue.get() == "a"
    queue.done("a")
    queue.add("a")
    await queue.get()
    started = flying_time[0]
    queue.done("a", failed=True)
    assert queue._due["a"] - started < 1


async def test_a_standstill_is_known(flying_time: list[float]) -> None:
    queue: WorkQueue[str] = WorkQueue()
    assert queue.standstill() == 0
    queue.add("a")
    flying_time[0] = 7
    assert queue.standstill() == 7
    await queue.get()
    flying_time[0] = 9
    assert queue.standstill() == 2
