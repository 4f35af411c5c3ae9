"""A look at everything: page by page, and new work first."""

from __future__ import annotations

import gc
import re
import weakref
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from finetune_operator.app import Operator
from finetune_operator.cluster import ApiError, Cluster
from finetune_operator.views.metadata import Raw

from tests.unit.operator import make

PAGES, ON_A_PAGE = 5, 20


class Tracked(dict[str, Any]):
    """An object of which a test can see whether it is still in memory."""


class Server(Cluster):
    """Has pages of each kind."""

    def __init__(self) -> None:
        self.calls = Counter()
        self.alive: weakref.WeakValueDictionary[int, Tracked] = weakref.WeakValueDictionary()
        self.most = 0
        self.made = 0
        self.selects = True
        """Whether the CRD lets the operator ask for new jobs only."""

    async def _call(self, method: str, path: str, query: dict[str, str] | None = None, *_: Any, **__: Any) -> Raw:
        assert method == "GET"
        assert query is not None
        gc.collect()
        self.most = max(self.most, len(self.alive))
        selector = query.get("labelSelector", "")
        if path.endswith("/finetunejobs") and "fieldSelector" in query:
            if not self.selects:
                raise ApiError(400, "field label not supported: status.observedGeneration")
            new = range(0, PAGES * ON_A_PAGE, 10)
            return {"metadata": {"resourceVersion": "99"}, "items": [self._object(path, number) for number in new]}
        if " in (" in selector:
            numbers = [int(name) for name in re.findall("job-([0-9]+)", selector)]
            return {"metadata": {"resourceVersion": "99"}, "items": [self._object(path, number) for number in numbers]}
        page = int(query.get("continue", "0"))
        items = [self._object(path, page * ON_A_PAGE + number) for number in range(ON_A_PAGE)]
        rest = {"continue": str(page + 1)} if page + 1 < PAGES else {}
        return {"metadata": {"resourceVersion": "99", **rest}, "items": items}

    def _object(self, path: str, number: int) -> Tracked:
        name = f"job-{number:04}"
        labels = {f"finetune-operator.io/{label}": text for label, text in (("job", name), ("kind", "train"))}
        meta = {
            "namespace": "team",
            "name": name,
            "uid": f"{path}/{name}",
            "resourceVersion": "7",
            "creationTimestamp": make.MOMENT,
            "labels": {**labels, "finetune-operator.io/attempt": "1"},
        }
        status = {"phase": "Running", "observedGeneration": 1} if number % 10 else {"phase": "Pending"}
        made = Tracked(metadata=meta, spec={}, status=status)
        self.made += 1
        self.alive[self.made] = made
        return made


@pytest.fixture(autouse=True)
def light_collections() -> Iterator[None]:
    """The server here collects garbage at each call, and need not look through all that other tests have imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def operator() -> Operator:
    return Operator(make.SETTINGS, Server())


async def test_a_listing_holds_the_raw_objects_of_one_page(operator: Operator) -> None:
    """A raw pod is ten times as large as its view, and finished jobs keep theirs."""
    await operator.resync()
    server = operator.cluster
    assert isinstance(server, Server)
    assert server.made == 4 * PAGES * ON_A_PAGE
    assert server.most == 0, "nothing of a page is left when the next is read"
    for store in (operator.cache.jobs, operator.cache.child_jobs, operator.cache.pods):
        assert len(store.views) == PAGES * ON_A_PAGE


async def test_jobs_that_no_operator_has_seen_come_first(operator: Operator) -> None:
    await operator.resync()
    count = PAGES * ON_A_PAGE
    order = [(await operator.queue.get())[1] for _ in range(count)]
    new = {f"job-{number:04}" for number in range(0, count, 10)}
    assert new <= set(order[: 4 * len(new) // 3 + 1]), "every fourth turn is for the others"
    assert len(set(order)) == count


class Closed(Server):
    """Lists the namespace open, and answers with this status for the namespace closed; 0: it lists that, too."""

    def __init__(self, status: int) -> None:
        super().__init__()
        self.status = status

    async def _call(self, method: str, path: str, query: dict[str, str] | None = None, *_: Any, **__: Any) -> Raw:
        # Pods are listed first: what is known of a namespace must not be a part of it.
        if self.status and "/namespaces/closed/finetunejobs" in path:
            raise ApiError(self.status, "no")
        return await super()._call(method, path, query)

    def _object(self, path: str, number: int) -> Tracked:
        made = super()._object(path, number)
        made["metadata"]["namespace"] = path.split("/namespaces/")[1].split("/")[0]
        return made


async def test_a_namespace_that_cannot_be_listed_leaves_nothing_in_the_cache_and_stops_no_other() -> None:
    server = Closed(403)
    operator = Operator(make.SETTINGS.model_copy(update={"watch_namespaces": ["closed", "open"]}), server)
    stores = (operator.cache.jobs, operator.cache.child_jobs, operator.cache.pods)

    def namespaces() -> list[set[str]]:
        return [{key[0] for key in store.views} for store in stores]

    await operator.resync()
    assert namespaces() == [{"open"}] * 3
    assert not await operator.territory.serves("closed")
    server.status = 0
    await operator.resync()
    assert namespaces() == [{"closed", "open"}] * 3
    assert await operator.territory.serves("closed")
    server.status = 403
    await operator.resync()
    assert namespaces() == [{"open"}] * 3
    server.status = 503
    with pytest.raises(ApiError):
        await operator.resync()


async def test_new_jobs_are_found_with_their_children_before_everything_is_listed(operator: Operator) -> None:
    """A job that looks new has children if somebody wiped its status."""
    found = await operator.listing.look_for_new()
    assert found == {("team", f"job-{number:04}") for number in range(0, PAGES * ON_A_PAGE, 10)}
    assert operator.cache.job_keys() == found
    assert all(operator.cache.child_jobs.of(key) and operator.cache.pods.of(key) for key in found)
    await operator.resync()
    assert len(operator.cache.job_keys()) == PAGES * ON_A_PAGE


async def test_with_the_crd_of_an_earlier_release_new_jobs_are_found_with_all_others(operator: Operator) -> None:
    server = operator.cluster
    assert isinstance(server, Server)
    server.selects = False
    assert await operator.listing.look_for_new() == set()
    await operator.resync()
    assert len(operator.cache.job_keys()) == PAGES * ON_A_PAGE
