"""What only Events tell: one read for all jobs of a namespace, at most one page a second in all."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest
from finetune_operator import event_reader
from finetune_operator.cluster import ApiError, Cluster
from finetune_operator.event_reader import INTERVAL_SECONDS, PAGES_MAX, PAUSE_SECONDS, EventReader
from finetune_operator.views.metadata import Key, Raw
from finetune_operator.views.unreadable import UnreadableObjects

FAST = 1000.0
"""So many times as fast as in an operator."""


def event(uid: str, reason: str, message: str = "") -> Raw:
    return {
        "metadata": {"creationTimestamp": "2026-01-31T12:00:00Z"},
        "involvedObject": {"uid": uid},
        "reason": reason,
        "message": message,
        "lastTimestamp": "2026-01-31T12:00:00Z",
    }


class Served:
    """An API server with these pages of events, that records when it is asked."""

    def __init__(self, **pages: list[list[Raw]]) -> None:
        self.pages = pages
        self.reads: list[tuple[str, float]] = []
        self.error: ApiError | None = None

    async def list_events(self, namespace: str, _selector: str, pages: int) -> AsyncIterator[tuple[list[Raw], int]]:
        for page in self.pages.get(namespace, [[]])[:pages]:
            self.reads.append((namespace, asyncio.get_running_loop().time()))
            if self.error is not None:
                raise self.error
            yield page, 1


@contextmanager
def reading(served: Served, woken: list[Key]) -> Iterator[EventReader]:
    reader = EventReader(cast("Cluster", served), UnreadableObjects(), woken.append)
    task = asyncio.ensure_future(reader.run())
    try:
        yield reader
        assert not task.done()
    finally:
        task.cancel()


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_reader, "INTERVAL_SECONDS", INTERVAL_SECONDS / FAST)
    monkeypatch.setattr(event_reader, "PAUSE_SECONDS", PAUSE_SECONDS / FAST)


def gaps(times: list[float]) -> float:
    """The shortest."""
    return min((later - earlier for earlier, later in itertools.pairwise(times)), default=float("inf"))


async def eventually(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.001)


async def test_one_read_serves_all_jobs_of_a_namespace() -> None:
    served, woken = Served(team=[[event("pod-0", "FailedMount"), event("stranger", "FailedMount")]]), list[Key]()
    with reading(served, woken) as reader:
        for number in range(100):
            reader.want(("team", f"job-{number}"), frozenset({f"pod-{number}"}))
        await eventually(lambda: woken)
        reads = len(served.reads)
        await eventually(lambda: len(served.reads) >= reads + 3)
        assert woken == [("team", "job-0")], "no news, no work"
        assert [each.reason for each in reader.about(["pod-0", "pod-1"])] == ["FailedMount"]
        assert not reader.about(["stranger"])


async def test_reads_keep_their_distance_and_end_with_the_need() -> None:
    served = Served()
    with reading(served, []) as reader:
        for number in range(3):
            reader.want((f"team-{number}", "job"), frozenset({"pod"}))
        await eventually(lambda: len(served.reads) >= 12)
        for number in range(3):
            own = [at for namespace, at in served.reads if namespace == f"team-{number}"]
            assert gaps(own) >= INTERVAL_SECONDS / FAST
        times = [at for _, at in served.reads]
        assert gaps(times) >= PAUSE_SECONDS / FAST
        for number in range(3):
            reader.want((f"team-{number}", "job"), frozenset())
        await eventually(lambda: not reader._due)
        reads = len(served.reads)
        await asyncio.sleep(3 * INTERVAL_SECONDS / FAST)
        assert len(served.reads) == reads
        assert not reader._known
        assert not reader._wanted


async def test_a_need_that_comes_and_goes_does_not_read_more_often() -> None:
    served = Served()
    with reading(served, []) as reader:
        for _ in range(50):
            reader.want(("team", "job"), frozenset({"pod"}))
            await asyncio.sleep(0.001)
            reader.want(("team", "job"), frozenset())
        times = [at for _, at in served.reads]
        assert gaps(times) >= INTERVAL_SECONDS / FAST


async def test_a_read_is_bounded() -> None:
    served = Served(team=[[event("other", "x")]] * 100)
    with reading(served, []) as reader:
        reader.want(("team", "job"), frozenset({"pod"}))
        await eventually(lambda: len(served.reads) > PAGES_MAX)
        assert served.reads[PAGES_MAX][1] - served.reads[PAGES_MAX - 1][1] >= PAUSE_SECONDS / FAST


async def test_what_is_known_outlives_an_error_and_changes_with_the_news() -> None:
    served, woken = Served(team=[[event("pod", "FailedAttachVolume", "busy")]]), list[Key]()
    with reading(served, woken) as reader:
        reader.want(("team", "job"), frozenset({"pod"}))
        await eventually(lambda: woken)
        served.error = ApiError(403, "forbidden")
        reads = len(served.reads)
        await eventually(lambda: len(served.reads) >= reads + 2)
        assert [each.message for each in reader.about(["pod"])] == ["busy"]
        served.error, served.pages["team"] = None, [[event("pod", "Pulling")]]
        await eventually(lambda: len(woken) == 2)
        assert [each.reason for each in reader.about(["pod"])] == ["Pulling"]
